//! Ollama's wire format, read but never re-encoded.
//!
//! What a request asks for ([`peek`]), the body without its `keep_alive` ([`cut`]), what it goes on
//! from ([`chain`]), and whether an answer is whole ([`answer`]). Everything here is synchronous and works on byte ranges of the
//! original: no byte a client or Ollama sent is ever written anew.

pub mod answer;
pub mod chain;
pub mod cut;
pub mod json;
pub mod keep_alive;
mod meaning;
pub mod members;
pub mod multipart;
mod options;
pub mod peek;
#[cfg(test)]
mod properties;
mod record;
pub mod request;
pub mod scanner;
mod sse;
pub(super) mod text;
pub mod unstreamed;
