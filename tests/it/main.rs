//! The promises of foreman, a module each, on the real program in front of the stub. This file is their table of
//! contents; `harness` starts the two and talks to them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must stop loudly")]

mod harness;

mod queue;
