//! How likely it is that a source which is idle stays so, from the gaps after which it came back.

/// How many made-up gaps, exponential with the mean of the real ones, smooth a handful of real ones.
const PRIOR_GAPS: f64 = 3.0;

/// A program that asks again at once still needs a moment.
const MEAN_MS_MIN: f64 = 50.0;

/// From so many gaps on, they tell whether a source comes back soon at all.
const TELLING_GAPS: usize = 8;

/// A source that may be back.
#[derive(Debug)]
pub(super) struct Expected {
    gaps_ms: Vec<Option<i64>>,
    idle_ms: i64,
    mean_ms: f64,
    returning: f64,
}

impl Expected {
    /// `None` where none of its kind ever came back.
    pub(super) fn new(gaps_ms: Vec<Option<i64>>, idle_ms: i64) -> Option<Expected> {
        let known = count(gaps_ms.iter().flatten().count());
        if known == 0.0 {
            return None;
        }
        let sum: i64 = gaps_ms.iter().flatten().sum();
        let mean_ms = (real(sum) / known).max(MEAN_MS_MIN);
        let returning = known / (count(gaps_ms.len()) + 0.5);
        Some(Expected { gaps_ms, idle_ms: idle_ms.max(0), mean_ms, returning })
    }

    /// How likely it is that it is still idle after another `wait_ms`, given that it is idle now.
    pub(super) fn is_idle_still(&self, wait_ms: i64) -> f64 {
        (self.survival(self.idle_ms + wait_ms) / self.survival(self.idle_ms)).min(1.0)
    }

    fn survival(&self, idle_ms: i64) -> f64 {
        let is_longer = |gap: &&Option<i64>| gap.is_none_or(|gap_ms| gap_ms > idle_ms);
        let longer = count(self.gaps_ms.iter().filter(is_longer).count());
        let tail = 1.0 - self.returning * (1.0 - (-real(idle_ms) / self.mean_ms).exp());
        (longer + PRIOR_GAPS * tail) / (count(self.gaps_ms.len()) + PRIOR_GAPS)
    }
}

/// Whether more often than not these gaps are longer than `wait_ms`. `None` while there are too few to tell.
pub(super) fn are_longer(gaps_ms: &[Option<i64>], wait_ms: i64) -> Option<bool> {
    let is_longer = |gap: &&Option<i64>| gap.is_none_or(|gap_ms| gap_ms > wait_ms);
    let longer = gaps_ms.iter().filter(is_longer).count();
    (gaps_ms.len() >= TELLING_GAPS).then_some(longer * 2 >= gaps_ms.len())
}

/// A span as a real number. Spans are far below 2^53 ms, so nothing is lost.
pub(super) fn real(span_ms: i64) -> f64 {
    span_ms as f64
}

fn count(number: usize) -> f64 {
    f64::from(u16::try_from(number).unwrap_or(u16::MAX))
}
