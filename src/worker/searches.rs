//! Jobs in flight for which Ollama may search the web by itself, and the requests it makes for them.
//!
//! Such a request comes to foreman if Ollama's `OLLAMA_HOST` leads here. In the queue it would wait for the job that waits for
//! it, until Ollama gives up after five minutes. It may pass beside the queue while its job is in flight: the model is resident
//! then, and nothing is loaded or unloaded. Never more of them pass at once than there are such jobs, since Ollama makes them
//! one after the other. Written by the attempt and by `http`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::model::LoadKey;

/// The jobs and their requests by load key. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Searches(Arc<Mutex<BTreeMap<LoadKey, Both>>>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Both {
    jobs: usize,
    passing: usize,
}

/// One of either, until it is dropped.
#[derive(Debug)]
pub struct Searching {
    searches: Searches,
    key: LoadKey,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Job,
    Passing,
}

impl Searches {
    /// A job of this key is in flight.
    pub(super) fn begin(&self, key: &LoadKey) -> Searching {
        self.all().entry(key.clone()).or_default().jobs += 1;
        Searching { searches: self.clone(), key: key.clone(), part: Part::Job }
    }

    /// Lets a request of Ollama's pass, if a job of its key is in flight for which none passes yet.
    pub fn pass(&self, key: &LoadKey) -> Option<Searching> {
        let mut all = self.all();
        let both = all.get_mut(key).filter(|both| both.passing < both.jobs)?;
        both.passing += 1;
        Some(Searching { searches: self.clone(), key: key.clone(), part: Part::Passing })
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<LoadKey, Both>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Searching {
    fn drop(&mut self) {
        let mut all = self.searches.all();
        let Some(both) = all.get_mut(&self.key) else { return };
        match self.part {
            Part::Job => both.jobs = both.jobs.saturating_sub(1),
            Part::Passing => both.passing = both.passing.saturating_sub(1),
        }
        if *both == Both::default() {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::model::{ModelName, RunnerOptions};

    fn key(model: &str) -> LoadKey {
        LoadKey::new(ModelName::parse(model).unwrap().name, RunnerOptions::default())
    }

    #[test]
    fn one_passes_for_each_job_of_its_key_and_none_without() {
        let searches = Searches::default();
        assert!(searches.pass(&key("a")).is_none());
        let first = searches.begin(&key("a"));
        let second = searches.begin(&key("a"));
        assert!(searches.pass(&key("b")).is_none());
        let passing = searches.pass(&key("a")).unwrap();
        let other = searches.pass(&key("a")).unwrap();
        assert!(searches.pass(&key("a")).is_none());
        drop(passing);
        drop(second);
        assert!(searches.pass(&key("a")).is_none());
        drop(other);
        assert!(searches.pass(&key("a")).is_some());
        drop(first);
        assert!(searches.pass(&key("a")).is_none());
        assert!(searches.all().is_empty());
    }
}
