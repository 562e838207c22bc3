//! The log probabilities of a token, made up but deterministic: `logprobs` and `top_logprobs`, native and `/v1`.

use crate::fields::Fields;
use crate::json::{Json, Object};

/// Ollama's limit.
const TOP_MAX: i64 = 20;

/// What a request asks for: so many alternatives of each token, or nothing at all.
pub(super) fn asked(fields: &Fields<'_>) -> Result<Option<i64>, String> {
    let top = fields.int("top_logprobs")?.unwrap_or(0);
    if !(0..=TOP_MAX).contains(&top) {
        return Err("top_logprobs must be between 0 and 20".to_owned());
    }
    Ok((fields.bool("logprobs")? == Some(true)).then_some(top))
}

/// The list for one token; `None` where nothing was asked for.
pub(super) fn of(token: &str, asked: Option<i64>) -> Option<Json> {
    let top = asked?;
    let alternatives = (0..top).map(|rank| entry(token, rank).into()).collect::<Vec<Json>>();
    let alternatives = (!alternatives.is_empty()).then_some(alternatives);
    Some(Json::Array(vec![entry(token, 0).with_some("top_logprobs", alternatives).into()]))
}

fn entry(token: &str, rank: i64) -> Object {
    let bytes: Vec<Json> = token.bytes().map(|byte| Json::from(u32::from(byte))).collect();
    let logprob = Json::Number(format!("-{rank}.0{}25", token.len()));
    Object::new().with("token", token).with("logprob", logprob).with("bytes", bytes)
}
