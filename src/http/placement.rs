//! Where a request of a queued route really goes, once its body was peeked at: into the queue under its load key, into
//! the queue as something that could not be placed, or straight to Ollama because it never touches the GPU.
//!
//! Foreman never imitates an error it can let Ollama say: what Ollama will certainly refuse is forwarded at once.

use hyper::header::{CONTENT_TYPE, HeaderMap};

use crate::domain::dialect::Dialect;
use crate::domain::job::Kind;
use crate::domain::model::{LoadKey, ModelName, RunnerOptions, Source};
use crate::domain::schedule::Lane;
use crate::ollama::calls::TagsModel;
use crate::ollama::inventory::Lookup;
use crate::ollama::wire::encoding::Undecodable;
use crate::ollama::wire::multipart;
use crate::ollama::wire::peek::{Peek, Request, Shape, Wants, peek};

use super::Edge;
use super::plain::Plain;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Placement {
    /// Becomes a job.
    Queue(Place),
    /// Goes to Ollama now: it is answered without the GPU. The reason is for the log.
    Forward(&'static str),
}

/// A place in the queue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) lane: Lane,
    pub(super) model: String,
    pub(super) is_streamed: bool,
}

/// What of the upstream's inventory a request is placed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Ollama is asked where something is not known.
    Asked,
    /// The last poll alone, so that nothing waits for Ollama. What is not known is taken: Ollama will judge the job.
    Last,
}

/// Places a request of a queued route.
pub(super) async fn place(
    edge: &Edge,
    dialect: Dialect,
    headers: &HeaderMap,
    body: &Plain,
    known: Known,
) -> Placement {
    let said = match body.said() {
        Ok(said) => said,
        Err(Undecodable::Broken) => return Placement::Forward("ollama cannot decompress it"),
        // Refused by the Ollama that is known; one that reads more would run it.
        Err(Undecodable::Beyond) => return opaque(),
    };
    let request = match dialect {
        Dialect::Other(_) => return opaque(),
        Dialect::Transcription => return transcription(edge, headers, said, known).await,
        Dialect::Chat => peek(Shape::Chat, said),
        Dialect::Generate => peek(Shape::Generate, said),
        _ => peek(Shape::V1, said),
    };
    match request {
        // The same: Ollama reads the compressed bytes as JSON.
        Peek::Refused(_) if body.is_encoded_otherwise() => opaque(),
        Peek::Refused(_) => Placement::Forward("ollama will refuse it"),
        Peek::Request(request) => place_request(edge, dialect, request, known).await,
    }
}

/// Places a request that was peeked at.
pub(super) async fn place_request(
    edge: &Edge,
    dialect: Dialect,
    request: Request,
    known: Known,
) -> Placement {
    let needs = Needs { wants: request.wants, dialect, known };
    let model = match installed(edge, &request.model, &needs).await {
        Ok(model) => model,
        Err(placement) => return placement,
    };
    let (kind, lane) = if request.is_unload() {
        (Kind::Unload, Lane::Unload)
    } else {
        let kind = if request.is_empty { Kind::Load } else { Kind::Run };
        (kind, Lane::Key(load_key(edge, &model, request.options, known).await))
    };
    let is_streamed = request.stream;
    Placement::Queue(Place { kind, lane, model: request.model, is_streamed })
}

/// The place of a request that never touches the GPU, as a job that somebody wants all the same: by itself.
pub(super) fn alone(request: &Request) -> Place {
    Place {
        kind: Kind::Run,
        lane: Lane::Opaque,
        model: request.model.clone(),
        is_streamed: request.stream,
    }
}

async fn load_key(edge: &Edge, model: &ModelName, options: RunnerOptions, known: Known) -> LoadKey {
    match known {
        Known::Asked => edge.inventory.load_key(model, options).await,
        Known::Last => edge.inventory.known_load_key(model, options),
    }
}

async fn transcription(edge: &Edge, headers: &HeaderMap, body: &[u8], known: Known) -> Placement {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let model = content_type.and_then(|content_type| multipart::model_field(content_type, body));
    let Some(model) = model else { return opaque() };
    let needs = Needs { wants: Wants::default(), dialect: Dialect::Transcription, known };
    match installed(edge, &model, &needs).await {
        Ok(name) => Placement::Queue(Place {
            kind: Kind::Run,
            lane: Lane::Key(load_key(edge, &name, RunnerOptions::default(), known).await),
            model,
            is_streamed: false,
        }),
        Err(placement) => placement,
    }
}

/// What a request needs of its model.
struct Needs {
    wants: Wants,
    dialect: Dialect,
    known: Known,
}

/// The canonical name of a local model that can serve the request, or where the request goes instead.
async fn installed(edge: &Edge, model: &str, needs: &Needs) -> Result<ModelName, Placement> {
    let Ok(parsed) = ModelName::parse(model) else {
        return Err(Placement::Forward("no such model name"));
    };
    if parsed.source == Source::Cloud {
        return Err(Placement::Forward("a cloud model"));
    }
    if needs.known == Known::Last {
        return match edge.inventory.find(&parsed.name) {
            Some(entry) if entry.is_remote => Err(Placement::Forward("a cloud model")),
            Some(_) | None => Ok(parsed.name),
        };
    }
    match edge.inventory.look_up(&parsed.name).await {
        Lookup::Installed(entry) if entry.is_remote => Err(Placement::Forward("a cloud model")),
        Lookup::Installed(entry) => match lacks(edge, &entry, needs).await {
            true => Err(Placement::Forward("the model lacks a capability")),
            false => Ok(parsed.name),
        },
        Lookup::Unknown => Err(Placement::Forward("unknown model")),
        // An upstream that is away: the job is taken, and judged when it runs.
        Lookup::CannotSay => Ok(parsed.name),
    }
}

/// Whether Ollama will refuse for want of a capability. Only where its capabilities are known, and only the checks that
/// all recent versions make before they load (`server/routes.go`).
async fn lacks(edge: &Edge, model: &TagsModel, needs: &Needs) -> bool {
    let Some(has) = edge.inventory.capabilities(model).await else { return false };
    let lacks = |capability: &str| !has.is_empty() && !has.iter().any(|item| item == capability);
    match needs.dialect {
        Dialect::Chat => {
            lacks("completion")
                || (needs.wants.tools && lacks("tools"))
                || (needs.wants.thinking && lacks("thinking"))
        }
        Dialect::Generate => {
            lacks("completion")
                || (needs.wants.insert && lacks("insert"))
                || (needs.wants.thinking && lacks("thinking"))
        }
        Dialect::OpenAiChat
        | Dialect::OpenAiCompletions
        | Dialect::Responses
        | Dialect::Messages => lacks("completion"),
        Dialect::Transcription
        | Dialect::Images
        | Dialect::Other(_)
        | Dialect::Embed
        | Dialect::Embeddings
        | Dialect::OpenAiEmbeddings => false,
    }
}

fn opaque() -> Placement {
    Placement::Queue(Place {
        kind: Kind::Opaque,
        lane: Lane::Opaque,
        model: String::new(),
        is_streamed: false,
    })
}
