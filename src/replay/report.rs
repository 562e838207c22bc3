//! What became of a replayed day.

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

    /// The part of the time spent loading, 0 to 1.
    pub fn loading_share(&self) -> f64 {
        if self.makespan_s > 0.0 { self.loading_s / self.makespan_s } else { 0.0 }
    }
}

/// Averages a figure over several replays.
pub fn mean(reports: &[Report], figure: impl Fn(&Report) -> f64) -> f64 {
    let count = f64::from(u32::try_from(reports.len().max(1)).unwrap_or(u32::MAX));
    reports.iter().map(figure).sum::<f64>() / count
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}
