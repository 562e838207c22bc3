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

    /// The output for an attempt that begins: the one that others wait on, unless it is of an earlier life of the job. Who ends
    /// a job writes the end before it tells it; a job that is tried again by hand in between may be claimed before the
    /// output of its first life is forgotten.
    pub(super) fn open_anew(&self, id: JobId) -> Arc<Output> {
        let held = self.open(id);
        if !held.is_in_flight() && !held.has_ended() {
            return held;
        }
        self.forget_this(id, &held);
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

    /// The jobs for which a client waits on its connection.
    pub(super) fn waited_for(&self) -> Vec<JobId> {
        let held = self.lock();
        held.iter().filter(|(_, output)| output.has_waiters()).map(|(id, _)| *id).collect()
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
    use super::super::output::{End, Refusal};
    use super::*;

    /// A job that was tried again by hand, right when it had ended, ran into the output of its first life: its answer was cut
    /// short, or had the bytes of both.
    #[test]
    fn an_attempt_never_has_the_output_of_an_earlier_life() {
        let outputs = Outputs::new(PathBuf::from("nowhere"), 1);
        let id = JobId(ulid::Ulid::generate());
        let waited_on = outputs.open(id);
        assert!(Arc::ptr_eq(&outputs.open_anew(id), &waited_on));
        waited_on.take_off(1, true);
        let second = outputs.open_anew(id);
        assert!(!Arc::ptr_eq(&second, &waited_on), "its end is not told yet");
        waited_on.end(End::Broken(Refusal::cancelled()));
        outputs.forget_this(id, &waited_on);
        assert!(outputs.find(id).is_some_and(|held| Arc::ptr_eq(&held, &second)));
        second.end(End::Whole);
        assert!(!Arc::ptr_eq(&outputs.open_anew(id), &second));
    }
}
