//! The choice of what the worker does next: a pure function of what waits and what is resident. Called by `worker`.
//!
//! This version answers with the original rule, `(key != resident), arrival`: finish everything for what is resident,
//! then swap to the key of the oldest waiter. A client's own unload request goes before both, because it never loads.

use std::fmt;

use super::model::{LoadKey, ModelName};

/// What the scheduler sees.
#[derive(Debug, Clone, Default)]
pub struct Board {
    /// One entry for each lane that has a ready job, in any order.
    pub lanes: Vec<LaneHead>,
    /// What the upstream holds in memory, as far as known.
    pub resident: Vec<Resident>,
}

/// A lane with its oldest ready job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneHead {
    /// The lane.
    pub lane: Lane,
    /// Arrival number of its oldest ready job. Arrival is the order of insertion, not a clock.
    pub oldest_seq: i64,
}

/// Jobs that are interchangeable for the GPU.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Jobs that need this key resident.
    Key(LoadKey),
    /// Clients' own unload requests, of any model.
    Unload,
    /// Requests that could not be placed.
    Opaque,
}

impl Lane {
    /// The lane of that text; `None` for a text that no version of this program wrote, or a later one.
    pub fn from_text(text: &str) -> Option<Lane> {
        match text {
            UNLOAD => Some(Lane::Unload),
            OPAQUE => Some(Lane::Opaque),
            key => key.parse().ok().map(Lane::Key),
        }
    }
}

/// No model name begins with `!`, so these cannot be load keys.
const UNLOAD: &str = "!unload";
const OPAQUE: &str = "!opaque";

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lane::Key(key) => key.fmt(formatter),
            Lane::Unload => formatter.write_str(UNLOAD),
            Lane::Opaque => formatter.write_str(OPAQUE),
        }
    }
}

/// A model the upstream holds in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// Its canonical name.
    pub model: ModelName,
    /// The key it was loaded with; `None` where foreman did not load it, so that its runner options are unknown.
    pub key: Option<LoadKey>,
    /// Whether it serves embeddings only. It is never the worker's model and never a victim.
    pub is_embedder: bool,
}

/// What the worker shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Run the oldest ready job of this lane as things are.
    Run {
        /// The lane.
        lane: Lane,
        /// Why.
        reason: Reason,
    },
    /// Unload these, then load the key, then run the oldest ready job of its lane.
    Swap {
        /// The victims, in order; none for a confirmation.
        unload: Vec<ModelName>,
        /// What shall be resident.
        load: LoadKey,
        /// Why.
        reason: Reason,
    },
    /// Nothing is ready.
    Idle,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The lane's key is resident.
    Drain,
    /// Nothing ready fits what is resident; this is the oldest.
    Oldest,
    /// The model is resident, but with options foreman does not know: its load is repeated, cheap if equal.
    Confirm,
    /// A client asked to unload.
    Unload,
}

impl Reason {
    /// The stable name, in JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Drain => "drain",
            Reason::Oldest => "oldest",
            Reason::Confirm => "confirm",
            Reason::Unload => "unload",
        }
    }
}

/// Answers what to do next. Same board, same decision.
pub fn decide(board: &Board) -> Decision {
    let chosen = board.lanes.iter().min_by_key(|head| (rank(&head.lane, board), head.oldest_seq));
    let Some(head) = chosen else { return Decision::Idle };
    let key = match &head.lane {
        Lane::Unload => return Decision::Run { lane: Lane::Unload, reason: Reason::Unload },
        Lane::Opaque => return Decision::Run { lane: Lane::Opaque, reason: Reason::Oldest },
        Lane::Key(key) => key,
    };
    match fit(key, &board.resident) {
        Fit::Certain => Decision::Run { lane: head.lane.clone(), reason: Reason::Drain },
        Fit::Probable => {
            Decision::Swap { unload: Vec::new(), load: key.clone(), reason: Reason::Confirm }
        }
        Fit::Absent => Decision::Swap {
            unload: victims(&board.resident),
            load: key.clone(),
            reason: Reason::Oldest,
        },
    }
}

/// The order in which the lanes would be served if nothing else arrived: for display, not for deciding.
pub fn service_order(board: &Board) -> Vec<Lane> {
    let mut heads: Vec<&LaneHead> = board.lanes.iter().collect();
    heads.sort_by_key(|head| (rank(&head.lane, board), head.oldest_seq));
    heads.into_iter().map(|head| head.lane.clone()).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Unload,
    Resident,
    Other,
}

fn rank(lane: &Lane, board: &Board) -> Rank {
    match lane {
        Lane::Unload => Rank::Unload,
        Lane::Opaque => Rank::Other,
        Lane::Key(key) => match fit(key, &board.resident) {
            Fit::Certain | Fit::Probable => Rank::Resident,
            Fit::Absent => Rank::Other,
        },
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

/// Everything but the embedders: foreman never leaves the choice of a victim to Ollama, and this version does not
/// know yet which keys fit beside each other.
fn victims(resident: &[Resident]) -> Vec<ModelName> {
    let mut names: Vec<ModelName> = resident
        .iter()
        .filter(|entry| !entry.is_embedder)
        .map(|entry| entry.model.clone())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests;
