//! Who asks, and how urgently: read from a request's connection and its headers.

use std::net::IpAddr;

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::request::Parts;

use crate::domain::job::Class;
use crate::domain::whom::{ClientId, Whom};

use super::caller::Caller;
use super::error::Told;
use super::headers::{Credentials, token};

/// The class a client wants for its job.
const PRIORITY: HeaderName = HeaderName::from_static("x-foreman-priority");

/// Characters of a bad priority that are told back.
const TOLD_CHARACTERS_MAX: usize = 32;

/// The other end of a connection. Travels with each of its requests, as an extension.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Its address, without the port.
    pub(super) address: IpAddr,
    /// The number of the connection, counted from 1 since the daemon started.
    pub(super) connection: u64,
}

/// Who sent this request.
///
/// A token that is foreman's own is not looked at: one is the same for everybody and tells nobody apart, and of a named key
/// the name does. The programs of a key are told apart by what else tells programs apart, since each works by itself.
pub(super) fn whom(parts: &Parts, credentials: Credentials) -> Whom {
    let scope = Caller::of(&parts.extensions).scope();
    let token = match credentials {
        Credentials::Foremans => scope.as_deref().map(str::as_bytes),
        Credentials::Upstreams => token(&parts.headers),
    };
    let peer = parts.extensions.get::<Peer>();
    // A v4 client is the same client when it comes in on a socket for both.
    let address = peer.map_or_else(String::new, |peer| peer.address.to_canonical().to_string());
    let agent = parts.headers.get(USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    Whom {
        client: ClientId::of(token, &address, agent),
        connection: peer.map_or(0, |peer| peer.connection),
    }
}

/// How urgent a request says it is: `x-foreman-priority`, if it is there.
///
/// # Errors
/// 400 for anything but one name of a class, in any case of letters.
pub(super) fn class(headers: &HeaderMap) -> Result<Option<Class>, Told> {
    let mut given = headers.get_all(PRIORITY).iter();
    let Some(first) = given.next() else { return Ok(None) };
    let name = String::from_utf8_lossy(first.as_bytes()).to_ascii_lowercase();
    match (Class::from_name(&name), given.next()) {
        (Some(class), None) => Ok(Some(class)),
        (None, _) | (_, Some(_)) => Err(no_priority(&name)),
    }
}

fn no_priority(name: &str) -> Told {
    let name: String = name.chars().take(TOLD_CHARACTERS_MAX).collect();
    let allowed = Class::ALL.map(Class::name).join(", ");
    let text = format!(
        "x-foreman-priority: {name:?} cannot be used, it must be one of {allowed}; nothing was stored"
    );
    Told::new(StatusCode::BAD_REQUEST, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn parts(lines: &[(&str, &str)], peer: Option<(&str, u64)>) -> Parts {
        let mut request = Request::builder();
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        if let Some((address, connection)) = peer {
            parts.extensions.insert(Peer { address: address.parse().unwrap(), connection });
        }
        parts
    }

    #[test]
    fn a_client_is_its_token_address_and_agent_whatever_its_connection() {
        let lines = [("authorization", "Bearer sk"), ("user-agent", "a")];
        let one = whom(&parts(&lines, Some(("10.0.0.1", 1))), Credentials::Upstreams);
        let two = whom(&parts(&lines, Some(("::ffff:10.0.0.1", 2))), Credentials::Upstreams);
        assert_eq!((one.client, one.connection, two.connection), (two.client, 1, 2));
        let as_key = [("x-api-key", "sk"), ("user-agent", "a")];
        let key = whom(&parts(&as_key, Some(("10.0.0.1", 3))), Credentials::Upstreams);
        assert_eq!(key.client, one.client);
        for (lines, address) in [
            ([("authorization", "Bearer other"), ("user-agent", "a")], "10.0.0.1"),
            ([("authorization", "Bearer sk"), ("user-agent", "b")], "10.0.0.1"),
            ([("authorization", "Basic sk"), ("user-agent", "a")], "10.0.0.1"),
            (lines, "10.0.0.2"),
        ] {
            let other = whom(&parts(&lines, Some((address, 1))), Credentials::Upstreams);
            assert_ne!(other.client, one.client, "{lines:?} {address}");
        }
    }

    /// Foreman's one token is everybody's, and must not get near an id that is stored and logged.
    #[test]
    fn foremans_own_token_is_no_part_of_an_id() {
        let peer = Some(("10.0.0.1", 1));
        let with = whom(&parts(&[("authorization", "Bearer t")], peer), Credentials::Foremans);
        let without = whom(&parts(&[], peer), Credentials::Foremans);
        assert_eq!(with.client, without.client);
        assert_eq!(whom(&parts(&[], None), Credentials::Foremans).connection, 0);
    }

    #[test]
    fn a_priority_is_one_of_three_names() {
        let read = |lines: &[(&str, &str)]| class(&parts(lines, None).headers);
        assert_eq!(read(&[]), Ok(None));
        for (name, class) in [("batch", Class::Batch), ("NORMAL", Class::Normal)] {
            assert_eq!(read(&[("X-Foreman-Priority", name)]), Ok(Some(class)));
        }
        let long = "x".repeat(10_000);
        for bad in ["", "urgent", "batch, batch", "1", "interactive;q=1", "batch\u{e9}", &long] {
            let told = read(&[("x-foreman-priority", bad)]).unwrap_err();
            assert_eq!(told.status, StatusCode::BAD_REQUEST, "{bad}");
            assert!(told.text.contains("interactive, normal, batch") && told.text.len() < 200);
        }
        assert!(read(&[("x-foreman-priority", "batch"), ("x-foreman-priority", "batch")]).is_err());
    }
}
