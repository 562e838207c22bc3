//! The query parameters of foreman's own routes, checked.
//!
//! A value that cannot be used, a name that comes twice and a name that nobody knows are all told: a filter that is
//! silently ignored lists, or purges, everything.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::from_rfc3339;
use crate::domain::job::{Class, State};

use super::prefer::WAIT_MAX;
use super::problem::{Code, Problem};

/// Characters of a bad value or name that are told back.
const TOLD_CHARACTERS_MAX: usize = 64;

/// Parameters of one query; no route has more than a dozen.
const PARAMETERS_MAX: usize = 64;

/// Reads a query: `read` takes the parameters its route knows, each once.
///
/// # Errors
/// `malformed-parameter` with all faults: whatever `read` found bad, doubles, and what it did not take.
pub fn read<T>(
    query: Option<&str>,
    read: impl FnOnce(&mut Parameters<'_>) -> T,
) -> Result<T, Problem> {
    let mut parameters = Parameters::default();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        parameters.add(name, value);
    }
    let found = read(&mut parameters);
    let unknown = parameters.left.iter().map(|(name, _)| format!("{} is unknown", told(name)));
    let faults: Vec<String> = parameters.faults.iter().cloned().chain(unknown).collect();
    match faults.is_empty() {
        true => Ok(found),
        false => Err(Problem::new(Code::MalformedParameter, faults.join("; "))),
    }
}

/// The parameters that were given and not taken yet.
#[derive(Debug, Default)]
pub struct Parameters<'a> {
    left: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    faults: Vec<String>,
    /// How many came, those that were not kept included.
    given: usize,
}

impl<'a> Parameters<'a> {
    fn add(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        self.given += 1;
        if self.given > PARAMETERS_MAX {
            // Told once, however many there are.
            if self.given == PARAMETERS_MAX + 1 {
                self.faults.push(format!("there are more than {PARAMETERS_MAX} parameters"));
            }
        } else if self.left.iter().any(|(other, _)| *other == name) {
            self.faults.push(format!("{} is given twice", told(&name)));
        } else {
            self.left.push((name, value));
        }
    }

    /// A text, such as a model's name; not empty.
    pub fn text(&mut self, name: &str) -> Option<String> {
        let not_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        self.take(name, "must not be empty", not_empty)
    }

    /// A whole number or an id: anything that is read from the whole text. `expected` is told: `must be {expected}`.
    pub fn parsed<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        self.take(name, &format!("must be {expected}"), |text| text.parse().ok())
    }

    /// A number from 1 to `max`.
    pub fn limit(&mut self, name: &str, max: u32) -> Option<u32> {
        let in_range = |text: &str| text.parse().ok().filter(|number| (1..=max).contains(number));
        self.take(name, &format!("must be a number from 1 to {max}"), in_range)
    }

    /// `true` or `false`, also as `1` or `0`.
    pub fn flag(&mut self, name: &str) -> Option<bool> {
        self.take(name, "must be true or false", |text| match text {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        })
    }

    /// A duration: `30s`, `500ms`, or seconds without a unit; at most [`WAIT_MAX`].
    pub fn wait(&mut self, name: &str) -> Option<Duration> {
        self.take(name, "must be a duration such as 30s or 500ms, at most 5m", |text| {
            let wait = match text.parse() {
                Ok(seconds) => Duration::from_secs(seconds),
                Err(_) => humantime::parse_duration(text).ok()?,
            };
            (wait <= WAIT_MAX).then_some(wait)
        })
    }

    /// A time (RFC 3339), in milliseconds since 1970.
    pub fn time_ms(&mut self, name: &str) -> Option<i64> {
        self.take(name, "must be a time such as 2026-11-24T12:00:00Z (RFC 3339)", |text| {
            // An offset's `+` that was not encoded has become a space, and nothing else can have.
            from_rfc3339(&text.replace(' ', "+"))
        })
    }

    /// Several states by comma, each once; never empty.
    pub fn states(&mut self, name: &str) -> Option<Vec<State>> {
        let expected = format!("must be of {}, by comma", State::ALL.map(State::name).join(", "));
        self.take(name, &expected, |text| {
            let mut states = Vec::new();
            for name in text.split(',') {
                let state = State::from_name(name)?;
                if !states.contains(&state) {
                    states.push(state);
                }
            }
            Some(states)
        })
    }

    /// A class of urgency.
    pub fn class(&mut self, name: &str) -> Option<Class> {
        let expected = format!("must be one of {}", Class::ALL.map(Class::name).join(", "));
        self.take(name, &expected, Class::from_name)
    }

    fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let at = self.left.iter().position(|(other, _)| other == name)?;
        let (_, text) = self.left.swap_remove(at);
        let found = read(&text);
        if found.is_none() {
            self.faults.push(format!("{name} {expected}, not {}", told(&text)));
        }
        found
    }
}

/// A client's text for its own eyes: quoted, and not longer than a line.
fn told(text: &str) -> String {
    let short: String = text.chars().take(TOLD_CHARACTERS_MAX).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JobId;
    use proptest::prelude::*;

    fn fault<T: std::fmt::Debug>(
        query: &str,
        fields: impl FnOnce(&mut Parameters<'_>) -> T,
    ) -> String {
        let problem = read(Some(query), fields).unwrap_err();
        assert_eq!(problem.code, Code::MalformedParameter);
        problem.detail
    }

    #[test]
    fn values_are_decoded_and_typed() {
        let query = "state=queued%2Cdone,queued&model=qwen3%3A8b&limit=100&is_async=true&priority=batch\
            &created_after=2026-11-24T12:00:00+02:00&created_before=2026-11-24T10:00:00.5Z\
            &offset=18446744073709551615&after=01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let found = read(Some(query), |given| {
            assert_eq!(given.states("state"), Some(vec![State::Queued, State::Done]));
            assert_eq!(given.text("model").as_deref(), Some("qwen3:8b"));
            assert_eq!(given.limit("limit", 100), Some(100));
            assert_eq!(given.flag("is_async"), Some(true));
            assert_eq!(given.class("priority"), Some(Class::Batch));
            assert_eq!(given.time_ms("created_after"), Some(1_795_514_400_000));
            assert_eq!(given.time_ms("created_before"), Some(1_795_514_400_500));
            assert_eq!(given.parsed("offset", "a number"), Some(u64::MAX));
            assert!(given.parsed::<JobId>("after", "the id of a job").is_some());
            assert_eq!(given.flag("absent"), None);
        });
        assert_eq!(found, Ok(()));
        assert_eq!(read(None, |given| given.flag("stream")), Ok(None));
    }

    #[test]
    fn a_wait_is_seconds_or_a_duration() {
        for (text, millis) in
            [("30s", 30_000), ("30", 30_000), ("500ms", 500), ("5m", 300_000), ("0", 0)]
        {
            let found = read(Some(&format!("wait={text}")), |given| given.wait("wait"));
            assert_eq!(found, Ok(Some(Duration::from_millis(millis))), "{text}");
        }
        for text in ["", "301", "5m1ms", "-1", "soon", "99999999999999999999s"] {
            let told = fault(&format!("wait={text}"), |given| given.wait("wait"));
            assert!(told.starts_with("wait must be a duration"), "{told}");
        }
    }

    #[test]
    fn bad_double_and_unknown_parameters_are_all_told() {
        let told = fault("limit=0&stat=failed&stream=yes&stream=1&x%0a=1", |given| {
            (given.limit("limit", 100), given.flag("stream"), given.states("state"))
        });
        for part in [
            "limit must be a number from 1 to 100, not \"0\"",
            "stream must be true or false, not \"yes\"",
            "\"stream\" is given twice",
            "\"stat\" is unknown",
            "\"x\\n\" is unknown",
        ] {
            assert!(told.contains(part), "{told}");
        }
        for states in ["", "queued,", "Queued", "queued,gone"] {
            assert!(
                fault(&format!("state={states}"), |given| given.states("state"))
                    .contains("cancelled")
            );
        }
        assert!(fault("model=", |given| given.text("model")).contains("must not be empty"));
        assert!(fault("t=1795514400", |given| given.time_ms("t")).contains("RFC 3339"));
    }

    #[test]
    fn a_flood_of_parameters_has_a_short_answer() {
        let flood = format!("a={}&", "x".repeat(100_000)) + &"a=1&b=2&".repeat(10_000);
        assert!(fault(&flood, |given| given.flag("a")).len() < 10_000);
        let names: String = (0..10_000).map(|n| format!("n{n}=1&")).collect();
        assert!(fault(&names, |_| ()).len() < 10_000);
    }

    proptest! {
        #[test]
        fn any_query_is_read_without_a_panic(query in any::<String>()) {
            let _told = read(Some(&query), |given| {
                (given.wait("wait"), given.states("state"), given.time_ms("t"), given.text(""))
            });
        }
    }
}
