//! Fuzz targets of the wire format. An input is a body as it comes; what is expected of it is worked out the plain way
//! ([`naive`]). Called by `crate::fuzz` only.

mod answer;
pub(crate) mod naive;
mod request;

use std::hash::{DefaultHasher, Hasher};

pub use answer::answer;
pub use request::request;

use super::multipart::model_field;

/// A form: its `Content-Type` on the first line, its body behind it.
///
/// # Panics
/// Where a model is read that the body does not hold, or one that is there is missed.
pub fn multipart(input: &[u8]) {
    let cut = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let body = input.get(cut + 1..).unwrap_or_default();
    if let Ok(content_type) = str::from_utf8(&input[..cut])
        && let Some(model) = model_field(content_type, body)
    {
        assert!(memchr::memmem::find(body, model.as_bytes()).is_some(), "{model:?} is nowhere");
    }
    // What comes, as the content of a file in a good form: no part of it may be taken for a field.
    let boundary = "b0undary";
    if memchr::memmem::find(input, boundary.as_bytes()).is_some() {
        return;
    }
    let part = |disposition: &str, value: &[u8]| {
        let head = format!("--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n");
        [head.as_bytes(), value, b"\r\n"].concat()
    };
    // A delimiter counts only where a line begins.
    let within = part("name=\"model\"", b"false");
    let file = part("name=\"file\"; filename=\"a\"", &[input, b"x", &within].concat());
    let model = part("name=\"model\"", b"whisper");
    let end = format!("--{boundary}--\r\n").into_bytes();
    let content_type = format!("multipart/form-data; boundary={boundary}");
    for form in [[&file[..], &model, &end], [&model, &file, &end]] {
        let found = model_field(&content_type, &form.concat());
        assert_eq!(found.as_deref(), Some("whisper"));
    }
    let alone = [&file[..], &end].concat();
    assert_eq!(model_field(&content_type, &alone), None);
}

/// Numbers that look random, and are the same for the same input.
struct Dice(u64);

impl Dice {
    fn of(input: &[u8]) -> Dice {
        let mut hasher = DefaultHasher::new();
        hasher.write(input);
        Dice(hasher.finish() | 1)
    }

    /// A number below `sides`, which is above 0.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides
    }
}
