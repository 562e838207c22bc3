//! Many submissions in one body: a JSON array, or JSON lines; split by byte ranges and checked on all cores.

use std::num::NonZero;
use std::thread;

use bytes::Bytes;

use crate::ollama::wire::json::{Fault, is_space};
use crate::ollama::wire::members::elements;
use crate::ollama::wire::sole::{NotJson, sole_value};

use super::super::problem::{Code, Problem};
use super::{Rejection, Submission, parse};

/// Submissions in one batch: as many as one transaction takes in well under a second.
pub const ITEMS_MAX: usize = 10_000;

/// Threads that check one batch; the daemon has other work.
const THREADS_MAX: usize = 8;

/// Items for which starting a thread is worth it.
const ITEMS_PER_THREAD_MIN: usize = 64;

/// Why a body is no batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchFault {
    /// Neither an array nor lines of objects.
    NotJson(NotJson),
    /// More than [`ITEMS_MAX`] items.
    TooMany,
}

impl From<BatchFault> for Problem {
    fn from(fault: BatchFault) -> Problem {
        match fault {
            BatchFault::NotJson(wrong) => {
                let text = format!(
                    "a batch is a JSON array or JSON lines of objects: {wrong}; nothing was stored"
                );
                Problem::new(Code::MalformedBody, text)
            }
            BatchFault::TooMany => {
                let text = format!("a batch has at most {ITEMS_MAX} items; nothing was stored");
                Problem::new(Code::BodyTooLarge, text)
            }
        }
    }
}

/// The items of a batch, as slices of it. An array must be JSON as a whole; a line is judged by itself, with its item.
///
/// # Errors
/// Any [`BatchFault`]; then there are no items.
pub fn split(body: &Bytes) -> Result<Vec<Bytes>, BatchFault> {
    let first = body.iter().find(|byte| !is_space(**byte));
    match first {
        Some(b'[') => {
            sole_value(body).map_err(BatchFault::NotJson)?;
            let start = body.iter().position(|byte| *byte == b'[').unwrap_or_default();
            take(body, elements(&body[start..]))
        }
        Some(b'{') => {
            let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
            take(body, lines.filter(|line| !line.is_empty()))
        }
        Some(_) | None => Err(BatchFault::NotJson(not_json(body))),
    }
}

fn take<'a>(body: &Bytes, items: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Bytes>, BatchFault> {
    let items: Vec<Bytes> = items.take(ITEMS_MAX + 1).map(|item| body.slice_ref(item)).collect();
    if items.len() > ITEMS_MAX { Err(BatchFault::TooMany) } else { Ok(items) }
}

/// What is wrong with a body that begins like neither; where it is a JSON value of another kind, its beginning is.
fn not_json(body: &[u8]) -> NotJson {
    let begins_wrong = NotJson { fault: Fault::Malformed, line: 1, column: 1 };
    sole_value(body).err().unwrap_or(begins_wrong)
}

/// Checks all items, and has `hash` look at each good one beside its bytes, on as many cores as there are. The results are in
/// the order of the items.
///
/// It takes the processor for as long as it lasts: not for a thread that serves.
pub fn parse_all<H: Send>(
    items: &[Bytes],
    now_ms: i64,
    hash: impl Fn(&Submission, &Bytes) -> H + Sync,
) -> Vec<Result<(Submission, H), Rejection>> {
    let check = |item: &Bytes| {
        let submission = parse(item, now_ms)?;
        let hash = hash(&submission, item);
        Ok((submission, hash))
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
    let share = items.len().div_ceil(cores).max(ITEMS_PER_THREAD_MIN);
    if share >= items.len() {
        return items.iter().map(check).collect();
    }
    let mut results = Vec::new();
    results.resize_with(items.len(), || None);
    thread::scope(|scope| {
        for (items, results) in items.chunks(share).zip(results.chunks_mut(share)) {
            scope.spawn(|| {
                for (item, result) in items.iter().zip(results) {
                    *result = Some(check(item));
                }
            });
        }
    });
    // All are there: the scope has waited for every thread, and would have passed a panic on.
    results.into_iter().flatten().collect()
}
