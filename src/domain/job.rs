//! What a job is: its states, the one table of their transitions, its kinds and classes. Pure.
//!
//! ```text
//!            +--------------------------- retry, give back ---------------------------+
//!            v                                                                         |
//!  admit -> queued -- claim (load needed) --> loading -- loaded --> working -- finish -> done | failed | cancelled
//!            |  \---- claim (resident) -------------------------------^
//!            +------- cancel -> cancelled;  give up -> failed;  failed | cancelled -- reopen, by hand --> queued
//! ```

use std::fmt;
use std::str::FromStr;

use ulid::Ulid;

/// The public name of a job: a ULID, so that ids sort by time of admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub Ulid);

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for JobId {
    type Err = ulid::DecodeError;

    fn from_str(text: &str) -> Result<JobId, ulid::DecodeError> {
        Ulid::from_string(text).map(JobId)
    }
}

/// Where a job stands. `done`, `failed` and `cancelled` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Waits for its turn, or for `not_before` after a retry. Entered by admission, a retry, an interruption or a
    /// deferral; left by a claim, a cancellation, or by giving up on a job that was interrupted too often.
    /// Survives a crash as it is.
    Queued,
    /// Claimed; its load key is being made resident. A crash puts it back to `queued`.
    Loading,
    /// Claimed; the upstream has, or is about to get, the request. A crash puts it back to `queued`.
    Working,
    /// The whole answer was received and is stored.
    Done,
    /// Ended with an error, which is stored. Also a request that the upstream answered with a final 4xx.
    Failed,
    /// The client left before there was an answer.
    Cancelled,
}

/// What happens to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The worker takes it and must load first.
    ClaimToLoad,
    /// The worker takes it; its key is resident.
    ClaimToWork,
    /// Its key is resident now.
    Loaded,
    /// Back to the queue: a retry, an interruption or a deferral.
    GiveBack,
    /// The answer is whole.
    Complete,
    /// It ended with an error.
    Fail,
    /// Its client left, or somebody cancelled it.
    Cancel,
    /// Somebody wants it tried again from the start, though it had ended without an answer.
    Reopen,
}

impl State {
    /// All states.
    pub const ALL: [State; 6] = [
        State::Queued,
        State::Loading,
        State::Working,
        State::Done,
        State::Failed,
        State::Cancelled,
    ];

    /// The stable name, in SQL, JSON, logs.
    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Loading => "loading",
            State::Working => "working",
            State::Done => "done",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether nothing happens to a job in this state any more, unless somebody reopens it by hand.
    pub fn is_final(self) -> bool {
        matches!(self, State::Done | State::Failed | State::Cancelled)
    }

    /// Where `event` leads from here; `None` where it must not happen. This is the whole table: the guards in SQL
    /// are made from it ([`Event::sources`]).
    pub fn after(self, event: Event) -> Option<State> {
        match (self, event) {
            (State::Queued, Event::ClaimToLoad) => Some(State::Loading),
            (State::Queued, Event::ClaimToWork) | (State::Loading, Event::Loaded) => {
                Some(State::Working)
            }
            (State::Loading | State::Working, Event::GiveBack) => Some(State::Queued),
            (State::Working, Event::Complete) => Some(State::Done),
            (State::Queued | State::Loading | State::Working, Event::Fail) => Some(State::Failed),
            (State::Queued | State::Loading | State::Working, Event::Cancel) => {
                Some(State::Cancelled)
            }
            (State::Failed | State::Cancelled, Event::Reopen) => Some(State::Queued),
            (State::Queued, Event::Loaded | Event::GiveBack | Event::Complete | Event::Reopen)
            | (
                State::Loading,
                Event::ClaimToLoad | Event::ClaimToWork | Event::Complete | Event::Reopen,
            )
            | (
                State::Working,
                Event::ClaimToLoad | Event::ClaimToWork | Event::Loaded | Event::Reopen,
            )
            | (State::Done | State::Failed | State::Cancelled, _) => None,
        }
    }
}

impl Event {
    /// All events.
    pub const ALL: [Event; 8] = [
        Event::ClaimToLoad,
        Event::ClaimToWork,
        Event::Loaded,
        Event::GiveBack,
        Event::Complete,
        Event::Fail,
        Event::Cancel,
        Event::Reopen,
    ];

    /// The states from which this event is legal.
    pub fn sources(self) -> impl Iterator<Item = State> {
        State::ALL.into_iter().filter(move |state| state.after(self).is_some())
    }
}

/// What the worker has to do for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Run a model: the usual job.
    Run,
    /// A client's own load request (no messages, no prompt): the key is made resident, then Ollama answers it.
    Load,
    /// A client's own unload request: runs at the next job border, never loads.
    Unload,
    /// A request foreman could not place: runs alone, original bytes, never retried.
    Opaque,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Run, Kind::Load, Kind::Unload, Kind::Opaque];

    /// The stable name, in SQL, JSON, logs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Run => "run",
            Kind::Load => "load",
            Kind::Unload => "unload",
            Kind::Opaque => "opaque",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How urgent a job is. Within a lane the most urgent class goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody waits for it.
    Interactive,
    /// The usual class of fire-and-forget jobs.
    Normal,
    /// Whenever there is time; also what a sync job becomes when a restart has cut its client off.
    Batch,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Class; 3] = [Class::Interactive, Class::Normal, Class::Batch];

    /// The stable name, in SQL, JSON, logs.
    pub fn name(self) -> &'static str {
        match self {
            Class::Interactive => "interactive",
            Class::Normal => "normal",
            Class::Batch => "batch",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// How often a job was tried and disturbed. Three counters, because a sleeping laptop is not the job's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Tries the upstream answered badly; counted at the claim, given back where the job was not to blame.
    pub attempts: u32,
    /// Times foreman or the upstream died under it.
    pub interruptions: u32,
    /// Times it was put off because the upstream was busy or away.
    pub deferrals: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_final_state_stays_unless_it_is_reopened_by_hand() {
        for state in State::ALL.into_iter().filter(|state| state.is_final()) {
            for event in Event::ALL.into_iter().filter(|event| *event != Event::Reopen) {
                assert_eq!(state.after(event), None, "{state:?} {event:?}");
            }
        }
        assert_eq!(State::Done.after(Event::Reopen), None);
        assert_eq!(Event::Reopen.sources().collect::<Vec<_>>(), [State::Failed, State::Cancelled]);
    }

    #[test]
    fn every_open_state_can_end() {
        for state in State::ALL.into_iter().filter(|state| !state.is_final()) {
            assert_eq!(state.after(Event::Fail), Some(State::Failed));
            assert_eq!(state.after(Event::Cancel), Some(State::Cancelled));
        }
    }

    #[test]
    fn only_a_working_job_is_done() {
        assert_eq!(Event::Complete.sources().collect::<Vec<_>>(), [State::Working]);
        assert_eq!(Event::GiveBack.sources().collect::<Vec<_>>(), [State::Loading, State::Working]);
    }

    #[test]
    fn names_round_trip() {
        for state in State::ALL {
            assert_eq!(State::from_name(state.name()), Some(state));
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        for class in Class::ALL {
            assert_eq!(Class::from_name(class.name()), Some(class));
        }
        assert_eq!(Class::from_name("urgent"), None);
    }

    proptest! {
        /// Any life: a job ends once for each time it was opened, is worked on only after a claim, and is done only from
        /// `working`.
        #[test]
        fn random_lives_obey_the_table(events in proptest::collection::vec(0_usize..8, 0..60)) {
            let mut state = State::Queued;
            let (mut ends, mut openings) = (0, 1);
            for event in events.into_iter().map(|index| Event::ALL[index]) {
                let Some(next) = state.after(event) else { continue };
                prop_assert_eq!(state.is_final(), event == Event::Reopen);
                if event == Event::Reopen { openings += 1; }
                prop_assert!(event.sources().any(|source| source == state));
                if next == State::Done { prop_assert_eq!(state, State::Working); }
                if next == State::Working { prop_assert!(matches!(state, State::Queued | State::Loading)); }
                if next.is_final() { ends += 1; }
                state = next;
            }
            prop_assert!(ends <= openings);
            prop_assert_eq!(state.is_final(), ends == openings);
        }
    }
}
