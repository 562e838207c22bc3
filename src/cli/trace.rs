//! `foreman trace`: asks a running daemon for the jobs that ran last, as a trace for `foreman replay`.

use super::arguments::Trace;
use super::ask::ask;
use super::{Exit, print, say};

/// Writes the trace.
pub(super) fn trace(arguments: &Trace) -> Exit {
    let path = format!("/trace?last={}", arguments.last);
    let text = match ask(&arguments.daemon, &path) {
        Ok((_, text)) => text,
        Err(exit) => return exit,
    };
    let Some(file) = &arguments.output else { return print(&text) };
    match std::fs::write(file, text) {
        Ok(()) => Exit::Fine,
        Err(fault) => {
            say(&format!("cannot write {}: {fault}", file.display()));
            Exit::Failed
        }
    }
}
