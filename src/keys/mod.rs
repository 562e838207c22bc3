//! Who is let in: the named keys of a file, each with its limits, and the one key without a name (`FOREMAN_TOKEN`).
//!
//! A key is held and compared as its SHA-256, and shown nowhere, not even that. The file is read at the start and again
//! when foreman is told to; a file with a fault changes nothing. Called by `config`, `http`, `app` and `cli`.

mod file;
mod line;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::domain::job::Class;

pub use file::{KEYS_MAX, read};
pub use line::{KEY_CHARACTERS, NAME_CHARACTERS_MAX, check_key, check_name, line};

/// The SHA-256 of a key.
type Print = [u8; 32];

/// Something that opens foreman.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name, which stands with its jobs; empty for the key of `FOREMAN_TOKEN`.
    pub name: String,
    print: Print,
    /// Whether it may see and act on every job, and on what shows them all.
    pub is_admin: bool,
    /// The class of its jobs where the request says nothing.
    pub class: Option<Class>,
    /// The most urgent class its jobs may have; a request for a more urgent one gets this.
    pub class_max: Option<Class>,
    /// Jobs it may have waiting, those scheduled for later included.
    pub queued_max: Option<u64>,
    /// Jobs it may have in flight.
    pub in_flight_max: Option<u64>,
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Key").field(&self.name).finish()
    }
}

impl Key {
    /// A key with nothing but a name.
    fn plain(name: &str, print: Print) -> Key {
        Key {
            name: name.to_owned(),
            print,
            is_admin: false,
            class: None,
            class_max: None,
            queued_max: None,
            in_flight_max: None,
        }
    }

    /// A key that no token is, and that owns nothing.
    pub fn nobody() -> Key {
        Key::plain("", [0; 32])
    }

    /// The class of a job for which `wanted` was asked, or nothing, where those of others are then of class `default`.
    pub fn class_of(&self, wanted: Option<Class>, default: Class) -> Class {
        let class = wanted.or(self.class).unwrap_or(default);
        // The most urgent class is the least.
        self.class_max.map_or(class, |max| class.max(max))
    }
}

/// A fault of the file, by its line; 0 for the whole file. Tells nothing of what stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what is allowed.
    pub text: String,
}

impl Fault {
    fn of_file(text: impl Into<String>) -> Fault {
        Fault { line: 0, text: text.into() }
    }

    /// Where it is: the file, and the line if it is of one.
    pub fn place(&self, path: &Path) -> String {
        match self.line {
            0 => path.display().to_string(),
            line => format!("{}:{line}", path.display()),
        }
    }
}

/// The keys of a file, as they were read.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// Where they stand.
    pub path: PathBuf,
    keys: Vec<Key>,
}

/// All keys that open foreman, as they are now. Clones share them.
#[derive(Debug, Clone)]
pub struct Keys {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: RwLock<Arc<[Arc<Key>]>>,
    token: Option<Arc<Key>>,
    path: Option<PathBuf>,
}

impl Keys {
    /// The key of `FOREMAN_TOKEN`, if any, and those of a file. With neither foreman is open.
    pub fn new(token: Option<&str>, file: Option<&KeyFile>) -> Keys {
        let token = token.map(|token| {
            let key = Key::plain("", print(token.as_bytes()));
            Arc::new(Key { is_admin: true, ..key })
        });
        let ring = ring(token.as_ref(), file.map_or(&[], |file| &file.keys));
        let path = file.map(|file| file.path.clone());
        Keys { shared: Arc::new(Shared { ring: RwLock::new(ring), token, path }) }
    }

    /// Whether nobody is asked for a key. The same for the whole life of the daemon.
    pub fn are_none(&self) -> bool {
        self.shared.token.is_none() && self.shared.path.is_none()
    }

    /// The key that this token is. Takes the same time whichever it is, or none: the token is hashed once, and compared with
    /// all of them to the end.
    pub fn find(&self, token: &[u8]) -> Option<Arc<Key>> {
        let (print, ring) = (print(token), self.ring());
        let mut found = NOT_FOUND;
        for (index, key) in (0_u32..).zip(ring.iter()) {
            found.conditional_assign(&index, print.ct_eq(&key.print));
        }
        usize::try_from(found).ok().and_then(|index| ring.get(index)).map(Arc::clone)
    }

    /// Whether a key that was let in would be now, with the same rights.
    pub fn still_have(&self, key: &Key) -> bool {
        self.ring().iter().any(|other| **other == *key)
    }

    /// All of them.
    pub fn ring(&self) -> Arc<[Arc<Key>]> {
        Arc::clone(&self.shared.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again: how many keys it holds. Blocks on the disk.
    ///
    /// # Errors
    /// All faults, each with its place; the keys are those of before.
    pub fn reload(&self) -> Result<usize, Vec<String>> {
        let Some(path) = &self.shared.path else { return Ok(0) };
        let told = |faults: Vec<Fault>| {
            let told = |fault: &Fault| format!("{}: {}", fault.place(path), fault.text);
            faults.iter().map(told).collect::<Vec<_>>()
        };
        let token = self.shared.token.as_ref();
        let file = read(path, token.map(|key| &key.print)).map_err(told)?;
        let mut held = self.shared.ring.write().unwrap_or_else(PoisonError::into_inner);
        *held = ring(token, &file.keys);
        Ok(file.keys.len())
    }
}

/// More than any place in a ring.
const NOT_FOUND: u32 = u32::MAX;

fn ring(token: Option<&Arc<Key>>, keys: &[Key]) -> Arc<[Arc<Key>]> {
    token.cloned().into_iter().chain(keys.iter().cloned().map(Arc::new)).collect()
}

/// The SHA-256 of a key or a token.
pub fn print(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Faults of keys that cannot stand beside each other, by line.
fn clashes(keys: &[(usize, Key)], token: Option<&Print>) -> Vec<Fault> {
    let (mut names, mut prints) = (HashSet::new(), HashSet::new());
    let mut faults = Vec::new();
    for (line, key) in keys {
        let mut fault = |text: &str| faults.push(Fault { line: *line, text: text.to_owned() });
        if !names.insert(&key.name) {
            fault("the name stands on an earlier line; each key needs its own");
        }
        if token == Some(&key.print) {
            fault("the key is that of FOREMAN_TOKEN; each key opens for one name");
        } else if !prints.insert(key.print) {
            fault("the key stands on an earlier line; each key opens for one name");
        }
    }
    faults
}

#[cfg(test)]
mod tests;
