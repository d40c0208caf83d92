//! What quinn costs by itself: the ruler for a cold fetch (one large stream), and for serving a node (many small ones).
//!
//! ```text
//! measure: one connection, one stream of many bytes    ─▶ bytes a second
//! plain:   many connections, each as many bytes as a node got ─▶ the sender's seconds of processor for each
//! ```
//! Two processes on this machine, and nothing done to the bytes. quinn as goldsync uses it: TLS 1.3 with certificates on both
//! sides, the same crypto library and curves, no tickets, windows as large as the agent's. Packets are as large as quinn chooses.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, Incoming, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::Serialize;

use super::process::{self, Cost, Finished, Server};

/// The word by which this executable becomes the sender.
const SEND: &str = "raw-send";
/// The word by which it becomes the receiver.
const RECEIVE: &str = "raw-receive";

const NAME: &str = "localhost";
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What the stream did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Stream {
    /// Bytes sent.
    pub bytes: u64,
    /// Bytes a second, from the receiver's first packet to the stream's end.
    pub rate: f64,
    /// The receiver.
    pub receiver: Cost,
    /// The sender's seconds of processor.
    pub sender_cpu: f64,
}

/// Bytes sent to many, one after the other, each on a connection of its own.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Plain {
    /// Bytes on each one's stream.
    pub bytes: u64,
    /// Bytes of UDP payload that each received: with handshake and heads.
    pub received: u64,
    /// The sender's seconds of processor for each.
    pub cpu: f64,
}

/// One stream: the median rate of `repeat` runs.
pub fn measure(bytes: u64, scratch: &Path, repeat: usize) -> Result<Stream> {
    let sender = Sender::start(scratch)?;
    let once = || -> Result<Stream> {
        let before = sender.cpu();
        let (received, finished) = sender.receive(bytes, 1)?;
        let [Received { seconds, .. }] = received[..] else { anyhow::bail!("one connection, and {received:?}") };
        Ok(Stream { bytes, rate: bytes as f64 / seconds, receiver: finished.cost, sender_cpu: sender.cpu() - before })
    };
    let mut runs = (0..repeat.max(1)).map(|_| once()).collect::<Result<Vec<_>>>()?;
    runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    Ok(runs[runs.len() / 2])
}

/// So many connections, each of which receives about `received` bytes of UDP payload.
pub fn plain(received: u64, connections: u32, scratch: &Path) -> Result<Plain> {
    let sender = Sender::start(scratch)?;
    let mean = |all: &[Received]| all.iter().map(|one| one.wire).sum::<u64>() / all.len().max(1) as u64;
    // The first few tell what handshake, heads and probes add. They also warm up what is made once.
    let (first, _) = sender.receive(received, connections.min(4))?;
    let bytes = received.saturating_sub(mean(&first).saturating_sub(received)).max(1);
    let before = sender.cpu();
    let (all, _) = sender.receive(bytes, connections)?;
    let cpu = (sender.cpu() - before) / f64::from(connections);
    Ok(Plain { bytes, received: mean(&all), cpu })
}

/// A process that sends what it is asked for.
struct Sender {
    process: Server,
    folder: tempfile::TempDir,
}

/// One connection, as its receiver saw it.
#[derive(Clone, Copy, Debug)]
struct Received {
    seconds: f64,
    wire: u64,
}

impl Sender {
    fn start(scratch: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("stream.").tempdir_in(scratch)?;
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        fs::write(folder.path().join("certificate"), made.cert.der())?;
        fs::write(folder.path().join("key"), made.signing_key.serialize_der())?;
        let process = Command::new(std::env::current_exe()?).arg(SEND).arg(folder.path()).spawn();
        let sender = Self { process: Server(process.context("start the sender")?), folder };
        let (address, until) = (sender.folder.path().join("address"), Instant::now() + Duration::from_secs(10));
        while !address.exists() {
            ensure!(Instant::now() < until, "the sender does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(sender)
    }

    fn cpu(&self) -> f64 {
        process::cpu(self.process.0.id())
    }

    /// A process that connects so many times, one after the other, and each time receives so many bytes.
    fn receive(&self, bytes: u64, connections: u32) -> Result<(Vec<Received>, Finished)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(RECEIVE).arg(self.folder.path()).args([bytes.to_string(), connections.to_string()]);
        let finished = process::run(command, self.folder.path())?;
        let line = |line: &str| -> Result<Received> {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [got, wire, seconds] = words[..] else { anyhow::bail!("the receiver said {line:?}") };
            ensure!(got.parse::<u64>()? == bytes, "{got} of {bytes} bytes arrived");
            Ok(Received { seconds: seconds.parse()?, wire: wire.parse()? })
        };
        let received = finished.stdout.lines().map(line).collect::<Result<Vec<_>>>()?;
        ensure!(received.len() == connections as usize, "{} of {connections} connections", received.len());
        Ok((received, finished))
    }
}

/// If this process was started as one of the two ends, be it.
pub fn be_one() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        [SEND, folder] => in_runtime(send(Path::new(folder))),
        [RECEIVE, folder, bytes, connections] => bytes
            .parse()
            .and_then(|bytes| Ok((bytes, connections.parse()?)))
            .context("two numbers")
            .and_then(|(bytes, connections)| in_runtime(receive(Path::new(folder), bytes, connections))),
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

fn in_runtime(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW));
    Arc::new(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    use rustls::crypto::{CryptoProvider, aws_lc_rs};
    Arc::new(CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() })
}

/// A socket with room for what arrives while a thread is busy, as the programs have it.
fn socket(address: SocketAddr) -> Result<std::net::UdpSocket> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind(address)?;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE, libc::SO_RCVBUF, libc::SO_SNDBUF] {
        set_buffer(socket.as_raw_fd(), option);
    }
    Ok(socket)
}

#[allow(unsafe_code, reason = "the standard library cannot size a socket's buffers")]
fn set_buffer(socket: libc::c_int, option: libc::c_int) {
    let size: libc::c_int = 8 << 20;
    // Not being allowed to is no error: the stream is slower then, as the programs are.
    // SAFETY: the pointer is to a live integer of the length given.
    unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket, libc::SOL_SOCKET, option, (&raw const size).cast(), length);
    }
}

fn endpoint(address: SocketAddr, server: Option<ServerConfig>) -> Result<Endpoint> {
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(quinn::EndpointConfig::default(), server, socket(address)?, runtime)?)
}

/// What proves each side to the other, and whom both believe.
fn identity(folder: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, Arc<RootCertStore>)> {
    let certificate = CertificateDer::from(fs::read(folder.join("certificate"))?);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(fs::read(folder.join("key"))?));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    Ok((vec![certificate], key, Arc::new(roots)))
}

/// Sends to whoever connects, until it is killed: whoever measures reads what it used first.
async fn send(folder: &Path) -> Result<()> {
    let (certificate, key, roots) = identity(folder)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate, key)?;
    tls.send_tls13_tickets = 0;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    let endpoint = endpoint(SocketAddr::from(([127, 0, 0, 1], 0)), Some(config))?;
    // Not compressible, and never the same page twice in a row.
    let mut piece = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut piece);
    let piece: Arc<[u8]> = piece.into();
    let (part, whole) = (folder.join("address.part"), folder.join("address"));
    fs::write(&part, endpoint.local_addr()?.to_string())?;
    fs::rename(part, whole)?;
    while let Some(incoming) = endpoint.accept().await {
        let piece = piece.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(incoming, &piece).await {
                eprintln!("raw stream: {error:#}");
            }
        });
    }
    Ok(())
}

/// As many bytes as the stream's request says.
async fn answer(incoming: Incoming, piece: &[u8]) -> Result<()> {
    let connection = incoming.await?;
    let (mut stream, mut request) = connection.accept_bi().await?;
    let mut left = [0; 8];
    request.read_exact(&mut left).await?;
    let mut left = u64::from_le_bytes(left);
    while left > 0 {
        let take = left.min(piece.len() as u64) as usize;
        stream.write_all(&piece[..take]).await?;
        left -= take as u64;
    }
    stream.finish()?;
    connection.closed().await;
    Ok(())
}

async fn receive(folder: &Path, bytes: u64, connections: u32) -> Result<()> {
    let address: SocketAddr = fs::read_to_string(folder.join("address"))?.parse()?;
    let (certificate, key, roots) = identity(folder)?;
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificate, key)?;
    tls.resumption = rustls::client::Resumption::disabled();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    for _ in 0..connections {
        let endpoint = endpoint(SocketAddr::from(([127, 0, 0, 1], 0)), None)?;
        let start = Instant::now();
        let connection = endpoint.connect_with(config.clone(), address, NAME)?.await?;
        let (mut request, mut stream) = connection.open_bi().await?;
        request.write_all(&bytes.to_le_bytes()).await?;
        request.finish()?;
        let mut got = 0;
        while let Some(chunk) = stream.read_chunk(1 << 20, true).await? {
            got += chunk.bytes.len();
        }
        println!("{got} {} {}", connection.stats().udp_rx.bytes, start.elapsed().as_secs_f64());
        connection.close(VarInt::from_u32(0), b"done");
        endpoint.wait_idle().await;
    }
    Ok(())
}
