//! The way of a request: log, guard, route, faults, answer.
//!
//! Called by hyper for every request. The log entry travels with the request and then with the
//! body, so that whoever drops them, a disconnect included, is recorded.

mod audio;
mod control;
mod embed;
mod eras;
mod inventory;
mod library;
mod logprobs;
mod messages;
mod native;
mod openai;
mod reply;
mod resolve;
mod responses;
mod search;
mod table;
mod transfer;

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use tokio::time::sleep;

use crate::board::{Entry, count};
use crate::body::AnswerBody;
use crate::decode::{DecodeError, decode};
use crate::encoding;
use crate::faults::Plan;
use crate::fields::Fields;
use crate::guard::{self, Origin, PREFLIGHT};
use crate::json::Json;
use crate::log::LogEntry;
use crate::server::Wire;
use crate::world::World;

pub(crate) use reply::Failure;
use reply::{Family, Reply};
use table::{Found, Route};

/// A request that has been read.
struct Call {
    world: Arc<World>,
    parts: Parts,
    /// The path's parameter, if its route has one.
    parameter: String,
    body: Bytes,
    json: Result<Json, DecodeError>,
    plan: Plan,
}

impl Call {
    /// Opens the body as a Go struct.
    fn fields(&self, go_type: &'static str) -> Result<Fields<'_>, Failure> {
        match &self.json {
            Ok(value) => Fields::of(go_type, value).map_err(Failure::bad_request),
            Err(DecodeError::Syntax(text)) => Err(Failure::bad_request(text.clone())),
            Err(DecodeError::Empty) => Err(Failure::bad_request("missing request body")),
        }
    }

    /// Opens the body as the compatibility middlewares do, whose empty body is a bare `EOF`.
    fn fields_v1(&self, go_type: &'static str) -> Result<Fields<'_>, Failure> {
        match &self.json {
            Err(DecodeError::Empty) => Err(Failure::bad_request("EOF")),
            Ok(_) | Err(DecodeError::Syntax(_)) => self.fields(go_type),
        }
    }
}

/// Answers one request. An error closes the connection without an answer.
pub(crate) async fn serve(
    world: Arc<World>,
    wire: Arc<Wire>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, io::Error> {
    let (parts, incoming) = request.into_parts();
    if parts.uri.path().starts_with("/_stub/") {
        let body = incoming.collect().await.map_err(io::Error::other)?.to_bytes();
        let reply = control::answer(&world, &parts, &body).await;
        return Ok(reply.into_response(None, wire, None, &parts.method));
    }
    let entry = world.board.begin(entry_of(&parts));
    let mut exchange = Exchange { world, wire, entry, cut: None };
    let method = parts.method.clone();
    let reply = exchange.answer(parts, incoming).await?;
    Ok(exchange.finish(reply, &method))
}

fn entry_of(parts: &Parts) -> LogEntry {
    let text =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    LogEntry {
        sequence: 0,
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect(),
        body: Bytes::new(),
        body_bytes: 0,
        model: None,
        arrived_at: std::time::Duration::ZERO,
        first_byte_at: None,
        ended_at: None,
        end: None,
        status: None,
        sent_bytes: 0,
        sent_chunks: 0,
    }
}

/// One request being answered.
struct Exchange {
    world: Arc<World>,
    wire: Arc<Wire>,
    entry: Entry,
    cut: Option<(u64, crate::faults::Cut)>,
}

impl Exchange {
    fn finish(self, reply: Reply, method: &Method) -> Response<AnswerBody> {
        self.entry.first_byte(reply.status);
        reply.into_response(Some(self.entry), self.wire, self.cut, method)
    }

    async fn answer(&mut self, parts: Parts, incoming: Incoming) -> Result<Reply, io::Error> {
        let path = parts.uri.path();
        if let Some(clean) = guard::clean_path(path) {
            return Ok(Reply::redirect(307, &clean, &parts));
        }
        let host = parts.headers.get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
        let host = host.unwrap_or_default();
        let found = table::find(self.world.config.era, &parts.method, path);
        let origin = match guard::origin(&self.world.config, &parts.headers, &host) {
            Origin::Refused => return Ok(Reply::empty(403)),
            Origin::NotCors => None,
            Origin::Allowed(origin) if parts.method == Method::OPTIONS => {
                return Ok(preflight(&origin, &found));
            }
            Origin::Allowed(origin) => Some(origin),
        };
        let reply = if guard::host_is_allowed(&self.world.config, &host) {
            self.route(parts, incoming, found).await?
        } else {
            Reply::empty(403)
        };
        Ok(match origin {
            Some(origin) => {
                reply.header("access-control-allow-origin", &origin).header("vary", "Origin")
            }
            None => reply,
        })
    }

    async fn route(
        &mut self,
        parts: Parts,
        incoming: Incoming,
        found: Found,
    ) -> Result<Reply, io::Error> {
        let (route, parameter) = match found {
            Found::Route(route, parameter) => (route, parameter),
            Found::Redirect(path) => {
                let status = if parts.method == Method::GET { 301 } else { 307 };
                return Ok(Reply::redirect(status, &path, &parts));
            }
            Found::MethodNotAllowed(allow) => {
                return Ok(Reply::text(405, "405 method not allowed").header("allow", &allow));
            }
            Found::Nothing => return Ok(Reply::text(404, "404 page not found")),
        };
        let family = Family::of(parts.uri.path());
        if route == Route::BlobUpload {
            let upload = transfer::upload(&self.world, &self.entry, &parts, incoming, &parameter);
            return Ok(upload.await.unwrap_or_else(|failure| failure.render(family)));
        }
        let Some(body) = self.read(incoming).await? else {
            return Ok(Failure::new(413, "request body too large for the stub").render(family));
        };
        let (said, json) = said(&parts, &body);
        let model = self.note(route, &parts, &body, &json);
        let plan = self.world.faults.take_request(parts.uri.path(), model.as_deref());
        if let Some(refusal) = self.suffer(&plan).await? {
            return Ok(refusal.render(family));
        }
        let world = Arc::clone(&self.world);
        let call = Call { world, parts, parameter, body: said, json, plan };
        Ok(dispatch(route, call).await.unwrap_or_else(|failure| failure.render(family)))
    }

    /// Reads the whole body; `None` when it is larger than the stub takes.
    async fn read(&self, mut incoming: Incoming) -> Result<Option<Bytes>, io::Error> {
        let mut body = BytesMut::new();
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
            if body.len() + data.len() > self.world.config.body_bytes_max {
                return Ok(None);
            }
            body.extend_from_slice(&data);
        }
        Ok(Some(body.freeze()))
    }

    /// Logs the body and returns the model it names.
    fn note(
        &self,
        route: Route,
        parts: &Parts,
        body: &Bytes,
        json: &Result<Json, DecodeError>,
    ) -> Option<String> {
        let model = if route == Route::V1Audio {
            audio::model(&parts.headers, body)
        } else {
            let object = json.as_ref().ok().and_then(Json::as_object);
            object
                .and_then(|object| object.get("model").or_else(|| object.get("name")))
                .and_then(Json::as_text)
                .map(str::to_owned)
        };
        let kept = body.slice(..body.len().min(self.world.config.log_body_bytes_max));
        let (length, named) = (count(body.len()), model.clone());
        self.entry.set(|entry| {
            entry.body = kept;
            entry.body_bytes = length;
            entry.model = named;
        });
        model
    }

    /// Does what is scripted before the handler runs.
    async fn suffer(&mut self, plan: &Plan) -> Result<Option<Failure>, io::Error> {
        self.cut = plan.cut_after;
        if let Some(time) = plan.stall {
            sleep(time).await;
        }
        if let Some(cut) = plan.cut_before_headers {
            self.entry.close(crate::log::End::Cut);
            self.wire.close_by(cut);
            return Err(io::Error::other("cut by a scripted fault"));
        }
        if plan.hangs {
            std::future::pending::<()>().await;
        }
        Ok(plan.refusal_before.as_ref().map(Failure::scripted))
    }
}

/// What a body says, decompressed where Ollama does that.
fn said(parts: &Parts, body: &Bytes) -> (Bytes, Result<Json, DecodeError>) {
    if !encoding::is_undone(parts.uri.path(), &parts.headers) {
        return (body.clone(), decode(body));
    }
    match encoding::decoded(body) {
        Ok(said) => {
            let json = decode(&said);
            (Bytes::from(said), json)
        }
        Err(text) => (body.clone(), Err(DecodeError::Syntax(text))),
    }
}

fn preflight(origin: &str, found: &Found) -> Reply {
    let mut reply = Reply::empty(204);
    for (name, value) in PREFLIGHT {
        reply = reply.header(name, value);
    }
    if let Found::MethodNotAllowed(allow) = found {
        reply = reply.header("allow", allow);
    }
    reply
        .header("access-control-allow-origin", origin)
        .header("vary", "Origin")
        .header("vary", "Access-Control-Request-Method")
        .header("vary", "Access-Control-Request-Headers")
}

async fn dispatch(route: Route, call: Call) -> Result<Reply, Failure> {
    match route {
        Route::Root => Ok(inventory::root()),
        Route::Version => Ok(inventory::version(&call.world)),
        Route::Status => Ok(inventory::status()),
        Route::Tags => Ok(inventory::tags(&call.world)),
        Route::Ps => Ok(inventory::ps(&call.world).await),
        Route::Show => inventory::show(&call),
        Route::Me | Route::Signout | Route::Experimental => {
            Err(Failure::new(503, "account unavailable"))
        }
        Route::Recommendations => Ok(inventory::recommendations()),
        Route::Chat => native::chat(call).await,
        Route::Generate => native::generate(call).await,
        Route::Embed => embed::embed(call).await,
        Route::Embeddings => embed::embeddings(call).await,
        Route::Pull => transfer::pull(&call).await,
        Route::Push => transfer::push(&call).await,
        Route::Create => library::create(&call).await,
        Route::Copy => library::copy(&call),
        Route::Delete => library::delete(&call),
        Route::BlobHead => transfer::blob_head(&call.world, &call.parameter),
        Route::V1Chat => openai::chat(call).await,
        Route::V1Completions => openai::completions(call).await,
        Route::V1Embeddings => embed::v1(call).await,
        Route::V1Models => Ok(inventory::v1_models(&call.world)),
        Route::V1Model => inventory::v1_model(&call.world, &call.parameter),
        Route::V1Responses => responses::responses(call).await,
        Route::V1Audio => audio::transcriptions(call).await,
        Route::V1Messages => messages::messages(call).await,
        Route::V1Images => eras::images(call).await,
        Route::Imagine => eras::imagine(call).await,
        // Handled before the body is read.
        Route::BlobUpload => Err(Failure::new(500, "unreachable")),
    }
}
