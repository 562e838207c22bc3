//! Reading an output: any number of followers, each at its own pace, from memory or from the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::{End, Output, Refusal};

/// Bytes read from the file at once.
const READ_BYTES: usize = 64 * 1024;

/// What a follower reads next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// More bytes.
    Bytes(Bytes),
    /// The end.
    End(End),
}

/// Reads one output from its beginning, at its own pace.
#[derive(Debug)]
pub struct Follower {
    output: Arc<Output>,
    chunk: usize,
    offset: u64,
}

enum Look {
    Ready(Next),
    File(Arc<File>),
    Wait,
}

impl Follower {
    /// A follower at the first byte.
    pub fn new(output: Arc<Output>) -> Follower {
        Follower { output, chunk: 0, offset: 0 }
    }

    /// The next bytes, or the end. Waits for the writer. Not cancel-safe while it reads from the file: dropping the
    /// future then loses nothing, since the offset moves only with the bytes handed out.
    pub async fn next(&mut self) -> Next {
        let output = Arc::clone(&self.output);
        loop {
            let changed = output.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.look() {
                Look::Ready(Next::Bytes(bytes)) => {
                    self.chunk += 1;
                    self.offset += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    return Next::Bytes(bytes);
                }
                Look::Ready(end) => return end,
                Look::File(file) => match self.read(file).await {
                    Ok(bytes) => return Next::Bytes(bytes),
                    Err(fault) => return Next::End(End::Broken(unreadable(&fault))),
                },
                Look::Wait => changed.await,
            }
        }
    }

    fn look(&self) -> Look {
        let inner = self.output.lock();
        if !inner.is_shown {
            return match &inner.end {
                Some(end) => Look::Ready(Next::End(end.clone())),
                None => Look::Wait,
            };
        }
        if let Some(chunk) = inner.chunks.get(self.chunk) {
            return Look::Ready(Next::Bytes(chunk.clone()));
        }
        match (&inner.file, &inner.end) {
            (Some(file), _) if self.offset < inner.bytes => Look::File(Arc::clone(file)),
            (_, Some(end)) => Look::Ready(Next::End(end.clone())),
            (_, None) => Look::Wait,
        }
    }

    async fn read(&mut self, file: Arc<File>) -> std::io::Result<Bytes> {
        let offset = self.offset;
        let bytes = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; READ_BYTES];
            let read = file.read_at(&mut buffer, offset)?;
            buffer.truncate(read);
            if read == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            }
            Ok(Bytes::from(buffer))
        })
        .await
        .map_err(std::io::Error::other)??;
        self.offset += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(bytes)
    }
}

fn unreadable(fault: &std::io::Error) -> Refusal {
    Refusal {
        status: 500,
        text: format!("the kept answer cannot be read: {fault}"),
        retry_after_s: None,
        is_told: false,
    }
}
