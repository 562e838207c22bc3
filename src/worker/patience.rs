//! How long an attempt is waited for: what ends one that says nothing, or that comes too late.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::domain::model::LoadKey;
use crate::domain::retry::Fault;
use crate::ollama::client::BodyError;

use super::Hands;
use super::conclude::Conclusion;
use super::output::Output;

/// How long an answer may stay silent after its upstream was away and came back without its model.
const RETURN_GRACE: Duration = Duration::from_secs(5);

/// How many idle limits an answer that nobody waits for may take to begin: an hour with the default.
const UNFOLLOWED_PATIENCE: u32 = 6;

/// How many idle limits it may stay silent where the model is still there. A connection that survived goes on, and an
/// unstreamed answer is silent to its end; a dead one is mostly ended by the system's keepalive. What is left is a
/// connection that something in between has forgotten.
const LISTED_PATIENCE: u32 = 6;

/// How often in a row the model of a silent answer must not be listed for the answer to be given up.
const MISSING_LOOKS: u32 = 2;

/// How long a deadline is waited for by the timer alone: the clock it is told in may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(60);

impl Hands {
    /// Returns when the deadline has passed; never without one. A clock that is set is looked at again each minute.
    pub(super) async fn deadline(&self, deadline_ms: Option<i64>) {
        let Some(deadline_ms) = deadline_ms else { return std::future::pending().await };
        loop {
            let left_ms = deadline_ms.saturating_sub(self.now_ms());
            match u64::try_from(left_ms) {
                Ok(left_ms @ 1..) => {
                    tokio::time::sleep(Duration::from_millis(left_ms).min(CLOCK_LOOK)).await;
                }
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Returns when the upstream went away and came back, and nothing more of this answer came after that. A host that sleeps
    /// or a network that breaks leaves a connection that looks open and never says anything again; without this an
    /// unstreamed job would hold the worker for ever.
    pub(super) async fn left_behind(&self, output: &Output, key: Option<&LoadKey>) {
        loop {
            self.tools.health.returned().await;
            let bytes = output.bytes();
            let idle_limit = self.settings.idle_limit;
            let grace = match self.has_lost(key).await {
                true => idle_limit.min(RETURN_GRACE),
                false => idle_limit * LISTED_PATIENCE,
            };
            tokio::time::sleep(grace).await;
            if output.bytes() == bytes {
                return;
            }
        }
    }

    /// Whether the upstream no longer holds the key: it was started anew, and the job's runner died with it.
    async fn has_lost(&self, key: Option<&LoadKey>) -> bool {
        let Some(key) = key else { return false };
        let inventory = &self.tools.inventory;
        let ps = inventory.ps(&self.tools.ollama).await;
        ps.is_ok_and(|ps| ps.iter().all(|listed| !inventory.is_same(&listed.model, &key.model)))
    }

    /// Waits for the beginning of an answer: its head, or its first byte. Both come at the end of other work (reading a long
    /// prompt, or all of an unstreamed answer), however long that is. A client can leave; where nobody waits, this ends after
    /// some idle limits. It ends early where Ollama no longer holds the model.
    ///
    /// # Errors
    /// Why it is not waited for any longer.
    pub(super) async fn beginning<T>(
        &self,
        output: &Output,
        key: Option<&LoadKey>,
        comes: impl Future<Output = T>,
    ) -> Result<T, Conclusion> {
        let idle_limit = self.settings.idle_limit;
        let (mut waited, mut missing) = (Duration::ZERO, 0);
        tokio::pin!(comes);
        loop {
            tokio::select! {
                come = &mut comes => return Ok(come),
                () = tokio::time::sleep(idle_limit) => waited += idle_limit,
            }
            if !output.has_waiters() && waited >= idle_limit * UNFOLLOWED_PATIENCE {
                return Err(silent(waited));
            }
            let is_missing = tokio::select! {
                come = &mut comes => return Ok(come),
                is_missing = self.has_lost(key) => is_missing,
            };
            // Ollama does not list a model that it loads anew for this very job.
            missing = if is_missing { missing + 1 } else { 0 };
            if missing >= MISSING_LOOKS {
                let text = format!(
                    "ollama sent nothing for {} s, and no longer holds the model",
                    waited.as_secs()
                );
                return Err(Conclusion::failed(Fault::Silent, 504, text));
            }
        }
    }
}

/// Nothing came for so long.
pub(super) fn silent(limit: Duration) -> Conclusion {
    let text = format!("ollama sent nothing for {} s", limit.as_secs());
    Conclusion::failed(Fault::Silent, 504, text)
}

/// How an answer ended early.
pub(super) enum Ended {
    Silent,
    /// It never began.
    Given(Conclusion),
    Broken(BodyError),
}

/// The next bytes of an answer, within a limit of silence.
pub(super) async fn next_data(
    body: &mut Incoming,
    limit: Duration,
) -> Result<Option<Bytes>, Ended> {
    tokio::time::timeout(limit, data(body)).await.unwrap_or(Err(Ended::Silent))
}

/// The next bytes of an answer, however long they take.
pub(super) async fn data(body: &mut Incoming) -> Result<Option<Bytes>, Ended> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(fault)) => return Err(Ended::Broken(BodyError::from(fault))),
            // Trailers are no bytes of the answer.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}
