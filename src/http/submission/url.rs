//! Whether a text can be the URL of a webhook. Which addresses may be called is decided when it is called, by who knows what
//! the name resolves to.

use std::net::Ipv6Addr;

use hyper::Uri;

/// Characters of a URL; what browsers and proxies take.
pub(super) const URL_LENGTH_MAX: usize = 2_048;

/// Checks an absolute http or https URL.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > URL_LENGTH_MAX {
        return Err("is longer than 2,048 characters");
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("must be ASCII without spaces (other characters are written as %XX)");
    }
    let uri: Uri = text.parse().map_err(|_| ABSOLUTE)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(ABSOLUTE);
    }
    let authority = uri.authority().ok_or(ABSOLUTE)?;
    if authority.as_str().contains('@') {
        return Err("must not hold a user or a password");
    }
    let host = authority.host();
    if !is_host(host) {
        return Err("has no host that could be called");
    }
    match authority.as_str().strip_prefix(host).unwrap_or_default() {
        "" => Ok(()),
        port if port
            .strip_prefix(':')
            .and_then(|port| port.parse().ok())
            .is_some_and(|port: u16| port > 0) =>
        {
            Ok(())
        }
        _ => Err("has no port that could be called"),
    }
}

const ABSOLUTE: &str = "must be an absolute http or https URL";

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !host.is_empty() && host.bytes().all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_webhook_url_names_a_host_and_nobody() {
        for good in [
            "http://localhost:9000/hook?job=1&x=%20#part",
            "https://example.com",
            "HTTPS://Example.com:443/",
            "http://[::1]:8080/",
            "http://192.168.1.2",
            "http://my_host.local/a",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = format!("http://h/{}", "x".repeat(URL_LENGTH_MAX));
        for bad in [
            "",
            "/hook",
            "example.com/hook",
            "ftp://example.com/",
            "file:///etc/passwd",
            "http://",
            "http:///path",
            "http:hook",
            "http://user@example.com/",
            "http://user:pass@example.com/",
            "http://:80/",
            "http://h:0/",
            "http://h:65536/",
            "http://h:/",
            "http://h:80:80/",
            "http://[::1/",
            "http://[::g]/",
            "http://h/a b",
            "http://h/\n",
            "http://\u{e9}/",
            "http://a%41/",
            &long,
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in "(http://)?[ -~\u{e9}]{0,30}") {
            if check(&text).is_ok() {
                prop_assert!(text.parse::<Uri>().unwrap().host().is_some());
            }
        }
    }
}
