//! Fail points: named places between two steps at which a test can have this process die, as kill -9 would end it. Called
//! by every room that takes such a step; compiled to nothing in release builds.
//!
//! `FOREMAN_TEST_FAIL_POINT=name[:nth]` has the process abort when the point is reached for the nth time (the first, if
//! none is said). It must never be read for anything else: a point that changes what foreman does is no point.

/// Every point, in the order of a job's life. `points` and `async_points` in `tests/it/crash` die at each of them, and so
/// check that each is placed in the source.
pub const ALL: [&str; 44] = [
    "migration.uncommitted",
    "migration.committed",
    "recovery.uncommitted",
    "recovery.committed",
    "admit.uncommitted",
    "admit.committed",
    "claim.uncommitted",
    "claim.committed",
    "unload.before",
    "unload.after",
    "load.before",
    "load.after",
    "loaded.uncommitted",
    "loaded.committed",
    "request.before",
    "answer.head",
    "answer.chunk",
    "answer.shown",
    "outcome.before",
    "outcome.uncommitted",
    "outcome.committed",
    "give_back.before",
    "give_back.uncommitted",
    "give_back.committed",
    "cancel.before",
    "cancel.uncommitted",
    "cancel.committed",
    "cancel_running.uncommitted",
    "cancel_running.committed",
    "expire.uncommitted",
    "expire.committed",
    "deliver.before",
    "deliver.replied",
    "deliver.noted",
    "reopen.uncommitted",
    "reopen.committed",
    "drop.uncommitted",
    "drop.committed",
    "sweep.uncommitted",
    "sweep.committed",
    "checkpoint.before",
    "checkpoint.after",
    "shutdown.begun",
    "shutdown.drained",
];

/// Ends the process, without a word to anybody, if a test armed this point and this is the time it meant.
#[cfg(debug_assertions)]
#[inline(never)]
pub fn reach(name: &str) {
    if armed().is_some_and(|armed| armed.is_due(name)) {
        tracing::warn!(fail_point = name, "a fail point was reached; dying, as a test asked");
        std::process::abort();
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_name: &str) {}

/// The point that a test armed.
#[cfg(debug_assertions)]
struct Armed {
    name: String,
    /// How many more times it is passed, this one included; 0 once it was reached.
    left: std::sync::atomic::AtomicU64,
}

#[cfg(debug_assertions)]
impl Armed {
    fn from_text(text: &str) -> Armed {
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let left = nth.parse().unwrap_or(1).into();
        Armed { name: name.to_owned(), left }
    }

    fn is_due(&self, name: &str) -> bool {
        use std::sync::atomic::Ordering;
        let less = |left: u64| left.checked_sub(1);
        self.name == name
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) == Ok(1)
    }
}

#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "a setting of the tests, not of foreman")]
fn armed() -> Option<&'static Armed> {
    static ARMED: std::sync::OnceLock<Option<Armed>> = std::sync::OnceLock::new();
    let read = || std::env::var("FOREMAN_TEST_FAIL_POINT").ok();
    ARMED.get_or_init(|| read().map(|text| Armed::from_text(&text))).as_ref()
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_due_once_at_its_nth_time() {
        let armed = Armed::from_text("answer.chunk:2");
        assert!(!armed.is_due("answer.head"));
        assert!(!armed.is_due("answer.chunk"));
        assert!(armed.is_due("answer.chunk"));
        assert!(!armed.is_due("answer.chunk"));
        assert!(Armed::from_text("admit.committed").is_due("admit.committed"));
    }
}
