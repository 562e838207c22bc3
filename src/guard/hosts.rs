//! The Host half of the guard: which host a request was sent to, and whether that host is this machine.
//!
//! It must never resolve a name: a name that resolves to this machine is exactly how DNS rebinding works.
//!
//! One difference from Ollama, on the strict side: Ollama also accepts the address of any local network interface,
//! which the standard library cannot list. What is missing is only a *public* or link-local address of this machine,
//! since private ones pass anyway, and a listener on loopback is reached under such an address only through a
//! forwarder. An IPv6 address with a zone (`fe80::1%eth0`), which no browser sends, is refused too.

use std::net::{IpAddr, SocketAddr};

use hyper::header::HOST;
use hyper::{HeaderMap, Uri};

/// Endings of names that public DNS never serves, so that no outside page can be loaded under one.
const LOCAL_ENDINGS: [&str; 3] = [".localhost", ".local", ".internal"];

/// The hosts a listener answers to.
#[derive(Debug, Clone)]
pub(super) enum Hosts {
    /// The listener can be reached from elsewhere, under names nobody can list. Ollama checks nothing then.
    Any,
    /// The listener is on loopback: only this machine reaches it, so the host must be this machine.
    Local {
        /// This machine's name in lower case.
        hostname: String,
    },
}

/// How a host is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostVerdict {
    /// The listener does not check hosts.
    Unchecked,
    /// The host is a loopback, private or unspecified address.
    LocalAddress,
    /// The host is empty or a name that means this machine or its own network.
    LocalName,
    /// The host is somebody else's.
    Foreign,
}

impl Hosts {
    /// Makes the check for one listening address; `hostname` is this machine's name.
    pub(super) fn new(listen: SocketAddr, hostname: &str) -> Self {
        if listen.ip().to_canonical().is_loopback() {
            Self::Local { hostname: hostname.to_ascii_lowercase() }
        } else {
            Self::Any
        }
    }

    /// Says how `host`, with or without a port, is known.
    pub(super) fn judge(&self, host: &str) -> HostVerdict {
        let Self::Local { hostname } = self else {
            return HostVerdict::Unchecked;
        };
        let name = without_port(host);
        if name.parse().is_ok_and(is_local_address) {
            return HostVerdict::LocalAddress;
        }
        let name = name.to_ascii_lowercase();
        let is_local = name.is_empty()
            || name == "localhost"
            || name == *hostname
            || LOCAL_ENDINGS.iter().any(|ending| name.ends_with(ending));
        if is_local { HostVerdict::LocalName } else { HostVerdict::Foreign }
    }
}

/// Finds the host a request was sent to, port included, the way Go's server does.
///
/// An absolute target (`GET http://host/path`) or a CONNECT wins over the Host header; neither gives "". `None`
/// means that Go answers 400: several Host lines, or one with a byte no host can have.
pub(super) fn requested<'request>(
    headers: &'request HeaderMap,
    uri: &'request Uri,
) -> Option<&'request str> {
    let mut lines = headers.get_all(HOST).iter();
    let header = match (lines.next(), lines.next()) {
        (None, _) => "",
        (Some(line), None) => line.to_str().ok().filter(|host| host.bytes().all(is_host_byte))?,
        (Some(_), Some(_)) => return None,
    };
    let target = uri.authority().map_or("", |authority| {
        // `user:password@host`: only what follows the last @ is the host.
        authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host)
    });
    Some(if target.is_empty() { header } else { target })
}

/// Whether an address can only mean this machine or its own network.
///
/// Link-local addresses are absent on purpose: Ollama does not count them. An IPv4 address in IPv6 clothes counts as
/// the IPv4 address, except for the unspecified one; Go makes the same exception.
fn is_local_address(address: IpAddr) -> bool {
    let is_private = match address.to_canonical() {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    };
    is_private || address.to_canonical().is_loopback() || address.is_unspecified()
}

/// Cuts the port off as Go does: only from `name:port` and `[address]:port`; every other shape stays whole.
///
/// So `::1` is an address and passes, while `[::1]` without a port keeps its brackets, is no address, and is refused.
/// That is a quirk of Ollama's, and being kinder here would be being laxer.
fn without_port(host: &str) -> &str {
    let Some((name, _)) = host.rsplit_once(':') else {
        return host;
    };
    let (bare, rest) = match name.strip_prefix('[') {
        Some(bracketed) => match bracketed.strip_suffix(']') {
            Some(bare) => (bare, &host[name.len()..]),
            None => return host,
        },
        None if name.contains(':') => return host,
        None => (name, host),
    };
    if bare.contains(['[', ']']) || rest.contains(['[', ']']) { host } else { bare }
}

/// Whether a byte can stand in a Host header: Go's list, which is RFC 3986 taken loosely.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_cut_off_where_go_cuts_it_off() {
        let cases = [
            ("", ""),
            ("localhost", "localhost"),
            ("localhost:11434", "localhost"),
            ("localhost:", "localhost"),
            (":11434", ""),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]:80", "::1"),
            ("[::1]:", "::1"),
            // Shapes Go cannot split stay whole.
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("[::1:80", "[::1:80"),
            ("[::1]x:80", "[::1]x:80"),
            ("[[::1]]:80", "[[::1]]:80"),
            ("a:b:c", "a:b:c"),
            ("a]:80", "a]:80"),
            ("a:8[0", "a:8[0"),
            ("[]:80", ""),
        ];
        for (host, name) in cases {
            assert_eq!(without_port(host), name, "{host:?}");
        }
    }

    #[test]
    fn a_host_is_local_by_address_or_by_name_or_not_at_all() {
        use HostVerdict::{Foreign, LocalAddress, LocalName};
        let hosts = Hosts::new(([127, 0, 0, 1], 11435).into(), "GPU-Box");
        let cases = [
            ("127.0.0.1:11435", LocalAddress),
            ("127.8.9.10", LocalAddress),
            ("0.0.0.0:11435", LocalAddress),
            ("10.1.2.3", LocalAddress),
            ("172.31.0.1:1", LocalAddress),
            ("192.168.1.5", LocalAddress),
            ("[::1]:11435", LocalAddress),
            ("::1", LocalAddress),
            ("[::]:11435", LocalAddress),
            ("[fd12::1]:80", LocalAddress),
            ("[::ffff:127.0.0.1]:80", LocalAddress),
            ("", LocalName),
            (":11435", LocalName),
            ("localhost", LocalName),
            ("LocalHost:11435", LocalName),
            ("gpu-box", LocalName),
            ("GPU-BOX:11435", LocalName),
            ("nas.local", LocalName),
            ("host.docker.internal:11435", LocalName),
            ("app.localhost:3000", LocalName),
            ("8.8.8.8", Foreign),
            ("172.32.0.1", Foreign),
            ("192.169.0.1:80", Foreign),
            // Link-local passes in Ollama only as an interface's own address.
            ("169.254.1.1", Foreign),
            ("[fe80::1]:80", Foreign),
            ("[fe80::1%eth0]:80", Foreign),
            ("[2001:db8::1]:80", Foreign),
            ("[::ffff:8.8.8.8]:80", Foreign),
            ("[::ffff:0.0.0.0]:80", Foreign),
            ("[::1]", Foreign),
            ("127.1", Foreign),
            ("127.0.0.01", Foreign),
            ("2130706433", Foreign),
            ("localhost.", Foreign),
            ("localhost.evil.example", Foreign),
            ("127.0.0.1.evil.example", Foreign),
            ("evillocal", Foreign),
            ("evillocalhost:80", Foreign),
            ("evilinternal", Foreign),
            ("local", Foreign),
            ("gpu-box.evil.example", Foreign),
        ];
        for (host, verdict) in cases {
            assert_eq!(hosts.judge(host), verdict, "{host:?}");
        }
    }

    #[test]
    fn only_a_listener_on_loopback_checks_hosts() {
        let cases = [
            ("127.0.0.1:1", HostVerdict::Foreign),
            ("127.9.9.9:1", HostVerdict::Foreign),
            ("[::1]:1", HostVerdict::Foreign),
            ("[::ffff:127.0.0.1]:1", HostVerdict::Foreign),
            ("0.0.0.0:1", HostVerdict::Unchecked),
            ("[::]:1", HostVerdict::Unchecked),
            ("192.168.1.5:1", HostVerdict::Unchecked),
        ];
        for (listen, verdict) in cases {
            let hosts = Hosts::new(listen.parse().unwrap(), "gpu-box");
            assert_eq!(hosts.judge("evil.example"), verdict, "listening on {listen}");
        }
    }
}
