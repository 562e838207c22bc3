//! Model names, resolved as Ollama resolves them (defaults, case, source suffixes).

use std::fmt;

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";
const PART_CHARS_MAX: usize = 80;
const HOST_CHARS_MAX: usize = 350;

/// A full model name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

/// Where a name says its model lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Unspecified,
    Local,
    Cloud,
}

/// Why a name cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NameError {
    Invalid,
    /// Both `:local` and `:cloud`; holds the name.
    Contradictory(String),
}

impl Name {
    /// Parses a name without a source suffix.
    pub(crate) fn parse(raw: &str) -> Result<Self, NameError> {
        let raw = raw.trim();
        let raw = raw.split_once("://").map_or(raw, |(_, rest)| rest);
        let slash = raw.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match raw[slash..].rfind(':') {
            Some(colon) => (&raw[..slash + colon], &raw[slash + colon + 1..]),
            None => (raw, TAG),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (host, namespace, model) = match parts[..] {
            [model] => (HOST, NAMESPACE, model),
            [namespace, model] => (HOST, namespace, model),
            [host, namespace, model] => (host, namespace, model),
            _ => return Err(NameError::Invalid),
        };
        let is_valid = is_part(host, HOST_CHARS_MAX, ".:")
            && is_part(namespace, PART_CHARS_MAX, "")
            && is_part(model, PART_CHARS_MAX, ".")
            && is_part(tag, PART_CHARS_MAX, ".");
        if !is_valid {
            return Err(NameError::Invalid);
        }
        Ok(Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// Parses a name after taking its `:cloud`, `-cloud` or `:local` suffix off.
    pub(crate) fn parse_with_source(raw: &str) -> Result<(Self, Source), NameError> {
        let raw = raw.trim();
        let (rest, source) = take_suffix(raw);
        if source != Source::Unspecified {
            let (_, again) = take_suffix(rest);
            if again != Source::Unspecified && again != source {
                return Err(NameError::Contradictory(raw.to_owned()));
            }
        }
        Ok((Self::parse(rest)?, source))
    }

    /// Returns the form names are compared by: every part, lower case.
    pub(crate) fn key(&self) -> String {
        self.full().to_lowercase()
    }

    /// Returns `host/namespace/model:tag`.
    pub(crate) fn full(&self) -> String {
        format!("{}/{}/{}:{}", self.host, self.namespace, self.model, self.tag)
    }
}

/// The shortest display form, with the tag always shown.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.host.eq_ignore_ascii_case(HOST) {
            write!(f, "{}/{}/", self.host, self.namespace)?;
        } else if !self.namespace.eq_ignore_ascii_case(NAMESPACE) {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

fn is_part(part: &str, chars_max: usize, extra: &str) -> bool {
    part.chars().count() <= chars_max
        && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && part
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-' || extra.contains(c))
}

fn take_suffix(raw: &str) -> (&str, Source) {
    let Some((front, last)) = raw.rsplit_once(':') else {
        return (raw, Source::Unspecified);
    };
    let lower = last.to_ascii_lowercase();
    match lower.as_str() {
        "cloud" => (front, Source::Cloud),
        "local" => (front, Source::Local),
        tag if tag.ends_with("-cloud") => (&raw[..raw.len() - "-cloud".len()], Source::Cloud),
        _ => (raw, Source::Unspecified),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_model_share_a_key() {
        let key = Name::parse("llama3").unwrap().key();
        for raw in [
            "LLAMA3:Latest",
            "library/llama3",
            " llama3 ",
            "https://registry.ollama.ai/library/llama3",
        ] {
            assert_eq!(Name::parse(raw).unwrap().key(), key, "{raw}");
        }
        assert_eq!(Name::parse("hf.co/u/r:Q4").unwrap().to_string(), "hf.co/u/r:Q4");
        assert_eq!(Name::parse("a/b/c/d"), Err(NameError::Invalid));
        assert_eq!(Name::parse("-x"), Err(NameError::Invalid));
    }

    #[test]
    fn source_suffixes_are_taken_off() {
        let source =
            |raw| Name::parse_with_source(raw).map(|(name, source)| (name.to_string(), source));
        assert_eq!(source("foo:local"), Ok(("foo:latest".to_owned(), Source::Local)));
        assert_eq!(source("gpt:20b-cloud"), Ok(("gpt:20b".to_owned(), Source::Cloud)));
        assert_eq!(source("x-cloud"), Ok(("x-cloud:latest".to_owned(), Source::Unspecified)));
        assert!(matches!(source("x:cloud:local"), Err(NameError::Contradictory(_))));
    }
}
