//! The command line. It reads flags and environment, and talks to a running daemon only over HTTP.
//!
//! Data goes to stdout, words go to stderr. Exit codes are a contract (docs/cli.md), after sysexits.h.

mod arguments;
mod ask;
mod completions;
mod explain_text;
mod fault;
mod jobs;
mod keys;
mod replay;
mod serve;
mod status;
mod status_text;
mod trace;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use fault::Fault;

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked.
    Fine,
    /// It failed for another reason than those below.
    Failed,
    /// A job that was waited for failed.
    JobFailed,
    /// A job that was waited for was cancelled.
    JobCancelled,
    /// The time to wait was up before the end.
    TimeUp,
    /// A flag or a variable has a value that cannot be used.
    Usage,
    /// The daemon refused what it was sent.
    BadInput,
    /// There is no such job, delivery or file, or no longer.
    NotThere,
    /// The daemon does not answer, or takes nothing now.
    Unavailable,
    /// The address cannot be listened on.
    System,
    /// The database cannot be opened.
    Database,
    /// Another foreman uses the database.
    InUse,
    /// The daemon refused the token.
    Refused,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Exit::Fine => 0,
            Exit::Failed => 1,
            Exit::JobFailed => 2,
            Exit::JobCancelled => 3,
            Exit::TimeUp => 4,
            Exit::Usage => 64,
            Exit::BadInput => 65,
            Exit::NotThere => 66,
            Exit::Unavailable => 69,
            Exit::System => 71,
            Exit::Database => 73,
            Exit::InUse => 75,
            Exit::Refused => 77,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(fault) => {
            // Help and version are no faults. A closed pipe while printing them is nobody's problem.
            drop(fault.print());
            return if fault.use_stderr() { Exit::Usage.into() } else { Exit::Fine.into() };
        }
    };
    let exit = match arguments.command {
        Command::Serve(serve) => serve::serve(&serve),
        Command::Status(status) => status::status(&status),
        Command::Submit(submit) => jobs::submit(&submit),
        Command::Jobs(jobs) => jobs::jobs(&jobs),
        Command::Trace(trace) => trace::trace(&trace),
        Command::Keys(keys) => keys::keys(&keys),
        Command::Replay(replay) => replay::replay(&replay),
        Command::Completions(completions) => completions::completions(&completions),
    };
    exit.into()
}

/// One line on stderr, for people.
#[expect(
    clippy::print_stderr,
    reason = "the one place of the program that writes words to the terminal"
)]
fn say(text: &str) {
    eprintln!("foreman: {text}");
}

/// Data on stdout. A closed pipe ends the program quietly, as `head` expects.
fn print(text: &str) -> Exit {
    match put(text.as_bytes()) {
        Ok(()) => Exit::Fine,
        Err(fault) => fault.tell(),
    }
}

/// Data on stdout, at once.
///
/// # Errors
/// What the program ends with, where nobody reads any more.
fn put(bytes: &[u8]) -> Result<(), Fault> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|fault| match fault.kind() {
        std::io::ErrorKind::BrokenPipe => Fault::Other(Exit::Fine, String::new()),
        _ => Fault::Other(Exit::Failed, format!("cannot write: {fault}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn exit_codes_are_what_the_docs_say() {
        let all = [
            Exit::Fine,
            Exit::Failed,
            Exit::JobFailed,
            Exit::JobCancelled,
            Exit::TimeUp,
            Exit::Usage,
            Exit::BadInput,
            Exit::NotThere,
            Exit::Unavailable,
            Exit::System,
            Exit::Database,
            Exit::InUse,
            Exit::Refused,
        ];
        assert_eq!(all.map(Exit::code), [0, 1, 2, 3, 4, 64, 65, 66, 69, 71, 73, 75, 77]);
    }
}
