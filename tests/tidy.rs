//! Checks on the shape of the code itself: who may import whom, who owns what, how long a file may be.
//!
//! The checks read the source as text. They are meant to catch drift, not malice.
#![expect(clippy::unwrap_used, reason = "a test helper that fails should fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of the house, from the pure middle to the edges. A room may import only rooms listed before it.
const ROOMS: &[Room] = &[
    Room { name: "domain", may_import: &[], owns: &[] },
    Room { name: "clock", may_import: &[], owns: &["jiff"] },
    Room { name: "fail_point", may_import: &[], owns: &[] },
    Room { name: "shutdown", may_import: &[], owns: &["tokio_util::task"] },
    Room { name: "delay", may_import: &[], owns: &["backoff"] },
    Room { name: "guard", may_import: &[], owns: &[] },
    Room { name: "keys", may_import: &["domain"], owns: &["subtle"] },
    Room { name: "replay", may_import: &["domain"], owns: &[] },
    Room { name: "descriptors", may_import: &[], owns: &["rustix::process"] },
    Room { name: "liveness", may_import: &[], owns: &["rustix::net"] },
    Room { name: "tls", may_import: &[], owns: &["tokio_rustls", "rustls_native_certs"] },
    Room {
        name: "store",
        may_import: &["domain", "clock", "fail_point"],
        owns: &["rusqlite", "rustix::fs"],
    },
    Room {
        name: "ollama",
        may_import: &["domain", "liveness", "tls"],
        owns: &["hyper_util::client", "tower_service", "zstd"],
    },
    Room { name: "completion", may_import: &["domain", "store", "ollama"], owns: &[] },
    Room {
        name: "config",
        may_import: &["domain", "guard", "keys", "tls", "ollama"],
        owns: &["dirs"],
    },
    Room {
        name: "webhook",
        may_import: &[
            "domain",
            "clock",
            "fail_point",
            "shutdown",
            "delay",
            "tls",
            "store",
            "config",
            "completion",
        ],
        owns: &["hmac"],
    },
    Room {
        name: "worker",
        may_import: &["domain", "clock", "fail_point", "shutdown", "delay", "store", "ollama"],
        owns: &[],
    },
    Room {
        name: "http",
        may_import: &[
            "domain",
            "clock",
            "fail_point",
            "shutdown",
            "guard",
            "keys",
            "liveness",
            "replay",
            "store",
            "ollama",
            "completion",
            "config",
            "webhook",
            "worker",
        ],
        owns: &["hyper::server"],
    },
    Room {
        name: "app",
        may_import: &[
            "clock",
            "descriptors",
            "fail_point",
            "shutdown",
            "guard",
            "keys",
            "store",
            "ollama",
            "config",
            "webhook",
            "worker",
            "http",
        ],
        owns: &["gethostname"],
    },
    Room {
        name: "cli",
        may_import: &["clock", "keys", "replay", "store", "config", "app"],
        owns: &["clap", "clap_complete", "indicatif", "tracing_subscriber"],
    },
    Room { name: "fuzz", may_import: &["ollama", "config", "webhook", "http"], owns: &[] },
    Room { name: "lib", may_import: &[], owns: &[] },
    Room { name: "main", may_import: &["cli"], owns: &[] },
];

/// What the pure middle must never see.
const BARRED_FROM_DOMAIN: &[&str] =
    &["tokio", "hyper", "rusqlite", "serde", "std::fs", "std::net", "std::env", "std::thread"];

/// Files over this length are two files that have not been separated yet.
const FILE_LINES_MAX: usize = 400;

struct Room {
    name: &'static str,
    may_import: &'static [&'static str],
    owns: &'static [&'static str],
}

struct Source {
    path: PathBuf,
    room: String,
    text: String,
}

#[test]
fn rooms_import_only_what_they_may() {
    let mut faults = Vec::new();
    for source in sources() {
        let Some(room) = ROOMS.iter().find(|room| room.name == source.room) else {
            faults.push(format!(
                "{}: room `{}` is not in ROOMS",
                source.path.display(),
                source.room
            ));
            continue;
        };
        for (line, used) in crate_paths(&source.text) {
            let is_room = ROOMS.iter().any(|other| other.name == used);
            if is_room && used != room.name && !room.may_import.contains(&used.as_str()) {
                faults.push(format!(
                    "{}:{line}: `{}` may not import `{used}`",
                    source.path.display(),
                    room.name
                ));
            }
        }
        for (line, code) in code_lines(&source.text) {
            for owner in ROOMS.iter().filter(|owner| owner.name != room.name) {
                for owned in owner.owns.iter().filter(|owned| names(code, owned)) {
                    faults.push(format!(
                        "{}:{line}: only `{}` may use `{owned}`",
                        source.path.display(),
                        owner.name
                    ));
                }
            }
            for barred in BARRED_FROM_DOMAIN
                .iter()
                .filter(|barred| room.name == "domain" && names(code, barred))
            {
                faults.push(format!(
                    "{}:{line}: `domain` is pure, it may not use `{barred}`",
                    source.path.display()
                ));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn rooms_form_no_cycle() {
    for (index, room) in ROOMS.iter().enumerate() {
        for import in room.may_import {
            let position = ROOMS.iter().position(|other| other.name == *import).unwrap();
            assert!(
                position < index,
                "`{}` is listed before `{import}`, which it imports",
                room.name
            );
        }
    }
}

#[test]
fn files_say_what_they_are_for_and_stay_small() {
    let mut faults = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX && !source.path.ends_with("tests.rs") {
            faults.push(format!(
                "{}: {lines} lines, at most {FILE_LINES_MAX}",
                source.path.display()
            ));
        }
        if !source.text.starts_with("//!") {
            faults.push(format!("{}: no `//!` header", source.path.display()));
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// A name in the list that is nowhere in the source would be a death nobody tests.
#[test]
fn each_fail_point_is_placed_and_listed() {
    let mut placed: Vec<String> = sources()
        .iter()
        .flat_map(|source| code_lines(&source.text))
        .filter_map(|(_, code)| code.split_once("fail_point::reach(\"")?.1.split_once('"'))
        .map(|(name, _)| name.to_owned())
        .collect();
    placed.sort_unstable();
    // The same step may be taken in several places.
    placed.dedup();
    let mut listed = foreman::fail_point::ALL.to_vec();
    listed.sort_unstable();
    assert_eq!(placed, listed);
}

/// The first name after each `crate::`, groups included, with the line it stands on.
fn crate_paths(text: &str) -> Vec<(usize, String)> {
    let code: String = code_lines(text).map(|(_, code)| format!("{code}\n")).collect();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let mut depth = 0_i32;
        let mut at_name_start = true;
        for (offset, character) in rest.char_indices() {
            if at_name_start && (character.is_alphabetic() || character == '_') {
                let line = code[..at + "crate::".len() + offset].matches('\n').count() + 1;
                let name = rest[offset..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                found.push((line, name));
                at_name_start = false;
            }
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_name_start = true,
                _ => (),
            }
            if depth == 0 && !at_name_start {
                break;
            }
        }
    }
    found
}

/// The lines of a file without their comments, counted from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

/// Whether `code` names the outside path `path`, as `path::…`, `use path;` or an attribute's first part.
fn names(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + path.len()..];
        let starts = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        starts && (after.starts_with("::") || after.starts_with(';'))
    })
}

/// All files below `src`, each with its room: the first part of its path, without `.rs`.
fn sources() -> Vec<Source> {
    fn go(root: &Path, folder: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                go(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(root).unwrap();
                let room = below
                    .iter()
                    .next()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .trim_end_matches(".rs")
                    .to_owned();
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path, room, text });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    go(&root, &root, &mut found);
    assert!(!found.is_empty(), "no source found: the checks would pass on nothing");
    found.sort_by(|left, right| left.path.cmp(&right.path));
    found
}

#[test]
fn the_reader_of_paths_reads_groups() {
    let text = "use crate::{store::jobs, domain::{job, retry}, clock};\nuse crate::http::error; // crate::cli\n";
    let names: Vec<String> =
        crate_paths(text).into_iter().map(|(line, name)| format!("{line}:{name}")).collect();
    assert_eq!(names, ["1:store", "1:domain", "1:clock", "2:http"]);
}
