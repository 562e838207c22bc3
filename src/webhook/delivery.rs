//! One delivery: what it tells is read, sent, judged and noted, in this order. It is noted as delivered only after the reply: a
//! death in between sends it again, under the same id.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderMap;

use crate::clock;
use crate::completion;
use crate::delay::{Growth, chance};
use crate::fail_point;
use crate::store::{StoreError, Telling, Try, Undelivered};

use super::post::Reply;
use super::{Hands, payload, signature};

/// A receiver that will never want this again says so.
const GONE: u16 = 410;

/// Between two tries to note how a delivery went: a full disk may take a while, and the receiver must not be told again and
/// again for it.
const NOTE_PAUSE: Duration = Duration::from_secs(1);

/// What a try came to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// The receiver took it.
    Taken(u16),
    /// To be tried again after this time.
    Later(Undelivered, Duration),
    /// To be given up.
    Over(Undelivered),
}

/// Delivers one. Whether the receiver took it; `None` if it was not tried.
pub(super) async fn deliver(hands: &Hands, next: Try) -> Option<bool> {
    let told = match tell(hands, next).await {
        Ok(Some(told)) => told,
        Ok(None) => return None,
        // What cannot be read must not be tried without end; a file may only have met too many that are open.
        Err(fault @ (StoreError::Strange(_) | StoreError::File { .. })) => {
            tracing::warn!(webhook.event = next.event, db.error = %fault, "the job of a webhook cannot be read");
            let unread = Err("its job cannot be read".to_owned());
            let verdict = judge(unread, next.tries + 1, &hands.settings, chance());
            note(hands, next, &verdict).await;
            return None;
        }
        Err(fault) => {
            tracing::warn!(webhook.event = next.event, db.error = %fault, "a webhook could not be read");
            tokio::time::sleep(NOTE_PAUSE).await;
            return Some(false);
        }
    };
    let Told { telling, id, body } = told;
    let mut headers = HeaderMap::new();
    let key = hands.settings.key.as_ref();
    signature::sign(&mut headers, &id, hands.clock.now_ms(), &body, key);
    fail_point::reach("deliver.before");
    let reply = hands.poster.post(&telling.url, headers, body).await;
    fail_point::reach("deliver.replied");
    let verdict = judge(reply, next.tries + 1, &hands.settings, chance());
    log(&telling, next, &verdict);
    let is_noted = note(hands, next, &verdict).await;
    fail_point::reach("deliver.noted");
    let is_taken = matches!(verdict, Verdict::Taken(_));
    if is_taken && is_noted {
        hands.handle.count_delivered();
    }
    Some(is_taken)
}

struct Told {
    telling: Telling,
    id: String,
    body: Bytes,
}

/// Reads what a delivery tells. One at a time: the readers of the database are few, and the worker's decisions need them.
async fn tell(hands: &Hands, next: Try) -> Result<Option<Told>, StoreError> {
    let _turn = hands.reading.acquire().await.map_err(|_| StoreError::Closed)?;
    let Some(mut telling) = hands.store.telling(next).await? else { return Ok(None) };
    let completion = match telling.answer.take() {
        Some(answer) => Some(completion::of(&answer, hands.store.answers_folder()).await?),
        None => None,
    };
    let body = payload::body(&telling, completion.as_ref()).to_string();
    let id = payload::id(&telling.transition);
    Ok(Some(Told { telling, id, body: Bytes::from(body) }))
}

/// Judges the `tried`-th try.
fn judge(
    reply: Result<Reply, String>,
    tried: u32,
    settings: &super::Settings,
    chance: f64,
) -> Verdict {
    let (why, asked) = match reply {
        Ok(Reply { status: status @ 200..300, .. }) => return Verdict::Taken(status),
        Ok(Reply { status, retry_after }) => {
            let error = match status {
                300..400 => format!("the receiver answered {status}; redirects are not followed"),
                _ => format!("the receiver answered {status}"),
            };
            (Undelivered { status: Some(status), error }, retry_after)
        }
        Err(error) => (Undelivered { status: None, error }, None),
    };
    if why.status == Some(GONE) || tried >= settings.tries_max {
        return Verdict::Over(why);
    }
    let delay = Growth::WEBHOOK.delay(tried, settings.retry_delay, chance);
    let asked = asked.unwrap_or_default().min(Growth::WEBHOOK.max());
    Verdict::Later(why, delay.max(asked))
}

/// Notes what a try came to, again and again until it is noted or foreman stops. Whether it was noted and was this
/// delivery's.
async fn note(hands: &Hands, next: Try, verdict: &Verdict) -> bool {
    loop {
        let now_ms = hands.clock.now_ms();
        let noted = match verdict.clone() {
            Verdict::Taken(status) => hands.store.delivered(next, status, now_ms).await,
            Verdict::Later(why, delay) => {
                let next_at_ms = now_ms.saturating_add(clock::millis(delay));
                hands.store.put_off_delivery(next, why, next_at_ms).await
            }
            Verdict::Over(why) => hands.store.give_delivery_up(next, why, now_ms).await,
        };
        match noted {
            Ok(is_noted) => return is_noted,
            Err(fault) => {
                tracing::warn!(webhook.event = next.event, db.error = %fault, "a webhook's try could not be noted");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(NOTE_PAUSE) => (),
            () = hands.tasks.draining() => return false,
        }
    }
}

fn log(telling: &Telling, next: Try, verdict: &Verdict) {
    let (id, event) = (telling.transition.id, next.event);
    let state = telling.transition.to.name();
    match verdict {
        Verdict::Taken(status) => {
            tracing::debug!(job.id = %id, job.state = state, webhook.event = event, http.status = status, "webhook delivered");
        }
        Verdict::Later(why, delay) => {
            tracing::info!(job.id = %id, job.state = state, webhook.event = event, webhook.tries = next.tries + 1,
                delay.ms = clock::millis(*delay), reason = why.error, "webhook not delivered; trying again");
        }
        Verdict::Over(why) => {
            tracing::warn!(job.id = %id, job.state = state, webhook.event = event, webhook.tries = next.tries + 1,
                reason = why.error, "webhook given up; it can be sent again by hand");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::Settings;

    const SETTINGS: Settings =
        Settings { key: None, retry_delay: Duration::from_secs(5), tries_max: 10 };

    fn judged(reply: Result<(u16, Option<u64>), &str>, tried: u32) -> Verdict {
        let reply = reply.map(|(status, after_s)| Reply {
            status,
            retry_after: after_s.map(Duration::from_secs),
        });
        judge(reply.map_err(str::to_owned), tried, &SETTINGS, 1.0)
    }

    fn later_s(verdict: &Verdict) -> Option<u64> {
        match verdict {
            Verdict::Later(_, delay) => Some(delay.as_secs()),
            Verdict::Taken(_) | Verdict::Over(_) => None,
        }
    }

    #[test]
    fn only_2xx_is_taken_and_410_ends_it() {
        assert_eq!(judged(Ok((204, None)), 1), Verdict::Taken(204));
        for status in [101, 301, 302, 307, 400, 404, 429, 500, 503] {
            assert_eq!(later_s(&judged(Ok((status, None)), 1)), Some(5), "{status}");
        }
        assert_eq!(later_s(&judged(Err("reset"), 2)), Some(20));
        assert!(matches!(judged(Ok((410, None)), 1), Verdict::Over(_)));
        assert!(matches!(judged(Err("reset"), 10), Verdict::Over(_)));
    }

    #[test]
    fn a_retry_after_is_heeded_within_bounds() {
        assert_eq!(later_s(&judged(Ok((429, Some(60))), 1)), Some(60));
        assert_eq!(later_s(&judged(Ok((503, Some(1))), 1)), Some(5), "no sooner than else");
        assert_eq!(later_s(&judged(Ok((503, Some(u64::MAX))), 1)), Some(21_600));
    }
}
