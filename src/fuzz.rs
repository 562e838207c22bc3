//! What is fuzzed: one function for each target, on bytes as they would come. The bodies stand beside what they call; the
//! programs around them are in `fuzz/`, and how to run them in fuzz/README.md.
//!
//! Only in tests and under a fuzzer. Each function panics where a promise is broken, and `cargo test` replays what fuzzing has
//! found worth keeping (`fuzz/corpus`).

pub use crate::config::fuzz::config;
pub use crate::http::fuzz::{headers, route, submission};
pub use crate::ollama::wire::fuzz::{answer, multipart, request};
pub use crate::webhook::fuzz::receiver;

/// A fuzz target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, by the names of their programs and of the folders of their corpora.
pub const TARGETS: [Target; 8] = [
    ("answer", answer),
    ("config", config),
    ("headers", headers),
    ("multipart", multipart),
    ("receiver", receiver),
    ("request", request),
    ("route", route),
    ("submission", submission),
];

#[cfg(test)]
mod tests {
    use super::TARGETS;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The files of a folder, without their endings, in order.
    fn names(folder: &Path) -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort_unstable();
        names
    }

    /// What was found once stays found: each input of the corpora, by the target it is for.
    #[test]
    fn the_corpora_break_no_promise() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let inputs = names(&root.join(name));
            assert!(!inputs.is_empty(), "{name} has no corpus");
            for path in inputs {
                // Printed only if the next line panics.
                println!("{}", path.display());
                target(&fs::read(path).unwrap());
            }
        }
    }

    #[test]
    fn each_target_has_a_program_and_a_corpus() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for folder in ["corpus", "fuzz_targets"] {
            let found = names(&root.join(folder));
            let found: Vec<_> = found.iter().map(|path| path.file_stem().unwrap()).collect();
            assert_eq!(found, TARGETS.map(|(name, _)| name), "{folder}");
        }
    }
}
