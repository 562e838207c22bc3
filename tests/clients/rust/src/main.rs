//! The part of the Rust client program that does not know its client; the protocol is that of `python/speak.py`.
//!
//! A failure ends the process only where the protocol itself is broken; what the client says goes out as an outcome.

mod with_ollama_rs;

use std::io::{Write as _, stdin, stdout};
use std::process::ExitCode;

use serde_json::{Value, json};

/// An error as a user of the client sees it.
struct Failure {
    kind: String,
    text: String,
}

/// What came of a request.
type Outcome = Result<Value, Failure>;

/// Writes one line.
fn say(line: &Value) -> std::io::Result<()> {
    writeln!(stdout(), "{line}")?;
    stdout().flush()
}

async fn serve() -> std::io::Result<()> {
    say(&json!({"ready": with_ollama_rs::VERSION}))?;
    for line in stdin().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        match with_ollama_rs::carry_out(&request).await {
            Ok(outcome) => say(&outcome)?,
            Err(Failure { kind, text }) => say(&json!({"error": {"kind": kind, "text": text}}))?,
        }
    }
    Ok(())
}

/// The main thread reads requests; the worker lets connections end that were dropped.
#[tokio::main(worker_threads = 1)]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("with_ollama_rs: {error}");
            ExitCode::FAILURE
        }
    }
}
