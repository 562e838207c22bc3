//! What a request body says, as Ollama will read it: with its `Content-Encoding` undone where Ollama undoes it.
//!
//! It is for the eyes of foreman alone, to place the request and to know it again; the original bytes go upstream.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;

use crate::domain::dialect::Dialect;
use crate::ollama::wire::encoding::{Undecodable, decoded, is_undone};

use super::Edge;

/// Compressed bodies that are undone, or whose text is in use, at once: each takes up to 20 MiB, and 8 MiB while it is made.
/// The next one waits; a text is in use for as long as a request takes to be admitted.
pub(super) const PLAIN_AT_ONCE: usize = 8;

/// A smaller text takes no place once it is made.
const FREE_BYTES: usize = 128 * 1024;

/// The encoding that is none.
const IDENTITY: &[u8] = b"identity";

/// A body as it is read.
pub(super) struct Plain {
    said: Result<Bytes, Undecodable>,
    is_encoded_otherwise: bool,
    _place: Option<OwnedSemaphorePermit>,
}

impl Plain {
    /// Reads a body.
    pub(super) async fn of(
        edge: &Edge,
        dialect: Dialect,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Plain {
        // The first one, as Ollama.
        let encoding = headers.get(CONTENT_ENCODING).map_or(IDENTITY, HeaderValue::as_bytes);
        if !is_undone(dialect, encoding) {
            let is_encoded_otherwise = !encoding.eq_ignore_ascii_case(IDENTITY);
            return Plain { said: Ok(body.clone()), is_encoded_otherwise, _place: None };
        }
        let place = Arc::clone(&edge.plain_places).acquire_owned().await.ok();
        let body = body.clone();
        // A few bytes may stand for 20 MiB.
        let said = tokio::task::spawn_blocking(move || decoded(&body)).await;
        // A decoder that died says nothing of what Ollama will do.
        let said = said.unwrap_or(Err(Undecodable::Beyond));
        let is_small = said.as_ref().map_or(true, |bytes| bytes.len() <= FREE_BYTES);
        Plain { said, is_encoded_otherwise: false, _place: place.filter(|_| !is_small) }
    }

    /// What it says.
    ///
    /// # Errors
    /// Why that cannot be read.
    pub(super) fn said(&self) -> Result<&Bytes, Undecodable> {
        self.said.as_ref().map_err(|fault| *fault)
    }

    /// The bytes a request is known by when it comes again: what it says, or where that cannot be read, what came.
    pub(super) fn known_by(&self, original: &Bytes) -> Bytes {
        self.said.as_ref().unwrap_or(original).clone()
    }

    /// Whether it has an encoding that Ollama does not undo. It reads the bytes as they are; another Ollama may not.
    pub(super) fn is_encoded_otherwise(&self) -> bool {
        self.is_encoded_otherwise
    }
}
