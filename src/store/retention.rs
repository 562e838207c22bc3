//! Retention: finished jobs are dropped after `FOREMAN_JOB_TTL`, a few at a time, and their space is given back. What was
//! learned and is no longer used goes, too.

use rusqlite::{Connection, params};

use crate::fail_point;

use super::error::StoreError;
use super::learning;
use super::{Durability, Store};

/// Jobs dropped in one write: short enough not to be felt by a waiting admission.
const SWEEP_MAX: u32 = 200;

/// Free pages given back to the file system in one write (8 MB): more than a sweep of small jobs frees, so that the file
/// shrinks, and little enough to keep the write short.
const VACUUM_PAGES: u32 = 2_000;

/// What one sweep dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs dropped.
    pub jobs: usize,
    /// Files of the answers folder that no row names any more; to be removed by the caller.
    pub files: Vec<String>,
}

impl Swept {
    /// Whether there may be more to drop.
    pub fn is_full(&self) -> bool {
        u32::try_from(self.jobs).is_ok_and(|jobs| jobs >= SWEEP_MAX)
    }
}

impl Store {
    /// Drops up to [`SWEEP_MAX`] jobs that finished before `before_ms`, and what was learned of clients not seen for long.
    ///
    /// # Errors
    /// Any of the store's; nothing was dropped.
    pub async fn sweep(&self, before_ms: i64, now_ms: i64) -> Result<Swept, StoreError> {
        self.write(Durability::Process, move |tx| {
            learning::forget_unused(tx, now_ms)?;
            sweep(tx, before_ms)
        })
        .await
    }

    /// The files of the answers folder that rows name, to find orphans after a crash.
    ///
    /// # Errors
    /// Any of the store's.
    pub async fn answer_files(&self) -> Result<Vec<String>, StoreError> {
        self.read(|tx| {
            let mut statement = tx.prepare("SELECT file FROM answer WHERE file IS NOT NULL")?;
            let names = statement.query_map([], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
        .await
    }
}

pub(super) fn sweep(tx: &Connection, before_ms: i64) -> Result<Swept, StoreError> {
    let old = "SELECT seq FROM job WHERE finished_at_ms IS NOT NULL AND finished_at_ms < ?1
               ORDER BY finished_at_ms LIMIT ?2";
    let files = tx
        .prepare_cached(&format!(
            "SELECT file FROM answer WHERE file IS NOT NULL AND seq IN ({old})"
        ))?
        .query_map(params![before_ms, SWEEP_MAX], |row| row.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    let jobs = tx
        .prepare_cached(&format!("DELETE FROM job WHERE seq IN ({old})"))?
        .execute(params![before_ms, SWEEP_MAX])?;
    give_space_back(tx)?;
    if jobs > 0 {
        fail_point::reach("sweep.uncommitted");
    }
    Ok(Swept { jobs, files })
}

/// Gives free pages back to the file system. The pragma frees one page a step, so it is stepped to its end.
fn give_space_back(tx: &Connection) -> Result<(), StoreError> {
    let mut statement = tx.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}
