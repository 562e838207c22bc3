//! Which headers cross foreman: end-to-end ones do, hop-by-hop ones (RFC 9110, 7.6.1) do not.

use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};

use crate::ollama::hop::strip_hop_by_hop;
use crate::store::HeaderList;

/// Anthropic's clients authenticate with this.
pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Headers between clients and foreman begin with this.
const FOREMANS: &str = "x-foreman-";

/// Prepares a client's headers for the upstream. `Host` is set by the client of Ollama; `Origin` was judged here, and
/// upstream it would look foreign beside that `Host`; `Expect` is answered by foreman's own server; what is said to foreman
/// (`x-foreman-priority`) is nobody else's business.
///
/// Credentials that were for foreman stop here.
pub(super) fn for_upstream(headers: &mut HeaderMap, credentials: Credentials) {
    strip_hop_by_hop(headers);
    headers.remove(HOST);
    headers.remove(ORIGIN);
    headers.remove(EXPECT);
    // hyper sets the length of what is really sent; a body that was cut is shorter than it was.
    headers.remove(CONTENT_LENGTH);
    let foremans = |name: &&HeaderName| name.as_str().starts_with(FOREMANS);
    let said: Vec<HeaderName> = headers.keys().filter(foremans).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    if credentials == Credentials::Foremans {
        headers.remove(AUTHORIZATION);
        headers.remove(X_API_KEY);
    }
}

/// The token a client sends: as a bearer, else as `x-api-key`.
pub(super) fn token(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, token) = value.split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
    });
    bearer.or_else(|| headers.get(X_API_KEY).map(HeaderValue::as_bytes))
}

/// Whose credentials a client's `Authorization` header holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Foreman's: it asks for a token.
    Foremans,
    /// The upstream's: foreman is open.
    Upstreams,
}

/// Headers as they are stored.
pub(super) fn to_list(headers: &HeaderMap) -> HeaderList {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

/// Stored headers, as they are sent. What cannot stand in a header is left out.
pub(super) fn from_list(list: &HeaderList) -> HeaderMap {
    list.iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_bytes(value).ok()?))
        })
        .fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_for_foreman_does_not_go_upstream() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        let mut open = headers.clone();
        for_upstream(&mut headers, Credentials::Foremans);
        assert!(headers.is_empty());
        for_upstream(&mut open, Credentials::Upstreams);
        assert_eq!(open.len(), 1);
    }

    #[test]
    fn what_is_said_to_foreman_does_not_go_upstream() {
        let mut headers = HeaderMap::new();
        for name in ["x-foreman-priority", "x-foreman-later", "x-forwarded-for", "x-foremanly"] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("1"));
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("2"));
        }
        for_upstream(&mut headers, Credentials::Upstreams);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-foremanly", "x-forwarded-for"]);
    }

    #[test]
    fn stored_headers_come_back_in_order() {
        let mut headers = HeaderMap::new();
        headers.append("vary", HeaderValue::from_static("a"));
        headers.append("vary", HeaderValue::from_static("b"));
        assert_eq!(from_list(&to_list(&headers)), headers);
    }
}
