//! The guard at foreman's door: decides from method, headers and target alone whether a request may come in at all.
//!
//! It repeats Ollama's Host check (against DNS rebinding) and Ollama's CORS rules exactly, because foreman sends the
//! upstream the upstream's own Host header: whatever foreman lets in, Ollama takes for a local client.
//!
//! It must never be laxer than Ollama, and never look at a body, a clock or the network. `http::accept` calls it
//! first for every request, unknown paths included, before anything else is done for that request.
//!
//! The client's `Origin` must not travel on to the upstream: beside the upstream's own Host it would turn a page
//! served from foreman's address into a cross-origin request that Ollama refuses. CORS ends here.

mod cors;
mod hosts;
mod origins;

use std::net::SocketAddr;

use hyper::{HeaderMap, Method, StatusCode, Uri};

pub use cors::CorsHeaders;
pub use origins::check_origins;

use hosts::{HostVerdict, Hosts};
use origins::Origins;

/// What the guard checks against: one for each listening address, made at start, never changed.
#[derive(Debug, Clone)]
pub struct Guard {
    hosts: Hosts,
    origins: Origins,
}

/// What the guard decides about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The request may be routed. These headers go on every answer to it, errors included.
    Pass(CorsHeaders),
    /// The request is answered at once with this status and an empty body.
    Refuse(Refusal),
    /// The request is answered at once with 204, these headers and no body.
    ///
    /// For a path that has routes, Ollama's answer also carries `Allow`. The guard knows no routes, so the caller adds
    /// it: the same value it would send with a 405. It then stands after `Vary` where Ollama sorts it before; order
    /// among different names means nothing in HTTP.
    Preflight(HeaderMap),
}

/// Why and how a request is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 403 as Ollama answers; 400 for a Host that Go's server refuses before Ollama sees the request.
    pub status: StatusCode,
    /// An allowed origin may read even the refusal of its host. Absent in the other cases.
    pub cors: CorsHeaders,
    /// What was wrong, for the log. Ollama tells the client nothing, and neither does foreman.
    pub reason: &'static str,
}

impl Guard {
    /// Makes the guard for one listening address.
    ///
    /// `hostname` is this machine's own name (a Host that equals it is local), `origins` the value of
    /// `OLLAMA_ORIGINS`: comma separated, may be empty, added to Ollama's defaults. Entries that [`check_origins`]
    /// reports are left out, which only ever refuses more; the configuration reports them before this is called.
    #[must_use]
    pub fn new(listen: SocketAddr, hostname: String, origins: &str) -> Self {
        Self { hosts: Hosts::new(listen, &hostname), origins: Origins::new(origins) }
    }

    /// Decides about one request, in Ollama's order: first the Origin, then the Host.
    ///
    /// The order shows: a foreign origin is refused whatever its Host, and a preflight of an allowed origin is
    /// answered whatever its Host. The latter is safe, a preflight reaches no route. Not seen here is the HTTP version:
    /// Go answers 400 to an HTTP/1.1 request without any Host line, here it counts as the empty Host of HTTP/1.0 and
    /// passes. No browser sends one.
    #[must_use]
    pub fn admit(&self, method: &Method, headers: &HeaderMap, uri: &Uri) -> Admission {
        let Some(host) = hosts::requested(headers, uri) else {
            return Admission::Refuse(Refusal {
                status: StatusCode::BAD_REQUEST,
                cors: CorsHeaders::Absent,
                reason: "host header is malformed or there are several",
            });
        };
        let Some(cors) = self.origins.cors_for(headers, host) else {
            return Admission::Refuse(Refusal {
                status: StatusCode::FORBIDDEN,
                cors: CorsHeaders::Absent,
                reason: "origin is neither local nor listed in OLLAMA_ORIGINS",
            });
        };
        // Ollama takes any OPTIONS of a foreign origin for a preflight, asked-for method named or not.
        if method == Method::OPTIONS && cors != CorsHeaders::Absent {
            return Admission::Preflight(cors.preflight());
        }
        match self.hosts.judge(host) {
            // Ollama's host check answers OPTIONS itself when it knows the host by name, and leaves it to the routes
            // (which say 405) when it knows it by address. Odd, and kept.
            HostVerdict::LocalName if method == Method::OPTIONS => {
                Admission::Preflight(HeaderMap::new())
            }
            HostVerdict::Unchecked | HostVerdict::LocalAddress | HostVerdict::LocalName => {
                Admission::Pass(cors)
            }
            HostVerdict::Foreign => Admission::Refuse(Refusal {
                status: StatusCode::FORBIDDEN,
                cors,
                reason: "host is not this machine's (foreman listens on loopback)",
            }),
        }
    }
}

#[cfg(test)]
mod tests;
