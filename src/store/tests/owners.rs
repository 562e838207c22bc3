//! Jobs belong to keys: who finds what, how many an owner may have waiting, and that the counts of it hold in any life.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn of_owner(owner: &str) -> NewJob {
    let extras = Extras { owner: owner.to_owned(), ..Extras::default() };
    NewJob { client: owner.to_owned(), extras, ..job("a") }
}

fn capped(queued_max: u64) -> Caps {
    let cap = Cap { queued_max: Some(queued_max), in_flight_max: None };
    Caps::from([("alice".to_owned(), cap)])
}

async fn open() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    (folder, store)
}

async fn full(store: &Store, job: NewJob) -> Option<(u64, QueueLimit)> {
    match store.admit(job, LIMITS, 1).await.unwrap() {
        Admission::Full { jobs, limit } => Some((jobs, limit)),
        Admission::Admitted { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_owner_has_no_more_jobs_waiting_than_it_may_and_others_are_not_held_up() {
    let (_folder, store) = open().await;
    store.keep_caps(capped(2));
    let scheduled = Extras { owner: "alice".to_owned(), run_at_ms: 1_000, ..Extras::default() };
    assert_eq!(full(&store, NewJob { extras: scheduled, ..job("a") }).await, None);
    assert_eq!(full(&store, of_owner("alice")).await, None);
    let refused = Some((2, QueueLimit::Owner));
    assert_eq!(full(&store, of_owner("alice")).await, refused);
    for other in ["bob", "", "alic"] {
        assert_eq!(full(&store, of_owner(other)).await, None, "{other}");
    }
    let many = store.admit_all(vec![of_owner("alice"), of_owner("bob")], LIMITS, 1).await.unwrap();
    assert!(matches!(many[0], Admission::Full { limit: QueueLimit::Owner, .. }), "{many:?}");
    assert!(matches!(many[1], Admission::Admitted { .. }), "{many:?}");
    // One that runs does not wait.
    let claimed = claim(&store, "a", 2).await;
    assert_eq!(full(&store, of_owner("alice")).await, None);
    // Neither given back nor by a smaller cap is a job lost; but there is no room for another.
    store.give_back(claimed.seq, claimed.lease_epoch, back(Charge::Attempt, 0)).await.unwrap();
    store.keep_caps(capped(1));
    assert_eq!(full(&store, of_owner("alice")).await, Some((3, QueueLimit::Owner)));
    store.keep_caps(Caps::new());
    assert_eq!(full(&store, of_owner("alice")).await, None);
}

#[tokio::test]
async fn a_job_that_is_reopened_counts_as_one_that_is_handed_in() {
    let (_folder, store) = open().await;
    let asks_again = |owner: &str| {
        let extras = Extras { owner: owner.to_owned(), is_async: true, ..Extras::default() };
        NewJob { extras, ..job("a") }
    };
    let jobs = [asks_again("alice"), asks_again("alice"), asks_again("bob")];
    for job in &jobs {
        admit(&store, job.clone(), 1).await;
        store.cancel(job.id, "by hand", 2).await.unwrap();
    }
    store.keep_caps(capped(1));
    let again = async |job: &NewJob| store.reopen(job.id, LIMITS, 3).await.unwrap();
    assert_eq!(again(&jobs[0]).await, Reopening::Reopened(None));
    assert_eq!(again(&jobs[1]).await, Reopening::OwnerFull(1));
    let which = Which { states: vec![crate::domain::job::State::Cancelled], ..Which::default() };
    let many = store.reopen_many(which, LIMITS, 4).await.unwrap();
    assert_eq!((many.count, many.has_more), (1, true), "bob's; alice's is left");
}

#[tokio::test]
async fn an_owner_finds_its_own_and_nobodys_is_found_by_none() {
    let (_folder, store) = open().await;
    let (alice, bob, nobody) = (of_owner("alice"), of_owner("bob"), of_owner(""));
    let found = async |id, owner: &str| store.belongs(id, owner.to_owned()).await.unwrap();
    for job in [&alice, &bob, &nobody] {
        admit(&store, job.clone(), 1).await;
    }
    for is_purged in [false, true] {
        for owner in ["alice", "bob", ""] {
            for job in [&alice, &bob, &nobody] {
                let is_own = !owner.is_empty() && job.extras.owner == owner;
                assert_eq!(found(job.id, owner).await, is_own, "{owner:?} {is_purged}");
            }
        }
        let filter = Filter { owner: Some("bob".to_owned()), ..Filter::default() };
        let listed = store.list(filter, None, 10).await.unwrap();
        let ids: Vec<_> = listed.jobs.iter().map(|job| job.id).collect();
        assert_eq!(ids, if is_purged { vec![] } else { vec![bob.id] });
        let shown = store.overview_of("bob".to_owned(), 10).await.unwrap();
        assert_eq!(shown.waiting.len(), usize::from(!is_purged));
        assert!(store.overview_of(String::new(), 10).await.unwrap().waiting.is_empty());
        for job in [&alice, &bob, &nobody].into_iter().filter(|_| !is_purged) {
            store.cancel(job.id, "by hand", 2).await.unwrap();
            assert!(matches!(store.drop_job(job.id).await.unwrap(), Dropping::Dropped(None)));
        }
    }
}

#[tokio::test]
async fn what_is_done_to_many_is_done_to_those_of_its_owner() {
    let (_folder, store) = open().await;
    for owner in ["alice", "bob", "alice", ""] {
        let job = of_owner(owner);
        admit(&store, job.clone(), 1).await;
        store.cancel(job.id, "by hand", 2).await.unwrap();
    }
    let states = vec![crate::domain::job::State::Cancelled];
    let of = |owner: Option<&str>| Which {
        states: states.clone(),
        owner: owner.map(str::to_owned),
        ..Which::default()
    };
    assert_eq!(store.drop_many(of(Some("alice"))).await.unwrap().count, 2);
    assert_eq!(store.drop_many(of(Some(""))).await.unwrap().count, 0);
    assert_eq!(store.drop_many(of(None)).await.unwrap().count, 2);
}

/// Even with equal hashes, which the callers make different.
#[tokio::test]
async fn neither_a_return_nor_an_equal_request_leads_to_a_job_of_another() {
    let (folder, store) = open().await;
    let marked = |owner: &str| {
        let likeness = Some(Likeness { hash: [1; 32], takes_done: true });
        let owner = owner.to_owned();
        let extras = Extras { owner, attach_key: Some([2; 32]), likeness, ..Extras::default() };
        NewJob { extras, ..job("a") }
    };
    let first = marked("alice");
    admit(&store, first.clone(), 1).await;
    admit(&store, marked("bob"), 1).await;
    let again = store.admit(marked("alice"), LIMITS, 1).await.unwrap();
    assert_eq!(again, Admission::Found { id: first.id, by: FoundBy::Inflight });
    store.close().await;
    drop(store);
    let (store, _) = Store::open(&folder.path().join("a.db"), 2).unwrap();
    let other = store.admit(marked("carol"), LIMITS, 3).await.unwrap();
    assert!(matches!(other, Admission::Admitted { .. }), "{other:?}");
    let back = store.admit(marked("alice"), LIMITS, 3).await.unwrap();
    assert_eq!(back, Admission::Found { id: first.id, by: FoundBy::Return });
}

#[tokio::test]
async fn jobs_from_before_there_were_keys_are_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (id, gone) = (JobId(Ulid::from(1_u128)), JobId(Ulid::from(2_u128)));
    {
        let connection = Connection::open(&path).unwrap();
        schema::prepare(&connection).unwrap();
        for sql in &schema::MIGRATIONS[..3] {
            connection.execute_batch(sql).unwrap();
        }
        connection.pragma_update(None, "user_version", 3).unwrap();
        let sql = "INSERT INTO job(id, dialect, kind, lane, model, class, is_streamed, state, request_bytes, created_at_ms)
                   VALUES (?1, 'chat', 'run', 'a', 'a', 'batch', 1, 'queued', 2, 100)";
        connection.execute(sql, [id.to_string()]).unwrap();
        connection.execute("INSERT INTO purged(id) VALUES (?1)", [gone.to_string()]).unwrap();
    }
    let (store, _) = Store::open(&path, 500).unwrap();
    let Sought::There((job, _)) = store.job(id).await.unwrap() else { panic!("it is lost") };
    assert_eq!(job.owner, "");
    for id in [id, gone] {
        assert!(!store.belongs(id, String::new()).await.unwrap());
        assert!(!store.belongs(id, "alice".to_owned()).await.unwrap());
    }
    assert_eq!(store.job(gone).await.unwrap(), Sought::Purged);
}

#[tokio::test]
async fn the_jobs_of_an_owner_are_read_by_index_alone() {
    let (_folder, store) = open().await;
    let waiting = overview::open_jobs_sql(overview::WAITING_OF_OWNER, "seq");
    let listed = format!(
        "{} WHERE TRUE AND owner = ?1 AND owner <> '' ORDER BY job.seq DESC LIMIT ?2",
        view::SELECT
    );
    for (sql, index) in [(waiting, "job_waiting_of_owner"), (listed, "job_of_owner")] {
        let plan = plans::plan(&store, &sql).await;
        let step = format!("SEARCH job USING INDEX {index} (owner=?)");
        assert!(plan[0] == step && !plan.concat().contains("TEMP B-TREE"), "{sql}: {plan:#?}");
    }
}

fn in_flight(owners: &[(&str, u64)]) -> Caps {
    let cap = |max| Cap { queued_max: None, in_flight_max: Some(max) };
    owners.iter().map(|(owner, max)| ((*owner).to_owned(), cap(*max))).collect()
}

/// The job by which the lane is judged, and how many may run.
async fn head(store: &Store) -> Option<(i64, u64)> {
    let lane = &store.waiting_lanes(9).await.unwrap()[0];
    lane.head.map(|head| (head.seq, lane.jobs))
}

#[tokio::test]
async fn jobs_of_an_owner_at_its_cap_are_passed_over_until_one_of_them_ends() {
    let (_folder, store) = open().await;
    for (owner, at_ms) in
        [("alice", 1), ("alice", 2), ("alice", 3), ("bob", 4), ("", 5), ("bob", 6)]
    {
        admit(&store, of_owner(owner), at_ms).await;
    }
    store.keep_caps(in_flight(&[("alice", 1), ("bob", 1)]));
    let first = claim(&store, "a", 9).await;
    assert_eq!((first.seq, head(&store).await), (1, Some((4, 3))), "alice's two are not seen");
    assert_eq!(claim(&store, "a", 9).await.seq, 4);
    assert_eq!(head(&store).await, Some((5, 1)), "nobody's has no cap");
    // Several at once stop at the cap, too.
    let rest = store.claim_some("a".to_owned(), Class::Interactive, 9, 9).await.unwrap();
    assert_eq!(rest.iter().map(|claim| claim.seq).collect::<Vec<_>>(), [5]);
    assert_eq!(head(&store).await, None, "nothing may run");
    assert!(store.waiting_lanes(9).await.unwrap()[0].ready().is_none());
    assert!(try_claim(&store, "a", 9).await.is_none());
    assert!(store.finish(first.seq, first.lease_epoch, done(), 9).await.unwrap());
    assert_eq!(head(&store).await, Some((2, 2)));
    store.keep_caps(in_flight(&[("bob", 2)]));
    let rest = store.claim_some("a".to_owned(), Class::Interactive, 9, 9).await.unwrap();
    let mut seqs: Vec<i64> = rest.iter().map(|claim| claim.seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, [2, 3, 6]);
}

#[tokio::test]
async fn jobs_that_are_passed_over_are_not_read_one_by_one() {
    let (_folder, store) = open().await;
    let by_client = "SEARCH job USING COVERING INDEX job_ready (lane=? AND class=? AND client=?)";
    let by_turn = "SEARCH turn USING COVERING INDEX turn_next (lane=? AND class=?)";
    let by_row = "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)";
    for (sql, steps) in [
        (turns::NEXT_BESIDE, &[by_client, by_turn][..]),
        (lanes::HEAD_BESIDE, &[by_turn, by_row, by_client]),
        (lanes::PASSED_OVER, &["SEARCH turn USING PRIMARY KEY (lane=? AND class=? AND client=?)"]),
        (crate::store::owners::IN_FLIGHT, &["SEARCH job USING INDEX job_live (state=?)"]),
    ] {
        let plan = plans::plan(&store, sql).await;
        let touching = plan.iter().filter(|step| step.contains(" job ") || step.contains(" turn "));
        assert_eq!(touching.collect::<Vec<_>>(), steps, "{sql}: {plan:#?}");
    }
}

/// Picking stays cheap though a capped owner has a great many jobs in front, in order of arrival and by turn.
#[tokio::test]
async fn an_owner_at_its_cap_hides_nobody_however_much_it_has_waiting() {
    let (_folder, store) = open().await;
    let limits = QueueLimits { jobs_max: u64::MAX, ..LIMITS };
    let many: Vec<NewJob> = (0..2_000).map(|_| of_owner("alice")).collect();
    store.admit_all(many, limits, 1).await.unwrap();
    store.keep_caps(in_flight(&[("alice", 1)]));
    claim(&store, "a", 2).await;
    assert_eq!(head(&store).await, None);
    for owner in ["bob", "carol"] {
        store.admit(of_owner(owner), limits, 3).await.unwrap();
    }
    assert_eq!(head(&store).await, Some((2_001, 2)));
    assert_eq!(claim(&store, "a", 4).await.seq, 2_001);
    assert_eq!(claim(&store, "a", 4).await.seq, 2_002);
    assert!(try_claim(&store, "a", 4).await.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn how_many_of_each_wait_agrees_with_a_recount(steps in prop::collection::vec((0_u8..6, 0_usize..3), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let counts = runtime.block_on(async {
            let (_folder, store) = open().await;
            let (mut ids, mut claims) = (Vec::new(), Vec::new());
            for (step, which) in steps {
                let owner = ["alice", "bob", ""][which];
                match step {
                    0 | 1 => {
                        let job = of_owner(owner);
                        ids.push(job.id);
                        admit(&store, job, 1).await;
                    }
                    2 => claims.extend(try_claim(&store, "a", 2).await),
                    3 => if let Some(taken) = claims.pop() {
                        let Claim { seq, lease_epoch, .. } = taken;
                        if which == 0 {
                            store.give_back(seq, lease_epoch, back(Charge::Attempt, 0)).await.unwrap();
                        } else {
                            store.finish(seq, lease_epoch, done(), 3).await.unwrap();
                        }
                    },
                    4 => if let Some(id) = ids.get(which) {
                        store.cancel_waiting(*id, 3).await.unwrap();
                    },
                    _ => if let Some(id) = ids.get(which) {
                        store.drop_job(*id).await.unwrap();
                    },
                }
            }
            let count = |sql: &'static str| store.read(move |tx| {
                let mut statement = tx.prepare(sql)?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<BTreeMap<String, i64>, _>>()?)
            });
            let kept = count("SELECT owner, jobs FROM owned").await.unwrap();
            let counted = count("SELECT owner, COUNT(*) FROM job WHERE state = 'queued' AND owner <> '' GROUP BY owner");
            (kept, counted.await.unwrap())
        });
        prop_assert_eq!(counts.0, counts.1);
    }
}
