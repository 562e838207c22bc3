//! Request options merged over Modelfile parameters, and which of them force a reload.

use crate::config::{Capability, Model, StubConfig};
use crate::json::{Json, Object};

/// Ollama's default batch.
const NUM_BATCH: i64 = 512;
const NUM_CTX_MIN: i64 = 4;
const NUM_CTX_VISION_MIN: i64 = 2048;
const NUM_BATCH_EMBEDDING_MAX: i64 = 2048;

const INTEGERS: [&str; 11] = [
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
    "num_ctx",
    "num_batch",
    "num_gpu",
    "num_thread",
    "draft_num_predict",
    "main_gpu",
];
const FLOATS: [&str; 8] = [
    "top_p",
    "min_p",
    "typical_p",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "tfs_z",
];

/// The options a runner is started with: two requests that differ here cannot share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Effective context, after the default, the minimum and the clamp.
    pub num_ctx: i64,
    /// Effective batch.
    pub num_batch: i64,
    /// Layers on the GPU; `None` is automatic and compatible with anything.
    pub num_gpu: Option<i64>,
    /// Threads; 0 is automatic.
    pub num_thread: i64,
    /// Whether to map the file; `None` is automatic.
    pub use_mmap: Option<bool>,
    /// The main GPU; `None` is automatic.
    pub main_gpu: Option<i64>,
    /// Speculative tokens.
    pub draft_num_predict: i64,
    /// The request's `shift` field.
    pub shift: bool,
    /// Adapter files.
    pub adapters: Vec<String>,
    /// Projector files.
    pub projectors: Vec<String>,
}

impl RunnerOptions {
    /// Tells whether a runner with these options must be restarted to serve `wanted`.
    #[must_use]
    pub fn needs_reload(&self, wanted: &Self) -> bool {
        self.num_ctx != wanted.num_ctx
            || self.num_batch != wanted.num_batch
            || (wanted.num_gpu.is_some() && self.num_gpu != wanted.num_gpu)
            || self.num_thread != wanted.num_thread
            || self.use_mmap != wanted.use_mmap
            || self.main_gpu != wanted.main_gpu
            || self.draft_num_predict != wanted.draft_num_predict
            || self.shift != wanted.shift
            || self.adapters != wanted.adapters
            || self.projectors != wanted.projectors
    }
}

/// Everything the stub needs from a request's options.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) runner: RunnerOptions,
    /// Token limit; `None` when absent or negative.
    pub(crate) num_predict: Option<u32>,
    pub(crate) seed: Option<i64>,
}

/// Merges defaults, Modelfile and request, in that order.
///
/// # Errors
/// Ollama's text for an option of the wrong type; it answers 500 with it.
pub(crate) fn merge(
    config: &StubConfig,
    model: &Model,
    request: Option<&Object>,
    shift: Option<bool>,
) -> Result<Options, String> {
    check_types(request)?;
    let int = |key: &str| integer(model, request, key);
    let clamp_max = i64::from(model.context_length);
    let context_min = if model.can(Capability::Vision) { NUM_CTX_VISION_MIN } else { NUM_CTX_MIN };
    let num_ctx = int("num_ctx")
        .unwrap_or(i64::from(config.default_num_ctx))
        .max(context_min)
        .min(clamp_max.max(context_min));
    let default_num_batch = if model.can(Capability::Embedding) {
        num_ctx.min(NUM_BATCH_EMBEDDING_MAX)
    } else {
        NUM_BATCH
    };
    let num_batch = int("num_batch").unwrap_or(default_num_batch);
    Ok(Options {
        runner: RunnerOptions {
            num_ctx,
            num_batch,
            num_gpu: int("num_gpu").filter(|layers| *layers >= 0),
            num_thread: int("num_thread").unwrap_or(0),
            use_mmap: boolean(model, request, "use_mmap"),
            main_gpu: int("main_gpu"),
            draft_num_predict: int("draft_num_predict").unwrap_or(0),
            shift: shift.unwrap_or(model.family != "deepseek2"),
            adapters: model.adapters.clone(),
            projectors: model.projectors.clone(),
        },
        num_predict: int("num_predict").and_then(|limit| u32::try_from(limit).ok()),
        seed: int("seed"),
    })
}

fn check_types(request: Option<&Object>) -> Result<(), String> {
    let Some(options) = request else { return Ok(()) };
    for (key, value) in options.fields() {
        let wanted = match (key, value) {
            (_, Json::Null) => continue,
            (key, value) if INTEGERS.contains(&key) && !matches!(value, Json::Number(_)) => {
                "integer"
            }
            (key, value) if FLOATS.contains(&key) && !matches!(value, Json::Number(_)) => "float32",
            ("use_mmap", value) if !matches!(value, Json::Bool(_)) => "boolean",
            ("stop", value) if !matches!(value, Json::Array(_)) => "array",
            _ => continue,
        };
        return Err(format!("option \"{key}\" must be of type {wanted}"));
    }
    Ok(())
}

/// Option names are exact, unlike request fields: they are keys of a map, not of a struct.
fn exact<'a>(request: Option<&'a Object>, key: &str) -> Option<&'a Json> {
    request?.fields().filter(|(name, _)| *name == key).last().map(|(_, value)| value)
}

fn integer(model: &Model, request: Option<&Object>, key: &str) -> Option<i64> {
    match exact(request, key) {
        Some(Json::Number(digits)) => {
            digits.split(['.', 'e', 'E']).next().and_then(|whole| whole.parse().ok())
        }
        _ => parameter(model, key)?.parse().ok(),
    }
}

fn boolean(model: &Model, request: Option<&Object>, key: &str) -> Option<bool> {
    match exact(request, key) {
        Some(Json::Bool(value)) => Some(*value),
        _ => parameter(model, key)?.parse().ok(),
    }
}

fn parameter<'a>(model: &'a Model, key: &str) -> Option<&'a str> {
    model.parameters.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;

    fn merged(model: &Model, options: &str, shift: Option<bool>) -> Options {
        let value = decode(options.as_bytes()).unwrap();
        merge(&StubConfig::default(), model, value.as_object(), shift).unwrap()
    }

    /// The rows of the measured `needsReload` table: loaded with the first, asked with the second.
    #[test]
    fn only_runner_options_force_a_reload() {
        let plain = Model::new("a");
        let small = Model { context_length: 2048, ..Model::new("small") };
        for (model, loaded, wanted, expected) in [
            (&plain, "{}", "{}", false),
            (&plain, "{}", r#"{"num_ctx":8192}"#, true),
            (&plain, r#"{"num_ctx":8192}"#, r#"{"num_ctx":2048}"#, true),
            (&plain, r#"{"num_ctx":8192}"#, "{}", true),
            (&plain, "{}", r#"{"num_ctx":4096}"#, false),
            (&small, r#"{"num_ctx":8192}"#, r#"{"num_ctx":9000}"#, false),
            (&plain, "{}", r#"{"num_batch":1024}"#, true),
            (&plain, "{}", r#"{"num_gpu":0}"#, true),
            (&plain, r#"{"num_gpu":7}"#, "{}", false),
            (&plain, r#"{"num_gpu":7}"#, r#"{"num_gpu":-1}"#, false),
            (&plain, "{}", r#"{"num_thread":2}"#, true),
            (&plain, "{}", r#"{"use_mmap":false}"#, true),
            (&plain, "{}", r#"{"main_gpu":0}"#, true),
            (&plain, "{}", r#"{"draft_num_predict":2}"#, true),
            (&plain, "{}", r#"{"temperature":0.5,"seed":3,"num_predict":9,"stop":["x"]}"#, false),
        ] {
            let loaded_options = merged(model, loaded, None).runner;
            let wanted_options = merged(model, wanted, None).runner;
            assert_eq!(loaded_options.needs_reload(&wanted_options), expected, "{loaded} {wanted}");
        }
        let shifted = merged(&plain, "{}", Some(false)).runner;
        assert!(merged(&plain, "{}", None).runner.needs_reload(&shifted));
        for other in [plain.clone().adapter("x"), plain.clone().projector("x")] {
            assert!(
                merged(&plain, "{}", None).runner.needs_reload(&merged(&other, "{}", None).runner)
            );
        }
        let embedder = Model::embedding("e");
        assert_eq!(merged(&embedder, "{}", None).runner.num_batch, 2048);
        assert_eq!(merged(&embedder, r#"{"num_batch":64}"#, None).runner.num_batch, 64);
        let with_file = plain.clone().parameter("num_ctx", "2048");
        assert_eq!(merged(&with_file, "{}", None).runner.num_ctx, 2048);
        assert_eq!(merged(&with_file, r#"{"num_ctx":512}"#, None).runner.num_ctx, 512);
    }

    #[test]
    fn a_wrong_option_type_is_refused_in_ollama_s_words() {
        let value = decode(br#"{"num_ctx":"big"}"#).unwrap();
        let text =
            merge(&StubConfig::default(), &Model::new("a"), value.as_object(), None).unwrap_err();
        assert_eq!(text, "option \"num_ctx\" must be of type integer");
    }
}
