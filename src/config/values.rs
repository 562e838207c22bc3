//! How each kind of value is written, and what is allowed. A fault is the sentence that says what is allowed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::domain::model::ModelName;
use crate::domain::schedule::Beside;
use crate::guard::check_origins;
use crate::ollama::wire::keep_alive::{KeepAlive, parse_environment};
use crate::tls::Roots;

use super::Secret;

const MIB: u64 = 1024 * 1024;

/// Reads a listening address.
///
/// # Errors
/// What is allowed.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    const ALLOWED: &str = "an IP address and a port, such as 127.0.0.1:11435 or [::1]:11435";
    let text = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None if text.starts_with(':') => format!("0.0.0.0{text}"),
        None => text.to_owned(),
    };
    text.parse().map_err(|_| ALLOWED.to_owned())
}

/// Whom to trust as the upstream's CA.
pub(super) fn roots(text: &str) -> Result<Option<Roots>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let roots = Roots::of_file(Path::new(text));
    roots.map(Some).map_err(|fault| format!("a PEM file of certificates; this one {fault}"))
}

pub(super) fn secret(text: &str) -> Result<Option<Secret>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err("printable ASCII without spaces".to_owned());
    }
    Ok(Some(Secret(text.to_owned())))
}

pub(super) fn database(text: &str) -> Result<PathBuf, String> {
    if !text.is_empty() {
        let path = PathBuf::from(text);
        return match path.file_name() {
            Some(_) if !path.is_dir() => Ok(path),
            _ => Err("the path of a file, not of a folder".to_owned()),
        };
    }
    let folder = dirs::state_dir().or_else(dirs::data_local_dir);
    folder
        .map(|folder| folder.join("foreman").join("foreman.db"))
        .ok_or_else(|| "a path: this system names no state directory".to_owned())
}

pub(super) fn origins(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        check_origins(text)?;
    }
    Ok(text.to_owned())
}

pub(super) fn keep_alive(text: &str) -> Result<Option<Duration>, String> {
    match parse_environment(text) {
        Some(KeepAlive::Forever) => Ok(None),
        Some(KeepAlive::Zero | KeepAlive::Overflow) => Ok(Some(Duration::ZERO)),
        Some(KeepAlive::For(duration)) => Ok(Some(duration)),
        None => Err("-1 (for ever), seconds, or a duration such as 10m".to_owned()),
    }
}

pub(super) fn model(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match ModelName::parse(text) {
        Ok(_) => Ok(Some(text.to_owned())),
        Err(_) => Err("the name of a model, such as nomic-embed-text".to_owned()),
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const ALLOWED: &str = "a duration such as 500ms, 30s, 10m or 24h";
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|_| ALLOWED.to_owned())
}

pub(super) fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("a duration above zero, such as 30s".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn attempts(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number @ 1..=100) => Ok(number),
        _ => Err("a whole number from 1 to 100".to_owned()),
    }
}

pub(super) fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number @ 1..=10_000_000) => Ok(number),
        _ => Err("a whole number from 1 to 10000000".to_owned()),
    }
}

/// Which requests are answered by an equal one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duplicates {
    /// None: each is done.
    Off,
    /// Those that are equal to one that waits or runs.
    Inflight,
    /// In addition the deterministic ones that are equal to one that is done.
    Completed,
}

pub(super) fn duplicates(text: &str) -> Result<Duplicates, String> {
    match text.to_ascii_lowercase().as_str() {
        "off" => Ok(Duplicates::Off),
        "inflight" => Ok(Duplicates::Inflight),
        "completed" => Ok(Duplicates::Completed),
        _ => Err("off, inflight or completed".to_owned()),
    }
}

/// Whether a resident model is kept for a moment when nobody waits for it any more though others wait for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldSetting {
    /// As long as it pays by what was seen of its clients.
    Auto,
    /// Not at all.
    Off,
    /// For so long at most, above zero.
    For(Duration),
}

/// A longer hold is a mistake in the unit: a swap away and back takes a minute or two.
const HOLD_MAX: Duration = Duration::from_secs(60 * 60);

pub(super) fn hold(text: &str) -> Result<HoldSetting, String> {
    let setting = match text.to_ascii_lowercase().as_str() {
        "auto" => Some(HoldSetting::Auto),
        "off" => Some(HoldSetting::Off),
        text => positive(text).ok().filter(|wait| *wait <= HOLD_MAX).map(HoldSetting::For),
    };
    setting.ok_or_else(|| "auto, off, or a duration above zero such as 5s, at most 1h".to_owned())
}

pub(super) fn beside(text: &str) -> Result<Beside, String> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(Beside::Auto),
        "off" => Ok(Beside::Off),
        _ => Err("auto or off".to_owned()),
    }
}

/// As many requests as Ollama works on at once with one model; it has one place for each (`OLLAMA_NUM_PARALLEL`), and each
/// takes its share of the context's memory.
const PARALLEL_MAX: usize = 64;

pub(super) fn parallel(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=PARALLEL_MAX).contains(number));
    number.ok_or_else(|| format!("a whole number from 1 to {PARALLEL_MAX}"))
}

/// A size, or `0` for none.
pub(super) fn floor(text: &str) -> Result<u64, String> {
    if text == "0" {
        Ok(0)
    } else {
        bytes(text).map_err(|allowed| format!("0 (off), or {allowed}"))
    }
}

pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const ALLOWED: &str = "a size such as 64MiB, 4GiB or a number of bytes, at least 1KiB";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| ALLOWED.to_owned())?;
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1024,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1024 * MIB,
        "t" | "tb" | "tib" => 1024 * 1024 * MIB,
        _ => return Err(ALLOWED.to_owned()),
    };
    let size = number.checked_mul(unit).ok_or_else(|| ALLOWED.to_owned())?;
    if size < 1024 { Err(ALLOWED.to_owned()) } else { Ok(size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_a_word_or_a_duration() {
        assert_eq!(hold("Auto"), Ok(HoldSetting::Auto));
        assert_eq!(hold("off"), Ok(HoldSetting::Off));
        assert_eq!(hold("1500ms"), Ok(HoldSetting::For(Duration::from_millis(1_500))));
        for text in ["", "on", "0", "0s", "-1", "2h"] {
            assert!(hold(text).is_err(), "{text}");
        }
    }

    #[test]
    fn at_least_one_job_runs() {
        assert_eq!((parallel("1"), parallel("64")), (Ok(1), Ok(64)));
        for text in ["", "0", "65", "-1", "two"] {
            assert_eq!(parallel(text).unwrap_err(), "a whole number from 1 to 64", "{text}");
        }
    }

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(bytes("4GiB"), Ok(4 * 1024 * MIB));
        assert_eq!(bytes("2048"), Ok(2048));
        assert!(bytes("10").is_err());
        assert_eq!((floor("0"), floor("1MiB")), (Ok(0), Ok(MIB)));
        assert!(floor("-1").unwrap_err().starts_with("0 (off), or a size such as"));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
    }
}
