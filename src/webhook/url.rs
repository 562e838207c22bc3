//! The URL of a receiver, read strictly: what is taken at a submission is what is connected to later. Pure, but for the
//! rule on addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::http::uri::PathAndQuery;

use crate::store::Webhook;

use super::address;

/// Longer URLs are not webhooks; the same limit as most servers'.
const URL_CHARS_MAX: usize = 2_048;

/// Longest host name DNS can carry.
const HOST_CHARS_MAX: usize = 253;

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Where a receiver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Whether it is spoken to over TLS.
    pub(super) is_tls: bool,
    /// The name or address to connect to.
    pub(super) host: Host,
    /// Never 0.
    pub(super) port: u16,
    /// What stands in `Host`: the port only where it is not the scheme's own.
    pub(super) authority: String,
    /// Path and query; begins with `/`.
    pub(super) path_and_query: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// In lower case.
    Name(String),
    /// As it was written.
    Address(IpAddr),
}

/// Checks a URL that somebody wants to be told at: a receiver to store with a job.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn check_url(text: &str) -> Result<Webhook, String> {
    let target = Target::parse(text)?;
    if let Host::Address(address) = target.host {
        address::judge(address)
            .map_err(|kind| format!("{address} is {kind}, which is not told"))?;
    }
    Ok(Webhook { url: text.to_owned(), receiver: target.receiver() })
}

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it: it may hold a secret.
    pub(super) fn parse(text: &str) -> Result<Target, String> {
        if text.len() > URL_CHARS_MAX {
            return Err(format!("longer than {URL_CHARS_MAX} characters"));
        }
        // A backslash is a slash to some readers and none to others.
        if text.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'\\') {
            return Err(
                "only printable ASCII may stand in it, without spaces and backslashes".to_owned()
            );
        }
        if text.contains('#') {
            return Err("a fragment is never sent".to_owned());
        }
        let (scheme, rest) = text.split_once("://").ok_or("not an http or https URL")?;
        let (is_tls, own_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (false, HTTP_PORT),
            "https" => (true, HTTPS_PORT),
            _ => return Err("not an http or https URL".to_owned()),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("a user or password may not stand in it".to_owned());
        }
        let (host, port) = split_port(authority, own_port)?;
        let host_text = host.text();
        let authority = if port == own_port { host_text } else { format!("{host_text}:{port}") };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path_and_query = format!("{slash}{path}");
        // A job must not be taken whose receiver nobody can be sent to.
        path_and_query
            .parse::<PathAndQuery>()
            .map_err(|_| "its path or query has a character that must be percent-encoded")?;
        Ok(Target { is_tls, host, port, authority, path_and_query })
    }

    /// Scheme, host and port, in lower case: what is paced together.
    pub(super) fn receiver(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host.text(), self.port)
    }
}

impl Host {
    /// As it stands in a URL.
    fn text(&self) -> String {
        match self {
            Host::Name(name) => name.clone(),
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
        }
    }
}

fn split_port(authority: &str, own_port: u16) -> Result<(Host, u16), String> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let address: Ipv6Addr =
                address.parse().map_err(|_| "not an IPv6 address in brackets".to_owned())?;
            let port = if rest.is_empty() { Some("") } else { rest.strip_prefix(':') };
            (Host::Address(IpAddr::V6(address)), port.ok_or("not a host and a port")?)
        }
        None => {
            let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
            (parse_host(host)?, port)
        }
    };
    if port.is_empty() {
        return Ok((host, own_port));
    }
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number) if is_number && number != 0 => Ok((host, number)),
        Ok(_) | Err(_) => Err("a port is a number from 1 to 65535".to_owned()),
    }
}

fn parse_host(host: &str) -> Result<Host, String> {
    let name = host.to_ascii_lowercase();
    let is_of_a_name =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let labels = name.strip_suffix('.').unwrap_or(&name);
    if labels.is_empty()
        || name.len() > HOST_CHARS_MAX
        || !name.bytes().all(is_of_a_name)
        || labels.split('.').any(str::is_empty)
    {
        return Err("it has no host that a name or an address could be".to_owned());
    }
    if let Ok(address) = labels.parse::<Ipv4Addr>() {
        return Ok(Host::Address(IpAddr::V4(address)));
    }
    // `127.1`, `0x7f000001`: resolvers read these as addresses, each in its own way.
    let last = labels.rsplit('.').next().unwrap_or_default();
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_hexadecimal = last
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if is_number(last) || is_hexadecimal {
        return Err("its host is a number, and not an IPv4 address".to_owned());
    }
    Ok(Host::Name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn receiver(text: &str) -> Result<String, String> {
        check_url(text).map(|webhook| webhook.receiver)
    }

    #[test]
    fn a_receiver_is_scheme_host_and_port_in_lower_case() {
        for (url, wanted) in [
            ("http://localhost/hook", "http://localhost:80"),
            ("HTTPS://Example.COM?x=1", "https://example.com:443"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://192.168.1.7:80/a?b=c@d", "http://192.168.1.7:80"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
            ("http://my_host.local./x", "http://my_host.local.:80"),
        ] {
            assert_eq!(receiver(url).as_deref(), Ok(wanted), "{url}");
        }
        let target = Target::parse("https://a.example:8443?x=1").unwrap();
        assert_eq!(
            (target.authority.as_str(), target.path_and_query.as_str()),
            ("a.example:8443", "/?x=1")
        );
        assert_eq!(Target::parse("http://a.example:80/x").unwrap().authority, "a.example");
    }

    #[test]
    fn what_is_no_receiver_is_refused() {
        let long = format!("http://a/{}", "a".repeat(URL_CHARS_MAX));
        for url in [
            "",
            "a.example",
            "ftp://a.example",
            "http://",
            "http:///x",
            "http://?x",
            "http://:80",
            "//a/",
            "http://user@a.example",
            "http://u:p@a.example/",
            "http://a.example/#x",
            "http://a b/",
            "http://ä.example",
            "http://a.example:0",
            "http://a.example:65536",
            "http://a.example:+80",
            "http://a:80:90",
            "http://[::1",
            "http://[::1]x",
            "http://[fe80::1%25eth0]/",
            "http://::1/",
            "http://a..b/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://a.example\\@b/",
            "http://a%2eb/",
            "http://1.2.3.256/",
            "http://a\n.example",
            // Found by fuzzing: taken, and then never sent.
            "http://a.example/<x>",
            "http://a.example/`",
            &long,
        ] {
            assert!(check_url(url).is_err(), "{url}");
        }
    }

    #[test]
    fn addresses_that_must_not_be_told_are_refused_as_they_are_written() {
        for url in [
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://0.0.0.0:80/",
            "https://[::]/",
            "http://224.0.0.1",
            "http://255.255.255.255",
            "http://169.254.169.254./",
            "http://100.100.100.200/",
        ] {
            assert!(check_url(url).unwrap_err().contains("not told"), "{url}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(https?://)?[!-~äé ]{0,40}") {
            if let Ok(webhook) = check_url(&text) {
                let again = Target::parse(&webhook.receiver).unwrap();
                prop_assert_eq!(again.receiver(), webhook.receiver);
            }
        }
    }
}
