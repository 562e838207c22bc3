//! Random lives of a store beside its model: after each step every row, count, log and debt is what the model says.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::Config;
use tokio::sync::broadcast::Receiver;

use super::model::Model;
use super::*;

/// Few, so that it fills up.
const FEW: QueueLimits = QueueLimits { jobs_max: 12, ..LIMITS };

/// Lives, unless the environment says otherwise.
const CASES: u32 = 24;

#[derive(Debug, Clone)]
enum Step {
    Admit(Asked),
    Claim { lane: &'static str, event: Event },
    Loaded { claim: usize },
    GiveBack { claim: usize, charge: Charge, delay_ms: i64 },
    Finish { claim: usize, event: Event },
    Cancel { job: usize },
    Leave { job: usize },
    Reopen { job: usize },
    Drop { job: usize },
    Deliver { job: usize },
    Sweep,
    Expire,
    Restart,
    Clock { by_ms: i64 },
}

#[derive(Debug, Clone)]
struct Asked {
    lane: &'static str,
    class: Class,
    client: &'static str,
    is_async: bool,
    run_in_ms: Option<i64>,
    deadline_in_ms: Option<i64>,
    key: Option<(u8, u8)>,
    attach_key: Option<u8>,
    likeness: Option<(u8, bool)>,
    has_webhook: bool,
}

fn asked() -> impl Strategy<Value = Asked> {
    let some = prop::option::weighted::<std::ops::Range<i64>>;
    let names = (
        prop::option::weighted(0.3, (0_u8..3, 0_u8..2)),
        prop::option::weighted(0.5, 0_u8..3),
        prop::option::weighted(0.4, (0_u8..3, any::<bool>())),
    );
    let times = (some(0.3, 0..400), some(0.3, 0..600));
    (
        prop::sample::select(vec!["a", "b"]),
        (prop::sample::select(Class::ALL.to_vec()), prop::sample::select(vec!["", "x", "y"])),
        any::<[bool; 2]>(),
        times,
        names,
    )
        .prop_map(
            |(
                lane,
                (class, client),
                [is_async, has_webhook],
                (run_in_ms, deadline_in_ms),
                (key, attach_key, likeness),
            )| Asked {
                lane,
                class,
                client,
                is_async,
                run_in_ms,
                deadline_in_ms,
                key,
                attach_key: attach_key.filter(|_| !is_async),
                likeness,
                has_webhook,
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    let charges = vec![Charge::Attempt, Charge::Interruption, Charge::Deferral, Charge::Nothing];
    let ends = vec![Event::Complete, Event::Fail, Event::Cancel];
    let claims = vec![Event::ClaimToLoad, Event::ClaimToWork];
    // An old claim now and then: its lease is over.
    let claim = || prop_oneof![4 => Just(0_usize), 1 => 0_usize..6];
    let job = || 0_usize..12;
    prop_oneof![
        12 => asked().prop_map(Step::Admit),
        8 => (prop::sample::select(vec!["a", "b"]), prop::sample::select(claims)).prop_map(|(lane, event)| Step::Claim { lane, event }),
        3 => claim().prop_map(|claim| Step::Loaded { claim }),
        4 => (claim(), prop::sample::select(charges), 0_i64..500).prop_map(|(claim, charge, delay_ms)| Step::GiveBack { claim, charge, delay_ms }),
        6 => (claim(), prop::sample::select(ends)).prop_map(|(claim, event)| Step::Finish { claim, event }),
        3 => job().prop_map(|job| Step::Cancel { job }),
        2 => job().prop_map(|job| Step::Leave { job }),
        3 => job().prop_map(|job| Step::Reopen { job }),
        2 => job().prop_map(|job| Step::Drop { job }),
        3 => job().prop_map(|job| Step::Deliver { job }),
        2 => Just(Step::Sweep),
        3 => Just(Step::Expire),
        2 => Just(Step::Restart),
        6 => prop_oneof![4 => 1_i64..400, 1 => -600_i64..0, 1 => Just(200_000), 1 => Just(-200_000)].prop_map(|by_ms| Step::Clock { by_ms }),
    ]
}

fn hash(of: u8) -> Hash {
    [of; 32]
}

/// The store, its model, and what their user holds.
struct Life {
    store: Store,
    path: PathBuf,
    model: Model,
    events: Receiver<Arc<Transition>>,
    /// Newest first.
    claims: Vec<(i64, i64)>,
    /// Of all jobs that ever were, newest first.
    ids: Vec<JobId>,
    now_ms: i64,
}

impl Life {
    fn new(path: PathBuf) -> Life {
        let (store, _) = Store::open(&path, 1_000_000).unwrap();
        let events = store.subscribe();
        Life {
            store,
            path,
            model: Model::default(),
            events,
            claims: Vec::new(),
            ids: Vec::new(),
            now_ms: 1_000_000,
        }
    }

    fn job_of(&self, asked: &Asked) -> NewJob {
        let at = |in_ms: i64| self.now_ms + in_ms;
        let idempotency = asked.key.map(|(key, print)| Idempotency {
            scope: String::new(),
            key: key.to_string(),
            fingerprint: hash(print),
        });
        let url = || "http://receiver:1/x".to_owned();
        let extras = Extras {
            is_async: asked.is_async,
            run_at_ms: asked.run_in_ms.map_or(0, at),
            deadline_ms: asked.deadline_in_ms.map(at),
            webhook: asked.has_webhook.then(|| Webhook { url: url(), receiver: url() }),
            metadata: None,
            idempotency,
            attach_key: asked.attach_key.map(hash),
            likeness: asked
                .likeness
                .map(|(of, takes_done)| Likeness { hash: hash(of), takes_done }),
        };
        NewJob { extras, client: asked.client.to_owned(), ..of_class(asked.lane, asked.class) }
    }

    async fn take(&mut self, step: &Step) {
        self.now_ms += 1;
        let now_ms = self.now_ms;
        match step {
            Step::Admit(asked) => {
                let job = self.job_of(asked);
                let expected = self.model.admit(&job, FEW, now_ms);
                if matches!(expected, Admission::Admitted { .. }) {
                    self.ids.insert(0, job.id);
                }
                assert_eq!(self.store.admit(job, FEW, now_ms).await.unwrap(), expected);
            }
            Step::Claim { lane, event } => {
                for class in Class::ALL {
                    let claim =
                        self.store.claim((*lane).to_owned(), class, *event, now_ms).await.unwrap();
                    let claimed = claim.map(|claim| (claim.seq, claim.lease_epoch));
                    assert_eq!(claimed, self.model.claim(lane, class, *event, now_ms));
                    if let Some(claimed) = claimed {
                        self.claims.insert(0, claimed);
                        break;
                    }
                }
            }
            Step::Loaded { .. } | Step::GiveBack { .. } | Step::Finish { .. } => {
                self.work(step).await
            }
            Step::Cancel { .. }
            | Step::Leave { .. }
            | Step::Reopen { .. }
            | Step::Drop { .. }
            | Step::Deliver { .. } => {
                self.by_hand(step).await;
            }
            Step::Sweep => {
                let before = EndedBefore { over_ms: now_ms - 100, failed_ms: now_ms - 300 };
                let swept = self.store.sweep(before, now_ms).await.unwrap();
                assert_eq!(swept.jobs, self.model.sweep(before));
            }
            Step::Expire => {
                let expired: BTreeSet<JobId> =
                    self.store.expire(now_ms).await.unwrap().into_iter().collect();
                assert_eq!(expired, self.model.expire(now_ms));
            }
            Step::Restart => self.restart().await,
            Step::Clock { by_ms } => self.now_ms += by_ms,
        }
    }

    async fn work(&mut self, step: &Step) {
        let now_ms = self.now_ms;
        let held = |claim: &usize| self.claims.get(*claim).copied();
        match step {
            Step::Loaded { claim } => {
                let Some((seq, epoch)) = held(claim) else { return };
                let loaded = self.store.loaded(seq, epoch, 1, now_ms).await.unwrap();
                assert_eq!(loaded, self.model.loaded(seq, epoch, now_ms));
            }
            Step::GiveBack { claim, charge, delay_ms } => {
                let Some((seq, epoch)) = held(claim) else { return };
                let back = GiveBack {
                    charge: *charge,
                    not_before_ms: now_ms + delay_ms,
                    error: "cut".to_owned(),
                    at_ms: now_ms,
                };
                let expected = self.model.give_back(seq, epoch, &back);
                assert_eq!(self.store.give_back(seq, epoch, back).await.unwrap(), expected);
            }
            Step::Finish { claim, event } => {
                let Some((seq, epoch)) = held(claim) else { return };
                let answer = done().answer.filter(|_| *event == Event::Complete);
                let ending = Ending { event: *event, answer, ..done() };
                let finished = self.store.finish(seq, epoch, ending, now_ms).await.unwrap();
                assert_eq!(finished, self.model.finish(seq, epoch, *event, now_ms));
            }
            _ => (),
        }
    }

    async fn by_hand(&mut self, step: &Step) {
        let now_ms = self.now_ms;
        let (Step::Cancel { job }
        | Step::Leave { job }
        | Step::Reopen { job }
        | Step::Drop { job }
        | Step::Deliver { job }) = step
        else {
            return;
        };
        let Some(id) = self.ids.get(*job).copied() else { return };
        let (store, model) = (&self.store, &mut self.model);
        match step {
            Step::Cancel { .. } => {
                assert_eq!(
                    store.cancel(id, "by hand", now_ms).await.unwrap(),
                    model.cancel(id, true, now_ms)
                );
            }
            Step::Leave { .. } => {
                assert_eq!(
                    store.cancel_waiting(id, now_ms).await.unwrap(),
                    model.cancel(id, false, now_ms)
                );
            }
            Step::Reopen { .. } => {
                assert_eq!(
                    store.reopen(id, FEW, now_ms).await.unwrap(),
                    model.reopen(id, FEW, now_ms)
                );
            }
            Step::Drop { .. } => assert_eq!(store.drop_job(id).await.unwrap(), model.drop_job(id)),
            _ => {
                let Some(job) = model.find(id).filter(|job| job.owes() > 0) else { return };
                job.delivered = job.log.len();
                let sql =
                    "UPDATE delivery SET state = 'delivered', next_at_ms = NULL WHERE seq = ?1";
                let seq = job.seq;
                store
                    .write(Durability::Process, move |tx| Ok(tx.execute(sql, [seq])?))
                    .await
                    .unwrap();
            }
        }
    }

    async fn restart(&mut self) {
        self.check().await;
        self.store.close().await;
        // The old one first: it holds the lock.
        self.store = Store::open(&self.path.with_extension("other"), self.now_ms).unwrap().0;
        let (store, recovered) = Store::open(&self.path, self.now_ms).unwrap();
        assert_eq!(recovered, self.model.recover(self.now_ms));
        self.events = store.subscribe();
        self.store = store;
    }
}

/// Runs one life.
async fn live(steps: &[Step]) {
    let folder = tempfile::tempdir().unwrap();
    let mut life = Life::new(folder.path().join("a.db"));
    for step in steps {
        life.take(step).await;
        life.check().await;
    }
    life.store.close().await;
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a setting of the tests, not of foreman")]
fn any_life_is_what_the_model_says() {
    let cases = std::env::var("FOREMAN_TEST_LIVES").ok().and_then(|text| text.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { failure_persistence: None, ..Config::with_cases(cases.unwrap_or(CASES)) };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..100))| {
        runtime.block_on(live(&steps));
    });
}

#[path = "check.rs"]
mod check;
