//! `foreman serve`: check the configuration, build the daemon, run it until it is told to stop.

use std::io::IsTerminal;

use clap::CommandFactory;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

use crate::app::{App, KeyReader, StartError, Stopped};
use crate::clock::Clock;
use crate::config::Config;
use crate::store::StoreError;

use super::arguments::{Arguments, Serve};
use super::{Exit, say};

/// Log lines when nothing else is asked for.
const LOG_DEFAULT: &str = "info";

/// Runs the daemon in the foreground.
pub(super) fn serve(arguments: &Serve) -> Exit {
    let log = arguments.log.as_deref().filter(|log| !log.is_empty()).unwrap_or(LOG_DEFAULT);
    let filter = if is_readable(log) { EnvFilter::try_new(log).ok() } else { None };
    let config = Config::check(&arguments.raw());
    let (filter, config) = match (filter, config) {
        (Some(filter), Ok(config)) => (filter, config),
        (filter, config) => {
            for fault in config.err().into_iter().flatten() {
                say(&fault.to_string());
            }
            if filter.is_none() {
                say(&format!(
                    "FOREMAN_LOG={log:?}: a filter such as info, debug or foreman::worker=debug"
                ));
            }
            return Exit::Usage;
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    for name in not_yet_known() {
        tracing::warn!(
            "{name} is set, but this version of foreman does not know it: it has no effect"
        );
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(fault) => {
            say(&format!("cannot start: {fault}"));
            return Exit::System;
        }
    };
    runtime.block_on(run(config))
}

async fn run(config: Config) -> Exit {
    let app = match App::build(config, Clock::system()).await {
        Ok(app) => app,
        Err(fault) => {
            say(&fault.to_string());
            return exit_of(&fault);
        }
    };
    let stops = match signals() {
        Ok(stops) => stops,
        Err(fault) => {
            say(&format!("cannot listen for signals: {fault}"));
            return Exit::System;
        }
    };
    if let Some(Err(fault)) = app.key_reader().map(read_keys_on_hangup) {
        say(&format!("cannot listen for signals: {fault}"));
        return Exit::System;
    }
    match app.run(stops).await {
        Stopped::Drained | Stopped::Forced => Exit::Fine,
        Stopped::Misled => Exit::Usage,
        Stopped::Broken => Exit::Failed,
    }
}

/// Whether each part of a log filter names a level. Without this a typing error would count as the name of a module, and
/// silence everything.
fn is_readable(log: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    log.split(',').all(|part| {
        let level = part.rsplit('=').next().unwrap_or(part).trim();
        LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
    })
}

/// A message for each SIGTERM or SIGINT.
#[expect(
    clippy::disallowed_methods,
    reason = "lives as long as the process; a stop must not wait for it"
)]
fn signals() -> std::io::Result<mpsc::Receiver<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The first drains, the second forces; more say nothing new.
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Has the file of keys read again at each SIGHUP. Without such a file SIGHUP ends the program, as it always does.
#[expect(
    clippy::disallowed_methods,
    reason = "lives as long as the process; a stop must not wait for it"
)]
fn read_keys_on_hangup(reader: KeyReader) -> std::io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            reader.reload().await;
        }
    });
    Ok(())
}

/// Variables that look like foreman's but are none: a typing error, or a setting of a later version.
fn not_yet_known() -> Vec<String> {
    let command = Arguments::command();
    let known: Vec<String> = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| argument.get_env())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    std::env::vars_os()
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("FOREMAN_") && !name.starts_with("FOREMAN_TEST_"))
        .filter(|name| !known.contains(name))
        .collect()
}

fn exit_of(fault: &StartError) -> Exit {
    match fault {
        StartError::Listen { .. } => Exit::System,
        StartError::Store { fault: StoreError::InUse { .. }, .. } => Exit::InUse,
        StartError::Store { .. } => Exit::Database,
        StartError::Config(_) => Exit::Usage,
    }
}
