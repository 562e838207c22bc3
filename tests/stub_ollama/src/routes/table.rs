//! Which handler a method and a path lead to, with gin's 404, 405 and slash redirects.

use hyper::Method;

use crate::config::Era;

/// A handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Root,
    Version,
    Status,
    Tags,
    Ps,
    Show,
    Me,
    Signout,
    Experimental,
    Recommendations,
    Chat,
    Generate,
    Embed,
    Embeddings,
    Pull,
    Push,
    Create,
    Copy,
    Delete,
    BlobUpload,
    BlobHead,
    V1Chat,
    V1Completions,
    V1Embeddings,
    V1Models,
    V1Model,
    V1Responses,
    V1Audio,
    V1Messages,
    V1Images,
    Imagine,
}

/// What a method and a path lead to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A handler and the path's parameter.
    Route(Route, String),
    /// The same path with or without its trailing slash.
    Redirect(String),
    /// The path exists for these methods only.
    MethodNotAllowed(String),
    Nothing,
}

/// Every route; a trailing `:` stands for one path segment.
const ROUTES: [(Method, &str, Route); 34] = [
    (Method::GET, "/", Route::Root),
    (Method::HEAD, "/", Route::Root),
    (Method::GET, "/api/version", Route::Version),
    (Method::HEAD, "/api/version", Route::Version),
    (Method::GET, "/api/status", Route::Status),
    (Method::POST, "/api/pull", Route::Pull),
    (Method::POST, "/api/push", Route::Push),
    (Method::GET, "/api/tags", Route::Tags),
    (Method::HEAD, "/api/tags", Route::Tags),
    (Method::POST, "/api/show", Route::Show),
    (Method::DELETE, "/api/delete", Route::Delete),
    (Method::POST, "/api/me", Route::Me),
    (Method::POST, "/api/signout", Route::Signout),
    (Method::DELETE, "/api/user/keys/:", Route::Signout),
    (Method::POST, "/api/create", Route::Create),
    (Method::POST, "/api/blobs/:", Route::BlobUpload),
    (Method::HEAD, "/api/blobs/:", Route::BlobHead),
    (Method::POST, "/api/copy", Route::Copy),
    (Method::POST, "/api/experimental/web_search", Route::Experimental),
    (Method::POST, "/api/experimental/web_fetch", Route::Experimental),
    (Method::GET, "/api/experimental/model-recommendations", Route::Recommendations),
    (Method::GET, "/api/ps", Route::Ps),
    (Method::POST, "/api/generate", Route::Generate),
    (Method::POST, "/api/chat", Route::Chat),
    (Method::POST, "/api/embed", Route::Embed),
    (Method::POST, "/api/embeddings", Route::Embeddings),
    (Method::POST, "/v1/chat/completions", Route::V1Chat),
    (Method::POST, "/v1/completions", Route::V1Completions),
    (Method::POST, "/v1/embeddings", Route::V1Embeddings),
    (Method::GET, "/v1/models", Route::V1Models),
    (Method::GET, "/v1/models/:", Route::V1Model),
    (Method::POST, "/v1/responses", Route::V1Responses),
    (Method::POST, "/v1/audio/transcriptions", Route::V1Audio),
    (Method::POST, "/v1/messages", Route::V1Messages),
];

/// What 0.15 to 0.31 had besides.
const OF_IMAGES: [(Method, &str, Route); 2] = [
    (Method::POST, "/v1/images/generations", Route::V1Images),
    (Method::POST, "/v1/images/edits", Route::V1Images),
];

/// What a later version might have.
const OF_LATER: [(Method, &str, Route); 1] = [(Method::POST, "/api/imagine", Route::Imagine)];

fn routes(era: Era) -> impl Iterator<Item = &'static (Method, &'static str, Route)> {
    let more: &[(Method, &str, Route)] = match era {
        Era::Images => &OF_IMAGES,
        Era::Known => &[],
        Era::Later => &OF_LATER,
    };
    ROUTES.iter().chain(more)
}

/// Finds the handler.
pub(super) fn find(era: Era, method: &Method, path: &str) -> Found {
    if let Some((route, parameter)) = lookup(era, method, path) {
        return Found::Route(route, parameter);
    }
    if path != "/" {
        let other = match path.strip_suffix('/') {
            Some(bare) => bare.to_owned(),
            None => format!("{path}/"),
        };
        if lookup(era, method, &other).is_some() {
            return Found::Redirect(other);
        }
    }
    let allowed: Vec<&str> = routes(era)
        .filter(|(_, pattern, _)| parameter(pattern, path).is_some())
        .map(|(method, _, _)| method.as_str())
        .collect();
    if allowed.is_empty() { Found::Nothing } else { Found::MethodNotAllowed(allowed.join(", ")) }
}

fn lookup(era: Era, method: &Method, path: &str) -> Option<(Route, String)> {
    routes(era)
        .filter(|(allowed, _, _)| allowed == method)
        .find_map(|(_, pattern, route)| Some((*route, parameter(pattern, path)?)))
}

/// Matches a pattern and returns its parameter, empty if it has none.
fn parameter(pattern: &str, path: &str) -> Option<String> {
    match pattern.strip_suffix(':') {
        None => (pattern == path).then(String::new),
        Some(prefix) => {
            let rest = path.strip_prefix(prefix)?;
            (!rest.is_empty() && !rest.contains('/')).then(|| rest.replace("%3A", ":"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gin_s_answers_to_odd_paths_are_kept() {
        let find = |method: &Method, path: &str| find(Era::Known, method, path);
        assert_eq!(find(&Method::GET, "/nope"), Found::Nothing);
        assert_eq!(find(&Method::GET, "/api/chat"), Found::MethodNotAllowed("POST".to_owned()));
        assert_eq!(find(&Method::OPTIONS, "/api/chat"), Found::MethodNotAllowed("POST".to_owned()));
        assert_eq!(find(&Method::OPTIONS, "/api/imagine"), Found::Nothing);
        assert_eq!(find(&Method::POST, "/api/chat/"), Found::Redirect("/api/chat".to_owned()));
        assert_eq!(
            find(&Method::HEAD, "/api/blobs/sha256%3Aab"),
            Found::Route(Route::BlobHead, "sha256:ab".to_owned())
        );
        assert_eq!(find(&Method::GET, "/v1/models/a/b"), Found::Nothing);
    }
}
