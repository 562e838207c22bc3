//! Undoes zstd as Ollama does: on five routes, within two limits. Another decoder than foreman's, on purpose.

use std::io::Read as _;

use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// What Ollama reads of a decompressed body.
const DECODED_BYTES_MAX: u64 = 20 << 20;
/// The largest window its decoder takes.
const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Bytes before the content of a skippable frame.
const SKIPPABLE_HEAD: usize = 8;

/// The routes that undo it.
const PATHS: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];

/// Whether this request's body is undone.
pub(crate) fn is_undone(path: &str, headers: &HeaderMap) -> bool {
    PATHS.contains(&path) && headers.get(CONTENT_ENCODING).is_some_and(|value| value == "zstd")
}

/// Undoes it. The texts are those of Go's decoder, as far as they are known.
pub(crate) fn decoded(body: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let frame = rest;
        let mut decoder =
            match StreamingDecoder::new_with_max_window_size(&mut rest, WINDOW_BYTES_MAX) {
                Ok(decoder) => decoder,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    let end = SKIPPABLE_HEAD.saturating_add(length);
                    rest = frame.get(end..).ok_or("unexpected EOF")?;
                    continue;
                }
                Err(FrameDecoderError::WindowSizeTooBig { .. }) => {
                    return Err("decompressed size exceeds configured limit".to_owned());
                }
                Err(_) => return Err("invalid input: magic number mismatch".to_owned()),
            };
        let left = (DECODED_BYTES_MAX + 1).saturating_sub(u64::try_from(out.len()).unwrap_or(0));
        decoder.by_ref().take(left).read_to_end(&mut out).map_err(|_| "unexpected EOF")?;
        if u64::try_from(out.len()).unwrap_or(0) > DECODED_BYTES_MAX {
            return Err("http: request body too large".to_owned());
        }
        let checked = decoder.decoder.get_checksum_from_data();
        if checked.is_some() && checked != decoder.decoder.get_calculated_checksum() {
            return Err("invalid checksum".to_owned());
        }
    }
    Ok(out)
}
