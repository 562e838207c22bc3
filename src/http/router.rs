//! One request from guard to answer.

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HOST, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response as HttpResponse, StatusCode, Version};
use subtle::ConstantTimeEq;

use crate::config::Secret;
use crate::domain::route::{Own, Route, allowed_methods, error_dialect, route};
use crate::guard::Admission;
use crate::ollama::client::empty_body;

use super::error::Told;
use super::headers::token;
use super::problem::{Code, Problem};
use super::{Edge, Response, body, embed, jobs, own, pass, queued, unsure};

/// Serves one request. Never fails: every fault is an answer.
pub(super) async fn handle(
    edge: Arc<Edge>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
        // RFC 9112, 3.2; Go answers the same.
        body::linger(&edge, request.into_body());
        return Ok(bare(StatusCode::BAD_REQUEST));
    }
    let cors = match edge.guard.admit(request.method(), request.headers(), request.uri()) {
        Admission::Pass(cors) => cors,
        Admission::Refuse(refusal) => {
            tracing::debug!(http.path = request.uri().path(), reason = refusal.reason, "refused");
            body::linger(&edge, request.into_body());
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

async fn admitted(edge: &Arc<Edge>, request: Request<Incoming>) -> Response {
    let road = route(request.method().as_str(), request.uri().path());
    if road != Route::Own(Own::Health)
        && let Some(secret) = &edge.config.token
        && !is_authorised(request.headers(), secret)
    {
        let response = unauthorised(road, request.uri().path());
        body::linger(edge, request.into_body());
        return response;
    }
    match road {
        Route::Queued(dialect) => queued::queued(edge, request, dialect).await,
        Route::Unsure(dialect) => unsure::unsure(edge, request, dialect).await,
        Route::Embed(dialect) => embed::embed(edge, request, dialect).await,
        Route::Pass(_) if request.method() == Method::CONNECT => bare(StatusCode::NOT_IMPLEMENTED),
        Route::Pass(effect) => pass::pass(edge, request, effect).await,
        Route::Jobs => jobs::answer(edge, request).await,
        Route::Own(own) => own::answer(edge, own, request.method(), request.uri()).await,
    }
}

/// Compares in constant time, so that a wrong token tells nothing about the right one.
fn is_authorised(headers: &HeaderMap, secret: &Secret) -> bool {
    token(headers).is_some_and(|token| bool::from(token.ct_eq(secret.expose().as_bytes())))
}

fn unauthorised(road: Route, path: &str) -> Response {
    const TEXT: &str = "foreman asks for a bearer token (FOREMAN_TOKEN)";
    let mut response = match road {
        Route::Jobs => Problem::new(Code::Unauthorised, TEXT).answer(),
        _ => Told::new(StatusCode::UNAUTHORIZED, TEXT).answer(error_dialect(path)),
    };
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
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
