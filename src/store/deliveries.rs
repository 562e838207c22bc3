//! Webhooks owed: the outbox. A row is written in the transaction of the change of state that it tells of. Only the first
//! pending delivery of a job is due, so that a job's changes arrive in order. Called by `webhook` and `http`.

use rusqlite::{Connection, params};

use super::error::StoreError;

/// Owes a delivery for a change of state, if the job has a receiver.
pub(super) fn owe(tx: &Connection, event: i64, seq: i64, at_ms: i64) -> Result<(), StoreError> {
    let sql = "INSERT INTO delivery(event, seq, sequence, url, receiver, next_at_ms)
               SELECT ?1, seq, (SELECT COUNT(*) + 1 FROM delivery WHERE delivery.seq = ?2), webhook_url, receiver,
                      CASE WHEN EXISTS (SELECT 1 FROM delivery WHERE delivery.seq = ?2 AND state = 'pending')
                           THEN NULL ELSE ?3 END
               FROM submission WHERE seq = ?2 AND webhook_url IS NOT NULL";
    tx.prepare_cached(sql)?.execute(params![event, seq, at_ms])?;
    Ok(())
}
