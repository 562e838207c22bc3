//! When embedders are loaded, how long they stay, and what they make room for.

use std::slice::from_ref;

use super::tests::{NOW_MS, choice, head, key, queue, resident, told, waiting};
use super::*;

/// Embeds of `e`, the first of which has waited so long; `victims` have to go, of which `unload` are known to.
fn embeds(waited_ms: i64, victims: &[&str], unload: &[&str]) -> Queue {
    let ready_at_ms = NOW_MS - waited_ms;
    let due_at_ms = ready_at_ms + Policy::default().embed_wait_ms;
    let head = Head { due_at_ms, jobs: 9, ..head(Class::Interactive, 0, waited_ms) };
    let names = |names: &[&str]| names.iter().map(|name| key(name, None).model).collect();
    Queue {
        lane: Lane::Embeds(key("e", None)),
        load_ms: 1_000,
        victims: names(victims),
        unload: names(unload),
        ..queue("e", &[head])
    }
}

fn embedder(for_ms: i64) -> Resident {
    let resident = resident("e", for_ms);
    let visit = Visit { load_ms: 1_000, ..resident.visit };
    Resident { is_embedder: true, key: None, visit, ..resident }
}

fn with(queues: &[Queue], residents: &[Resident], in_flight: &[Lane]) -> Board {
    Board {
        now_ms: NOW_MS,
        queues: queues.to_vec(),
        resident: residents.to_vec(),
        in_flight: in_flight.to_vec(),
        ..Board::default()
    }
}

fn lane(model: &str) -> Lane {
    Lane::Key(key(model, None))
}

fn load_of_e(unload: &[&str], reason: Reason) -> Decision {
    let unload = unload.iter().map(|name| key(name, None).model).collect();
    Decision::LoadEmbedder { unload, load: key("e", None), reason }
}

#[test]
fn an_embedder_that_fits_or_may_fit_is_loaded_beside_running_jobs() {
    let beside = load_of_e(&[], Reason::Embed);
    for victims in [&[][..], &["a"]] {
        let queue = embeds(0, victims, &[]);
        let residents = [resident("a", 1_000)];
        assert_eq!(decide(&with(from_ref(&queue), &residents, &[lane("a")])), beside);
        let opaque = with(from_ref(&queue), &residents, &[Lane::Opaque]);
        assert_eq!(decide(&opaque), Decision::Busy, "nobody knows what that needs");
        let barred = Queue { barred_until_ms: NOW_MS + 1, ..queue };
        assert_eq!(decide(&with(&[barred], &residents, &[lane("a")])), Decision::Busy);
    }
    assert_eq!(decide(&with(&[embeds(0, &[], &[])], &[], &[])), beside, "nothing is resident");
}

#[test]
fn one_that_does_not_fit_waits_for_its_turn_and_for_a_border() {
    let queues = |waited_ms| [embeds(waited_ms, &["a"], &["a"]), waiting("a", 7, 0)];
    let residents = [resident("a", 200_000)];
    assert_eq!(choice(&with(&queues(10_000), &residents, &[])), told("a", "drain"));
    let due = with(&queues(100_000), &residents, &[]);
    assert!(matches!(decide(&due), Decision::LoadEmbedder { unload, .. } if unload.len() == 1));
    let young = with(&queues(100_000), &[resident("a", 70_000)], &[]);
    assert_eq!(choice(&young), told("a", "drain"), "a load has to pay");
    let running = with(&queues(100_000), &residents, &[lane("a")]);
    assert_eq!(decide(&running), Decision::Busy);
    let dry = with(&queues(0)[..1], &residents, &[]);
    assert_eq!(decide(&dry), load_of_e(&["a"], Reason::Dry));
}

/// The chat that does not fit beside a resident embedder.
fn chat_without_room() -> Queue {
    let e = vec![key("e", None).model];
    Queue { victims: e.clone(), unload: e, ..waiting("a", 3, 1_000) }
}

#[test]
fn an_embedder_stays_for_a_while_as_embeds_come() {
    let flow = |waited_ms| embeds(waited_ms, &[], &[]);
    let stays = with(&[flow(100), chat_without_room()], &[embedder(3_000)], &[]);
    assert_eq!(decide(&stays), Decision::Idle { until_ms: Some(NOW_MS + 1_000) });
    let over = with(&[flow(100), chat_without_room()], &[embedder(8_000)], &[]);
    assert_eq!(choice(&over), told("a", "first"));
    let owed = with(&[flow(10_000), chat_without_room()], &[embedder(8_000)], &[]);
    assert!(
        matches!(decide(&owed), Decision::Idle { .. }),
        "what its load was made for goes first"
    );
    let dry = with(&[chat_without_room()], &[embedder(3_000)], &[]);
    assert_eq!(choice(&dry), told("a", "first"), "nobody embeds, and nobody is expected");
}

#[test]
fn embeds_that_are_served_delay_no_key_that_needs_another_place() {
    let residents = [resident("a", 1_000), embedder(1_000)];
    let a = vec![key("a", None).model];
    let b = Queue { victims: a.clone(), unload: a, ..waiting("b", 3, 1_000) };
    let flow = embeds(100, &[], &[]);
    assert_eq!(choice(&with(&[flow, b], &residents, &[])), told("b", "dry"));
}

#[test]
fn many_embeds_end_no_hold_that_one_would_not() {
    let absence = vec![
        Absence { wait_ms: 0, probability: 1.0 },
        Absence { wait_ms: 1_000, probability: 0.0 },
    ];
    let a = resident("a", 200_000);
    let back_soon = Resident { visit: Visit { absence, ..a.visit.clone() }, ..a };
    let mut crowd = embeds(1_000, &["a"], &["a"]);
    crowd.heads[0].jobs = 1_000;
    assert_eq!(choice(&with(&[crowd], &[back_soon], &[])), told("a", "hold"));
}
