//! The address of the upstream: reads what `OLLAMA_HOST` accepts and says where and how to send a request.
//!
//! It must never resolve a name or touch the network, nor repeat a secret in an error. The configuration parses one
//! at start; `ollama::client` builds every request from it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::{Uri, header::HeaderValue};

/// Ollama's own port, taken when neither a scheme nor a port is given.
const OLLAMA_PORT: u16 = 11434;
/// The port of `http://` without one: Ollama takes the web's, not its own.
const HTTP_PORT: u16 = 80;
/// The port of `https://` without one.
const HTTPS_PORT: u16 = 443;
/// The one bare name that means TLS without saying so.
const OLLAMA_CLOUD: &str = "ollama.com";
/// Longest host name DNS can carry, in bytes.
const HOST_BYTES_MAX: usize = 253;

/// How the upstream is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Where the upstream is, checked and complete: no default is left to guess.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    scheme: Scheme,
    /// A name in lower case, or an address without brackets; never empty, never the unspecified address.
    host: String,
    /// Never 0.
    port: u16,
    /// Empty, or `/` and more without a `/` at the end.
    path_prefix: String,
    /// `host:port`, brackets around an IPv6 address.
    authority: String,
    /// The same, ready to send.
    host_header: HeaderValue,
}

impl UpstreamUrl {
    /// Reads an upstream as `OLLAMA_HOST` is read, but refuses where Ollama warns and guesses.
    ///
    /// Quotes and spaces around it are dropped; all of `host`, `host:port`, `:port`, `address`, `[address]:port`,
    /// `scheme://...` and `.../prefix` are understood, and nothing at all means the local Ollama. An empty or unspecified
    /// host (`0.0.0.0`, `::`), which one can listen on but not connect to, becomes loopback.
    ///
    /// # Errors
    ///
    /// A sentence with the value and what is allowed, for: another scheme than http and https, a port that is not
    /// 1 to 65535, an `@` anywhere (userinfo), a query or fragment, a host or prefix no URL can have. What may be a
    /// secret is not repeated.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_matches(['"', '\'']).trim();
        refuse_secrets(text)?;
        let (scheme, default_port, rest) = split_scheme(text)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_port(authority)?;
        let port = port.map_or(Ok(default_port), parse_port)?;
        Self::build(scheme, parse_host(host)?, port, parse_prefix(path)?)
    }

    /// How to speak to it.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Where to connect: a name or an address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, always with the port.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What to send as Host: the upstream's own, never the client's, else a loopback Ollama answers 403.
    ///
    /// The port is there even where it is the scheme's default, as Ollama's own client sends it, and because Ollama
    /// refuses `[::1]` without one.
    #[must_use]
    pub fn host_header(&self) -> HeaderValue {
        self.host_header.clone()
    }

    /// The whole URL of a request target (`/api/chat?x=1`), appended to the prefix as it is, not re-encoded.
    #[must_use]
    pub fn join(&self, path_and_query: &str) -> String {
        // A slash is forced so that a target such as `@elsewhere` cannot continue the authority.
        let slash = if path_and_query.starts_with('/') { "" } else { "/" };
        format!("{self}{slash}{path_and_query}")
    }

    /// Whether the upstream is on this machine, as far as the text alone can tell.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }

    fn build(scheme: Scheme, host: String, port: u16, path_prefix: String) -> Result<Self, String> {
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let host_header = HeaderValue::try_from(authority.as_str())
            .map_err(|fault| format!("upstream host \"{authority}\" cannot be sent: {fault}"))?;
        let url = Self { scheme, host, port, path_prefix, authority, host_header };
        match Uri::try_from(url.join("/")) {
            Ok(_) => Ok(url),
            Err(fault) => Err(format!("upstream \"{url}\" is not a URL: {fault}")),
        }
    }
}

impl fmt::Display for UpstreamUrl {
    /// Writes the URL without a slash at the end. It holds no secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(formatter, "{scheme}://{}{}", self.authority, self.path_prefix)
    }
}

/// What was given for a URL as it may be told: without the places where secrets hide, before an `@` and after a `?` or `#`.
pub fn without_secrets(text: &str) -> String {
    match (text.rsplit_once('@'), text.split_once(['?', '#'])) {
        (Some((_, host)), _) => format!("...@{}", without_secrets(host)),
        (None, Some((shown, _))) => format!("{shown}..."),
        (None, None) => text.to_owned(),
    }
}

/// Refuses the places where secrets hide, without repeating them.
fn refuse_secrets(text: &str) -> Result<(), String> {
    let shown = without_secrets(text);
    if shown == text {
        return Ok(());
    }
    let fault = if text.contains('@') { "userinfo" } else { "a query or fragment" };
    Err(format!(
        "upstream \"{shown}\" has {fault} (allowed: scheme://host:port/prefix, with %40, %3F, %23 for @, ?, #)"
    ))
}

/// Takes the scheme off: it, the port it implies, and what is left.
fn split_scheme(text: &str) -> Result<(Scheme, u16, &str), String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        let is_cloud = text == OLLAMA_CLOUD;
        let (scheme, port) =
            if is_cloud { (Scheme::Https, HTTPS_PORT) } else { (Scheme::Http, OLLAMA_PORT) };
        return Ok((scheme, port, text));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, HTTP_PORT, rest)),
        "https" => Ok((Scheme::Https, HTTPS_PORT, rest)),
        _ => Err(format!("upstream scheme \"{scheme}\" is not known (allowed: http, https)")),
    }
}

/// Takes the port off, if there is one. An IPv6 address without brackets is all address.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), String> {
    if authority.parse::<IpAddr>().is_ok() {
        return Ok((authority, None));
    }
    if let Some((address, rest)) =
        authority.strip_prefix('[').and_then(|inside| inside.split_once(']'))
    {
        let is_address = address.parse::<IpAddr>().is_ok();
        return match rest.strip_prefix(':') {
            Some(port) if is_address => Ok((address, Some(port))),
            None if is_address && rest.is_empty() => Ok((address, None)),
            Some(_) | None => Err(bad_host(authority)),
        };
    }
    Ok(authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))))
}

fn parse_port(port: &str) -> Result<u16, String> {
    // `u16::from_str` takes a leading plus; a port has none.
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number) if is_number && number != 0 => Ok(number),
        Ok(_) | Err(_) => Err(format!("upstream port \"{port}\" is bad (allowed: 1 to 65535)")),
    }
}

fn parse_host(host: &str) -> Result<String, String> {
    if host.is_empty() {
        return Ok(Ipv4Addr::LOCALHOST.to_string());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(match address.to_canonical() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.to_string(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.to_string(),
            address @ (IpAddr::V4(_) | IpAddr::V6(_)) => address.to_string(),
        });
    }
    let is_name = host.len() <= HOST_BYTES_MAX
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name { Ok(host.to_ascii_lowercase()) } else { Err(bad_host(host)) }
}

fn parse_prefix(path: &str) -> Result<String, String> {
    let path = path.trim_matches('/');
    if let Some(bad) = path.chars().find(|&c| !is_prefix_character(c)) {
        let allowed = "ASCII letters, digits, %XX, - . _ ~ ! $ & ( ) * + , ; = : /";
        return Err(format!("upstream prefix \"/{path}\" has a bad {bad:?} (allowed: {allowed})"));
    }
    Ok(if path.is_empty() { String::new() } else { format!("/{path}") })
}

/// What RFC 3986 allows in a path, less the quote (taken off around a value) and the @ (see [`refuse_secrets`]).
fn is_prefix_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || "%-._~!$&()*+,;=:/".contains(character)
}

fn bad_host(host: &str) -> String {
    format!(
        "upstream host \"{host}\" is bad (allowed: a name of at most {HOST_BYTES_MAX} ASCII letters, digits, - . _, \
         an IPv4 address, an IPv6 address in brackets if a port follows)"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rows of Ollama's own rules, with the unspecified addresses mapped as its client maps them.
    #[test]
    fn what_ollama_host_accepts_is_understood_the_same_way() {
        let cases = [
            ("", "http://127.0.0.1:11434"),
            ("1.2.3.4", "http://1.2.3.4:11434"),
            (":9000", "http://127.0.0.1:9000"),
            ("example.com", "http://example.com:11434"),
            ("example.com:1234", "http://example.com:1234"),
            ("Example.COM", "http://example.com:11434"),
            ("my_box-1", "http://my_box-1:11434"),
            ("::1", "http://[::1]:11434"),
            ("[::1]", "http://[::1]:11434"),
            ("[::1]:80", "http://[::1]:80"),
            ("2001:DB8:0::1", "http://[2001:db8::1]:11434"),
            ("[1.2.3.4]:80", "http://1.2.3.4:80"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("https://0.0.0.0:4321", "https://127.0.0.1:4321"),
            ("::", "http://[::1]:11434"),
            ("[::]:1234", "http://[::1]:1234"),
            ("::ffff:0.0.0.0", "http://127.0.0.1:11434"),
            (" \" 1.2.3.4 \" ", "http://1.2.3.4:11434"),
            ("'1.2.3.4'", "http://1.2.3.4:11434"),
            ("http://x", "http://x:80"),
            ("HTTP://x", "http://x:80"),
            ("http://x:4321", "http://x:4321"),
            ("https://x", "https://x:443"),
            ("http://", "http://127.0.0.1:80"),
            ("http://[::1]", "http://[::1]:80"),
            ("ollama.com", "https://ollama.com:443"),
            ("http://ollama.com", "http://ollama.com:80"),
            ("ollama.com:80", "http://ollama.com:80"),
            ("http://h:99/pre/fix", "http://h:99/pre/fix"),
            ("https://example.com/ollama/", "https://example.com:443/ollama"),
            ("h/pre", "http://h:11434/pre"),
            ("http://h:99//", "http://h:99"),
            ("h/a%40b", "http://h:11434/a%40b"),
        ];
        for (text, url) in cases {
            assert_eq!(UpstreamUrl::parse(text).unwrap().to_string(), url, "{text:?}");
        }
    }

    #[test]
    fn what_ollama_would_guess_at_is_refused_with_the_value_and_what_is_allowed() {
        let cases = [
            (":66000", "port \"66000\" is bad (allowed: 1 to 65535)"),
            (":0", "port \"0\" is bad"),
            (":-1", "port \"-1\" is bad"),
            ("h:+80", "port \"+80\" is bad"),
            ("http://h:", "port \"\" is bad"),
            ("a:1:2", "port \"1:2\" is bad"),
            ("ftp://h", "scheme \"ftp\" is not known (allowed: http, https)"),
            ("unix:///run/ollama", "scheme \"unix\""),
            ("://h", "scheme \"\""),
            ("http://h?x=1", "query or fragment"),
            ("h/p#f", "query or fragment"),
            ("[::1", "port \":1\" is bad"),
            ("[::1]80", "host \"[::1]80\" is bad"),
            ("[localhost]:80", "host \"[localhost]:80\" is bad"),
            ("fe80::1%eth0", "is bad"),
            ("a b", "host \"a b\" is bad"),
            ("b\u{fc}ro", "host \"b\u{fc}ro\" is bad"),
            ("h/a b", "prefix \"/a b\" has a bad ' '"),
            ("h/a'/", "prefix \"/a'\" has a bad '\\''"),
        ];
        for (text, part) in cases {
            let message = UpstreamUrl::parse(text).unwrap_err();
            assert!(message.contains(part), "{text:?} gave: {message}");
        }
        assert!(UpstreamUrl::parse(&"a".repeat(HOST_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        let cases = [
            ("http://me:pass@h:1", "\"...@h:1\" has userinfo"),
            ("me:pass@h", "\"...@h\" has userinfo"),
            ("http://me:pa/pass@h", "\"...@h\" has userinfo"),
            ("http://me:pa?pass@h?key=pass", "\"...@h...\" has userinfo"),
            ("pass@@h", "\"...@h\" has userinfo"),
            ("http://h/p?key=pass", "\"http://h/p...\" has a query"),
        ];
        for (text, part) in cases {
            let message = UpstreamUrl::parse(text).unwrap_err();
            assert!(message.contains(part) && !message.contains("pass"), "{message}");
        }
    }

    #[test]
    fn the_host_header_is_the_upstreams_own_and_has_a_port() {
        for (text, host) in [("http://h", "h:80"), ("::", "[::1]:11434"), ("https://h/p", "h:443")]
        {
            let url = UpstreamUrl::parse(text).unwrap();
            assert_eq!(
                (url.host_header(), url.authority()),
                (HeaderValue::from_static(host), host)
            );
        }
    }

    #[test]
    fn a_target_continues_the_prefix_and_never_the_authority() {
        let cases = [
            ("h:1", "/api/chat", "http://h:1/api/chat"),
            ("h:1", "/", "http://h:1/"),
            ("h:1/pre", "/api/me?ts=1", "http://h:1/pre/api/me?ts=1"),
            ("h:1/pre/", "//a/%2e%2E/b", "http://h:1/pre//a/%2e%2E/b"),
            ("h:1", "", "http://h:1/"),
            ("h:1", "?ts=1", "http://h:1/?ts=1"),
            ("h:1", "@evil.example/", "http://h:1/@evil.example/"),
            ("h:1", ".evil.example/", "http://h:1/.evil.example/"),
        ];
        for (text, target, whole) in cases {
            assert_eq!(UpstreamUrl::parse(text).unwrap().join(target), whole);
        }
    }

    #[test]
    fn loopback_is_known_by_address_and_by_name() {
        let cases = [
            ("", true),
            ("0.0.0.0", true),
            ("127.9.9.9", true),
            ("[::1]:80", true),
            ("::ffff:127.0.0.1", true),
            ("LocalHost:80", true),
            ("ollama.localhost", true),
            ("localhost.example", false),
            ("notlocalhost", false),
        ];
        for (text, is_loopback) in cases {
            assert_eq!(UpstreamUrl::parse(text).unwrap().is_loopback(), is_loopback, "{text:?}");
        }
    }

    proptest! {
        /// Whatever is accepted can be sent, and is read back as itself.
        #[test]
        fn an_accepted_upstream_is_a_url_and_stays_itself(
            text in "(https?://|)(\\[[0-9a-f:]{2,8}\\]|[a-zA-Z0-9.:_-]{0,12}|\\PC{0,6})(:[0-9]{1,5}|)(/[!-~]{0,8}|)"
        ) {
            if let Ok(url) = UpstreamUrl::parse(&text) {
                let uri: Uri = url.join("/api/chat?x=1").parse().unwrap();
                prop_assert_eq!(uri.port_u16(), Some(url.port()));
                prop_assert_eq!(uri.authority().unwrap().as_str(), url.authority());
                prop_assert_eq!(uri.path(), format!("{}/api/chat", url.path_prefix));
                prop_assert_eq!(UpstreamUrl::parse(&url.to_string()), Ok(url));
            }
        }
    }
}
