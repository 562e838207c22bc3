//! How many files and sockets this process may have open at once. `app` raises it once, at the start.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as foreman could use at most: a socket of a client and one towards Ollama for each connection it allows itself,
/// and some files. Many systems start a process with 1,024, for the sake of programs that use `select`.
const WANTED: u64 = 65_536;

/// Raises what the process may have open to what it is allowed to raise it to. What it may have open then.
pub fn raise() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let wanted = now.maximum.unwrap_or(WANTED).min(WANTED);
    match now.current {
        Some(current) if current < wanted => {
            let raised = Rlimit { current: Some(wanted), maximum: now.maximum };
            // Where that is refused, it stays as it is.
            match setrlimit(Resource::Nofile, raised) {
                Ok(()) => wanted,
                Err(_) => current,
            }
        }
        Some(current) => current,
        None => WANTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_twice_is_raising_once() {
        let raised = raise();
        let limit = getrlimit(Resource::Nofile);
        assert!(limit.current.is_none_or(|current| current >= raised.min(WANTED)));
        assert_eq!(raise(), raised);
    }
}
