//! Power loss: whatever of the write-ahead log reached the disk, the store opens on it sound, with everything that was
//! acknowledged before the tear, and with no half of a transaction.
//!
//! A workload is written through the real `Store`, noting for each acknowledgement how long the log was. Then the log is
//! torn at a random place in one of four ways, and the store opened on the image.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use foreman::clock::Clock;
use foreman::domain::dialect::Dialect;
use foreman::domain::job::{Class, Event, JobId, Kind};
use foreman::domain::retry::Charge;
use foreman::store::{
    Admission, Answer, AnswerBody, Cancellation, Ending, Extras, GaveBack, GiveBack, Measured,
    NewJob, QueueLimits, Store,
};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use ulid::Ulid;

use crate::harness::random::Random;

use super::{report, setting};

/// Images where `FOREMAN_TEST_IMAGES` says nothing.
const IMAGES_DEFAULT: u64 = 2_000;

/// Jobs of the workload: some 150 writes, fewer than the writer folds the log in after.
const JOBS: u64 = 48;

/// Random bytes after a tear; what was written behind them stays, as it may on a disk.
const NOISE_BYTES: usize = 64 * 1024;

/// Threads that open images.
const THREADS: u64 = 2;

/// What is checked of an image beside `integrity_check`, as statements that count what must not be.
const MUST_NOT_BE: [(&str, &str); 6] = [
    (
        "open jobs without a request",
        "SELECT COUNT(*) FROM job LEFT JOIN request USING (seq)
         WHERE state IN ('queued','loading','working') AND request.seq IS NULL",
    ),
    (
        "done jobs without an answer",
        "SELECT COUNT(*) FROM job LEFT JOIN answer USING (seq) WHERE state = 'done' AND answer.seq IS NULL",
    ),
    (
        "jobs whose last transition is not their state",
        "SELECT COUNT(*) FROM job WHERE state IS NOT
         (SELECT to_state FROM transition WHERE transition.seq = job.seq ORDER BY event DESC LIMIT 1)",
    ),
    (
        "jobs without an admission",
        "SELECT COUNT(*) FROM job WHERE 1 <>
         (SELECT COUNT(*) FROM transition WHERE transition.seq = job.seq AND from_state IS NULL)",
    ),
    (
        "states counted wrong",
        "SELECT COUNT(*) FROM tally WHERE jobs <> (SELECT COUNT(*) FROM job WHERE job.state = tally.state)",
    ),
    ("rows without their job", "SELECT COUNT(*) FROM pragma_foreign_key_check"),
];

/// Something that was acknowledged when the log had this length.
struct Promise {
    id: JobId,
    /// The outcome; none is an admission.
    ended: Option<&'static str>,
    log_bytes: usize,
}

/// What the workload left: the database before it, the log with it, and what was promised.
struct Original {
    database: Vec<u8>,
    log: Vec<u8>,
    promises: Vec<Promise>,
}

#[test]
fn a_torn_log_loses_nothing_acknowledged_and_no_half_transaction_is_kept() {
    let clock_seed = u64::try_from(Clock::system().now_ms()).unwrap();
    let seed = setting("FOREMAN_TEST_SEED").unwrap_or(clock_seed);
    let images = setting("FOREMAN_TEST_IMAGES").unwrap_or(IMAGES_DEFAULT);
    println!("FOREMAN_TEST_SEED={seed} FOREMAN_TEST_IMAGES={images}");
    let runtime = Runtime::new().unwrap();
    let original = runtime.block_on(workload(&mut Random::new(seed, 0)));
    let bad: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (original, runtime) = (&original, &runtime);
                scope.spawn(move || {
                    let folder = folder();
                    let numbers = (0..images).filter(|number| number % THREADS == thread);
                    numbers
                        .filter_map(|number| {
                            let mut random = Random::new(seed, number + 1);
                            let image = Image::torn(original, &mut random);
                            let bad = image.judge(original, folder.path(), runtime).err()?;
                            Some(format!("image {number}, {}: {bad}", image.how))
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let (promises, log_bytes) = (original.promises.len(), original.log.len());
    report(&format!(
        "torn images {images}, bad {}, seed {seed} (log {log_bytes} bytes, {promises} acknowledgements)",
        bad.len()
    ));
    assert!(bad.is_empty(), "{:#?}", &bad[..bad.len().min(8)]);
}

/// In memory where the system has such a place: flushes are not what is tested.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn side(db: &Path, suffix: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Jobs in all their lives, one write after the other and several at once.
async fn workload(random: &mut Random) -> Original {
    let folder = folder();
    let db = folder.path().join("a.db");
    // Closed once, so that the schema is in the database and the log begins with the workload.
    let (store, _) = Store::open(&db, 0).unwrap();
    store.close().await;
    drop(store);
    let database = std::fs::read(&db).unwrap();
    let (store, _) = Store::open(&db, 1).unwrap();
    let mut promises = Vec::new();
    let log = side(&db, "-wal");
    let mut keep = |id: JobId, ended: Option<&'static str>| {
        let log_bytes = usize::try_from(std::fs::metadata(&log).unwrap().len()).unwrap();
        promises.push(Promise { id, ended, log_bytes });
    };
    for number in 0..JOBS {
        let now_ms = 10 + i64::try_from(number).unwrap();
        let job = new_job(number, random);
        let id = job.id;
        let admitted = store.admit(job, limits(), now_ms).await.unwrap();
        assert!(matches!(admitted, Admission::Admitted { .. }));
        keep(id, None);
        match random.below(6) {
            0 => (),
            1 => {
                let cancelled = store.cancel_waiting(id, now_ms).await.unwrap();
                assert_eq!(cancelled, Cancellation::Cancelled);
                keep(id, Some("cancelled"));
            }
            life => {
                if let Some((id, ended)) = live(&store, life, now_ms, random).await {
                    keep(id, Some(ended));
                }
            }
        }
    }
    // A batch: several admissions in one transaction.
    let batch: Vec<NewJob> = (JOBS..JOBS + 8).map(|number| new_job(number, random)).collect();
    let ids: Vec<JobId> = batch.iter().map(|job| job.id).collect();
    let mut admissions = tokio::task::JoinSet::new();
    for job in batch {
        let store = store.clone();
        admissions.spawn(async move { store.admit(job, limits(), 1_000).await.unwrap() });
    }
    admissions.join_all().await;
    ids.into_iter().for_each(|id| keep(id, None));
    Original { database, log: std::fs::read(&log).unwrap(), promises }
}

/// Claims what is first in the lane and lets it end, go back, or hang; its outcome.
async fn live(
    store: &Store,
    life: u64,
    now_ms: i64,
    random: &mut Random,
) -> Option<(JobId, &'static str)> {
    let event = random.one_of(&[Event::ClaimToLoad, Event::ClaimToWork]);
    let claim = store.claim("a".to_owned(), Class::Interactive, event, now_ms).await.unwrap()?;
    let (seq, epoch) = (claim.seq, claim.lease_epoch);
    if event == Event::ClaimToLoad {
        assert!(store.loaded(seq, epoch, 5, now_ms).await.unwrap());
    }
    let body = AnswerBody::Inline(bytes(random, 5_000));
    let answer = Some(Answer { status: 200, headers: Vec::new(), body });
    let (ending, ended) = match life {
        2 => {
            let charge = Charge::Attempt;
            let error = "cut".to_owned();
            let back = GiveBack { charge, not_before_ms: 0, error, at_ms: now_ms };
            assert_eq!(store.give_back(seq, epoch, back).await.unwrap(), GaveBack::Queued);
            return None;
        }
        3 => (ending(Event::Fail, None), "failed"),
        _ => (ending(Event::Complete, answer), "done"),
    };
    assert!(store.finish(seq, epoch, ending, now_ms).await.unwrap());
    Some((claim.id, ended))
}

fn ending(event: Event, answer: Option<Answer>) -> Ending {
    let error = answer.is_none().then(|| "no".to_owned());
    Ending { event, answer, error, error_status: None, measured: Measured::default() }
}

fn limits() -> QueueLimits {
    QueueLimits { jobs_max: 1_000, bytes_max: 1_000_000_000, class_max: [None; 3] }
}

fn new_job(number: u64, random: &mut Random) -> NewJob {
    NewJob {
        id: JobId(Ulid::from_parts(1, number.into())),
        dialect: Dialect::Chat,
        kind: Kind::Run,
        lane: "a".to_owned(),
        model: "a".to_owned(),
        class: Class::Interactive,
        client: String::new(),
        is_streamed: true,
        path_and_query: "/api/chat".to_owned(),
        headers: Vec::new(),
        body: bytes(random, 5_000),
        extras: Extras::default(),
    }
}

/// Up to so many bytes: some within a page, some over several.
fn bytes(random: &mut Random, max: u64) -> Bytes {
    let length = usize::try_from(random.below(max)).unwrap();
    Bytes::from(vec![u8::try_from(random.below(256)).unwrap(); length])
}

/// A log as a crash may leave it.
struct Image {
    log: Vec<u8>,
    /// Up to here it is as it was written.
    sound: usize,
    how: String,
}

impl Image {
    fn torn(original: &Original, random: &mut Random) -> Image {
        let mut log = original.log.clone();
        let length = u64::try_from(log.len()).unwrap();
        // Half of them within a few bytes of the end of a transaction, where it is decided.
        let at = match random.below(2) {
            0 => random.below(length),
            _ => {
                let which = random.below(u64::try_from(original.promises.len()).unwrap());
                let end = original.promises[usize::try_from(which).unwrap()].log_bytes;
                (u64::try_from(end).unwrap() + random.below(17)).saturating_sub(8).min(length - 1)
            }
        };
        let sound = usize::try_from(at).unwrap();
        let how = match random.below(4) {
            0 => {
                log.truncate(sound);
                "truncated"
            }
            1 => {
                log[sound..].fill(0);
                "zeroed"
            }
            2 => {
                let noise = |_| u8::try_from(random.below(256)).unwrap();
                let end = log.len().min(sound + NOISE_BYTES);
                let tail: Vec<u8> = (sound..end).map(noise).collect();
                log[sound..end].copy_from_slice(&tail);
                "overwritten at random"
            }
            _ => {
                log[sound] ^= 1 << random.below(8);
                "one bit flipped"
            }
        };
        Image { log, sound, how: format!("{how} at {at}") }
    }

    /// Opens it, as foreman does, and looks.
    fn judge(&self, original: &Original, folder: &Path, runtime: &Runtime) -> Result<(), String> {
        // A place of its own: a child that another test forks holds the last image's lock until it executes.
        let place = tempfile::tempdir_in(folder).unwrap();
        let db = place.path().join("image.db");
        std::fs::write(&db, &original.database).unwrap();
        std::fs::write(side(&db, "-wal"), &self.log).unwrap();
        let (store, _) = Store::open(&db, 2_000).map_err(|fault| fault.to_string())?;
        let judged = self.look(original, &Connection::open(&db).unwrap());
        runtime.block_on(store.close());
        judged
    }

    fn look(&self, original: &Original, image: &Connection) -> Result<(), String> {
        let text = |sql: &str| image.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        let sound = text("PRAGMA integrity_check");
        if sound != "ok" {
            return Err(format!("integrity_check: {sound}"));
        }
        for (what, sql) in MUST_NOT_BE {
            let found: i64 = image.query_row(sql, [], |row| row.get(0)).unwrap();
            if found > 0 {
                return Err(format!("{found} {what}"));
            }
        }
        let mut statement = image.prepare_cached("SELECT state FROM job WHERE id = ?1").unwrap();
        let kept = original.promises.iter().filter(|promise| promise.log_bytes <= self.sound);
        for promise in kept {
            let id = promise.id.to_string();
            let state = statement.query_row([&id], |row| row.get::<_, String>(0));
            let Ok(state) = state else { return Err(format!("job {id} is lost")) };
            if promise.ended.is_some_and(|ended| ended != state) {
                return Err(format!("job {id} was {:?} and is {state}", promise.ended));
            }
        }
        Ok(())
    }
}
