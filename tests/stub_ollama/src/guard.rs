//! What stands in front of the routes: path cleaning, CORS and the Host check.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HeaderValue, ORIGIN};

use crate::config::StubConfig;

/// What the Origin header means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Absent, same-origin, or not checked.
    NotCors,
    /// Listed; holds the header.
    Allowed(String),
    Refused,
}

/// Headers of a preflight answer, as recorded.
pub(crate) const PREFLIGHT: [(&str, &str); 3] = [
    (
        "access-control-allow-headers",
        "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,\
         X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,\
         X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,\
         X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,\
         X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout",
    ),
    ("access-control-allow-methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    ("access-control-max-age", "43200"),
];

const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "0.0.0.0"];
const APP_SCHEMES: [&str; 5] =
    ["app://", "file://", "tauri://", "vscode-webview://", "vscode-file://"];

/// Judges the Origin header.
pub(crate) fn origin(config: &StubConfig, headers: &HeaderMap, host: &str) -> Origin {
    let origin = headers.get(ORIGIN).map(HeaderValue::as_bytes).map(String::from_utf8_lossy);
    let Some(origin) = origin.filter(|_| config.origin_check) else { return Origin::NotCors };
    let Some((scheme, rest)) = origin.split_once("://") else { return Origin::Refused };
    let is_web = scheme == "http" || scheme == "https";
    if is_web && rest == host {
        return Origin::NotCors;
    }
    let is_local = is_web
        && LOCAL_HOSTS.iter().any(|local| {
            rest.strip_prefix(local).is_some_and(|port| port.is_empty() || port.starts_with(':'))
        });
    if is_local || APP_SCHEMES.iter().any(|prefix| origin.starts_with(prefix)) {
        Origin::Allowed(origin.into_owned())
    } else {
        Origin::Refused
    }
}

/// Tells whether a loopback Ollama answers to this Host header.
pub(crate) fn host_is_allowed(config: &StubConfig, host: &str) -> bool {
    if !config.host_check || !config.listen.ip().is_loopback() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    if let Ok(ip) = name.parse::<IpAddr>() {
        return match ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unspecified(),
        };
    }
    name.is_empty()
        || name == "localhost"
        || [".localhost", ".local", ".internal"].iter().any(|suffix| name.ends_with(suffix))
}

/// Cleans `//`, `.` and `..` as Go's mux does; `None` when there is nothing to clean.
pub(crate) fn clean_path(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    if path.ends_with('/') && clean.len() > 1 {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_hosts_are_answered() {
        let config = StubConfig::default();
        for host in ["127.0.0.1:1", "localhost", "x.local:80", "[::1]:9", "192.168.1.4", ""] {
            assert!(host_is_allowed(&config, host), "{host}");
        }
        for host in ["evil.example", "foreman:11434", "8.8.8.8"] {
            assert!(!host_is_allowed(&config, host), "{host}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        assert_eq!(clean_path("//api//tags"), Some("/api/tags".to_owned()));
        assert_eq!(clean_path("/api/../x/"), Some("/x/".to_owned()));
        assert_eq!(clean_path("/api/tags/"), None);
        assert_eq!(clean_path("/"), None);
    }
}
