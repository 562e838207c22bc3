//! What became of a replayed day.

use serde_json::{Map, Value, json};

/// The figures of one replay. Times are seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Jobs served.
    pub jobs: u64,
    /// Keys made resident.
    pub loads: u64,
    /// The fewest loads with which every job could have been running within its longest wait.
    pub bound: u64,
    /// Loads for which a key with work left had to make room.
    pub rotations: u64,
    /// Loads of a longer queue before the one due first.
    pub overtakings: u64,
    /// From the beginning to the end of the last job.
    pub makespan_s: f64,
    /// Arrival to end, averaged.
    pub mean_latency_s: f64,
    /// Arrival to the beginning of its service: the 95th percentile.
    pub p95_wait_s: f64,
    /// The longest of those.
    pub longest_wait_s: f64,
    /// Jobs that waited longer than their class should.
    pub late: u64,
    /// Time spent loading.
    pub loading_s: f64,
    /// Holds in which a job came.
    pub hold_hits: u64,
    /// Holds in which none did.
    pub hold_misses: u64,
}

impl Report {
    /// Loads per hundred jobs.
    pub fn loads_per_100(&self) -> f64 {
        100.0 * ratio(self.loads, self.jobs)
    }

    /// The lower bound on the loads per hundred jobs.
    pub fn bound_per_100(&self) -> f64 {
        100.0 * ratio(self.bound, self.jobs)
    }

    /// Loads for each that the bound asks for; 1 is the best possible. 0 for a day without jobs.
    pub fn loads_per_bound(&self) -> f64 {
        ratio(self.loads, self.bound)
    }

    /// The part of the time spent loading, 0 to 1.
    pub fn loading_share(&self) -> f64 {
        if self.makespan_s > 0.0 { self.loading_s / self.makespan_s } else { 0.0 }
    }
}

/// A figure of a report.
pub(super) type Figure = fn(&Report) -> f64;

/// All figures by their stable names, in the order of tables. Times are seconds, shares 0 to 1.
pub(super) const FIGURES: [(&str, Figure); 16] = [
    ("jobs", |report| real(report.jobs)),
    ("loads", |report| real(report.loads)),
    ("loads_per_100", Report::loads_per_100),
    ("bound", |report| real(report.bound)),
    ("bound_per_100", Report::bound_per_100),
    ("ratio", Report::loads_per_bound),
    ("makespan_s", |report| report.makespan_s),
    ("mean_latency_s", |report| report.mean_latency_s),
    ("p95_wait_s", |report| report.p95_wait_s),
    ("longest_wait_s", |report| report.longest_wait_s),
    ("late", |report| real(report.late)),
    ("loading_share", Report::loading_share),
    ("hold_hits", |report| real(report.hold_hits)),
    ("hold_misses", |report| real(report.hold_misses)),
    ("rotations", |report| real(report.rotations)),
    ("overtakings", |report| real(report.overtakings)),
];

/// The figures of some replays, averaged, as the members of a JSON object. Of one replay the counts are whole numbers.
pub fn as_json(reports: &[Report]) -> Map<String, Value> {
    let member = |(name, figure): (&str, Figure)| {
        let value = match mean(reports, figure) {
            // Far below 2^53: a trace has at most some millions of lines.
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and in range")]
            whole if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
            real => json!((real * 1_000.0).round() / 1_000.0),
        };
        (name.to_owned(), value)
    };
    FIGURES.into_iter().map(member).collect()
}

/// Averages a figure over several replays.
pub fn mean(reports: &[Report], figure: impl Fn(&Report) -> f64) -> f64 {
    let count = f64::from(u32::try_from(reports.len().max(1)).unwrap_or(u32::MAX));
    reports.iter().map(figure).sum::<f64>() / count
}

fn ratio(part: u64, whole: u64) -> f64 {
    real(part) / real(whole.max(1))
}

/// A count as a real number. Counts are far below 2^53, so nothing is lost.
fn real(count: u64) -> f64 {
    count as f64
}
