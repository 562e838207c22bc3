//! The completion of a job: its answer as one value.
//!
//! A streamed native answer is folded into the object that `"stream": false` would have given; any other answer is its own
//! completion. It is stored once: as the answer. Called by `http` for the job object and the artifact, and by `webhook` for
//! what it tells.

use std::fs::File;
use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;

use crate::ollama::wire::fold::fold;
use crate::store::{Answer, AnswerBody, StoreError};

/// A completion up to this size stands in the job object and in the webhook; a larger one is fetched.
pub const INLINE_BYTES_MAX: u64 = 256 * 1024;

/// The content type of a folded completion.
pub const JSON: &str = "application/json";

/// A completion, without its bytes where they are many.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// What it is.
    pub content_type: String,
    /// Its bytes.
    pub size: u64,
    /// Its value, if it is small: JSON as it is, anything else as a text.
    pub inline: Option<Value>,
}

/// The completion of an answer; files of answers are in `folder`. Reads a streamed answer whole.
///
/// # Errors
/// [`StoreError::File`] if the file of a large answer cannot be read.
pub async fn of(answer: &Answer, folder: PathBuf) -> Result<Completion, StoreError> {
    if let Some(folded) = folded(answer, folder.clone()).await? {
        return Ok(in_memory(JSON.to_owned(), &folded));
    }
    let content_type = content_type(answer);
    match &answer.body {
        AnswerBody::Inline(bytes) => Ok(in_memory(content_type, bytes)),
        AnswerBody::File { bytes, .. } if *bytes > INLINE_BYTES_MAX => {
            Ok(Completion { content_type, size: *bytes, inline: None })
        }
        AnswerBody::File { name, .. } => {
            let path = folder.join(name);
            let bytes = tokio::fs::read(&path).await;
            Ok(in_memory(content_type, &bytes.map_err(|fault| StoreError::file(&path, &fault))?))
        }
    }
}

/// The folded bytes of a streamed native answer; `None` if it is no such answer.
///
/// # Errors
/// [`StoreError::File`] if the file of a large answer cannot be read.
pub async fn folded(answer: &Answer, folder: PathBuf) -> Result<Option<Bytes>, StoreError> {
    if !content_type(answer).starts_with("application/x-ndjson") {
        return Ok(None);
    }
    let body = answer.body.clone();
    // A large one is read from its file, and even a small one takes a while to parse.
    let work = move || match body {
        AnswerBody::Inline(bytes) => fold(bytes.as_ref()).map_err(|fault| (PathBuf::new(), fault)),
        AnswerBody::File { name, .. } => {
            let path = folder.join(name);
            File::open(&path).and_then(fold).map_err(|fault| (path, fault))
        }
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(bytes)) => Ok(bytes.map(Bytes::from)),
        Ok(Err((path, fault))) => Err(StoreError::file(&path, &fault)),
        Err(fault) => Err(StoreError::Strange(format!("an answer could not be folded: {fault}"))),
    }
}

fn in_memory(content_type: String, bytes: &[u8]) -> Completion {
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let inline = (size <= INLINE_BYTES_MAX).then(|| value(&content_type, bytes));
    Completion { content_type, size, inline }
}

fn value(content_type: &str, bytes: &[u8]) -> Value {
    let text = || Value::String(String::from_utf8_lossy(bytes).into_owned());
    match content_type.starts_with(JSON) {
        true => serde_json::from_slice(bytes).unwrap_or_else(|_| text()),
        false => text(),
    }
}

fn content_type(answer: &Answer) -> String {
    let header = answer.headers.iter().find(|(name, _)| name == "content-type");
    header.map_or_else(String::new, |(_, value)| String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(content_type: &str, body: impl Into<Bytes>) -> Answer {
        Answer {
            status: 200,
            headers: vec![("content-type".to_owned(), content_type.as_bytes().to_vec())],
            body: AnswerBody::Inline(body.into()),
        }
    }

    async fn completion(answer: &Answer) -> Completion {
        of(answer, PathBuf::new()).await.unwrap()
    }

    #[tokio::test]
    async fn a_streamed_native_answer_is_folded_and_others_stay() {
        let lines = "{\"message\":{\"role\":\"assistant\",\"content\":\"a\"},\"done\":false}\n\
                     {\"message\":{\"role\":\"assistant\",\"content\":\"b\"},\"done\":true}\n";
        let folded = completion(&answer("application/x-ndjson", lines)).await;
        assert_eq!(folded.content_type, JSON);
        assert_eq!(folded.inline.unwrap()["message"]["content"], "ab");
        let events = completion(&answer("text/event-stream", "data: [DONE]\n\n")).await;
        assert_eq!(events.inline, Some(Value::String("data: [DONE]\n\n".to_owned())));
        let broken = completion(&answer("application/json; charset=utf-8", "{")).await;
        assert_eq!(broken.inline, Some(Value::String("{".to_owned())));
    }

    #[tokio::test]
    async fn at_the_limit_it_is_inline_and_a_byte_above_it_is_not() {
        let size = usize::try_from(INLINE_BYTES_MAX).unwrap();
        for (bytes, is_inline) in [(size - 1, true), (size, true), (size + 1, false)] {
            let body = format!("\"{}\"", "x".repeat(bytes - 2));
            let completion = completion(&answer(JSON, body)).await;
            assert_eq!((completion.size, completion.inline.is_some()), (bytes as u64, is_inline));
        }
    }

    #[tokio::test]
    async fn a_large_answer_is_folded_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let part = format!("{{\"response\":\"{}\",\"done\":false}}\n", "y".repeat(1_000));
        let text = part.repeat(300) + "{\"response\":\"\",\"done\":true}\n";
        std::fs::write(folder.path().join("one"), &text).unwrap();
        let body = AnswerBody::File { name: "one".to_owned(), bytes: text.len() as u64 };
        let large = Answer { body, ..answer("application/x-ndjson", "") };
        let completion = of(&large, folder.path().to_owned()).await.unwrap();
        assert!(completion.size > 300_000 && completion.inline.is_none());
        let folded = folded(&large, folder.path().to_owned()).await.unwrap().unwrap();
        assert_eq!(folded.len() as u64, completion.size);
    }
}
