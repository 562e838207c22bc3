//! `foreman keys`: lines for the file of named keys.

use std::io::Read;

use crate::keys::{KEY_CHARACTERS, line};

use super::arguments::{Keys, KeysCommand};
use super::{Exit, print, say};

/// Reads a key from stdin and prints its line. The key is no argument: those are seen by everybody on the machine.
pub(super) fn keys(arguments: &Keys) -> Exit {
    let KeysCommand::Hash { name } = &arguments.command;
    let mut text = String::new();
    // More than the longest key, so that one that is too long is seen to be, and its line end.
    let bytes_max = u64::try_from(*KEY_CHARACTERS.end()).unwrap_or(u64::MAX).saturating_add(3);
    if let Err(fault) = std::io::stdin().lock().take(bytes_max).read_to_string(&mut text) {
        say(&format!("the key cannot be read from stdin: {fault}"));
        return Exit::NotThere;
    }
    match line(name, text.trim_end_matches(['\r', '\n'])) {
        Ok(line) => print(&format!("{line}\n")),
        Err(fault) => {
            say(&fault);
            Exit::Usage
        }
    }
}
