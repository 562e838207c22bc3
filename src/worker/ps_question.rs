//! The worker's question to `/api/ps`. A decision waits a second for the answer, as long as answers come in time; while they do
//! not, it is made on what is known, and the question goes on beside. At most one is out.
//!
//! A late answer is taken when it comes. One that was asked for before the worker changed something is thrown away by
//! [`Residency::reconcile`](crate::ollama::residency::Residency::reconcile).

use std::time::Duration;

use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::ollama::calls::{PS_LIMIT, PsModel};
use crate::ollama::client::SendError;
use crate::ollama::residency::AskedAt;

use super::{Hands, Worker};

/// A ps that takes longer is asked anew: its connection may be dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

type Listed = Result<Vec<PsModel>, SendError>;

/// A question that is out.
pub(super) struct PsQuestion {
    asked: AskedAt,
    asked_at_ms: i64,
    answer: oneshot::Receiver<Listed>,
}

/// What ps said.
pub(super) struct PsAnswer {
    pub(super) asked: AskedAt,
    pub(super) asked_at_ms: i64,
    pub(super) listed: Listed,
}

impl Worker {
    /// What ps says, or said to a question from before that was left behind; `None` if it has not answered yet.
    pub(super) async fn ask_ps(&mut self) -> Option<PsAnswer> {
        let is_slow = self.hands.tools.inventory.is_ps_slow();
        if let Some(mut question) = self.ps_question.take() {
            match question.answer.try_recv() {
                Ok(listed) => return Some(question.answered(listed)),
                Err(TryRecvError::Empty) if is_slow => {
                    self.ps_question = Some(question);
                    return None;
                }
                // Answers to others come in time: this one is lost.
                Err(TryRecvError::Empty | TryRecvError::Closed) => (),
            }
        }
        let mut question = self.hands.begin_ps();
        if !is_slow {
            match tokio::time::timeout(PS_LIMIT, &mut question.answer).await {
                Ok(Ok(listed)) => return Some(question.answered(listed)),
                // The daemon ends.
                Ok(Err(_)) => return None,
                Err(_) => tracing::debug!("ps has not answered; deciding on what is known"),
            }
        }
        self.ps_question = Some(question);
        None
    }
}

impl PsQuestion {
    fn answered(self, listed: Listed) -> PsAnswer {
        PsAnswer { asked: self.asked, asked_at_ms: self.asked_at_ms, listed }
    }
}

impl Hands {
    fn begin_ps(&self) -> PsQuestion {
        let (asked, asked_at_ms) = (self.tools.residency.asking(), self.now_ms());
        let (sender, answer) = oneshot::channel();
        let hands = self.clone();
        self.tools.tasks.spawn(async move {
            let tools = &hands.tools;
            let question = tools.inventory.ps_within(&tools.ollama, ANSWER_LIMIT);
            tokio::pin!(question);
            let (listed, is_late) = tokio::select! {
                listed = tokio::time::timeout(PS_LIMIT, &mut question) => match listed {
                    Ok(listed) => (listed, false),
                    Err(_) => tokio::select! {
                        listed = question => (listed, true),
                        () = tools.tasks.draining() => return,
                    },
                },
                () = tools.tasks.forced() => return,
            };
            // The worker may have ended.
            drop(sender.send(listed));
            if is_late {
                hands.handle.wake();
            }
        });
        PsQuestion { asked, asked_at_ms, answer }
    }
}
