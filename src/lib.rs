//! foreman: a transparent proxy in front of one Ollama that turns every request for the GPU into a durable job and serves
//! the jobs model by model.
//!
//! The map is in ARCHITECTURE.md; in short, imports go one way:
//! [`domain`] (pure) → [`clock`], [`fail_point`], [`shutdown`], [`delay`], [`guard`], [`keys`], [`replay`], [`tls`], [`descriptors`], [`liveness`] → [`store`], [`ollama`] →
//! [`completion`], [`config`] → [`webhook`], [`worker`] → [`http`] → [`app`] → [`cli`].

pub mod app;
pub mod cli;
pub mod clock;
pub mod completion;
pub mod config;
pub mod delay;
pub mod descriptors;
pub mod domain;
pub mod fail_point;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod guard;
pub mod http;
pub mod keys;
pub mod liveness;
pub mod ollama;
pub mod replay;
pub mod shutdown;
pub mod store;
pub mod tls;
pub mod webhook;
pub mod worker;
