//! The promises of the store, on a real database in a temporary folder: a module for each side of it. Here is what they
//! share.

mod deliveries;
mod fair;
mod jobs;
mod kept;
mod learning;
mod machine;
mod many_lanes;
mod model;
mod opening;
mod owners;
mod plans;
mod recount;
mod set_aside;
mod waiting;

use bytes::Bytes;
use ulid::Ulid;

use super::*;
use crate::domain::dialect::Dialect;
use crate::domain::job::{Class, Event, JobId, Kind};
use crate::domain::retry::Charge;

const LIMITS: QueueLimits =
    QueueLimits { jobs_max: 100, bytes_max: 1_000_000, class_max: [None; 3] };

fn job(lane: &str) -> NewJob {
    NewJob {
        id: JobId(Ulid::generate()),
        dialect: Dialect::Chat,
        kind: Kind::Run,
        lane: lane.to_owned(),
        model: lane.to_owned(),
        class: Class::Interactive,
        client: String::new(),
        is_streamed: true,
        path_and_query: "/api/chat".to_owned(),
        headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
        body: Bytes::from_static(b"{}"),
        extras: Extras::default(),
    }
}

fn back(charge: Charge, not_before_ms: i64) -> GiveBack {
    GiveBack { charge, not_before_ms, error: "cut".to_owned(), at_ms: 3 }
}

fn done() -> Ending {
    let answer = Answer {
        status: 200,
        headers: Vec::new(),
        body: AnswerBody::Inline(Bytes::from_static(b"whole")),
    };
    Ending {
        event: Event::Complete,
        answer: Some(answer),
        error: None,
        error_status: None,
        measured: Measured::default(),
    }
}

/// Jobs that ended before this are old, however they ended.
fn before(at_ms: i64) -> EndedBefore {
    EndedBefore { over_ms: at_ms, failed_ms: at_ms }
}

/// Claims the next job of a lane as the worker does: the most urgent class first.
async fn try_claim(store: &Store, lane: &str, now_ms: i64) -> Option<Claim> {
    for class in Class::ALL {
        let claimed = store.claim(lane.to_owned(), class, Event::ClaimToWork, now_ms).await;
        if let Some(claim) = claimed.unwrap() {
            return Some(claim);
        }
    }
    None
}

async fn claim(store: &Store, lane: &str, now_ms: i64) -> Claim {
    try_claim(store, lane, now_ms).await.unwrap()
}

fn of_class(lane: &str, class: Class) -> NewJob {
    NewJob { class, ..job(lane) }
}

async fn admit(store: &Store, job: NewJob, at_ms: i64) -> i64 {
    match store.admit(job, LIMITS, at_ms).await.unwrap() {
        Admission::Admitted { seq } => seq,
        full => panic!("{full:?}"),
    }
}
