//! The real binary, to be killed.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

use super::DEADLINE;

/// A running `foreman serve`. Killed when dropped. Waiting for its end panics on errors in its log: an
/// error is what somebody must act on, and no test here gives it a reason for one.
pub(crate) struct Daemon {
    pub(crate) addr: SocketAddr,
    child: Child,
    /// Reads its log to the end, or it would stall on a full pipe; returns the errors.
    reading: JoinHandle<Vec<String>>,
}

impl Daemon {
    /// Starts it on a free port and waits until it serves.
    pub(crate) async fn start(url: &str, db: &Path, flags: &[&str]) -> Daemon {
        let mut starting = Starting::begin(url, db, flags);
        let addr = starting.serves().await;
        starting.into_daemon(addr)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// kill -9. Returns when the process is gone, and its lock on the database with it.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
        without_errors(self.reading).await;
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it takes no more connections: the drain has begun.
    pub(crate) async fn refuses(&self) {
        let refused = async { while TcpStream::connect(self.addr).await.is_ok() {} };
        tokio::time::timeout(DEADLINE, refused).await.expect("it still takes connections");
    }

    /// Waits for its death at an armed fail point; fails if it ends in any other way.
    pub(crate) async fn dies(mut self) {
        let status = tokio::time::timeout(DEADLINE, self.child.wait()).await;
        died(status.expect("the fail point was never reached").unwrap());
        without_errors(self.reading).await;
    }

    /// Waits for the end of one whose disk fails; its exit code, and the errors it logged.
    pub(crate) async fn ended_with_errors(mut self) -> (Option<i32>, Vec<String>) {
        let status = tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        let errors = tokio::time::timeout(DEADLINE, self.reading).await.unwrap().unwrap();
        (status.code(), errors)
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; its exit code.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        let status = tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        without_errors(self.reading).await;
        status.code()
    }
}

/// Fails unless this is an abort: the end that a fail point makes.
fn died(status: std::process::ExitStatus) {
    const SIGABRT: i32 = 6;
    assert_eq!(status.signal(), Some(SIGABRT), "it did not die at the fail point: {status}");
}

async fn without_errors(reading: JoinHandle<Vec<String>>) {
    let errors = tokio::time::timeout(DEADLINE, reading).await.unwrap().unwrap();
    assert!(errors.is_empty(), "foreman logged errors: {errors:#?}");
}

/// A `foreman serve` that may not serve yet, so that it can be killed before it does. Killed when dropped.
pub(crate) struct Starting {
    child: Child,
    lines: Option<Lines<BufReader<ChildStderr>>>,
    seen: String,
}

impl Starting {
    /// Starts the process on a free port.
    pub(crate) fn begin(url: &str, db: &Path, flags: &[&str]) -> Starting {
        Starting::spawn(command(url, db, flags))
    }

    /// The same, to die where `point` is reached (`foreman::fail_point`).
    pub(crate) fn armed(url: &str, db: &Path, flags: &[&str], point: &str) -> Starting {
        let mut command = command(url, db, flags);
        command.env("FOREMAN_TEST_FAIL_POINT", point);
        Starting::spawn(command)
    }

    /// Starts what was made by [`command`].
    pub(crate) fn spawn(mut command: Command) -> Starting {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Starting { child, lines: Some(lines), seen: String::new() }
    }

    /// Waits until it serves; where. Cancel-safe.
    pub(crate) async fn serves(&mut self) -> SocketAddr {
        let served = self.try_serves().await;
        served.unwrap_or_else(|| panic!("foreman did not start:\n{}", self.seen))
    }

    /// Waits until it serves; `None` if it ends before that. Cancel-safe.
    pub(crate) async fn try_serves(&mut self) -> Option<SocketAddr> {
        let lines = self.lines.as_mut().expect("it was asked before");
        let served = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("foreman serves") {
                    let addr = line.split("http.addr=").nth(1).unwrap();
                    return Some(addr.split_whitespace().next().unwrap().parse().unwrap());
                }
                self.seen.push_str(&line);
                self.seen.push('\n');
            }
            None
        };
        tokio::time::timeout(DEADLINE, served).await.unwrap()
    }

    /// What it logged before it served.
    pub(crate) fn seen(&self) -> &str {
        &self.seen
    }

    /// Waits for its death at an armed fail point, before it serves.
    pub(crate) async fn dies(mut self) {
        let served = self.try_serves().await;
        assert_eq!(served, None, "it was to die before it serves");
        died(tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap());
    }

    /// Waits for its end before it serves; its exit code.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap().code()
    }

    /// The daemon at that address.
    pub(crate) fn into_daemon(mut self, addr: SocketAddr) -> Daemon {
        let mut lines = self.lines.take().expect("it was made one before");
        let reading = tokio::spawn(async move {
            let mut errors = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(" ERROR ") || line.contains("panicked") {
                    errors.push(line);
                }
            }
            errors
        });
        Daemon { addr, child: self.child, reading }
    }

    /// kill -9. Returns when the process is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// `foreman serve` with an environment of its own.
pub(crate) fn command(url: &str, db: &Path, flags: &[&str]) -> Command {
    let mut command = foreman();
    command
        .args(["serve", "--addr", "127.0.0.1:0", "--ollama-url", url, "--retry-delay", "20ms"])
        .args(["--beside", "off"])
        .arg("--db")
        .arg(db)
        .args(flags)
        // Room for any disk that tests run on; a flag goes before it.
        .env("FOREMAN_FREE_MIN", "1MiB")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The binary, without the variables of whoever runs the tests.
pub(crate) fn foreman() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreman"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("FOREMAN_") || name.starts_with("OLLAMA_") {
            command.env_remove(name);
        }
    }
    command
}
