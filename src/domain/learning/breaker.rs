//! The breaker of each load key: tries of a load belong to the key, not to each job that wants it.
//!
//! ```text
//! closed -- load fails --> open until t -- t has come, a load begins --> half open -- it succeeds --> closed
//!                            ^                                               |
//!                            +------------- it fails: a longer pause --------+
//! ```
//!
//! A key that is not in the map is closed. At most one load probes an open key. The model may have been replaced since its
//! load failed (pulled anew, created again): a breaker holds for the identity of the model it failed with only.

use std::collections::BTreeMap;

/// The pause after a first failed load; it doubles with each further one.
const PAUSE_FIRST_MS: i64 = 5_000;

/// The longest pause: memory may come back at any time, and one load delays the others by its own time only.
const PAUSE_MAX_MS: i64 = 300_000;

/// A shift by more than this would exceed the longest pause many times over.
const DOUBLINGS_MAX: u32 = 16;

/// The first load of a key that is given up as stuck may be somebody else's fault, and Ollama was just freed. After this many
/// in a row it is the key's, and waiting clients get the error.
const STUCK_MIN: u32 = 2;

/// Error texts are kept up to this many characters: a sentence, not an echoed prompt.
const ERROR_CHARS_MAX: usize = 500;

/// Keys remembered; beyond it the first by name goes. A box has tens.
const KEYS_MAX: usize = 4_096;

/// How a load failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFailure {
    /// Ollama answered with an error, or broke the connection.
    Refused,
    /// It took longer than its limit and was given up.
    Stuck,
    /// Ollama's own queue was full: nothing was tried. It says nothing about the key.
    Busy,
}

/// The error of a failed load, as clients get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// How it failed.
    pub failure: LoadFailure,
    /// The HTTP status.
    pub status: u16,
    /// The text, Ollama's own where it gave one.
    pub text: String,
}

/// A key that must not be loaded now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBreaker {
    /// The key, as text.
    pub key: String,
    /// When it may be loaded again (milliseconds since 1970).
    pub until_ms: i64,
    /// Loads that failed in a row.
    pub failures: u32,
    /// The last error.
    pub error: LoadError,
}

impl OpenBreaker {
    /// Whether a client that waits for the key gets the error at once. A key that was stuck for the first time, or met a full
    /// queue, only pauses.
    pub fn refuses_clients(&self) -> bool {
        match self.error.failure {
            LoadFailure::Refused => true,
            LoadFailure::Stuck => self.failures >= STUCK_MIN,
            LoadFailure::Busy => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open { until_ms: i64 },
    HalfOpen,
}

#[derive(Debug, Clone)]
struct Breaker {
    state: State,
    failures: u32,
    error: LoadError,
    /// The identity of the model whose load failed.
    model: String,
}

/// Breakers by key text.
#[derive(Debug, Clone, Default)]
pub struct Breakers(BTreeMap<String, Breaker>);

impl Breakers {
    /// A load of the key failed. Returns the pause until the next one, in milliseconds.
    pub fn load_failed(&mut self, key: &str, model: &str, error: LoadError, now_ms: i64) -> i64 {
        if !self.0.contains_key(key) && self.0.len() >= KEYS_MAX {
            self.0.pop_first();
        }
        let known = self.0.get(key).filter(|known| known.model == model);
        // A stuck load says nothing about refusals before it, nor the other way round.
        let earlier = known
            .filter(|known| known.error.failure == error.failure)
            .map_or(0, |known| known.failures);
        let pause_ms = (PAUSE_FIRST_MS << earlier.min(DOUBLINGS_MAX)).min(PAUSE_MAX_MS);
        let text = error.text.chars().take(ERROR_CHARS_MAX).collect();
        let breaker = Breaker {
            state: State::Open { until_ms: now_ms.saturating_add(pause_ms) },
            failures: earlier.saturating_add(1),
            error: LoadError { text, ..error },
            model: model.to_owned(),
        };
        self.0.insert(key.to_owned(), breaker);
        pause_ms
    }

    /// A load of the key begins: if the breaker is open, it is the one probe.
    pub fn load_begins(&mut self, key: &str) {
        if let Some(breaker) = self.0.get_mut(key) {
            breaker.state = State::HalfOpen;
        }
    }

    /// A load of the key ended without telling anything about it (foreman stops, Ollama is away): another probe may follow.
    pub fn load_abandoned(&mut self, key: &str, now_ms: i64) {
        if let Some(breaker) = self.0.get_mut(key)
            && breaker.state == State::HalfOpen
        {
            breaker.state = State::Open { until_ms: now_ms };
        }
    }

    /// A load of the key succeeded.
    pub fn close(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Closes the breakers of all keys of a model: it was deleted, or is another one now.
    pub fn close_model(&mut self, model: &str) {
        self.0.retain(|key, _| key.split(' ').next() != Some(model));
    }

    /// Closes all: the upstream was started anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// No pause ends later than the longest one from now.
    pub fn clock_set_back(&mut self, now_ms: i64) {
        for breaker in self.0.values_mut() {
            if let State::Open { until_ms } = &mut breaker.state {
                *until_ms = (*until_ms).min(now_ms.saturating_add(PAUSE_MAX_MS));
            }
        }
    }

    /// Whether anything is known of the key, whatever its model is now.
    pub fn knows(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Until when the key may not be loaded; in the past if it may. For ever while a probe runs: there is only one.
    pub fn until_ms(&self, key: &str, model: &str) -> i64 {
        match self.of(key, model).map(|breaker| breaker.state) {
            None => 0,
            Some(State::Open { until_ms }) => until_ms,
            Some(State::HalfOpen) => i64::MAX,
        }
    }

    /// The breaker of a key, if it is open now. `None` while a probe runs or may run: its outcome is waited for.
    pub fn open(&self, key: &str, model: &str, now_ms: i64) -> Option<OpenBreaker> {
        open(key, self.of(key, model)?, now_ms)
    }

    /// All that are open now, by key. `identity_of` tells the identity of a key's model, by the key's text.
    pub fn all_open(&self, identity_of: impl Fn(&str) -> String, now_ms: i64) -> Vec<OpenBreaker> {
        let current = self.0.iter().filter(|(key, breaker)| breaker.model == identity_of(key));
        current.filter_map(|(key, breaker)| open(key, breaker, now_ms)).collect()
    }

    /// How the last load of the key failed; `None` if its breaker is closed.
    pub fn failure(&self, key: &str, model: &str) -> Option<LoadFailure> {
        self.of(key, model).map(|breaker| breaker.error.failure)
    }

    /// How many loads of the key in a row were given up as stuck.
    pub fn stuck(&self, key: &str, model: &str) -> u32 {
        let found =
            self.of(key, model).filter(|breaker| breaker.error.failure == LoadFailure::Stuck);
        found.map_or(0, |breaker| breaker.failures)
    }

    fn of(&self, key: &str, model: &str) -> Option<&Breaker> {
        self.0.get(key).filter(|breaker| breaker.model == model)
    }
}

fn open(key: &str, breaker: &Breaker, now_ms: i64) -> Option<OpenBreaker> {
    match breaker.state {
        State::Open { until_ms } if until_ms > now_ms => Some(OpenBreaker {
            key: key.to_owned(),
            until_ms,
            failures: breaker.failures,
            error: breaker.error.clone(),
        }),
        State::Open { .. } | State::HalfOpen => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(failure: LoadFailure) -> LoadError {
        LoadError { failure, status: 500, text: "out of memory".to_owned() }
    }

    fn refused(breakers: &mut Breakers, now_ms: i64) -> i64 {
        breakers.load_failed("a", "1", error(LoadFailure::Refused), now_ms)
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_a_load_that_succeeds_resets_them() {
        let mut breakers = Breakers::default();
        let pauses: Vec<i64> = (0..9).map(|_| refused(&mut breakers, 1_000)).collect();
        assert_eq!(pauses[..3], [5_000, 10_000, 20_000]);
        assert_eq!(pauses[8], PAUSE_MAX_MS);
        assert_eq!(breakers.until_ms("a", "1"), 1_000 + PAUSE_MAX_MS);
        breakers.close("a");
        assert_eq!(breakers.until_ms("a", "1"), 0);
        assert_eq!(refused(&mut breakers, 0), 5_000);
    }

    #[test]
    fn a_breaker_holds_for_the_model_and_the_key_that_failed() {
        let mut breakers = Breakers::default();
        refused(&mut breakers, 0);
        assert!(breakers.open("a", "1", 4_999).is_some());
        assert!(breakers.open("a", "1", 5_000).is_none(), "its pause is over");
        assert!(breakers.open("a", "2", 0).is_none(), "the model is another one");
        assert!(breakers.open("a num_ctx=8", "1", 0).is_none(), "other options may load");
        assert_eq!(breakers.load_failed("a", "2", error(LoadFailure::Refused), 0), 5_000);
        breakers.load_failed("a num_ctx=8", "2", error(LoadFailure::Refused), 0);
        breakers.load_failed("ab", "2", error(LoadFailure::Refused), 0);
        breakers.close_model("a");
        assert_eq!(breakers.all_open(|_| "2".to_owned(), 0).len(), 1);
    }

    #[test]
    fn a_first_stuck_load_pauses_its_key_and_a_second_refuses_clients() {
        let mut breakers = Breakers::default();
        for (stuck, refuses) in [(1, false), (2, true)] {
            breakers.load_failed("a", "1", error(LoadFailure::Stuck), 0);
            assert_eq!(breakers.stuck("a", "1"), stuck);
            assert_eq!(
                breakers.open("a", "1", 0).map(|open| open.refuses_clients()),
                Some(refuses)
            );
        }
        breakers.load_failed("a", "1", error(LoadFailure::Busy), 0);
        assert_eq!(breakers.open("a", "1", 0).map(|open| open.refuses_clients()), Some(false));
        assert_eq!(breakers.stuck("a", "1"), 0);
    }

    proptest! {
        /// Any life of a key: while it is half open nothing else is loaded; it is never open for longer than the longest
        /// pause; each failure pauses, a success closes.
        #[test]
        fn a_key_is_probed_by_one_load_at_a_time(steps in proptest::collection::vec((0_u8..5, 0_i64..400_000), 1..60)) {
            let mut breakers = Breakers::default();
            let (mut now_ms, mut is_probing) = (0_i64, false);
            for (step, passes_ms) in steps {
                now_ms += passes_ms;
                match step {
                    0 if breakers.until_ms("a", "1") <= now_ms => {
                        is_probing = breakers.until_ms("a", "1") > 0;
                        breakers.load_begins("a");
                    }
                    1 => { refused(&mut breakers, now_ms); is_probing = false; }
                    2 => { breakers.close("a"); is_probing = false; }
                    3 => { breakers.load_abandoned("a", now_ms); is_probing = false; }
                    _ => (),
                }
                let until_ms = breakers.until_ms("a", "1");
                prop_assert_eq!(is_probing, until_ms == i64::MAX);
                prop_assert!(is_probing || until_ms <= now_ms + PAUSE_MAX_MS);
                prop_assert_eq!(breakers.open("a", "1", now_ms).is_some(), !is_probing && until_ms > now_ms);
                match step {
                    1 => prop_assert!(until_ms >= now_ms + PAUSE_FIRST_MS),
                    2 => prop_assert_eq!(until_ms, 0),
                    _ => (),
                }
            }
        }
    }
}
