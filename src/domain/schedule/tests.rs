//! The promises of the choice, on boards by hand and on random ones. Whole days are in `replay`.

use super::*;
use crate::domain::model::RunnerOptions;
use proptest::prelude::*;

pub(super) const NOW_MS: i64 = 10_000_000;

pub(super) fn key(model: &str, num_ctx: Option<i64>) -> LoadKey {
    let name = ModelName::parse(model).unwrap().name;
    LoadKey::new(name, RunnerOptions { num_ctx, ..RunnerOptions::default() })
}

pub(super) fn head(class: Class, seq: i64, waited_ms: i64) -> Head {
    let ready_at_ms = NOW_MS - waited_ms;
    let due_at_ms = Policy::default().due_at_ms(class, ready_at_ms);
    Head { class, seq, ready_at_ms, due_at_ms, jobs: 1, served: 0 }
}

/// A lane of a model for which everything else in memory has to go.
pub(super) fn queue(model: &str, heads: &[Head]) -> Queue {
    Queue {
        lane: Lane::Key(key(model, None)),
        heads: heads.to_vec(),
        load_ms: 10_000,
        service_ms: 3_000,
        victims: Vec::new(),
        unload: Vec::new(),
        barred_until_ms: 0,
    }
}

pub(super) fn waiting(model: &str, seq: i64, waited_ms: i64) -> Queue {
    queue(model, &[head(Class::Interactive, seq, waited_ms)])
}

/// Resident for `for_ms`, with a gate that is served.
pub(super) fn resident(model: &str, for_ms: i64) -> Resident {
    let key = key(model, None);
    let visit = Visit {
        since_ms: NOW_MS - for_ms,
        gate_seq: 0,
        gate_left: 1,
        load_ms: 10_000,
        service_ms: 3_000,
        dry_since_ms: NOW_MS,
        ..Visit::default()
    };
    Resident { model: key.model.clone(), key: Some(key), is_embedder: false, visit }
}

/// A board with room for one worker model.
fn board(queues: &[Queue], residents: &[Resident]) -> Board {
    let workers: Vec<ModelName> = residents
        .iter()
        .filter(|resident| !resident.is_embedder)
        .map(|resident| resident.model.clone())
        .collect();
    let is_served =
        |queue: &Queue| queue.lane.key().is_some_and(|key| fit(key, residents) != Fit::Absent);
    let with_victims = |queue: &Queue| {
        let victims = if is_served(queue) { Vec::new() } else { workers.clone() };
        Queue { unload: victims.clone(), victims, ..queue.clone() }
    };
    Board {
        now_ms: NOW_MS,
        queues: queues.iter().map(with_victims).collect(),
        resident: residents.to_vec(),
        ..Board::default()
    }
}

/// The model a decision works for, and its reason.
pub(super) fn choice(board: &Board) -> (String, &'static str) {
    match decide(board) {
        Decision::Run { lane, reason, .. } => (lane.to_string(), reason.name()),
        Decision::Swap { load, reason, .. } => (load.to_string(), reason.name()),
        Decision::LoadEmbedder { load, reason, .. } => (load.to_string(), reason.name()),
        Decision::Hold { model, .. } => (model.to_string(), "hold"),
        Decision::Busy => (String::new(), "busy"),
        Decision::Idle { .. } => (String::new(), "idle"),
    }
}

pub(super) fn told(model: &str, reason: &'static str) -> (String, &'static str) {
    (format!("{model}:latest"), reason)
}

#[test]
fn what_is_resident_is_drained_before_older_work_of_another_key() {
    let board = board(&[waiting("b", 1, 2_000), waiting("a", 5, 1_000)], &[resident("a", 1_000)]);
    assert_eq!(choice(&board), told("a", "drain"));
}

#[test]
fn then_the_key_that_is_due_first_is_swapped_in_and_the_old_one_out() {
    let board = board(&[waiting("c", 7, 1_000), waiting("b", 3, 2_000)], &[resident("a", 1_000)]);
    let expected = Decision::Swap {
        unload: vec![key("a", None).model],
        load: key("b", None),
        class: Class::Interactive,
        reason: Reason::Dry,
    };
    assert_eq!(decide(&board), expected);
}

#[test]
fn a_longer_queue_goes_first_if_the_one_due_first_can_wait_for_it() {
    let long = |waited_ms| {
        let head = Head { jobs: 5, ..head(Class::Interactive, 7, waited_ms) };
        queue("c", &[head])
    };
    let calm = board(&[waiting("b", 3, 2_000), long(1_000)], &[resident("a", 1_000)]);
    assert_eq!(choice(&calm), told("c", "longest"));
    let pressed = board(&[waiting("b", 3, 100_000), long(1_000)], &[resident("a", 1_000)]);
    assert_eq!(choice(&pressed), told("b", "dry"));
}

#[test]
fn another_num_ctx_is_another_key() {
    let lane = Queue { lane: Lane::Key(key("a", Some(8192))), ..waiting("a", 1, 1_000) };
    let board = board(&[lane], &[resident("a", 1_000)]);
    let expected = Decision::Swap {
        unload: vec![key("a", None).model],
        load: key("a", Some(8192)),
        class: Class::Interactive,
        reason: Reason::Dry,
    };
    assert_eq!(decide(&board), expected);
}

#[test]
fn a_model_found_resident_is_confirmed_not_unloaded() {
    let unknown = Resident { key: None, ..resident("a", 1_000) };
    let board = board(&[waiting("a", 2, 1_000), waiting("b", 1, 2_000)], &[unknown]);
    let expected = Decision::Swap {
        unload: Vec::new(),
        load: key("a", None),
        class: Class::Interactive,
        reason: Reason::Confirm,
    };
    assert_eq!(decide(&board), expected);
}

#[test]
fn every_resident_key_drains_without_a_swap_and_embedders_are_never_victims() {
    let embedder = Resident { is_embedder: true, ..resident("e", 1_000) };
    let two = board(
        &[waiting("b", 4, 1_000), waiting("a", 5, 1_000)],
        &[resident("a", 1_000), resident("b", 500), embedder.clone()],
    );
    assert_eq!(choice(&two), told("b", "drain"));
    let swap = board(&[waiting("c", 5, 1_000)], &[resident("a", 1_000), embedder]);
    let Decision::Swap { unload, .. } = decide(&swap) else { panic!("{swap:?}") };
    assert_eq!(unload, [key("a", None).model]);
}

#[test]
fn what_fits_beside_is_loaded_in_its_turn_without_unloading() {
    let beside = |seq| {
        let mut board =
            board(&[waiting("a", 5, 1_000), waiting("b", seq, 1_000)], &[resident("a", 1)]);
        for queue in &mut board.queues {
            queue.victims.clear();
            queue.unload.clear();
        }
        board
    };
    assert_eq!(choice(&beside(4)), told("b", "beside"));
    assert_eq!(choice(&beside(6)), told("a", "drain"));
}

/// A trial took the GPU from a key with jobs: 36 chats over six models cost 21 loads.
#[test]
fn a_key_never_seen_beside_the_resident_one_is_tried_only_when_a_load_is_due_anyway() {
    let untried = |queues: &[Queue]| {
        let mut board = board(queues, &[resident("a", 1_000)]);
        for queue in &mut board.queues {
            queue.unload.clear();
        }
        board
    };
    let mine = queue("a", &[Head { jobs: 60, ..head(Class::Interactive, 5, 500) }]);
    assert_eq!(choice(&untried(&[waiting("b", 1, 60_000), mine])), told("a", "drain"));
    let Decision::Swap { unload, load, .. } = decide(&untried(&[waiting("b", 1, 1_000)])) else {
        panic!("b is loaded when a is dry");
    };
    assert_eq!((unload, load), (Vec::new(), key("b", None)));
}

#[test]
fn a_job_about_to_be_late_makes_the_resident_key_leave_after_gate_and_residence() {
    // Due in 12 s, and its load takes 10 s: after one more job of 3 s it would be late.
    let late = waiting("b", 1, 108_000);
    let mine = queue("a", &[Head { jobs: 60, ..head(Class::Interactive, 5, 500) }]);
    let stays = resident("a", 79_000);
    assert_eq!(choice(&board(&[late.clone(), mine.clone()], &[stays])), told("a", "drain"));
    let leaves = resident("a", 81_000);
    assert_eq!(
        choice(&board(&[late.clone(), mine.clone()], std::slice::from_ref(&leaves))),
        told("b", "rotate")
    );
    let mut gated = leaves;
    gated.visit.gate_seq = 5;
    let served_first = queue("a", &[Head { jobs: 60, ..head(Class::Interactive, 5, 90_000) }]);
    assert_eq!(
        choice(&board(&[late.clone(), served_first.clone()], &[gated.clone()])),
        told("a", "drain")
    );
    assert_eq!(
        choice(&board(&[late.clone(), mine], &[gated.clone()])),
        told("b", "rotate"),
        "put off: out of the gate"
    );
    gated.visit.gate_left = 0;
    assert_eq!(choice(&board(&[late, served_first], &[gated])), told("b", "rotate"), "others went");
}

#[test]
fn a_queue_about_to_run_dry_is_finished_before_room_is_made() {
    // Room should have been made 8 s ago; these two came after that.
    let late = waiting("b", 1, 118_000);
    let few = queue("a", &[Head { jobs: 2, ..head(Class::Interactive, 5, 500) }]);
    let mut staying = resident("a", 100_000);
    assert_eq!(
        choice(&board(&[late.clone(), few.clone()], &[staying.clone()])),
        told("a", "drain")
    );
    // Somebody will be back at once: it will not run dry.
    staying.visit.absence = vec![Absence { wait_ms: 500, probability: 0.1 }];
    assert_eq!(choice(&board(&[late, few], &[staying])), told("b", "rotate"));
}

#[test]
fn with_everybody_late_visits_are_longer_not_shorter() {
    let late = [waiting("b", 1, 300_000), waiting("c", 2, 300_000)];
    let mine = queue("a", &[Head { jobs: 60, ..head(Class::Interactive, 5, 500) }]);
    let all = [late.to_vec(), vec![mine]].concat();
    assert_eq!(choice(&board(&all, &[resident("a", 150_000)])), told("a", "drain"));
    assert_eq!(choice(&board(&all, &[resident("a", 161_000)])), told("b", "rotate"));
}

#[test]
fn a_higher_class_does_not_wait_for_the_gate_of_a_lower_one() {
    let batch = queue("a", &[Head { jobs: 1_000, ..head(Class::Batch, 1, 60_000) }]);
    let mut busy = resident("a", 21_000);
    busy.visit.gate_seq = 1_000;
    let person = |waited_ms| waiting("b", 2_000, waited_ms);
    assert_eq!(
        choice(&board(&[batch.clone(), person(19_000)], &[busy.clone()])),
        told("a", "drain")
    );
    assert_eq!(
        choice(&board(&[batch.clone(), person(20_000)], &[busy.clone()])),
        told("b", "preempt")
    );
    busy.visit.since_ms = NOW_MS - 19_000;
    assert_eq!(choice(&board(&[batch, person(20_000)], &[busy])), told("a", "drain"));
}

#[test]
fn inside_a_lane_the_class_counts_but_the_overdue_go_first() {
    let lane = |normal_ms| {
        let heads = [head(Class::Interactive, 9, 1_000), head(Class::Normal, 3, normal_ms)];
        board(&[queue("a", &heads)], &[resident("a", 1_000)])
    };
    let class = |board: &Board| match decide(board) {
        Decision::Run { class, .. } => class,
        other => panic!("{other:?}"),
    };
    assert_eq!(class(&lane(500_000)), Class::Interactive);
    assert_eq!(class(&lane(600_001)), Class::Normal);
}

/// A thousand late jobs of a low class went before everything that was not late, and before what became late after them.
#[test]
fn overdue_classes_and_the_most_urgent_one_take_turns() {
    let late = |class, served| Head { jobs: 1_000, served, ..head(class, 1, 50_000_000) };
    let mut served = [0; 3];
    let mut order = Vec::new();
    for turn in 1..=6 {
        let heads = [
            Head { served: served[0], ..head(Class::Interactive, 9, 1_000) },
            late(Class::Normal, served[1]),
            late(Class::Batch, served[2]),
        ];
        let board = board(&[queue("a", &heads)], &[resident("a", 1_000)]);
        let Decision::Run { class, .. } = decide(&board) else { panic!("{board:?}") };
        served[Class::ALL.iter().position(|other| *other == class).unwrap()] = turn;
        order.push(class);
    }
    let [interactive, normal, batch] = Class::ALL;
    assert_eq!(order[..3], order[3..]);
    order.truncate(3);
    order.sort();
    assert_eq!(order, [interactive, normal, batch]);
}

/// A client of the dry key `a` that is back within a second, most likely.
fn expecting() -> Resident {
    let mut resident = resident("a", 5_000);
    resident.visit.absence = (0..=20)
        .map(|step| Absence { wait_ms: step * 500, probability: if step < 2 { 1.0 } else { 0.1 } })
        .collect();
    resident
}

#[test]
fn a_dry_key_is_held_for_a_client_seen_returning() {
    let held = board(&[waiting("b", 1, 1_000)], &[expecting()]);
    let expected = Decision::Hold { until_ms: NOW_MS + 1_000, model: key("a", None).model };
    assert_eq!(decide(&held), expected);
    let stranger = board(&[waiting("b", 1, 1_000)], &[resident("a", 5_000)]);
    assert_eq!(choice(&stranger), told("b", "dry"));
}

#[test]
fn a_hold_yields_to_the_urgent_to_the_many_and_to_the_clock() {
    let urgent = board(&[waiting("b", 1, 110_500)], &[expecting()]);
    assert_eq!(choice(&urgent), told("b", "dry"));
    let crowd = queue("b", &[Head { jobs: 1_000, ..head(Class::Interactive, 1, 1_000) }]);
    assert_eq!(choice(&board(&[crowd], &[expecting()])), told("b", "dry"));
    let mut long_dry = expecting();
    long_dry.visit.dry_since_ms = NOW_MS - 9_500;
    assert_eq!(choice(&board(&[waiting("b", 1, 1_000)], &[long_dry])), told("b", "dry"));
}

#[test]
fn holding_can_be_switched_off_or_fixed() {
    let mut off = board(&[waiting("b", 1, 1_000)], &[expecting()]);
    off.policy.hold = Hold::Off;
    assert_eq!(choice(&off), told("b", "dry"));
    let mut fixed = board(&[waiting("b", 1, 1_000)], &[resident("a", 5_000)]);
    fixed.policy.hold = Hold::Fixed { ms: 700 };
    let expected = Decision::Hold { until_ms: NOW_MS + 700, model: key("a", None).model };
    assert_eq!(decide(&fixed), expected);
}

#[test]
fn memoryless_arrivals_are_waited_for_only_where_they_are_frequent_and_one_job_waits() {
    let visited_by = |per_ms: f64, jobs: u64| {
        let mut resident = resident("a", 5_000);
        let point = |wait_ms: i64| {
            let probability = (-per_ms * f64::from(i32::try_from(wait_ms).unwrap())).exp();
            Absence { wait_ms, probability }
        };
        resident.visit.absence = (0..=20).map(|step| point(step * 500)).collect();
        let lane = queue("b", &[Head { jobs, ..head(Class::Interactive, 1, 1_000) }]);
        choice(&board(&[lane], &[resident])).1
    };
    assert_eq!(visited_by(0.000_1, 1), "hold");
    assert_eq!(visited_by(0.000_1, 8), "dry");
    assert_eq!(visited_by(0.000_01, 1), "dry");
}

#[test]
fn a_key_that_cools_down_is_passed_over_and_waited_for_if_it_is_alone() {
    let mut cooling = waiting("b", 1, 2_000);
    cooling.barred_until_ms = NOW_MS + 5_000;
    let alone = board(&[cooling.clone()], &[resident("a", 1_000)]);
    assert_eq!(decide(&alone), Decision::Idle { until_ms: Some(NOW_MS + 5_000) });
    let unsure = Resident { key: None, ..resident("b", 1_000) };
    let perhaps_resident = board(&[cooling.clone()], &[unsure]);
    assert_eq!(decide(&perhaps_resident), Decision::Idle { until_ms: Some(NOW_MS + 5_000) });
    let other = board(&[cooling, waiting("c", 2, 1_000)], &[resident("a", 1_000)]);
    assert_eq!(choice(&other), told("c", "dry"));
}

#[test]
fn unloads_and_unplaced_requests_run_alone() {
    let unload = Queue { lane: Lane::Unload, ..waiting("a", 9, 1_000) };
    let mut first = board(&[unload, waiting("a", 1, 2_000)], &[resident("a", 1_000)]);
    assert_eq!(choice(&first), ("!unload".to_owned(), "unload"));
    first.policy.parallel = 2;
    first.in_flight = vec![Lane::Key(key("a", None))];
    assert_eq!(decide(&first), Decision::Busy);
    let opaque = Queue { lane: Lane::Opaque, ..waiting("a", 1, 1_000) };
    let second = board(&[opaque], &[resident("a", 1_000)]);
    assert_eq!(choice(&second), ("!opaque".to_owned(), "dry"));
}

#[test]
fn side_by_side_go_jobs_of_one_key_only_and_only_as_many_as_allowed() {
    let mut parallel = board(
        &[waiting("a", 5, 1_000), waiting("b", 1, 1_000)],
        &[resident("a", 1_000), resident("b", 1_000)],
    );
    parallel.policy.parallel = 2;
    parallel.in_flight = vec![Lane::Key(key("b", None))];
    assert_eq!(choice(&parallel), told("b", "drain"));
    parallel.in_flight = vec![Lane::Key(key("a", None))];
    assert_eq!(decide(&parallel), Decision::Busy, "the oldest is of another key");
    parallel.in_flight = vec![Lane::Key(key("b", None)); 2];
    assert_eq!(decide(&parallel), Decision::Busy);
}

fn any_head() -> impl Strategy<Value = Head> {
    (0..3_usize, 1..1_000_i64, 0..1_000_000_i64, 1..50_u64).prop_map(
        |(class, seq, waited_ms, jobs)| Head { jobs, ..head(Class::ALL[class], seq, waited_ms) },
    )
}

fn any_board() -> impl Strategy<Value = Board> {
    let names = ["a", "b", "c", "d"];
    let heads = prop::collection::vec(prop::option::of(any_head()), 4);
    let residents = prop::collection::vec((0..4_usize, 0..400_000_i64, any::<bool>()), 0..3);
    let flags = (any::<bool>(), any::<bool>(), 1..3_usize);
    (heads, residents, flags).prop_map(move |(heads, residents, (opaque, cooling, parallel))| {
        // No two jobs have one arrival number: each head takes its own of eight.
        let place = |head: Head, of_eight: i64| Head { seq: 8 * head.seq + of_eight, ..head };
        let mut queues: Vec<Queue> = names
            .iter()
            .zip(&heads)
            .zip(0..)
            .filter_map(|((name, head), index)| Some(queue(name, &[place((*head)?, index)])))
            .collect();
        if let (true, Some(first)) = (opaque, queues.first().cloned()) {
            let heads = first.heads.iter().map(|head| place(*head, 7)).collect();
            queues.push(Queue { lane: Lane::Opaque, heads, ..first });
        }
        if let (true, Some(last)) = (cooling, queues.last_mut()) {
            last.barred_until_ms = NOW_MS + 1_000;
        }
        let mut held: Vec<Resident> = Vec::new();
        for (index, for_ms, is_embedder) in residents {
            let found = resident(names[index], for_ms);
            if held.iter().all(|other| other.model != found.model) {
                held.push(Resident { is_embedder, ..found });
            }
        }
        let mut board = board(&queues, &held);
        board.policy.parallel = parallel;
        board
    })
}

proptest! {
    /// Only what is on the board, only its first job by class, and the same answer each time.
    #[test]
    fn decisions_are_about_what_is_there(board in any_board()) {
        let decision = decide(&board);
        prop_assert_eq!(&decision, &decide(&board.clone()));
        let mut reversed = board.clone();
        reversed.queues.reverse();
        reversed.resident.reverse();
        prop_assert_eq!(&decision, &decide(&reversed), "the order of a board means nothing");
        match decision {
            Decision::Run { lane, class, .. } => {
                let queue = board.queues.iter().find(|queue| queue.lane == lane).unwrap();
                prop_assert!(queue.heads.iter().any(|head| head.class == class));
            }
            Decision::Swap { unload, load, class, .. } => {
                let queue = board.queues.iter().find(|queue| queue.lane.key() == Some(&load)).unwrap();
                prop_assert!(queue.heads.iter().any(|head| head.class == class));
                prop_assert!(queue.barred_until_ms <= NOW_MS);
                for name in unload {
                    prop_assert!(board.resident.iter().any(|held| held.model == name && !held.is_embedder));
                }
            }
            Decision::Hold { until_ms, .. } => {
                prop_assert!(until_ms > NOW_MS);
                let latest = board.queues.iter().filter_map(|queue| queue.earliest()).map(|head| head.due_at_ms).min();
                prop_assert!(Some(until_ms) <= latest);
            }
            Decision::LoadEmbedder { .. } => prop_assert!(false, "no embeds wait"),
            Decision::Busy => prop_assert!(!board.in_flight.is_empty()),
            Decision::Idle { .. } => {
                prop_assert!(board.queues.iter().all(|queue| queue.barred_until_ms > NOW_MS));
            }
        }
    }

    /// A swap away from a model with jobs happens only for a job about to be late or of a higher class.
    #[test]
    fn work_is_left_behind_only_for_the_late_and_the_urgent(board in any_board()) {
        let Decision::Swap { unload, reason, .. } = decide(&board) else { return Ok(()) };
        let leaves_work = board.queues.iter().any(|queue| {
            queue.lane.key().is_some_and(|key| {
                unload.contains(&key.model) && fit(key, &board.resident) != Fit::Absent
            })
        });
        if leaves_work {
            prop_assert!(matches!(reason, Reason::Rotate { .. } | Reason::Preempt), "{:?}", reason);
        }
    }
}
