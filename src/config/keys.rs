//! The file of keys, out of what was typed: read here, so that its faults are told with all others.

use std::path::Path;

use crate::keys::{self, KeyFile};

use super::{Fault, Faults, Raw};

/// Reads the file of keys, if one is named.
pub(super) fn keys(raw: &Raw, faults: &mut Faults) -> Option<Option<KeyFile>> {
    let text = |given: &Option<String>| {
        given.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let Some(path) = text(&raw.keys) else { return Some(None) };
    let token = text(&raw.token).map(|token| keys::print(token.as_bytes()));
    match keys::read(Path::new(&path), token.as_ref()) {
        Ok(file) => Some(Some(file)),
        Err(found) => {
            faults.add(found.into_iter().map(|fault| Fault {
                key: "FOREMAN_KEYS",
                value: fault.place(Path::new(&path)),
                allowed: fault.text,
            }));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn faults_of_the_file_are_told_with_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# people\n{\"name\":\"alice\",\"key\":\"short\"}\n{}\n").unwrap();
        let path = path.to_str().unwrap();
        let given = |text: &str| Some(text.to_owned());
        let raw = Raw { parallel: given("0"), keys: given(path), ..Raw::default() };
        let told: Vec<String> =
            Config::check(&raw).unwrap_err().iter().map(Fault::to_string).collect();
        let told = told.join("\n");
        assert!(
            told.contains(&format!("FOREMAN_KEYS=\"{path}:2\": key must be 16 to 256")),
            "{told}"
        );
        assert!(told.contains(&format!("FOREMAN_KEYS=\"{path}:3\": name is missing")), "{told}");
        assert!(told.contains("FOREMAN_PARALLEL") && !told.contains("short"), "{told}");
        assert!(Config::check(&Raw { keys: given(" "), ..Raw::default() }).unwrap().keys.is_none());
    }
}
