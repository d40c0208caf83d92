//! One QUIC connection to the server: requests on streams of their own, and the control stream.
//!
//! ```text
//! resolve ─▶ connect (TLS 1.3, both certificates) ─▶ ask ─▶ answer + body
//!                                                  └▶ control: say ◀─▶ hear
//! ```
//! The link knows bytes and frames, not trust: the TLS settings come from `identity`, and nothing that arrives here is
//! believed before `trust` or a hash says so. A peer may send anything, slowly or never: every frame has a bound, every
//! wait a limit, and what trickles is given up ([`pace`]). Dropping a [`Body`] tells the server to stop sending.
//!
//! [`Link::wire`] counts UDP payload bytes both ways, as quinn sees them: handshake, acknowledgements and
//! retransmissions included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use goldsync_proto::refusal::{Refusal, close};
use goldsync_proto::units::{Rate, Span};
use goldsync_proto::wire::{Answer, FrameError, Hello, Request, frame};
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt,
};
use tokio::time::timeout;

use crate::config::{Address, Patience};

use pace::Pace;

mod body;
mod control;
mod pace;

pub use body::Body;
pub use control::{Control, Ear, Mouth};

/// Milliseconds that a last word may take to be sent.
const CLOSE_TRIES: u32 = 100;

/// How long one address may take for its handshake, and the name service for its answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Silence after which a connection counts as dead, and how often an idle one says that it is alive. 25 s keeps the
/// mapping of common routers (30 s) open.
const IDLE: Duration = Duration::from_secs(90);
const KEEP_ALIVE: Duration = Duration::from_secs(25);

/// What may be under way: 1 Gbit/s at 64 ms for one stream, twice that for all.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const SOCKET_BUFFER: libc::c_int = 8 << 20;

/// Why the server could not be reached, or did not give what was asked for. Exit code 4, but for what is not trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The name leads nowhere.
    #[error("{server}: the name cannot be resolved: {why}; check `server` in the configuration and the name service")]
    Resolve {
        /// As configured.
        server: String,
        /// Why not.
        why: String,
    },
    /// No socket, or settings that QUIC does not take.
    #[error("{server}: {why}")]
    Local {
        /// As configured.
        server: String,
        /// What failed.
        why: String,
    },
    /// No handshake.
    #[error(
        "{server} cannot be reached: {why}; check that goldsync serve runs there and that UDP is let through, in packets of 1200 bytes"
    )]
    Unreachable {
        /// As configured.
        server: String,
        /// The last address and why it failed.
        why: String,
    },
    /// Who answers is not the server that we were enrolled with, or that the token names. Exit code 3.
    #[error(
        "{server}: who answers there is not trusted: {why}; this node, or its token, is of another fleet, or somebody is in between"
    )]
    Untrusted {
        /// As configured.
        server: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The server does not take our certificate, or no handshake is possible.
    #[error("{server}: the handshake was refused: {why}")]
    Handshake {
        /// As configured.
        server: String,
        /// By whom and why.
        why: String,
    },
    /// The connection was there and is no more.
    #[error("{server}: the connection was lost: {why}")]
    Lost {
        /// As configured.
        server: String,
        /// Why.
        why: String,
    },
    /// The server closed the connection and said why.
    #[error("{server} closed the connection: {}", closed(*code, reason))]
    Closed {
        /// As configured.
        server: String,
        /// One of `refusal::close`.
        code: u64,
        /// Its words.
        reason: String,
    },
    /// Silence where bytes were due.
    #[error("{server}: nothing arrived for {} while {what} was due; the connection or the server is stuck", Span(*silence))]
    Stalled {
        /// As configured.
        server: String,
        /// What was waited for.
        what: &'static str,
        /// `limits.silence`
        silence: Duration,
    },
    /// Bytes that trickle.
    #[error(
        "{server}: slow retrieval: {rate} B/s arrived while {what} was due, and `limits.slowest` is {slowest}; the line is overloaded, or somebody \
         on it holds this node back: try another network, or lower the limit if the line is no faster"
    )]
    Slow {
        /// As configured.
        server: String,
        /// What was waited for.
        what: &'static str,
        /// Bytes in a second.
        rate: u64,
        /// `limits.slowest`
        slowest: Rate,
    },
    /// The peer broke the protocol.
    #[error("{server} does not keep to the protocol: {why}; do the versions of agent and server fit?")]
    Protocol {
        /// As configured.
        server: String,
        /// In what way.
        why: String,
    },
    /// The server's answer is no.
    #[error("{server} refused: {refusal}")]
    Refused {
        /// As configured.
        server: String,
        /// Its reason.
        refusal: Refusal,
    },
}

impl LinkError {
    /// The process's exit code, as documented in `--help`.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Untrusted { .. }) { 3 } else { 4 }
    }

    /// Whether the server no longer takes this node: trying again soon would not help.
    pub fn revoked(&self) -> bool {
        use goldsync_proto::refusal::Reason;
        match self {
            Self::Closed { code, .. } => *code == u64::from(close::REVOKED) || *code == u64::from(close::NOT_ENROLLED),
            Self::Refused { refusal, .. } => matches!(refusal.reason, Reason::Revoked | Reason::NotEnrolled),
            _ => false,
        }
    }
}

fn closed(code: u64, reason: &str) -> String {
    let meaning = match u32::try_from(code) {
        Ok(close::DONE) => "done",
        Ok(close::NOT_ENROLLED) => "this node is not enrolled there; enrol it (`goldsync-agent enroll`)",
        Ok(close::REVOKED) => "this node was revoked; enrol it again with a new token if that was a mistake",
        Ok(close::PROTOCOL) => "it says that this agent broke the protocol",
        Ok(close::SHUTDOWN) => "it is shutting down",
        Ok(close::REPLACED) => "a newer connection of this node took its place",
        _ => "for a reason that this version does not know",
    };
    if reason.is_empty() { meaning.to_owned() } else { format!("{meaning} ({reason})") }
}

/// UDP payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Wire {
    /// From the server.
    pub received: u64,
    /// To the server.
    pub sent: u64,
}

impl Wire {
    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { received: self.received.saturating_sub(earlier.received), sent: self.sent.saturating_sub(earlier.sent) }
    }
}

/// Who is at the other end, and what it is put up with.
#[derive(Debug)]
struct Peer {
    /// As configured.
    name: String,
    patience: Patience,
    pace: Pace,
}

impl Peer {
    fn server(&self) -> String {
        self.name.clone()
    }
}

/// A connection to the server.
#[derive(Clone, Debug)]
pub struct Link {
    connection: Connection,
    peer: Arc<Peer>,
    handshake: Wire,
}

impl Link {
    /// Connects to `server`. `config` names the ALPN, pins the fleet's CA and holds the node's certificate; how bytes are
    /// moved is set here; how long it may take, the configuration says.
    pub async fn connect(
        server: &Address,
        mut config: quinn::ClientConfig,
        patience: Patience,
    ) -> Result<Self, LinkError> {
        let peer = Arc::new(Peer { name: server.to_string(), patience, pace: Pace::new(patience.slowest) });
        let local = |why: String| LinkError::Local { server: peer.server(), why };
        config.transport_config(Arc::new(transport()));
        let mut last = None;
        for address in resolve(server).await? {
            let endpoint = endpoint(address.ip()).map_err(|error| local(format!("no UDP socket: {error}")))?;
            let connecting = endpoint
                .connect_with(config.clone(), address, &server.host)
                .map_err(|error| local(format!("cannot connect to {address}: {error}")))?;
            match timeout(CONNECT, connecting).await {
                Ok(Ok(connection)) => {
                    let mut link = Self { connection, peer, handshake: Wire::default() };
                    link.handshake = link.wire();
                    return Ok(link);
                }
                Ok(Err(error)) => last = Some(handshake_error(&peer.name, address, error)),
                Err(_) => {
                    let why = format!("no answer from {address} within {} s", CONNECT.as_secs());
                    last = Some(LinkError::Unreachable { server: peer.server(), why });
                }
            }
        }
        let nothing = || LinkError::Resolve { server: peer.server(), why: "it has no address".into() };
        Err(last.unwrap_or_else(nothing))
    }

    /// The server, as configured: for messages.
    pub fn server(&self) -> &str {
        &self.peer.name
    }

    /// Asks one thing, on a stream of its own. [`Answer::Refused`] comes back as [`LinkError::Refused`].
    pub async fn ask(&self, request: &Request) -> Result<(Answer, Body), LinkError> {
        self.ask_with(request, &[]).await
    }

    /// Asks with a body behind the request.
    pub async fn ask_with(&self, request: &Request, bytes: &[u8]) -> Result<(Answer, Body), LinkError> {
        let (mut send, recv) = self.open(request).await?;
        write(&mut send, bytes, &self.peer).await?;
        // A failure to finish means that the peer has had enough; its answer says why.
        let _ = send.finish();
        let mut body = Body::new(recv, self.peer.clone());
        match body.frame("the answer").await? {
            Answer::Refused { refusal } => Err(LinkError::Refused { server: self.peer.server(), refusal }),
            answer => Ok((answer, body)),
        }
    }

    /// Makes the control stream: introduces the node and waits for the welcome.
    pub async fn control(&self, hello: Hello) -> Result<Control, LinkError> {
        let (send, recv) = self.open(&Request::Control { hello }).await?;
        Control::begin(send, Body::new(recv, self.peer.clone()), self.peer.clone()).await
    }

    /// The address of this machine that the connection goes out from, if the system tells.
    pub fn local_ip(&self) -> Option<std::net::IpAddr> {
        self.connection.local_ip()
    }

    /// Bytes both ways since the connection began.
    pub fn wire(&self) -> Wire {
        let stats = self.connection.stats();
        Wire { received: stats.udp_rx.bytes, sent: stats.udp_tx.bytes }
    }

    /// What of [`Link::wire`] the handshake took.
    pub fn handshake(&self) -> Wire {
        self.handshake
    }

    /// Whether anything was asked on it. Its bytes do not tell: QUIC ends its handshake, and acknowledges, when it likes.
    pub fn was_asked(&self) -> bool {
        self.connection.stats().frame_tx.stream > 0
    }

    /// Waits until the connection is gone, and says why.
    pub async fn closed(&self) -> LinkError {
        lost(&self.peer.name, self.connection.closed().await)
    }

    /// Ends the connection in good order, and waits until that has been sent. Not for QUIC's own end: that is three times as long
    /// as an answer may take, and nobody here would still hear it.
    pub async fn close(&self) {
        let sent = || self.connection.stats().udp_tx.datagrams;
        let before = sent();
        self.connection.close(VarInt::from_u32(close::DONE), b"");
        for _ in 0..CLOSE_TRIES {
            if sent() > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends the connection without waiting. What still uses it gets [`LinkError::Lost`].
    pub fn close_now(&self) {
        self.connection.close(VarInt::from_u32(close::DONE), b"");
    }

    async fn open(&self, request: &Request) -> Result<(quinn::SendStream, quinn::RecvStream), LinkError> {
        let frame = frame(request).map_err(|error| broken(&self.peer.name, &error))?;
        let silence = self.peer.patience.silence;
        let stalled = |_| LinkError::Stalled { server: self.peer.server(), what: "a stream", silence };
        let opened = timeout(silence, self.connection.open_bi()).await.map_err(stalled)?;
        let (mut send, recv) = opened.map_err(|error| lost(&self.peer.name, error))?;
        write(&mut send, &frame, &self.peer).await?;
        Ok((send, recv))
    }
}

/// Writes a frame or a body; the peer must take it in time.
async fn write(send: &mut quinn::SendStream, bytes: &[u8], peer: &Peer) -> Result<(), LinkError> {
    let silence = peer.patience.silence;
    match timeout(silence, send.write_all(bytes)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(quinn::WriteError::ConnectionLost(error))) => Err(lost(&peer.name, error)),
        // The peer wants no more of it, but may still answer; the answer's absence is an error of its own.
        Ok(Err(quinn::WriteError::Stopped(_))) => Ok(()),
        Ok(Err(error)) => Err(LinkError::Lost { server: peer.server(), why: error.to_string() }),
        Err(_) => Err(LinkError::Stalled { server: peer.server(), what: "room for a request", silence }),
    }
}

fn broken(server: &str, error: &FrameError) -> LinkError {
    LinkError::Protocol { server: server.to_owned(), why: error.to_string() }
}

fn lost(server: &str, error: ConnectionError) -> LinkError {
    let server = server.to_owned();
    match error {
        ConnectionError::ApplicationClosed(closed) => {
            let reason = String::from_utf8_lossy(&closed.reason).chars().take(200).collect();
            LinkError::Closed { server, code: closed.error_code.into_inner(), reason }
        }
        ConnectionError::LocallyClosed => LinkError::Lost { server, why: "it was closed on this side".into() },
        ConnectionError::ConnectionClosed(ref closed) if u64::from(closed.error_code) >> 8 == 1 => {
            LinkError::Handshake { server, why: alert(&error) }
        }
        other => LinkError::Lost { server, why: other.to_string() },
    }
}

/// A TLS 1.3 server judges the client's certificate after the client's handshake is complete: such a refusal arrives
/// on the open connection.
fn alert(error: &ConnectionError) -> String {
    let ConnectionError::ConnectionClosed(closed) = error else { return error.to_string() };
    match u64::from(closed.error_code) & 0xff {
        42 | 46 => "the server does not accept this node's certificate; enrol the node again".into(),
        44 => "this node's certificate was revoked; enrol it again with a new token if that was a mistake".into(),
        45 => "this node's certificate has expired; check the clock, or enrol the node again".into(),
        48 => "this node's certificate is of another fleet; enrol the node with this server".into(),
        116 => "the server asks for a certificate and this node has none; enrol it (`goldsync-agent enroll`)".into(),
        120 => "the server speaks no protocol version that this agent knows; update the older of the two".into(),
        _ => error.to_string(),
    }
}

fn handshake_error(server: &str, address: SocketAddr, error: ConnectionError) -> LinkError {
    match error {
        ConnectionError::TimedOut => {
            LinkError::Unreachable { server: server.to_owned(), why: format!("no answer from {address}") }
        }
        // Our own verifier turned the server's certificate down: the TLS alerts 42 to 48, about certificates, and 51, about
        // signatures, made on this side.
        ConnectionError::TransportError(error) if matches!(u64::from(error.code), 0x12a..=0x130 | 0x133) => {
            LinkError::Untrusted { server: server.to_owned(), why: format!("{address}: {error}") }
        }
        ConnectionError::TransportError(error) => {
            LinkError::Handshake { server: server.to_owned(), why: format!("{address}: {error}") }
        }
        other => lost(server, other),
    }
}

async fn resolve(server: &Address) -> Result<Vec<SocketAddr>, LinkError> {
    let fail = |why: String| LinkError::Resolve { server: server.to_string(), why };
    let found = timeout(CONNECT, tokio::net::lookup_host((server.host.as_str(), server.port))).await;
    let found = found.map_err(|_| fail(format!("no answer within {} s", CONNECT.as_secs())))?;
    let mut addresses: Vec<_> = found.map_err(|error| fail(error.to_string()))?.collect();
    addresses.dedup();
    // More than a few would keep a node waiting longer than it would take to be told that something is wrong.
    addresses.truncate(4);
    Ok(addresses)
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        // The server opens none; an agent that let it could be made to hold them.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        // An agent sends requests and acknowledgements. Probing for larger packets would cost more than it could ever
        // save: a whole check has to fit 2 KiB. What the server sends is as large as the server finds possible.
        .mtu_discovery_config(None);
    config
}

/// A socket of the right family, with buffers that hold what arrives while a thread is busy with hashing.
fn endpoint(remote: IpAddr) -> std::io::Result<Endpoint> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
    grow_buffer(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF);
    grow_buffer(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF);
    let mut config = EndpointConfig::default();
    config.cid_generator(|| Box::new(Nameless));
    Endpoint::new(config, None, socket, Arc::new(TokioRuntime))
}

/// One connection a socket: the server's packets need not name it, which saves 8 bytes of each.
#[derive(Debug)]
struct Nameless;

impl quinn::ConnectionIdGenerator for Nameless {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&[])
    }

    fn cid_len(&self) -> usize {
        0
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// With the right to (root), beyond the system's limit; without it, up to that limit. Never an error: it is only speed.
fn grow_buffer(socket: &std::net::UdpSocket, forced: libc::c_int, plain: libc::c_int) {
    use std::os::fd::AsRawFd;
    let set = |option: libc::c_int| {
        let size = SOCKET_BUFFER;
        // SAFETY: the descriptor is open, and the option's value is a c_int of the length given.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        }
    };
    if set(forced) != 0 {
        set(plain);
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
