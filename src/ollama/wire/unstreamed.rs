//! Tells half an unstreamed answer from a whole one, where the JSON itself is complete.
//!
//! Ollama makes an unstreamed answer from the same records as a stream. When its runner stops without a last record, the
//! answer is a complete JSON value around half a text; what is missing is only the reason why it ended.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::domain::dialect::Dialect;

/// Whether a complete, successful, unstreamed answer broke off before its end.
pub fn is_half(dialect: Dialect, body: &[u8]) -> bool {
    match dialect {
        Dialect::Chat | Dialect::Generate => {
            serde_json::from_slice::<Native>(body).is_ok_and(|answer| answer.done == Some(false))
        }
        Dialect::OpenAiChat | Dialect::OpenAiCompletions => serde_json::from_slice::<OpenAi>(body)
            .is_ok_and(|answer| answer.choices.iter().any(|choice| choice.finish_reason.is_none())),
        Dialect::Messages => serde_json::from_slice::<Messages>(body)
            .is_ok_and(|answer| answer.stop_reason.is_none()),
        // Ollama calls these completed whatever happened, or they carry no reason at all.
        Dialect::Responses
        | Dialect::Transcription
        | Dialect::Images
        | Dialect::Other(_)
        | Dialect::Embed
        | Dialect::Embeddings
        | Dialect::OpenAiEmbeddings => false,
    }
}

#[derive(Deserialize)]
struct Native {
    done: Option<bool>,
}

#[derive(Deserialize)]
struct OpenAi {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    finish_reason: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Messages {
    stop_reason: Option<IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_its_reason_is_half() {
        let cases: [(Dialect, &str, bool); 9] = [
            (Dialect::Chat, r#"{"message":{"content":"a"},"done":true}"#, false),
            (Dialect::Chat, r#"{"message":{"content":"a"},"done":false}"#, true),
            (Dialect::Generate, r#"{"response":"\"done\":false","done":true}"#, false),
            (Dialect::OpenAiChat, r#"{"choices":[{"finish_reason":"stop"}]}"#, false),
            (Dialect::OpenAiChat, r#"{"choices":[{"finish_reason":null}]}"#, true),
            (Dialect::OpenAiCompletions, r#"{"choices":[{"text":"x"}]}"#, true),
            (Dialect::Messages, r#"{"content":[],"stop_reason":"end_turn"}"#, false),
            (Dialect::Messages, r#"{"content":[]}"#, true),
            (Dialect::Responses, r#"{"status":"completed"}"#, false),
        ];
        for (dialect, body, expected) in cases {
            assert_eq!(is_half(dialect, body.as_bytes()), expected, "{body}");
        }
    }
}
