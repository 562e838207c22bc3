//! Foreman's own fields of a submission: found by their exact names, each once, and checked.

use std::ops::Range;

use crate::clock::from_rfc3339;
use crate::domain::dialect::Dialect;
use crate::domain::job::Class;
use crate::ollama::wire::cut::{Cuts, Fate};
use crate::ollama::wire::json::Kind;
use crate::ollama::wire::members::{Document, Member, open};
use crate::ollama::wire::text::{decode, key_is};
use crate::store::Webhook;
use crate::webhook::check_url;

use super::super::prefer::check_key;
use super::super::problem::Pointed;
use super::{metadata, pointed, pointer_part};

/// Members of an envelope that are told as unknown; the rest of a crowd helps nobody.
const UNKNOWN_TOLD_MAX: usize = 50;

/// A route that takes submissions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) path: &'static str,
    pub(super) dialect: Dialect,
}

/// All of them; the first is the default.
const ENDPOINTS: [Endpoint; 6] = [
    Endpoint { path: "/api/chat", dialect: Dialect::Chat },
    Endpoint { path: "/api/generate", dialect: Dialect::Generate },
    Endpoint { path: "/v1/chat/completions", dialect: Dialect::OpenAiChat },
    Endpoint { path: "/v1/completions", dialect: Dialect::OpenAiCompletions },
    Endpoint { path: "/v1/responses", dialect: Dialect::Responses },
    Endpoint { path: "/v1/messages", dialect: Dialect::Messages },
];

/// How a submission is put together.
#[derive(Debug)]
pub(super) enum Form {
    /// Foreman's fields stand beside Ollama's, and are cut out.
    Native { cuts: Vec<Range<usize>> },
    /// The request is a member of its own; `None` where it is missing or no object.
    Envelope { body: Option<Range<usize>> },
}

/// The fields of a submission. What has a fault is as if it were not given.
#[derive(Debug)]
pub(super) struct Fields {
    pub(super) form: Form,
    /// `None` where it is none that foreman knows.
    pub(super) endpoint: Option<&'static Endpoint>,
    pub(super) webhook: Option<Webhook>,
    pub(super) class: Option<Class>,
    pub(super) run_at_ms: Option<i64>,
    pub(super) deadline_ms: Option<i64>,
    pub(super) metadata: Option<String>,
    pub(super) idempotency_key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Endpoint,
    Body,
    Webhook,
    Priority,
    RunAt,
    Deadline,
    Metadata,
    Key,
}

const FIELDS: [(Field, &str); 8] = [
    (Field::Endpoint, "endpoint"),
    (Field::Body, "body"),
    (Field::Webhook, "state_webhook_url"),
    (Field::Priority, "priority"),
    (Field::RunAt, "run_at"),
    (Field::Deadline, "deadline"),
    (Field::Metadata, "metadata"),
    (Field::Key, "idempotency_key"),
];

impl Fields {
    /// Reads the fields of a well-formed object, with all their faults.
    pub(super) fn read(submitted: &[u8], now_ms: i64) -> (Fields, Vec<Pointed>) {
        let mut found = Found::walk(submitted);
        let endpoint = found.endpoint();
        let run_at_ms = found.time(Field::RunAt);
        let fields = Fields {
            endpoint,
            webhook: found.webhook(),
            class: found.class(),
            run_at_ms,
            deadline_ms: found.deadline(run_at_ms, now_ms),
            metadata: found.metadata(),
            idempotency_key: found
                .text(Field::Key)
                .filter(|text| found.accepts(Field::Key, check_key(text))),
            form: found.form(),
        };
        (fields, found.faults)
    }
}

/// What a walk over the members of a submission came upon.
struct Found<'a> {
    submitted: &'a [u8],
    /// The first member of each field that is given and not `null`, in the order of [`FIELDS`].
    given: [Option<Member>; FIELDS.len()],
    is_envelope: bool,
    cuts: Vec<Range<usize>>,
    faults: Vec<Pointed>,
}

impl<'a> Found<'a> {
    fn walk(submitted: &'a [u8]) -> Found<'a> {
        let is_envelope = members(submitted)
            .any(|member| field_of(&submitted[member.key]) == Some(Field::Endpoint));
        let (given, faults) = Default::default();
        let mut found = Found { submitted, given, is_envelope, cuts: Vec::new(), faults };
        let mut cuts = Cuts::default();
        let mut seen = [false; FIELDS.len()];
        let mut unknown = 0_usize;
        for member in members(submitted) {
            let key = &submitted[member.key.clone()];
            let field = field_of(key);
            // Ollama has no `body`, but without an endpoint it is not foreman's to cut either.
            let is_foremans = field.is_some_and(|field| is_envelope || field != Field::Body);
            cuts.pass(&member, if is_foremans { Fate::Cut } else { Fate::Kept });
            match field {
                Some(field) => {
                    if std::mem::replace(&mut seen[index(field)], true) {
                        found.fault(field, "is given twice");
                    } else if member.kind != Kind::Null {
                        found.given[index(field)] = Some(member);
                    }
                }
                None if is_envelope => {
                    unknown += 1;
                    if unknown <= UNKNOWN_TOLD_MAX {
                        let pointer = pointer_part(&decode(key));
                        found.faults.push(pointed(pointer, UNKNOWN));
                    }
                }
                None => {}
            }
        }
        found.cuts = cuts.finish();
        found
    }

    fn endpoint(&mut self) -> Option<&'static Endpoint> {
        if self.given[index(Field::Endpoint)].is_none() {
            return ENDPOINTS.first();
        }
        let text = self.text(Field::Endpoint)?;
        let endpoint = ENDPOINTS.iter().find(|endpoint| endpoint.path == text);
        if endpoint.is_none() {
            let paths = ENDPOINTS.each_ref().map(|endpoint| endpoint.path).join(", ");
            self.fault(Field::Endpoint, format!("must be one of {paths}"));
        }
        endpoint
    }

    fn form(&mut self) -> Form {
        let body = self.given[index(Field::Body)].clone();
        match (self.is_envelope, body) {
            (false, None) => Form::Native { cuts: std::mem::take(&mut self.cuts) },
            (false, Some(_)) => {
                self.fault(Field::Body, "needs an endpoint beside it");
                Form::Envelope { body: None }
            }
            (true, Some(body)) if body.kind == Kind::Object => {
                Form::Envelope { body: Some(body.value) }
            }
            (true, Some(_)) => {
                self.fault(Field::Body, "must be an object");
                Form::Envelope { body: None }
            }
            (true, None) => {
                self.fault(Field::Body, "is required beside an endpoint");
                Form::Envelope { body: None }
            }
        }
    }

    fn class(&mut self) -> Option<Class> {
        let text = self.text(Field::Priority)?;
        let class = Class::from_name(&text);
        if class.is_none() {
            let names = Class::ALL.map(Class::name).join(", ");
            self.fault(Field::Priority, format!("must be one of {names}"));
        }
        class
    }

    fn time(&mut self, field: Field) -> Option<i64> {
        let text = self.text(field)?;
        let at_ms = from_rfc3339(&text);
        if at_ms.is_none() {
            self.fault(field, "must be a time such as 2026-11-24T12:00:00Z (RFC 3339)");
        }
        at_ms
    }

    fn deadline(&mut self, run_at_ms: Option<i64>, now_ms: i64) -> Option<i64> {
        let deadline_ms = self.time(Field::Deadline)?;
        let fault = if deadline_ms <= now_ms {
            Err("is in the past")
        } else if run_at_ms.is_some_and(|run_at_ms| deadline_ms <= run_at_ms) {
            Err("must be after run_at")
        } else {
            Ok(())
        };
        self.accepts(Field::Deadline, fault).then_some(deadline_ms)
    }

    fn metadata(&mut self) -> Option<String> {
        let member = self.given[index(Field::Metadata)].clone()?;
        let read = metadata::compact(member.kind, &self.submitted[member.value]);
        read.map_err(|fault| self.fault(Field::Metadata, fault)).ok()
    }

    /// The text of a field; a fault if it is something else.
    fn text(&mut self, field: Field) -> Option<String> {
        let member = self.given[index(field)].clone()?;
        if member.kind != Kind::String {
            self.fault(field, "must be a text");
            return None;
        }
        Some(decode(&self.submitted[member.value]))
    }

    fn webhook(&mut self) -> Option<Webhook> {
        let text = self.text(Field::Webhook)?;
        check_url(&text)
            .map_err(|why| self.fault(Field::Webhook, format!("is no URL that can be told: {why}")))
            .ok()
    }

    fn accepts(&mut self, field: Field, checked: Result<(), &'static str>) -> bool {
        checked.map_err(|fault| self.fault(field, fault)).is_ok()
    }

    fn fault(&mut self, field: Field, detail: impl Into<String>) {
        let name = FIELDS[index(field)].1;
        self.faults.push(pointed(pointer_part(name), detail));
    }
}

const UNKNOWN: &str = "is unknown: beside an endpoint stand only body and foreman's own fields";

/// The place of a field in [`FIELDS`].
fn index(field: Field) -> usize {
    FIELDS.iter().position(|(other, _)| *other == field).unwrap_or_default()
}

fn field_of(key: &[u8]) -> Option<Field> {
    FIELDS.iter().find(|(_, name)| key_is(key, name)).map(|(field, _)| *field)
}

/// The members of an object that is known to be well formed.
pub(super) fn members(object: &[u8]) -> impl Iterator<Item = Member> {
    let members = match open(object) {
        Ok(Document::Object(members)) => Some(members),
        Ok(Document::Other(_)) | Err(_) => None,
    };
    members.into_iter().flatten().map_while(Result::ok)
}
