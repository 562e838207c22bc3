//! Ollama's wire format, read but never re-encoded.
//!
//! What a request asks for ([`peek`]), also where it is compressed ([`encoding`]), the body without its `keep_alive`
//! ([`cut`]), which requests are equal ([`canonical`]), whether an answer is whole ([`answer`]), and a streamed answer as
//! one object ([`fold`]). Everything here is synchronous and works on byte ranges of the original: no byte a client or Ollama
//! sent is ever written anew.

pub mod answer;
pub mod canonical;
pub mod cut;
pub mod encoding;
pub mod fold;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
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
pub mod search;
pub mod sole;
mod sse;
pub mod text;
pub mod unstreamed;
