//! The pure core: what a job, a model, a route and a decision are.
//!
//! No clock, no I/O, no tokio; time, randomness and facts about the upstream are passed in. Everything else in the
//! program is an edge around this.

pub mod bound;
pub mod dialect;
pub mod job;
pub mod learning;
pub mod model;
pub mod retry;
pub mod route;
pub mod schedule;
pub mod turns;
pub mod whom;
