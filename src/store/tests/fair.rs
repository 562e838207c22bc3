//! Clients take turns: whoever has many does not bury whoever has few, whatever becomes of the jobs.

use super::model::{Known, Model};
use super::*;
use crate::domain::turns::Turns;

/// Part of the model: its ready jobs, in the order of `domain::turns`.
impl Model {
    /// Takes in what has become ready since, and what is no more.
    pub(super) fn settle(&mut self) {
        let of = |job: &Known| (job.new.lane.clone(), job.class);
        let is_where = |seq: &i64, place: &(String, Class)| {
            self.jobs.iter().any(|job| job.seq == *seq && job.is_ready() && of(job) == *place)
        };
        let gone: Vec<(i64, (String, Class))> = self
            .entered
            .iter()
            .filter(|(seq, place)| !is_where(seq, place))
            .map(|(seq, place)| (*seq, place.clone()))
            .collect();
        for (seq, place) in gone {
            self.entered.remove(&seq);
            let turns = self.turns.get_mut(&place).unwrap();
            for client in ["", "x", "y"] {
                turns.leave(&client.to_owned(), seq);
            }
        }
        for job in self.jobs.iter().filter(|job| job.is_ready()) {
            if self.entered.insert(job.seq, of(job)).is_none() {
                self.turns.entry(of(job)).or_default().enter(job.new.client.clone(), job.seq);
            }
        }
    }

    /// The ready jobs of a lane and class in the order in which they would be served.
    pub(super) fn order(&self, lane: &str, class: Class) -> Vec<i64> {
        let turns = self.turns.get(&(lane.to_owned(), class));
        let mut turns: Turns<String> = turns.cloned().unwrap_or_default();
        std::iter::from_fn(|| turns.take()).collect()
    }
}

fn of_client(client: &str) -> NewJob {
    NewJob { client: client.to_owned(), ..of_class("a", Class::Normal) }
}

async fn admit_many(store: &Store, client: &str, jobs: usize) -> Vec<i64> {
    let mut seqs = Vec::new();
    for _ in 0..jobs {
        seqs.push(admit(store, of_client(client), 1).await);
    }
    seqs
}

async fn claim_all(store: &Store, now_ms: i64) -> Vec<i64> {
    let mut seqs = Vec::new();
    while let Some(claim) = try_claim(store, "a", now_ms).await {
        seqs.push(claim.seq);
    }
    seqs
}

#[tokio::test]
async fn one_job_of_a_client_waits_for_one_of_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let many = admit_many(&store, "many", 50).await;
    for seq in &many[..10] {
        assert_eq!(claim(&store, "a", 2).await.seq, *seq);
    }
    let few = admit_many(&store, "few", 2).await;
    let ahead = async |seq| store.ahead_in_lane(seq, 100).await.unwrap();
    assert_eq!((ahead(few[0]).await, ahead(few[1]).await), (Some(1), Some(3)));
    assert_eq!((ahead(many[10]).await, ahead(many[49]).await), (Some(0), Some(41)));
    let shown = store.overview(Vec::new(), 4).await.unwrap();
    let listed: Vec<i64> = shown.waiting.iter().map(|job| job.seq).collect();
    assert_eq!(listed, [many[10], few[0], many[11], few[1]]);
    assert_eq!(claim_all(&store, 2).await[..4], listed);
}

/// Turns are in the file, and a job that an opening puts back is the first of its client.
#[tokio::test]
async fn turns_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let (store, _) = Store::open(&path, 0).unwrap();
    let asked = |client: &str| {
        let extras = Extras { is_async: true, ..Extras::default() };
        NewJob { extras, ..of_client(client) }
    };
    let mut seqs = Vec::new();
    for client in ["x", "x", "x", "x", "y", "y"] {
        seqs.push(admit(&store, asked(client), 1).await);
    }
    for seq in [seqs[0], seqs[4], seqs[1]] {
        assert_eq!(claim(&store, "a", 2).await.seq, seq);
    }
    store.close().await;
    drop(store);
    let (store, recovered) = Store::open(&path, 3).unwrap();
    assert_eq!(recovered.requeued, 3);
    let expected = [4, 0, 5, 1, 2, 3].map(|index| seqs[index]);
    assert_eq!(claim_all(&store, 4).await, expected);
}

/// Scheduled jobs take no turn before their time: neither does their client wait for it, nor do they go before others.
#[tokio::test]
async fn a_scheduled_job_takes_its_turn_when_its_time_has_come() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let later = Extras { is_async: true, run_at_ms: 1_000, ..Extras::default() };
    let mut scheduled = Vec::new();
    for _ in 0..20 {
        let job = NewJob { extras: later.clone(), ..of_client("x") };
        scheduled.push(admit(&store, job, 1).await);
    }
    let other = admit_many(&store, "y", 3).await;
    let now = admit_many(&store, "x", 1).await;
    assert_eq!(claim(&store, "a", 2).await.seq, other[0]);
    assert_eq!(claim(&store, "a", 2).await.seq, now[0]);
    let order = claim_all(&store, 1_000).await;
    assert_eq!(order[..4], [scheduled[0], other[1], scheduled[1], other[2]]);
}

/// A retry is the first of its client, and costs it one more turn: a client whose jobs fail gets no more than others.
#[tokio::test]
async fn a_job_given_back_is_the_next_of_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let (ours, others) = (admit_many(&store, "x", 3).await, admit_many(&store, "y", 3).await);
    let taken = claim(&store, "a", 2).await;
    assert_eq!(taken.seq, ours[0]);
    let given = store.give_back(taken.seq, taken.lease_epoch, back(Charge::Attempt, 0)).await;
    assert_eq!(given.unwrap(), GaveBack::Queued);
    let expected = [others[0], ours[0], others[1], ours[1], others[2], ours[2]];
    assert_eq!(claim_all(&store, 4).await, expected);
}

/// The rest of a client that cancels most of what it had is not last.
#[tokio::test]
async fn cancelled_jobs_take_no_turn() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&folder.path().join("a.db"), 0).unwrap();
    let jobs: Vec<NewJob> = (0..20).map(|_| of_client("x")).collect();
    let mut ours = Vec::new();
    for job in &jobs {
        ours.push(admit(&store, job.clone(), 1).await);
    }
    for job in &jobs[..19] {
        let cancelled = store.cancel_waiting(job.id, 2).await.unwrap();
        assert_eq!(cancelled, Cancellation::Cancelled);
    }
    let others = admit_many(&store, "y", 3).await;
    assert_eq!(claim_all(&store, 3).await, [vec![ours[19]], others].concat());
}

/// What waits in a database of the third version takes turns by client, the oldest first.
#[tokio::test]
async fn a_database_of_the_third_version_is_taken_over_with_turns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    {
        let connection = Connection::open(&path).unwrap();
        schema::prepare(&connection).unwrap();
        for sql in &schema::MIGRATIONS[..3] {
            connection.execute_batch(sql).unwrap();
        }
        connection.pragma_update(None, "user_version", 3).unwrap();
        for (number, client) in (1_u128..).zip(["x", "x", "x", "y", "y"]) {
            let not_before_ms = if number == 2 { 700 } else { 0 };
            let sql = "INSERT INTO job(id, dialect, kind, lane, model, class, client, path, is_streamed, state, request_bytes,
                           created_at_ms, queued_at_ms, ready_at_ms, not_before_ms, is_async)
                       VALUES (?1, 'chat', 'run', 'a', 'a', 'normal', ?2, '/', 1, 'queued', 2, 100, 100, MAX(100, ?3), ?3, 1)";
            let id = Ulid::from(number).to_string();
            connection.execute(sql, rusqlite::params![id, client, not_before_ms]).unwrap();
            let sql = "INSERT INTO request(seq, path_and_query, headers, body) VALUES (?1, '/', '[]', X'7B7D')";
            connection.execute(sql, [connection.last_insert_rowid()]).unwrap();
        }
    }
    let (store, _) = Store::open(&path, 500).unwrap();
    assert_eq!(store.waiting_lanes(500).await.unwrap()[0].jobs, 5);
    for seq in [1, 4, 3] {
        assert_eq!(claim(&store, "a", 500).await.seq, seq);
    }
    assert_eq!(claim_all(&store, 700).await, [5, 2]);
}
