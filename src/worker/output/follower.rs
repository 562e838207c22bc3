//! Reading an output: any number of followers, each at its own pace, from memory or from the file, of one attempt.

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

/// Reads one attempt's output, at its own pace.
#[derive(Debug)]
pub struct Follower {
    output: Arc<Output>,
    attempt: i64,
    chunk: usize,
    /// Bytes of that chunk that were asked to be left out.
    skip: usize,
    offset: u64,
}

/// An offset that the answer does not reach, with the bytes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeyondEnd(pub u64);

enum Look {
    Ready(Next),
    File(Arc<File>),
    Wait,
}

impl Follower {
    /// A follower of an attempt, at the first byte.
    pub fn new(output: Arc<Output>, attempt: i64) -> Follower {
        Follower { output, attempt, chunk: 0, skip: 0, offset: 0 }
    }

    /// The same behind the first `offset` bytes.
    ///
    /// # Errors
    /// [`BeyondEnd`] if there are not as many.
    pub fn behind(output: Arc<Output>, attempt: i64, offset: u64) -> Result<Follower, BeyondEnd> {
        let mut follower = Follower::new(output, attempt);
        let output = Arc::clone(&follower.output);
        let inner = output.lock();
        if offset > inner.bytes {
            return Err(BeyondEnd(inner.bytes));
        }
        follower.offset = offset;
        let mut left = usize::try_from(offset).unwrap_or(usize::MAX);
        while let Some(chunk) = inner.chunks.get(follower.chunk) {
            if left < chunk.len() {
                break;
            }
            left -= chunk.len();
            follower.chunk += 1;
        }
        // Behind the chunks in memory the file is read by offset.
        follower.skip = if follower.chunk < inner.chunks.len() { left } else { 0 };
        Ok(follower)
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
                    self.skip = 0;
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
        if inner.timings.attempt != self.attempt {
            return Look::Ready(Next::End(End::Broken(replaced(self.attempt))));
        }
        if !inner.is_shown {
            return match &inner.end {
                Some(end) => Look::Ready(Next::End(end.clone())),
                None => Look::Wait,
            };
        }
        if let Some(chunk) = inner.chunks.get(self.chunk) {
            return Look::Ready(Next::Bytes(chunk.slice(self.skip..)));
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

/// What a follower is told whose attempt is not the job's any more.
fn replaced(attempt: i64) -> Refusal {
    let text = format!(
        "attempt {attempt} ended without a whole answer and the job is tried again; what came of it is void"
    );
    Refusal::new(409, text)
}

fn unreadable(fault: &std::io::Error) -> Refusal {
    Refusal::new(500, format!("the kept answer cannot be read: {fault}"))
}
