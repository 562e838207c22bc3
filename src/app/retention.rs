//! Drops finished jobs after their time, a few at a time, and the files of answers that no row names.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::fail_point;
use crate::http::Edge;
use crate::store::EndedBefore;

/// How often old jobs are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// Pause between two full sweeps, so that a large backlog of old jobs does not slow the queue.
const SWEEP_PAUSE: Duration = Duration::from_millis(50);

/// Sweeps until the drain.
pub(super) async fn run(edge: Arc<Edge>) {
    remove_orphans(&edge).await;
    loop {
        let pause = match sweep(&edge).await {
            true => SWEEP_PAUSE,
            false => SWEEP_INTERVAL.min(edge.config.job_ttl).min(edge.config.failed_ttl),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => (),
            () = edge.tasks.draining() => return,
        }
    }
}

/// Drops a few old jobs. Whether there may be more.
async fn sweep(edge: &Edge) -> bool {
    let now_ms = edge.clock.now_ms();
    let before = EndedBefore {
        over_ms: now_ms.saturating_sub(clock::millis(edge.config.job_ttl)),
        failed_ms: now_ms.saturating_sub(clock::millis(edge.config.failed_ttl)),
    };
    match edge.store.sweep(before, now_ms).await {
        Ok(swept) => {
            if swept.jobs > 0 {
                fail_point::reach("sweep.committed");
            }
            let folder = edge.store.answers_folder();
            for name in &swept.files {
                remove(&folder.join(name)).await;
            }
            if swept.jobs > 0 {
                tracing::debug!(jobs.swept = swept.jobs, "finished jobs dropped");
            }
            swept.is_full()
        }
        Err(fault) => {
            tracing::warn!(db.error = %fault, "finished jobs could not be dropped");
            false
        }
    }
}

/// Removes files that a crash left between the file and its row.
async fn remove_orphans(edge: &Edge) {
    let folder = edge.store.answers_folder();
    let Ok(mut entries) = tokio::fs::read_dir(&folder).await else { return };
    let mut orphans = Vec::new();
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name().to_string_lossy().into_owned();
        // What is not named as a job is not foreman's; what an open job writes is no orphan.
        if is_of_no_open_job(edge, &name) {
            orphans.push(name);
        }
    }
    // After the folder: a file that got its row meanwhile is named by now.
    let Ok(named) = edge.store.answer_files().await else { return };
    let named: HashSet<String> = named.into_iter().collect();
    for orphan in orphans.iter().filter(|name| !named.contains(*name)) {
        // A job that died with the last daemon may be running again meanwhile.
        if is_of_no_open_job(edge, orphan) {
            remove(&folder.join(orphan)).await;
        }
    }
}

/// Whether a file is named as one of a job's (its id, a dot, the attempt) of which no answer comes.
fn is_of_no_open_job(edge: &Edge, name: &str) -> bool {
    let id = name.split('.').next().unwrap_or_default();
    id.parse().is_ok_and(|id| edge.worker.outputs().find(id).is_none())
}

async fn remove(path: &Path) {
    match tokio::fs::remove_file(path).await {
        Ok(()) => (),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => (),
        Err(fault) => {
            tracing::warn!(path = %path.display(), error = %fault, "a file could not be removed")
        }
    }
}
