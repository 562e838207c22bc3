//! What is remembered of each model's time in memory: when its load finished, who waited then, when it last had work.

use std::collections::BTreeMap;

use crate::domain::model::ModelName;

/// A model's time in memory so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisitSoFar {
    /// When its load finished, or it was first seen.
    pub since_ms: i64,
    /// The last arrival number that waited for it then; 0 where foreman did not load it.
    pub gate_seq: i64,
    /// How many jobs waited for it then, the one that its load was made for with them; `None` until that was seen.
    pub gate_jobs: Option<u64>,
    /// How many of its jobs have ended since.
    pub served: u64,
    /// When its last job ended; `since_ms` until one has.
    pub dry_since_ms: i64,
}

impl VisitSoFar {
    /// One that foreman did not see begin.
    pub(super) fn unseen(now_ms: i64) -> VisitSoFar {
        VisitSoFar {
            since_ms: now_ms,
            gate_seq: 0,
            gate_jobs: None,
            served: 0,
            dry_since_ms: now_ms,
        }
    }

    /// How many jobs are to be served until they are as many as waited when it began.
    pub fn gate_left(&self) -> u64 {
        self.gate_jobs.map_or(u64::MAX, |jobs| jobs.saturating_sub(self.served))
    }
}

/// Visits by model. Bounded by what is resident: a visit ends when its model goes.
#[derive(Debug, Clone, Default)]
pub struct Visits(BTreeMap<ModelName, VisitSoFar>);

impl Visits {
    /// A load has finished, with jobs up to `gate_seq` waiting.
    pub fn began(&mut self, model: &ModelName, gate_seq: i64, now_ms: i64) {
        let visit = VisitSoFar { gate_seq, ..VisitSoFar::unseen(now_ms) };
        self.0.insert(model.clone(), visit);
    }

    /// A load only confirmed what was there. The visit goes on: begun anew at each failed attempt, it would never have lasted
    /// long enough for others. One that foreman did not see begin, begins.
    pub fn confirmed(&mut self, model: &ModelName, gate_seq: i64, now_ms: i64) {
        if self.0.get(model).is_none_or(|visit| visit.gate_seq == 0) {
            self.began(model, gate_seq, now_ms);
        }
    }

    /// A job of the model has ended.
    pub fn worked(&mut self, model: &ModelName, now_ms: i64) {
        if let Some(visit) = self.0.get_mut(model) {
            visit.dry_since_ms = now_ms;
            visit.served = visit.served.saturating_add(1);
        }
    }

    /// A model is in memory, and so many jobs wait for it, without the one its load was made for. Its visit begins now if
    /// foreman did not see it begin.
    pub fn seen(&mut self, model: &ModelName, jobs: u64, now_ms: i64) {
        let visit = self.0.entry(model.clone()).or_insert(VisitSoFar::unseen(now_ms));
        visit.gate_jobs.get_or_insert(jobs.saturating_add(1));
    }

    /// The visit of a model, if one was seen.
    pub fn of(&self, model: &ModelName) -> Option<&VisitSoFar> {
        self.0.get(model)
    }

    /// Nothing began or ran dry after now.
    pub fn clock_set_back(&mut self, now_ms: i64) {
        for visit in self.0.values_mut() {
            visit.since_ms = visit.since_ms.min(now_ms);
            visit.dry_since_ms = visit.dry_since_ms.min(now_ms);
        }
    }

    /// Forgets every model but these.
    pub fn retain(&mut self, is_resident: impl Fn(&ModelName) -> bool) {
        self.0.retain(|model, _| is_resident(model));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_does_not_begin_a_visit_anew() {
        let model = ModelName::parse("a").unwrap().name;
        let mut visits = Visits::default();
        visits.seen(&model, 3, 1_000);
        visits.confirmed(&model, 5, 2_000);
        let expected = VisitSoFar { gate_seq: 5, ..VisitSoFar::unseen(2_000) };
        assert_eq!(visits.of(&model), Some(&expected));
        visits.confirmed(&model, 9, 4_000);
        assert_eq!(visits.of(&model), Some(&expected));
    }

    #[test]
    fn a_gate_is_served_by_as_many_jobs_as_waited_at_the_first_look() {
        let model = ModelName::parse("a").unwrap().name;
        let mut visits = Visits::default();
        visits.began(&model, 5, 1_000);
        let left = |visits: &Visits| visits.of(&model).unwrap().gate_left();
        assert_eq!(left(&visits), u64::MAX);
        for jobs in [2, 7] {
            visits.seen(&model, jobs, 1_000);
            assert_eq!(left(&visits), 3, "two that wait, and the one of the load");
        }
        for still in [2, 1, 0, 0] {
            visits.worked(&model, 2_000);
            assert_eq!(left(&visits), still);
        }
    }
}
