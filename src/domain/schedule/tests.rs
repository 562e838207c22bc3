//! The promises of the choice, on boards by hand and on random ones.

use super::*;
use crate::domain::model::RunnerOptions;
use proptest::prelude::*;

fn key(model: &str, num_ctx: Option<i64>) -> LoadKey {
    let name = ModelName::parse(model).unwrap().name;
    LoadKey::new(name, RunnerOptions { num_ctx, ..RunnerOptions::default() })
}

fn head(model: &str, oldest_seq: i64) -> LaneHead {
    LaneHead { lane: Lane::Key(key(model, None)), oldest_seq }
}

fn loaded(model: &str) -> Resident {
    let key = key(model, None);
    Resident { model: key.model.clone(), key: Some(key), is_embedder: false }
}

#[test]
fn what_is_resident_is_drained_before_older_work_of_another_key() {
    let board = Board { lanes: vec![head("b", 1), head("a", 5)], resident: vec![loaded("a")] };
    assert_eq!(
        decide(&board),
        Decision::Run { lane: Lane::Key(key("a", None)), reason: Reason::Drain }
    );
}

#[test]
fn then_the_oldest_key_is_swapped_in_and_the_old_one_out() {
    let board = Board { lanes: vec![head("c", 7), head("b", 3)], resident: vec![loaded("a")] };
    let expected = Decision::Swap {
        unload: vec![key("a", None).model],
        load: key("b", None),
        reason: Reason::Oldest,
    };
    assert_eq!(decide(&board), expected);
}

#[test]
fn another_num_ctx_is_another_key() {
    let lane = LaneHead { lane: Lane::Key(key("a", Some(8192))), oldest_seq: 1 };
    let board = Board { lanes: vec![lane], resident: vec![loaded("a")] };
    let expected = Decision::Swap {
        unload: vec![key("a", None).model],
        load: key("a", Some(8192)),
        reason: Reason::Oldest,
    };
    assert_eq!(decide(&board), expected);
}

#[test]
fn a_model_found_resident_is_confirmed_not_unloaded() {
    let unknown = Resident { key: None, ..loaded("a") };
    let board = Board { lanes: vec![head("a", 2), head("b", 1)], resident: vec![unknown] };
    let expected =
        Decision::Swap { unload: Vec::new(), load: key("a", None), reason: Reason::Confirm };
    assert_eq!(decide(&board), expected);
}

#[test]
fn the_embedder_is_never_a_victim() {
    let embedder = Resident { is_embedder: true, ..loaded("embed") };
    let board = Board { lanes: vec![head("b", 1)], resident: vec![embedder, loaded("a")] };
    let Decision::Swap { unload, .. } = decide(&board) else { panic!("no swap") };
    assert_eq!(unload, [key("a", None).model]);
}

#[test]
fn a_clients_unload_goes_first_and_an_unplaced_request_waits_its_turn() {
    let opaque = LaneHead { lane: Lane::Opaque, oldest_seq: 1 };
    let unload = LaneHead { lane: Lane::Unload, oldest_seq: 9 };
    let mut board =
        Board { lanes: vec![head("a", 5), opaque, unload], resident: vec![loaded("a")] };
    assert_eq!(service_order(&board), [Lane::Unload, Lane::Key(key("a", None)), Lane::Opaque]);
    assert_eq!(decide(&board), Decision::Run { lane: Lane::Unload, reason: Reason::Unload });
    board.lanes.remove(2);
    board.lanes.remove(0);
    assert_eq!(decide(&board), Decision::Run { lane: Lane::Opaque, reason: Reason::Oldest });
}

fn any_board() -> impl Strategy<Value = Board> {
    let lane = (0_usize..5, proptest::option::of(Just(4096_i64)), 0_i64..1000);
    let resident = (0_usize..5, proptest::option::of(Just(4096_i64)), 0_u8..3);
    (proptest::collection::vec(lane, 0..6), proptest::collection::vec(resident, 0..3)).prop_map(
        |(lanes, resident)| Board {
            lanes: lanes
                .into_iter()
                .map(|(model, ctx, oldest_seq)| {
                    let name = ["a", "b", "c", "d", "e"][model];
                    LaneHead { lane: Lane::Key(key(name, ctx)), oldest_seq }
                })
                .collect(),
            resident: resident
                .into_iter()
                .map(|(model, ctx, kind)| {
                    let key = key(["a", "b", "c", "d", "e"][model], ctx);
                    Resident {
                        model: key.model.clone(),
                        key: (kind > 0).then_some(key),
                        is_embedder: kind == 2,
                    }
                })
                .collect(),
        },
    )
}

proptest! {
    /// Whatever waits and whatever is resident: something on the board is chosen if anything is; a resident key is
    /// never passed over for a swap; among equals the oldest wins; a victim is resident and no embedder.
    #[test]
    fn the_choice_keeps_its_promises(board in any_board()) {
        let decision = decide(&board);
        prop_assert_eq!(&decision, &decide(&board));
        let is_resident = |lane: &Lane| match lane {
            Lane::Key(key) => fit(key, &board.resident) != Fit::Absent,
            Lane::Unload | Lane::Opaque => false,
        };
        let oldest = |resident: bool| board.lanes.iter()
            .filter(|head| is_resident(&head.lane) == resident)
            .map(|head| head.oldest_seq).min();
        match decision {
            Decision::Idle => prop_assert!(board.lanes.is_empty()),
            Decision::Run { lane, .. } => {
                prop_assert!(is_resident(&lane));
                let chosen = board.lanes.iter().filter(|head| head.lane == lane).map(|head| head.oldest_seq).min();
                prop_assert_eq!(chosen, oldest(true));
            }
            Decision::Swap { unload, load, reason } => {
                let chosen = board.lanes.iter()
                    .filter(|head| head.lane == Lane::Key(load.clone())).map(|head| head.oldest_seq).min();
                prop_assert!(chosen.is_some());
                if reason == Reason::Confirm {
                    prop_assert!(unload.is_empty());
                    prop_assert_eq!(chosen, oldest(true));
                } else {
                    prop_assert_eq!(oldest(true), None);
                    prop_assert_eq!(chosen, oldest(false));
                }
                for name in &unload {
                    prop_assert!(board.resident.iter().any(|entry| entry.model == *name && !entry.is_embedder));
                }
            }
        }
    }
}
