//! Which road a request takes, by method and path alone. Pure; called by `http` for every request.
//!
//! It never looks at a body: where a queued request really goes (its *placement*) is decided after the peek.

use super::dialect::Dialect;

/// The road of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Needs the GPU: becomes a job.
    Queued(Dialect),
    /// A POST that foreman does not know, or that only some Ollamas have: a job, if the upstream has the route.
    Unsure(Dialect),
    /// An embedding: goes straight through, beside the queue.
    Embed(Dialect),
    /// Metadata, transfers, and what is nothing of Ollama's: relayed as it is, with what it may change at the upstream.
    Pass(Effect),
    /// Foreman's own surface: what it says of itself.
    Own(Own),
    /// `/jobs`, `/events`, `/deliveries` and what is below them, with any method: the asynchronous surface, and its
    /// description at `/openapi.json`.
    Jobs,
}

/// What a relayed request may change at the upstream once it has been answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing foreman keeps track of.
    None,
    /// The list of installed models (pull). A pull often changes nothing, and takes minutes: nothing waits for it.
    Inventory,
    /// What a name stands for (create, copy): the runner of what it stood for would stay resident.
    Replacement,
    /// Removes a model, whose runner would stay resident and could then not be unloaded by name.
    Removal,
}

/// Foreman's own routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// `GET /healthz`: whether the process serves.
    Health,
    /// `GET /readyz`: whether it can take work.
    Ready,
    /// `GET /status`: what is going on, for `foreman status`.
    Status,
    /// `GET /trace`: the jobs that ran last, for `foreman trace`.
    Trace,
}

/// Routes by method and decoded path. A percent-encoded path is the same route, as in Go's server.
///
/// A newer Ollama's routes work unseen: what is not a POST below `/api/` or `/v1/` is relayed, and what is one may take the GPU.
pub fn route(method: &str, path: &str) -> Route {
    let decoded = percent_decoded(path);
    match (method, decoded.as_deref().unwrap_or(path)) {
        ("POST", "/api/chat") => Route::Queued(Dialect::Chat),
        ("POST", "/api/generate") => Route::Queued(Dialect::Generate),
        ("POST", "/v1/chat/completions") => Route::Queued(Dialect::OpenAiChat),
        ("POST", "/v1/completions") => Route::Queued(Dialect::OpenAiCompletions),
        ("POST", "/v1/responses") => Route::Queued(Dialect::Responses),
        ("POST", "/v1/messages") => Route::Queued(Dialect::Messages),
        ("POST", "/v1/audio/transcriptions") => Route::Queued(Dialect::Transcription),
        ("POST", "/api/embed") => Route::Embed(Dialect::Embed),
        ("POST", "/api/embeddings") => Route::Embed(Dialect::Embeddings),
        ("POST", "/v1/embeddings") => Route::Embed(Dialect::OpenAiEmbeddings),
        ("DELETE", "/api/delete") => Route::Pass(Effect::Removal),
        ("POST", "/api/pull") => Route::Pass(Effect::Inventory),
        ("POST", "/api/create" | "/api/copy") => Route::Pass(Effect::Replacement),
        ("GET" | "HEAD", "/healthz") => Route::Own(Own::Health),
        ("GET" | "HEAD", "/readyz") => Route::Own(Own::Ready),
        ("GET" | "HEAD", "/status") => Route::Own(Own::Status),
        ("GET" | "HEAD", "/trace") => Route::Own(Own::Trace),
        (_, path) if is_of_jobs(path) => Route::Jobs,
        ("POST", path) if is_without_gpu(path) => Route::Pass(Effect::None),
        ("POST", "/v1/images/generations" | "/v1/images/edits") => Route::Unsure(Dialect::Images),
        ("POST", path) if path.starts_with("/api/") || path.starts_with("/v1/") => {
            Route::Unsure(Dialect::Other(error_dialect(path).error_shape()))
        }
        _ => Route::Pass(Effect::None),
    }
}

/// Whether a POST is known to leave the GPU alone: it may take hours, or bring gigabytes, and never waits for a job.
///
/// `count_tokens` is Anthropic's; no Ollama so far has it.
fn is_without_gpu(path: &str) -> bool {
    const PATHS: [&str; 7] = [
        "/api/push",
        "/api/show",
        "/api/me",
        "/api/signout",
        "/api/experimental/web_search",
        "/api/experimental/web_fetch",
        "/v1/messages/count_tokens",
    ];
    path.starts_with("/api/blobs/") || PATHS.contains(&path)
}

/// Whether a path is of the asynchronous surface. Ollama has none that begins so.
fn is_of_jobs(path: &str) -> bool {
    const ROOTS: [&str; 3] = ["/jobs", "/events", "/deliveries"];
    let is_below = |root: &&str| {
        path.strip_prefix(*root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path == "/openapi.json" || ROOTS.iter().any(is_below)
}

/// The methods Ollama allows on a path of its own, for the `Allow` header of a preflight answer, which it sends with every
/// path it knows (`server/routes.go`, recorded from 0.32).
pub fn allowed_methods(path: &str) -> Option<&'static str> {
    match path {
        "/" | "/api/version" | "/api/tags" => Some("GET, HEAD"),
        "/api/ps" | "/api/status" | "/v1/models" => Some("GET"),
        "/api/delete" => Some("DELETE"),
        "/api/show" | "/api/push" | "/api/me" | "/api/signout" => Some("POST"),
        _ if path.starts_with("/api/blobs/") => Some("POST, HEAD"),
        _ if path.starts_with("/v1/models/") => Some("GET"),
        _ => match route("POST", path) {
            Route::Queued(_)
            | Route::Embed(_)
            | Route::Pass(Effect::Inventory | Effect::Replacement) => Some("POST"),
            Route::Pass(Effect::None | Effect::Removal)
            | Route::Unsure(_)
            | Route::Own(_)
            | Route::Jobs => None,
        },
    }
}

/// The dialect in which an error on this path must be told.
pub fn error_dialect(path: &str) -> Dialect {
    if path == "/v1/messages" || path.starts_with("/v1/messages/") {
        Dialect::Messages
    } else if path.starts_with("/v1/") {
        Dialect::OpenAiChat
    } else {
        Dialect::Chat
    }
}

/// Decodes `%XX`; `None` where there is nothing to decode or where it is malformed (Ollama then answers 400).
fn percent_decoded(path: &str) -> Option<String> {
    if !path.contains('%') {
        return None;
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        decoded.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::dialect::ErrorShape;

    #[test]
    fn gpu_routes_are_queued_only_for_post() {
        assert_eq!(route("POST", "/api/chat"), Route::Queued(Dialect::Chat));
        assert_eq!(route("GET", "/api/chat"), Route::Pass(Effect::None));
        assert_eq!(route("POST", "//api/chat"), Route::Pass(Effect::None));
        assert_eq!(route("POST", "/v1/messages"), Route::Queued(Dialect::Messages));
    }

    #[test]
    fn an_encoded_path_does_not_slip_past_the_queue() {
        assert_eq!(route("POST", "/api/%63hat"), Route::Queued(Dialect::Chat));
        let other = Route::Unsure(Dialect::Other(ErrorShape::Native));
        for path in ["/api/%6", "/api/%zz", "/%61pi/imagine"] {
            assert_eq!(route("POST", path), other, "{path}");
        }
    }

    #[test]
    fn a_post_that_is_not_known_may_take_the_gpu() {
        for (path, shape) in [
            ("/api/imagine", ErrorShape::Native),
            ("/api/chat/", ErrorShape::Native),
            ("/api/tags", ErrorShape::Native),
            ("/v1/audio/speech", ErrorShape::OpenAi),
            ("/v1/messages/batches", ErrorShape::Anthropic),
        ] {
            assert_eq!(route("POST", path), Route::Unsure(Dialect::Other(shape)), "{path}");
            assert_eq!(route("PUT", path), Route::Pass(Effect::None));
        }
        let images = Route::Unsure(Dialect::Images);
        assert_eq!(route("POST", "/v1/images/edits"), images);
        for path in ["/", "/nope", "/apix", "/api", "/v1", "/API/chat"] {
            assert_eq!(route("POST", path), Route::Pass(Effect::None), "{path}");
        }
    }

    #[test]
    fn what_leaves_the_gpu_alone_is_relayed() {
        for path in [
            "/api/pull",
            "/api/push",
            "/api/create",
            "/api/copy",
            "/api/show",
            "/api/me",
            "/api/signout",
            "/api/blobs/sha256:ab",
            "/api/blobs/sha256%3Aab",
            "/api/experimental/web_search",
            "/api/experimental/web_fetch",
            "/v1/messages/count_tokens",
        ] {
            assert!(matches!(route("POST", path), Route::Pass(_)), "{path}");
        }
    }

    #[test]
    fn what_changes_the_inventory_is_known() {
        assert_eq!(route("DELETE", "/api/delete"), Route::Pass(Effect::Removal));
        assert_eq!(route("POST", "/api/pull"), Route::Pass(Effect::Inventory));
        assert_eq!(route("POST", "/api/copy"), Route::Pass(Effect::Replacement));
        assert_eq!(route("POST", "/api/push"), Route::Pass(Effect::None));
    }
}
