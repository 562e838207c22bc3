//! The kept answers of finished jobs: small ones in a row, large ones in a file beside the database.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::job::JobId;

use super::Store;
use super::error::StoreError;
use super::rows::{self, HeaderList};

/// An answer of the upstream's, as it is kept.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// End-to-end headers.
    pub headers: HeaderList,
    /// The bytes.
    pub body: AnswerBody,
}

/// Where the bytes of an answer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerBody {
    /// In the row.
    Inline(Bytes),
    /// In a file of this name in the answers folder, already synced, with this many bytes.
    File {
        /// Name without the folder.
        name: String,
        /// Length.
        bytes: u64,
    },
}

impl Store {
    /// The kept answer of a finished job; `None` if there is no such job or it has none.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn answer(&self, id: JobId) -> Result<Option<Answer>, StoreError> {
        self.look(move |tx| find(tx, id)).await
    }
}

pub(super) fn insert(tx: &Connection, seq: i64, answer: &Answer) -> Result<(), StoreError> {
    let (body, file, bytes) = match &answer.body {
        AnswerBody::Inline(bytes) => (Some(bytes.as_ref()), None, rows::to_column(bytes.len())),
        AnswerBody::File { name, bytes } => {
            (None, Some(name), i64::try_from(*bytes).unwrap_or(i64::MAX))
        }
    };
    let sql = "INSERT INTO answer(seq, status, headers, bytes, body, file) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    tx.prepare_cached(sql)?.execute(params![
        seq,
        answer.status,
        rows::headers_to_text(&answer.headers),
        bytes,
        body,
        file
    ])?;
    Ok(())
}

fn find(tx: &Connection, id: JobId) -> Result<Option<Answer>, StoreError> {
    type Row = (u16, String, i64, Option<Vec<u8>>, Option<String>);
    let sql =
        "SELECT status, headers, bytes, body, file FROM answer JOIN job USING (seq) WHERE id = ?1";
    let row: Option<Row> = tx
        .prepare_cached(sql)?
        .query_row([id.to_string()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })
        .optional()?;
    let Some((status, headers, bytes, body, file)) = row else { return Ok(None) };
    let body = match (body, file) {
        (Some(body), None) => AnswerBody::Inline(Bytes::from(body)),
        (None, Some(name)) => AnswerBody::File { name, bytes: rows::count(bytes) },
        _ => return Err(StoreError::Strange(format!("answer of {id} has no body"))),
    };
    Ok(Some(Answer { status, headers: rows::headers_from_text(&headers)?, body }))
}
