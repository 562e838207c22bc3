//! What asks for a key, how it has behaved, and how it stands.

use std::collections::VecDeque;

/// Gaps remembered of a source.
const GAPS_MAX: usize = 32;

/// Gaps of a busy source that stand in for its quiet ones while it has too few.
const BUSY_GAPS_MAX: usize = 4;

/// The weight of one more answer in [`Activity::followed_share`]: about sixteen answers count.
const FOLLOWED_WEIGHT: f64 = 1.0 / 16.0;

/// For so many requests it is remembered that a client asked for a key while it waited for another.
const BESIDE_REQUESTS: u8 = 8;

/// Between client and key in the text of a source. No client id holds it.
const BETWEEN_CLIENT_AND_KEY: char = ' ';

/// What stands for the client in the text of the newcomers. No client id is like it: those are twelve hexadecimal digits.
const NEWCOMERS: &str = "newcomers";

/// What asks for a key: one client identity, or the clients that ask for it for the first time. In the order of keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) key: String,
    /// `None` for the newcomers.
    pub(super) client: Option<String>,
}

impl Source {
    pub(super) fn newcomers(key: &str) -> Source {
        Source { key: key.to_owned(), client: None }
    }

    pub(super) fn client(key: &str, client: &str) -> Source {
        Source { key: key.to_owned(), client: Some(client.to_owned()) }
    }

    /// The name under which its gaps are stored.
    pub(super) fn text(&self) -> String {
        let client = self.client.as_deref().unwrap_or(NEWCOMERS);
        format!("{client}{BETWEEN_CLIENT_AND_KEY}{}", self.key)
    }

    pub(super) fn from_text(text: &str) -> Option<Source> {
        let (client, key) = text.split_once(BETWEEN_CLIENT_AND_KEY)?;
        let client = (client != NEWCOMERS).then(|| client.to_owned());
        Some(Source { key: key.to_owned(), client })
    }
}

/// How a source has behaved, and how it stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Activity {
    /// Gaps from the end of its last open job to its next request, oldest first; `None` where none came.
    pub(super) gaps_ms: VecDeque<Option<i64>>,
    /// The last gaps from an answer to the next request while other jobs of the source were open.
    pub(super) busy_gaps_ms: VecDeque<i64>,
    /// Of the answers given while other jobs of it were open: the share that a request followed on before the next answer.
    pub(super) followed_share: f64,
    /// Its jobs that have not ended.
    pub(super) open: usize,
    /// When its last answer ended; `None` once the next request has come, or is not expected any more.
    pub(super) answered_at_ms: Option<i64>,
    /// Of the newcomers: the client of that answer.
    pub(super) answered: Option<String>,
    /// For how many more requests its client counts as one that asks for this key while it waits for another.
    beside: u8,
    /// When it was last used, as a number that only grows.
    pub(super) used: u64,
}

impl Activity {
    /// Takes in a request. `is_beside`: its client waits for an answer on another key.
    pub(super) fn request(&mut self, now_ms: i64, beside: Beside) {
        self.beside = match beside {
            Beside::Waiting => BESIDE_REQUESTS,
            Beside::Nothing => self.beside.saturating_sub(1),
        };
        if let (1.., Some(answered_at_ms)) = (self.open, self.answered_at_ms) {
            self.followed_share += (1.0 - self.followed_share) * FOLLOWED_WEIGHT;
            keep(&mut self.busy_gaps_ms, (now_ms - answered_at_ms).max(0), BUSY_GAPS_MAX);
        }
        self.answered_at_ms = None;
        self.open += 1;
    }

    /// One of its jobs was answered, for `client`.
    pub(super) fn answer(&mut self, now_ms: i64, client: Option<&String>) {
        if self.answered_at_ms.is_some() {
            self.followed_share -= self.followed_share * FOLLOWED_WEIGHT;
        }
        self.open = self.open.saturating_sub(1);
        self.answered_at_ms = Some(now_ms);
        self.answered = client.cloned();
    }

    /// The gap that a request ends which comes now: none while other jobs are open.
    pub(super) fn quiet_gap_ms(&self, now_ms: i64) -> Option<i64> {
        let answered_at_ms = self.answered_at_ms.filter(|_| self.open == 0)?;
        Some((now_ms - answered_at_ms).max(0))
    }

    /// Takes in a gap from the end of its last open job.
    pub(super) fn learn(&mut self, gap_ms: Option<i64>) {
        keep(&mut self.gaps_ms, gap_ms, GAPS_MAX);
    }

    /// Whether its client was seen to ask for this key while it waited for another: several programs of one identity.
    pub(super) fn asks_beside(&self) -> bool {
        self.beside > 0
    }
}

/// Whether the client of a request waits for an answer on another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    Waiting,
    Nothing,
}

/// Adds the newest value, and drops the oldest beyond `values_max`.
pub(super) fn keep<T>(values: &mut VecDeque<T>, value: T, values_max: usize) {
    values.push_back(value);
    if values.len() > values_max {
        values.pop_front();
    }
}

/// Adds a gap to those of all sources of a key.
pub(super) fn keep_gap(gaps_ms: &mut VecDeque<Option<i64>>, gap_ms: Option<i64>) {
    keep(gaps_ms, gap_ms, GAPS_MAX);
}
