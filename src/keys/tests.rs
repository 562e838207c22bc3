//! The file of keys: what it may say, what is told of its faults, and what opens.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;

const SECRET: &str = "sk-0123456789abcdef";

/// A file with this text, which only its owner may read.
fn file(text: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text).unwrap();
    file
}

fn keys_of(text: &str) -> Result<Vec<Key>, Vec<Fault>> {
    read(file(text.as_bytes()).path(), None).map(|file| file.keys)
}

fn faults_of(text: &str) -> Vec<String> {
    let faults = keys_of(text).unwrap_err();
    faults.into_iter().map(|fault| format!("{}: {}", fault.line, fault.text)).collect()
}

fn named(name: &str, key: &str) -> String {
    format!(r#"{{"name":"{name}","key":"{key}"}}"#)
}

#[test]
fn a_line_says_who_it_is_for_and_what_that_one_may() {
    let digits = "ABCDEF".repeat(11)[..64].to_owned();
    let text = format!(
        "# people\r\n\n  {}\r\n{{\"name\":\"bob\",\"sha256\":\"{digits}\",\"is_admin\":true,\"priority\":\"batch\",\
         \"priority_max\":\"normal\",\"queued_max\":10000000,\"in_flight_max\":64}}",
        named("alice", SECRET)
    );
    let keys = keys_of(&text).unwrap();
    assert_eq!(keys[0], Key::plain("alice", print(SECRET.as_bytes())));
    let bob = &keys[1];
    assert_eq!((bob.is_admin, bob.print[0], bob.print[31]), (true, 0xab, 0xcd));
    assert_eq!((bob.class, bob.class_max), (Some(Class::Batch), Some(Class::Normal)));
    assert_eq!((bob.queued_max, bob.in_flight_max), (Some(10_000_000), Some(64)));
}

#[test]
fn all_faults_are_told_with_their_lines_and_no_secret() {
    let text = [
        named("alice", SECRET),
        named("alice", "sk-another-secret-key"),
        named("eve", SECRET),
        "sk-0123456789abcdef".to_owned(),
        r#"{"name":"x y","key":"sk-short"}"#.to_owned(),
        format!(r#"{{"name":"carol","key":"{SECRET}","sha256":"{}"}}"#, "0".repeat(64)),
        r#"{"name":"dave"}"#.to_owned(),
        format!(r#"{{"key":"{SECRET}x","key":"{SECRET}y","{SECRET}":1,"queued_max":"{SECRET}"}}"#),
        r#"{"name":"f","sha256":"+1","is_admin":"yes","priority":"urgent","in_flight_max":65}"#
            .to_owned(),
        "[1]".to_owned(),
    ];
    let told = faults_of(&text.join("\n"));
    let expected = [
        "2: the name stands on an earlier line; each key needs its own",
        "3: the key stands on an earlier line; each key opens for one name",
        "4: must be one JSON object; it is none at column 1",
        "5: name must be 1 to 64 of the characters a-z, A-Z, 0-9, ., _, -",
        "5: key must be 16 to 256 printable ASCII characters without spaces",
        "6: needs one of key (the key itself) and sha256 (its SHA-256)",
        "7: needs one of key (the key itself) and sha256 (its SHA-256)",
        "8: name is missing: 1 to 64 of the characters a-z, A-Z, 0-9, ., _, -",
        "8: key stands there twice",
        "8: queued_max must be a whole number from 1 to 10000000",
        "8: member 3 is none of name, key, sha256, is_admin, priority, priority_max, queued_max, in_flight_max",
        "9: sha256 must be 64 hexadecimal digits",
        "9: is_admin must be true or false",
        "9: priority must be one of interactive, normal, batch",
        "9: in_flight_max must be a whole number from 1 to 64",
        "10: must be one JSON object; it is none at column 1",
    ];
    assert_eq!(told, expected);
    assert!(!told.concat().contains("sk-"), "{told:?}");
}

#[test]
fn who_may_write_the_file_or_read_keys_in_it_is_its_owner_alone() {
    let hashed = line("alice", SECRET).unwrap();
    for (text, mode, is_taken) in [
        (named("alice", SECRET), 0o600, true),
        (named("alice", SECRET), 0o400, true),
        (named("alice", SECRET), 0o640, false),
        (named("alice", SECRET), 0o604, false),
        (hashed.clone(), 0o444, true),
        (hashed.clone(), 0o644, true),
        (hashed.clone(), 0o620, false),
        (hashed, 0o602, false),
    ] {
        let file = file(text.as_bytes());
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let read = read(file.path(), None);
        assert_eq!(read.is_ok(), is_taken, "{mode:o} {read:?}");
        if let Err(faults) = read {
            assert!(faults[0].text.contains("chmod go-"), "{faults:?}");
        }
    }
}

#[test]
fn a_file_that_is_none_or_too_large_or_empty_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let of = |path: &Path| read(path, None).unwrap_err()[0].text.clone();
    assert_eq!(of(folder.path()), "must be a file");
    assert!(of(&folder.path().join("nothing")).starts_with("cannot be read: "));
    assert!(faults_of("# nobody\n\n")[0].contains("holds no key"));
    assert!(faults_of(&"#\n".repeat(600_000))[0].contains("larger than 1048576 bytes"));
    let many: Vec<String> =
        (0..=KEYS_MAX).map(|n| named(&n.to_string(), &format!("{SECRET}{n}"))).collect();
    assert!(faults_of(&many.join("\n"))[0].contains("more than 1000 keys"));
    assert_eq!(keys_of(&many[1..].join("\n")).unwrap().len(), KEYS_MAX);
    assert_eq!(faults_of(&"x\n".repeat(1_000)).len(), 50);
    assert!(
        read(file(b"\xff").path(), None).unwrap_err().iter().any(|f| f.text == "must be UTF-8")
    );
    let nested = "[".repeat(100_000);
    assert_eq!(faults_of(&format!(r#"{{"name":{nested}"#)).len(), 1);
    let token = print(SECRET.as_bytes());
    let faults = read(file(named("a", SECRET).as_bytes()).path(), Some(&token)).unwrap_err();
    assert!(faults[0].text.contains("FOREMAN_TOKEN"), "{faults:?}");
}

#[test]
fn each_key_opens_for_its_name_and_nothing_else_opens() {
    let (alice, bob) = ("alice-0123456789", "bob-0123456789abc");
    let text = [named("alice", alice), line("bob", bob).unwrap()].join("\n");
    let file = file(text.as_bytes());
    let read = read(file.path(), None).unwrap();
    let keys = Keys::new(Some("t"), Some(&read));
    let name = |token: &str| keys.find(token.as_bytes()).map(|key| key.name.clone());
    assert_eq!((name(alice).as_deref(), name(bob).as_deref()), (Some("alice"), Some("bob")));
    let token = keys.find(b"t").unwrap();
    assert_eq!((token.name.as_str(), token.is_admin), ("", true));
    let hash: String = print(bob.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    for wrong in ["", "T", "alice-012345678", "alice-01234567890", &hash] {
        assert_eq!(name(wrong), None, "{wrong}");
    }
    assert!(!keys.are_none() && Keys::new(None, None).are_none());
    assert_eq!(Keys::new(None, None).find(b""), None);
    assert!(!format!("{keys:?}").contains(alice));
}

#[test]
fn a_file_that_is_read_again_counts_once_it_has_no_fault() {
    let path = file(named("alice", SECRET).as_bytes()).into_temp_path();
    let keys = Keys::new(None, Some(&read(&path, None).unwrap()));
    let alice = keys.find(SECRET.as_bytes()).unwrap();
    std::fs::write(&path, "nonsense\n").unwrap();
    let faults = keys.reload().unwrap_err();
    assert!(faults[0].contains(":1: must be one JSON object"), "{faults:?}");
    assert!(keys.still_have(&alice));
    std::fs::write(&path, named("bob", "bob-0123456789abc")).unwrap();
    assert_eq!(keys.reload(), Ok(1));
    assert!(keys.find(SECRET.as_bytes()).is_none() && !keys.still_have(&alice));
    assert!(keys.find(b"bob-0123456789abc").is_some());
}

#[test]
fn a_class_is_what_was_asked_for_within_what_the_key_may() {
    let key = Key { class: Some(Class::Batch), class_max: Some(Class::Normal), ..Key::nobody() };
    for (wanted, class) in [
        (None, Class::Batch),
        (Some(Class::Interactive), Class::Normal),
        (Some(Class::Normal), Class::Normal),
        (Some(Class::Batch), Class::Batch),
    ] {
        assert_eq!(key.class_of(wanted, Class::Interactive), class, "{wanted:?}");
    }
    let free = Key::nobody();
    assert_eq!(free.class_of(None, Class::Normal), Class::Normal);
    let capped = Key { class_max: Some(Class::Batch), ..Key::nobody() };
    assert_eq!(capped.class_of(None, Class::Interactive), Class::Batch);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic_and_a_secret_among_them_is_not_told(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        around in "[{}:,\"a-z_0-9\\[\\]]{0,20}",
    ) {
        let mut text = bytes;
        text.extend_from_slice(format!("\n{around}{SECRET}{around}").as_bytes());
        if let Err(faults) = read(file(&text).path(), None) {
            let told = format!("{faults:?}");
            prop_assert!(!told.contains(SECRET), "{}", told);
        }
    }

    #[test]
    fn a_line_that_was_written_is_read(name in "[a-zA-Z0-9._-]{1,64}", key in "[!-~]{16,256}") {
        let file = file(line(&name, &key).unwrap().as_bytes());
        let keys = Keys::new(None, Some(&read(file.path(), None).unwrap()));
        prop_assert_eq!(&keys.find(key.as_bytes()).unwrap().name, &name);
    }
}
