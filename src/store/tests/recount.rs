//! What waits agrees with a full recount after any life.

use proptest::prelude::*;

use super::*;

/// A step of a random life.
#[derive(Debug, Clone)]
enum Step {
    Admit { lane: &'static str, class: Class, client: &'static str },
    Claim { lane: &'static str },
    Finish,
    GiveBack { delay_ms: i64 },
    CancelWaiting { index: usize },
    Sweep,
    Wait { ms: i64 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = prop::sample::select(vec!["a", "b", "c"]);
    let class = prop::sample::select(Class::ALL.to_vec());
    prop_oneof![
        8 => (lane.clone(), class, prop::sample::select(vec!["", "x"]))
            .prop_map(|(lane, class, client)| Step::Admit { lane, class, client }),
        4 => lane.prop_map(|lane| Step::Claim { lane }),
        2 => Just(Step::Finish),
        3 => (0_i64..3).prop_map(|some| Step::GiveBack { delay_ms: some * 1_000 }),
        2 => (0_usize..20).prop_map(|index| Step::CancelWaiting { index }),
        1 => Just(Step::Sweep),
        2 => (0_i64..1_500).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::Reopen),
    ]
}

/// A store with what its user knows of it.
struct Life {
    store: Store,
    path: PathBuf,
    ids: Vec<JobId>,
    claims: Vec<Claim>,
    now_ms: i64,
}

impl Life {
    async fn take(&mut self, step: Step) {
        self.now_ms += 1;
        let now_ms = self.now_ms;
        match step {
            Step::Admit { lane, class, client } => {
                let job = NewJob { client: client.to_owned(), ..of_class(lane, class) };
                self.ids.push(job.id);
                admit(&self.store, job, now_ms).await;
            }
            Step::Claim { lane } => {
                self.claims.extend(try_claim(&self.store, lane, now_ms).await);
            }
            Step::Finish => {
                let Some(taken) = self.claims.pop() else { return };
                let finished = self.store.finish(taken.seq, taken.lease_epoch, done(), now_ms);
                assert!(finished.await.unwrap());
            }
            Step::GiveBack { delay_ms } => {
                let Some(taken) = self.claims.pop() else { return };
                let back = GiveBack {
                    charge: Charge::Attempt,
                    not_before_ms: now_ms + delay_ms,
                    error: String::new(),
                    at_ms: now_ms,
                };
                let given = self.store.give_back(taken.seq, taken.lease_epoch, back);
                assert_eq!(given.await.unwrap(), GaveBack::Queued);
            }
            Step::CancelWaiting { index } => {
                let Some(id) = self.ids.get(index) else { return };
                self.store.cancel_waiting(*id, now_ms).await.unwrap();
            }
            Step::Sweep => drop(self.store.sweep(before(now_ms), now_ms).await.unwrap()),
            Step::Wait { ms } => self.now_ms += ms,
            Step::Reopen => {
                self.store.close().await;
                self.claims.clear();
                // The old one first: it holds the lock.
                let elsewhere = self.path.with_extension("other");
                self.store = Store::open(&elsewhere, now_ms).unwrap().0;
                self.store = Store::open(&self.path, now_ms).unwrap().0;
            }
        }
    }

    /// What waits, by reading every job.
    async fn recount(&self) -> Vec<WaitingLane> {
        type Row = (String, String, i64, i64, i64, i64);
        let now_ms = self.now_ms;
        let rows: Vec<Row> = self
            .store
            .read(|tx| {
                let sql = "SELECT lane, class, seq, not_before_ms, ready_at_ms, created_at_ms FROM job NOT INDEXED
                           WHERE state = 'queued' ORDER BY ready_at_ms, seq";
                let mut statement = tx.prepare(sql)?;
                let rows = statement.query_map([], |row| row.try_into())?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
            .unwrap();
        let mut found: Vec<WaitingLane> = Vec::new();
        for (lane, class, seq, not_before_ms, ready_at_ms, created_at_ms) in rows {
            assert!(ready_at_ms >= created_at_ms && ready_at_ms >= not_before_ms);
            let class = Class::from_name(&class).unwrap();
            let head = (not_before_ms <= now_ms).then_some(WaitingHead { seq, ready_at_ms });
            match found.iter_mut().find(|known| known.lane == lane && known.class == class) {
                Some(known) => {
                    known.jobs += 1;
                    known.head = known.head.or(head);
                }
                None => found.push(WaitingLane { lane, class, jobs: 1, head }),
            }
        }
        found.sort_by_key(|entry| (entry.lane.clone(), entry.class.name()));
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// After any life what is counted and led by is what a full recount finds, before and after delays are ended.
    #[test]
    fn what_waits_agrees_with_a_recount_after_any_life(steps in prop::collection::vec(step(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let store = Store::open(&path, 0).unwrap().0;
        let mut life = Life { store, path, ids: Vec::new(), claims: Vec::new(), now_ms: 0 };
        for step in steps {
            runtime.block_on(life.take(step));
        }
        let recounted = runtime.block_on(life.recount());
        let shown = runtime.block_on(life.store.overview(Vec::new(), 100)).unwrap();
        prop_assert_eq!(&runtime.block_on(life.store.waiting_lanes(life.now_ms)).unwrap(), &recounted);
        let in_view = life.store.lanes_in_view(life.now_ms, ViewOf::default());
        prop_assert_eq!(&runtime.block_on(in_view).unwrap().lanes, &recounted);
        prop_assert_eq!(runtime.block_on(life.recount()), recounted.clone());
        let depth: u64 = recounted.iter().map(|lane| lane.jobs).sum();
        prop_assert_eq!(shown.lanes.iter().map(|lane| lane.depth).sum::<u64>(), depth);
        prop_assert_eq!((shown.depth, shown.lanes_more), (depth, 0));
        for lane in &shown.lanes {
            let oldest = shown.waiting.iter().find(|job| job.seq == lane.oldest_seq).unwrap();
            prop_assert_eq!(&oldest.lane, &lane.lane);
            prop_assert_eq!(lane.oldest_at_ms, oldest.created_at_ms);
        }
        prop_assert_eq!(u64::try_from(shown.waiting.len()).unwrap(), depth);
        let expected = |lane: &WaitingLane| lane.head.map_or(0, |_| 1);
        prop_assert!(recounted.iter().map(expected).sum::<usize>() <= shown.waiting.len());
    }
}
