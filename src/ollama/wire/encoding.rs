//! What a request says once its `Content-Encoding` is undone, as far as Ollama undoes it.
//!
//! Ollama knows one encoding, on five routes, within two limits (`server/cloud_proxy.go`, `middleware/openai.go`). Everywhere
//! else it reads the bytes as they are, whatever the header says. What is made here is for the eyes of foreman only: the
//! original bytes go upstream. `http` calls it off the async threads.

use std::io::Read;

use bytes::Bytes;

use crate::domain::dialect::Dialect;

/// The one `Content-Encoding` Ollama undoes. It compares the bytes: `ZSTD` is none.
const ZSTD: &[u8] = b"zstd";

/// Ollama reads no more of what comes out (`maxDecompressedBodySize`).
pub const DECODED_BYTES_MAX: usize = 20 * 1024 * 1024;

/// Ollama's decoder is given 8 MiB (`WithDecoderMaxMemory`), which is the largest window, or the size of a frame that is its
/// own window.
const WINDOW_LOG_MAX: u32 = 23;

/// How the reference decoder says that the window is too large. Its Rust face keeps no code.
const WINDOW_TOO_LARGE: &str = "too much memory";

/// Why a body cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    /// It is not what it says: no Ollama can read it.
    #[error("the body is no zstd")]
    Broken,
    /// It is beyond the limits of the Ollama that is known. Another may have others.
    #[error("the body is larger than ollama reads")]
    Beyond,
}

/// Whether Ollama undoes this `Content-Encoding` on the routes of this dialect.
#[must_use]
pub fn is_undone(dialect: Dialect, encoding: &[u8]) -> bool {
    let is_of_v1 = match dialect {
        Dialect::OpenAiChat
        | Dialect::OpenAiCompletions
        | Dialect::OpenAiEmbeddings
        | Dialect::Responses
        | Dialect::Messages => true,
        Dialect::Chat
        | Dialect::Generate
        | Dialect::Embed
        | Dialect::Embeddings
        | Dialect::Transcription
        | Dialect::Images
        | Dialect::Other(_) => false,
    };
    is_of_v1 && encoding == ZSTD
}

/// Undoes zstd: all frames, one behind the other, checksums included. Never makes more than [`DECODED_BYTES_MAX`], whatever
/// the bytes promise.
///
/// # Errors
/// [`Undecodable`]; an empty body is none, as for Ollama.
pub fn decoded(body: &[u8]) -> Result<Bytes, Undecodable> {
    if body.is_empty() {
        return Ok(Bytes::new());
    }
    let mut decoder = zstd::Decoder::with_buffer(body).map_err(|_| Undecodable::Broken)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(|_| Undecodable::Broken)?;
    let limit = u64::try_from(DECODED_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    match decoder.take(limit).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() > DECODED_BYTES_MAX => Err(Undecodable::Beyond),
        Ok(_) => Ok(Bytes::from(bytes)),
        Err(fault) if fault.to_string().contains(WINDOW_TOO_LARGE) => Err(Undecodable::Beyond),
        Err(_) => Err(Undecodable::Broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A frame with a window of so many bits.
    fn encoded(bytes: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn only_what_ollama_undoes_is_undone() {
        for dialect in [Dialect::OpenAiChat, Dialect::OpenAiEmbeddings, Dialect::Messages] {
            assert!(is_undone(dialect, b"zstd"));
            for other in ["gzip", "ZSTD", "", "zstd, gzip", "identity"] {
                assert!(!is_undone(dialect, other.as_bytes()), "{other}");
            }
        }
        for dialect in [Dialect::Chat, Dialect::Embed, Dialect::Transcription, Dialect::Images] {
            assert!(!is_undone(dialect, b"zstd"));
        }
    }

    #[test]
    fn frames_one_behind_the_other_are_one_body() {
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7];
        let frames = [&encoded(b"{\"a\"", 20)[..], &skippable[..], &encoded(b":1}", 20)].concat();
        assert_eq!(decoded(&frames).unwrap(), "{\"a\":1}");
        assert_eq!(decoded(b"").unwrap(), "");
    }

    #[test]
    fn a_bomb_makes_no_more_than_the_limit() {
        let full = vec![b' '; DECODED_BYTES_MAX];
        assert_eq!(decoded(&encoded(&full, 20)).unwrap().len(), DECODED_BYTES_MAX);
        let more = vec![b' '; DECODED_BYTES_MAX + 1];
        let bomb = encoded(&more, 20);
        assert!(bomb.len() < 10_000);
        assert_eq!(decoded(&bomb), Err(Undecodable::Beyond));
        // As many frames as one likes, each of them harmless.
        assert_eq!(decoded(&encoded(&full[..1 << 20], 20).repeat(21)), Err(Undecodable::Beyond));
    }

    #[test]
    fn a_window_beyond_ollamas_is_not_made() {
        let text = vec![b' '; 9 << 20];
        assert_eq!(decoded(&encoded(&text, 23)).unwrap().len(), text.len());
        assert_eq!(decoded(&encoded(&text, 24)), Err(Undecodable::Beyond));
        // One that knows its size, and is its own window.
        let alone = |text: &[u8]| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(24).unwrap();
            encoder.set_pledged_src_size(u64::try_from(text.len()).ok()).unwrap();
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(decoded(&alone(&text)), Err(Undecodable::Beyond));
        assert_eq!(decoded(&alone(&text[..7 << 20])).unwrap().len(), 7 << 20);
    }

    #[test]
    fn what_is_cut_or_changed_is_broken() {
        let whole = encoded(br#"{"model":"m","messages":[]}"#, 20);
        for length in 1..whole.len() {
            assert_eq!(decoded(&whole[..length]), Err(Undecodable::Broken), "{length}");
        }
        let mut changed = whole.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(decoded(&changed), Err(Undecodable::Broken));
        assert_eq!(decoded(br#"{"model":"m"}"#), Err(Undecodable::Broken));
        assert_eq!(decoded(&[&whole[..], b"junk"].concat()), Err(Undecodable::Broken));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_not_within_the_limit(
            junk in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..60,
        ) {
            let mut frame = encoded(&[b"x".repeat(300), junk.clone()].concat(), 20);
            let at = at.min(frame.len());
            frame.splice(at..at, junk.clone());
            for body in [&frame, &junk] {
                if let Ok(bytes) = decoded(body) {
                    prop_assert!(bytes.len() <= DECODED_BYTES_MAX);
                }
            }
        }
    }
}
