//! `foreman completions`: what a shell needs to complete the flags.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::arguments::{Arguments, Completions, ShellName};
use super::{Exit, print};

/// Writes the script of a shell.
pub(super) fn completions(arguments: &Completions) -> Exit {
    let shell = match arguments.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Arguments::command(), "foreman", &mut script);
    print(&String::from_utf8_lossy(&script))
}
