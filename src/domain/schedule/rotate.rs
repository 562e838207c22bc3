//! When the resident keys have to make room although they have jobs: the deadlines of the others, the gate, the residence.
//!
//! Swapping as soon as somebody is late collapses into first come, first served once everybody is late. So a visit serves
//! its gate (the jobs that waited when it began) and lasts a multiple of its load time first, and a queue that is about to
//! run dry is finished: leaving it would cost a second pair of loads.

use super::Lane;
use super::board::{Board, Queue, Resident};
use super::embeds;
use super::hold::{absence_at, real};

/// A visit lasts at least this many times its load time, whoever wants its place: loading never takes more than about a ninth
/// of the time.
pub const RESIDENCE_LOADS: i64 = 8;

/// The same while this many other keys are overdue: then no order keeps all deadlines, and swapping only makes more late.
const RESIDENCE_LOADS_CROWDED: i64 = 16;
const CROWDED_KEYS: usize = 2;

/// A visit that only serves jobs of a lower class makes room for a higher one after this many load times.
const RESIDENCE_LOADS_PREEMPTED: i64 = 2;

/// What was there when room had to be made is still served if it takes no longer than this many pairs of loads; so is a
/// queue that runs dry within as many.
const FINISH_PAIRS: i64 = 4;

/// More arrivals than can be served are taken for nearly as many: a queue never runs dry at that rate.
const DRYING_LOAD_MAX: f64 = 0.99;

/// The lanes that need a load which pushes something out, those that may be loaded now, earliest due first.
pub(super) fn others<'a>(board: &'a Board, is_served: &dyn Fn(&Queue) -> bool) -> Vec<&'a Queue> {
    let mut others: Vec<&Queue> = board
        .queues
        .iter()
        .filter(|queue| !is_served(queue) && !embeds::are_served(board, queue))
        .filter(|queue| queue.barred_until_ms <= board.now_ms)
        .collect();
    others.sort_by_key(|queue| {
        (queue.earliest().map(|head| (head.due_at_ms, head.seq)), queue.lane.clone())
    });
    others
}

/// The latest time at which a swap must begin for every one of `others` to be served in time, in the order of their due
/// times: each needs its load, and the load and one job of each before it.
pub(super) fn latest_switch_ms(others: &[&Queue]) -> i64 {
    let mut ahead_ms: i64 = 0;
    let mut latest_ms = i64::MAX;
    for queue in others {
        let due_at_ms = queue.earliest().map_or(i64::MAX, |head| head.due_at_ms);
        latest_ms = latest_ms.min(due_at_ms.saturating_sub(queue.load_ms).saturating_sub(ahead_ms));
        ahead_ms = ahead_ms.saturating_add(queue.load_ms).saturating_add(queue.service_ms);
    }
    latest_ms
}

/// Whether the resident keys must make room for the first of `others` now, though their lanes (`mine`) have jobs.
pub(super) fn is_due(board: &Board, mine: &[&Queue], others: &[&Queue]) -> bool {
    let Some(first) = others.first() else { return false };
    let latest_ms = latest_switch_ms(others);
    let rest_ms = mine.iter().map(|queue| queue.service_ms).max().unwrap_or(0);
    let is_late = board.now_ms.saturating_add(rest_ms) >= latest_ms;
    let must_go: Vec<&Resident> = victims(board, first).collect();
    // An embedder makes room after its stay, late or not: nothing of the worker's is interrupted.
    if !is_late && !must_go.iter().any(|victim| victim.is_embedder) {
        return false;
    }
    let overdue = others.iter().filter(|queue| is_overdue(queue, board.now_ms)).count();
    let loads = if overdue >= CROWDED_KEYS { RESIDENCE_LOADS_CROWDED } else { RESIDENCE_LOADS };
    must_go.into_iter().all(|victim| {
        if victim.is_embedder {
            return embeds::kept_until_ms(board, victim, others).is_none();
        }
        if !is_late {
            return false;
        }
        let own = lane_of(victim, mine);
        let stays_until_ms = stays_until_ms(victim, loads);
        let turn_ms = latest_ms.max(stays_until_ms);
        is_gate_served(victim, own)
            && board.now_ms >= stays_until_ms
            && !own.is_some_and(|own| is_finished_first(board.now_ms, victim, own, first, turn_ms))
    })
}

/// Whether jobs of a higher class than anything the resident keys have make them leave: the first such lane.
pub(super) fn preempting<'a>(
    board: &Board,
    mine: &[&Queue],
    others: &[&'a Queue],
) -> Option<&'a Queue> {
    let best = mine.iter().map(|queue| queue.class()).min()?;
    others.iter().copied().find(|queue| {
        let Some(head) = queue.heads.iter().find(|head| head.class < best) else { return false };
        let back_ms = victims(board, queue).map(|victim| victim.visit.load_ms).max().unwrap_or(0);
        let patience_ms = queue.load_ms.saturating_add(back_ms);
        board.now_ms.saturating_sub(head.ready_at_ms) >= patience_ms
            && victims(board, queue)
                .all(|victim| board.now_ms >= stays_until_ms(victim, RESIDENCE_LOADS_PREEMPTED))
    })
}

/// The residents that would have to go for a lane.
pub(super) fn victims<'a>(board: &'a Board, queue: &Queue) -> impl Iterator<Item = &'a Resident> {
    let names = queue.victims.clone();
    board.resident.iter().filter(move |resident| names.contains(&resident.model))
}

fn is_overdue(queue: &Queue, now_ms: i64) -> bool {
    queue.earliest().is_some_and(|head| head.due_at_ms <= now_ms)
}

/// Until when a resident stays for its load to have been worth it, so many load times being its residence.
pub(super) fn stays_until_ms(victim: &Resident, loads: i64) -> i64 {
    victim.visit.since_ms.saturating_add(victim.visit.load_ms.saturating_mul(loads))
}

/// The lane a resident serves.
pub(super) fn lane_of<'a>(resident: &Resident, mine: &[&'a Queue]) -> Option<&'a Queue> {
    mine.iter().copied().find(|queue| match &queue.lane {
        Lane::Key(key) => key.model == resident.model,
        Lane::Embeds(_) | Lane::Unload | Lane::Opaque => false,
    })
}

/// The gate is what waited when the load finished, or as many jobs as that. A job that was put off since then is ready only
/// after that.
pub(super) fn is_gate_served(victim: &Resident, own: Option<&Queue>) -> bool {
    let visit = &victim.visit;
    visit.gate_left == 0
        || own.is_none_or(|own| {
            own.heads
                .iter()
                .all(|head| head.seq > visit.gate_seq || head.ready_at_ms > visit.since_ms)
        })
}

/// Whether the victim's queue is finished before it makes room: its jobs waited when its turn ended and take little, or it
/// is about to run dry, with nobody expected back meanwhile.
fn is_finished_first(
    now_ms: i64,
    victim: &Resident,
    own: &Queue,
    next: &Queue,
    turn_ms: i64,
) -> bool {
    let visit = &victim.visit;
    let limit_ms = visit.load_ms.saturating_add(next.load_ms).saturating_mul(FINISH_PAIRS);
    let work_ms = own.work_ms();
    let head_waited = own.heads.iter().any(|head| head.ready_at_ms <= turn_ms);
    if head_waited && work_ms <= limit_ms {
        return true;
    }
    let load = (visit.arrivals_per_ms * real(visit.service_ms)).min(DRYING_LOAD_MAX);
    let is_drying = real(work_ms) <= real(limit_ms) * (1.0 - load);
    is_drying && now_ms <= turn_ms.saturating_add(limit_ms) && absence_at(visit, work_ms) > ABSENT
}

/// More likely than not.
const ABSENT: f64 = 0.5;
