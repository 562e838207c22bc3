//! What is installed at the upstream, as of the last successful poll, and what its model files say. Kept while the
//! upstream is away.
//!
//! A model that is not listed is looked up again before it counts as unknown; many that ask at once share one poll,
//! and it is always a poll that began after they asked. A model file is asked for once per manifest digest, when a key
//! of its family is first wanted. No request waits for an answer longer than a moment, and none at all while answers are
//! slow: what was known last counts, and the question goes on beside (ADR 31).

mod poll;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::domain::model::{Aliases, LoadKey, ModelName, Modelfile, RunnerOptions};

use super::calls::{LoadRequest, METADATA_WAIT, PS_LIMIT, PsModel, TagsModel};
use super::client::{Ollama, SendError};
use super::show::Shown;
use poll::paced;

pub use poll::Poller;

/// Lookups that may wait for a poll; beyond it a lookup is answered as "cannot say".
const WAITING_MAX: usize = 1_024;

/// The shared list.
#[derive(Clone)]
pub struct Inventory {
    known: Arc<Mutex<Known>>,
    polls: mpsc::Sender<oneshot::Sender<bool>>,
    questions: mpsc::Sender<Question>,
}

#[derive(Default)]
struct Known {
    by_name: HashMap<ModelName, TagsModel>,
    /// From `/api/show`, by digest, since that changes with the model; `None` where it was refused, until the next poll.
    /// Bounded by what is installed, was so at the poll before, or is resident.
    shown: HashMap<String, Option<Shown>>,
    /// The digests in the last ps: a runner outlives its model's deletion.
    resident: HashSet<String>,
    /// A show has failed: no other is asked for before the next successful poll.
    is_withheld: bool,
    is_polled: bool,
    tags: Pace,
    shows: Pace,
    ps: Pace,
    aliases: watch::Sender<Arc<Aliases>>,
    /// The aliases when a family was last known as a whole: a name that loads in them keeps to it. One that loads only
    /// because its file came first does not.
    settled: Arc<Aliases>,
}

/// How questions of one kind are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Pace {
    /// At once, as far as known.
    #[default]
    Prompt,
    /// The last one took long: it is worth no wait.
    Slow {
        /// Whether that one is still out.
        is_out: bool,
    },
}

/// Models whose files are wanted.
struct Question {
    models: Vec<TagsModel>,
    /// Told when they are known, or cannot be.
    answered: oneshot::Sender<()>,
}

/// What is known about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It is installed.
    Installed(TagsModel),
    /// A successful poll, made after the question, does not list it.
    Unknown,
    /// The upstream could not be asked.
    CannotSay,
}

impl Inventory {
    /// An empty inventory and the poller that fills it.
    pub fn new() -> (Inventory, Poller) {
        let (polls, asked) = mpsc::channel(WAITING_MAX);
        let (questions, receiver) = mpsc::channel(WAITING_MAX);
        let known = Arc::new(Mutex::new(Known::default()));
        let poller = Poller { known: Arc::clone(&known), asked, questions: receiver };
        (Inventory { known, polls, questions }, poller)
    }

    /// Looks a model up, asking the upstream again if it is not listed.
    pub async fn look_up(&self, model: &ModelName) -> Lookup {
        if let Some(found) = self.find(model) {
            return Lookup::Installed(found);
        }
        // Its answer will do for this question, too.
        let is_out = self.lock().tags == Pace::Slow { is_out: true };
        if is_out || !self.refresh().await {
            return Lookup::CannotSay;
        }
        self.find(model).map_or(Lookup::Unknown, Lookup::Installed)
    }

    /// Has the upstream polled now. Whether that went well, as far as it is known within a moment; a poll that takes longer
    /// goes on.
    pub async fn refresh(&self) -> bool {
        let (done, outcome) = oneshot::channel();
        if self.polls.try_send(done).is_err() || self.lock().tags != Pace::Prompt {
            return false;
        }
        let answered = tokio::time::timeout(METADATA_WAIT, outcome).await;
        answered.is_ok_and(|polled| polled.unwrap_or(false))
    }

    /// The entry of a model, from the last poll.
    pub fn find(&self, model: &ModelName) -> Option<TagsModel> {
        self.lock().by_name.get(model).cloned()
    }

    /// The key of a request to `model` that asks for these runner options: by its file, under the name that all names of
    /// its runner are loaded by. Where the file cannot be had, by the name and the request alone.
    ///
    /// Waits a moment for the files of the model's family where they are not known yet, and not at all while those are slow
    /// to come: then the key goes by what is known, which is never wrong, only perhaps a reload dearer. Cancel-safe.
    pub async fn load_key(&self, model: &ModelName, asked: RunnerOptions) -> LoadKey {
        if let Some(entry) = self.find(model) {
            self.learn(&entry).await;
        }
        self.aliases().load_key(model, asked)
    }

    /// The same by what is known now. Never waits.
    pub fn known_load_key(&self, model: &ModelName, asked: RunnerOptions) -> LoadKey {
        self.aliases().load_key(model, asked)
    }

    /// How to make `key` resident for a job of the name `asked`: under that name, so that the job's client finds it in
    /// `/api/ps`; under the key's own where that would make another runner.
    pub fn load_request(&self, asked: &str, key: &LoadKey) -> LoadRequest {
        let aliases = self.aliases();
        let asked = ModelName::parse(asked).ok().map(|parsed| parsed.name);
        let as_asked = asked.and_then(|name| Some((aliases.options_to_load_as(&name, key)?, name)));
        let (options, name) = as_asked.unwrap_or_else(|| (key.options, key.model.clone()));
        let display = self.find(&name).map_or_else(|| name.to_string(), |entry| entry.display);
        LoadRequest { name: display, options }
    }

    /// What an installed model can do: from the tags, else from its show. `None` where unknown. Waits as
    /// [`Self::load_key`] does.
    pub async fn capabilities(&self, model: &TagsModel) -> Option<Vec<String>> {
        if model.capabilities.is_some() {
            return model.capabilities.clone();
        }
        self.learn(model).await;
        self.lock().shown.get(&model.digest)?.as_ref()?.capabilities.clone()
    }

    /// Whether a model serves embeddings only, from what is known now.
    pub fn is_embedder(&self, model: &ModelName) -> bool {
        let known = self.lock();
        let Some(entry) = known.by_name.get(model) else { return false };
        let shown = known.shown.get(&entry.digest).and_then(Option::as_ref);
        let shown = shown.and_then(|shown| shown.capabilities.as_ref());
        let capabilities = entry.capabilities.as_ref().or(shown);
        capabilities.is_some_and(|list| {
            list.iter().any(|item| item == "embedding")
                && !list.iter().any(|item| item == "completion")
        })
    }

    /// What is in the upstream's memory, each runner by the name that jobs of its names are loaded by, whatever name it
    /// was loaded by.
    ///
    /// # Errors
    /// As [`Ollama::ps`].
    pub async fn ps(&self, ollama: &Ollama) -> Result<Vec<PsModel>, SendError> {
        self.ps_within(ollama, PS_LIMIT).await
    }

    /// The same with another limit, for whoever does not wait for it.
    ///
    /// # Errors
    /// As [`Ollama::ps`].
    pub async fn ps_within(
        &self,
        ollama: &Ollama,
        limit: Duration,
    ) -> Result<Vec<PsModel>, SendError> {
        let question = ollama.ps_within(limit);
        let note = |pace| self.lock().ps = pace;
        let mut listed = paced(question, PS_LIMIT, note).await?;
        let mut known = self.lock();
        known.resident = listed.iter().map(|model| model.digest.clone()).collect();
        for model in &mut listed {
            model.model = known.representative(model);
        }
        Ok(listed)
    }

    /// Whether the last ps took longer than anybody should wait for it.
    pub fn is_ps_slow(&self) -> bool {
        self.lock().ps != Pace::Prompt
    }

    /// Whether two names are loaded by one.
    pub fn is_same(&self, one: &ModelName, other: &ModelName) -> bool {
        let aliases = self.aliases();
        aliases.representative(one) == aliases.representative(other)
    }

    /// Which names share a runner, now and whenever that changes.
    pub fn follow_aliases(&self) -> watch::Receiver<Arc<Aliases>> {
        self.lock().aliases.subscribe()
    }

    /// How many models are installed; `None` before the first successful poll.
    pub fn installed(&self) -> Option<usize> {
        let known = self.lock();
        known.is_polled.then_some(known.by_name.len())
    }

    fn aliases(&self) -> Arc<Aliases> {
        Arc::clone(&self.lock().aliases.borrow())
    }

    /// Has the unknown files of the model's family asked for, its own before the others. Names of one blob are of one
    /// family: it is the architecture that the blob states.
    async fn learn(&self, first: &TagsModel) {
        let (mut models, pace) = {
            let known = self.lock();
            (known.unshown(|model| model.family == first.family), known.shows)
        };
        if models.is_empty() || pace == (Pace::Slow { is_out: true }) {
            return;
        }
        models.sort_by_key(|model| model.digest != first.digest);
        let (answered, outcome) = oneshot::channel();
        if self.questions.try_send(Question { models, answered }).is_err() || pace != Pace::Prompt {
            return;
        }
        if tokio::time::timeout(METADATA_WAIT, outcome).await.is_err() {
            tracing::debug!(model.name = %first.model, "model files are slow to come; going by what is known");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Known {
    /// The wanted models whose files can be asked for and were not.
    fn unshown(&self, is_wanted: impl Fn(&TagsModel) -> bool) -> Vec<TagsModel> {
        if self.is_withheld {
            return Vec::new();
        }
        let is_unshown = |model: &&TagsModel| {
            !model.is_remote
                && !model.digest.is_empty()
                && is_wanted(model)
                && !self.shown.contains_key(&model.digest)
        };
        self.by_name.values().filter(is_unshown).cloned().collect()
    }

    /// The name a runner goes by: by the file it was loaded with, since its name may be gone or stand for another by now.
    fn representative(&self, listed: &PsModel) -> ModelName {
        let aliases = self.aliases.borrow();
        let shown = self.shown.get(&listed.digest).and_then(Option::as_ref);
        let file = shown.and_then(|shown| shown.modelfile.as_ref());
        let found = file.and_then(|file| aliases.standing_for(file));
        found.unwrap_or_else(|| aliases.representative(&listed.model)).clone()
    }

    fn take_tags(&mut self, models: Vec<TagsModel>) {
        // Those of the last poll, too: what was loaded and then deleted since is not in a ps yet.
        let installed = self.by_name.values().chain(&models);
        let digests: HashSet<&str> = installed.map(|model| model.digest.as_str()).collect();
        let resident = &self.resident;
        self.shown.retain(|digest, shown| {
            shown.is_some() && (digests.contains(digest.as_str()) || resident.contains(digest))
        });
        self.by_name = models.into_iter().map(|model| (model.model.clone(), model)).collect();
        self.is_withheld = false;
        self.is_polled = true;
        self.find_aliases();
    }

    fn take_shown(&mut self, digest: String, shown: Option<Shown>) {
        self.shown.insert(digest, shown);
        self.find_aliases();
    }

    fn find_aliases(&self) {
        let file = |model: &TagsModel| {
            let file = self.shown.get(&model.digest)?.as_ref()?.modelfile.clone()?;
            let trained_context = file.trained_context.or(model.trained_context);
            Some(Modelfile { trained_context, ..file })
        };
        let models = self.by_name.iter();
        let models = models.filter_map(|(name, model)| Some((name.clone(), file(model)?)));
        let aliases = Aliases::of(models.collect(), &self.settled);
        self.aliases.send_replace(Arc::new(aliases));
    }
}
