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
