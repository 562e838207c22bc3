//! What a client gets to see while it waits for its answer to begin.

use std::time::Duration;

use super::values::duration;
use super::{Faults, Raw};

/// More often than this would be a load of its own; tests need no less.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// What a client gets to see while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The silence after which a byte goes out, and again at each further one; `None` is never.
    pub interval: Option<Duration>,
    /// What goes out on native streams.
    pub stream: NativeByte,
    /// Whether unstreamed answers begin early, too.
    pub unstreamed: Unstreamed,
}

/// What keeps a native stream alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NativeByte {
    /// A space, without a line end.
    Space,
    /// A chunk of the answer with empty content.
    EmptyChunk,
}

/// What an unstreamed answer begins with that is long in coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unstreamed {
    /// Nothing: its status is Ollama's own, whenever it comes.
    Nothing,
    /// Spaces: its status is 200 from then on.
    Spaces,
}

/// Reads the three settings; all of them, so that all faults are collected.
pub(super) fn waiting(raw: &Raw, faults: &mut Faults) -> Option<Waiting> {
    let given = raw.waiting_interval.as_ref();
    let interval = faults.read("FOREMAN_WAITING_INTERVAL", given, "15s", interval);
    let stream =
        faults.read("FOREMAN_WAITING_STREAM", raw.waiting_stream.as_ref(), "spaces", |text| {
            match text {
                "spaces" => Ok(NativeByte::Space),
                "chunks" => Ok(NativeByte::EmptyChunk),
                _ => Err("spaces or chunks".to_owned()),
            }
        });
    let given = raw.waiting_unstreamed.as_ref();
    let unstreamed =
        faults.read("FOREMAN_WAITING_UNSTREAMED", given, "nothing", |text| match text {
            "nothing" => Ok(Unstreamed::Nothing),
            "spaces" => Ok(Unstreamed::Spaces),
            _ => Err("nothing or spaces".to_owned()),
        });
    Some(Waiting { interval: interval?, stream: stream?, unstreamed: unstreamed? })
}

fn interval(text: &str) -> Result<Option<Duration>, String> {
    const ALLOWED: &str = "off, or a duration of at least 100ms, such as 15s";
    if text == "off" {
        return Ok(None);
    }
    match duration(text) {
        Ok(interval) if interval >= INTERVAL_MIN => Ok(Some(interval)),
        Ok(_) | Err(_) => Err(ALLOWED.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(interval: &str, stream: &str, unstreamed: &str) -> Result<Waiting, Vec<&'static str>> {
        let given = |text: &str| Some(text.to_owned());
        let raw = Raw {
            waiting_interval: given(interval),
            waiting_stream: given(stream),
            waiting_unstreamed: given(unstreamed),
            ..Raw::default()
        };
        let mut faults = Faults::default();
        let waiting = waiting(&raw, &mut faults);
        waiting.ok_or_else(|| faults.into_list().iter().map(|fault| fault.key).collect())
    }

    #[test]
    fn each_setting_is_read_and_all_faults_are_told() {
        let waiting = read("", "", "").unwrap();
        assert_eq!(waiting.interval, Some(Duration::from_secs(15)));
        assert_eq!((waiting.stream, waiting.unstreamed), (NativeByte::Space, Unstreamed::Nothing));
        let waiting = read("off", "chunks", "spaces").unwrap();
        assert_eq!(waiting.interval, None);
        assert_eq!(
            (waiting.stream, waiting.unstreamed),
            (NativeByte::EmptyChunk, Unstreamed::Spaces)
        );
        assert_eq!(
            read("99ms", "lines", "on").unwrap_err(),
            ["FOREMAN_WAITING_INTERVAL", "FOREMAN_WAITING_STREAM", "FOREMAN_WAITING_UNSTREAMED"]
        );
    }
}
