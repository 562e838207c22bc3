//! The road of a `POST` to a route that foreman does not know, or that only some Ollamas have.
//!
//! It may take the GPU, so it is a job, but only if the upstream has the route: nobody waits in the queue for a 404.

use std::sync::Arc;

use hyper::Request;
use hyper::body::Incoming;

use crate::domain::dialect::Dialect;
use crate::domain::route::Effect;
use crate::ollama::health::Upstream;
use crate::ollama::routes::Takes;

use super::{Edge, Response, body, pass, queued};

/// Serves such a request.
pub(super) async fn unsure(
    edge: &Arc<Edge>,
    request: Request<Incoming>,
    dialect: Dialect,
) -> Response {
    let path = request.uri().path();
    let generation = (edge.health.outages(), version(edge));
    match edge.routes.takes_post(&edge.ollama, generation, path).await {
        Ok(Takes::Yes | Takes::Unsaid) => queued::queued(edge, request, dialect).await,
        Ok(Takes::No) => pass::pass(edge, request, Effect::None).await,
        Err(fault) => {
            body::linger_over(edge, request);
            pass::told(edge, &fault).answer(dialect)
        }
    }
}

fn version(edge: &Edge) -> String {
    match edge.health.now() {
        Upstream::Up { version, .. } => version,
        Upstream::Unknown | Upstream::Down { .. } => String::new(),
    }
}
