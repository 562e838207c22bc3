//! What may be done for jobs that nobody waits for, where nothing else is to be done. They go by arrival, one at a time, what
//! is resident first. None of them takes a model out of memory that people use, or are likely to come back for. ADR 30.

use super::board::{Board, Hold, Queue, Resident};
use super::hold::best_wait;
use super::rotate::{RESIDENCE_LOADS, victims};
use super::{Decision, Fit, Lane, Reason, fit, load, take_over};
use crate::domain::job::Class;

/// Nothing of people's was ready or in flight for this long: a client that tries again, after a restart or an error, does so
/// within it.
const QUIET_MS: i64 = 2_000;

/// Answers what to do next. The queues of the board are those of jobs that nobody waits for; of others none is ready, and none
/// was since `quiet_since_ms`.
pub fn decide_unattended(board: &Board, quiet_since_ms: i64) -> Decision {
    if !board.in_flight.is_empty() || board.queues.is_empty() {
        return Decision::Idle { until_ms: None };
    }
    let quiet_at_ms = quiet_since_ms.saturating_add(QUIET_MS);
    if board.now_ms < quiet_at_ms {
        return Decision::Idle { until_ms: Some(quiet_at_ms) };
    }
    let mut queues: Vec<&Queue> = board.queues.iter().collect();
    queues.sort_by_key(|queue| (queue.earliest().map(|head| head.seq), queue.lane.clone()));
    let resident = |queue: &&Queue| match &queue.lane {
        Lane::Key(key) => Some((key.clone(), fit(key, &board.resident))),
        Lane::Embeds(_) | Lane::Unload | Lane::Opaque => None,
    };
    for queue in &queues {
        match resident(queue) {
            Some((_, Fit::Certain)) => {
                let lane = queue.lane.clone();
                return Decision::Run { lane, class: Class::Batch, reason: Reason::Unattended };
            }
            Some((key, Fit::Probable)) if queue.barred_until_ms <= board.now_ms => {
                return load(&key, Class::Batch, Vec::new(), Reason::Confirm);
            }
            Some((_, Fit::Probable | Fit::Absent)) | None => (),
        }
    }
    let mut until_ms: Option<i64> = None;
    for queue in queues {
        let from_ms = may_begin_ms(board, queue);
        if from_ms <= board.now_ms {
            return take_over(board, queue, Reason::Unattended);
        }
        until_ms = Some(until_ms.map_or(from_ms, |at_ms| at_ms.min(from_ms)));
    }
    Decision::Idle { until_ms }
}

/// From when on a lane may have what it needs, as things are.
fn may_begin_ms(board: &Board, queue: &Queue) -> i64 {
    let free_ms = victims(board, queue).map(|victim| is_free_ms(board, queue, victim)).max();
    free_ms.unwrap_or(0).max(queue.barred_until_ms)
}

/// From when on a resident may go for a job that nobody waits for: when nobody has used it for its residence, and nobody is
/// expected back. One that nobody has used in this life of the daemon stays for a load: its clients may be on their way back,
/// and what its load takes may be no more than a guess.
fn is_free_ms(board: &Board, queue: &Queue, victim: &Resident) -> i64 {
    let visit = &victim.visit;
    let loads = if visit.dry_since_ms > visit.since_ms { RESIDENCE_LOADS } else { 1 };
    let unused_ms = visit.dry_since_ms.saturating_add(visit.load_ms.saturating_mul(loads));
    let pair_ms = visit.load_ms.saturating_add(queue.load_ms);
    let expected_ms = match board.policy.hold {
        Hold::Off | Hold::Fixed { .. } => None,
        Hold::Auto => best_wait(visit, pair_ms, queue.jobs(), visit.load_ms),
    };
    unused_ms.max(expected_ms.map_or(0, |wait_ms| board.now_ms.saturating_add(wait_ms)))
}

#[cfg(test)]
mod tests {
    use super::super::board::{Head, Visit};
    use super::*;
    use crate::domain::model::{LoadKey, ModelName, RunnerOptions};

    const NOW_MS: i64 = 1_000_000;

    fn key(model: &str) -> LoadKey {
        LoadKey::new(ModelName::parse(model).unwrap().name, RunnerOptions::default())
    }

    fn queue(model: &str, seq: i64, victims: &[&str]) -> Queue {
        let (ready_at_ms, due_at_ms) = (NOW_MS - 50_000, NOW_MS + 50_000);
        let victims: Vec<ModelName> = victims.iter().map(|name| key(name).model).collect();
        Queue {
            lane: Lane::Key(key(model)),
            heads: vec![Head {
                class: Class::Batch,
                seq,
                ready_at_ms,
                due_at_ms,
                jobs: 1,
                served: 0,
            }],
            load_ms: 1_000,
            service_ms: 100,
            unload: victims.clone(),
            victims,
            barred_until_ms: 0,
        }
    }

    /// A model in memory that was used last so long ago.
    fn resident(model: &str, dry_ms: i64) -> Resident {
        let (load_ms, dry_since_ms) = (1_000, NOW_MS - dry_ms);
        let visit = Visit { load_ms, dry_since_ms, ..Visit::default() };
        Resident { model: key(model).model, key: Some(key(model)), is_embedder: false, visit }
    }

    fn decided(queues: &[Queue], residents: &[Resident], quiet_ms: i64) -> Decision {
        let (queues, resident) = (queues.to_vec(), residents.to_vec());
        let board = Board { now_ms: NOW_MS, queues, resident, ..Board::default() };
        decide_unattended(&board, NOW_MS - quiet_ms)
    }

    #[test]
    fn it_runs_by_arrival_what_is_resident_first_once_people_are_quiet() {
        let queues = [queue("b", 1, &["a"]), queue("a", 2, &[])];
        let run = Decision::Run {
            lane: Lane::Key(key("a")),
            class: Class::Batch,
            reason: Reason::Unattended,
        };
        assert_eq!(decided(&queues, &[resident("a", 0)], QUIET_MS), run);
        let until_ms = Some(NOW_MS + QUIET_MS - 1);
        assert_eq!(decided(&queues, &[resident("a", 0)], 1), Decision::Idle { until_ms });
    }

    #[test]
    fn it_takes_nothing_that_people_used_lately() {
        let queues = [queue("b", 1, &["a"])];
        let swap = |unload: &[&str]| Decision::Swap {
            unload: unload.iter().map(|name| key(name).model).collect(),
            load: key("b"),
            class: Class::Batch,
            reason: Reason::Unattended,
        };
        let stays = decided(&queues, &[resident("a", 5_000)], 5_000);
        assert_eq!(stays, Decision::Idle { until_ms: Some(NOW_MS + 3_000) });
        assert_eq!(decided(&queues, &[resident("a", 8_000)], 8_000), swap(&["a"]));
        assert_eq!(decided(&[queue("b", 1, &[])], &[], 8_000), swap(&[]));
        let mut unused = resident("a", 3_000);
        unused.visit.since_ms = unused.visit.dry_since_ms;
        assert_eq!(decided(&queues, &[unused], 3_000), swap(&["a"]));
    }

    /// Each set-aside job of a key whose confirmation failed was charged all its attempts within milliseconds.
    #[test]
    fn a_key_that_does_not_load_is_not_confirmed_either() {
        let mut barred = queue("a", 1, &[]);
        barred.barred_until_ms = NOW_MS + 5_000;
        let mut unknown = resident("a", 8_000);
        unknown.key = None;
        let until_ms = Some(NOW_MS + 5_000);
        assert_eq!(decided(&[barred], &[unknown], 8_000), Decision::Idle { until_ms });
    }

    #[test]
    fn it_waits_for_whom_it_would_cost_two_loads() {
        let mut used = resident("a", 8_000);
        let back = |wait_ms, probability| super::super::Absence { wait_ms, probability };
        used.visit.absence = vec![back(0, 1.0), back(400, 0.1)];
        let decision = decided(&[queue("b", 1, &["a"])], &[used], 8_000);
        assert_eq!(decision, Decision::Idle { until_ms: Some(NOW_MS + 400) });
    }
}
