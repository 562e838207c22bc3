//! An upstream whose answers a test writes byte by byte. It answers foreman's own calls by itself; a request that
//! carries an `X-Script` header is handed to the test with its connection.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::DEADLINE;

/// Put on a request to have the test answer it once its body was read.
pub(crate) const SCRIPTED: &str = "X-Script: body";

/// Put on a request to have the test answer it as soon as its head was read.
pub(crate) const SCRIPTED_HEAD: &str = "X-Script: head";

/// The upstream. Dropping it closes the port.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    asked: mpsc::Receiver<Asked>,
    routes: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

/// A request that waits for the test to answer it.
pub(crate) struct Asked {
    /// Request line and headers, as they came.
    pub(crate) head: String,
    /// The body: all of it, or for [`SCRIPTED_HEAD`] what came with the head.
    pub(crate) body: Vec<u8>,
    pub(crate) stream: TcpStream,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What the upstream says of itself.
#[derive(Clone)]
struct World {
    tags: Value,
    resident: Arc<Mutex<Vec<String>>>,
    routes: Arc<Mutex<Vec<String>>>,
    asked: mpsc::Sender<Asked>,
}

impl Upstream {
    /// An upstream with this `/api/tags`.
    pub(crate) async fn start(tags: Value) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, asked) = mpsc::channel(64);
        let routes: Arc<Mutex<Vec<String>>> = Arc::default();
        let world =
            World { tags, resident: Arc::default(), routes: Arc::clone(&routes), asked: sender };
        let serving = tokio::spawn(async move {
            // The connections end with this task, so that the drop closes them too.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                connections.spawn(serve(stream, world.clone()));
            }
        });
        Upstream { addr, asked, routes, serving }
    }

    /// An upstream with these chat models.
    pub(crate) async fn with_models(names: &[&str]) -> Upstream {
        let entry = |name: &&str| {
            json!({ "name": format!("{name}:latest"), "model": format!("{name}:latest"),
                "digest": format!("{name:0>64}"), "capabilities": ["completion"] })
        };
        let models: Vec<Value> = names.iter().map(entry).collect();
        Upstream::start(json!({ "models": models })).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Has it say that it takes a POST on this path.
    pub(crate) fn has_route(&self, path: &str) {
        self.routes.lock().unwrap().push(path.to_owned());
    }

    /// The next scripted request.
    pub(crate) async fn next(&mut self) -> Asked {
        timeout(DEADLINE, self.asked.recv()).await.expect("no request came").unwrap()
    }

    /// Whether a scripted request waits.
    pub(crate) fn has_next(&mut self) -> bool {
        !self.asked.is_empty()
    }
}

impl Asked {
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    pub(crate) fn headers(&self) -> Vec<(&str, &str)> {
        let lines = self.head.split("\r\n").skip(1);
        lines.filter_map(|line| line.split_once(": ")).collect()
    }

    /// Returns when foreman has closed the connection.
    pub(crate) async fn closed(mut self) {
        let mut rest = Vec::new();
        let read = timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await;
        drop(read.expect("the connection stayed open"));
    }
}

async fn serve(mut stream: TcpStream, world: World) -> io::Result<()> {
    let mut ahead = Vec::new();
    loop {
        let Some(end) = read_head(&mut stream, &mut ahead).await? else { return Ok(()) };
        let head = String::from_utf8_lossy(&ahead[..end]).into_owned();
        let mut body: Vec<u8> = ahead.split_off(end);
        ahead.clear();
        let lower = head.to_ascii_lowercase();
        if !lower.contains(&SCRIPTED_HEAD.to_ascii_lowercase()) {
            read_body(&mut stream, &lower, &mut body).await?;
        }
        if lower.contains("\r\nx-script:") {
            world.heed_unload(&body);
            drop(world.asked.send(Asked { head, body, stream }).await);
            return Ok(());
        }
        if world.has_post(&head) {
            let refusal =
                "HTTP/1.1 405 Method Not Allowed\r\nAllow: POST\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(refusal.as_bytes()).await?;
            continue;
        }
        let (status, answer) = match world.answer(&head, &body) {
            Some(value) => ("200 OK", value.to_string()),
            None => ("404 Not Found", "404 page not found".to_owned()),
        };
        let length = answer.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8");
        let bytes = format!("{head}\r\nContent-Length: {length}\r\n\r\n{answer}");
        stream.write_all(bytes.as_bytes()).await?;
    }
}

/// Reads until a head is there; returns where it ends.
async fn read_head(stream: &mut TcpStream, ahead: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(at) = ahead.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        if stream.read_buf(ahead).await? == 0 {
            return Ok(None);
        }
    }
}

/// Reads the body that belongs to this head, chunks and all as they are.
async fn read_body(stream: &mut TcpStream, head: &str, body: &mut Vec<u8>) -> io::Result<()> {
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |length| length.parse().unwrap());
    let is_chunked = head.contains("\r\ntransfer-encoding: chunked");
    while body.len() < length || (is_chunked && !body.ends_with(b"0\r\n\r\n")) {
        if stream.read_buf(body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

impl World {
    /// Whether this asks for the methods of a path that takes a POST.
    fn has_post(&self, head: &str) -> bool {
        let mut words = head.split(' ');
        let is_options = words.next() == Some("OPTIONS");
        let path = words.next().unwrap_or_default();
        is_options && self.routes.lock().unwrap().iter().any(|known| known == path)
    }

    /// A client's unload takes the model out of ps, whatever the test answers to it.
    fn heed_unload(&self, body: &[u8]) {
        let asked: Value = serde_json::from_slice(body).unwrap_or_default();
        if asked["keep_alive"] == 0 {
            let model = asked["model"].as_str().unwrap_or_default();
            let is_it = |name: &String| name.split(':').next() == Some(model);
            self.resident.lock().unwrap().retain(|name| !is_it(name));
        }
    }

    /// What Ollama would answer to one of foreman's own calls; `None` is a 404.
    fn answer(&self, head: &str, body: &[u8]) -> Option<Value> {
        let mut resident = self.resident.lock().unwrap();
        match head.split(' ').nth(1).unwrap_or_default() {
            "/" => Some(json!("Ollama is running")),
            "/api/version" => Some(json!({ "version": "0.32.0" })),
            "/api/tags" => Some(self.tags.clone()),
            "/api/ps" => {
                let is_resident =
                    |entry: &&Value| resident.iter().any(|name| entry["name"] == **name);
                let installed = self.tags["models"].as_array().into_iter().flatten();
                Some(json!({ "models": installed.filter(is_resident).collect::<Vec<_>>() }))
            }
            "/api/generate" => {
                let asked: Value = serde_json::from_slice(body).unwrap();
                let model = asked["model"].as_str().unwrap().to_owned();
                resident.retain(|name| *name != model);
                let is_load = asked["keep_alive"] == -1;
                resident.extend(is_load.then(|| model.clone()));
                let reason = if is_load { "load" } else { "unload" };
                Some(json!({ "model": model, "response": "", "done": true, "done_reason": reason }))
            }
            _ => None,
        }
    }
}
