//! One request from guard to answer.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, HOST, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response as HttpResponse, StatusCode, Version};

use crate::domain::route::{Own, Route, allowed_methods, error_dialect, route};
use crate::guard::Admission;
use crate::ollama::client::empty_body;

use super::caller::Caller;
use super::error::Told;
use super::headers::token;
use super::places::{Crowd, Seat};
use super::problem::{Code, Problem};
use super::{Edge, Response, body, embed, jobs, own, pass, queued, unsure};

/// Seconds after which a crowd may have been served.
const CROWDED_RETRY_S: u64 = 5;

/// Serves one request. Never fails: every fault is an answer.
pub(super) async fn handle(
    edge: Arc<Edge>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
        // RFC 9112, 3.2; Go answers the same.
        body::linger_over(&edge, request);
        return Ok(bare(StatusCode::BAD_REQUEST));
    }
    let cors = match edge.guard.admit(request.method(), request.headers(), request.uri()) {
        Admission::Pass(cors) => cors,
        Admission::Refuse(refusal) => {
            tracing::debug!(http.path = request.uri().path(), reason = refusal.reason, "refused");
            body::linger_over(&edge, request);
            let mut response = bare(refusal.status);
            refusal.cors.apply(response.headers_mut());
            return Ok(response);
        }
        Admission::Preflight(headers) => return Ok(preflight(request.uri().path(), headers)),
    };
    let mut response = admitted(&edge, request).await;
    cors.apply(response.headers_mut());
    Ok(response)
}

async fn admitted(edge: &Arc<Edge>, mut request: Request<Incoming>) -> Response {
    let road = route(request.method().as_str(), request.uri().path());
    let caller = match caller(edge, request.headers()) {
        Some(caller) => {
            request.extensions().get::<Seat>().into_iter().for_each(Seat::let_in);
            caller
        }
        // It tells nothing that a connection to it would not.
        None if road == Route::Own(Own::Health) => Caller::of(request.extensions()),
        None => {
            tracing::debug!(http.path = request.uri().path(), "refused: no key, or a wrong one");
            let response = unauthorised(road, request.uri().path());
            body::linger_over(edge, request);
            return response;
        }
    };
    request.extensions_mut().insert(caller);
    if request.extensions().get() == Some(&Crowd::TooMany) && !matches!(road, Route::Own(_)) {
        let response = crowded(road, request.uri().path());
        body::linger_over(edge, request);
        return response;
    }
    match road {
        Route::Queued(dialect) => queued::queued(edge, request, dialect).await,
        // Boxed: what is rarely asked for must not make the handler of each client that waits as large as itself.
        Route::Unsure(dialect) => Box::pin(unsure::unsure(edge, request, dialect)).await,
        Route::Embed(dialect) => embed::embed(edge, request, dialect).await,
        Route::Pass(_) if request.method() == Method::CONNECT => bare(StatusCode::NOT_IMPLEMENTED),
        Route::Pass(effect) => pass::pass(edge, request, effect).await,
        Route::Jobs => Box::pin(jobs::answer(edge, request)).await,
        Route::Own(own) => own::answer(edge, own, &request).await,
    }
}

/// Who sends these headers; `None` if he is not to be let in.
fn caller(edge: &Edge, headers: &HeaderMap) -> Option<Caller> {
    if edge.keys.are_none() {
        return Some(Caller::anybody());
    }
    edge.keys.find(token(headers)?).map(Caller::with)
}

fn unauthorised(road: Route, path: &str) -> Response {
    const TEXT: &str =
        "foreman asks for a key, as a bearer token or as x-api-key (FOREMAN_TOKEN, FOREMAN_KEYS)";
    let mut response = match road {
        Route::Jobs => Problem::new(Code::Unauthorised, TEXT).answer(),
        _ => Told::new(StatusCode::UNAUTHORIZED, TEXT).answer(error_dialect(path)),
    };
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// There is no place for one more request. The connection is closed, so that its place is somebody's.
fn crowded(road: Route, path: &str) -> Response {
    const TEXT: &str = "too many requests are being served (FOREMAN_CONNECTIONS_MAX); nothing was stored or sent to ollama, try again";
    let told = Told::new(StatusCode::SERVICE_UNAVAILABLE, TEXT).retry_after(CROWDED_RETRY_S);
    let mut response = match road {
        Route::Jobs => Problem::from(told).answer(),
        _ => told.answer(error_dialect(path)),
    };
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn preflight(path: &str, headers: HeaderMap) -> Response {
    let mut response = bare(StatusCode::NO_CONTENT);
    *response.headers_mut() = headers;
    if let Some(methods) = allowed_methods(path) {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    }
    response
}

fn bare(status: StatusCode) -> Response {
    let mut response = HttpResponse::new(empty_body());
    *response.status_mut() = status;
    response
}
