//! `/v1/audio/transcriptions`: multipart in, a made-up transcript out.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;

use super::reply::Reply;
use super::resolve::{Wording, resolve};
use super::{Call, Failure};
use crate::body::Content;
use crate::generation::{Job, Session, collect};
use crate::hash::hex64;
use crate::json::Object;

/// Parts of a form looked at.
const PARTS_MAX: usize = 64;

/// Finds a form field's bytes.
fn field(headers: &HeaderMap, body: &[u8], wanted: &str) -> Option<Vec<u8>> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let (_, boundary) = content_type.split_once("boundary=")?;
    let boundary = boundary.split(';').next()?.trim().trim_matches('"');
    let delimiter = format!("--{boundary}");
    let name = format!("name=\"{wanted}\"");
    split(body, delimiter.as_bytes()).into_iter().take(PARTS_MAX).find_map(|part| {
        let at = find(part, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&part[..at]);
        head.contains(&name).then(|| {
            let content = &part[at + 4..];
            content.strip_suffix(b"\r\n").unwrap_or(content).to_vec()
        })
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len().max(1)).position(|window| window == needle)
}

fn split<'a>(mut body: &'a [u8], delimiter: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = find(body, delimiter).filter(|_| parts.len() <= PARTS_MAX) {
        parts.push(&body[..at]);
        body = &body[at + delimiter.len()..];
    }
    parts
}

/// Returns the model a form names.
pub(super) fn model(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    field(headers, body, "model").map(|raw| String::from_utf8_lossy(&raw).into_owned())
}

/// Answers `POST /v1/audio/transcriptions`.
pub(super) async fn transcriptions(call: Call) -> Result<Reply, Failure> {
    let raw = model(&call.parts.headers, &call.body)
        .filter(|raw| !raw.is_empty())
        .ok_or_else(|| Failure::bad_request("model is required"))?;
    let sound = field(&call.parts.headers, &call.body, "file")
        .ok_or_else(|| Failure::bad_request("file is required"))?;
    let model = resolve(&call.world, &raw, Wording::Plain)?;
    // The transcript depends on the sound, through a digest of it.
    let prompt = hex64(&String::from_utf8_lossy(&sound));
    let job = Job::new(Arc::clone(&model), prompt, call.plan.clone());
    let answer = collect(Session::open(&call.world, job).await?).await?;
    let format = field(&call.parts.headers, &call.body, "response_format").unwrap_or_default();
    if format == b"text" {
        return Ok(Reply::new(200, "text/plain; charset=utf-8", Content::sized(answer.text)));
    }
    Ok(Reply::native(Object::new().with("text", answer.text)))
}
