//! The file of a large answer: written as its bytes come, synced before a row names it, removed when it is not kept.

use std::fs::File;
use std::io::Write;
use std::path::Path;
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

    /// The file of a large answer.
    pub fn file_path(&self) -> &Path {
        &self.spill_path
    }

    /// The name of the file, without its folder.
    pub fn file_name(&self) -> String {
        self.spill_path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Removes the file of an answer that is not kept.
    pub fn discard_file(&self) {
        if self.lock().file.is_some() {
            drop(std::fs::remove_file(&self.spill_path));
        }
    }

    pub(super) fn spill(&self, chunk: &[u8]) -> std::io::Result<()> {
        let (file, before) = {
            let inner = self.lock();
            let before = if inner.file.is_none() { inner.chunks.clone() } else { Vec::new() };
            (inner.file.clone(), before)
        };
        let file = match file {
            Some(file) => file,
            None => {
                let file = self.create_file()?;
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
        inner.file = Some(file);
        inner.bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn create_file(&self) -> std::io::Result<File> {
        if let Some(folder) = self.spill_path.parent() {
            let mut builder = std::fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(folder)?;
        }
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.read(true).write(true).create(true).truncate(true).open(&self.spill_path)
    }
}
