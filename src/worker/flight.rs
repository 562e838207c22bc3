//! A job in flight: from its start, with its key resident, to its conclusion.

use crate::domain::job::Kind;
use crate::domain::model::ModelName;
use crate::domain::schedule::Lane;
use crate::store::Claim;

use super::Hands;
use super::conclude::Conclusion;

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
        match (lane.key(), &conclusion) {
            (Some(key), Conclusion::Whole | Conclusion::Answered { .. }) => {
                self.handle.mind().served(claim.id, key, now_ms - began_ms, now_ms);
            }
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
