//! Detects TCP peers that vanish without closing: a host that sleeps, loses its network or its power sends no FIN, and a
//! connection to it stays open for ever.
//!
//! The kernel does the work: it probes an idle connection, and gives up one whose bytes are not acknowledged. Either way
//! the connection fails as if the peer had reset it. Called by `http` for clients and by `ollama` for the upstream.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Silence before the first probe. Go's HTTP server, and so Ollama, waits as long.
const PROBE_AFTER: Duration = Duration::from_secs(15);

/// Between probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered probes after which the peer counts as gone. A Wi-Fi that roams loses one or two.
const PROBES: u32 = 3;

/// How long bytes may stay unacknowledged, or the peer's receive window closed: as long as an idle peer may be silent, probes
/// included. nginx and haproxy give a client that takes nothing about as long.
///
/// While bytes are outstanding the kernel sends no probes, and by itself it would retransmit for a quarter of an hour.
const UNACKNOWLEDGED_MS_MAX: u32 = 45_000;

const _: () = assert!(
    PROBE_AFTER.as_millis() + PROBE_INTERVAL.as_millis() * PROBES as u128
        == UNACKNOWLEDGED_MS_MAX as u128
);

/// Has the kernel end this connection within a minute of its peer's disappearance.
///
/// # Errors
/// If the system refuses an option; the connection works all the same.
pub fn detect_vanished_peer(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    if can_vanish(stream.peer_addr()?.ip()) {
        limit_unacknowledged(stream)?;
    }
    Ok(())
}

/// Whether a peer can vanish with bytes outstanding. Not on this machine: its kernel closes what a dead process had open.
/// The limit would only hurt there: the window of a loopback connection reopens in steps of 64 KiB, so a live client that
/// reads slowly keeps it closed for minutes.
fn can_vanish(peer: IpAddr) -> bool {
    !peer.to_canonical().is_loopback()
}

#[cfg(target_os = "linux")]
fn limit_unacknowledged(stream: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS_MAX)?)
}

/// Other systems have no such option per connection.
#[cfg(not(target_os = "linux"))]
fn limit_unacknowledged(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_idle_peer_is_probed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        detect_vanished_peer(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), PROBE_AFTER);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), PROBE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), PROBES);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn unacknowledged_bytes_are_limited_where_the_peer_is_another_machine() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        detect_vanished_peer(&stream).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 0, "a slow local reader is kept");
        limit_unacknowledged(&stream).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), UNACKNOWLEDGED_MS_MAX);
        for (peer, can) in [("::ffff:127.0.0.1", false), ("::1", false), ("192.168.1.7", true)] {
            assert_eq!(can_vanish(peer.parse().unwrap()), can, "{peer}");
        }
    }
}
