//! The completion of a job that is done: its kept answer as one value, for the job object, its artifact and its
//! webhooks.
//!
//! Never written down: it is stored once, as the answer's bytes. Called by `http` and `webhook`.

use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::domain::dialect::Dialect;
use crate::domain::job::JobId;
use crate::store::{Answer, AnswerBody};

/// The largest completion that stands inside a job object or a webhook: most are a few kilobytes.
pub const INLINE_BYTES_MAX: usize = 256 * 1024;

/// The largest stream that is read to be folded: a record for each token is some fifty times as long as its text, so this
/// is as much as can come to an inline completion.
const STREAM_BYTES_MAX: usize = 64 * INLINE_BYTES_MAX;

/// The shape of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The wire shape.
    pub dialect: Dialect,
    /// Whether it is a stream.
    pub is_streamed: bool,
}

/// A completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Its content type; empty if Ollama named none.
    pub content_type: String,
    /// Its bytes.
    pub size: u64,
    /// Its value, where it is at most [`INLINE_BYTES_MAX`]: JSON as what it says, anything else as a text.
    pub inline: Option<Value>,
}

impl Completion {
    /// The artifacts of the job, as its object and its webhooks show them.
    pub fn artifacts(&self, id: JobId) -> Value {
        json!([{
            "name": "completion",
            "content_type": self.content_type,
            "size": self.size,
            "is_inline": self.inline.is_some(),
            "url": format!("/jobs/{id}/artifacts/completion"),
        }])
    }
}

/// The completion of a kept answer; `folder` is where large answers are. A file that cannot be read is no inline value.
pub async fn completion(answer: &Answer, shape: Shape, folder: &Path) -> Completion {
    let content_type = content_type(answer);
    let size = match &answer.body {
        AnswerBody::Inline(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        AnswerBody::File { bytes, .. } => *bytes,
    };
    let bytes_max = if is_folded(shape) { STREAM_BYTES_MAX } else { INLINE_BYTES_MAX };
    if usize::try_from(size).unwrap_or(usize::MAX) > bytes_max {
        return Completion { content_type, size, inline: None };
    }
    let bytes = match &answer.body {
        AnswerBody::Inline(bytes) => Some(bytes.clone()),
        AnswerBody::File { name, .. } => {
            tokio::fs::read(folder.join(name)).await.ok().map(Bytes::from)
        }
    };
    match bytes {
        Some(bytes) => of_bytes(bytes, content_type, shape),
        None => Completion { content_type, size, inline: None },
    }
}

fn of_bytes(bytes: Bytes, content_type: String, shape: Shape) -> Completion {
    let (bytes, content_type) = match is_folded(shape).then(|| folded(&bytes, shape)).flatten() {
        Some(whole) => (whole, "application/json".to_owned()),
        None => (bytes, content_type),
    };
    let inline = (bytes.len() <= INLINE_BYTES_MAX).then(|| value(&bytes, &content_type)).flatten();
    Completion { content_type, size: u64::try_from(bytes.len()).unwrap_or(u64::MAX), inline }
}

/// Whether its parts are put together: a stream of Ollama's own.
fn is_folded(shape: Shape) -> bool {
    shape.is_streamed && matches!(shape.dialect, Dialect::Chat | Dialect::Generate)
}

/// A streamed native answer as the one object that it would have been unstreamed; `None` where it cannot be.
///
/// The fold itself belongs to `ollama::wire`; until it is there, such an answer is shown as the text it is.
fn folded(_stream: &Bytes, _shape: Shape) -> Option<Bytes> {
    None
}

fn value(bytes: &Bytes, content_type: &str) -> Option<Value> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json")
        && let Ok(value) = serde_json::from_slice(bytes)
    {
        return Some(value);
    }
    std::str::from_utf8(bytes).ok().map(|text| Value::String(text.to_owned()))
}

fn content_type(answer: &Answer) -> String {
    let found = answer.headers.iter().find(|(name, _)| name == "content-type");
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: Shape = Shape { dialect: Dialect::Chat, is_streamed: false };

    fn answer(content_type: &str, body: AnswerBody) -> Answer {
        let headers = vec![("content-type".to_owned(), content_type.as_bytes().to_vec())];
        Answer { status: 200, headers, body }
    }

    fn inline(bytes: &[u8]) -> AnswerBody {
        AnswerBody::Inline(Bytes::copy_from_slice(bytes))
    }

    async fn of(answer: Answer) -> Completion {
        completion(&answer, CHAT, Path::new("nowhere")).await
    }

    #[tokio::test]
    async fn json_is_a_value_and_anything_else_a_text() {
        let json = of(answer("application/json; charset=utf-8", inline(b"{\"a\":1}"))).await;
        assert_eq!((json.size, json.inline), (7, Some(json!({ "a": 1 }))));
        let text = of(answer("text/event-stream", inline(b"data: {}\n\n"))).await;
        assert_eq!(text.inline, Some(json!("data: {}\n\n")));
        let broken = of(answer("application/json", inline(b"{"))).await;
        assert_eq!(broken.inline, Some(json!("{")));
        assert_eq!(of(answer("text/plain", inline(b"\xff"))).await.inline, None);
    }

    #[tokio::test]
    async fn a_large_one_is_not_inline_and_a_file_is_read() {
        let large = of(answer("text/plain", inline(&vec![b'a'; INLINE_BYTES_MAX + 1]))).await;
        assert_eq!((large.size, large.inline.as_ref()), (262_145, None));
        assert_eq!(large.artifacts(JobId(ulid::Ulid::nil()))[0]["is_inline"], false);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "[1]").unwrap();
        let file = |name: &str| AnswerBody::File { name: name.to_owned(), bytes: 3 };
        let found = answer("application/json", file("a"));
        assert_eq!(completion(&found, CHAT, folder.path()).await.inline, Some(json!([1])));
        let gone = answer("application/json", file("b"));
        assert_eq!(completion(&gone, CHAT, folder.path()).await.inline, None);
    }
}
