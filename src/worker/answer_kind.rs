//! Which end mark an answer must have, from what was asked and what came. Called by the attempt.

use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderMap;

use crate::domain::dialect::Dialect;
use crate::domain::job::Kind;
use crate::ollama::wire::answer::AnswerKind;
use crate::store::Claim;

/// By what mark this answer is whole. Not only by what was asked for: Ollama answers a load request in a stream's place with
/// one JSON object. But whatever else comes in the place of an answer (a portal's page, nothing at all) is none.
pub(super) fn answer_kind(claim: &Claim, headers: &HeaderMap) -> AnswerKind {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is_json = essence == "application/json";
    if claim.kind == Kind::Opaque || matches!(claim.dialect, Dialect::Other(_)) {
        // Whatever it is, nobody tries it again: it is handed on as it comes.
        return if is_json { AnswerKind::Opaque } else { AnswerKind::OpaqueStream };
    }
    if claim.dialect == Dialect::Transcription {
        return AnswerKind::Opaque;
    }
    if is_json || !claim.is_streamed {
        return AnswerKind::JsonBody;
    }
    match claim.dialect {
        Dialect::Responses => AnswerKind::ResponsesStream,
        Dialect::Messages => AnswerKind::MessagesStream,
        Dialect::OpenAiChat | Dialect::OpenAiCompletions => AnswerKind::OpenAiStream,
        Dialect::Chat
        | Dialect::Generate
        | Dialect::Embed
        | Dialect::Embeddings
        | Dialect::OpenAiEmbeddings
        | Dialect::Transcription
        | Dialect::Images
        | Dialect::Other(_) => AnswerKind::NativeStream,
    }
}
