//! Reads an answer of `/api/show`: what a model can do, and what its file says about its runner.
//!
//! The files a runner is started with stand at the head of the model file's text, before any text of
//! the author's; the head is all that is believed. Called by `calls`, kept by `inventory`.

use serde_json::Value;

use crate::domain::model::{Modelfile, Part, RunnerOptions, Weights};

use super::wire::text::go_int;

/// A model family whose context does not shift unless a request says so (`sched.go`, `supportsContextShift`).
const FAMILY_WITHOUT_SHIFT: &str = "deepseek2";

/// What `/api/show` says of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What it can do; `None` where this Ollama does not say.
    pub capabilities: Option<Vec<String>>,
    /// What counts for its runner; `None` where this Ollama does not show the file.
    pub modelfile: Option<Modelfile>,
}

/// Reads the body of an answer about the model with this manifest (bare hex); `None` if it is no JSON object.
pub fn read(body: &[u8], manifest: &str) -> Option<Shown> {
    let value: Value = serde_json::from_slice(body).ok()?;
    value.as_object()?;
    let capabilities = super::calls::texts(&value["capabilities"]);
    let modelfile = value["modelfile"].as_str().map(|text| Modelfile {
        weights: weights(text, manifest),
        options: options(value["parameters"].as_str().unwrap_or_default()),
        shifts_by_default: !is_of_family(&value["details"], FAMILY_WITHOUT_SHIFT),
        has_vision: capabilities.iter().flatten().any(|item| item == "vision"),
        trained_context: trained_context(&value["model_info"]),
    });
    Some(Shown { capabilities, modelfile })
}

fn is_of_family(details: &Value, family: &str) -> bool {
    let families = details["families"].as_array().into_iter().flatten();
    families.chain([&details["family"]]).any(|item| item == family)
}

/// The context length that the weights state, under the name of their architecture.
fn trained_context(info: &Value) -> Option<i64> {
    let architecture = info["general.architecture"].as_str()?;
    tokens(&info[format!("{architecture}.context_length")])
}

/// A number of tokens; `None` for what is none.
pub(super) fn tokens(value: &Value) -> Option<i64> {
    value.as_i64().filter(|tokens| *tokens > 0)
}

/// The files at the head of the text. Where it names no blob (a model that is not GGUF, a form of a later version), or an
/// earlier version put files further down, among the author's text: the manifest.
fn weights(text: &str, manifest: &str) -> Weights {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut parts = Vec::new();
    let mut is_certain = true;
    for line in lines.by_ref() {
        match part(line) {
            Some(part) => parts.push(part),
            None => break,
        }
    }
    for line in lines {
        is_certain &= part(line).is_none_or(|_| blob(line).is_none());
    }
    match parts.first() {
        Some(Part::Model(_)) if is_certain => Weights(parts),
        _ => Weights(vec![Part::Manifest(manifest.to_owned())]),
    }
}

fn part(line: &str) -> Option<Part> {
    let (keyword, file) = line.split_once(' ')?;
    let blob = blob(file);
    let blob_or_path = || blob.clone().unwrap_or_else(|| file.to_owned());
    match keyword {
        "FROM" | "PROJECTOR" => blob.map(Part::Model),
        "ADAPTER" => Some(Part::Adapter(blob_or_path())),
        "DRAFT" => Some(Part::Draft(blob_or_path())),
        _ => None,
    }
}

/// The digest in a path that ends in `sha256-…`, with either kind of slash.
fn blob(path: &str) -> Option<String> {
    let file = path.trim_matches('"').rsplit(['/', '\\']).next()?;
    let digest = file.strip_prefix("sha256")?.strip_prefix(['-', ':'])?;
    let is_digest = !digest.is_empty() && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| digest.to_ascii_lowercase())
}

/// The `parameters` text: a name, spaces, a value as Go prints it, one a line. Numbers come as Go prints a double (`1e+06`).
/// What is no runner option, or of a wrong type, is left out: for the latter Ollama refuses every request itself.
fn options(text: &str) -> RunnerOptions {
    let mut options = RunnerOptions::default();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(char::is_whitespace) else { continue };
        let value = value.trim();
        let number = value.parse().ok().filter(|number: &f64| number.is_finite());
        let value = number.map_or_else(|| value.to_owned(), |number| go_int(number).to_string());
        // The shift is a member of requests only.
        if name != "shift" && options.set(name, &value).is_none() {
            tracing::trace!(option.name = name, "no runner option");
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MANIFEST: &str = "00ff";

    fn shown(value: &Value) -> Shown {
        read(value.to_string().as_bytes(), MANIFEST).unwrap()
    }

    fn file(modelfile: &str) -> Modelfile {
        shown(&json!({ "modelfile": modelfile })).modelfile.unwrap()
    }

    fn model(blob: &str) -> Part {
        Part::Model(blob.to_owned())
    }

    /// The bytes of a real 0.33. The recording breaks off in the list of tensors, which is left out.
    #[test]
    fn a_recorded_answer_is_read() {
        let recorded = include_str!("../../tests/fixtures/ollama-wire/show.txt");
        let (_, body) = recorded.split_once("\n447b\r\n").unwrap();
        let (members, _) = body.split_once(",\"tensors\"").unwrap();
        let shown = read(format!("{members}}}").as_bytes(), MANIFEST).unwrap();
        let file = shown.modelfile.unwrap();
        let blob = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";
        assert_eq!(file.weights, Weights(vec![model(blob)]));
        assert_eq!(file.options, RunnerOptions { num_ctx: Some(2048), ..RunnerOptions::default() });
        assert!(file.shifts_by_default && !file.has_vision);
        assert_eq!(file.trained_context, Some(32_768));
    }

    #[test]
    fn the_trained_context_is_that_of_the_architecture() {
        let context = |info: Value| {
            let value = json!({ "modelfile": "", "model_info": info });
            shown(&value).modelfile.unwrap().trained_context
        };
        let info = json!({ "general.architecture": "gemma3", "clip.context_length": 77, "gemma3.context_length": 131_072 });
        assert_eq!(context(info), Some(131_072));
        for info in [
            json!(null),
            json!({ "general.architecture": "x" }),
            json!({ "llama.context_length": 8192 }),
            json!({ "general.architecture": "x", "x.context_length": 0 }),
            json!({ "general.architecture": "x", "x.context_length": "8192" }),
        ] {
            assert_eq!(context(info.clone()), None, "{info}");
        }
    }

    #[test]
    fn every_file_of_the_runner_counts_in_order() {
        let text = "# Modelfile generated by \"ollama show\"\n# FROM m:latest\n\nFROM /b/sha256-0a\n\
            ADAPTER /b/sha256-0b\nADAPTER \" /a b\"\nDRAFT /b/sha256-0c\nFROM C:\\b\\sha256-0D\nTEMPLATE x\nFROM here\n";
        let parts = vec![
            model("0a"),
            Part::Adapter("0b".to_owned()),
            Part::Adapter("\" /a b\"".to_owned()),
            Part::Draft("0c".to_owned()),
            model("0d"),
        ];
        assert_eq!(file(text).weights, Weights(parts));
    }

    /// A template or a system text can hold any line. What looks like a file there makes the head uncertain, not true.
    #[test]
    fn what_an_author_wrote_is_not_taken_for_a_file() {
        let unknown = Weights(vec![Part::Manifest(MANIFEST.to_owned())]);
        let head = "FROM /b/sha256-0a\nSYSTEM \"\"\"SELECT *\n";
        assert_eq!(file(&format!("{head}FROM users\"\"\"")).weights, Weights(vec![model("0a")]));
        assert_eq!(file(&format!("{head}ADAPTER /b/sha256-0b\n\"\"\"")).weights, unknown);
        for text in ["", "FROM mlx:latest\nTEMPLATE x", "SYSTEM x\nFROM /b/sha256-0a", "FROM /b/0a"]
        {
            assert_eq!(file(text).weights, unknown, "{text}");
        }
    }

    #[test]
    fn parameters_are_read_as_go_prints_them() {
        let parameters = "num_ctx                        1.048576e+06\nstop                           \"num_gpu 3\"\n\
            num_gpu                        0\nuse_mmap                       false\nnum_thread                     \"4\"\n\
            num_batch                      512.9\nmain_gpu                       <nil>\ntemperature                    0.7\nshift                          false\nx";
        let value = json!({ "modelfile": "", "parameters": parameters });
        let wanted = RunnerOptions {
            num_ctx: Some(1_048_576),
            num_gpu: Some(0),
            num_batch: Some(512),
            use_mmap: Some(false),
            ..RunnerOptions::default()
        };
        assert_eq!(shown(&value).modelfile.unwrap().options, wanted);
    }

    #[test]
    fn vision_and_the_family_change_the_defaults() {
        let value = json!({ "modelfile": "", "capabilities": ["completion", "vision"],
            "details": { "family": "x", "families": ["deepseek2"] } });
        let file = shown(&value).modelfile.unwrap();
        assert!(file.has_vision && !file.shifts_by_default);
        let value =
            json!({ "modelfile": "", "details": { "family": "deepseek2", "families": null } });
        assert!(!shown(&value).modelfile.unwrap().shifts_by_default);
    }

    #[test]
    fn what_is_not_told_is_not_known() {
        assert_eq!(shown(&json!({})), Shown { capabilities: None, modelfile: None });
        assert_eq!(read(b"404 page not found", MANIFEST), None);
        assert_eq!(read(b"\"x\"", MANIFEST), None);
    }
}
