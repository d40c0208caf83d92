//! The ruler for a cold fetch: one raw QUIC stream between two processes on this machine, with nothing done to the bytes.
//!
//! quinn as goldsync uses it (TLS 1.3, the same crypto library, windows as large as the agent's), one sender, one receiver,
//! one unidirectional stream. What quinn itself could do better with other settings is not asked here.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Serialize;

use super::process::{self, Cost, Server};

/// The word by which this executable becomes the sender.
pub const SEND: &str = "raw-send";
/// The word by which it becomes the receiver.
pub const RECEIVE: &str = "raw-receive";

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

/// Measures, the median rate of `repeat` runs.
pub fn measure(bytes: u64, scratch: &Path, repeat: usize) -> Result<Stream> {
    let mut runs = (0..repeat.max(1)).map(|_| once(bytes, scratch)).collect::<Result<Vec<_>>>()?;
    runs.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    Ok(runs[runs.len() / 2])
}

fn once(bytes: u64, scratch: &Path) -> Result<Stream> {
    let folder = scratch.join("stream");
    fs::create_dir_all(&folder)?;
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    fs::write(folder.join("certificate"), made.cert.der())?;
    fs::write(folder.join("key"), made.signing_key.serialize_der())?;
    let this = std::env::current_exe()?;
    let sender =
        Command::new(&this).arg(SEND).arg(&folder).arg(bytes.to_string()).spawn().context("start the sender")?;
    let sender = Server(sender);
    let address = folder.join("address");
    let until = Instant::now() + Duration::from_secs(10);
    while !address.exists() {
        ensure!(Instant::now() < until, "the sender does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut command = Command::new(&this);
    command.arg(RECEIVE).arg(&folder);
    let before = process::cpu(sender.0.id());
    let finished = process::run(command, &folder)?;
    let sender_cpu = process::cpu(sender.0.id()) - before;
    drop(sender);
    let words: Vec<&str> = finished.stdout.split_whitespace().collect();
    let [got, seconds] = words[..] else { anyhow::bail!("the receiver said {:?}", finished.stdout) };
    ensure!(got.parse::<u64>()? == bytes, "{got} of {bytes} bytes arrived");
    fs::remove_dir_all(&folder)?;
    Ok(Stream { bytes, rate: bytes as f64 / seconds.parse::<f64>()?, receiver: finished.cost, sender_cpu })
}

/// If this process was started as one of the two ends, be it.
pub fn be_one() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        [SEND, folder, bytes] => {
            bytes.parse().context("a number of bytes").and_then(|bytes| in_runtime(send(Path::new(folder), bytes)))
        }
        [RECEIVE, folder] => in_runtime(receive(Path::new(folder))),
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
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
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

async fn send(folder: &Path, bytes: u64) -> Result<()> {
    let certificate = CertificateDer::from(fs::read(folder.join("certificate"))?);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(fs::read(folder.join("key"))?));
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport());
    let endpoint = endpoint(SocketAddr::from(([127, 0, 0, 1], 0)), Some(config))?;
    let (part, whole) = (folder.join("address.part"), folder.join("address"));
    fs::write(&part, endpoint.local_addr()?.to_string())?;
    fs::rename(part, whole)?;
    let connection = endpoint.accept().await.context("a connection")?.await?;
    let mut stream = connection.open_uni().await?;
    // Not compressible, and never the same page twice in a row.
    let mut piece = vec![0; 1 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut piece);
    let mut left = bytes;
    while left > 0 {
        let take = left.min(piece.len() as u64) as usize;
        stream.write_all(&piece[..take]).await?;
        left -= take as u64;
    }
    stream.finish()?;
    connection.closed().await;
    // Until it is killed: whoever measures reads what it used first.
    std::future::pending().await
}

async fn receive(folder: &Path) -> Result<()> {
    let address: SocketAddr = fs::read_to_string(folder.join("address"))?.parse()?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(fs::read(folder.join("certificate"))?))?;
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport());
    let mut endpoint = endpoint(SocketAddr::from(([127, 0, 0, 1], 0)), None)?;
    endpoint.set_default_client_config(config);
    let start = Instant::now();
    let connection = endpoint.connect(address, NAME)?.await?;
    let mut stream = connection.accept_uni().await?;
    let mut got = 0;
    while let Some(chunk) = stream.read_chunk(1 << 20, true).await? {
        got += chunk.bytes.len();
    }
    println!("{got} {}", start.elapsed().as_secs_f64());
    connection.close(VarInt::from_u32(0), b"done");
    endpoint.wait_idle().await;
    Ok(())
}
