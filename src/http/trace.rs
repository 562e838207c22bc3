//! The trace of the jobs that ran last, for `foreman trace`: what arrived when, for which load key, and how long it took.
//! No prompt, no answer, no address and no token is in it; clients are numbered (docs/scheduling.md has the format).

use std::collections::BTreeMap;

use crate::domain::schedule::Lane;
use crate::replay::{Arrival, Job, Loop, Trace};
use crate::store::{FinishedJob, StoreError};

use super::Edge;

/// Jobs of a trace unless more or fewer are asked for.
const JOBS_DEFAULT: usize = 1_000;

/// Jobs of the longest trace: some 10 MiB of text.
const JOBS_MAX: usize = 100_000;

/// A client with fewer jobs than this may have waited for its answers by chance.
const LOOP_JOBS_MIN: usize = 3;

const MS_PER_S: f64 = 1_000.0;

/// How many jobs the query asks for.
///
/// # Errors
/// What is allowed.
pub(super) fn last(query: Option<&str>) -> Result<usize, String> {
    let parts = query.unwrap_or_default().split('&');
    let mut given = parts.filter_map(|part| part.strip_prefix("last="));
    let Some(text) = given.next() else { return Ok(JOBS_DEFAULT) };
    let number = text.parse().ok().filter(|number| (1..=JOBS_MAX).contains(number));
    number.ok_or_else(|| format!("last: a whole number from 1 to {JOBS_MAX}"))
}

/// The text of the trace of the `last` jobs to end.
pub(super) async fn trace(edge: &Edge, last: usize) -> Result<String, StoreError> {
    let jobs = edge.store.finished_jobs(last).await?;
    let slots = edge.residency.held().iter().filter(|held| !held.is_embedder).count().max(1);
    // A long one takes a while, which must not be that of others on this thread.
    let text = tokio::task::spawn_blocking(move || trace_of(jobs, slots).to_text());
    text.await.map_err(|fault| StoreError::Strange(format!("a trace died: {fault}")))
}

/// The trace of these jobs, which stand in order of arrival.
fn trace_of(mut jobs: Vec<FinishedJob>, slots: usize) -> Trace {
    // Others have no key that a load would be needed for.
    jobs.retain(|job| Lane::from_text(&job.lane).is_some_and(|lane| lane.key().is_some()));
    let begin_ms = jobs.iter().map(|job| job.created_at_ms).min().unwrap_or(0);
    let mut trace = Trace { loads_s: loads_s(&jobs), slots: Some(slots), ..Trace::default() };
    let mut by_client: BTreeMap<&str, Vec<&FinishedJob>> = BTreeMap::new();
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for job in jobs.iter().filter(|job| !job.client.is_empty()) {
        let next = names.len() + 1;
        names.entry(&job.client).or_insert_with(|| format!("client-{next}"));
        by_client.entry(&job.client).or_default().push(job);
    }
    by_client.retain(|_, jobs| is_loop(jobs));
    for (client, jobs) in &by_client {
        let client = names.get(client).cloned().unwrap_or_default();
        trace.loops.push(closed(client, jobs, begin_ms));
    }
    let is_open = |job: &&FinishedJob| !by_client.contains_key(job.client.as_str());
    for job in jobs.iter().filter(is_open) {
        let client = names.get(job.client.as_str()).cloned();
        let at_s = seconds(begin_ms, job.created_at_ms);
        trace.arrivals.push(Arrival { at_s, client, job: asked(job) });
    }
    trace.arrivals.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    trace.loops.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
    trace
}

/// Whether each job arrived once the one before had ended, so that an earlier answer would have meant an earlier request.
fn is_loop(jobs: &[&FinishedJob]) -> bool {
    jobs.len() >= LOOP_JOBS_MIN
        && jobs.windows(2).all(|pair| pair[0].finished_at_ms <= pair[1].created_at_ms)
}

fn closed(client: String, jobs: &[&FinishedJob], begin_ms: i64) -> Loop {
    let start_s = jobs.first().map_or(0.0, |job| seconds(begin_ms, job.created_at_ms));
    let steps = jobs.iter().enumerate().map(|(index, job)| {
        let next = jobs.get(index + 1);
        let think_s = next.map_or(0.0, |next| seconds(job.finished_at_ms, next.created_at_ms));
        (asked(job), think_s)
    });
    Loop { client, start_s, steps: steps.collect() }
}

fn asked(job: &FinishedJob) -> Job {
    let service_s = seconds(job.working_at_ms, job.finished_at_ms);
    Job { key: job.lane.clone(), service_s, class: job.class }
}

/// By key the median of what its loads took, the upper of two.
fn loads_s(jobs: &[FinishedJob]) -> Vec<(String, f64)> {
    let mut by_key: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for job in jobs {
        if let Some(load_ms) = job.load_ms {
            by_key.entry(&job.lane).or_default().push(load_ms);
        }
    }
    let median = |(key, mut loads_ms): (&str, Vec<i64>)| {
        loads_ms.sort_unstable();
        let median_ms = loads_ms.get(loads_ms.len() / 2)?;
        Some((key.to_owned(), seconds(0, *median_ms)))
    };
    by_key.into_iter().filter_map(median).collect()
}

/// A span in seconds; 0 for one that a clock set back made negative.
fn seconds(from_ms: i64, to_ms: i64) -> f64 {
    to_ms.saturating_sub(from_ms).max(0) as f64 / MS_PER_S
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::Class;

    /// A job that arrives, begins to be worked on half a second later, and ends.
    fn job(seq: i64, lane: &str, client: &str, from_ms: i64, to_ms: i64) -> FinishedJob {
        FinishedJob {
            seq,
            lane: lane.to_owned(),
            class: Class::Interactive,
            client: client.to_owned(),
            path: "/api/chat".to_owned(),
            created_at_ms: from_ms,
            ready_at_ms: from_ms,
            claimed_at_ms: from_ms,
            working_at_ms: from_ms + 500,
            finished_at_ms: to_ms,
            load_ms: None,
        }
    }

    #[test]
    fn who_waits_for_each_answer_is_a_loop_and_who_does_not_is_not() {
        let jobs = vec![
            job(1, "a:latest", "patient", 10_000, 11_000),
            job(2, "b:latest", "hasty", 10_500, 12_000),
            job(3, "a:latest num_ctx=8192", "patient", 13_000, 14_000),
            job(4, "b:latest", "hasty", 11_000, 14_500),
            job(5, "b:latest", "hasty", 15_000, 16_000),
            job(6, "a:latest", "patient", 14_000, 17_000),
            job(7, "!opaque", "patient", 14_000, 90_000),
            job(8, "!unload", "other", 14_000, 90_000),
            job(9, "c:latest", "rare", 15_000, 16_000),
            job(10, "c:latest", "", 15_000, 16_000),
            job(11, "c:latest", "rare", 18_000, 19_000),
        ];
        let trace = trace_of(jobs, 2);
        let [client] = &trace.loops[..] else { panic!("{trace:?}") };
        assert_eq!((client.client.as_str(), client.start_s), ("client-1", 0.0));
        let steps: Vec<_> =
            client.steps.iter().map(|(job, think_s)| (job.service_s, *think_s)).collect();
        assert_eq!(steps, [(0.5, 2.0), (0.5, 0.0), (2.5, 0.0)]);
        assert_eq!(client.steps[1].0.key, "a:latest num_ctx=8192");
        let open: Vec<_> = trace.arrivals.iter().map(|open| open.client.as_deref()).collect();
        let (hasty, rare) = (Some("client-2"), Some("client-3"));
        assert_eq!(open, [hasty, hasty, hasty, rare, None, rare]);
        assert_eq!(trace.arrivals[1].at_s, 1.0);
        assert_eq!(Trace::parse(&trace.to_text()).unwrap(), trace);
    }

    #[test]
    fn loads_are_medians_and_a_clock_set_back_makes_no_negative_span() {
        let mut jobs: Vec<_> =
            (1..=4).map(|n| job(n, "a:latest", "x", n * 1_000, n * 1_000 + 900)).collect();
        for (job, load_ms) in jobs.iter_mut().zip([9_000, 1_000, 2_500]) {
            job.load_ms = Some(load_ms);
        }
        jobs[3].finished_at_ms = 0;
        let trace = trace_of(jobs, 1);
        assert_eq!(trace.loads_s, [("a:latest".to_owned(), 2.5)]);
        assert_eq!(trace.loops[0].steps[3].0.service_s, 0.0);
        assert!(trace_of(Vec::new(), 1).arrivals.is_empty());
    }

    #[test]
    fn the_query_asks_for_a_number_within_the_limits() {
        for (query, wanted) in [(None, 1_000), (Some(""), 1_000), (Some("a=b&last=7"), 7)] {
            assert_eq!(last(query), Ok(wanted));
        }
        for query in ["last=", "last=0", "last=100001", "last=-1", "last=x"] {
            assert!(last(Some(query)).unwrap_err().contains("100000"), "{query}");
        }
    }
}
