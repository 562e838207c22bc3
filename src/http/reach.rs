//! Reaches the answer of a job wherever it is: in flight or to come, kept in the database or in a file, or not at all.

use std::sync::Arc;

use crate::domain::job::JobId;
use crate::store::{AnswerBody, Attempt, JobView, Sought, StoreError};
use crate::worker::output::{Head, Kept, Output, Timings};

use super::Edge;

/// The answer of a job.
pub(super) enum Reached {
    /// The job is open: its answer comes, or will.
    Open(Arc<Output>, Box<JobView>),
    /// It has ended with an answer, which may be an error of Ollama's.
    Kept(Arc<Output>, Box<JobView>),
    /// It has ended without one.
    Ended(Box<JobView>),
}

/// Finds the answer of a job.
pub(super) async fn reach(edge: &Edge, id: JobId) -> Result<Sought<Reached>, StoreError> {
    let job = match find(edge, id).await? {
        Sought::There((job, _)) => job,
        Sought::Purged => return Ok(Sought::Purged),
        Sought::Unknown => return Ok(Sought::Unknown),
    };
    if job.state.is_final() {
        return Ok(Sought::There(ended(edge, job).await?));
    }
    // Opened before it is looked at again: a job that ends after this look ends with this output.
    let output = edge.worker.outputs().open(id);
    match find(edge, id).await? {
        Sought::There((job, _)) if !job.state.is_final() => {
            Ok(Sought::There(Reached::Open(output, Box::new(job))))
        }
        again => {
            edge.worker.outputs().forget_this(id, &output);
            match again {
                Sought::There((job, _)) => Ok(Sought::There(ended(edge, job).await?)),
                Sought::Purged => Ok(Sought::Purged),
                Sought::Unknown => Ok(Sought::Unknown),
            }
        }
    }
}

async fn find(edge: &Edge, id: JobId) -> Result<Sought<(JobView, Vec<Attempt>)>, StoreError> {
    edge.store.job(id).await
}

/// The kept answer of an ended job, as an output that is whole.
async fn ended(edge: &Edge, job: JobView) -> Result<Reached, StoreError> {
    let Some(answer) = edge.store.answer(job.id).await? else {
        return Ok(Reached::Ended(Box::new(job)));
    };
    let kept = match answer.body {
        AnswerBody::Inline(bytes) => Kept::Memory(bytes),
        AnswerBody::File { name, bytes } => {
            let path = edge.store.answers_folder().join(name);
            let file = tokio::fs::File::open(&path)
                .await
                .map_err(|fault| StoreError::file(&path, &fault))?;
            Kept::File(file.into_std().await, bytes)
        }
    };
    let claimed_at_ms = job.claimed_at_ms.unwrap_or(job.queued_at_ms);
    let timings = Timings {
        attempt: job.attempt,
        queue_ms: (claimed_at_ms - job.created_at_ms).max(0),
        load_ms: job.load_ms.unwrap_or(0),
    };
    let head = Head { status: answer.status, headers: answer.headers };
    Ok(Reached::Kept(Arc::new(Output::kept(head, timings, kept)), Box::new(job)))
}
