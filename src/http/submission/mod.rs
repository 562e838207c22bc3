//! What a client hands in at `POST /jobs`, or as one item of `POST /jobs/batch`: from bytes to a checked [`Submission`], or to
//! the list of all its faults. The contract is docs/jobs.md.
//!
//! Foreman's fields are matched strictly; the request of the route is Ollama's business, and only refused where Ollama
//! certainly refuses it. Its bytes are never written anew: foreman's fields are cut out, or the `body` of an envelope is
//! taken as it stands.

mod batch;
mod fields;
mod metadata;
mod request;

#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::domain::dialect::Dialect;
use crate::domain::job::Class;
use crate::domain::model::ParsedName;
use crate::ollama::wire::canonical::{Fingerprint, fingerprint};
use crate::ollama::wire::cut::without_members;
use crate::ollama::wire::json::Kind;
use crate::ollama::wire::request::{Request, Shape};
use crate::ollama::wire::sole::{NotJson, sole_value};
use crate::store::Webhook;

use super::problem::{Code, Pointed, Problem};
use fields::{Endpoint, Fields, Form};

pub use batch::{BatchFault, ITEMS_MAX, parse_all, split};

/// A job as a client wants it, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// The shape of the request.
    pub dialect: Dialect,
    /// The route it is for, such as `/api/chat`.
    pub path: &'static str,
    /// The bytes for Ollama.
    pub body: Bytes,
    /// What `body` asks for; its ranges are those of `body`.
    pub request: Request,
    /// The model it names.
    pub model: ParsedName,
    /// Who is told of its changes of state.
    pub webhook: Option<Webhook>,
    /// How urgent it says it is.
    pub class: Option<Class>,
    /// Not before this time; it may have passed.
    pub run_at_ms: Option<i64>,
    /// Not after this time; later than the submission and than `run_at_ms`.
    pub deadline_ms: Option<i64>,
    /// A JSON object without white space, which `serde_json` reads.
    pub metadata: Option<String>,
    /// The client's name for this piece of work.
    pub idempotency_key: Option<String>,
}

/// Why a submission is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// It is not JSON.
    NotJson(NotJson),
    /// It is JSON with faults: all of them, at least one.
    Invalid(Vec<Pointed>),
}

/// Reads and checks a submission. Times are judged against `now_ms`.
///
/// # Errors
/// [`Rejection::NotJson`] or [`Rejection::Invalid`]; nothing of it can be used.
pub fn parse(submitted: &Bytes, now_ms: i64) -> Result<Submission, Rejection> {
    let kind = sole_value(submitted).map_err(Rejection::NotJson)?;
    if kind != Kind::Object {
        let detail = "must be an object (a list goes to POST /jobs/batch)";
        return Err(Rejection::Invalid(vec![pointed(String::new(), detail)]));
    }
    let (fields, mut faults) = Fields::read(submitted, now_ms);
    let checked = match fields.form {
        Form::Native { ref cuts } => {
            let body = without_members(submitted.clone(), cuts);
            Some((body.clone(), request::check(shape(fields.endpoint), &body, "")))
        }
        Form::Envelope { body: Some(ref range) } => {
            let body = submitted.slice(range.clone());
            Some((body.clone(), request::check(shape(fields.endpoint), &body, "/body")))
        }
        Form::Envelope { body: None } => None,
    };
    match (checked, fields.endpoint) {
        (Some((body, Ok(checked))), Some(endpoint)) if faults.is_empty() => Ok(Submission {
            dialect: endpoint.dialect,
            path: endpoint.path,
            body,
            request: checked.request,
            model: checked.model,
            webhook: fields.webhook,
            class: fields.class,
            run_at_ms: fields.run_at_ms,
            deadline_ms: fields.deadline_ms,
            metadata: fields.metadata,
            idempotency_key: fields.idempotency_key,
        }),
        (checked, _) => {
            if let Some((_, Err(more))) = checked {
                faults.extend(more);
            }
            Err(Rejection::Invalid(faults))
        }
    }
}

impl Submission {
    /// Takes over the key of the header `Idempotency-Key`.
    ///
    /// # Errors
    /// [`Rejection::Invalid`] if the field of the body says another.
    pub fn agree_on_key(&mut self, header: Option<String>) -> Result<(), Rejection> {
        let Some(header) = header else { return Ok(()) };
        if self.idempotency_key.as_ref().is_some_and(|key| *key != header) {
            let detail = "differs from the header Idempotency-Key";
            return Err(Rejection::Invalid(vec![pointed("/idempotency_key".into(), detail)]));
        }
        self.idempotency_key = Some(header);
        Ok(())
    }

    /// Foreman's fields as one part of the key of a duplicate.
    #[must_use]
    pub fn fields_fingerprint(&self) -> Fingerprint {
        let time = |at_ms: Option<i64>| at_ms.map(|at_ms| at_ms.to_string());
        let (run_at, deadline) = (time(self.run_at_ms), time(self.deadline_ms));
        // Of what nothing is said, the same is meant each time; which class that is, its sender's key says.
        let class = Some(self.class.unwrap_or(Class::Normal).name().to_owned());
        let url = self.webhook.as_ref().map(|webhook| webhook.url.clone());
        let given = [&url, &class, &run_at, &deadline, &self.metadata, &self.idempotency_key];
        // A field that is not given is no field with an empty text.
        let parts = given.map(|field| field.as_ref().map_or("-".into(), |text| format!("+{text}")));
        fingerprint(&parts.each_ref().map(String::as_bytes))
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Problem {
        match rejection {
            Rejection::NotJson(wrong) => {
                Problem::new(Code::MalformedBody, format!("{wrong}; nothing was stored"))
            }
            Rejection::Invalid(faults) => Problem::invalid(faults),
        }
    }
}

/// How the request is read. Where the route is not known yet, only what all routes have in common is looked at.
fn shape(endpoint: Option<&Endpoint>) -> Shape {
    match endpoint.map(|endpoint| endpoint.dialect) {
        Some(Dialect::Chat) => Shape::Chat,
        Some(Dialect::Generate) => Shape::Generate,
        Some(_) | None => Shape::V1,
    }
}

fn pointed(pointer: String, detail: impl Into<String>) -> Pointed {
    Pointed { pointer, detail: detail.into() }
}

/// Characters of one part of a pointer: a client's key is told back, but not a whole body in the place of one.
const POINTER_PART_MAX: usize = 128;

/// A part of a JSON pointer with its slash, escaped (RFC 6901, 3).
fn pointer_part(key: &str) -> String {
    let short: String = key.chars().take(POINTER_PART_MAX).collect();
    format!("/{}", short.replace('~', "~0").replace('/', "~1"))
}
