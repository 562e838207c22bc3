//! What the upstream holds in memory, as far as known: from `/api/ps`, and from what the worker did since.
//!
//! `/api/ps` names models, not runner options: a model that foreman did not load itself is resident with *unknown*
//! options. A snapshot of ps that was asked for before the worker changed something is thrown away. All names of one
//! runner are one model here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::learning::Held;
use crate::domain::model::{Aliases, LoadKey, ModelName};

use super::calls::PsModel;

/// A model in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the scheduler sees of it.
    pub resident: Held,
    /// Whether foreman pinned it: then releasing it is foreman's too, also when its options are no longer certain.
    pub is_pinned: bool,
    /// When foreman loaded or first saw it.
    pub since_ms: i64,
    /// When a job last used it.
    pub used_at_ms: i64,
    /// Unload it after this much idle time; `None` is never.
    pub idle_limit: Option<Duration>,
    /// A client asked for `keep_alive: 0`: unload it as soon as its lane is empty.
    pub is_released_when_dry: bool,
}

/// The shared picture. The worker changes it; the poll corrects it; status shows it.
#[derive(Debug, Clone)]
pub struct Residency {
    inner: Arc<Mutex<Inner>>,
    /// Which names share a runner.
    aliases: watch::Receiver<Arc<Aliases>>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    /// What foreman is loading now.
    loading: Option<ModelName>,
    /// What was resident before the upstream went away. If it is listed again, its pin is still foreman's.
    former: Vec<Entry>,
    /// Raised by every change the worker makes.
    version: u64,
    /// Something happened that ps must be asked about before the next decision.
    is_stale: bool,
}

/// When a ps snapshot was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskedAt(u64);

impl Residency {
    /// Nothing is known yet, but which names share a runner.
    pub fn new(aliases: watch::Receiver<Arc<Aliases>>) -> Residency {
        Residency { inner: Arc::default(), aliases }
    }

    /// To be called before ps is asked.
    pub fn asking(&self) -> AskedAt {
        AskedAt(self.lock().version)
    }

    /// Takes a ps snapshot over, made by [`Inventory::ps`](super::inventory::Inventory::ps). An entry keeps the name it has:
    /// jobs may wait under it, also when the names of its runner have another representative since. Returns the keys that are gone though foreman did not unload them.
    pub fn reconcile(
        &self,
        asked: AskedAt,
        ps: &[PsModel],
        is_embedder: impl Fn(&ModelName) -> bool,
        now_ms: i64,
    ) -> Vec<LoadKey> {
        let is_same = self.sameness();
        let mut inner = self.lock();
        if inner.version != asked.0 {
            return Vec::new();
        }
        inner.is_stale = false;
        let (kept, gone): (Vec<Entry>, Vec<Entry>) = std::mem::take(&mut inner.entries)
            .into_iter()
            .partition(|entry| ps.iter().any(|model| is_same(&model.model, &entry.resident.model)));
        inner.entries = kept;
        for model in ps {
            let embedder = is_embedder(&model.model);
            let is_it = |entry: &Entry| is_same(&entry.resident.model, &model.model);
            match inner.entries.iter_mut().find(|entry| is_it(entry)) {
                Some(entry) => {
                    entry.resident.is_embedder = embedder;
                    if embedder {
                        // Names that share its runner may have been learned since. No job waits under an embedder's name.
                        entry.resident.model = model.model.clone();
                    }
                    forget_options_that_differ(entry, model);
                }
                None => {
                    let former = inner.former.iter().find(|entry| is_it(entry));
                    let entry = found(model, embedder, former, now_ms);
                    inner.entries.push(entry);
                }
            }
        }
        inner.former.clear();
        gone.into_iter().filter_map(|entry| entry.resident.key).collect()
    }

    /// Notes what foreman begins to load; `None` when that has ended, well or not.
    pub fn set_loading(&self, model: Option<&ModelName>) {
        self.lock().loading = model.cloned();
    }

    /// Notes that foreman loaded a key.
    pub fn loaded(&self, key: &LoadKey, idle_limit: Option<Duration>, now_ms: i64) {
        let is_same = self.sameness();
        let mut inner = self.lock();
        inner.version += 1;
        inner.entries.retain(|entry| !is_same(&entry.resident.model, &key.model));
        let resident =
            Held { model: key.model.clone(), key: Some(key.clone()), is_embedder: false };
        inner.entries.push(Entry {
            resident,
            is_pinned: true,
            since_ms: now_ms,
            used_at_ms: now_ms,
            idle_limit,
            is_released_when_dry: false,
        });
    }

    /// Notes that a model is out of memory.
    pub fn unloaded(&self, model: &ModelName) {
        let is_same = self.sameness();
        let mut inner = self.lock();
        inner.version += 1;
        inner.entries.retain(|entry| !is_same(&entry.resident.model, model));
    }

    /// Forgets with which options a model runs: after a failed attempt its runner may be gone, and one that Ollama starts
    /// anew by itself has neither the key's options for certain nor the pin. The next job's load is then repeated.
    pub fn distrust(&self, model: &ModelName) {
        self.with(model, |entry| entry.resident.key = None);
        self.doubt();
    }

    /// Forgets the options of models whose runner holds other weights than the name stands for now (after a pull). The next
    /// job's load then makes Ollama take the new ones.
    pub fn forget_replaced(
        &self,
        ps: &[PsModel],
        installed_digest: impl Fn(&ModelName) -> Option<String>,
    ) {
        for listed in ps {
            let Some(installed) = installed_digest(&listed.listed) else { continue };
            let is_current = |other: &PsModel| {
                other.listed == listed.listed
                    && (other.digest == installed || other.digest.is_empty())
            };
            if !installed.is_empty() && !ps.iter().any(is_current) {
                self.with(&listed.model, |entry| entry.resident.key = None);
            }
        }
    }

    /// Notes when a model was last used; a time to come puts its release off.
    pub fn touch(&self, model: &ModelName, at_ms: i64) {
        self.with(model, |entry| entry.used_at_ms = at_ms);
    }

    /// The clock was set back: nothing was loaded or used in a time to come.
    pub fn clock_set_back(&self, now_ms: i64) {
        let mut inner = self.lock();
        let Inner { entries, former, .. } = &mut *inner;
        for entry in entries.iter_mut().chain(former) {
            entry.since_ms = entry.since_ms.min(now_ms);
            entry.used_at_ms = entry.used_at_ms.min(now_ms);
        }
    }

    /// Sets after how much idle time a key goes; `None` is never.
    pub fn keep(&self, key: &LoadKey, idle_limit: Option<Duration>) {
        self.with(&key.model, |entry| {
            entry.idle_limit = idle_limit;
            entry.is_released_when_dry = false;
        });
    }

    /// Notes that a key shall go once its lane is empty.
    pub fn release_when_dry(&self, key: &LoadKey) {
        self.with(&key.model, |entry| entry.is_released_when_dry = true);
    }

    /// Notes that ps must be asked before the next decision.
    pub fn doubt(&self) {
        self.lock().is_stale = true;
    }

    /// Whether ps must be asked before the next decision.
    pub fn is_stale(&self) -> bool {
        self.lock().is_stale
    }

    /// Forgets everything: the upstream went away, and its runners with it.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.version += 1;
        let entries = std::mem::take(&mut inner.entries);
        if !entries.is_empty() {
            inner.former = entries;
        }
        inner.is_stale = true;
    }

    /// What the scheduler sees.
    pub fn held(&self) -> Vec<Held> {
        self.lock().entries.iter().map(|entry| entry.resident.clone()).collect()
    }

    /// All entries.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    /// Whether a model is in memory as far as known, by whatever name.
    pub fn holds(&self, model: &ModelName) -> bool {
        let is_same = self.sameness();
        self.lock().entries.iter().any(|entry| is_same(&entry.resident.model, model))
    }

    /// Whether a runner in memory serves this key as far as known, by whatever name: an embedder with any options, one that
    /// foreman did not load, too.
    pub fn serves(&self, wanted: &LoadKey) -> bool {
        let is_same = self.sameness();
        // Under the name that is asked for: the same runner may have been loaded by another.
        let under_its_name =
            |key: &LoadKey| LoadKey { model: wanted.model.clone(), options: key.options };
        let serves = |held: &Held| {
            let key = held.key.as_ref();
            held.is_embedder || key.is_none_or(|key| under_its_name(key).serves(wanted))
        };
        let held = |entry: &Entry| is_same(&entry.resident.model, &wanted.model);
        self.lock().entries.iter().any(|entry| held(entry) && serves(&entry.resident))
    }

    /// Whether a model is in memory or on its way there under this very name: then the runner could not be named any more
    /// once this name is gone. Other names may go.
    pub fn goes_by(&self, model: &ModelName) -> bool {
        let inner = self.lock();
        inner.loading.as_ref() == Some(model)
            || inner.entries.iter().any(|entry| entry.resident.model == *model)
    }

    fn with(&self, model: &ModelName, change: impl FnOnce(&mut Entry)) {
        let is_same = self.sameness();
        let mut inner = self.lock();
        let found = inner.entries.iter_mut().find(|entry| is_same(&entry.resident.model, model));
        if let Some(entry) = found {
            change(entry);
        }
    }

    /// Whether two names are names of one runner, as known now.
    fn sameness(&self) -> impl Fn(&ModelName, &ModelName) -> bool + use<> {
        let aliases = Arc::clone(&self.aliases.borrow());
        move |one, other| aliases.representative(one) == aliases.representative(other)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody else reloaded it with another context: its options are not what foreman loaded.
fn forget_options_that_differ(entry: &mut Entry, model: &PsModel) {
    let Some(key) = &entry.resident.key else { return };
    if let (Some(wanted), Some(shown)) = (key.options.num_ctx, model.context_length)
        && shown > wanted
    {
        entry.resident.key = None;
    }
}

fn found(model: &PsModel, is_embedder: bool, former: Option<&Entry>, now_ms: i64) -> Entry {
    Entry {
        resident: Held { model: model.model.clone(), key: None, is_embedder },
        is_pinned: former.is_some_and(|former| former.is_pinned),
        since_ms: former.map_or(now_ms, |former| former.since_ms),
        used_at_ms: now_ms,
        idle_limit: former.and_then(|former| former.idle_limit),
        is_released_when_dry: former.is_some_and(|former| former.is_released_when_dry),
    }
}

#[cfg(test)]
mod tests;
