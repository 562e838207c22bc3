//! The places of connections: how many there are, what each is doing, and whose connection is closed to make room.
//!
//! A flood must not keep a well-behaved client out, so when no place is free the connection gives way that has made the least
//! use of its own for the longest: the one that has been idle, or busy with one request's head, since the earliest. A new
//! client gets its place at once, and whoever dribbles, or holds connections without a word, loses them one after another. When
//! each connection has a request, an upload gives way that crawls. A client that waits for an answer, or gets one, never does:
//! its request was taken.
//!
//! There is no cap by address. Behind a reverse proxy, and on a machine where all programs run beside each other, everybody has
//! the same one: such a cap would meet the wrong ones first.
//!
//! `accept` hands places out; the reading side of a connection (`outflow`) and its handlers tell what it is doing.

mod files;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outflow::Outflow;

pub(super) use files::allowed;

/// Places beyond those that requests may take, so that `/healthz` and a 503 are answered however many clients wait.
const SPARE: usize = 32;

/// The first part of each head counts nowhere: hyper holds a buffer of this size for each connection anyway.
const HEAD_FREE_BYTES: usize = 8 * 1024;

/// Heads beyond that, of all connections together, until they are answered. A crowd of large ones keeps no small one out.
const LARGE_HEADS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Nobody gives way sooner than that: a head follows its connection by a round trip. All places together are as many newcomers in
/// this time; more wait in the system's backlog.
const IDLE_GRACE: Duration = Duration::from_millis(500);

/// How often those who wait for a place look again: somebody has become older.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// A client may so long take nothing of the end of an answer while others want its place: a full socket of a bad mobile
/// connection moves on more often. Who only sends and never reads must not keep its place for as long as a job's client may.
const STUCK_GRACE: Duration = Duration::from_secs(60);

/// An upload may take so long to show its pace.
const UPLOAD_GRACE: Duration = Duration::from_secs(5);

/// Below this, an upload crawls: a tenth of a bad mobile connection.
const CRAWL_BYTES_PER_S: u64 = 4 * 1024;

/// Uploads looked at for one that crawls, from the oldest.
const UPLOADS_LOOKED_AT: usize = 256;

/// All places. One per daemon.
#[derive(Debug)]
pub(super) struct Places {
    requests_max: usize,
    table: Mutex<Table>,
    /// Told when a place is free, or a connection could give way.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// Connections that have a place.
    open: usize,
    /// Requests that are being served, without those that are refused for want of a place.
    requests: usize,
    /// Counts what connections begin.
    turn: u64,
    /// Who is idle or in a head, by when that began.
    idle: BTreeMap<u64, Arc<Standing>>,
    /// Who is sending a body that is read here, by when that began.
    uploads: BTreeMap<u64, Arc<Standing>>,
    large_heads_bytes: usize,
    /// Connections that were told to give way, and have not ended yet.
    leaving: usize,
    gave_way: u64,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing: no byte of a request has come.
    Idle,
    /// A part of a head has come.
    Head,
    /// A request is being served.
    Serving,
    /// Its body is being read.
    Upload,
}

#[derive(Debug)]
struct Standing {
    now: Mutex<Now>,
    outflow: Outflow,
    given_up: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct Now {
    phase: Phase,
    /// When the phase began, in turns.
    turn: u64,
    began: Instant,
    /// Read in this phase.
    bytes: u64,
    /// What this connection has of the large heads.
    large_head_bytes: usize,
    /// Whether its last request was let in. What others are told is worth no place.
    is_let_in: bool,
}

impl Places {
    /// Places for so many requests at once.
    pub(super) fn new(requests_max: usize) -> Arc<Places> {
        let (table, changed) = (Mutex::default(), Notify::new());
        Arc::new(Places { requests_max, table, changed })
    }

    /// A place for a new connection, which is idle; `None` if there is none.
    pub(super) fn take(self: &Arc<Places>, outflow: Outflow) -> Option<Place> {
        let mut table = self.lock();
        if table.open >= self.requests_max + SPARE {
            return None;
        }
        table.open += 1;
        let now = Now {
            phase: Phase::Idle,
            turn: table.next_turn(),
            began: now(),
            bytes: 0,
            large_head_bytes: 0,
            is_let_in: false,
        };
        let given_up = CancellationToken::new();
        let standing = Arc::new(Standing { now: Mutex::new(now), outflow, given_up });
        table.idle.insert(now.turn, Arc::clone(&standing));
        Some(Place(Seat { places: Arc::clone(self), standing }))
    }

    /// Has a connection closed that gives way, if there is one and none is about to end. Its place is free once it has ended.
    pub(super) fn make_room(&self) {
        let mut table = self.lock();
        if table.leaving > 0 {
            return;
        }
        let Some(standing) = table.who_gives_way() else { return };
        table.send_away(&standing);
        table.gave_way += 1;
        if table.gave_way.is_power_of_two() {
            tracing::warn!(
                http.open = table.open,
                http.gave_way = table.gave_way,
                "no place for another connection; the one that has been idle or in a head the longest is closed"
            );
        }
    }

    /// Returns when it is worth trying again. Cancel-safe.
    pub(super) async fn changed(&self) {
        drop(tokio::time::timeout(LOOK_PAUSE, self.changed.notified()).await);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// Takes out who gives way.
    fn who_gives_way(&mut self) -> Option<Arc<Standing>> {
        let idle = self.idle.iter().find(|(_, standing)| standing.is_through());
        if let Some((&turn, _)) = idle.filter(|(_, standing)| standing.age() >= IDLE_GRACE) {
            return self.idle.remove(&turn);
        }
        self.who_crawls()
    }

    /// Takes out an upload that crawls.
    fn who_crawls(&mut self) -> Option<Arc<Standing>> {
        let mut oldest = self.uploads.iter().take(UPLOADS_LOOKED_AT);
        let turn = oldest.find(|(_, standing)| standing.crawls()).map(|(&turn, _)| turn)?;
        self.uploads.remove(&turn)
    }

    /// Has a connection closed.
    fn send_away(&mut self, standing: &Standing) {
        self.leaving += 1;
        standing.given_up.cancel();
    }

    /// Moves a connection on to another phase.
    fn go_on(&mut self, standing: &Arc<Standing>, phase: Phase) {
        let turn = self.next_turn();
        let mut now_of = standing.lock();
        self.idle.remove(&now_of.turn);
        self.uploads.remove(&now_of.turn);
        if phase == Phase::Idle {
            self.large_heads_bytes -= std::mem::take(&mut now_of.large_head_bytes);
        }
        (now_of.phase, now_of.turn, now_of.began, now_of.bytes) = (phase, turn, now(), 0);
        match phase {
            // Who was told to go is not told again.
            _ if standing.given_up.is_cancelled() => (),
            Phase::Idle | Phase::Head => drop(self.idle.insert(turn, Arc::clone(standing))),
            Phase::Upload => drop(self.uploads.insert(turn, Arc::clone(standing))),
            Phase::Serving => (),
        }
    }
}

impl Standing {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it has been doing what it does.
    fn age(&self) -> Duration {
        now().saturating_duration_since(self.lock().began)
    }

    /// Who has not taken all of an answer is not idle, though nothing is being done for it; unless it takes nothing at all.
    fn is_through(&self) -> bool {
        let blocked_for = self.outflow.blocked_for();
        blocked_for.is_none_or(|it| it >= STUCK_GRACE) || !self.lock().is_let_in
    }

    fn crawls(&self) -> bool {
        let took = self.age();
        let now_of = *self.lock();
        took >= UPLOAD_GRACE && now_of.bytes < took.as_secs().saturating_mul(CRAWL_BYTES_PER_S)
    }
}

/// A place that is taken. Dropping it frees it.
#[derive(Debug)]
pub(super) struct Place(Seat);

impl Place {
    /// For those who tell what the connection does.
    pub(super) fn seat(&self) -> Seat {
        self.0.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Seat { places, standing } = &self.0;
        let mut table = places.lock();
        table.go_on(standing, Phase::Idle);
        let turn = standing.lock().turn;
        table.idle.remove(&turn);
        table.open -= 1;
        table.leaving -= usize::from(standing.given_up.is_cancelled());
        drop(table);
        places.changed.notify_one();
    }
}

/// A connection's place, as seen by those who tell what it does. Travels with each of its requests, as an extension.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    places: Arc<Places>,
    standing: Arc<Standing>,
}

impl Seat {
    /// What the connection is doing, and a number that is another one whenever it does something else.
    pub(super) fn phase(&self) -> (Phase, u64) {
        let now_of = self.standing.lock();
        (now_of.phase, now_of.turn)
    }

    /// Returns when the connection has to give way. Cancel-safe.
    pub(super) async fn given_up(&self) {
        self.standing.given_up.cancelled().await;
    }

    /// Tells of bytes that came.
    ///
    /// # Errors
    /// If the head has become large, and too many are.
    pub(super) fn read(&self, bytes: usize) -> io::Result<()> {
        if self.phase().0 == Phase::Idle && bytes > 0 {
            self.places.lock().go_on(&self.standing, Phase::Head);
        }
        let mut now_of = self.standing.lock();
        now_of.bytes = now_of.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let head = usize::try_from(now_of.bytes).unwrap_or(usize::MAX);
        let more = head.saturating_sub(HEAD_FREE_BYTES).saturating_sub(now_of.large_head_bytes);
        if now_of.phase != Phase::Head || more == 0 {
            return Ok(());
        }
        drop(now_of);
        let mut table = self.places.lock();
        if table.large_heads_bytes + more > LARGE_HEADS_BYTES_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        table.large_heads_bytes += more;
        self.standing.lock().large_head_bytes += more;
        Ok(())
    }

    /// Tells that a head is whole. Dropping what is returned tells that its answer is out.
    pub(super) fn serve(&self) -> Serving {
        let mut table = self.places.lock();
        table.go_on(&self.standing, Phase::Serving);
        self.standing.lock().is_let_in = false;
        let mut is_counted = table.requests < self.places.requests_max;
        if !is_counted && let Some(crawling) = table.who_crawls() {
            // Its request ends in a moment; until then there is one more than there may be.
            table.send_away(&crawling);
            is_counted = true;
        }
        table.requests += usize::from(is_counted);
        Serving { seat: self.clone(), is_counted }
    }

    /// Tells that the request is of somebody who may ask for something.
    pub(super) fn let_in(&self) {
        self.standing.lock().is_let_in = true;
    }

    /// Tells that the body is being read. Dropping what is returned tells that it no longer is.
    pub(super) fn upload(&self) -> Uploading {
        self.places.lock().go_on(&self.standing, Phase::Upload);
        Uploading { seat: self.clone() }
    }
}

/// How a request stands among the others. Travels with it, as an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowd {
    /// There is a place for it.
    Fits,
    /// There are more than there are places for: only foreman's own health and status are answered.
    TooMany,
}

/// A request that is being served.
#[derive(Debug)]
pub(super) struct Serving {
    seat: Seat,
    is_counted: bool,
}

impl Serving {
    /// Whether there is a place for this request.
    pub(super) fn crowd(&self) -> Crowd {
        if self.is_counted { Crowd::Fits } else { Crowd::TooMany }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Seat { places, standing } = &self.seat;
        let mut table = places.lock();
        table.requests -= usize::from(self.is_counted);
        table.go_on(standing, Phase::Idle);
        drop(table);
        // Whoever has waited for a place, and found nobody to give way, does now.
        places.changed.notify_one();
    }
}

/// A body that is being read.
#[derive(Debug)]
pub(super) struct Uploading {
    seat: Seat,
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.seat.places.lock().go_on(&self.seat.standing, Phase::Serving);
    }
}

#[expect(clippy::disallowed_methods, reason = "the age of a connection; nothing reads it as time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
