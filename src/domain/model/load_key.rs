//! Load keys: what must be resident for a job to run, as Ollama's `needsReload` compares it.
//!
//! Pure comparison and text: this file never asks an Ollama what it holds, and it knows nothing of
//! JSON. The peek makes the options, the scheduler compares the keys, the store keeps their text
//! (docs/ollama.md, what forces a reload).

use super::ModelName;
use std::fmt;
use std::str::FromStr;

/// Ollama raises a smaller context to this before it compares (`sched.go`, `getRunner`).
const NUM_CTX_MIN: i64 = 4;

/// The runner options whose change makes Ollama restart a runner; `None` means "not given".
///
/// What the environment adds is the same for every request, so equal options mean an equal runner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunnerOptions {
    /// Context length in tokens; at least 4 once normalised.
    pub num_ctx: Option<i64>,
    /// Batch size in tokens.
    pub num_batch: Option<i64>,
    /// Layers on the GPU; 0 runs on the CPU.
    pub num_gpu: Option<i64>,
    /// CPU threads.
    pub num_thread: Option<i64>,
    /// Index of the main GPU.
    pub main_gpu: Option<i64>,
    /// Tokens a draft model predicts ahead.
    pub draft_num_predict: Option<i64>,
    /// Whether the weights are mapped from the file.
    pub use_mmap: Option<bool>,
    /// The request's `shift` member: whether the context may shift. Not in `options` on the wire.
    pub shift: Option<bool>,
}

impl RunnerOptions {
    /// Brings spellings that Ollama takes for the same into one.
    ///
    /// Ollama's own defaults are assumed. A model whose file says otherwise gets its keys from
    /// [`Modelfile`](super::Modelfile); for one whose file is not known the price is a reload that
    /// foreman did not plan, never a wrong answer.
    #[must_use]
    pub fn normalised(self) -> Self {
        Self {
            num_ctx: self.num_ctx.map(|tokens| tokens.max(NUM_CTX_MIN)),
            num_gpu: self.num_gpu.filter(|layers| *layers >= 0),
            num_thread: self.num_thread.filter(|threads| *threads != 0),
            shift: self.shift.filter(|shift| !shift),
            ..self
        }
    }

    /// These options, and where `asked` gives one, that instead: Ollama lays the options of a
    /// request over those of the model file.
    #[must_use]
    pub fn overlaid(self, asked: Self) -> Self {
        Self {
            num_ctx: asked.num_ctx.or(self.num_ctx),
            num_batch: asked.num_batch.or(self.num_batch),
            num_gpu: asked.num_gpu.or(self.num_gpu),
            num_thread: asked.num_thread.or(self.num_thread),
            main_gpu: asked.main_gpu.or(self.main_gpu),
            draft_num_predict: asked.draft_num_predict.or(self.draft_num_predict),
            use_mmap: asked.use_mmap.or(self.use_mmap),
            shift: asked.shift.or(self.shift),
        }
    }

    /// The names of the options that are given, in the order of the key's text.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        let numbers = self.numbers().map(|(name, value)| value.map(|_| name));
        let switches = self.switches().map(|(name, value)| value.map(|_| name));
        numbers.into_iter().chain(switches).flatten()
    }

    /// Sets one option from its text, as [`LoadKey`] and a model file write it.
    ///
    /// `None` for a name that is no runner option or a value of the wrong type; nothing is set then.
    pub fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let number = match name {
            "num_ctx" => &mut self.num_ctx,
            "num_batch" => &mut self.num_batch,
            "num_gpu" => &mut self.num_gpu,
            "num_thread" => &mut self.num_thread,
            "main_gpu" => &mut self.main_gpu,
            "draft_num_predict" => &mut self.draft_num_predict,
            "use_mmap" => return value.parse().ok().map(|value| self.use_mmap = Some(value)),
            "shift" => return value.parse().ok().map(|value| self.shift = Some(value)),
            _ => return None,
        };
        *number = Some(value.parse().ok()?);
        Some(())
    }

    fn numbers(&self) -> [(&'static str, Option<i64>); 6] {
        [
            ("num_ctx", self.num_ctx),
            ("num_batch", self.num_batch),
            ("num_gpu", self.num_gpu),
            ("num_thread", self.num_thread),
            ("main_gpu", self.main_gpu),
            ("draft_num_predict", self.draft_num_predict),
        ]
    }

    fn switches(&self) -> [(&'static str, Option<bool>); 2] {
        [("use_mmap", self.use_mmap), ("shift", self.shift)]
    }
}

/// What must be resident to run a job: the model and the options of its runner, normalised.
///
/// Its text (`llama3:latest num_ctx=8192 shift=false`) is the key in the database, in logs and in
/// metrics: one line, options in a fixed order, and it parses back to an equal key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadKey {
    /// The model to load.
    pub model: ModelName,
    /// The options to load it with; normalised, or equal runners would get different keys.
    pub options: RunnerOptions,
}

impl LoadKey {
    /// Makes the key of a model whose file is not known, with `options`, which are normalised here.
    #[must_use]
    pub fn new(model: ModelName, options: RunnerOptions) -> Self {
        Self { model, options: options.normalised() }
    }

    /// Whether a runner loaded with exactly this key serves `wanted` without a reload.
    ///
    /// One direction only: a request without `num_gpu`, or with a negative one, takes a runner with
    /// any, but a request with `num_gpu` does not take a runner without it.
    #[must_use]
    pub fn serves(&self, wanted: &Self) -> bool {
        let mut needed = wanted.options;
        if needed.num_gpu.is_none_or(|layers| layers < 0) {
            needed.num_gpu = self.options.num_gpu;
        }
        self.model == wanted.model && self.options == needed
    }
}

impl LoadKey {
    /// The keys that foreman makes and that this one [serves](Self::serves): itself, and the same without a wish for a number
    /// of layers, or with one for as many as Ollama finds.
    pub fn served(&self) -> impl Iterator<Item = LoadKey> + '_ {
        let with = |num_gpu| {
            let options = RunnerOptions { num_gpu, ..self.options };
            LoadKey { model: self.model.clone(), options }
        };
        [self.options.num_gpu, None, Some(-1)].into_iter().map(with)
    }
}

impl fmt::Display for LoadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.model)?;
        for (name, value) in self.options.numbers() {
            value.map_or(Ok(()), |value| write!(f, " {name}={value}"))?;
        }
        for (name, value) in self.options.switches() {
            value.map_or(Ok(()), |value| write!(f, " {name}={value}"))?;
        }
        Ok(())
    }
}

/// A text that is not the text of any [`LoadKey`], kept for the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadKeyFault(String);

impl fmt::Display for LoadKeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a load key: {:?}", self.0)
    }
}

impl std::error::Error for LoadKeyFault {}

impl FromStr for LoadKey {
    type Err = LoadKeyFault;

    /// Accepts exactly what `Display` writes, so that one key never has two texts in the database.
    fn from_str(text: &str) -> Result<Self, LoadKeyFault> {
        let parse = || {
            let mut words = text.split(' ');
            let model = ModelName::parse_listed(words.next()?).ok()?;
            let mut options = RunnerOptions::default();
            for word in words {
                let (name, value) = word.split_once('=')?;
                options.set(name, value)?;
            }
            // Not normalised again: a stored key is what it was, even if the rules have moved on.
            Some(Self { model, options })
        };
        parse().filter(|key| key.to_string() == text).ok_or_else(|| LoadKeyFault(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> LoadKey {
        text.parse().unwrap()
    }

    #[test]
    fn options_that_ollama_takes_for_absent_make_no_new_key() {
        let options = RunnerOptions {
            num_ctx: Some(-1),
            num_gpu: Some(-1),
            num_thread: Some(0),
            shift: Some(true),
            ..RunnerOptions::default()
        };
        let name = ModelName::parse("m").unwrap().name;
        assert_eq!(LoadKey::new(name, options).to_string(), "m:latest num_ctx=4");
    }

    #[test]
    fn a_runner_serves_equal_options_and_any_num_gpu_when_none_is_wanted() {
        let bare = key("m:latest");
        assert!(bare.serves(&bare));
        assert!(key("m:latest num_gpu=0").serves(&bare));
        assert!(!bare.serves(&key("m:latest num_gpu=0")));
        assert!(key("m:latest num_gpu=7").serves(&key("m:latest num_gpu=-1")));
        assert!(!key("m:latest num_gpu=-1").serves(&key("m:latest num_gpu=7")));
        for other in ["n:latest", "m:latest num_ctx=8192", "m:latest shift=false"] {
            assert!(!bare.serves(&key(other)) && !key(other).serves(&bare), "{other}");
        }
    }

    #[test]
    fn only_the_written_form_of_a_key_is_read() {
        for text in ["", "m", "M:latest", "m:latest ", "m:latest  shift=false", "m:latest a=1"]
            .into_iter()
            .chain(["m:latest num_ctx=+1", "m:latest num_ctx=x", "m:latest shift=True"])
            .chain(["m:latest shift=false num_ctx=8", "m:latest num_ctx=8 num_ctx=8"])
        {
            assert!(text.parse::<LoadKey>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn keys_round_trip_through_their_text(
            name in "([a-z_][a-z0-9.:-]{0,9}/)?([A-Z_][a-z0-9-]{0,9}/)?[a-z0-9_][a-zA-Z0-9._-]{0,9}(:[a-z0-9][a-z0-9._-]{0,9})?",
            numbers in any::<[Option<i64>; 6]>(),
            switches in any::<[Option<bool>; 2]>(),
        ) {
            let Ok(model) = ModelName::parse_listed(&name) else { return Ok(()) };
            prop_assert_eq!(&ModelName::parse_listed(model.as_str()).unwrap(), &model);
            let [num_ctx, num_batch, num_gpu, num_thread, main_gpu, draft_num_predict] = numbers;
            let [use_mmap, shift] = switches;
            let options = RunnerOptions {
                num_ctx, num_batch, num_gpu, num_thread, main_gpu, draft_num_predict, use_mmap, shift,
            };
            for key in [LoadKey::new(model.clone(), options), LoadKey { model, options }] {
                prop_assert_eq!(key.to_string().parse::<LoadKey>().unwrap(), key.clone());
                prop_assert!(key.serves(&key));
            }
        }
    }
}
