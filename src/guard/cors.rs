//! The CORS headers on foreman's answers: name for name and value for value those of Ollama.
//!
//! It must never decide who is allowed (that is `origins`), only say it. Called by the guard and, through
//! [`CorsHeaders::apply`], by whoever writes an answer.

use hyper::HeaderMap;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, HeaderValue, VARY,
};

/// The request headers Ollama lets a page set, spelled as it spells them.
const ALLOWED_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,\
    Openai-Beta,X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,\
    X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,X-Stainless-Package-Version,\
    X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
    X-Stainless-Runtime-Version,X-Stainless-Timeout";

/// The methods Ollama lets a page use: all of them, on every path.
const ALLOWED_METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";

/// How long a browser may remember a preflight, in seconds: Ollama's twelve hours.
const MAX_AGE_SECONDS: &str = "43200";

/// What a preflight depends on, for caches: three lines, as Ollama sends them.
const PREFLIGHT_VARY: [&str; 3] =
    ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"];

/// What the answers to one request say about CORS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CorsHeaders {
    /// Nothing: the request was not a CORS request.
    Absent,
    /// Every origin may read the answer.
    Any,
    /// This origin, as the request spelled it, may read the answer.
    Origin(HeaderValue),
}

impl CorsHeaders {
    /// Puts the headers on an answer, foreman's own or the upstream's.
    ///
    /// An `Access-Control-Allow-Origin` that is there already is replaced, because two make a browser refuse the
    /// answer; a `Vary` that already names the origin is left alone. Applying twice changes nothing.
    pub fn apply(&self, headers: &mut HeaderMap) {
        match self {
            Self::Absent => (),
            Self::Any => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
            Self::Origin(origin) => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                if !varies_by_origin(headers) {
                    headers.append(VARY, HeaderValue::from_static("Origin"));
                }
            }
        }
    }

    /// The headers of the 204 that answers a preflight, in Ollama's order; `Allow` is the caller's to add.
    pub(super) fn preflight(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOWED_METHODS));
        let (origin, vary): (_, &[&str]) = match self {
            Self::Absent => return HeaderMap::new(),
            // The same answer for everybody does not vary.
            Self::Any => (HeaderValue::from_static("*"), &[]),
            Self::Origin(origin) => (origin.clone(), &PREFLIGHT_VARY),
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_SECONDS));
        for name in vary {
            headers.append(VARY, HeaderValue::from_static(name));
        }
        headers
    }
}

/// Whether a cache is already told that the answer differs by origin: by name, or by the `*` that covers all.
fn varies_by_origin(headers: &HeaderMap) -> bool {
    headers
        .get_all(VARY)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .any(|name| name == "*" || name.eq_ignore_ascii_case("Origin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Lines<'text> = &'text [(&'text str, &'text str)];

    fn lines(headers: &HeaderMap) -> Vec<String> {
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn an_answer_never_says_twice_who_may_read_it() {
        let origin = CorsHeaders::Origin(HeaderValue::from_static("http://a.example"));
        let allow_a = "access-control-allow-origin: http://a.example";
        let allow_all = "access-control-allow-origin: *";
        let cases: [(&CorsHeaders, Lines<'_>, &[&str]); 8] = [
            (&CorsHeaders::Absent, &[], &[]),
            (&CorsHeaders::Absent, &[("vary", "Accept")], &["vary: Accept"]),
            (&CorsHeaders::Any, &[], &[allow_all]),
            (&CorsHeaders::Any, &[("access-control-allow-origin", "null")], &[allow_all]),
            (&origin, &[], &[allow_a, "vary: Origin"]),
            (
                &origin,
                &[("access-control-allow-origin", "*"), ("access-control-allow-origin", "null")],
                &[allow_a, "vary: Origin"],
            ),
            (&origin, &[("vary", "Accept, origin")], &["vary: Accept, origin", allow_a]),
            (&origin, &[("vary", "Accept")], &["vary: Accept", "vary: Origin", allow_a]),
        ];
        for (cors, before, after) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in before {
                headers.append(*name, HeaderValue::from_static(value));
            }
            cors.apply(&mut headers);
            assert_eq!(lines(&headers), after, "{cors:?} on {before:?}");
            cors.apply(&mut headers);
            assert_eq!(lines(&headers), after, "{cors:?} twice on {before:?}");
        }
    }
}
