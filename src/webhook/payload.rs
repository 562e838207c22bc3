//! What a receiver is told: the body of a delivery. A change of state as it was, with the completion once it is done.

use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::completion::Completion;
use crate::domain::job::State;
use crate::store::{Telling, Transition};

/// The name of a delivery, the same at each try.
pub(super) fn id(change: &Transition) -> String {
    format!("msg_{}_{}", change.id, change.event)
}

/// The body.
pub(super) fn body(telling: &Telling, completion: Option<&Completion>) -> Value {
    let change = &telling.transition;
    let metadata = telling.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok());
    json!({
        "type": format!("job.{}", change.to.name()),
        "job_id": change.id.to_string(),
        "sequence": telling.sequence,
        "state": change.to.name(),
        "previous_state": change.from.map(State::name),
        "timestamp": rfc3339(change.at_ms),
        "model": change.model,
        "attempt": change.attempt,
        "error": error(telling),
        "result": completion.and_then(|completion| completion.inline.clone()),
        "artifacts": completion.map_or_else(|| json!([]), |completion| completion.artifacts(change.id)),
        "metadata": metadata.unwrap_or(Value::Null),
    })
}

/// What went wrong. A note is an error where an attempt ended with it, or the job did; other notes only say by whose hand a
/// job went where it is.
fn error(telling: &Telling) -> Value {
    let change = &telling.transition;
    let is_error = match (change.from, change.to) {
        (_, State::Failed | State::Cancelled) => true,
        (Some(State::Loading | State::Working), State::Queued) => true,
        (_, State::Queued | State::Loading | State::Working | State::Done) => false,
    };
    match change.note.as_deref().filter(|_| is_error) {
        Some(message) => json!({ "message": message, "status": telling.error_status }),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JobId;

    fn telling(from: Option<State>, to: State, note: Option<&str>) -> Telling {
        Telling {
            transition: Transition {
                event: 7,
                id: JobId(ulid::Ulid::nil()),
                owner: String::new(),
                model: "llama3".to_owned(),
                from,
                to,
                attempt: 2,
                at_ms: 1_500,
                note: note.map(str::to_owned),
            },
            sequence: 3,
            url: "http://localhost/".to_owned(),
            error_status: (to == State::Failed).then_some(404),
            metadata: Some(r#"{"a":[1]}"#.to_owned()),
            answer: None,
        }
    }

    #[test]
    fn a_change_is_told_with_all_its_members() {
        let told = telling(Some(State::Working), State::Done, None);
        let completion = Completion {
            content_type: "application/json".to_owned(),
            size: 2,
            inline: Some(json!({})),
        };
        assert_eq!(id(&told.transition), "msg_00000000000000000000000000_7");
        let artifact = json!({
            "name": "completion", "content_type": "application/json", "size": 2, "is_inline": true,
            "url": "/jobs/00000000000000000000000000/artifacts/completion"
        });
        assert_eq!(
            body(&told, Some(&completion)),
            json!({
                "type": "job.done", "job_id": "00000000000000000000000000", "sequence": 3, "state": "done",
                "previous_state": "working", "timestamp": "1970-01-01T00:00:01.500Z", "model": "llama3", "attempt": 2,
                "error": null, "result": {}, "artifacts": [artifact], "metadata": { "a": [1] }
            })
        );
    }

    #[test]
    fn only_what_went_wrong_is_an_error() {
        let error_of = |from, to, note| body(&telling(from, to, note), None)["error"].clone();
        let (working, failed) = (Some(State::Working), State::Failed);
        assert_eq!(
            error_of(working, failed, Some("no")),
            json!({ "message": "no", "status": 404 })
        );
        assert_eq!(
            error_of(working, State::Queued, Some("cut")),
            json!({ "message": "cut", "status": null })
        );
        assert_eq!(error_of(Some(failed), State::Queued, Some("reopened by hand")), Value::Null);
        assert_eq!(error_of(None, State::Queued, None), Value::Null);
    }
}
