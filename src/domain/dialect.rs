//! The wire shapes of requests that need a model, and what each means for errors and end marks. Pure.

/// The wire shape of a request that needs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `POST /api/chat`.
    Chat,
    /// `POST /api/generate`.
    Generate,
    /// `POST /api/embed`.
    Embed,
    /// `POST /api/embeddings`.
    Embeddings,
    /// `POST /v1/chat/completions`.
    OpenAiChat,
    /// `POST /v1/completions`.
    OpenAiCompletions,
    /// `POST /v1/embeddings`.
    OpenAiEmbeddings,
    /// `POST /v1/responses`.
    Responses,
    /// `POST /v1/messages` (Anthropic's shape).
    Messages,
    /// `POST /v1/audio/transcriptions` (multipart).
    Transcription,
    /// `POST /v1/images/generations` and `/v1/images/edits`, of Ollama 0.15 to 0.31.
    Images,
    /// A route of the upstream's that foreman does not know; told apart by how it spells an error.
    Other(ErrorShape),
}

/// How a dialect spells an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorShape {
    /// `{"error":"text"}`.
    Native,
    /// `{"error":{"message":…,"type":…,"param":null,"code":null}}`.
    OpenAi,
    /// `{"type":"error","error":{"type":…,"message":…}}`.
    Anthropic,
}

impl Dialect {
    /// All dialects that can be queued, for tables and tests.
    pub const QUEUED: [Dialect; 11] = [
        Dialect::Chat,
        Dialect::Generate,
        Dialect::OpenAiChat,
        Dialect::OpenAiCompletions,
        Dialect::Responses,
        Dialect::Messages,
        Dialect::Transcription,
        Dialect::Images,
        Dialect::Other(ErrorShape::Native),
        Dialect::Other(ErrorShape::OpenAi),
        Dialect::Other(ErrorShape::Anthropic),
    ];

    /// The stable name, in SQL, JSON, logs.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Chat => "chat",
            Dialect::Generate => "generate",
            Dialect::Embed => "embed",
            Dialect::Embeddings => "embeddings",
            Dialect::OpenAiChat => "openai_chat",
            Dialect::OpenAiCompletions => "openai_completions",
            Dialect::OpenAiEmbeddings => "openai_embeddings",
            Dialect::Responses => "responses",
            Dialect::Messages => "messages",
            Dialect::Transcription => "transcription",
            Dialect::Images => "images",
            Dialect::Other(ErrorShape::Native) => "other",
            Dialect::Other(ErrorShape::OpenAi) => "other_openai",
            Dialect::Other(ErrorShape::Anthropic) => "other_anthropic",
        }
    }

    /// The queued dialect of that [`Dialect::name`].
    pub fn from_name(name: &str) -> Option<Dialect> {
        Dialect::QUEUED.into_iter().find(|dialect| dialect.name() == name)
    }

    /// How this dialect spells an error.
    pub fn error_shape(self) -> ErrorShape {
        match self {
            Dialect::Chat | Dialect::Generate | Dialect::Embed | Dialect::Embeddings => {
                ErrorShape::Native
            }
            Dialect::OpenAiChat
            | Dialect::OpenAiCompletions
            | Dialect::OpenAiEmbeddings
            | Dialect::Responses
            | Dialect::Transcription
            | Dialect::Images => ErrorShape::OpenAi,
            Dialect::Messages => ErrorShape::Anthropic,
            Dialect::Other(shape) => shape,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for dialect in Dialect::QUEUED {
            assert_eq!(Dialect::from_name(dialect.name()), Some(dialect));
        }
        assert_eq!(Dialect::from_name("embed"), None);
    }
}
