//! Why a decision is what it is: a stable name for programs, a sentence for people.

use std::fmt;

/// Why a job is dispatched now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The lane's key is resident.
    Drain,
    /// The lane's key is resident, and the job is past its due time, so it goes before its class.
    Overdue {
        /// When it was due, in milliseconds since 1970.
        due_at_ms: i64,
    },
    /// Another key's job is about to become late.
    Rotate {
        /// When that job is due, in milliseconds since 1970.
        due_at_ms: i64,
    },
    /// Everything ready for the resident key is of a lower class.
    Preempt,
    /// Nothing was resident.
    First,
    /// The resident key has nothing left to do, and nobody is worth waiting for.
    Dry,
    /// The same, and of those that wait, this key's queue is of a higher class or longer than that of the key due first,
    /// which can still be served in time.
    Longest,
    /// The key fits beside what is resident, as was learned.
    Beside,
    /// The model is resident, but with options foreman does not know: its load is repeated, cheap if equal.
    Confirm,
    /// A client asked to unload.
    Unload,
    /// Embeds wait for it.
    Embed,
    /// Nobody waits for it, and there is nothing else to do.
    Unattended,
}

impl Reason {
    /// The stable name, in JSON and logs.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Drain => "drain",
            Reason::Overdue { .. } => "overdue",
            Reason::Rotate { .. } => "rotate",
            Reason::Preempt => "preempt",
            Reason::First => "first",
            Reason::Dry => "dry",
            Reason::Longest => "longest",
            Reason::Beside => "beside",
            Reason::Confirm => "confirm",
            Reason::Unload => "unload",
            Reason::Embed => "embed",
            Reason::Unattended => "unattended",
        }
    }
}

impl Reason {
    /// A sentence for people, with how far the due time is away.
    pub fn told(self, now_ms: i64) -> String {
        match self {
            Reason::Rotate { due_at_ms } | Reason::Overdue { due_at_ms } if due_at_ms <= now_ms => {
                format!("{self} ({} s past it)", (now_ms - due_at_ms) / 1_000)
            }
            Reason::Rotate { due_at_ms } => {
                format!("{self} (in {} s)", (due_at_ms - now_ms) / 1_000)
            }
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Reason::Drain => "its model is resident",
            Reason::Overdue { .. } => "its model is resident, and it is past its longest wait",
            Reason::Rotate { .. } => "it would soon be past its longest wait",
            Reason::Preempt => "all that waits for the resident model is of a lower class",
            Reason::First => "no model was resident",
            Reason::Dry => "nothing was left for the resident model",
            Reason::Longest => "most wait for it, and nobody becomes late by that",
            Reason::Beside => "its model fits beside what is resident",
            Reason::Confirm => {
                "its model is resident, perhaps with other options, so its load is repeated"
            }
            Reason::Unload => "a client asked to unload",
            Reason::Embed => "embeds wait for it",
            Reason::Unattended => "nobody waits for it, and there was nothing else to do",
        })
    }
}
