//! Intake: from a request that was placed to a job that is admitted, or found to be there already. What all roads into the
//! queue share.

use std::net::IpAddr;

use hyper::StatusCode;
use hyper::header::HeaderMap;
use hyper::http::request::Parts;
use tracing::field::{DisplayValue, display};
use ulid::Ulid;

use crate::clock;
use crate::config::Duplicates;
use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, JobId};
use crate::domain::model::ModelName;
use crate::domain::whom::{ClientId, Whom};
use crate::ollama::inventory::Inventory;
use crate::ollama::wire::canonical::{duplicate_key, fingerprint, is_deterministic};
use crate::store::{Extras, Hash, Idempotency, Likeness, NewJob, QueueLimit, StoreError};

use super::Edge;
use super::caller::Caller;
use super::error::Told;
use super::headers::{Credentials, for_upstream, to_list, token};
use super::pass;
use super::placement::Place;
use super::whom::{Peer, whom};

/// When to try again after a full queue: about what a few short jobs take.
pub(super) const FULL_RETRY_S: u64 = 10;

/// When to try again while the disk is full: somebody has to make room, or old jobs have to be dropped.
const NO_ROOM_RETRY_S: u64 = 30;

/// When to try again after a stop: a restart takes a few seconds.
const STOPPING_RETRY_S: u64 = 5;

/// Bodies above this are hashed off the async threads: a hash of it takes about a millisecond.
const HASHED_HERE_MAX: usize = 256 * 1024;

/// Who asks, and what of their request goes upstream.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) whom: Whom,
    pub(super) caller: Caller,
    /// End-to-end headers, without what was for foreman.
    pub(super) headers: HeaderMap,
    /// The named key, or a hash of the token that is not foreman's own; empty without either.
    pub(super) scope: String,
    token: Vec<u8>,
    address: Option<IpAddr>,
}

impl Asker {
    /// The sender of this request.
    pub(super) fn of(edge: &Edge, parts: &Parts) -> Asker {
        let credentials = pass::credentials(edge);
        let caller = Caller::of(&parts.extensions);
        let named = caller.scope();
        let token = match (credentials, &named) {
            (Credentials::Foremans, Some(named)) => named.clone().into_bytes(),
            (Credentials::Foremans, None) => Vec::new(),
            (Credentials::Upstreams, _) => token(&parts.headers).unwrap_or_default().to_vec(),
        };
        let mut headers = parts.headers.clone();
        for_upstream(&mut headers, credentials);
        let scope = match named {
            Some(named) => named,
            None if token.is_empty() => String::new(),
            None => hex(&fingerprint(&[&token])),
        };
        let address = parts.extensions.get::<Peer>().map(|peer| peer.address.to_canonical());
        Asker { whom: whom(parts, credentials), caller, headers, scope, token, address }
    }

    /// The client that it is to the queue.
    pub(super) fn client(&self) -> ClientId {
        self.caller.client().unwrap_or(self.whom.client)
    }
}

/// A request that is to become a job.
pub(super) struct Asked {
    pub(super) dialect: Dialect,
    pub(super) path_and_query: String,
    pub(super) body: bytes::Bytes,
    pub(super) class: Class,
    pub(super) place: Place,
    pub(super) extras: Extras,
}

/// The job of a request.
pub(super) fn new_job(edge: &Edge, asker: &Asker, asked: Asked) -> NewJob {
    NewJob {
        id: JobId(Ulid::from_datetime(clock::system_time(edge.clock.now_ms()))),
        dialect: asked.dialect,
        kind: asked.place.kind,
        lane: asked.place.lane.to_string(),
        model: asked.place.model,
        class: asked.class,
        client: asker.client().to_string(),
        is_streamed: asked.place.is_streamed,
        path_and_query: asked.path_and_query,
        headers: to_list(&asker.headers),
        body: asked.body,
        extras: Extras { owner: asker.caller.owner().to_owned(), ..asked.extras },
    }
}

/// By what the same request is known when it comes again, of one that waits on its connection.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) idempotency: Option<Idempotency>,
    pub(super) attach_key: Option<Hash>,
    pub(super) likeness: Option<Likeness>,
}

/// Computes the marks of a native request. One with an idempotency key needs no other.
pub(super) async fn marks(
    edge: &Edge,
    asker: &Asker,
    request: (Dialect, &str, &bytes::Bytes),
    (model, key): (&str, Option<String>),
) -> Marks {
    let (dialect, path_and_query, body) = request;
    let digest = model_digest(&edge.inventory, model);
    let duplicates = edge.config.duplicates;
    let (asker, path, body) = (asker.clone(), path_and_query.to_owned(), body.clone());
    let compute = move || match key {
        Some(key) => {
            let fingerprint = fingerprint(&[path.as_bytes(), &body]);
            let scope = asker.scope;
            Marks { idempotency: Some(Idempotency { scope, key, fingerprint }), ..Marks::default() }
        }
        None => {
            let address = asker.address.map(|address| address.to_string()).unwrap_or_default();
            let parts: [&[u8]; 4] = [path.as_bytes(), &body, &asker.token, address.as_bytes()];
            let parts_of_likeness = [path.as_bytes(), asker.scope.as_bytes(), digest.as_bytes()];
            Marks {
                idempotency: None,
                attach_key: Some(fingerprint(&parts)),
                likeness: likeness(duplicates, dialect, &parts_of_likeness, &body),
            }
        }
    };
    hashed(compute, body_len(path_and_query, request.2)).await
}

fn body_len(path: &str, body: &bytes::Bytes) -> usize {
    path.len() + body.len()
}

/// Runs a computation whose time grows with these bytes where it holds nobody up.
pub(super) async fn hashed<T: Default + Send + 'static>(
    compute: impl FnOnce() -> T + Send + 'static,
    bytes: usize,
) -> T {
    if bytes <= HASHED_HERE_MAX {
        return compute();
    }
    tokio::task::spawn_blocking(compute).await.unwrap_or_default()
}

/// The digest of a model's file, so that a new file under the same name is another model.
pub(super) fn model_digest(inventory: &Inventory, model: &str) -> String {
    let name = ModelName::parse(model).ok();
    let entry = name.and_then(|parsed| inventory.find(&parsed.name));
    entry.map_or_else(|| model.to_owned(), |entry| entry.digest)
}

/// By what equal requests are known, if they are looked for.
pub(super) fn likeness(
    duplicates: Duplicates,
    dialect: Dialect,
    parts: &[&[u8]],
    body: &[u8],
) -> Option<Likeness> {
    let takes_done = match duplicates {
        Duplicates::Off => return None,
        Duplicates::Inflight => false,
        Duplicates::Completed => is_deterministic(dialect, body),
    };
    Some(Likeness { hash: duplicate_key(parts, body)?, takes_done })
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whose a job is, for the log; nothing where it is nobody's.
pub(super) fn owned(owner: &str) -> Option<DisplayValue<&str>> {
    (!owner.is_empty()).then(|| display(owner))
}

/// What a client is told of a queue that is full.
pub(super) fn queue_full(jobs: u64, limit: QueueLimit) -> Told {
    let queue = match limit {
        QueueLimit::Owner => return key_full(jobs),
        QueueLimit::Jobs | QueueLimit::Bytes => "the queue".to_owned(),
        QueueLimit::Class(class) => format!("the queue of class {}", class.name()),
    };
    let text = format!("{queue} is full ({jobs} jobs wait); nothing was stored, try again");
    Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(FULL_RETRY_S)
}

/// What a client is told whose key has as many jobs waiting as it may.
pub(super) fn key_full(jobs: u64) -> Told {
    let text = format!(
        "your key has {jobs} jobs waiting, as many as it may; nothing was stored, try again"
    );
    Told::new(StatusCode::TOO_MANY_REQUESTS, text).retry_after(FULL_RETRY_S)
}

/// What a client is told while the disk is full.
pub(super) fn no_room() -> Told {
    let text = "the disk of foreman's database is full; nothing was stored, try again";
    Told::new(StatusCode::INSUFFICIENT_STORAGE, text).retry_after(NO_ROOM_RETRY_S)
}

/// What a client is told of a job that could not be stored. A store that is gone takes the daemon with it.
pub(super) fn not_stored(edge: &Edge, fault: &StoreError) -> Told {
    if matches!(fault, StoreError::Closed) && !edge.tasks.is_draining() {
        edge.tasks.break_down("store");
    }
    tracing::error!(db.error = %fault, "a job could not be stored");
    if matches!(fault, StoreError::Full) {
        return no_room();
    }
    let text = "foreman could not store the request; nothing was sent to ollama, try again";
    Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(FULL_RETRY_S)
}

/// What a client is told while the daemon stops.
pub(super) fn stopping(what: &str) -> Told {
    let text = format!("foreman is stopping; {what}; it is safe to try again");
    Told::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(STOPPING_RETRY_S)
}

/// What a client is told whose key was used with another request.
pub(super) fn key_taken(id: JobId) -> Told {
    let text = format!(
        "the Idempotency-Key was used with another request (job {id}); nothing was stored, use a new key"
    );
    Told::new(StatusCode::UNPROCESSABLE_ENTITY, text)
}
