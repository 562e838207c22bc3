//! A deterministic Ollama stand-in: its routes, its byte shapes, and above all its scheduler.
//!
//! Used in process by foreman's integration tests ([`Stub::start`]) and, through the binary of
//! the same name, by client suites and the demo. It shares no code with foreman, so that the two
//! cannot be wrong in the same way. It needs no GPU and never goes on the network beyond its own
//! listener. Start reading at [`Stub`], then [`StubConfig`], [`Fault`] and [`Snapshot`].

#![expect(
    clippy::disallowed_methods,
    reason = "foreman's clock and task registry are its own; the stub has neither"
)]

mod board;
mod body;
mod catalog;
mod clock;
mod config;
mod decode;
mod encoding;
mod faults;
mod fields;
mod generation;
mod guard;
mod hash;
mod json;
mod log;
mod names;
mod options;
mod residency;
mod routes;
mod runner;
mod scheduler;
mod server;
mod stub;
mod vocabulary;
mod world;

pub use config::{Capability, Cloud, Era, Model, StubConfig};
pub use faults::{Action, Cut, Fault, Stage};
pub use log::{Counts, End, LogEntry, Resident, Snapshot};
pub use options::RunnerOptions;
pub use stub::Stub;
pub use vocabulary::expected_text;
