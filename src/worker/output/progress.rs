//! How far an answer is, and what was measured on it.

use super::{Measured, Output};

impl Output {
    /// Notes how many records of a stream have come.
    pub fn count_records(&self, records: u64) {
        self.lock().records = records;
    }

    /// Records of a stream so far.
    pub fn records(&self) -> u64 {
        self.lock().records
    }

    /// Changes what was measured.
    pub fn measure(&self, change: impl FnOnce(&mut Measured)) {
        change(&mut self.lock().measured);
    }

    /// What was measured on the attempt.
    pub fn measured(&self) -> Measured {
        self.lock().measured
    }

    /// Whether a client waits, or has waited, for it.
    pub fn is_followed(&self) -> bool {
        self.lock().is_followed
    }

    /// Tells the attempt to end for a job that somebody waits for, unless somebody waits for this one.
    pub fn interrupt(&self) {
        let mut inner = self.lock();
        inner.is_interrupted |= !inner.is_followed;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Returns when the attempt is to end for a job that somebody waits for. Cancel-safe.
    pub async fn interrupted(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().is_interrupted {
                return;
            }
            changed.await;
        }
    }
}
