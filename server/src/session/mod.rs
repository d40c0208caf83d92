//! One node's connection: who it is, what it may ask, and how much at once.
//!
//! ```text
//! UDP ─▶ handshake ─▶ [identify]  no certificate, unknown, revoked ─▶ Refused, closed
//!                        │
//!                        ├─ ALPN goldsync-enrol/1 ─▶ Enrol, nothing else
//!                        └─ ALPN goldsync/1 ───────▶ one task a stream: Renew · Control · Trust · Object · Plan · Blocks · Grains · Nearest · Trees
//! ```
//! One task owns a connection, and one task each of its streams; they end with the connection. The transport grants a
//! node a few streams and small windows towards us, so that what it can make the server hold is bounded before any of
//! its bytes are looked at; what it asks for is read and sent a piece at a time. Nothing that a peer sends ends in a
//! panic or in more than its own connection's end.
//!
//! Not here: what may be *booted*. Everything a node gets, it proves by signed metadata.

mod bulk;
mod control;
mod enrol;
mod frame;
mod identify;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use goldsync_proto::grain::MASKS_WIRE_MAX;
use goldsync_proto::refusal::{Reason, Refusal, close};
use goldsync_proto::sketch::SKETCH_MAX;
use goldsync_proto::wire::{ALPN_ENROL, Answer, Request, unframe};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::authority::{AuthorityError, ServerCertificate};
use crate::config::Nodes;
use crate::hub::Hub;
use crate::peer::canonical;

pub(crate) use socket::no_ipv6;

use frame::StreamError;
use identify::Peer;

/// Handshakes under way above which a new peer must first prove that its address is its own.
const HANDSHAKES_UNPROVEN: usize = 256;

/// Requests on a connection that enrols: the one, and a second try.
const ENROL_REQUESTS: usize = 2;

/// What a node may have under way towards us on one stream, and on all of them: requests and reports are small.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// What we have under way towards a node: 8 MiB is 64 ms at 1 Gbit/s.
const SEND_WINDOW: u64 = 8 << 20;

/// Why the QUIC listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen on {address} (UDP): {error}; change `listen`, or stop what listens there")]
    Bind {
        /// As configured.
        address: std::net::SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A value that QUIC cannot express.
    #[error("nodes.idle_timeout: {0}")]
    IdleTimeout(#[from] quinn::VarIntBoundsExceeded),
}

/// Binds the listener. Nothing is answered before [`serve`].
pub fn listen(config: &crate::config::Config, certificate: &ServerCertificate) -> Result<Endpoint, ListenError> {
    let bind = |error| ListenError::Bind { address: config.listen, error };
    let server = server_config(&config.nodes, certificate)?;
    let socket = socket::bind(config.listen).map_err(bind)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Endpoint::new(quinn::EndpointConfig::default(), Some(server), socket, runtime).map_err(bind)
}

fn server_config(nodes: &Nodes, certificate: &ServerCertificate) -> Result<quinn::ServerConfig, ListenError> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(nodes.streams_per_connection.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        // Its probes are full packets, sent as soon as a connection is up: three of them cost a node that is up to date more
        // than all the rest. Packets of 1200 bytes instead of 1452 cost a download half a percent.
        .mtu_discovery_config(None)
        .keep_alive_interval(Some(nodes.keep_alive.0))
        .max_idle_timeout(Some(nodes.idle_timeout.0.try_into()?));
    let mut config = certificate.quic_config()?;
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Answers nodes until `quit`, then lets what is under way end, for as long as `nodes.drain` allows.
pub async fn serve(hub: Arc<Hub>, endpoint: Endpoint, quit: CancellationToken) {
    let places = Arc::new(Semaphore::new(hub.config.nodes.connections_max as usize));
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            () = quit.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        if endpoint.open_connections() > HANDSHAKES_UNPROVEN + hub.roster.connected()
            && !incoming.remote_address_validated()
        {
            // Not worth a line in the log: the peer simply tries again.
            let _ = incoming.retry();
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (hub, quit) = (hub.clone(), quit.clone());
        connections.spawn(async move {
            connection(hub, incoming, quit).await;
            drop(place);
        });
    }
    let drain = hub.config.nodes.drain.0;
    let drained = timeout(drain, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(left = connections.len(), "connections are cut off: `nodes.drain` is over");
    }
    endpoint.close(close::SHUTDOWN.into(), b"the server is going down");
    connections.shutdown().await;
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

/// A connection and what its tasks need.
struct Session {
    hub: Arc<Hub>,
    connection: Connection,
    peer: Peer,
    quit: CancellationToken,
}

impl Session {
    /// The time that a peer has for each step.
    fn patience(&self) -> Duration {
        self.hub.config.nodes.request_timeout.0
    }

    /// Where the peer is, for the audit log.
    fn from(&self) -> String {
        canonical(self.connection.remote_address()).to_string()
    }
}

async fn connection(hub: Arc<Hub>, incoming: Incoming, quit: CancellationToken) {
    let from = canonical(incoming.remote_address());
    let patience = hub.config.nodes.request_timeout.0;
    let connection = match timeout(patience, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%from, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%from, "handshake took too long"),
    };
    let enrols = identify::protocol(&connection).as_deref() == Some(ALPN_ENROL);
    let peer = if enrols { Ok(Peer::Stranger) } else { identify::node(&hub, &connection).await };
    match peer {
        Ok(peer) => Arc::new(Session { hub, connection, peer, quit }).run().await,
        Err(refusal) => {
            tracing::info!(%from, %refusal, "connection refused");
            turn_away(&connection, refusal, patience).await;
        }
    }
}

/// Answers the first request with a refusal, so that the node can say why, and closes.
async fn turn_away(connection: &Connection, refusal: Refusal, patience: Duration) {
    let code = match refusal.reason {
        Reason::Revoked => close::REVOKED,
        Reason::NotEnrolled => close::NOT_ENROLLED,
        Reason::Busy | Reason::Internal => close::SHUTDOWN,
        _ => close::PROTOCOL,
    };
    let reason = refusal.to_string();
    let tell = async {
        let (mut send, mut recv) = connection.accept_bi().await.ok()?;
        frame::read_frame(&mut recv, patience).await.ok()?;
        frame::write_frame(&mut send, &Answer::Refused { refusal }, patience).await.ok()?;
        send.finish().ok()?;
        send.stopped().await.ok()
    };
    let _ = timeout(patience, tell).await;
    // A reason must fit into one packet.
    connection.close(code.into(), reason.get(..200).unwrap_or(&reason).as_bytes());
}

/// What follows an answer's frame.
enum Body {
    None,
    Pieces(BoxStream<'static, Result<Bytes, String>>),
}

/// An answer, whole.
struct Reply {
    answer: Answer,
    body: Body,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { answer, body: Body::None }
    }
}

impl Session {
    async fn run(self: Arc<Self>) {
        let mut streams = JoinSet::new();
        let mut left = if self.peer.is_node() { usize::MAX } else { ENROL_REQUESTS };
        loop {
            let stream = tokio::select! {
                () = self.quit.cancelled() => break,
                Some(_) = streams.join_next() => continue,
                () = self.lonely(left) => break,
                stream = self.connection.accept_bi(), if left > 0 => stream,
            };
            let Ok((send, recv)) = stream else { break };
            left -= 1;
            streams.spawn(self.clone().stream(send, recv));
        }
        // What is under way may end; `serve` bounds the time for all connections together.
        while streams.join_next().await.is_some() {}
        if self.quit.is_cancelled() {
            self.connection.close(close::SHUTDOWN.into(), b"the server is going down");
        }
        self.connection.close(close::DONE.into(), b"");
    }

    /// A connection that only enrols is not kept.
    async fn lonely(&self, left: usize) {
        match (self.peer.is_node(), left) {
            (true, _) => std::future::pending().await,
            (false, 0) => {}
            (false, _) => tokio::time::sleep(2 * self.patience()).await,
        }
    }

    async fn stream(self: Arc<Self>, mut send: SendStream, mut recv: RecvStream) {
        let under_way = match &self.peer {
            Peer::Node(node) => Some(node.admitted.stream()),
            Peer::Stranger => None,
        };
        let request = match self.request(&mut recv).await {
            Ok(request) => request,
            Err(error) => {
                if let Some(refusal) = error.refusal() {
                    tracing::debug!(from = self.from(), %error, "bad request");
                    self.refuse(&mut send, refusal).await;
                }
                return;
            }
        };
        if let Request::Control { hello } = request {
            drop(under_way);
            return self.control(hello, send, recv).await;
        }
        let answer = match self.body(&request, &mut recv).await {
            Ok(body) => self.answer(request, &body).await,
            Err(error) => match error.refusal() {
                Some(refusal) => Err(refusal),
                None => return,
            },
        };
        match answer {
            Ok(reply) => self.reply(&mut send, reply).await,
            Err(refusal) => self.refuse(&mut send, refusal).await,
        }
    }

    async fn request(&self, recv: &mut RecvStream) -> Result<Request, StreamError> {
        let json = frame::read_frame(recv, self.patience()).await?;
        Ok(unframe(&json)?)
    }

    /// The body of a request that has one.
    async fn body(&self, request: &Request, recv: &mut RecvStream) -> Result<Vec<u8>, StreamError> {
        let (length, max) = match request {
            Request::Grains { masks, .. } => (*masks, MASKS_WIRE_MAX),
            Request::Nearest { sketch, .. } => (*sketch, SKETCH_MAX as usize),
            _ => return Ok(Vec::new()),
        };
        frame::read_body(recv, length, max, self.patience()).await
    }

    /// Who may ask what is decided here and nowhere else.
    async fn answer(&self, request: Request, body: &[u8]) -> Result<Reply, Refusal> {
        let (node, request) = match (&self.peer, request) {
            (Peer::Stranger, Request::Enrol { token, csr, name, labels }) => {
                return self.enrol(&token, &csr, &name, &labels).await;
            }
            (Peer::Stranger, _) => {
                let detail = "on ALPN goldsync-enrol/1 a machine can only enrol";
                return Err(Refusal::new(Reason::NotEnrolled, detail));
            }
            (Peer::Node(_), Request::Enrol { .. }) => {
                return Err(Refusal::new(Reason::BadRequest, "enrol goes over ALPN goldsync-enrol/1"));
            }
            (Peer::Node(node), request) => (node, request),
        };
        node.check_time()?;
        match request {
            Request::Renew { csr } => self.renew(node, &csr).await,
            Request::Trust { have, want } => self.trust(&have, &want),
            Request::Object { name, offset, length } => self.object(name, offset, length).await,
            Request::Plan { base, target, prefer } => self.plan(base, target, prefer).await,
            Request::Blocks { image, runs } => self.blocks(image, runs).await,
            Request::GrainHashes { image, seed, width, mask, runs } => {
                self.grain_hashes(image, (seed, width), mask, runs).await
            }
            Request::Grains { image, runs, .. } => self.grains(image, runs, body).await,
            Request::Nearest { target, .. } => self.nearest(target, body).await,
            Request::Trees { image } => self.trees(image),
            _ => Err(Refusal::new(Reason::BadRequest, "this server does not know that request")),
        }
    }

    async fn refuse(&self, send: &mut SendStream, refusal: Refusal) {
        self.reply(send, Answer::Refused { refusal }.into()).await;
    }

    async fn reply(&self, send: &mut SendStream, reply: Reply) {
        match self.try_reply(send, reply).await {
            Ok(()) => {
                let _ = send.finish();
                // Not over before the peer has all of it: a connection that is closed takes with it what is on its way.
                let _ = timeout(self.patience(), send.stopped()).await;
            }
            Err(error) => {
                tracing::debug!(from = self.from(), %error, "answer broken off");
                let _ = send.reset(VarInt::from_u32(close::INTERNAL));
            }
        }
    }

    async fn try_reply(&self, send: &mut SendStream, reply: Reply) -> Result<(), String> {
        let patience = self.patience();
        frame::write_frame(send, &reply.answer, patience).await.map_err(|error| error.to_string())?;
        if let Body::Pieces(mut pieces) = reply.body {
            while let Some(piece) = pieces.next().await {
                frame::write(send, piece?, patience).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}

/// The server's own fault: the log gets the reason, the peer only that there was one.
fn internal(doing: &str, error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "{doing} failed");
    Refusal::new(Reason::Internal, format!("{doing} failed"))
}
