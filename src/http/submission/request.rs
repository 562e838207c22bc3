//! The request inside a submission, as far as Ollama would certainly refuse it: all faults, not only the first.

use bytes::Bytes;

use crate::domain::model::{ModelName, ParsedName};
use crate::ollama::wire::cut::{Cuts, Fate, without_members};
use crate::ollama::wire::peek::{Peek, Refusal, Request, Shape, peek};
use crate::ollama::wire::text::{decode, key_names};

use super::super::problem::Pointed;
use super::fields::members;
use super::{pointed, pointer_part};

/// Faults that are looked for in one request: more than there are fields that can have one.
const FAULTS_MAX: usize = 16;

/// A request without faults.
pub(super) struct Checked {
    pub(super) request: Request,
    pub(super) model: ParsedName,
}

/// Checks the object in `body`, which stands at `root` in what the client sent.
///
/// The peek stops at the first fault. So each one that is found is taken out of a copy, and the rest is looked at again.
///
/// # Errors
/// All faults, by their pointers.
pub(super) fn check(shape: Shape, body: &Bytes, root: &str) -> Result<Checked, Vec<Pointed>> {
    let mut faults = Vec::new();
    let mut rest = body.clone();
    let mut has_model = true;
    while faults.len() < FAULTS_MAX {
        let refusal = match peek(shape, &rest) {
            Peek::Request(request) => {
                let model = ModelName::parse(&request.model);
                match model {
                    Ok(model) if faults.is_empty() => return Ok(Checked { request, model }),
                    Err(fault) if has_model => {
                        let pointer = format!("{root}{}", pointer_to(&rest, "model"));
                        faults.push(pointed(pointer, format!("cannot be used: {fault}")));
                    }
                    Ok(_) | Err(_) => {}
                }
                break;
            }
            Peek::Refused(refusal) => refusal,
        };
        let Some((name, within, detail)) = told(refusal) else {
            faults.push(pointed(root.to_owned(), refusal.to_string()));
            break;
        };
        let pointer = format!("{root}{}{within}", pointer_to(&rest, name));
        faults.push(pointed(pointer, detail));
        rest = without(rest, name);
        if name == "model" {
            has_model = false;
            rest = with_a_model(&rest);
        }
    }
    Err(faults)
}

/// The field a refusal is about, the pointer within it, and what to say; `None` if it is about the whole.
fn told(refusal: Refusal) -> Option<(&'static str, String, String)> {
    let (name, within, detail) = match refusal {
        Refusal::MissingBody | Refusal::Json(_) | Refusal::NotAnObject => return None,
        Refusal::MissingModel => {
            ("model", String::new(), "is required: the name of a model".into())
        }
        Refusal::WrongType(name) => (name, String::new(), format!("must be {}", expected(name))),
        Refusal::KeepAlive(fault) => {
            ("keep_alive", String::new(), format!("cannot be used: {fault}"))
        }
        Refusal::OptionType(option) => {
            ("options", pointer_part(option), "has the wrong type".into())
        }
        Refusal::OptionRange => {
            ("options", String::new(), "holds a number that is out of range".into())
        }
    };
    Some((name, within, detail))
}

fn expected(name: &str) -> &'static str {
    match name {
        "options" => "an object",
        "messages" | "tools" => "a list",
        "stream" | "shift" => "true or false",
        "think" => "true, false or a level",
        _ => "a text",
    }
}

/// The pointer to the member that Go takes for `name`, as the client spelled it.
fn pointer_to(object: &[u8], name: &str) -> String {
    let named = members(object).filter(|member| key_names(&object[member.key.clone()], name));
    let key = named.last().map(|member| decode(&object[member.key]));
    pointer_part(key.as_deref().unwrap_or(name))
}

fn without(object: Bytes, name: &str) -> Bytes {
    let mut cuts = Cuts::default();
    for member in members(&object) {
        let is_named = key_names(&object[member.key.clone()], name);
        cuts.pass(&member, if is_named { Fate::Cut } else { Fate::Kept });
    }
    without_members(object, &cuts.finish())
}

/// An object without a model, with one, so that the rest of it can be looked at.
fn with_a_model(object: &[u8]) -> Bytes {
    let comma = if members(object).next().is_some() { "," } else { "" };
    let brace = object.iter().position(|byte| *byte == b'{').map_or(0, |brace| brace + 1);
    let begin = format!("{{\"model\":\"m\"{comma}");
    [begin.as_bytes(), object.get(brace..).unwrap_or_default()].concat().into()
}
