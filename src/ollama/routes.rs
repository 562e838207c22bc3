//! Whether this Ollama has a route that foreman does not know, asked of itself and remembered.
//!
//! Its router tells a path that is not there (404) from one that is there for another method (405, with the methods in
//! `Allow`), and has no handler for `OPTIONS` on any path: asking runs nothing. `http` asks before it queues a request for such
//! a route, so that nobody waits in the queue for a 404.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::{ALLOW, HeaderMap};
use hyper::{Method, Request};

use super::calls::METADATA_WAIT;
use super::client::{Ollama, SendError, empty_body};

/// Paths remembered. An Ollama has some forty; beyond this many somebody makes them up, and all are forgotten.
const PATHS_MAX: usize = 256;

/// Longer paths are asked for each time.
const PATH_BYTES_MAX: usize = 256;

/// What an upstream says of `POST` on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// It has the route.
    Yes,
    /// It will answer 404, 405 or a redirect.
    No,
    /// It did not say, or is no Ollama.
    Unsaid,
}

/// What is known of the upstream's routes. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Routes(Arc<Mutex<Known>>);

/// What one upstream said since it was last away. Another version may have other routes.
#[derive(Debug, Default)]
struct Known {
    generation: (u64, String),
    posts: HashMap<String, Takes>,
}

impl Routes {
    /// Whether the upstream takes a `POST` on `path`. `generation` is how often it was away, and its version: what it said
    /// before holds for no other.
    ///
    /// # Errors
    /// [`SendError::Unreachable`] only: whatever else happens, it did not say.
    pub async fn takes_post(
        &self,
        ollama: &Ollama,
        generation: (u64, String),
        path: &str,
    ) -> Result<Takes, SendError> {
        if let Some(takes) = self.known().recall(&generation, path) {
            return Ok(takes);
        }
        let takes = ask(ollama, path).await?;
        self.known().remember(generation, path, takes);
        Ok(takes)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn recall(&self, generation: &(u64, String), path: &str) -> Option<Takes> {
        (self.generation == *generation).then(|| self.posts.get(path).copied()).flatten()
    }

    fn remember(&mut self, generation: (u64, String), path: &str, takes: Takes) {
        if takes == Takes::Unsaid || path.len() > PATH_BYTES_MAX {
            return;
        }
        if self.generation != generation || self.posts.len() >= PATHS_MAX {
            self.posts.clear();
            self.generation = generation;
        }
        self.posts.insert(path.to_owned(), takes);
    }
}

async fn ask(ollama: &Ollama, path: &str) -> Result<Takes, SendError> {
    let request = Request::builder().method(Method::OPTIONS).uri(path).body(empty_body());
    let Ok(request) = request else { return Ok(Takes::Unsaid) };
    match tokio::time::timeout(METADATA_WAIT, ollama.send(request)).await {
        Ok(Ok(answer)) => Ok(takes(answer.status().as_u16(), answer.headers())),
        Ok(Err(fault @ SendError::Unreachable { .. })) => Err(fault),
        Ok(Err(_)) | Err(_) => Ok(Takes::Unsaid),
    }
}

fn takes(status: u16, headers: &HeaderMap) -> Takes {
    let mut methods = headers
        .get_all(ALLOW)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .peekable();
    match status {
        // A redirect, or that the path is none, is told before a handler is looked for.
        404 | 400 | 301 | 307 | 308 => Takes::No,
        405 if methods.peek().is_none() => Takes::Unsaid,
        405 if methods.any(|method| method == "POST") => Takes::Yes,
        405 => Takes::No,
        _ => Takes::Unsaid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_router_says_what_it_has_by_its_refusal() {
        let said = |status, allow: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in allow {
                headers.append(ALLOW, HeaderValue::from_static(value));
            }
            takes(status, &headers)
        };
        assert_eq!(said(405, &["POST"]), Takes::Yes);
        assert_eq!(said(405, &["GET, POST"]), Takes::Yes);
        assert_eq!(said(405, &["HEAD", "POST"]), Takes::Yes);
        assert_eq!(said(405, &["GET, HEAD"]), Takes::No);
        assert_eq!(said(404, &[]), Takes::No);
        assert_eq!(said(307, &[]), Takes::No);
        assert_eq!(said(400, &[]), Takes::No);
        // A proxy that answers preflights, or a router that names no methods.
        for (status, allow) in [(200, "GET, POST"), (204, "POST"), (501, "POST"), (403, "POST")] {
            assert_eq!(said(status, &[allow]), Takes::Unsaid);
        }
        assert_eq!(said(405, &[]), Takes::Unsaid);
    }

    #[test]
    fn what_was_said_holds_until_the_upstream_is_another() {
        let mut known = Known::default();
        let first = (1, "0.31.0".to_owned());
        known.remember(first.clone(), "/v1/images/edits", Takes::Yes);
        known.remember(first.clone(), "/api/later", Takes::Unsaid);
        assert_eq!(known.recall(&first, "/v1/images/edits"), Some(Takes::Yes));
        assert_eq!(known.recall(&first, "/api/later"), None);
        for other in [(1, "0.33.0".to_owned()), (2, "0.31.0".to_owned())] {
            assert_eq!(known.recall(&other, "/v1/images/edits"), None);
        }
        known.remember((2, "0.33.0".to_owned()), "/v1/images/edits", Takes::No);
        assert_eq!(known.recall(&first, "/v1/images/edits"), None);
    }

    #[test]
    fn paths_that_are_made_up_are_forgotten() {
        let mut known = Known::default();
        for number in 0..10 * PATHS_MAX {
            known.remember((1, String::new()), &format!("/api/{number}"), Takes::No);
            assert!(known.posts.len() <= PATHS_MAX);
        }
        known.remember((1, String::new()), &"x".repeat(PATH_BYTES_MAX + 1), Takes::No);
        assert!(known.posts.keys().all(|path| path.len() <= PATH_BYTES_MAX));
    }
}
