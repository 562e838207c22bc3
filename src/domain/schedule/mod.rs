//! The choice of what the worker does next: a pure function of what waits, what is resident and what was learned.
//!
//! Called by `worker` with real boards and by `replay` with those of recorded or made-up days.
//!
//! Everything for what is resident is finished first (*drain*), by class, and in a class its clients take turns. Another key takes over when a job
//! of its own is about to become late (*rotate*), when everything resident is of a lower class (*preempt*), or when the
//! resident lanes are dry and nobody is worth waiting for (*hold*). A load that fits beside what is resident is no swap.
//! docs/scheduling.md explains the rules, ADR 0012 why they are these.

mod board;
mod embeds;
mod fits;
mod hold;
mod lane;
mod reason;
mod rotate;
mod unattended;

use super::job::Class;
use super::model::{LoadKey, ModelName};

pub use board::{Absence, Beside, Board, Head, Hold, Policy, Queue, Resident, Visit};
pub use fits::{Fits, Verdict};
pub use lane::Lane;
pub use reason::Reason;
pub use rotate::RESIDENCE_LOADS;
pub use unattended::decide_unattended;

/// What the worker shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Run the next job of this lane and class as things are.
    Run {
        /// The lane.
        lane: Lane,
        /// The class of the job.
        class: Class,
        /// Why.
        reason: Reason,
    },
    /// Unload these, then load the key, then run the next job of its lane and class.
    Swap {
        /// The victims, in order; none for a confirmation or a load that fits beside.
        unload: Vec<ModelName>,
        /// What shall be resident.
        load: LoadKey,
        /// The class of the job.
        class: Class,
        /// Why.
        reason: Reason,
    },
    /// Unload these, then load an embedding model, for embeds that wait for it. No job runs for it. Without victims it waits for
    /// no border.
    LoadEmbedder {
        /// The victims, in order.
        unload: Vec<ModelName>,
        /// What shall be resident.
        load: LoadKey,
        /// Why.
        reason: Reason,
    },
    /// Keep what is resident and dispatch nothing until then, unless a job comes.
    Hold {
        /// Until when, in milliseconds since 1970.
        until_ms: i64,
        /// What is held.
        model: ModelName,
    },
    /// Nothing more can be dispatched until a job in flight has ended.
    Busy,
    /// Nothing can be dispatched.
    Idle {
        /// When a lane that may not be loaded now may be; `None` if none waits for that.
        until_ms: Option<i64>,
    },
}

/// Answers what to do next. Same board, same decision.
pub fn decide(board: &Board) -> Decision {
    if let Some(load) = embeds::load_beside(board) {
        return load;
    }
    if board.in_flight.len() >= board.policy.parallel.max(1) {
        return Decision::Busy;
    }
    if let Some(unload) = board.queues.iter().find(|queue| queue.lane == Lane::Unload) {
        return at_border(board, run(board, unload, Reason::Unload));
    }
    let is_served = |queue: &Queue| is_served(board, queue);
    let mine: Vec<&Queue> = board.queues.iter().filter(|queue| is_served(queue)).collect();
    let others = rotate::others(board, &is_served);
    if !mine.is_empty() {
        if let Some(preempting) = rotate::preempting(board, &mine, &others) {
            return at_border(board, take_over(board, preempting, Reason::Preempt));
        }
        if rotate::is_due(board, &mine, &others) {
            let due = others[0];
            let due_at_ms = due.earliest().map_or(board.now_ms, |head| head.due_at_ms);
            return at_border(board, take_over(board, due, Reason::Rotate { due_at_ms }));
        }
        return drain(board, &mine);
    }
    let Some(next) = next(board, &others) else { return nothing(board) };
    if let Some(until_ms) = embeds::victims_kept_until_ms(board, next, &others) {
        return at_border(board, Decision::Idle { until_ms: Some(until_ms) });
    }
    match hold(board, &others, next) {
        Some(hold) => at_border(board, hold),
        None => {
            let is_first = board.resident.iter().all(|resident| resident.is_embedder);
            let reason = match others.first().is_some_and(|due_first| due_first.lane == next.lane) {
                false => Reason::Longest,
                true if is_first => Reason::First,
                true => Reason::Dry,
            };
            at_border(board, take_over(board, next, reason))
        }
    }
}

/// The order in which the lanes would be served if nothing else arrived: for display, not for deciding.
pub fn service_order(board: &Board) -> Vec<Lane> {
    let rank = |queue: &Queue| match (&queue.lane, is_served(board, queue)) {
        (Lane::Unload, _) => 0,
        (_, true) => 1,
        (_, false) if queue.barred_until_ms <= board.now_ms => 2,
        // What may not be loaded now comes after all that may.
        (_, false) => 3,
    };
    let mut queues: Vec<&Queue> = board.queues.iter().collect();
    queues.sort_by_key(|queue| {
        let due = queue.earliest().map(|head| (head.due_at_ms, head.seq));
        (rank(queue), due, queue.lane.clone())
    });
    queues.into_iter().map(|queue| queue.lane.clone()).collect()
}

/// How many lanes of [`service_order`] come first because nothing has to be pushed out for them.
pub fn served_first(board: &Board) -> usize {
    let is_first = |queue: &&Queue| queue.lane == Lane::Unload || is_served(board, queue);
    board.queues.iter().filter(is_first).count()
}

/// What needs the machine to itself waits until nothing is in flight.
fn at_border(board: &Board, decision: Decision) -> Decision {
    if board.in_flight.is_empty() { decision } else { Decision::Busy }
}

/// Whether a lane's jobs can be served without pushing anything out: its key is resident, perhaps with options that must
/// be confirmed, or it fits beside what is.
fn is_served(board: &Board, queue: &Queue) -> bool {
    match &queue.lane {
        Lane::Key(key) => match fit(key, &board.resident) {
            Fit::Certain => true,
            // The load that confirms it may be the one that fails.
            Fit::Probable => queue.barred_until_ms <= board.now_ms,
            Fit::Absent => {
                queue.victims.is_empty()
                    && queue.barred_until_ms <= board.now_ms
                    && board.resident.iter().any(|resident| !resident.is_embedder)
            }
        },
        Lane::Embeds(_) | Lane::Unload | Lane::Opaque => false,
    }
}

/// The best class of the lanes that are served as things are: one with a job past its due time first, then by class, then by
/// arrival.
fn drain(board: &Board, mine: &[&Queue]) -> Decision {
    let heads = mine.iter().filter_map(|queue| Some((*queue, queue.first(board.now_ms)?)));
    let best = heads.min_by_key(|(_, head)| match head.due_at_ms <= board.now_ms {
        true => (0, head.due_at_ms, head.seq),
        false => (1 + rank(head.class), head.seq, 0),
    });
    let Some((queue, head)) = best else { return Decision::Idle { until_ms: None } };
    let Some(key) = queue.lane.key() else { return Decision::Idle { until_ms: None } };
    // Jobs side by side are of one key: what fits beside another model may not fit beside its second job.
    if board.in_flight.iter().any(|lane| *lane != queue.lane) {
        return Decision::Busy;
    }
    let (lane, class) = (queue.lane.clone(), head.class);
    match fit(key, &board.resident) {
        Fit::Certain if head.due_at_ms <= board.now_ms => {
            Decision::Run { lane, class, reason: Reason::Overdue { due_at_ms: head.due_at_ms } }
        }
        Fit::Certain => Decision::Run { lane, class, reason: Reason::Drain },
        Fit::Probable => at_border(board, load(key, class, Vec::new(), Reason::Confirm)),
        Fit::Absent => at_border(board, load(key, class, Vec::new(), Reason::Beside)),
    }
}

/// The key to load when the resident lanes are dry: the most urgent class, there the longest queue, unless that makes the
/// lane that is due first late.
fn next<'a>(board: &Board, others: &[&'a Queue]) -> Option<&'a Queue> {
    let first = *others.first()?;
    let due_at_ms = first.earliest()?.due_at_ms;
    let leaves_time = |queue: &Queue| {
        let spent_ms = queue.load_ms.saturating_add(queue.work_ms()).saturating_add(first.load_ms);
        board.now_ms.saturating_add(spent_ms) <= due_at_ms
    };
    let mut best = first;
    for queue in others.iter().skip(1).copied().filter(|queue| leaves_time(queue)) {
        let is_better = match queue.class().cmp(&best.class()) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => queue.jobs() > best.jobs(),
            std::cmp::Ordering::Greater => false,
        };
        if is_better {
            best = queue;
        }
    }
    Some(best)
}

/// Whether what is resident is kept although it is dry and others wait. Bounded by the most urgent waiter and by the
/// resident key's own load time, counted from when it ran dry.
fn hold(board: &Board, others: &[&Queue], next: &Queue) -> Option<Decision> {
    let latest_ms = rotate::latest_switch_ms(others);
    let waiters = others.iter().map(|queue| queue.waiters()).sum();
    let holds = rotate::victims(board, next).filter_map(|victim| {
        let visit = &victim.visit;
        let until_ms = match board.policy.hold {
            Hold::Off => return None,
            Hold::Fixed { ms } => visit.dry_since_ms.saturating_add(ms).min(latest_ms),
            Hold::Auto => {
                let mut end_ms = visit.dry_since_ms.saturating_add(visit.load_ms).min(latest_ms);
                if victim.is_embedder {
                    end_ms = end_ms.min(embeds::stays_for_embeds_until_ms(board, victim));
                }
                let pair_ms = visit.load_ms.saturating_add(next.load_ms);
                let longest_ms = end_ms.saturating_sub(board.now_ms);
                board.now_ms + hold::best_wait(visit, pair_ms, waiters, longest_ms)?
            }
        };
        (until_ms > board.now_ms).then(|| (until_ms, victim.model.clone()))
    });
    let (until_ms, model) = holds.max()?;
    Some(Decision::Hold { until_ms, model })
}

/// Gives the machine to a lane that is not served as things are.
fn take_over(board: &Board, queue: &Queue, reason: Reason) -> Decision {
    let Some(head) = queue.first(board.now_ms) else { return Decision::Idle { until_ms: None } };
    match &queue.lane {
        Lane::Key(key) => load(key, head.class, queue.unload.clone(), reason),
        Lane::Embeds(key) => {
            Decision::LoadEmbedder { unload: queue.unload.clone(), load: key.clone(), reason }
        }
        Lane::Unload | Lane::Opaque => {
            Decision::Run { lane: queue.lane.clone(), class: head.class, reason }
        }
    }
}

fn run(board: &Board, queue: &Queue, reason: Reason) -> Decision {
    let class = queue.first(board.now_ms).map_or(Class::Batch, |head| head.class);
    Decision::Run { lane: queue.lane.clone(), class, reason }
}

fn load(key: &LoadKey, class: Class, unload: Vec<ModelName>, reason: Reason) -> Decision {
    Decision::Swap { unload, load: key.clone(), class, reason }
}

/// Nothing may be dispatched, perhaps because what waits may not be loaded yet.
fn nothing(board: &Board) -> Decision {
    if !board.in_flight.is_empty() {
        return Decision::Busy;
    }
    let barred = board.queues.iter().map(|queue| queue.barred_until_ms);
    Decision::Idle { until_ms: barred.filter(|at_ms| *at_ms > board.now_ms).min() }
}

fn rank(class: Class) -> i64 {
    match class {
        Class::Interactive => 0,
        Class::Normal => 1,
        Class::Batch => 2,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Certain,
    Probable,
    Absent,
}

fn fit(wanted: &LoadKey, resident: &[Resident]) -> Fit {
    let mut found = Fit::Absent;
    for entry in resident.iter().filter(|entry| entry.model == wanted.model) {
        match &entry.key {
            Some(key) if key.serves(wanted) => return Fit::Certain,
            Some(_) => (),
            None => found = Fit::Probable,
        }
    }
    found
}

#[cfg(test)]
mod embed_tests;
#[cfg(test)]
mod tests;
