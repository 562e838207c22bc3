//! The outputs of open jobs, by id: where a waiting handler and the attempt meet.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::job::JobId;

use super::output::Output;

/// The registry.
#[derive(Debug)]
pub struct Outputs {
    by_job: Mutex<HashMap<JobId, Arc<Output>>>,
    folder: PathBuf,
    answer_bytes_max: u64,
}

impl Outputs {
    /// An empty registry. Large answers go to files in `folder`.
    pub(super) fn new(folder: PathBuf, answer_bytes_max: u64) -> Outputs {
        Outputs { by_job: Mutex::default(), folder, answer_bytes_max }
    }

    /// The output of a job, made if there is none yet: a job from before a restart has no handler.
    pub fn open(&self, id: JobId) -> Arc<Output> {
        let made =
            || Arc::new(Output::new(self.folder.join(id.to_string()), self.answer_bytes_max));
        Arc::clone(self.lock().entry(id).or_insert_with(made))
    }

    /// The output for an attempt that begins: the one that somebody waits for, or a new one. One that has ended belongs to an
    /// earlier round of a job that was reopened.
    pub(super) fn begin(&self, id: JobId) -> Arc<Output> {
        let output = self.open(id);
        if !output.has_ended() {
            return output;
        }
        self.forget_this(id, &output);
        self.open(id)
    }

    /// The output of a job, if it is open.
    pub fn find(&self, id: JobId) -> Option<Arc<Output>> {
        self.lock().get(&id).cloned()
    }

    /// The outputs of jobs in flight.
    pub fn in_flight(&self) -> Vec<(JobId, Arc<Output>)> {
        let held = self.lock();
        let flying = held.iter().filter(|(_, output)| output.is_in_flight());
        flying.map(|(id, output)| (*id, Arc::clone(output))).collect()
    }

    /// Drops the registry's hold on an output; its followers keep theirs.
    pub fn forget(&self, id: JobId) {
        self.lock().remove(&id);
    }

    /// Drops the registry's hold on just this output of a job.
    pub fn forget_this(&self, id: JobId, output: &Arc<Output>) {
        let mut by_job = self.lock();
        if by_job.get(&id).is_some_and(|held| Arc::ptr_eq(held, output)) {
            by_job.remove(&id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Output>>> {
        self.by_job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::output::End;
    use super::*;
    use ulid::Ulid;

    /// A job was reopened in the moment between the record of its end and the forgetting of its output: the new attempt would
    /// have written behind the old answer.
    #[test]
    fn an_attempt_never_writes_into_an_output_that_has_ended() {
        let outputs = Outputs::new(PathBuf::new(), 1_000);
        let id = JobId(Ulid::from_parts(1, 1));
        let waited_for = outputs.open(id);
        assert!(Arc::ptr_eq(&outputs.begin(id), &waited_for));
        waited_for.end(End::Whole);
        let fresh = outputs.begin(id);
        assert!(!Arc::ptr_eq(&fresh, &waited_for) && !fresh.has_ended());
        outputs.forget_this(id, &waited_for);
        assert!(Arc::ptr_eq(&outputs.open(id), &fresh));
    }
}
