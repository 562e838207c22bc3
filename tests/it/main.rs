//! The promises of foreman, a module each, on the real program in front of the stub. This file is their table of
//! contents; `harness` starts the two and talks to them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on must stop loudly"
)]
#![expect(clippy::disallowed_methods, reason = "a test ends with its runtime, and all its tasks")]

mod harness;

mod aliases;
mod answers;
mod bad_input;
mod cli_jobs;
mod crash;
mod dialects;
mod embeds;
mod equality;
mod failure;
mod floods;
mod jobs;
mod keys;
mod leaving;
mod lives;
mod on_disk;
mod pass;
mod priority;
mod queue;
mod replay;
mod same;
mod schedule;
mod slow_metadata;
mod status;
mod stopping;
mod trace;
mod upstream_tls;
mod vanishing;
mod waiting;
mod webhooks;
mod whom;
