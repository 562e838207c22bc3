//! A receiver of webhooks that keeps a journal of every call and fails in every way a test asks for.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::DEADLINE;

/// How a call is answered.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// With a status and further header lines, and a body.
    Status(u16, &'static str),
    /// The same after a while.
    After(Duration, u16),
    /// Never: the connection stays open until foreman closes it.
    Hang,
    /// With a reset.
    Reset,
    /// With bytes that are no HTTP.
    Garbage,
    /// With this status and a body of 10 MB.
    Huge(u16),
}

impl Reply {
    pub(crate) const FINE: Reply = Reply::Status(200, "");

    /// The status that foreman can see.
    fn status(&self) -> Option<u16> {
        match self {
            Reply::Status(status, _) | Reply::After(_, status) | Reply::Huge(status) => {
                Some(*status)
            }
            Reply::Hang | Reply::Reset | Reply::Garbage => None,
        }
    }
}

/// One call, written down before it is answered.
#[derive(Clone)]
pub(crate) struct Call {
    /// Method and target.
    pub(crate) line: String,
    headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// The status it is answered with, if any.
    pub(crate) status: Option<u16>,
}

impl fmt::Debug for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(formatter, "{} {} {:?} {body}", self.line, self.id(), self.status)
    }
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn job(&self) -> String {
        self.json()["job_id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn state(&self) -> String {
        self.json()["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.json()["sequence"].as_u64().unwrap()
    }
}

/// Chooses a reply by the number of the call and the call itself.
type Choose = dyn Fn(usize, &Call) -> Reply + Send + Sync;

/// The receiver. Dropping it closes the port.
pub(crate) struct Receiver {
    pub(crate) addr: SocketAddr,
    world: Arc<World>,
    serving: JoinHandle<()>,
}

struct World {
    journal: Mutex<Vec<Call>>,
    changed: watch::Sender<()>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    choose: Box<Choose>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    /// A receiver that chooses a reply by the number of the call (from 0) and the call itself.
    pub(crate) async fn start(
        choose: impl Fn(usize, &Call) -> Reply + Send + Sync + 'static,
    ) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let world = Arc::new(World {
            journal: Mutex::default(),
            changed: watch::Sender::new(()),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            choose: Box::new(choose),
        });
        let serving = tokio::spawn({
            let world = Arc::clone(&world);
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(count_and_serve(stream, Arc::clone(&world)));
                }
            }
        });
        Receiver { addr, world, serving }
    }

    /// A receiver that takes everything.
    pub(crate) async fn fine() -> Receiver {
        Receiver::start(|_, _| Reply::FINE).await
    }

    /// A URL of it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook?key=secret", self.addr)
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.world.journal.lock().unwrap().clone()
    }

    /// Most connections that were open at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.world.most_at_once.load(Ordering::SeqCst)
    }

    /// Waits until the calls are as wanted.
    pub(crate) async fn wait_until(&self, wanted: impl Fn(&[Call]) -> bool) -> Vec<Call> {
        let mut changed = self.world.changed.subscribe();
        let reached = async {
            while !wanted(&self.calls()) {
                changed.changed().await.unwrap();
            }
        };
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        let calls = self.calls();
        assert!(reached.is_ok(), "the awaited calls never came: {calls:#?}");
        calls
    }

    /// Waits for that many calls.
    pub(crate) async fn wait_for(&self, calls: usize) -> Vec<Call> {
        self.wait_until(|seen| seen.len() >= calls).await
    }
}

async fn count_and_serve(stream: TcpStream, world: Arc<World>) {
    let at_once = world.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    world.most_at_once.fetch_max(at_once, Ordering::SeqCst);
    // A caller that was killed leaves half a call: it is none.
    drop(serve(stream, &world).await);
    world.at_once.fetch_sub(1, Ordering::SeqCst);
}

async fn serve(mut stream: TcpStream, world: &World) -> std::io::Result<()> {
    let call = read(&mut stream).await?;
    let reply = {
        let mut journal = world.journal.lock().unwrap();
        let reply = (world.choose)(journal.len(), &call);
        journal.push(Call { status: reply.status(), ..call });
        reply
    };
    world.changed.send_replace(());
    match reply {
        Reply::Status(status, lines) => answer(&mut stream, status, lines, b"thanks").await,
        Reply::After(pause, status) => {
            tokio::time::sleep(pause).await;
            answer(&mut stream, status, "", b"").await
        }
        Reply::Hang => stream.read_to_end(&mut Vec::new()).await.map(drop),
        Reply::Reset => stream.set_zero_linger(),
        Reply::Garbage => stream.write_all(b"\x16\x03\x01 what is this?\r\n\r\n").await,
        Reply::Huge(status) => answer(&mut stream, status, "", &vec![b'a'; 10_000_000]).await,
    }
}

async fn answer(
    stream: &mut TcpStream,
    status: u16,
    lines: &str,
    body: &[u8],
) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Call> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let length: usize = headers["content-length"].parse().unwrap();
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Call { line, headers, body, status: None })
}
