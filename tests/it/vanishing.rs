//! Clients whose host disappears: no FIN, no reset, no answer to anything. The network is one of the test's own, from which
//! it takes the clients' address away.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use stub_ollama::{Stub, StubConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::client::{chat, chat_unstreamed};
use crate::harness::namespace::{Changes, is_inside};
use crate::harness::{Foreman, stub_config};

const HERE: &str = "10.77.0.1";
const CLIENTS: &str = "10.77.0.2";

/// The promise is a minute. A loaded machine may notice later what the kernel tells in time.
const NOTICED_WITHIN: Duration = Duration::from_secs(120);

/// One waits in silence, so that only a probe can tell; one waits with bytes that nobody acknowledges, so that no probe is
/// sent; one reads its answer in mid-stream.
#[tokio::test]
async fn jobs_of_clients_whose_host_vanishes_are_cancelled() {
    let name = "vanishing::jobs_of_clients_whose_host_vanishes_are_cancelled";
    if !is_inside(name, Changes::Addresses) {
        return;
    }
    ip(&["link", "set", "lo", "up"]);
    ip(&["addr", "add", &format!("{HERE}/32"), "dev", "lo"]);
    ip(&["addr", "add", &format!("{CLIENTS}/32"), "dev", "lo"]);
    let config = StubConfig { token_time: Duration::from_millis(100), ..stub_config(&["a"]) };
    let stub = Stub::start(config).await;
    let tweak = |raw: &mut foreman::config::Raw| {
        raw.addr = Some(format!("{HERE}:0"));
        raw.waiting_interval = Some("1s".to_owned());
    };
    let foreman = Foreman::start_with(&stub, tweak).await.up().await;
    // Each would run for hours: one that begins before its client is missed is cancelled, too.
    let long = |mut body: Value| {
        body["options"] = json!({ "num_predict": 100_000 });
        body.to_string()
    };
    let mut reading = asked(foreman.addr, &long(chat("a", "reads"))).await;
    hears(&mut reading).await;
    let silent = asked(foreman.addr, &long(chat_unstreamed("a", "waits in silence"))).await;
    let mut waiting = asked(foreman.addr, &long(chat("a", "waits with bytes"))).await;
    hears(&mut waiting).await;
    foreman.wait_for_depth(2).await;
    ip(&["addr", "del", &format!("{CLIENTS}/32"), "dev", "lo"]);
    let cancelled = async {
        while foreman.status().await["since_start"]["cancelled"] != 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let noticed = tokio::time::timeout(NOTICED_WITHIN, cancelled).await;
    assert!(noticed.is_ok(), "{:#}", foreman.status().await);
    assert!(stub.counts().client_gone >= 1, "the generation was stopped");
    drop((reading, silent, waiting));
}

/// Sends a chat from the address that will vanish.
async fn asked(foreman: SocketAddr, body: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{CLIENTS}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(foreman).await.unwrap();
    let head = format!(
        "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

/// Waits for the first bytes of an answer.
async fn hears(stream: &mut TcpStream) {
    let mut bytes = [0; 1024];
    assert!(stream.read(&mut bytes).await.unwrap() > 0);
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "{arguments:?}");
}
