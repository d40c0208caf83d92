//! A server of the fleet's own CA that does not tell the truth.
//!
//! ```text
//! node ──QUIC──▶ liar ──QUIC, as the same node──▶ the fleet's server
//!                 └─ what shall this request's answer be? the truth, the truth bent, other bytes, silence, ...
//! ```
//! It has the server's key: what a thief of the server could do, it can do. It has no operator's key, so that what it says
//! of releases and channels can only be what was signed, or wrong.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use goldsync_agent::identity::Identity;
use goldsync_proto::wire::{ALPN, Answer, FRAME_HEAD, Request, frame, unframe};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::task::JoinSet;

use crate::fleet::Fleet;
use crate::machine::Machine;

/// The longest answer that is taken from the true server.
const ANSWER_MAX: usize = 64 << 20;

/// The truth, changed.
pub type Bend = Box<dyn FnOnce(Answer, Vec<u8>) -> (Answer, Vec<u8>) + Send>;

/// What a request is answered with.
pub enum Say {
    /// What the true server says.
    Truth,
    /// That, changed: the answer's frame and its body.
    Bent(Bend),
    /// These bytes and nothing more, frame and all.
    Bytes(Vec<u8>),
    /// These bytes, and then nothing, without an end.
    Stuck(Vec<u8>),
    /// The truth, a byte at a time, with this pause before each: often enough that it never is silence.
    Drip(Duration),
    /// These bytes, and then others without end.
    Endless(Vec<u8>),
    /// The end of the connection, with a code and a reason.
    Close(u32, &'static str),
}

impl Say {
    /// An answer with a body.
    pub fn answer(answer: &Answer, body: &[u8]) -> Self {
        Self::Bytes([framed(answer), body.to_vec()].concat())
    }

    /// The truth with its body changed.
    pub fn body(change: impl FnOnce(Vec<u8>) -> Vec<u8> + Send + 'static) -> Self {
        Self::Bent(Box::new(|answer, body| (answer, change(body))))
    }
}

/// An answer's frame.
pub fn framed(answer: &Answer) -> Vec<u8> {
    frame(answer).expect("a frame")
}

/// Decides for every request.
type Decide = Arc<dyn Fn(&Request) -> Say + Send + Sync>;

/// A liar at work; dropping it ends it.
pub struct Liar {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Liar {
    /// Stands between `machine` and the fleet's server.
    pub fn between(machine: &Machine, fleet: &Fleet, decide: impl Fn(&Request) -> Say + Send + Sync + 'static) -> Self {
        Self::speaking(ALPN, machine, fleet, decide)
    }

    /// The same, of another protocol.
    pub fn speaking(
        alpn: &[u8],
        machine: &Machine,
        fleet: &Fleet,
        decide: impl Fn(&Request) -> Say + Send + Sync + 'static,
    ) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::server(server_config(fleet, alpn), any).expect("a QUIC endpoint");
        let address = endpoint.local_addr().expect("its address");
        let asked = Arc::new(AtomicU64::new(0));
        let inner =
            Inner { machine: machine.clone(), truth: fleet.quic(), decide: Arc::new(decide), asked: asked.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(inner.serve(endpoint));
        Self { address, asked, _tasks: tasks }
    }

    /// What the machine shall dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that it was asked.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

/// TLS with the fleet's own server certificate, for one protocol. No client certificate is asked for: a liar takes anyone.
fn server_config(fleet: &Fleet, alpn: &[u8]) -> quinn::ServerConfig {
    let read = |file: &str| std::fs::read(fleet.data().join("authority").join(file)).expect(file);
    let certificate = CertificateDer::from_pem_slice(&read("server.pem")).expect("the server's certificate");
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")).expect("the server's key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the server's certificate");
    config.alpn_protocols = vec![alpn.to_vec()];
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).expect("TLS for QUIC")))
}

#[derive(Clone)]
struct Inner {
    machine: Machine,
    truth: SocketAddr,
    decide: Decide,
    asked: Arc<AtomicU64>,
}

impl Inner {
    async fn serve(self, endpoint: Endpoint) {
        let mut connections = JoinSet::new();
        while let Some(incoming) = endpoint.accept().await {
            let inner = self.clone();
            connections.spawn(async move {
                if let Ok(connection) = incoming.await {
                    inner.connection(connection).await;
                }
            });
        }
    }

    async fn connection(self, node: Connection) {
        let truth = self.connect().await;
        let mut streams = JoinSet::new();
        while let Ok((send, recv)) = node.accept_bi().await {
            let (inner, node, truth) = (self.clone(), node.clone(), truth.clone());
            streams.spawn(async move { inner.stream(node, truth, send, recv).await });
        }
    }

    async fn connect(&self) -> Connection {
        let identity = Identity::load(&self.machine.state()).expect("the machine's identity");
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a QUIC endpoint");
        let config = identity.quic_config().expect("TLS of a node");
        let connecting = endpoint.connect_with(config, self.truth, "127.0.0.1").expect("a connection");
        connecting.await.expect("the true server")
    }

    /// Failures here are the node's giving up, or the test's end.
    async fn stream(
        self,
        node: Connection,
        truth: Connection,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> Option<()> {
        let mut head = [0; FRAME_HEAD];
        recv.read_exact(&mut head).await.ok()?;
        let mut json = vec![0; u32::from_le_bytes(head) as usize];
        recv.read_exact(&mut json).await.ok()?;
        let request: Request = unframe(&json).ok()?;
        self.asked.fetch_add(1, Ordering::SeqCst);
        match (self.decide)(&request) {
            Say::Truth => {
                let (mut to, mut from) = truth.open_bi().await.ok()?;
                to.write_all(&[head.to_vec(), json].concat()).await.ok()?;
                let up = async { tokio::io::copy(&mut recv, &mut to).await.map(|_| to.finish()) };
                let down = async { tokio::io::copy(&mut from, &mut send).await.map(|_| send.finish()) };
                let _ = tokio::join!(up, down);
            }
            Say::Bent(bend) => {
                let (mut to, mut from) = truth.open_bi().await.ok()?;
                let asked = recv.read_to_end(ANSWER_MAX).await.ok()?;
                to.write_all(&[head.to_vec(), json, asked].concat()).await.ok()?;
                to.finish().ok()?;
                let whole = from.read_to_end(ANSWER_MAX).await.ok()?;
                let (head, rest) = whole.split_first_chunk::<FRAME_HEAD>()?;
                let (json, body) = rest.split_at_checked(u32::from_le_bytes(*head) as usize)?;
                let (answer, body) = bend(unframe(json).ok()?, body.to_vec());
                send.write_all(&[framed(&answer), body].concat()).await.ok()?;
                send.finish().ok()?;
            }
            Say::Bytes(bytes) => {
                send.write_all(&bytes).await.ok()?;
                send.finish().ok()?;
            }
            Say::Stuck(bytes) => {
                send.write_all(&bytes).await.ok()?;
                node.closed().await;
            }
            Say::Drip(pause) => {
                let (mut to, mut from) = truth.open_bi().await.ok()?;
                let asked = recv.read_to_end(ANSWER_MAX).await.ok()?;
                to.write_all(&[head.to_vec(), json, asked].concat()).await.ok()?;
                to.finish().ok()?;
                for byte in from.read_to_end(ANSWER_MAX).await.ok()? {
                    tokio::time::sleep(pause).await;
                    send.write_all(&[byte]).await.ok()?;
                }
                send.finish().ok()?;
            }
            Say::Endless(bytes) => {
                send.write_all(&bytes).await.ok()?;
                while send.write_all(&[0x5a; 4096]).await.is_ok() {}
            }
            Say::Close(code, reason) => node.close(VarInt::from_u32(code), reason.as_bytes()),
        }
        // Dropping a stream that is not finished would reset it under what is still on its way.
        let _ = send.stopped().await;
        Some(())
    }
}
