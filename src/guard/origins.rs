//! The Origin half of the guard: which web origins may call foreman from a browser.
//!
//! The list and its wildcards mean what they mean to Ollama (gin-contrib/cors v1.7.2), quirks included, so that one
//! `OLLAMA_ORIGINS` serves both. It must never parse an origin as a URL: the rules are rules about bytes.

use hyper::HeaderMap;
use hyper::header::ORIGIN;

use super::cors::CorsHeaders;

/// Origins Ollama always allows: local pages on any port, and the shells of desktop applications.
const DEFAULT_ORIGINS: [&str; 17] = [
    "http://localhost",
    "https://localhost",
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1",
    "https://127.0.0.1",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "http://0.0.0.0",
    "https://0.0.0.0",
    "http://0.0.0.0:*",
    "https://0.0.0.0:*",
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
];

/// What an entry without a wildcard must begin with. Browser extensions may be listed, but none is by default.
const SCHEMES: [&str; 6] = [
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
];

/// The origins that are allowed.
#[derive(Debug, Clone)]
pub(super) enum Origins {
    /// `OLLAMA_ORIGINS` has an entry that is just `*`.
    Any,
    /// Ollama's defaults and the entries of `OLLAMA_ORIGINS`.
    Listed(Vec<Rule>),
}

/// One entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// `*` alone.
    Any,
    /// This origin, in lower case. Browsers send origins in lower case; another spelling is not the same origin.
    Exact(String),
    /// Whatever begins and ends like this. The two may overlap, as in Ollama: `http://x.*.example`
    /// allows `http://x.example`.
    Pattern {
        /// What stands before the `*`, as it was written.
        prefix: String,
        /// What stands after it.
        suffix: String,
    },
}

/// Checks a value of `OLLAMA_ORIGINS` without making anything of it.
///
/// # Errors
///
/// Every entry that Ollama would refuse to start with, or that could never match, with the value and what is allowed.
pub fn check_origins(text: &str) -> Result<(), String> {
    let faults: Vec<String> = entries(text).filter_map(|entry| Rule::parse(entry).err()).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

impl Origins {
    /// Makes the list from a value of `OLLAMA_ORIGINS`, without the entries that [`check_origins`] reports.
    pub(super) fn new(text: &str) -> Self {
        let rules: Vec<Rule> = entries(text)
            .chain(DEFAULT_ORIGINS)
            .filter_map(|entry| Rule::parse(entry).ok())
            .collect();
        if rules.contains(&Rule::Any) { Self::Any } else { Self::Listed(rules) }
    }

    /// The CORS headers for a request to `host`, or `None` if its origin is not allowed.
    ///
    /// Without an Origin, or with the origin of `host` itself under either scheme, a request is not a CORS request.
    /// A rebound page is of the same origin too: it is the host check that stops it.
    pub(super) fn cors_for(&self, headers: &HeaderMap, host: &str) -> Option<CorsHeaders> {
        let origin = match headers.get(ORIGIN) {
            Some(origin) if !origin.is_empty() => origin,
            Some(_) | None => return Some(CorsHeaders::Absent),
        };
        let is_same = ["http://", "https://"].iter().any(|scheme| {
            origin.as_bytes().strip_prefix(scheme.as_bytes()) == Some(host.as_bytes())
        });
        if is_same {
            return Some(CorsHeaders::Absent);
        }
        match self {
            Self::Any => Some(CorsHeaders::Any),
            Self::Listed(rules) => rules
                .iter()
                .any(|rule| rule.allows(origin.as_bytes()))
                .then(|| CorsHeaders::Origin(origin.clone())),
        }
    }
}

impl Rule {
    /// Reads one entry of the list.
    fn parse(entry: &str) -> Result<Self, String> {
        if entry == "*" {
            return Ok(Self::Any);
        }
        let Some((prefix, suffix)) = entry.split_once('*') else {
            return Self::parse_exact(entry);
        };
        if suffix.contains('*') {
            return Err(format!("origin \"{entry}\" has more than one * (allowed: one)"));
        }
        // Ollama keeps the space and then never matches: said here rather than found out in a browser.
        if entry.contains(char::is_whitespace) {
            return Err(format!("origin \"{entry}\" has a space (allowed: commas without spaces)"));
        }
        Ok(Self::Pattern { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
    }

    fn parse_exact(entry: &str) -> Result<Self, String> {
        if SCHEMES.iter().any(|scheme| entry.starts_with(scheme)) {
            return Ok(Self::Exact(entry.trim().to_lowercase()));
        }
        let allowed = SCHEMES.join(", ");
        Err(format!(
            "origin \"{entry}\" is not known (allowed: begins with {allowed}, or has one *)"
        ))
    }

    fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => origin == exact.as_bytes(),
            Self::Pattern { prefix, suffix } => {
                origin.starts_with(prefix.as_bytes()) && origin.ends_with(suffix.as_bytes())
            }
        }
    }
}

/// The entries of a value of `OLLAMA_ORIGINS`: cut at commas only, quotes and spaces gone from its two ends only.
fn entries(text: &str) -> impl Iterator<Item = &str> {
    let text = text.trim().trim_matches(['"', '\'']);
    text.split(',').filter(move |_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn allows(list: &str, origin: &'static str) -> bool {
        let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
        Origins::new(list).cors_for(&headers, "127.0.0.1:11435").is_some()
    }

    #[test]
    fn local_pages_and_desktop_shells_are_allowed_by_default() {
        let cases = [
            ("http://localhost", true),
            ("https://localhost:3000", true),
            ("http://127.0.0.1:8080", true),
            ("https://0.0.0.0:1", true),
            ("app://obsidian.md", true),
            ("file://", true),
            ("tauri://localhost", true),
            ("vscode-webview://1a2b", true),
            ("vscode-file://vscode-app", true),
            ("http://evil.example", false),
            ("http://localhost.evil.example", false),
            ("http://127.0.0.1.evil.example:80", false),
            ("http://[::1]:3000", false),
            ("http://192.168.1.5", false),
            ("HTTP://LOCALHOST", false),
            ("ftp://localhost", false),
            ("null", false),
            ("*", false),
            ("chrome-extension://abc", false),
            ("moz-extension://abc", false),
        ];
        for (origin, allowed) in cases {
            assert_eq!(allows("", origin), allowed, "{origin}");
        }
    }

    #[test]
    fn a_listed_origin_is_allowed_beside_the_defaults() {
        let cases = [
            ("http://a.example", "http://a.example", true),
            ("http://a.example", "http://localhost:3000", true),
            ("http://a.example", "https://a.example", false),
            ("http://a.example", "http://a.example:81", false),
            ("HTTP://A.example", "http://a.example", false),
            ("http://A.Example", "http://a.example", true),
            ("http://a.example,https://b.example", "https://b.example", true),
            ("http://a.example ,https://b.example", "http://a.example", true),
            (" \"http://a.example\" ", "http://a.example", true),
            ("'*'", "http://anyone.example", true),
            ("http://a.example,*", "null", true),
            ("http://a.example, *", "http://evil.example", false),
            ("*.a.example", "https://x.a.example", true),
            ("*.a.example", "https://xa.example", false),
            ("http://a.*", "http://a.evil.example", true),
            ("http://x.*.example", "http://x.y.example", true),
            // The dot counts for both ends: Ollama allows this one too.
            ("http://x.*.example", "http://x.example", true),
            ("http://x.*.example", "http://x-example", false),
            ("http://a*a", "http://a", true),
            ("http://*.A.example", "http://x.a.example", false),
            ("chrome-extension://abc", "chrome-extension://abc", true),
            ("chrome-extension://*", "chrome-extension://xyz", true),
            ("chrome-extension://*", "moz-extension://xyz", false),
        ];
        for (list, origin, allowed) in cases {
            assert_eq!(allows(list, origin), allowed, "{origin} by {list:?}");
        }
    }

    #[test]
    fn a_list_that_ollama_would_not_start_with_is_reported_and_allows_nothing() {
        let cases = [
            ("", None),
            ("*", None),
            ("http://a.example,https://*.b.example", None),
            ("a.example", Some("\"a.example\" is not known")),
            ("http://a.example, http://b.example", Some("\" http://b.example\" is not known")),
            ("http://a.example,", Some("\"\" is not known")),
            ("app://a", Some("\"app://a\" is not known")),
            ("http://*.*", Some("\"http://*.*\" has more than one *")),
            ("http://a.example, http://*.b", Some("\" http://*.b\" has a space")),
            ("a.example,**", Some("; origin \"**\"")),
        ];
        for (list, fault) in cases {
            match (check_origins(list), fault) {
                (Ok(()), None) => (),
                (Err(message), Some(part)) => assert!(message.contains(part), "{message}"),
                (outcome, _) => panic!("{list:?} gave {outcome:?}"),
            }
        }
        assert!(!allows("**", "http://evil.example"));
        assert!(!allows("a.example", "a.example"));
    }
}
