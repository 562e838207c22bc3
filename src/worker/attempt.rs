//! One try of a job: the original bytes go upstream, the answer is drained into the job's output as fast as it comes,
//! and is judged. It never waits for a client, and tells nothing to the store: that is [`super::conclude`]'s.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::CONTENT_ENCODING;
use hyper::{Method, Request, Response};

use tokio::time::Sleep;

use crate::domain::dialect::Dialect;
use crate::domain::job::Kind;
use crate::domain::model::LoadKey;
use crate::domain::retry::{Fault, told_by_status, told_by_text};
use crate::fail_point;
use crate::ollama::calls::error_text;
use crate::ollama::client::{SendError, full_body};
use crate::ollama::hop::strip_hop_by_hop;
use crate::ollama::wire::answer::{AnswerKind, AnswerScanner, ScanState, Verdict};
use crate::ollama::wire::cut::without_keep_alive;
use crate::ollama::wire::encoding::{decoded, is_undone};
use crate::ollama::wire::keep_alive::KeepAlive;
use crate::ollama::wire::peek::{Peek, Shape, peek};
use crate::ollama::wire::search::may_search;
use crate::ollama::wire::unstreamed::is_half;
use crate::store::{Claim, HeaderList};

use super::answer_kind::answer_kind;
use super::conclude::Conclusion;
use super::output::{Head, KeepError, Output, Timings};
use super::patience::{Ended, data, next_data, silent};
use super::run::waited_ms;
use super::searches::Searching;
use super::{Hands, brief};

/// An error answer is read up to here for its text; Ollama's are a sentence.
const ERROR_BYTES_MAX: u64 = 1024 * 1024;

/// A stream whose first record is not complete after this many bytes is shown all the same.
const HIDDEN_BYTES_MAX: u64 = 256 * 1024;

/// After the end mark, how long the end of the HTTP message is waited for: it only decides whether the connection can be
/// used again.
const FRAMING_LIMIT: Duration = Duration::from_secs(1);

impl Hands {
    /// Runs a claimed job once. `load_ms` is what making its key resident took.
    ///
    /// Ends early when the output is abandoned or interrupted (the upstream connection is closed, which is how Ollama is
    /// told), or when the end of the daemon is forced.
    pub(super) async fn attempt(
        &self,
        claim: &Claim,
        output: &Arc<Output>,
        key: Option<&LoadKey>,
        load_ms: i64,
    ) -> Conclusion {
        let attempt = claim.lease_epoch;
        output.start_over(Timings { attempt, queue_ms: waited_ms(claim), load_ms });
        let body = self.body_to_send(claim, key);
        let _searching = self.may_search(claim, key).await;
        let conclusion = tokio::select! {
            // In this order: a stop closes the clients' connections too, and that must not look like their leaving.
            biased;
            () = self.tools.tasks.forced() => {
                Conclusion::Stopped("foreman was stopped before the answer was whole".to_owned())
            }
            () = output.abandoned() => Conclusion::Abandoned,
            () = output.interrupted() => {
                Conclusion::Stopped("it made room for a job that somebody waits for".to_owned())
            }
            () = self.deadline(claim.deadline_ms) => Conclusion::late(),
            () = self.left_behind(output, key) => {
                let text = "ollama went away while the job ran, and came back without it".to_owned();
                Conclusion::failed(Fault::UpstreamDied, 502, text)
            }
            conclusion = self.exchange(claim, output, key, body) => conclusion,
        };
        if let Some(key) = key {
            self.tools.residency.touch(&key.model, self.now_ms());
            if conclusion.casts_doubt() {
                self.tools.residency.distrust(&key.model);
            }
        }
        conclusion
    }

    /// The original bytes, minus every top-level `keep_alive`: repeated on a busy runner it can deadlock Ollama. What the
    /// client asked for by it is foreman's to do. An unload request is one by its `keep_alive`, so it keeps it.
    fn body_to_send(&self, claim: &Claim, key: Option<&LoadKey>) -> Bytes {
        let shape = match (claim.kind, claim.dialect) {
            (Kind::Unload | Kind::Opaque, _) => return claim.body.clone(),
            (Kind::Run | Kind::Load, Dialect::Chat) => Shape::Chat,
            (Kind::Run | Kind::Load, Dialect::Generate) => Shape::Generate,
            (Kind::Run | Kind::Load, _) => return claim.body.clone(),
        };
        let Peek::Request(request) = peek(shape, &claim.body) else { return claim.body.clone() };
        if let (Some(key), Some(keep_alive)) = (key, request.keep_alive) {
            self.heed(claim.kind, key, keep_alive);
        }
        without_keep_alive(claim.body.clone(), &request.keep_alive_members)
    }

    /// Takes note of a job for which Ollama may search, for as long as it is in flight.
    async fn may_search(&self, claim: &Claim, key: Option<&LoadKey>) -> Option<Searching> {
        let key = key?;
        let encoding = claim.headers.iter().find(|(name, _)| name == CONTENT_ENCODING.as_str());
        let (dialect, body) = (claim.dialect, claim.body.clone());
        let may = match encoding.filter(|(_, value)| is_undone(dialect, value)) {
            None => may_search(dialect, &body),
            // A few bytes may stand for 20 MiB.
            Some(_) => {
                let undone = move || decoded(&body).is_ok_and(|said| may_search(dialect, &said));
                tokio::task::spawn_blocking(undone).await.unwrap_or(false)
            }
        };
        may.then(|| self.handle.searches().begin(key))
    }

    fn heed(&self, kind: Kind, key: &LoadKey, keep_alive: KeepAlive) {
        let residency = &self.tools.residency;
        match (kind, keep_alive) {
            (_, KeepAlive::Zero | KeepAlive::Overflow) => residency.release_when_dry(key),
            // A client's own load says how long it wants the model kept; a job in passing does not.
            (Kind::Load, KeepAlive::Forever) => residency.keep(key, None),
            (Kind::Load, KeepAlive::For(limit)) => residency.keep(key, Some(limit)),
            (Kind::Run | Kind::Unload | Kind::Opaque, KeepAlive::Forever | KeepAlive::For(_)) => (),
        }
    }

    async fn exchange(
        &self,
        claim: &Claim,
        output: &Arc<Output>,
        key: Option<&LoadKey>,
        body: Bytes,
    ) -> Conclusion {
        let request = match request(claim, body) {
            Ok(request) => request,
            Err(text) => return Conclusion::failed(Fault::NoRoom, 500, text),
        };
        fail_point::reach("request.before");
        let sent = self.tools.ollama.send(request);
        let response = match self.beginning(output, key, sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(fault)) => return self.send_fault(&fault).await,
            Err(conclusion) => return conclusion,
        };
        let head = head_of(&response);
        let kind = answer_kind(claim, response.headers());
        let is_error = !response.status().is_success();
        output.begin(head);
        fail_point::reach("answer.head");
        let body = response.into_body();
        if is_error {
            self.drain_error(output, body).await
        } else {
            match self.drain(output, key, body, kind).await {
                Conclusion::Whole
                    if kind == AnswerKind::JsonBody && is_half_kept(claim, output) =>
                {
                    truncated()
                }
                conclusion => conclusion,
            }
        }
    }

    async fn send_fault(&self, fault: &SendError) -> Conclusion {
        let text = fault.to_string();
        match fault {
            SendError::Unreachable { .. } => {
                self.tools.health.lost(&text, self.now_ms());
                Conclusion::failed(Fault::Unreachable, 502, text)
            }
            SendError::Body(_)
            | SendError::Broken { .. }
            | SendError::Late { .. }
            | SendError::Strange { .. } => Conclusion::failed(self.cut_or_died().await, 502, text),
        }
    }

    /// Reads an error answer. It is Ollama's own, so if it is final the client gets exactly it.
    async fn drain_error(&self, output: &Arc<Output>, mut body: Incoming) -> Conclusion {
        let mut is_kept_whole = true;
        loop {
            match next_data(&mut body, self.settings.idle_limit).await {
                Ok(Some(data)) if output.bytes() <= ERROR_BYTES_MAX => {
                    self.see_first_byte(output);
                    if let Err(fault) = output.push(data).await {
                        return not_kept(&fault);
                    }
                }
                Ok(Some(_)) => {
                    is_kept_whole = false;
                    break;
                }
                Ok(None) => break,
                Err(ended) => return self.ended(ended).await,
            }
        }
        let answered_at_ms = self.now_ms();
        output.measure(|measured| measured.answered_at_ms = Some(answered_at_ms));
        let status = output.head().map_or(502, |head| head.status);
        let text = error_text(&output.in_memory().unwrap_or_default());
        let fault = Fault::Told(told_by_status(status, &text));
        match is_kept_whole {
            true => Conclusion::Answered { fault, text },
            false => Conclusion::failed(fault, status, brief(&text)),
        }
    }

    /// Reads an answer, showing a stream as soon as its first record is known to be no error.
    async fn drain(
        &self,
        output: &Arc<Output>,
        key: Option<&LoadKey>,
        mut body: Incoming,
        kind: AnswerKind,
    ) -> Conclusion {
        let is_raw = kind == AnswerKind::OpaqueStream;
        let has_mark = !matches!(kind, AnswerKind::JsonBody | AnswerKind::Opaque) && !is_raw;
        let mut scanner = AnswerScanner::new(kind);
        let mut framing_over: Option<Pin<Box<Sleep>>> = None;
        let ended = loop {
            let data = tokio::select! {
                data = self.next_of_answer(output, key, &mut body) => data,
                () = passed(framing_over.as_mut()) => Err(Ended::Silent),
            };
            match data {
                Ok(Some(data)) => {
                    self.see_first_byte(output);
                    scanner.feed(&data);
                    output.count_records(scanner.records_before_error());
                    if has_mark && is_decided(scanner.state()) && framing_over.is_none() {
                        output.decide();
                        framing_over = Some(Box::pin(tokio::time::sleep(FRAMING_LIMIT)));
                    }
                    if let Err(fault) = output.push(data).await {
                        return not_kept(&fault);
                    }
                    let is_begun = is_raw
                        || scanner.records_before_error() > 0
                        || *scanner.state() == ScanState::Whole
                        || output.bytes() > HIDDEN_BYTES_MAX;
                    if (has_mark || is_raw) && is_begun && !output.is_shown() {
                        output.show();
                        fail_point::reach("answer.shown");
                    }
                    fail_point::reach("answer.chunk");
                }
                Ok(None) => break None,
                Err(ended) => break Some(ended),
            }
        };
        let is_framed = ended.is_none();
        let (usage, answered_at_ms) = (scanner.usage(), self.now_ms());
        output.measure(|measured| {
            measured.answered_at_ms = Some(answered_at_ms);
            measured.prompt_tokens = usage.prompt_eval_count;
            measured.output_tokens = usage.eval_count;
        });
        // An unstreamed native answer says so itself, however large it is.
        let is_half = scanner.done_member() == Some(false);
        match scanner.finish() {
            Verdict::Error(text) => {
                Conclusion::Told { fault: Fault::Told(told_by_text(&text)), text }
            }
            // The end mark was seen: the answer is whole even if the connection broke after it.
            Verdict::Whole if has_mark || (is_framed && !is_half) => Conclusion::Whole,
            Verdict::Whole | Verdict::Cut | Verdict::Malformed => match ended {
                Some(ended) => self.ended(ended).await,
                None => truncated(),
            },
        }
    }

    /// The next bytes of an answer. Silence counts from the first one: before it, a long prompt may be read behind headers that
    /// something in between has sent early.
    async fn next_of_answer(
        &self,
        output: &Output,
        key: Option<&LoadKey>,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, Ended> {
        if output.bytes() > 0 {
            return next_data(body, self.settings.idle_limit).await;
        }
        self.beginning(output, key, data(body)).await.unwrap_or_else(|why| Err(Ended::Given(why)))
    }

    fn see_first_byte(&self, output: &Output) {
        let now_ms = self.now_ms();
        output.measure(|measured| {
            measured.first_byte_at_ms.get_or_insert(now_ms);
        });
    }

    async fn ended(&self, ended: Ended) -> Conclusion {
        match ended {
            Ended::Silent => silent(self.settings.idle_limit),
            Ended::Given(why) => why,
            Ended::Broken(fault) => {
                let text = format!("the connection to ollama broke inside the answer: {fault}");
                Conclusion::failed(self.cut_or_died().await, 502, text)
            }
        }
    }
}

/// Returns when a time has passed; never without one.
async fn passed(over: Option<&mut Pin<Box<Sleep>>>) {
    match over {
        Some(over) => over.await,
        None => std::future::pending().await,
    }
}

/// Whether the end mark or an error record was seen.
fn is_decided(state: &ScanState) -> bool {
    match state {
        ScanState::Whole | ScanState::Error(_) => true,
        ScanState::Open | ScanState::Malformed => false,
    }
}

fn truncated() -> Conclusion {
    let text = "ollama ended the answer before it was whole".to_owned();
    Conclusion::failed(Fault::Truncated, 502, text)
}

/// Whether the unstreamed answer in the output is a whole value around half an answer. One too large for memory is taken
/// as it is.
fn is_half_kept(claim: &Claim, output: &Output) -> bool {
    output.in_memory().is_some_and(|body| is_half(claim.dialect, &body))
}

fn not_kept(fault: &KeepError) -> Conclusion {
    let kind = match fault {
        KeepError::TooLong(_) => Fault::TooLong,
        KeepError::Disk(_) => Fault::NoRoom,
    };
    Conclusion::failed(kind, 500, fault.to_string())
}

fn request(claim: &Claim, body: Bytes) -> Result<Request<crate::ollama::client::Body>, String> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&claim.path_and_query)
        .body(full_body(body))
        .map_err(|fault| fault.to_string())?;
    for (name, value) in &claim.headers {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes());
        let value = hyper::header::HeaderValue::from_bytes(value);
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    Ok(request)
}

/// Status and end-to-end headers of an answer.
fn head_of(response: &Response<Incoming>) -> Head {
    let mut headers = response.headers().clone();
    strip_hop_by_hop(&mut headers);
    let headers: HeaderList = headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    Head { status: response.status().as_u16(), headers }
}
