//! Model names, read as Ollama reads them, in the one spelling foreman compares.
//!
//! [`LoadKey`], what must be resident to run a job, is in [`load_key`]; what a model file adds to it
//! in [`modelfile`]; which names share a runner in [`aliases`].
//!
//! Pure text: this file never asks an Ollama what it holds. Requests, the inventory and load keys
//! all speak of models in these types; the rules are those of Ollama's `types/model/name.go` and
//! `internal/modelref` (docs/ollama.md, names).

pub mod aliases;
pub mod load_key;
pub mod modelfile;

pub use aliases::Aliases;
pub use load_key::{LoadKey, LoadKeyFault, RunnerOptions};
pub use modelfile::{Modelfile, Part, Weights};

use std::fmt;
use std::sync::Arc;

/// What Ollama puts where a name gives no host, no namespace or no tag.
const DEFAULT_HOST: &str = "registry.ollama.ai";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// Ollama's limits on the parts of a name (`name.go`, `isValidLen`).
const HOST_BYTES_MAX: usize = 350;
const PART_BYTES_MAX: usize = 80;

/// A model's name in the one spelling foreman compares: lower case, shortest form, tag always there.
///
/// Ollama finds models without regard to case, so `LLaMA3`, `library/llama3` and
/// `llama3:latest` are all `llama3:latest` here. What goes upstream is always the client's own
/// spelling, never this one. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

/// Where the client said the model lives, by the `:local`, `:cloud` or `-cloud` ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// No such ending: Ollama decides by what it has.
    Unspecified,
    /// `:local`: never forwarded to the cloud.
    Local,
    /// `:cloud` or a tag ending in `-cloud`: forwarded by Ollama, never on this GPU.
    Cloud,
}

/// A name as a request gives it: the model, and where it is said to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedName {
    /// The name without the source ending.
    pub name: ModelName,
    /// What the ending said.
    pub source: Source,
}

/// Why a name is none; Ollama answers each of these without touching the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameFault {
    /// Empty, or spaces only.
    Missing,
    /// A part is empty, too long, or holds a character that Ollama does not allow there.
    Invalid,
    /// Two source endings, such as `x:cloud:local`.
    TwoSources,
}

impl fmt::Display for NameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "model name is empty",
            Self::Invalid => "model name is malformed",
            Self::TwoSources => "model name says both where it lives and where it does not",
        })
    }
}

impl std::error::Error for NameFault {}

impl ModelName {
    /// Parses a name as a request spells it: spaces around it and one source ending are cut off.
    ///
    /// # Errors
    ///
    /// Any [`NameFault`]: Ollama will refuse the request itself, so it can be forwarded as it is.
    pub fn parse(raw: &str) -> Result<ParsedName, NameFault> {
        let raw = raw.trim();
        if raw.is_empty() {
            return Err(NameFault::Missing);
        }
        let (base, source) = cut_source(raw);
        if source != Source::Unspecified && cut_source(&base).1 != Source::Unspecified {
            return Err(NameFault::TwoSources);
        }
        Ok(ParsedName { name: Self::parse_listed(&base)?, source })
    }

    /// Parses a name as `/api/tags` and `/api/ps` spell it, where `m:20b-cloud` is an ordinary name.
    ///
    /// # Errors
    ///
    /// [`NameFault::Invalid`] when Ollama could not have such a model.
    pub fn parse_listed(listed: &str) -> Result<Self, NameFault> {
        let (path, tag) = match (listed.rfind(':'), listed.rfind('/')) {
            (Some(colon), slash) if slash.is_none_or(|slash| colon > slash) => {
                (&listed[..colon], &listed[colon + 1..])
            }
            _ => (listed, DEFAULT_TAG),
        };
        let (path, model) = path.rsplit_once('/').map_or((None, path), |(p, m)| (Some(p), m));
        let (host, namespace) = match path {
            None => (DEFAULT_HOST, DEFAULT_NAMESPACE),
            Some(path) => path.rsplit_once('/').unwrap_or((DEFAULT_HOST, path)),
        };
        // The scheme says how to pull, not which model it is; no host behind it is the default one.
        let host = match host.split_once("://") {
            Some((_, "")) => DEFAULT_HOST,
            Some((_, host)) => host,
            None => host,
        };
        let is_valid = is_part(host, HOST_BYTES_MAX, b".:")
            && is_part(namespace, PART_BYTES_MAX, b"")
            && is_part(model, PART_BYTES_MAX, b".")
            && is_part(tag, PART_BYTES_MAX, b".");
        if !is_valid {
            return Err(NameFault::Invalid);
        }
        let mut text = if !host.eq_ignore_ascii_case(DEFAULT_HOST) {
            format!("{host}/{namespace}/{model}:{tag}")
        } else if !namespace.eq_ignore_ascii_case(DEFAULT_NAMESPACE) {
            format!("{namespace}/{model}:{tag}")
        } else {
            format!("{model}:{tag}")
        };
        text.make_ascii_lowercase();
        Ok(Self(text.into()))
    }

    /// The canonical text, the same as `Display` writes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Cuts one source ending off, as `parseSourceSuffix` does: only behind the last colon, so
/// `my-cloud-model` and `x-cloud` are ordinary names.
fn cut_source(raw: &str) -> (String, Source) {
    const CLOUD_ENDING: &str = "-cloud";
    let Some((base, ending)) = raw.rsplit_once(':') else {
        return (raw.to_owned(), Source::Unspecified);
    };
    let ending = ending.trim();
    let lower = ending.to_ascii_lowercase();
    match lower.as_str() {
        "cloud" => return (base.to_owned(), Source::Cloud),
        "local" => return (base.to_owned(), Source::Local),
        _ => {}
    }
    match lower.strip_suffix(CLOUD_ENDING) {
        Some(tag) if !tag.contains('/') => (format!("{base}:{tag}"), Source::Cloud),
        _ => (raw.to_owned(), Source::Unspecified),
    }
}

/// Whether Ollama takes `part`: a letter, digit or `_` first, then also `-` and what `also` lists.
fn is_part(part: &str, bytes_max: usize, also: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let bytes = part.as_bytes();
    bytes.len() <= bytes_max
        && bytes.first().is_some_and(is_word)
        && bytes.iter().all(|byte| is_word(byte) || *byte == b'-' || also.contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(raw: &str) -> (String, Source) {
        let parsed = ModelName::parse(raw).unwrap();
        (parsed.name.to_string(), parsed.source)
    }

    #[test]
    fn every_spelling_of_a_model_is_one_name() {
        for raw in [
            "llama3",
            " llama3 ",
            "LLaMA3:Latest",
            "library/llama3",
            "registry.ollama.ai/library/llama3:latest",
            "https://Registry.Ollama.AI/library/llama3",
            "https:///library/llama3",
        ] {
            assert_eq!(parsed(raw), ("llama3:latest".into(), Source::Unspecified), "{raw}");
        }
        assert_eq!(parsed("User/M:Tag").0, "user/m:tag");
        assert_eq!(parsed("hf.co/u/r:Q4_K_M").0, "hf.co/u/r:q4_k_m");
        assert_eq!(parsed("localhost:5000/u/r").0, "localhost:5000/u/r:latest");
    }

    #[test]
    fn source_endings_are_cut_as_ollama_cuts_them() {
        for (raw, name, source) in [
            ("gpt-oss:20b-cloud", "gpt-oss:20b", Source::Cloud),
            ("gpt-oss:20b:cloud", "gpt-oss:20b", Source::Cloud),
            ("gpt-oss:CLOUD", "gpt-oss:latest", Source::Cloud),
            ("qwen3:8b:local", "qwen3:8b", Source::Local),
            ("foo:local", "foo:latest", Source::Local),
            ("foo: local ", "foo:latest", Source::Local),
            ("my-cloud-model", "my-cloud-model:latest", Source::Unspecified),
            ("x-cloud", "x-cloud:latest", Source::Unspecified),
            ("h:5000/u/x-cloud", "h:5000/u/x-cloud:latest", Source::Unspecified),
        ] {
            assert_eq!(parsed(raw), (name.into(), source), "{raw}");
        }
        assert_eq!(ModelName::parse_listed("m:20b-cloud").unwrap().as_str(), "m:20b-cloud");
    }

    #[test]
    fn names_that_ollama_refuses_are_faults() {
        assert_eq!(ModelName::parse(" \t"), Err(NameFault::Missing));
        for raw in ["x:cloud:local", "x:local:local", "x:8b-cloud:cloud"] {
            assert_eq!(ModelName::parse(raw), Err(NameFault::TwoSources), "{raw}");
        }
        let long = "m".repeat(PART_BYTES_MAX + 1);
        for raw in ["m:", ":t", "a/", "/m", "-m", "a.b/m", "m m", "m@sha", "é", "m:a:b", ":cloud"]
            .into_iter()
            .chain(["a/b/c/d", "https://h/m", "m :cloud", "m:-cloud", &long])
        {
            assert_eq!(ModelName::parse(raw), Err(NameFault::Invalid), "{raw}");
        }
        assert!(ModelName::parse(&long[1..]).is_ok());
    }
}
