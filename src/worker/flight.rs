//! A job in flight: from its start, with its key resident, to its conclusion.

use std::sync::Arc;

use crate::domain::job::Kind;
use crate::domain::model::ModelName;
use crate::domain::retry::{Fault, Told};
use crate::domain::schedule::Lane;
use crate::store::Claim;

use super::Hands;
use super::conclude::Conclusion;
use super::output::Output;

/// The jobs in flight. A job that was put back may be claimed again before the end of its earlier flight was noticed: then it
/// is here twice.
#[derive(Debug, Default)]
pub(super) struct InFlight(Vec<Flight>);

#[derive(Debug)]
struct Flight {
    /// Arrival number.
    seq: i64,
    lane: Lane,
    /// The output of a job that nobody waited for when it was claimed.
    unattended: Option<Arc<Output>>,
}

impl Flight {
    /// Whether nobody waits for it now.
    fn is_unattended(&self) -> bool {
        self.unattended.as_ref().is_some_and(|output| !output.is_followed())
    }
}

impl InFlight {
    /// A job was started; `unattended` is its output, where nobody waits for it.
    pub(super) fn take_off(&mut self, seq: i64, lane: Lane, unattended: Option<Arc<Output>>) {
        self.0.push(Flight { seq, lane, unattended });
    }

    /// One flight of a job has ended.
    pub(super) fn land(&mut self, seq: i64) {
        if let Some(index) = self.0.iter().position(|flight| flight.seq == seq) {
            self.0.remove(index);
        }
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The lanes of all, one entry a flight.
    pub(super) fn lanes(&self) -> Vec<Lane> {
        self.0.iter().map(|flight| flight.lane.clone()).collect()
    }

    /// The same of those that somebody waits for, or that outlive their callers.
    pub(super) fn attended(&self) -> Vec<Lane> {
        let attended = self.0.iter().filter(|flight| !flight.is_unattended());
        attended.map(|flight| flight.lane.clone()).collect()
    }

    /// Whether there are any that nobody waits for.
    pub(super) fn has_unattended(&self) -> bool {
        self.0.iter().any(Flight::is_unattended)
    }

    /// Has those put back that nobody waits for.
    pub(super) fn interrupt_unattended(&self) {
        for output in self.0.iter().filter_map(|flight| flight.unattended.as_ref()) {
            output.interrupt();
        }
    }
}

impl Hands {
    /// Runs a claimed job to its conclusion.
    pub(super) async fn fly(&self, claim: Claim, lane: &Lane, load_ms: i64) {
        let output = self.handle.outputs().open(claim.id);
        let began_ms = self.now_ms();
        let conclusion = match output.is_abandoned() {
            true => Conclusion::Abandoned,
            false => self.attempt(&claim, &output, lane.key(), load_ms).await,
        };
        let now_ms = self.now_ms();
        let is_used = !claim.is_unattended || output.is_followed();
        match (lane.key().filter(|_| is_used), &conclusion) {
            (Some(key), Conclusion::Whole) => {
                self.handle.mind().served(claim.id, key, Some(now_ms - began_ms), now_ms);
            }
            // An error is an answer, but no measure of the work; one that is tried again is not even that.
            (Some(key), Conclusion::Answered { fault: Fault::Told(Told::Final), .. }) => {
                self.handle.mind().served(claim.id, key, None, now_ms);
            }
            // Nor does one that nobody waits for say that somebody uses the model.
            _ => self.handle.mind().gave_up(claim.id),
        }
        self.after_attempt(&claim, &conclusion).await;
        self.conclude(claim, output, conclusion).await;
    }

    /// What a job that ran without a key of its own did to the memory.
    async fn after_attempt(&self, claim: &Claim, conclusion: &Conclusion) {
        match claim.kind {
            Kind::Run | Kind::Load => (),
            Kind::Unload => {
                let model = ModelName::parse(&claim.model).ok().map(|parsed| parsed.name);
                if let (Some(model), Conclusion::Whole) = (model, conclusion) {
                    // Ollama answers at once and unloads later: the next job must not meet a runner that is going.
                    self.wait_until_gone(&model).await;
                    self.tools.residency.unloaded(&model);
                } else {
                    self.tools.residency.doubt();
                }
            }
            Kind::Opaque => self.tools.residency.doubt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job was put back, and claimed again before its first flight was noticed to have ended.
    #[test]
    fn the_end_of_one_flight_does_not_end_the_next_of_the_same_job() {
        let mut flying = InFlight::default();
        flying.take_off(7, Lane::Opaque, None);
        flying.take_off(7, Lane::Opaque, None);
        flying.land(7);
        assert_eq!(flying.lanes(), [Lane::Opaque]);
        flying.land(7);
        flying.land(7);
        assert!(flying.is_empty());
    }
}
