//! Values that may differ from class to class: `2m`, `batch=6h` or `10000,batch=500`. A fault is the sentence that says what
//! is allowed.

use std::time::Duration;

use crate::domain::job::Class;

use super::values::{count, positive};

/// How long a job of each class may wait, by [`Class::ALL`], where nothing else is said.
const MAX_WAIT_DEFAULTS: [Duration; 3] =
    [Duration::from_secs(2 * 60), Duration::from_secs(10 * 60), Duration::from_secs(6 * 60 * 60)];

/// How long an embed may wait for a model that does not fit beside what is resident. Longer than the few seconds of a load
/// and a visit, since each turn of an embedder costs the chats two loads; shorter than the limit of clients that give up
/// after 30 s without a byte, which an embed waits for in silence.
const EMBED_WAIT_DEFAULT: Duration = Duration::from_secs(20);

/// Names embeds among the classes.
const EMBED: &str = "embed";

/// Longer than this nothing is worth waiting for, and a number with a wrong unit is likely.
const MAX_WAIT_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Jobs that may wait where only caps of classes are given.
pub(super) const MAX_QUEUE_DEFAULT: u64 = 10_000;

/// How many jobs may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MaxQueue {
    /// In all.
    pub(super) total: u64,
    /// Of each class, by [`Class::ALL`]; `None` where only the total counts.
    pub(super) by_class: [Option<u64>; 3],
}

/// How long things may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MaxWait {
    /// Jobs of each class, by [`Class::ALL`].
    pub(super) by_class: [Duration; 3],
    /// Embeds.
    pub(super) embed: Duration,
}

/// Reads `FOREMAN_MAX_WAIT`: a value without a class is for interactive jobs, `embed` for embeds.
pub(super) fn max_wait(text: &str) -> Result<MaxWait, String> {
    const ALLOWED: &str = "a duration for interactive jobs such as 2m, or for any of the classes and for embeds \
        such as interactive=2m,normal=10m,batch=6h,embed=20s, each above zero and at most 30 days";
    let wait = |text: &str| positive(text).ok().filter(|wait| *wait <= MAX_WAIT_MAX);
    let is_embed = |part: &&str| {
        part.split_once('=').is_some_and(|(name, _)| name.trim().eq_ignore_ascii_case(EMBED))
    };
    let (embeds, classes): (Vec<&str>, Vec<&str>) = text.split(',').partition(is_embed);
    let embed = match embeds.as_slice() {
        [] => EMBED_WAIT_DEFAULT,
        [part] => part.split_once('=').and_then(|(_, text)| wait(text.trim())).ok_or(ALLOWED)?,
        _ => return Err(ALLOWED.to_owned()),
    };
    if classes.is_empty() {
        return Ok(MaxWait { by_class: MAX_WAIT_DEFAULTS, embed });
    }
    let given = read(&classes.join(","), wait).ok_or(ALLOWED)?;
    let [interactive, normal, batch] = given.by_class;
    if given.bare.is_some() && interactive.is_some() {
        return Err(ALLOWED.to_owned());
    }
    let [for_interactive, for_normal, for_batch] = MAX_WAIT_DEFAULTS;
    let by_class = [
        given.bare.or(interactive).unwrap_or(for_interactive),
        normal.unwrap_or(for_normal),
        batch.unwrap_or(for_batch),
    ];
    Ok(MaxWait { by_class, embed })
}

/// Reads `FOREMAN_MAX_QUEUE`: a value without a class is the total.
pub(super) fn max_queue(text: &str) -> Result<MaxQueue, String> {
    const ALLOWED: &str = "a whole number from 1 to 10000000, or caps of classes such as \
        batch=500, or both such as 10000,batch=500";
    let given = read(text, |text| count(text).ok()).ok_or(ALLOWED)?;
    Ok(MaxQueue { total: given.bare.unwrap_or(MAX_QUEUE_DEFAULT), by_class: given.by_class })
}

/// What was given with a class and without.
struct Given<T> {
    bare: Option<T>,
    by_class: [Option<T>; 3],
}

/// Reads a list of `value` and `class=value`; `None` where any of it is wrong or said twice.
fn read<T: Copy>(text: &str, value: impl Fn(&str) -> Option<T>) -> Option<Given<T>> {
    let mut given = Given { bare: None, by_class: [None; 3] };
    for part in text.split(',') {
        let (place, text) = match part.split_once('=') {
            None => (&mut given.bare, part),
            Some((name, text)) => {
                let class = Class::from_name(&name.trim().to_ascii_lowercase())?;
                let mut places = Class::ALL.into_iter().zip(&mut given.by_class);
                (places.find(|(found, _)| *found == class)?.1, text)
            }
        };
        if place.replace(value(text.trim())?).is_some() {
            return None;
        }
    }
    Some(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_for_interactive_jobs_or_for_classes_by_name() {
        for (text, wanted_s, embed_s) in [
            ("2m", [120, 600, 21_600], 20),
            ("90", [90, 600, 21_600], 20),
            ("batch=1h", [120, 600, 3_600], 20),
            ("interactive=1m,normal=5m,batch=30d", [60, 300, 2_592_000], 20),
            (" Batch = 1h , 3m ", [180, 600, 3_600], 20),
            ("embed=5s", [120, 600, 21_600], 5),
            ("3m, Embed = 1m ,batch=1h", [180, 600, 3_600], 60),
        ] {
            let by_class = wanted_s.map(Duration::from_secs);
            let wanted = MaxWait { by_class, embed: Duration::from_secs(embed_s) };
            assert_eq!(max_wait(text), Ok(wanted), "{text}");
        }
        for text in ["0", "soon", "urgent=1m", "2m,3m", "2m,interactive=3m", "batch=1m,batch=2m"]
            .into_iter()
            .chain(["batch=", "2m,", "=2m", "batch=0s", "31d", "batch=1m=2m"])
            .chain(["embed=0s", "embed=", "embed=1s,embed=2s", "embed=31d", "embed=5s,"])
        {
            assert!(max_wait(text).unwrap_err().contains("batch=6h"), "{text}");
        }
    }

    #[test]
    fn a_queue_has_a_total_and_caps() {
        let queue = |total, by_class| Ok(MaxQueue { total, by_class });
        assert_eq!(max_queue("7"), queue(7, [None; 3]));
        assert_eq!(max_queue("7,batch=5"), queue(7, [None, None, Some(5)]));
        let caps = [Some(9), Some(8), None];
        assert_eq!(max_queue("normal=8,interactive=9"), queue(MAX_QUEUE_DEFAULT, caps));
        for text in ["0", "batch=0", "-1", "1,2", "batch=5,batch=5", "batch", "10000001", "5x"] {
            assert!(max_queue(text).unwrap_err().contains("from 1 to 10000000"), "{text}");
        }
    }
}
