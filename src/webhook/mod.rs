//! The only room that tells receivers of changes of state, at least once, in order for each job.
//!
//! One loop looks into the outbox and decides whom to tell; it started the deliveries in flight.
//!
//! Everything that a restart needs is in the store; in memory is only which receivers fail right now. The loop is woken by
//! committed changes, by landings, by time, and by hand ([`Handle::wake`]), and registers for all of them before it looks.

mod address;
mod delivery;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod pace;
mod payload;
mod post;
mod signature;
mod url;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};

use crate::clock::Clock;
use crate::config::Webhooks as Settings;
use crate::shutdown::Tasks;
use crate::store::Store;

use pace::{DUE_MAX, IN_FLIGHT_MAX, Pace};
use post::Poster;

pub use url::check_url;

/// The longest time without a look: after a host has slept, or where a change was not announced.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The pause after a look that failed.
const LOOK_PAUSE_FAULT: Duration = Duration::from_secs(1);

/// What others talk to the sender by. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    wake: Notify,
    delivered: AtomicU64,
}

impl Handle {
    /// Has the sender look into the outbox: something was changed by hand.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Deliveries that receivers took since the start.
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    fn count_delivered(&self) {
        self.shared.delivered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The one sender. [`Sender::run`] consumes it.
pub struct Sender {
    hands: Hands,
    pace: Pace,
    landing: mpsc::Sender<Landed>,
    landed: mpsc::Receiver<Landed>,
}

/// What the loop shares with the deliveries in flight.
#[derive(Clone)]
struct Hands {
    store: Store,
    clock: Clock,
    tasks: Tasks,
    settings: Settings,
    handle: Handle,
    poster: Poster,
    /// One delivery is read at a time.
    reading: Arc<Semaphore>,
}

/// A delivery that is no longer under way.
struct Landed {
    receiver: String,
    event: i64,
    /// Whether the receiver took it; `None` if it was not tried.
    is_taken: Option<bool>,
}

/// Tells of the landing when it is dropped, however the delivery ended.
struct Landing {
    landed: Option<Landed>,
    sender: mpsc::Sender<Landed>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(landed) = self.landed.take() {
            // There is a place for each that can be in flight; without the loop nobody needs to know.
            drop(self.sender.try_send(landed));
        }
    }
}

impl Sender {
    /// A sender that has not begun, and the handle others talk to it by.
    pub fn new(store: Store, clock: Clock, tasks: Tasks, settings: Settings) -> (Sender, Handle) {
        let handle = Handle::default();
        let (landing, landed) = mpsc::channel(IN_FLIGHT_MAX);
        let hands = Hands {
            store,
            clock,
            tasks,
            settings,
            handle: handle.clone(),
            poster: Poster::default(),
            reading: Arc::new(Semaphore::new(1)),
        };
        (Sender { hands, pace: Pace::default(), landing, landed }, handle)
    }

    /// Delivers until the drain. What is in flight then may finish within the grace; what does not is sent after the next
    /// start.
    pub async fn run(mut self) {
        let tasks = self.hands.tasks.clone();
        while !tasks.is_draining() {
            let pause = self.look().await;
            tokio::select! {
                () = self.hands.store.owing() => (),
                Some(landed) = self.landed.recv() => self.note(&landed),
                () = self.hands.handle.shared.wake.notified() => (),
                () = tokio::time::sleep(pause) => (),
                () = tasks.draining() => return,
            }
            // One look is enough for all that came meanwhile.
            while let Ok(landed) = self.landed.try_recv() {
                self.note(&landed);
            }
        }
    }

    /// Begins what may be begun. The pause until there is more to begin by time alone.
    async fn look(&mut self) -> Duration {
        let now_ms = self.hands.clock.now_ms();
        let owed = match self.hands.store.owed(now_ms, DUE_MAX).await {
            Ok(owed) => owed,
            Err(fault) => {
                tracing::warn!(db.error = %fault, "the webhooks owed could not be read");
                return LOOK_PAUSE_FAULT;
            }
        };
        for (receiver, next) in self.pace.begin(&owed, now_ms) {
            let landed = Landed { receiver, event: next.event, is_taken: None };
            let mut landing = Landing { landed: Some(landed), sender: self.landing.clone() };
            let hands = self.hands.clone();
            self.hands.tasks.spawn(async move {
                let is_taken = tokio::select! {
                    is_taken = delivery::deliver(&hands, next) => is_taken,
                    () = hands.tasks.forced() => None,
                };
                if let Some(landed) = &mut landing.landed {
                    landed.is_taken = is_taken;
                }
            });
        }
        match self.pace.next_at_ms(&owed, now_ms) {
            Some(at_ms) => {
                let pause = Duration::from_millis(u64::try_from(at_ms - now_ms).unwrap_or(0));
                pause.min(LOOK_PAUSE_MAX)
            }
            None => LOOK_PAUSE_MAX,
        }
    }

    fn note(&mut self, landed: &Landed) {
        let now_ms = self.hands.clock.now_ms();
        self.pace.landed(&landed.receiver, landed.event, landed.is_taken, now_ms);
    }
}
