//! The task that asks for tags and model files, for [`Inventory`](super::Inventory).

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Known, Pace, Question, lock};
use crate::ollama::calls::{METADATA_WAIT, TagsModel};
use crate::ollama::client::{Ollama, SendError};

/// The task side of the inventory: owns the polling and the showing.
pub struct Poller {
    pub(super) known: Arc<Mutex<Known>>,
    pub(super) asked: mpsc::Receiver<oneshot::Sender<bool>>,
    pub(super) questions: mpsc::Receiver<Question>,
}

async fn show_all(
    known: &Mutex<Known>,
    models: Vec<TagsModel>,
    ollama: &Ollama,
) -> Result<(), SendError> {
    for model in models {
        if lock(known).unshown(|other| other.digest == model.digest).is_empty() {
            continue;
        }
        match ollama.show(&model).await {
            Ok(shown) => lock(known).take_shown(model.digest, shown),
            Err(fault) => {
                tracing::debug!(model.name = %model.model, upstream.error = %fault, "a model file could not be had");
                lock(known).is_withheld = true;
                return Err(fault);
            }
        }
    }
    Ok(())
}

impl Poller {
    /// Answers questions until every [`Inventory`](super::Inventory) is gone.
    pub async fn run(self, ollama: Ollama) {
        let Poller { known, asked, questions } = self;
        tokio::join!(poll(&known, asked, &ollama), show(&known, questions, &ollama));
    }
}

/// Reads the tags whenever asked. Questions that came before a poll began share it.
async fn poll(
    known: &Mutex<Known>,
    mut asked: mpsc::Receiver<oneshot::Sender<bool>>,
    ollama: &Ollama,
) {
    while let Some(first) = asked.recv().await {
        let mut waiting = vec![first];
        while let Ok(next) = asked.try_recv() {
            waiting.push(next);
        }
        let polled = paced(ollama.tags(), METADATA_WAIT, |pace| lock(known).tags = pace).await;
        let is_polled = polled.is_ok();
        if let Ok(models) = polled {
            lock(known).take_tags(models);
        }
        for asked in waiting {
            if asked.send(is_polled).is_err() {
                tracing::trace!("whoever asked for the poll no longer waits");
            }
        }
    }
}

/// Asks for model files, one after the other: so none is asked for twice, however many want it.
async fn show(known: &Mutex<Known>, mut questions: mpsc::Receiver<Question>, ollama: &Ollama) {
    while let Some(Question { models, answered }) = questions.recv().await {
        // All of them: many files, each of which comes at once, are as long in coming as one that does not.
        let showing = show_all(known, models, ollama);
        drop(paced(showing, METADATA_WAIT, |pace| lock(known).shows = pace).await);
        {
            let mut known = lock(known);
            let aliases = Arc::clone(&known.aliases.borrow());
            known.settled = aliases;
        }
        if answered.send(()).is_err() {
            tracing::trace!("whoever asked for model files no longer waits");
        }
    }
}

/// Asks, and notes the pace of the answer: whether one came within `limit`, and while it did not.
pub(super) async fn paced<T>(
    question: impl Future<Output = Result<T, SendError>>,
    limit: Duration,
    note: impl Fn(Pace),
) -> Result<T, SendError> {
    tokio::pin!(question);
    if let Ok(answer) = tokio::time::timeout(limit, &mut question).await {
        let is_late = matches!(answer, Err(SendError::Late { .. }));
        note(if is_late { Pace::Slow { is_out: false } } else { Pace::Prompt });
        return answer;
    }
    note(Pace::Slow { is_out: true });
    let answer = question.await;
    note(Pace::Slow { is_out: false });
    answer
}
