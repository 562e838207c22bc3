//! `foreman status`: asks a running daemon and shows what it says.

use serde_json::Value;

use super::arguments::Status;
use super::ask::ask;
use super::{Exit, explain_text, print, say, status_text};

/// Shows the status.
pub(super) fn status(arguments: &Status) -> Exit {
    let (addr, text) = match ask(&arguments.daemon, "/status") {
        Ok(answer) => answer,
        Err(exit) => return exit,
    };
    if arguments.json {
        return print(&text);
    }
    match serde_json::from_str::<Value>(&text) {
        Ok(document) if arguments.explain => print(&explain_text::render(&document)),
        Ok(document) => print(&status_text::render(&document, addr)),
        Err(_) => {
            say(&format!("{addr} answers, but it is no foreman"));
            Exit::Unavailable
        }
    }
}
