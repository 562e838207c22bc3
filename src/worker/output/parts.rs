//! What an output is made of, and what those who wait for it get to see.

use std::fs::File;

use bytes::Bytes;

use crate::store::HeaderList;

/// Status and headers of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// HTTP status.
    pub status: u16,
    /// End-to-end headers.
    pub headers: HeaderList,
}

/// Where the bytes of a kept answer are.
#[derive(Debug)]
pub enum Kept {
    /// In memory.
    Memory(Bytes),
    /// In this file, so many.
    File(File, u64),
}

/// Which attempt the answer is of, and how long the job waited: told to the client in headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// The number of the attempt; 0 while there is none.
    pub attempt: i64,
    /// From admission to the claim, in milliseconds.
    pub queue_ms: i64,
    /// Making its key resident, in milliseconds; 0 if it was.
    pub load_ms: i64,
}

/// Why there is no whole answer, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status where nothing was sent yet.
    pub status: u16,
    /// What happened, and whether it is safe to try again.
    pub text: String,
    /// Seconds after which to try again, where that helps.
    pub retry_after_s: Option<u64>,
    /// Whether the upstream's own error line is already among the bytes, so that none must be added.
    pub is_told: bool,
}

impl Refusal {
    /// The job was cancelled.
    pub fn cancelled() -> Refusal {
        Refusal::new(499, "the job was cancelled")
    }

    /// The deadline of the job passed.
    pub fn late() -> Refusal {
        Refusal::new(504, "the deadline passed before it was done")
    }

    /// A refusal without advice.
    pub fn new(status: u16, text: impl Into<String>) -> Refusal {
        Refusal { status, text: text.into(), retry_after_s: None, is_told: false }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Every byte is there.
    Whole,
    /// It is not, and will not be.
    Broken(Refusal),
}

/// What a waiting client gets to see first.
#[derive(Debug, Clone)]
pub enum Opening {
    /// An answer begins (it may have ended already).
    Answer(Head, Timings),
    /// There will be none.
    Refused(Refusal),
}
