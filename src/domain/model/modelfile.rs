//! What a model's file says about its runner, and the load key that follows for a request.
//!
//! Ollama starts a runner with the options of the model file, and those of the request laid over
//! them; a runner belongs to the weights, not to the name (docs/ollama.md, what forces a reload).
//! Pure values: reading a file's text is `ollama`'s, choosing among names is [`aliases`](super::aliases)'.

use super::{LoadKey, ModelName, RunnerOptions};

/// Ollama raises the context of a model with vision to this before it compares (`sched.go`, `getRunner`).
const NUM_CTX_VISION_MIN: i64 = 2048;

/// Asks for the number of layers that Ollama finds itself, against a model file that gives one.
const NUM_GPU_AUTOMATIC: i64 = -1;

/// Asks for the number of threads that Ollama finds itself, against a model file that gives one.
const NUM_THREAD_AUTOMATIC: i64 = 0;

/// One file that a runner is started with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    /// The weights proper, and behind them projectors; the digest of the blob.
    Model(String),
    /// An adapter; the digest of its blob, or its path.
    Adapter(String),
    /// A draft model; the digest of its blob, or its path.
    Draft(String),
    /// All that is known is the digest of the manifest: equal manifests are equal models.
    Manifest(String),
}

/// All files that a runner is started with, in the order of the model file. Names with equal weights
/// can share a runner; names that share only the first part push each other out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Weights(pub Vec<Part>);

/// What of a model's file matters to its runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modelfile {
    /// The files it runs on.
    pub weights: Weights,
    /// Its `PARAMETER`s, as given; `shift` is none of them.
    pub options: RunnerOptions,
    /// Whether the context shifts when the request does not say.
    pub shifts_by_default: bool,
    /// Whether it takes images: then its context has a higher minimum.
    pub has_vision: bool,
    /// The context its weights were trained with: Ollama clamps a larger one to it before it compares. `None` where unknown.
    pub trained_context: Option<i64>,
}

impl Modelfile {
    /// Whether a runner loaded under a name with this file can serve every job of a name with
    /// `other`: the same files and defaults, and no option that `other` leaves open, since most
    /// options cannot be un-said in a request.
    #[must_use]
    pub fn stands_for(&self, other: &Self) -> bool {
        let known = other.options.normalised();
        self.weights == other.weights
            && self.shifts_by_default == other.shifts_by_default
            && self.has_vision == other.has_vision
            && self.options.normalised().given().all(|name| known.given().any(|it| it == name))
    }

    /// The key of a request to a name with this file, to be loaded as `representative`, whose file
    /// is `loaded`. Every option that counts is in it, so it is the same for all names it serves.
    ///
    /// `loaded` must stand for this file ([`Self::stands_for`]).
    pub(super) fn load_key(
        &self,
        representative: &ModelName,
        loaded: &Self,
        asked: RunnerOptions,
    ) -> LoadKey {
        let options = loaded.over_the_file(self.effective(asked));
        LoadKey { model: representative.clone(), options }
    }

    /// What a request to a name with this file must say to get a runner with exactly these options: where the file gives
    /// a number and none is wanted, automatic is asked for.
    pub(super) fn over_the_file(&self, wanted: RunnerOptions) -> RunnerOptions {
        let file = self.options.normalised();
        let automatic = |file: Option<i64>, value| file.map(|_| value);
        RunnerOptions {
            num_gpu: wanted.num_gpu.or(automatic(file.num_gpu, NUM_GPU_AUTOMATIC)),
            num_thread: wanted.num_thread.or(automatic(file.num_thread, NUM_THREAD_AUTOMATIC)),
            ..wanted
        }
    }

    /// The options of the runner that Ollama would start, `None` where it takes its default.
    fn effective(&self, asked: RunnerOptions) -> RunnerOptions {
        let merged = self.options.overlaid(asked);
        let num_ctx_min = if self.has_vision { NUM_CTX_VISION_MIN } else { i64::MIN };
        let num_ctx_max = self.trained_context.map_or(i64::MAX, |tokens| tokens.max(num_ctx_min));
        let normalised = merged.normalised();
        RunnerOptions {
            num_ctx: normalised.num_ctx.map(|tokens| tokens.max(num_ctx_min).min(num_ctx_max)),
            shift: merged.shift.filter(|shift| *shift != self.shifts_by_default),
            ..normalised
        }
    }
}
