//! What is shown of the order of service: the lanes in it, and where a waiting job stands and when it might begin. For
//! display, never for deciding. Called by `http`.

use crate::domain::learning::{Held, Waiting};
use crate::domain::schedule::{Board, Lane, Policy, Queue, served_first, service_order};
use crate::ollama::inventory::Inventory;
use crate::store::{DueBefore, Extent, LanesInView, ViewOf, WaitingLane};

use super::blocked::BlockedLane;
use super::handle::WorkerHandle;
use super::mind::Installed;

/// A guess at the future of a waiting job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// Its place in the order of service, from 1.
    pub position: u64,
    /// In how many milliseconds it might begin, by what loads and jobs took so far.
    pub start_in_ms: i64,
    /// Why its key is not loaded now.
    pub blocked: Option<BlockedLane>,
}

/// What a forecast is made of.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// Now.
    pub now_ms: i64,
    /// What waits.
    pub view: &'a LanesInView,
    /// What is in memory.
    pub held: &'a [Held],
    /// What is installed.
    pub inventory: &'a Inventory,
    /// The rules.
    pub policy: &'a Policy,
}

/// A waiting job.
#[derive(Debug, Clone, Copy)]
pub struct OfJob<'a> {
    /// Its lane, as text.
    pub lane: &'a str,
    /// How many jobs of its lane are served before it.
    pub ahead: u64,
    /// What is due before its lane, where the view is no whole.
    pub due_before: Option<DueBefore>,
}

impl WorkerHandle {
    /// What has to be known to look at what waits.
    pub fn view_of(&self, held: Vec<Held>, inventory: &Inventory, now_ms: i64) -> ViewOf {
        ViewOf { held, barred: self.mind().barred(&Installed(inventory), now_ms) }
    }

    /// The lanes in the order in which they would be served if nothing else arrived; of a view that is no whole, those alone
    /// for which nothing has to be pushed out.
    pub fn service_order(&self, scene: &Scene<'_>) -> Vec<String> {
        let board = self.board_of(scene);
        let mut order = service_order(&board);
        match scene.view.extent {
            Extent::Whole => (),
            Extent::Part => order.truncate(served_first(&board)),
        }
        order.iter().map(ToString::to_string).collect()
    }

    /// Where a waiting job stands in the order of service, and when it might begin; `None` where its lane is not to be
    /// served by what is known.
    pub fn forecast(&self, scene: &Scene<'_>, job: &OfJob<'_>) -> Option<Forecast> {
        let mut forecast = self.by_order(scene, job)?;
        forecast.blocked = Lane::from_text(job.lane).and_then(|lane| self.blocked(&lane, scene));
        let until_ms = forecast.blocked.as_ref().and_then(|blocked| blocked.until_ms);
        let blocked_ms = until_ms.map_or(0, |until_ms| until_ms.saturating_sub(scene.now_ms));
        forecast.start_in_ms = forecast.start_in_ms.max(blocked_ms);
        Some(forecast)
    }

    /// The same by what is before it alone.
    fn by_order(&self, scene: &Scene<'_>, job: &OfJob<'_>) -> Option<Forecast> {
        let board = self.board_of(scene);
        let order = service_order(&board);
        let (first, rest) = order.split_at(served_first(&board));
        let mut forecast = Forecast { position: 1, start_in_ms: 0, blocked: None };
        for lane in first {
            if self.pass(lane, scene, job, &mut forecast) {
                return Some(forecast);
            }
        }
        match (scene.view.extent, job.due_before) {
            (Extent::Whole, _) => {
                let is_its_own = |lane| self.pass(lane, scene, job, &mut forecast);
                rest.iter().any(is_its_own).then_some(forecast)
            }
            (Extent::Part, None) => None,
            (Extent::Part, Some(before)) => {
                let before = without(before, &board, first);
                let (load_ms, service_ms) = means(&board, rest);
                let work = before.jobs.saturating_add(job.ahead);
                forecast.position = forecast.position.saturating_add(work);
                let lanes = before.lanes.saturating_add(1);
                let spent_ms = times(load_ms, lanes)
                    .saturating_add(times(service_ms, work) / parallel(scene.policy));
                forecast.start_in_ms = forecast.start_in_ms.saturating_add(spent_ms);
                Some(forecast)
            }
        }
    }

    /// Goes past the jobs of a lane, to the job itself in its own; whether it is that.
    fn pass(
        &self,
        lane: &Lane,
        scene: &Scene<'_>,
        job: &OfJob<'_>,
        forecast: &mut Forecast,
    ) -> bool {
        let text = lane.to_string();
        let is_its_own = text == job.lane;
        let of_lane = scene.view.lanes.iter().filter(|waiting| waiting.lane == text);
        let jobs = if is_its_own { job.ahead } else { of_lane.map(|waiting| waiting.jobs).sum() };
        let is_held =
            lane.key().is_some_and(|key| scene.held.iter().any(|held| held.model == key.model));
        let (load_ms, service_ms) = self.mind().expected_ms(&text);
        let work_ms = times(service_ms, jobs) / parallel(scene.policy);
        let load_ms = if is_held || lane.key().is_none() { 0 } else { load_ms };
        forecast.position = forecast.position.saturating_add(jobs);
        forecast.start_in_ms = forecast.start_in_ms.saturating_add(work_ms).saturating_add(load_ms);
        is_its_own
    }

    fn board_of(&self, scene: &Scene<'_>) -> Board {
        let ready: Vec<Waiting> = scene.view.lanes.iter().filter_map(WaitingLane::ready).collect();
        let models = Installed(scene.inventory);
        self.mind().board(scene.now_ms, &ready, scene.held, &models, scene.policy)
    }
}

/// What is due before, without the lanes that are served before all that.
fn without(before: DueBefore, board: &Board, first: &[Lane]) -> DueBefore {
    let is_counted = |queue: &&Queue| {
        let due = queue.earliest().map(|head| (head.due_at_ms, head.seq));
        first.contains(&queue.lane) && due.is_some_and(|due| due < before.due)
    };
    let mut rest = before;
    for queue in board.queues.iter().filter(is_counted) {
        rest.lanes = rest.lanes.saturating_sub(1);
        rest.jobs = rest.jobs.saturating_sub(queue.jobs());
    }
    rest
}

/// What a load and a job take in the mean of these lanes, which stand for those out of view.
fn means(board: &Board, lanes: &[Lane]) -> (i64, i64) {
    let queues = || board.queues.iter().filter(|queue| lanes.contains(&queue.lane));
    let count = i64::try_from(queues().count().max(1)).unwrap_or(i64::MAX);
    let sum = |of: fn(&Queue) -> i64| queues().map(of).fold(0, i64::saturating_add);
    (sum(|queue| queue.load_ms) / count, sum(|queue| queue.service_ms) / count)
}

fn times(each_ms: i64, count: u64) -> i64 {
    each_ms.saturating_mul(i64::try_from(count).unwrap_or(i64::MAX))
}

fn parallel(policy: &Policy) -> i64 {
    i64::try_from(policy.parallel.max(1)).unwrap_or(1)
}
