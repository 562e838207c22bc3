//! Embeds on the board. They pass foreman without a job while their model is resident; what is decided here is when an
//! embedding model is loaded, and when it makes room again where it does not fit beside the others.
//!
//! Where it fits, or may fit, it is loaded at once, beside running jobs. Where it does not, it has visits like any other
//! key: it waits for its turn (`rotate`), and once resident it stays a while as embeds come (ADR 0026).

use super::board::{Board, Queue, Resident};
use super::rotate::{is_gate_served, latest_switch_ms, stays_until_ms, victims};
use super::{Decision, Fit, Lane, Reason, fit};

/// An embedder that stands in the way of a waiting key stays this many of its load times while embeds come. Half a residence:
/// the visits between its own bound the share of loading already, and somebody waits for the next chat.
const STAY_LOADS: i64 = 4;

/// The load of an embedding model for which nothing has to be unloaded: it waits for no border. A pair that was never seen
/// together is tried like that once: at worst Ollama loads the embedder when the running jobs have ended, which is the
/// border it would have waited for.
pub(super) fn load_beside(board: &Board) -> Option<Decision> {
    // Nobody knows what the others need in memory.
    let is_known = board.in_flight.iter().all(|lane| matches!(lane, Lane::Key(_)));
    let waiting = board.queues.iter().filter(|queue| {
        is_known && queue.unload.is_empty() && queue.barred_until_ms <= board.now_ms
    });
    let absent = waiting.filter_map(|queue| match &queue.lane {
        Lane::Embeds(key) if fit(key, &board.resident) == Fit::Absent => Some((queue, key)),
        Lane::Embeds(_) | Lane::Key(_) | Lane::Unload | Lane::Opaque => None,
    });
    let (_, key) = absent.min_by_key(|(queue, key)| {
        (queue.earliest().map(|head| (head.due_at_ms, head.seq)), *key)
    })?;
    Some(Decision::LoadEmbedder { unload: Vec::new(), load: key.clone(), reason: Reason::Embed })
}

/// Whether the embeds of a lane are under way: its model is resident. They need no decision.
pub(super) fn are_served(board: &Board, queue: &Queue) -> bool {
    match &queue.lane {
        Lane::Embeds(key) => fit(key, &board.resident) != Fit::Absent,
        Lane::Key(_) | Lane::Unload | Lane::Opaque => false,
    }
}

/// The embeds under way on a resident embedder.
fn of<'a>(board: &'a Board, resident: &Resident) -> Option<&'a Queue> {
    board.queues.iter().find(|queue| match &queue.lane {
        Lane::Embeds(key) => key.model == resident.model,
        Lane::Key(_) | Lane::Unload | Lane::Opaque => false,
    })
}

/// Until when an embedder stays while embeds come, though a key waits that does not fit beside it: for some of its load
/// times, and no longer than embeds themselves are to wait for a turn.
pub(super) fn stays_for_embeds_until_ms(board: &Board, embedder: &Resident) -> i64 {
    let longest_ms = embedder.visit.since_ms.saturating_add(board.policy.embed_wait_ms);
    stays_until_ms(embedder, STAY_LOADS).min(longest_ms)
}

/// Until when embeds under way keep their model from making room: for its stay, and after that for those of them that its
/// load was made for, unless one of `others` becomes late. `None` if it may go.
pub(super) fn kept_until_ms(board: &Board, embedder: &Resident, others: &[&Queue]) -> Option<i64> {
    let embeds = of(board, embedder)?;
    let (stays_ms, latest_ms) =
        (stays_for_embeds_until_ms(board, embedder), latest_switch_ms(others));
    if board.now_ms < stays_ms {
        return Some(stays_ms);
    }
    let is_owed = !is_gate_served(embedder, Some(embeds)) && board.now_ms < latest_ms;
    is_owed.then_some(latest_ms)
}

/// The same for every embedder that has to go for a lane.
pub(super) fn victims_kept_until_ms(board: &Board, next: &Queue, others: &[&Queue]) -> Option<i64> {
    let embedders = victims(board, next).filter(|victim| victim.is_embedder);
    embedders.filter_map(|victim| kept_until_ms(board, victim, others)).max()
}
