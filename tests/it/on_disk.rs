//! What foreman writes is readable by its owner only.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use stub_ollama::Stub;

use crate::harness::client::{chat, post};
use crate::harness::{Foreman, stub_config};

/// Every file and folder at and below a path, with its permission bits.
fn modes(path: &Path) -> Vec<(String, u32)> {
    let mode = std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let mut found = vec![(path.display().to_string(), mode)];
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            found.extend(modes(&entry.unwrap().path()));
        }
    }
    found
}

#[tokio::test]
async fn what_is_written_is_readable_by_its_owner_only() {
    let stub = Stub::start(stub_config(&["a"])).await;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("made").join("foreman.db");
    let foreman = Foreman::start_on(&stub.url(), &db, |_| ()).await.up().await;
    assert!(post(foreman.addr, "/api/chat", &chat("a", "x")).await.is_whole);
    let found = modes(db.parent().unwrap());
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    for wanted in ["foreman.db", "foreman.db-wal"] {
        assert!(names.iter().any(|name| name.ends_with(wanted)), "{names:?}");
    }
    for (name, mode) in found.iter().filter(|(name, _)| !name.ends_with("/made")) {
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
}
