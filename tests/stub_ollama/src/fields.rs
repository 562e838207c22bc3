//! Typed reading of request fields with Go's type errors, and the `keep_alive` grammar.

use crate::json::{Json, Object};

/// Longest Go duration, in nanoseconds: what "forever" becomes.
pub(crate) const FOREVER_NS: i64 = i64::MAX;

const NANOS_PER_SECOND: f64 = 1e9;

/// The fields of one Go struct being filled.
pub(crate) struct Fields<'a> {
    go_type: &'static str,
    path: String,
    object: Option<&'a Object>,
}

type Read<T> = Result<T, String>;

impl<'a> Fields<'a> {
    /// Opens a request body; `null` is an empty request.
    pub(crate) fn of(go_type: &'static str, value: &'a Json) -> Read<Self> {
        match value {
            Json::Object(object) => Ok(Self { go_type, path: String::new(), object: Some(object) }),
            Json::Null => Ok(Self { go_type, path: String::new(), object: None }),
            other => Err(format!(
                "json: cannot unmarshal {} into Go value of type {}",
                other.kind(),
                go_type
            )),
        }
    }

    /// Returns a field; `null` counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Json> {
        self.object?.get(key).filter(|value| !matches!(value, Json::Null))
    }

    fn mismatch(&self, key: &str, value: &Json, wanted: &str) -> String {
        let kind = match value {
            Json::Number(digits) if wanted.starts_with("int") => format!("number {digits}"),
            other => other.kind().to_owned(),
        };
        let owner = self.go_type.rsplit('.').next().unwrap_or(self.go_type);
        let path = &self.path;
        format!(
            "json: cannot unmarshal {kind} into Go struct field {owner}.{path}{key} of type {wanted}"
        )
    }

    /// Reads a string; absent is empty.
    pub(crate) fn text(&self, key: &str) -> Read<&'a str> {
        match self.get(key) {
            None => Ok(""),
            Some(Json::Text(text)) => Ok(text),
            Some(other) => Err(self.mismatch(key, other, "string")),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Read<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.mismatch(key, other, "bool")),
        }
    }

    pub(crate) fn int(&self, key: &str) -> Read<Option<i64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Number(digits)) => match digits.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(self.mismatch(key, &Json::Number(digits.clone()), "int")),
            },
            Some(other) => Err(self.mismatch(key, other, "int")),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Read<Option<&'a Object>> {
        match self.get(key) {
            None => Ok(None),
            Some(Json::Object(object)) => Ok(Some(object)),
            Some(other) => Err(self.mismatch(key, other, "map[string]interface {}")),
        }
    }

    /// Reads an array; absent is empty.
    pub(crate) fn array(&self, key: &str, wanted: &str) -> Read<&'a [Json]> {
        match self.get(key) {
            None => Ok(&[]),
            Some(Json::Array(items)) => Ok(items),
            Some(other) => Err(self.mismatch(key, other, wanted)),
        }
    }

    /// Reads an array of structs and opens each.
    pub(crate) fn structs(&self, key: &str, wanted: &'static str) -> Read<Vec<Fields<'a>>> {
        self.array(key, &format!("[]{wanted}"))?
            .iter()
            .map(|item| match item {
                Json::Object(object) => Ok(Fields {
                    go_type: self.go_type,
                    path: format!("{}{key}.", self.path),
                    object: Some(object),
                }),
                other => Err(self.mismatch(key, other, wanted)),
            })
            .collect()
    }

    /// Reads `keep_alive` in nanoseconds; `None` leaves the runner's as it is.
    pub(crate) fn keep_alive(&self) -> Read<Option<i64>> {
        match self.get("keep_alive") {
            None => Ok(None),
            Some(Json::Number(digits)) => Ok(Some(seconds_to_ns(digits.parse().unwrap_or(0.0)))),
            Some(Json::Text(text)) => {
                let duration = parse_duration(text)?;
                Ok(Some(if duration < 0 { FOREVER_NS } else { duration }))
            }
            Some(Json::Bool(_)) => Err("Unsupported type: 'bool'".to_owned()),
            Some(Json::Array(_)) => Err("Unsupported type: '[]interface {}'".to_owned()),
            Some(_) => Err("Unsupported type: 'map[string]interface {}'".to_owned()),
        }
    }
}

/// Converts as Go on amd64 does: negative is forever, an overflow becomes the smallest integer.
fn seconds_to_ns(seconds: f64) -> i64 {
    if seconds < 0.0 {
        return FOREVER_NS;
    }
    whole_number(seconds * NANOS_PER_SECOND).unwrap_or(i64::MIN)
}

/// Truncates towards zero; `None` when it does not fit. Through text, because casts would wrap.
fn whole_number(value: f64) -> Option<i64> {
    format!("{:.0}", value.trunc()).parse().ok()
}

/// Parses a Go duration (`1h30m`, `-1s`, `0`) into nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Read<i64> {
    let invalid = || format!("time: invalid duration {}", go_quote(text));
    let (sign, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = &rest[..unit_end];
        rest = &rest[unit_end..];
        total += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                "" => return Err(format!("time: missing unit in duration {}", go_quote(text))),
                other => {
                    return Err(format!(
                        "time: unknown unit {} in duration {}",
                        go_quote(other),
                        go_quote(text)
                    ));
                }
            };
    }
    whole_number(sign * total).ok_or_else(invalid)
}

/// Quotes for an error text; enough of Go's `strconv.Quote` for what clients send.
pub(crate) fn go_quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;

    fn keep_alive(value: &str) -> Read<Option<i64>> {
        let body = decode(format!("{{\"keep_alive\":{value}}}").as_bytes()).unwrap();
        Fields::of("api.ChatRequest", &body).unwrap().keep_alive()
    }

    #[test]
    fn keep_alive_follows_the_measured_table() {
        for (value, expected) in [
            ("null", None),
            ("0.5", Some(500_000_000)),
            ("-0.5", Some(FOREVER_NS)),
            ("-0.0", Some(0)),
            ("\"0s\"", Some(0)),
            ("1e-10", Some(0)),
            ("\"1h30m\"", Some(5_400_000_000_000)),
            ("\"-1m\"", Some(FOREVER_NS)),
            ("9223372037", Some(i64::MIN)),
        ] {
            assert_eq!(keep_alive(value), Ok(expected), "{value}");
        }
        for (value, expected) in [
            ("\"abc\"", "time: invalid duration \"abc\""),
            ("\"\"", "time: invalid duration \"\""),
            ("\"-1\"", "time: missing unit in duration \"-1\""),
            ("\"1d\"", "time: unknown unit \"d\" in duration \"1d\""),
            ("true", "Unsupported type: 'bool'"),
        ] {
            assert_eq!(keep_alive(value), Err(expected.to_owned()), "{value}");
        }
    }

    #[test]
    fn a_wrong_type_is_refused_in_go_s_words() {
        let body = decode(br#"{"stream":"false","messages":[{"content":[]}]}"#).unwrap();
        let fields = Fields::of("api.ChatRequest", &body).unwrap();
        assert_eq!(
            fields.bool("stream").unwrap_err(),
            "json: cannot unmarshal string into Go struct field ChatRequest.stream of type bool"
        );
        assert_eq!(
            fields.structs("messages", "api.Message").unwrap()[0].text("content").unwrap_err(),
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of \
             type string"
        );
    }
}
