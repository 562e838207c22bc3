//! A client's metadata: an object that is given back as it came, without its white space.

use serde_json::{Map, Value};

use crate::ollama::wire::json::{Kind, is_space};

/// Bytes of the compact text; it is kept with each job and sent with each of its webhooks.
pub(super) const METADATA_BYTES_MAX: usize = 16 * 1024;

/// The compact text of a well-formed value.
///
/// It must be JSON to `serde_json` as well, which is stricter than Go, because answers and webhooks are made of it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn compact(kind: Kind, value: &[u8]) -> Result<String, &'static str> {
    if kind != Kind::Object {
        return Err("must be an object");
    }
    let mut text = Vec::new();
    let (mut is_quoted, mut is_escaped) = (false, false);
    for byte in value.iter().copied() {
        if is_quoted {
            let was_escaped = std::mem::replace(&mut is_escaped, false);
            is_escaped = byte == b'\\' && !was_escaped;
            is_quoted = byte != b'"' || was_escaped;
        } else if is_space(byte) {
            continue;
        } else {
            is_quoted = byte == b'"';
        }
        if text.len() >= METADATA_BYTES_MAX {
            return Err("is larger than 16 KiB");
        }
        text.push(byte);
    }
    let text = String::from_utf8(text).map_err(|_| "is not UTF-8")?;
    match serde_json::from_str::<Map<String, Value>>(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err("is nested too deeply, or holds a number or an escape that has no value"),
    }
}
