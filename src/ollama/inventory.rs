//! What is installed at the upstream, as of the last successful poll. Kept while the upstream is away.
//!
//! A model that is not listed is looked up again before it counts as unknown; many that ask at once share one poll,
//! and it is always a poll that began after they asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::domain::model::ModelName;

use super::calls::TagsModel;
use super::client::{Ollama, SendError};

/// Lookups that may wait for a poll; beyond it a lookup is answered as "cannot say".
const WAITING_MAX: usize = 1_024;

/// The shared list.
#[derive(Clone)]
pub struct Inventory {
    known: Arc<Mutex<Known>>,
    polls: mpsc::Sender<oneshot::Sender<bool>>,
}

#[derive(Default)]
struct Known {
    by_name: HashMap<ModelName, TagsModel>,
    /// From `/api/show`, for an Ollama whose tags do not tell; by digest, since that changes with the model.
    shown: HashMap<String, Option<Vec<String>>>,
    is_polled: bool,
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

/// The task side of the inventory: owns the polling.
pub struct Poller {
    known: Arc<Mutex<Known>>,
    asked: mpsc::Receiver<oneshot::Sender<bool>>,
}

impl Inventory {
    /// An empty inventory and the poller that fills it.
    pub fn new() -> (Inventory, Poller) {
        let (polls, asked) = mpsc::channel(WAITING_MAX);
        let known = Arc::new(Mutex::new(Known::default()));
        (Inventory { known: Arc::clone(&known), polls }, Poller { known, asked })
    }

    /// Looks a model up, asking the upstream again if it is not listed.
    pub async fn look_up(&self, model: &ModelName) -> Lookup {
        if let Some(found) = self.find(model) {
            return Lookup::Installed(found);
        }
        if !self.refresh().await {
            return Lookup::CannotSay;
        }
        self.find(model).map_or(Lookup::Unknown, Lookup::Installed)
    }

    /// Polls the upstream now; whether that went well.
    pub async fn refresh(&self) -> bool {
        let (done, outcome) = oneshot::channel();
        match self.polls.try_send(done) {
            Ok(()) => outcome.await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// The entry of a model, from the last poll.
    pub fn find(&self, model: &ModelName) -> Option<TagsModel> {
        self.lock().by_name.get(model).cloned()
    }

    /// What an installed model can do: from the tags, else asked for once per digest. `None` where unknown.
    pub async fn capabilities(&self, model: &TagsModel, ollama: &Ollama) -> Option<Vec<String>> {
        if model.capabilities.is_some() {
            return model.capabilities.clone();
        }
        if let Some(shown) = self.lock().shown.get(&model.digest) {
            return shown.clone();
        }
        let shown = ollama.capabilities(&model.display).await.ok()?;
        self.lock().shown.insert(model.digest.clone(), shown.clone());
        shown
    }

    /// Whether a model serves embeddings only, from what is known now.
    pub fn is_embedder(&self, model: &ModelName) -> bool {
        let known = self.lock();
        let Some(entry) = known.by_name.get(model) else { return false };
        let shown = known.shown.get(&entry.digest).and_then(Option::as_ref);
        let capabilities = entry.capabilities.as_ref().or(shown);
        capabilities.is_some_and(|list| {
            list.iter().any(|item| item == "embedding")
                && !list.iter().any(|item| item == "completion")
        })
    }

    /// How many models are installed; `None` before the first successful poll.
    pub fn installed(&self) -> Option<usize> {
        let known = self.lock();
        known.is_polled.then_some(known.by_name.len())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Poller {
    /// Answers questions until every [`Inventory`] is gone. Questions that came before a poll began share it.
    pub async fn run(mut self, ollama: Ollama) {
        while let Some(first) = self.asked.recv().await {
            let mut waiting = vec![first];
            while let Ok(next) = self.asked.try_recv() {
                waiting.push(next);
            }
            let is_polled = self.poll(&ollama).await.is_ok();
            for asked in waiting {
                if asked.send(is_polled).is_err() {
                    tracing::trace!("whoever asked for the poll no longer waits");
                }
            }
        }
    }

    async fn poll(&self, ollama: &Ollama) -> Result<(), SendError> {
        let models = ollama.tags().await?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let digests: std::collections::HashSet<&str> =
            models.iter().map(|model| model.digest.as_str()).collect();
        known.shown.retain(|digest, _| digests.contains(digest.as_str()));
        known.by_name = models.iter().map(|model| (model.model.clone(), model.clone())).collect();
        known.is_polled = true;
        Ok(())
    }
}
