//! The mixed load of the kill test: what clients ask, how they behave, and their journal of what they were told. They
//! follow foreman from port to port and never ask the same thing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use foreman::clock::Clock;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::harness::client::{Stream, request, try_open};

use super::ask::Ask;
use crate::harness::random::Random;

/// Clients wait while this many jobs are open: kills leave jobs behind, and an ever longer queue would let no client
/// see an answer before the next kill.
const OPEN_MAX: u64 = 5;

/// What a client was told, as far as it went.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) id: Option<String>,
    pub(super) status: u16,
    pub(super) body: Bytes,
    /// Whether HTTP says that this is all.
    pub(super) is_whole: bool,
    /// When the last byte was there.
    pub(super) at_ms: i64,
}

/// How a request ended for its client.
#[derive(Debug, Clone)]
pub(super) enum Fate {
    /// An answer began.
    Told(Told),
    /// The client left on purpose.
    Left,
    /// Foreman died before an answer began.
    Lost,
}

/// What the clients know. The oracle compares it with the database.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Ids of jobs that foreman showed to anybody.
    pub(super) acknowledged: BTreeMap<String, Option<String>>,
    /// Requests by tag.
    pub(super) asks: BTreeMap<String, Ask>,
    /// Their fates by tag.
    pub(super) fates: BTreeMap<String, Fate>,
    /// Jobs that somebody asked to cancel, acknowledged or not.
    pub(super) cancels: BTreeSet<String>,
    /// Jobs whose cancel was acknowledged, and when (milliseconds since 1970).
    pub(super) cancelled: BTreeMap<String, i64>,
    /// Jobs that somebody asked to try again, by hand.
    pub(super) retries: BTreeMap<String, Retries>,
    /// The tags of what was submitted in one call: all of it is stored, or none.
    pub(super) batches: Vec<Vec<String>>,
    /// What programs followed to its end.
    pub(super) followed: Vec<Followed>,
    /// Submissions that were made again, with their key.
    pub(super) reposts: u32,
    /// Answers beside the queue that were wrong.
    pub(super) wrong: Vec<String>,
}

/// Retries of a job by hand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Retries {
    pub(super) asked: u32,
    pub(super) acknowledged: u32,
}

/// An answer that was put together, perhaps in pieces.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    pub(super) id: String,
    pub(super) attempt: i64,
    pub(super) bytes: Vec<u8>,
    /// How often the rest was asked for by offset.
    pub(super) resumed: u32,
}

/// What everybody sees of the daemon of the moment.
#[derive(Debug, Clone, Default)]
struct Scene {
    addr: Option<SocketAddr>,
    /// Jobs that wait or run.
    open: u64,
    /// Times the watcher has looked.
    looks: u64,
    is_over: bool,
}

/// Shared by the clients, the watcher and the test.
#[derive(Debug, Default)]
pub(super) struct Load {
    known: Mutex<Known>,
    scene: watch::Sender<Scene>,
}

impl Load {
    /// Tells everybody where foreman serves now; `None` once it is dead.
    pub(super) fn follow(&self, addr: Option<SocketAddr>) {
        self.scene.send_modify(|scene| scene.addr = addr);
    }

    /// Lets the clients finish what they do and go.
    pub(super) fn end(&self) {
        self.scene.send_modify(|scene| scene.is_over = true);
    }

    /// Notes that the client of this request leaves on purpose.
    pub(super) fn leaves(&self, ask: &Ask) {
        let mut known = self.known();
        known.asks.insert(ask.tag.clone(), ask.clone());
        known.fates.insert(ask.tag.clone(), Fate::Left);
    }

    /// Waits until the watcher sees that so many jobs wait or run.
    pub(super) async fn opened(&self, open: u64) {
        self.when(|scene| scene.open == open).await;
    }

    /// Waits until the watcher has looked once more.
    pub(super) async fn looked(&self) {
        let looks = self.scene.borrow().looks;
        self.when(|scene| scene.looks > looks || scene.is_over).await;
    }

    /// Whether the clients are to go.
    pub(super) fn is_over(&self) -> bool {
        self.scene.borrow().is_over
    }

    /// Waits until the watcher sees that no job waits or runs.
    pub(super) async fn drained(&self) {
        let looks = self.scene.borrow().looks;
        self.when(|scene| scene.looks > looks + 1 && scene.open == 0).await;
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// Waits until there is room for more work; where to bring it. `None` once the clients are to go.
    pub(super) async fn has_room(&self) -> Option<SocketAddr> {
        let has_room = |scene: &Scene| scene.addr.is_some() && scene.open < OPEN_MAX;
        let scene = self.when(|scene| scene.is_over || has_room(scene)).await;
        scene.addr.filter(|_| !scene.is_over)
    }

    /// Waits until foreman serves; where.
    pub(super) async fn serves(&self) -> SocketAddr {
        let scene = self.when(|scene| scene.addr.is_some()).await;
        scene.addr.expect("waited for")
    }

    async fn when(&self, is_so: impl Fn(&Scene) -> bool) -> Scene {
        self.scene.subscribe().wait_for(is_so).await.unwrap().clone()
    }

    pub(super) async fn when_gone(&self, addr: SocketAddr) {
        self.when(|scene| scene.addr != Some(addr)).await;
    }

    pub(super) fn acknowledge(&self, id: &str, tag: Option<&str>) {
        let mut known = self.known();
        let entry = known.acknowledged.entry(id.to_owned()).or_default();
        if let Some(tag) = tag {
            *entry = Some(tag.to_owned());
        }
    }
}

/// Looks at the status document all the time and notes each job it shows: what a status shows is acknowledged.
pub(super) async fn watch(load: Arc<Load>) {
    loop {
        let Some(addr) = load.when(|scene| scene.addr.is_some()).await.addr else { continue };
        let Some(status) = look(addr).await else {
            load.when_gone(addr).await;
            continue;
        };
        let listed = [&status["queue"]["jobs"], &status["running"]];
        for job in listed.into_iter().filter_map(Value::as_array).flatten() {
            load.acknowledge(job["id"].as_str().unwrap(), None);
        }
        let running = status["running"].as_array().map_or(0, Vec::len);
        let open = status["queue"]["depth"].as_u64().unwrap() + u64::try_from(running).unwrap();
        load.scene.send_modify(|scene| {
            scene.open = open;
            scene.looks += 1;
        });
    }
}

async fn look(addr: SocketAddr) -> Option<Value> {
    let answer = try_open(addr, request(addr, "GET", "/status", "")).await?.rest().await;
    answer.is_whole.then(|| answer.json())
}

/// Asks one thing after the other until the load ends.
pub(super) async fn client(load: Arc<Load>, number: u64, mut random: Random) {
    for turn in 0_u64.. {
        let Some(addr) = load.has_room().await else { return };
        match random.below(10) {
            0 => beside_the_queue(&load, addr, "/api/embed", "embeddings").await,
            1 => beside_the_queue(&load, addr, "/api/tags", "models").await,
            _ => {
                let ask = Ask::random(&mut random, format!("c{number}t{turn}"));
                load.known().asks.insert(ask.tag.clone(), ask.clone());
                let fate = ask_for(&load, addr, &ask, random.below(10)).await;
                let is_lost = matches!(fate, Fate::Lost);
                load.known().fates.insert(ask.tag, fate);
                if is_lost {
                    load.when_gone(addr).await;
                }
            }
        }
    }
}

/// Asks one thing, and stays; notes what it is told.
pub(super) async fn ask_and_stay(load: Arc<Load>, addr: SocketAddr, ask: Ask) {
    load.known().asks.insert(ask.tag.clone(), ask.clone());
    let fate = ask_for(&load, addr, &ask, STAYS).await;
    // Who was sent away without a job has nothing to compare.
    if !matches!(&fate, Fate::Told(told) if told.id.is_none()) {
        load.known().fates.insert(ask.tag, fate);
    }
}

/// The manner of a client that stays to the end.
const STAYS: u64 = 9;

/// Seven of ten clients stay; one leaves while it waits, two when the answer has begun.
async fn ask_for(load: &Load, addr: SocketAddr, ask: &Ask, manner: u64) -> Fate {
    let sent = try_open(addr, request(addr, "POST", ask.shape.path(), ask.body().to_string()));
    let looks = load.scene.borrow().looks;
    let opened = if manner == 0 {
        tokio::select! {
            opened = sent => opened,
            // By the second look from here foreman has had the request for a while.
            _ = load.when(|scene| scene.looks > looks + 1) => return Fate::Left,
        }
    } else {
        sent.await
    };
    let Some(stream) = opened else { return Fate::Lost };
    let id = stream.headers.get("x-foreman-job-id").map(|id| id.to_str().unwrap().to_owned());
    if let Some(id) = &id {
        load.acknowledge(id, Some(&ask.tag));
    }
    if manner <= 2 && leaves_at_the_first_byte(stream.status.as_u16(), ask) {
        return leave_after_a_byte(stream).await;
    }
    let status = stream.status.as_u16();
    let answer = stream.rest().await;
    let at_ms = Clock::system().now_ms();
    Fate::Told(Told { id, status, body: answer.body, is_whole: answer.is_whole, at_ms })
}

/// Leaving makes a difference only inside a stream.
fn leaves_at_the_first_byte(status: u16, ask: &Ask) -> bool {
    status == 200 && ask.is_streamed
}

async fn leave_after_a_byte(mut stream: Stream) -> Fate {
    drop(stream.next().await);
    Fate::Left
}

/// An embed or a look at the metadata: never a job, right or not at all.
async fn beside_the_queue(load: &Load, addr: SocketAddr, path: &str, member: &str) {
    let request = match path {
        "/api/embed" => {
            request(addr, "POST", path, json!({ "model": "embed", "input": "x" }).to_string())
        }
        _ => request(addr, "GET", path, ""),
    };
    let Some(stream) = try_open(addr, request).await else {
        load.when_gone(addr).await;
        return;
    };
    let answer = stream.rest().await;
    if answer.is_whole && (answer.status != 200 || !answer.json()[member].is_array()) {
        load.known().wrong.push(format!("{path}: {} {}", answer.status, answer.text()));
    }
}

/// What became of the requests, in numbers.
pub(super) fn summary(known: &Known) -> String {
    let count = |is_so: fn(&Fate) -> bool| known.fates.values().filter(|fate| is_so(fate)).count();
    let whole =
        count(|fate| matches!(fate, Fate::Told(told) if told.is_whole && told.status == 200));
    let refused = count(|fate| matches!(fate, Fate::Told(told) if told.status != 200));
    let cut = count(|fate| matches!(fate, Fate::Told(told) if !told.is_whole));
    let left = count(|fate| matches!(fate, Fate::Left));
    let lost = count(|fate| matches!(fate, Fate::Lost));
    let asked = known.fates.len();
    format!(
        "requests {asked}: {whole} answered whole, {cut} cut, {refused} refused, {left} left, {lost} without an answer"
    )
}
