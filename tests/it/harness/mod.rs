//! Starts foreman (in this process, or the real binary) in front of a stub on free ports in a temporary folder, and talks
//! to it as a client would. Nothing here sleeps: it waits for events with a deadline.

pub(crate) mod client;
pub(crate) mod daemon;
pub(crate) mod fake_foreman;
pub(crate) mod front;
pub(crate) mod jobs;
pub(crate) mod namespace;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod receiver;
pub(crate) mod upstream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use foreman::app::{App, Stopped};
use foreman::clock::Clock;
use foreman::config::{Config, Raw};
use serde_json::Value;
use stub_ollama::{Model, Stub, StubConfig};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub(crate) use client::{Answer, get, post, send};

/// How long anything in a test may take before it counts as never: far above what a loaded machine needs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A model that loads fast, by name.
pub(crate) fn model(name: &str) -> Model {
    Model::new(name).load_time(Duration::from_millis(20))
}

/// A stub with these chat models and an embedder `embed`, one slot.
pub(crate) fn stub_config(names: &[&str]) -> StubConfig {
    let models = names.iter().map(|name| model(name));
    let embed = Model::embedding("embed").load_time(Duration::from_millis(5));
    StubConfig {
        token_time: Duration::from_millis(1),
        ..StubConfig::with_models(models.chain([embed]))
    }
}

/// Foreman in this process.
pub(crate) struct Foreman {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    folder: Option<TempDir>,
    db: PathBuf,
    stops: mpsc::Sender<()>,
    running: JoinHandle<Stopped>,
}

impl Foreman {
    /// Foreman in front of a stub, with fast retries and polls.
    pub(crate) async fn start(stub: &Stub) -> Foreman {
        Foreman::start_with(stub, |_| ()).await
    }

    /// The same with other settings.
    pub(crate) async fn start_with(stub: &Stub, tweak: impl FnOnce(&mut Raw)) -> Foreman {
        Foreman::start_at(&stub.url(), tweak).await
    }

    /// Foreman in front of whatever is at this address.
    pub(crate) async fn start_at(url: &str, tweak: impl FnOnce(&mut Raw)) -> Foreman {
        let folder = tempfile::tempdir().unwrap();
        let db = folder.path().join("foreman.db");
        let mut foreman = Foreman::start_on(url, &db, tweak).await;
        foreman.folder = Some(folder);
        foreman
    }

    /// Foreman on a given upstream and database.
    pub(crate) async fn start_on(url: &str, db: &Path, tweak: impl FnOnce(&mut Raw)) -> Foreman {
        let given = |text: &str| Some(text.to_owned());
        let mut raw = Raw {
            addr: given("127.0.0.1:0"),
            ollama_url: given(url),
            db: given(db.to_str().unwrap()),
            retry_delay: given("20ms"),
            // Room for any disk that tests run on.
            free_min: given("1MiB"),
            poll_interval: given("1s"),
            // One worker model at a time, so that loads and evictions can be counted; `schedule` tries others.
            beside: given("off"),
            shutdown_grace: given("10s"),
            ..Raw::default()
        };
        tweak(&mut raw);
        let config = Config::check(&raw).unwrap();
        let app = App::build(config, Clock::system()).await.unwrap();
        let addr = app.addr();
        let (stops, receiver) = mpsc::channel(4);
        let running = tokio::spawn(app.run(receiver));
        Foreman { addr, folder: None, db: db.to_owned(), stops, running }
    }

    /// Its database.
    pub(crate) fn db(&self) -> &Path {
        &self.db
    }

    /// The status document.
    pub(crate) async fn status(&self) -> Value {
        get(self.addr, "/status").await.json()
    }

    /// Asks for the status until it is as wanted; fails with the last one after the deadline. Each look is a request, so
    /// this waits for foreman, not for the clock.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                last = self.status().await;
                if wanted(&last) {
                    return;
                }
            }
        });
        let found = found.await;
        assert!(found.is_ok(), "the awaited status never came: {last:#}");
        last
    }

    /// Waits until the upstream is known to be up.
    pub(crate) async fn up(self) -> Foreman {
        self.wait_for(|status| status["upstream"]["state"] == "up").await;
        self
    }

    /// Waits until that many jobs wait.
    pub(crate) async fn wait_for_depth(&self, depth: u64) {
        self.wait_for(|status| status["queue"]["depth"] == depth).await;
    }

    /// One signal: drain, and at the second time force. Returns at once.
    pub(crate) async fn signal(&self) {
        self.stops.send(()).await.unwrap();
    }

    /// Stops it and waits for its end.
    pub(crate) async fn stop(self) -> Stopped {
        self.stops.send(()).await.unwrap();
        self.ended().await
    }

    /// Waits for its end after a signal.
    pub(crate) async fn ended(self) -> Stopped {
        tokio::time::timeout(DEADLINE, self.running).await.unwrap().unwrap()
    }
}

/// Says that a test was not run for want of something; fails where everything must be there.
pub(crate) fn not_run(needs: &str) {
    use std::io::Write;
    std::io::stdout().write_all(format!("not run: needs {needs}\n").as_bytes()).unwrap();
    assert!(!is_set("FOREMAN_TEST_REQUIRE_ALL"), "FOREMAN_TEST_REQUIRE_ALL: needs {needs}");
}

#[expect(clippy::disallowed_methods, reason = "a setting of the tests, not of foreman")]
pub(crate) fn is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|text| !text.is_empty())
}
