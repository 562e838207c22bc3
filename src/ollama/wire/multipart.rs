//! Finds the `model` field in a multipart form, for `/v1/audio/transcriptions`.
//!
//! One synchronous pass over the buffered body, looking for boundaries only; the audio is skipped,
//! never copied. `None` makes the job an opaque one, so a form that is hard to read costs a detour
//! and no mistake.

use memchr::memmem;

/// The form field that names the model.
const MODEL_FIELD: &str = "model";

/// Longer header blocks of a part are not read; Go's own limit is higher.
const PART_HEADER_BYTES_MAX: usize = 16 * 1024;

/// The text of the first `model` field of a `multipart/form-data` body.
///
/// A `?model=` in the query would win over it in Go's form handling; this looks at the body alone.
#[must_use]
pub fn model_field(content_type: &str, body: &[u8]) -> Option<String> {
    let delimiter = format!("--{}", boundary(content_type)?);
    let finder = memmem::Finder::new(delimiter.as_bytes());
    let mut parts = finder.find_iter(body).filter(|at| is_line_start(body, *at)).peekable();
    while let Some(start) = parts.next() {
        // The last part needs its closing delimiter too, or it may be cut off.
        let end = *parts.peek()?;
        let part = body.get(start + delimiter.len()..end)?;
        if let Some(text) = model_of(part) {
            return Some(text);
        }
    }
    None
}

fn is_line_start(body: &[u8], at: usize) -> bool {
    at == 0 || body[..at].ends_with(b"\n")
}

/// The text of a part, from behind its delimiter to the next, if it is the `model` field.
fn model_of(part: &[u8]) -> Option<String> {
    // White space may follow a delimiter on its line.
    let headers_at = memchr::memchr(b'\n', part)? + 1;
    let part = &part[headers_at..];
    let window = &part[..part.len().min(PART_HEADER_BYTES_MAX)];
    let (headers, value_at) = match memmem::find(window, b"\r\n\r\n") {
        Some(end) => (&window[..end], end + b"\r\n\r\n".len()),
        None => {
            let end = memmem::find(window, b"\n\n")?;
            (&window[..end], end + b"\n\n".len())
        }
    };
    let is_model = str::from_utf8(headers).ok()?.lines().any(|header| {
        header.split_once(':').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("content-disposition") && is_model_field(value)
        })
    });
    if !is_model {
        return None;
    }
    let value = part[value_at..].strip_suffix(b"\n")?;
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    Some(str::from_utf8(value).ok()?.to_owned())
}

/// Whether a `Content-Disposition` is that of the field, and not of a file sent under its name.
fn is_model_field(disposition: &str) -> bool {
    parameter(disposition, "name").is_some_and(|name| name == MODEL_FIELD)
        && parameter(disposition, "filename").is_none()
}

fn boundary(content_type: &str) -> Option<String> {
    let (kind, _) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty())
}

/// The value of one parameter of a header, without its quotes.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (name, value) = rest.split_once('=')?;
        let (value, after) = take_value(value.trim_start())?;
        if name.trim_matches([' ', '\t', ';']).eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

/// Takes a token or a quoted string off the front.
fn take_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=xYz";

    fn form(parts: &[(&str, &str)]) -> Vec<u8> {
        let parts = parts.iter().map(|(disposition, value)| {
            format!("--xYz\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n")
        });
        let body: String = parts.collect();
        format!("{body}--xYz--\r\n").into_bytes()
    }

    fn found(parts: &[(&str, &str)]) -> Option<String> {
        model_field(TYPE, &form(parts))
    }

    #[test]
    fn the_first_model_field_is_found_beside_the_audio() {
        let audio =
            ("name=\"file\"; filename=\"a; name=model\"", "RIFF\r\n\r\n--xY name=\"model\"");
        let model = ("name=\"model\"", "whisper:latest");
        for parts in [&[audio, model][..], &[model, audio], &[model, ("name=model", "other")]] {
            assert_eq!(found(parts).as_deref(), Some("whisper:latest"));
        }
        assert_eq!(found(&[("name = model", "")]).as_deref(), Some(""));
        assert_eq!(found(&[audio]), None);
        assert_eq!(found(&[("name=\"model\"; filename=\"m\"", "x")]), None);
    }

    #[test]
    fn boundaries_may_be_quoted_and_lines_may_end_in_lf() {
        let body = b"preamble\n--a:b \ncontent-disposition: FORM-DATA; NAME=model\n\nm\n--a:b--";
        let quoted = "Multipart/Form-Data; charset=utf-8; Boundary=\"a:b\"";
        assert_eq!(model_field(quoted, body).as_deref(), Some("m"));
    }

    #[test]
    fn what_is_no_whole_form_has_no_model() {
        let body = form(&[("name=\"model\"", "m")]);
        assert_eq!(model_field("application/json", &body), None);
        assert_eq!(model_field("multipart/form-data", &body), None);
        assert_eq!(model_field("multipart/form-data; boundary=", &body), None);
        assert_eq!(model_field(TYPE, &body[..body.len() - 12]), None);
        assert_eq!(model_field(TYPE, b""), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_search_panic(
            kind in "multipart/form-data; ?(boundary=)?[\"xYz\\\\;=]{0,6}",
            cut in 0_usize..200,
            junk in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
        ) {
            let mut body = form(&[("name=\"file\"; filename=\"f\"", "a\r\n--xYz\r\n"), ("name=model", "m")]);
            let at = cut.min(body.len());
            body.splice(at..at, junk);
            drop(model_field(&kind, &body));
            drop(model_field(TYPE, &body[..at]));
        }
    }
}
