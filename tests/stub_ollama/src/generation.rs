//! One answer in the making: from the scheduler's grant to the last token.
//!
//! A `Session` holds the runner and one of its slots; dropping it, as a disconnect does, gives
//! both back at once. It produces `Piece`s; the routes give them their shape.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use crate::board::{Gauge, GaugeGuard};
use crate::config::{Capability, Model};
use crate::faults::{Midway, Plan};
use crate::json::{Json, Object};
use crate::options::{self, Options};
use crate::routes::Failure;
use crate::runner::RunnerUse;
use crate::scheduler::{ScheduleError, Wish};
use crate::vocabulary::{prompt_tokens, tokens};
use crate::world::World;

/// Longest answer, whatever the request says: it is made in memory.
const TOKENS_MAX: u32 = 200_000;
/// Tokens of a thinking stream.
const THINKING_TOKENS: u32 = 3;
/// What every duration is when the clock is frozen.
const FIXED_NS: u64 = 1_000_000;
/// Ollama's text for a runner that died in the middle.
const RUNNER_LOST: &str = "an error was encountered while running the model: unexpected EOF";
/// Ollama's text for a runner that died before it answered.
const RUNNER_CRASHED: &str = "llama-server process has terminated: signal: segmentation fault";

/// What a request wants generated.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) model: Arc<Model>,
    /// The prompt or the last message.
    pub(crate) prompt: String,
    pub(crate) options: Option<Object>,
    pub(crate) shift: Option<bool>,
    pub(crate) keep_alive_ns: Option<i64>,
    /// Token limit of the `/v1` shapes; overrides the options.
    pub(crate) tokens_max: Option<u32>,
    /// Seed of the `/v1` shapes; overrides the options.
    pub(crate) seed: Option<i64>,
    pub(crate) thinks: bool,
    /// The function to call instead of answering.
    pub(crate) tool: Option<String>,
    pub(crate) format: Option<Json>,
    pub(crate) plan: Plan,
}

impl Job {
    /// Creates a job with nothing but a prompt.
    pub(crate) fn new(model: Arc<Model>, prompt: String, plan: Plan) -> Self {
        Self {
            model,
            prompt,
            plan,
            options: None,
            shift: None,
            keep_alive_ns: None,
            tokens_max: None,
            seed: None,
            thinks: false,
            tool: None,
            format: None,
        }
    }

    fn options(&self, world: &World) -> Result<Options, Failure> {
        options::merge(&world.config, &self.model, self.options.as_ref(), self.shift)
            .map_err(|text| Failure::new(500, text))
    }
}

/// One step of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Thinking(String),
    Text(String),
    ToolCall(ToolCall),
    /// The regular end.
    Done(Summary),
    /// A scripted or real failure in the middle; holds the text.
    Failed(String),
    /// A clean end without the final record.
    Ended,
}

impl Piece {
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed(_) | Self::Ended)
    }
}

/// A function call, made up but deterministic.
#[derive(Clone, Debug)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: Object,
}

/// The figures of the final record; durations in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) reason: &'static str,
    pub(crate) total_ns: u64,
    pub(crate) load_ns: u64,
    pub(crate) prompt_tokens: u32,
    pub(crate) prompt_ns: u64,
    pub(crate) answer_tokens: u32,
    pub(crate) answer_ns: u64,
}

/// A runner in use, and what its use has cost so far.
pub(crate) struct Grant {
    /// `None` for remote models, which have no runner.
    pub(crate) runner: Option<RunnerUse>,
    asked_at: Duration,
    granted_at: Duration,
    _gpu: Option<GaugeGuard>,
}

/// Asks the scheduler for the job's model.
pub(crate) async fn schedule(world: &Arc<World>, job: &Job) -> Result<Grant, Failure> {
    let asked_at = world.clock.elapsed();
    if job.model.remote_host.is_some() {
        return Ok(Grant { runner: None, asked_at, granted_at: asked_at, _gpu: None });
    }
    let options = job.options(world)?;
    let gpu = world.board.enter(Gauge::Gpu);
    let wish = Wish {
        model: Arc::clone(&job.model),
        options: options.runner,
        keep_alive_ns: job.keep_alive_ns,
    };
    let runner = world.scheduler.acquire(wish).await.map_err(refused)?;
    let granted_at = world.clock.elapsed();
    if let Some(refusal) = &job.plan.refusal_after {
        return Err(Failure::scripted(refusal));
    }
    Ok(Grant { runner: Some(runner), asked_at, granted_at, _gpu: Some(gpu) })
}

fn refused(error: ScheduleError) -> Failure {
    match error {
        ScheduleError::Busy => {
            Failure::new(503, "server busy, please try again.  maximum pending requests exceeded")
        }
        ScheduleError::Load(text) => Failure::new(500, text),
        ScheduleError::Closed => Failure::new(503, "the stub is shutting down"),
    }
}

/// A slot of a runner; `None` without a runner.
pub(crate) async fn slot(grant: &Grant) -> Result<Option<OwnedSemaphorePermit>, Failure> {
    let Some(runner) = &grant.runner else { return Ok(None) };
    tokio::select! {
        biased;
        () = runner.died.cancelled() => Err(Failure::new(500, RUNNER_CRASHED)),
        slot = Arc::clone(&runner.slots).acquire_owned() => {
            slot.map(Some).map_err(|_| Failure::new(500, RUNNER_CRASHED))
        }
    }
}

/// What holds the runner's slot while tokens are made.
struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
    _generating: GaugeGuard,
}

/// One generation.
pub(crate) struct Session {
    world: Arc<World>,
    job: Job,
    grant: Grant,
    slot: Option<Slot>,
    script: VecDeque<Piece>,
    made: u32,
    reason: &'static str,
    first_token_at: Option<Duration>,
}

impl Session {
    /// Waits for the runner and a slot, then prepares the answer.
    pub(crate) async fn open(world: &Arc<World>, job: Job) -> Result<Self, Failure> {
        let options = job.options(world)?;
        let grant = schedule(world, &job).await?;
        check_format(job.format.as_ref())?;
        let permit = slot(&grant).await?;
        let generating = world.board.enter(Gauge::Generation(job.model.name.clone()));
        let (script, reason) = script(world, &job, &options);
        Ok(Self {
            world: Arc::clone(world),
            job,
            grant,
            slot: Some(Slot { _permit: permit, _generating: generating }),
            script,
            made: 0,
            reason,
            first_token_at: None,
        })
    }

    /// Makes the next piece. Dropping the future loses nothing but time.
    pub(crate) async fn next(&mut self) -> Piece {
        if let Some((chunks, midway)) = &self.job.plan.midway
            && *chunks == self.made
        {
            let midway = midway.clone();
            return self.interrupt(midway).await;
        }
        if self.script.is_empty() {
            self.slot = None;
            return Piece::Done(self.summary());
        }
        let first = if self.made == 0 { self.world.config.prompt_time } else { Duration::ZERO };
        let pause = async {
            let time = first + self.world.config.token_time;
            // Even a sleep of nothing takes a tick of the timer: large answers would take minutes.
            if !time.is_zero() {
                sleep(time).await;
            }
            self.world.faults.tokens.pass().await;
        };
        if let Some(runner) = &self.grant.runner {
            tokio::select! {
                biased;
                () = runner.died.cancelled() => return self.lost(),
                () = pause => {}
            }
        } else {
            pause.await;
        }
        self.first_token_at.get_or_insert(self.world.clock.elapsed());
        self.made += 1;
        self.script.pop_front().unwrap_or(Piece::Ended)
    }

    async fn interrupt(&mut self, midway: Midway) -> Piece {
        match midway {
            Midway::Hang => std::future::pending().await,
            Midway::End => {
                self.slot = None;
                Piece::Ended
            }
            Midway::Fail(text) => {
                self.slot = None;
                Piece::Failed(text.unwrap_or_else(|| RUNNER_LOST.to_owned()))
            }
            Midway::Kill => {
                if let Some(runner) = &self.grant.runner {
                    runner.kill();
                }
                self.lost()
            }
        }
    }

    fn lost(&mut self) -> Piece {
        self.slot = None;
        Piece::Failed(if self.made == 0 { RUNNER_CRASHED } else { RUNNER_LOST }.to_owned())
    }

    fn summary(&self) -> Summary {
        let now = self.world.clock.elapsed();
        let first = self.first_token_at.unwrap_or(now);
        let nanos = |from: Duration, to: Duration| {
            if self.world.clock.is_fixed() {
                return FIXED_NS;
            }
            u64::try_from(to.saturating_sub(from).as_nanos()).unwrap_or(u64::MAX).max(1000)
        };
        Summary {
            reason: self.reason,
            total_ns: nanos(self.grant.asked_at, now),
            load_ns: nanos(self.grant.asked_at, self.grant.granted_at),
            prompt_tokens: prompt_tokens(&self.job.prompt),
            prompt_ns: nanos(self.grant.granted_at, first),
            answer_tokens: self.made,
            answer_ns: nanos(first, now),
        }
    }
}

/// Writes the whole answer down before the first token is sent.
fn script(world: &World, job: &Job, options: &Options) -> (VecDeque<Piece>, &'static str) {
    let limit = job.tokens_max.or(options.num_predict);
    let count = limit.unwrap_or(world.config.default_tokens).min(TOKENS_MAX);
    let seed = job.seed.or(options.seed);
    let mut pieces = VecDeque::new();
    if job.thinks {
        let thoughts =
            tokens(&job.model.name, &format!("think {}", job.prompt), seed, THINKING_TOKENS);
        pieces.extend(thoughts.into_iter().map(Piece::Thinking));
    }
    if let Some(name) = &job.tool {
        let id = format!("call_{}", &crate::hash::hex64(&job.prompt)[..8]);
        let arguments = Object::new().with("input", job.prompt.as_str());
        pieces.push_back(Piece::ToolCall(ToolCall { id, name: name.clone(), arguments }));
        return (pieces, "stop");
    }
    let words = tokens(&job.model.name, &job.prompt, seed, count);
    if job.format.is_some() {
        // Only the words can need escaping; the frame is plain.
        pieces.push_back(Piece::Text("{\"answer\":\"".to_owned()));
        pieces.extend(words.into_iter().map(|word| Piece::Text(word.replace('"', "'"))));
        pieces.push_back(Piece::Text("\"}".to_owned()));
        return (pieces, "stop");
    }
    pieces.extend(words.into_iter().map(Piece::Text));
    (pieces, if limit.is_some() { "length" } else { "stop" })
}

/// Refuses a `format` that is neither `"json"` nor a schema, after the load as Ollama does.
fn check_format(format: Option<&Json>) -> Result<(), Failure> {
    match format {
        None | Some(Json::Object(_)) => Ok(()),
        Some(Json::Text(word)) if word == "json" => Ok(()),
        Some(other) => Err(Failure::new(
            500,
            format!(
                "invalid format: {}; expected \"json\" or a valid JSON Schema object",
                crate::fields::go_quote(&other.encode())
            ),
        )),
    }
}

/// A whole answer, for the shapes that do not stream.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) text: String,
    pub(crate) thinking: Option<String>,
    pub(crate) tool_call: Option<ToolCall>,
    /// `None` when the answer ended without its final record.
    pub(crate) summary: Option<Summary>,
}

impl Collected {
    /// The same as pieces, for what streams it after all.
    pub(crate) fn into_pieces(self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        pieces.extend(self.thinking.map(Piece::Thinking));
        pieces.push(Piece::Text(self.text));
        pieces.push(self.summary.map_or(Piece::Ended, Piece::Done));
        pieces
    }
}

/// Runs a session to its end.
pub(crate) async fn collect(mut session: Session) -> Result<Collected, Failure> {
    let mut collected = Collected::default();
    loop {
        match session.next().await {
            Piece::Thinking(text) => {
                collected.thinking.get_or_insert_default().push_str(&text);
            }
            Piece::Text(text) => collected.text.push_str(&text),
            Piece::ToolCall(call) => collected.tool_call = Some(call),
            Piece::Done(summary) => {
                collected.summary = Some(summary);
                return Ok(collected);
            }
            Piece::Failed(text) => return Err(Failure::new(500, text)),
            Piece::Ended => return Ok(collected),
        }
    }
}

/// Computes embeddings' time and residency; the caller makes the vectors.
pub(crate) async fn embed(world: &Arc<World>, job: &Job, has_input: bool) -> Result<u64, Failure> {
    let grant = schedule(world, job).await?;
    if has_input {
        if !job.model.can(Capability::Embedding) {
            let text = "This server does not support embeddings. Start it with `--embeddings`";
            return Err(Failure::new(501, text));
        }
        let _permit = slot(&grant).await?;
        let _running = world.board.enter(Gauge::Embed);
        match &job.plan.midway {
            None => {
                sleep(world.config.embed_time).await;
                world.faults.tokens.pass().await;
            }
            Some((_, Midway::Hang | Midway::End)) => std::future::pending().await,
            Some((_, Midway::Fail(text))) => {
                let text = text.clone().unwrap_or_else(|| RUNNER_LOST.to_owned());
                return Err(Failure::crash(text));
            }
            Some((_, Midway::Kill)) => {
                if let Some(runner) = &grant.runner {
                    runner.kill();
                }
                return Err(Failure::crash(RUNNER_CRASHED.to_owned()));
            }
        }
    }
    let load = grant.granted_at.saturating_sub(grant.asked_at);
    if world.clock.is_fixed() {
        return Ok(FIXED_NS);
    }
    Ok(u64::try_from(load.as_nanos()).unwrap_or(u64::MAX).max(1000))
}
