//! The file of keys: one a line, as people write it (`authorized_keys` is the model). Empty lines and those that begin with
//! `#` are passed over.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::line::parse;
use super::{Fault, Key, KeyFile, Print, clashes};

/// Keys of one file: more people and programs than share a GPU, and few enough to compare with each at each request.
pub const KEYS_MAX: usize = 1_000;

/// Bytes of the file: a thousand full lines with as many of comments.
const BYTES_MAX: u64 = 1024 * 1024;

/// Faults that are told; the rest will be found after these were mended.
const FAULTS_MAX: usize = 50;

/// Who is not the owner and may read, or write.
const OTHERS_READ: u32 = 0o044;
const OTHERS_WRITE: u32 = 0o022;

/// Reads the keys of a file. `token` is the SHA-256 of `FOREMAN_TOKEN`, which no line may repeat.
///
/// # Errors
/// All faults, by line; those of the file itself first.
pub fn read(path: &Path, token: Option<&Print>) -> Result<KeyFile, Vec<Fault>> {
    let (bytes, mode) = bytes(path).map_err(|text| vec![Fault::of_file(text)])?;
    let (keys, mut faults, has_plain) = keys(&bytes);
    faults.extend(clashes(&keys, token));
    faults.sort_by_key(|fault| fault.line);
    if let Some(text) = open_to_others(mode, has_plain) {
        faults.insert(0, Fault::of_file(text));
    }
    if keys.len() > KEYS_MAX {
        faults.insert(0, Fault::of_file(format!("holds more than {KEYS_MAX} keys")));
    }
    if keys.is_empty() && faults.is_empty() {
        faults.push(Fault::of_file("holds no key: one JSON object a line (docs/keys.md)"));
    }
    faults.truncate(FAULTS_MAX);
    match faults.is_empty() {
        true => {
            let keys = keys.into_iter().map(|(_, key)| key).collect();
            Ok(KeyFile { path: path.to_owned(), keys })
        }
        false => Err(faults),
    }
}

/// The bytes of the file and its mode. Looked at before it is opened: a pipe without a writer would be waited for.
fn bytes(path: &Path) -> Result<(Vec<u8>, u32), String> {
    let unread = |fault: std::io::Error| format!("cannot be read: {fault}");
    if !std::fs::metadata(path).map_err(unread)?.is_file() {
        return Err("must be a file".to_owned());
    }
    let file = File::open(path).map_err(unread)?;
    let mode = file.metadata().map_err(unread)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unread)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > BYTES_MAX) {
        return Err(format!("is larger than {BYTES_MAX} bytes"));
    }
    Ok((bytes, mode))
}

/// Whoever may write it lets himself in; whoever may read it has the keys that stand there as they are. A hash of a long
/// random key tells nobody anything, so a file of hashes alone may be readable: that is how secrets are mounted.
fn open_to_others(mode: u32, has_plain: bool) -> Option<&'static str> {
    if mode & OTHERS_WRITE != 0 {
        return Some("may be written by others than its owner; chmod go-w");
    }
    (has_plain && mode & OTHERS_READ != 0).then_some(
        "holds keys as they are and may be read by others than its owner; chmod go-rwx, or sha256 in the place of key",
    )
}

/// The keys that can be read, each with its line, the faults, and whether any key stands there as it is.
fn keys(bytes: &[u8]) -> (Vec<(usize, Key)>, Vec<Fault>, bool) {
    let (mut keys, mut faults, mut has_plain) = (Vec::new(), Vec::new(), false);
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let read = std::str::from_utf8(line).map_err(|_| vec!["must be UTF-8".to_owned()]);
        match read.and_then(parse) {
            Ok(read) => {
                has_plain |= read.is_plain;
                keys.push((number, read.key));
            }
            Err(texts) => {
                // What cannot be read may hold a key as it is.
                has_plain = true;
                faults.extend(texts.into_iter().map(|text| Fault { line: number, text }));
            }
        }
    }
    (keys, faults, has_plain)
}
