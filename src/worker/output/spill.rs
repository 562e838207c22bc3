//! The file of a large answer: written as its bytes come, synced before a row names it, removed when it is not kept.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Output;

impl Output {
    /// Flushes the file to disk, with its folder, so that a row may name it.
    ///
    /// # Errors
    /// The system's. Blocks.
    pub fn sync_file(&self) -> std::io::Result<()> {
        let file = self.lock().file.clone();
        if let Some(file) = file {
            file.sync_all()?;
            if let Some(folder) = self.spill_path.parent() {
                File::open(folder)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// The file of a large answer; empty while it is in memory.
    pub fn file_path(&self) -> PathBuf {
        self.lock().file_path.clone()
    }

    /// The name of the file, without its folder.
    pub fn file_name(&self) -> String {
        let name =
            self.lock().file_path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_default()
    }

    /// Removes the file of an answer that is not kept, now or when a write that is under way has made it.
    pub fn discard_file(&self) {
        let mut inner = self.lock();
        inner.is_discarded = true;
        if inner.file.is_some() {
            drop(std::fs::remove_file(&inner.file_path));
        }
    }

    /// Writes a chunk of this attempt behind what is there. Of an attempt that was replaced meanwhile nothing is kept: its
    /// writing may end after the next one has begun.
    pub(super) fn spill(&self, attempt: i64, chunk: &[u8]) -> std::io::Result<()> {
        let (file, before) = {
            let inner = self.lock();
            if inner.timings.attempt != attempt {
                return Ok(());
            }
            let before = if inner.file.is_none() { inner.chunks.clone() } else { Vec::new() };
            (inner.file.clone(), before)
        };
        let path = self.path_of(attempt);
        let file = match file {
            Some(file) => file,
            None => {
                let file = create(&path)?;
                let mut writer: &File = &file;
                for earlier in &before {
                    writer.write_all(earlier)?;
                }
                Arc::new(file)
            }
        };
        let mut writer: &File = &file;
        writer.write_all(chunk)?;
        let mut inner = self.lock();
        if inner.timings.attempt != attempt || inner.is_discarded {
            drop(std::fs::remove_file(&path));
            return Ok(());
        }
        inner.file = Some(file);
        inner.file_path = path;
        inner.bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// Each attempt has a file of its own: one that is removed late is not the next one's.
    fn path_of(&self, attempt: i64) -> PathBuf {
        let mut name = self.spill_path.as_os_str().to_owned();
        name.push(format!(".{attempt}"));
        PathBuf::from(name)
    }
}

fn create(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(folder)?;
    }
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.read(true).write(true).create(true).truncate(true).open(path)
}
