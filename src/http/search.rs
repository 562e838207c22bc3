//! Knows the requests that Ollama makes by itself for a job in flight, and lets them pass beside the queue.

use hyper::header::{HeaderMap, USER_AGENT};

use crate::domain::dialect::Dialect;
use crate::domain::job::Kind;
use crate::domain::schedule::Lane;
use crate::ollama::wire::search::is_follow_up;
use crate::worker::Searching;

use super::Edge;
use super::placement::{Place, Placement};
use super::plain::Plain;

/// How Ollama's own client calls itself, before its version. The command line does too.
const OLLAMA_AGENT: &[u8] = b"ollama/";

/// The right of such a request to pass, if it is one: native, from Ollama's own client, with what a search found at its end,
/// for the model and the options of a job in flight that may search. Somebody else who sends the same gets one chat on a
/// resident model ahead of its turn. With keys nobody passes: Ollama has none, so whoever sends it is somebody else.
pub(super) fn follow_up(
    edge: &Edge,
    dialect: Dialect,
    headers: &HeaderMap,
    body: &Plain,
    placement: &Placement,
) -> Option<Searching> {
    if !edge.keys.are_none() {
        return None;
    }
    let Placement::Queue(Place { kind: Kind::Run, lane: Lane::Key(key), .. }) = placement else {
        return None;
    };
    let is_ollama =
        headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(OLLAMA_AGENT));
    if dialect != Dialect::Chat || !is_ollama || !body.said().is_ok_and(|said| is_follow_up(said)) {
        return None;
    }
    edge.worker.searches().pass(key)
}
