//! The only room that calls Ollama: the connection pool, its few metadata and load calls, what is known of its models
//! and memory, and whether it is there. It does not know jobs.

pub mod calls;
pub mod client;
mod connector;
pub mod health;
pub mod hop;
pub mod inventory;
pub mod residency;
pub mod routes;
pub mod show;
mod tether;
pub mod url;
pub mod wire;
