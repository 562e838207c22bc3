//! The comparison: what the tables hold, and what the store answers, against the model.

use super::super::model::Known;
use super::*;
use crate::domain::job::State;

type Row = (i64, String, String, String, [bool; 3], [i64; 3], [Option<i64>; 1], i64);

impl Life {
    pub(super) async fn check(&mut self) {
        self.model.settle();
        self.check_rows().await;
        self.check_logs().await;
        self.check_waiting().await;
        self.check_turns().await;
        self.check_events().await;
    }

    /// Each job, the tally, and what is remembered of those that are no more.
    async fn check_rows(&self) {
        let (rows, tally, purged) = self
            .store
            .read(|tx| {
                let sql = "SELECT seq, id, state, class, is_async, is_lost, is_cancelling, attempts, interruptions,
                                  deferrals, deadline_ms, lease_epoch, not_before_ms, run_at_ms FROM job ORDER BY seq";
                let mut statement = tx.prepare(sql)?;
                let rows: Vec<(Row, [i64; 2])> = statement
                    .query_map([], |row| {
                        let marks = [row.get(4)?, row.get(5)?, row.get(6)?];
                        let counters = [row.get(7)?, row.get(8)?, row.get(9)?];
                        let texts = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
                        let whole = (texts.0, texts.1, texts.2, texts.3, marks, counters, [row.get(10)?], row.get(11)?);
                        Ok((whole, [row.get(12)?, row.get(13)?]))
                    })?
                    .collect::<Result<_, _>>()?;
                let mut statement = tx.prepare("SELECT state, jobs, bytes FROM tally WHERE jobs <> 0 OR bytes <> 0 ORDER BY state")?;
                let tally: Vec<(String, i64, i64)> =
                    statement.query_map([], |row| row.try_into())?.collect::<Result<_, _>>()?;
                let mut statement = tx.prepare("SELECT id FROM purged ORDER BY id")?;
                let purged: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
                Ok((rows, tally, purged))
            })
            .await
            .unwrap();
        let expected: Vec<(Row, [i64; 2])> = self.model.jobs.iter().map(row_of).collect();
        assert_eq!(rows, expected);
        let mut states: Vec<State> = State::ALL.to_vec();
        states.sort_by_key(|state| state.name());
        let counted = states.into_iter().map(|state| {
            let jobs = self.model.jobs.iter().filter(|job| job.state == state).count();
            let jobs = i64::try_from(jobs).unwrap();
            (state.name().to_owned(), jobs, jobs * 2)
        });
        assert_eq!(tally, counted.filter(|(_, jobs, _)| *jobs > 0).collect::<Vec<_>>());
        assert_eq!(purged, self.model.purged.iter().map(ToString::to_string).collect::<Vec<_>>());
        if let Some(id) = self.ids.first() {
            let sought = self.store.job(*id).await.unwrap();
            let is_there = self.model.jobs.iter().any(|job| job.new.id == *id);
            assert_eq!(
                (matches!(sought, Sought::There(_)), sought == Sought::Purged),
                (is_there, !is_there)
            );
        }
        assert_eq!(self.store.job(JobId(Ulid::generate())).await.unwrap(), Sought::Unknown);
    }

    /// The log of each job, whole and in order; its attempts; and its webhooks: one for each entry, one of them due.
    async fn check_logs(&self) {
        type Entry = (i64, Option<String>, String, i64);
        type Debt = (i64, i64, String, bool);
        let (log, debts) = self
            .store
            .read(|tx| {
                let mut statement = tx.prepare("SELECT seq, from_state, to_state, lease_epoch FROM transition ORDER BY seq, event")?;
                let log: Vec<Entry> = statement.query_map([], |row| row.try_into())?.collect::<Result<_, _>>()?;
                let mut statement = tx.prepare("SELECT seq, sequence, state, next_at_ms IS NOT NULL FROM delivery ORDER BY seq, event")?;
                let debts: Vec<Debt> = statement.query_map([], |row| row.try_into())?.collect::<Result<_, _>>()?;
                Ok((log, debts))
            })
            .await
            .unwrap();
        let named = |state: State| state.name().to_owned();
        let (mut expected, mut owed) = (Vec::new(), Vec::new());
        for job in &self.model.jobs {
            expected.extend(
                job.log
                    .iter()
                    .map(|(from, to, epoch)| (job.seq, from.map(named), named(*to), *epoch)),
            );
            let owing = job.log.iter().enumerate().filter(|_| job.new.extras.webhook.is_some());
            owed.extend(owing.map(|(place, _)| {
                let is_delivered = place < job.delivered;
                let state = if is_delivered { "delivered" } else { "pending" };
                (
                    job.seq,
                    i64::try_from(place + 1).unwrap(),
                    state.to_owned(),
                    place == job.delivered,
                )
            }));
        }
        assert_eq!(log, expected);
        assert_eq!(debts, owed);
        for job in self.model.jobs.iter().rev().take(1) {
            let Sought::There((_, attempts)) = self.store.job(job.new.id).await.unwrap() else {
                panic!("it is there")
            };
            let numbers: Vec<i64> = attempts.iter().map(|attempt| attempt.number).collect();
            assert_eq!(numbers, (1..=job.epoch).collect::<Vec<_>>());
            let running = attempts.iter().filter(|attempt| attempt.ended_in.is_none()).count();
            assert_eq!(running, usize::from(matches!(job.state, State::Loading | State::Working)));
        }
    }

    /// What waits, by lane and class, and when more will.
    async fn check_waiting(&mut self) {
        let now_ms = self.now_ms;
        let lanes = self.store.waiting_lanes(now_ms).await.unwrap();
        self.model.end_delays(now_ms);
        let mut expected = Vec::new();
        let mut classes = Class::ALL;
        classes.sort_by_key(|class| class.name());
        for (lane, class) in
            ["a", "b"].into_iter().flat_map(|lane| classes.map(|class| (lane, class)))
        {
            let of_lane = |job: &&Known| {
                job.state == State::Queued
                    && !job.is_scheduled()
                    && (job.new.lane.as_str(), job.class) == (lane, class)
            };
            let jobs = u64::try_from(self.model.jobs.iter().filter(of_lane).count()).unwrap();
            if jobs > 0 {
                let head = self.model.head(lane, class).map(|job| job.seq);
                expected.push((lane.to_owned(), class, jobs, head));
            }
        }
        assert!(lanes.iter().filter_map(|lane| lane.head).all(|head| head.ready_at_ms <= now_ms));
        let found: Vec<_> = lanes
            .into_iter()
            .map(|lane| (lane.lane, lane.class, lane.jobs, lane.head.map(|head| head.seq)))
            .collect();
        assert_eq!(found, expected);
        let queued = || self.model.jobs.iter().filter(|job| job.state == State::Queued);
        let next = queued().map(|job| job.not_before_ms).filter(|at_ms| *at_ms != 0).min();
        assert_eq!(self.store.next_ready_at_ms().await.unwrap(), next);
        let next = queued().filter_map(|job| job.deadline_ms).min();
        assert_eq!(self.store.next_deadline_ms().await.unwrap(), next);
    }

    /// The order in which what is ready would be served, and the place of each job in it.
    async fn check_turns(&self) {
        let clients = self.store.read(|tx| {
            let sql = "SELECT COUNT(*), COALESCE(SUM(jobs), 0) FROM turn";
            Ok(tx.query_row(sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?)
        });
        let (clients, jobs) = clients.await.unwrap();
        let (mut expected, mut ready) = (BTreeSet::new(), 0);
        for lane in ["a", "b"] {
            let mut ahead = 0;
            for class in Class::ALL {
                let order = self.model.order(lane, class);
                let first = self.store.read(move |tx| turns::first_jobs(tx, lane, class, 100));
                assert_eq!(first.await.unwrap(), order, "{lane} {class:?}");
                for seq in order {
                    assert_eq!(self.store.ahead_in_lane(seq, 100).await.unwrap(), Some(ahead));
                    let job = self.model.jobs.iter().find(|job| job.seq == seq).unwrap();
                    expected.insert((lane, class, job.new.client.clone()));
                    (ahead, ready) = (ahead + 1, ready + 1);
                }
            }
        }
        assert_eq!((usize::try_from(clients).unwrap(), jobs), (expected.len(), ready));
    }

    /// What a subscriber sees is each change of state, once, in order, and the log behind it says the same.
    async fn check_events(&mut self) {
        for expected in std::mem::take(&mut self.model.live) {
            let event =
                tokio::time::timeout(std::time::Duration::from_secs(30), self.events.recv());
            let event = event.await.expect("an event is missing").unwrap();
            assert_eq!((event.id, event.from, event.to), expected);
        }
        assert!(self.events.is_empty(), "an event too many");
        let page = self.store.events_after(0, None).await.unwrap();
        assert!(page.events.is_sorted_by_key(|event| event.event));
        let logged: usize = self.model.jobs.iter().map(|job| job.log.len()).sum();
        assert_eq!(page.events.len(), logged);
        assert_eq!(page.dropped_up_to > 0, !self.model.purged.is_empty());
    }
}

fn row_of(job: &Known) -> (Row, [i64; 2]) {
    let marks = [job.is_async, job.is_lost, job.is_cancelling];
    let row = (
        job.seq,
        job.new.id.to_string(),
        job.state.name().to_owned(),
        job.class.name().to_owned(),
        marks,
        job.counters.map(i64::from),
        [job.deadline_ms],
        job.epoch,
    );
    (row, [job.not_before_ms, job.run_at_ms])
}
