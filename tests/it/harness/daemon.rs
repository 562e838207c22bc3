//! The real binary, to be killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::DEADLINE;

/// A running `foreman serve`. Killed when dropped.
pub(crate) struct Daemon {
    pub(crate) addr: SocketAddr,
    child: Child,
}

impl Daemon {
    /// Starts it on a free port and waits until it serves.
    pub(crate) async fn start(url: &str, db: &Path, flags: &[&str]) -> Daemon {
        let mut child = command(url, db, flags).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let served = async {
            let mut seen = String::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("foreman serves") {
                    let addr = line.split("http.addr=").nth(1).unwrap();
                    return addr.split_whitespace().next().unwrap().parse().unwrap();
                }
                seen.push_str(&line);
                seen.push('\n');
            }
            panic!("foreman did not start:\n{seen}");
        };
        let addr = tokio::time::timeout(DEADLINE, served).await.unwrap();
        // Its log must be read on, or it would stall on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Daemon { addr, child }
    }

    /// kill -9.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end; its exit code.
    pub(crate) async fn ended(mut self) -> Option<i32> {
        tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap().code()
    }
}

/// `foreman serve` with an environment of its own.
pub(crate) fn command(url: &str, db: &Path, flags: &[&str]) -> Command {
    let mut command = foreman();
    command
        .args(["serve", "--addr", "127.0.0.1:0", "--ollama-url", url, "--retry-delay", "20ms"])
        .arg("--db")
        .arg(db)
        .args(flags)
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
