//! Retention: ended jobs are dropped after their time, a few at a time, and their space is given back. A job stays while it
//! owes a webhook. What was learned and is no longer used goes, too.

use rusqlite::{Connection, params};

use crate::fail_point;

use super::error::StoreError;
use super::{Durability, Store};
use super::{by_hand, learning};

/// Jobs dropped in one write: short enough not to be felt by a waiting admission.
const SWEEP_MAX: u32 = 100;

/// Dropped jobs whose ids are remembered, to answer 410 and not 404: 5 MB of ids.
const PURGED_MAX: u32 = 100_000;

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
    /// Drops up to [`SWEEP_MAX`] jobs that ended before these times, and what was learned of clients not seen for long.
    ///
    /// # Errors
    /// Any of the store's; nothing was dropped.
    pub async fn sweep(&self, before: EndedBefore, now_ms: i64) -> Result<Swept, StoreError> {
        self.write(Durability::Process, move |tx| {
            learning::forget_unused(tx, now_ms)?;
            sweep(tx, before)
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

/// How long ago jobs must have ended to be dropped (milliseconds since 1970).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedBefore {
    /// Those that are done or cancelled.
    pub over_ms: i64,
    /// Those that failed: somebody may want to look into them.
    pub failed_ms: i64,
}

/// Ended jobs by age, without those that owe a webhook.
pub(super) const OLD: [&str; 2] = [
    "job INDEXED BY job_over WHERE state IN ('done','cancelled')",
    "job INDEXED BY job_dead WHERE state = 'failed'",
];

pub(super) fn old_jobs(old: &str) -> String {
    format!(
        "SELECT seq FROM {old} AND finished_at_ms < ?1
         AND NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.seq = job.seq AND delivery.state = 'pending')
         ORDER BY finished_at_ms LIMIT ?2"
    )
}

pub(super) fn sweep(tx: &Connection, before: EndedBefore) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    for (old, before_ms) in OLD.into_iter().zip([before.over_ms, before.failed_ms]) {
        let seqs: Vec<i64> = tx
            .prepare_cached(&old_jobs(old))?
            .query_map(params![before_ms, SWEEP_MAX], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for seq in seqs {
            swept.files.extend(by_hand::drop_ended(tx, seq)?);
            swept.jobs += 1;
        }
    }
    // Also where nothing was swept: jobs that are dropped by hand are remembered, too.
    forget_purged(tx)?;
    give_space_back(tx)?;
    if swept.jobs > 0 {
        fail_point::reach("sweep.uncommitted");
    }
    Ok(swept)
}

/// Ids sort by time: the oldest go.
fn forget_purged(tx: &Connection) -> Result<(), StoreError> {
    let sql =
        "DELETE FROM purged WHERE id < (SELECT id FROM purged ORDER BY id DESC LIMIT 1 OFFSET ?1)";
    tx.prepare_cached(sql)?.execute([PURGED_MAX])?;
    Ok(())
}

/// Gives free pages back to the file system. The pragma frees one page a step, so it is stepped to its end.
fn give_space_back(tx: &Connection) -> Result<(), StoreError> {
    let mut statement = tx.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}
