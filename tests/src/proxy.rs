//! A UDP proxy between nodes and a server: it counts, loses, delays, and cuts.
//!
//! ```text
//! node ──▶ proxy ──▶ (a socket for each node) ──▶ server
//!      ◀──       ◀──                          ◀──
//! ```
//! What it loses is decided by a seed, one packet at a time, so that a run is like the last one as far as the packets are.
//! A *cut* is silence: nothing passes in either direction any more, as when a cable is pulled. [`Proxy::cut_after`] cuts
//! at a number of bytes towards the nodes and lets a test wait for that moment.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::seed::Seed;

/// What happens to packets.
#[derive(Debug)]
struct Rules {
    /// The share of packets that is lost, each way.
    loss: f64,
    /// How much later packets arrive.
    delay: Duration,
    seed: Seed,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    rules: Mutex<Rules>,
    /// Bytes towards the nodes at which the line is cut.
    limit: AtomicU64,
    down: AtomicU64,
    up: AtomicU64,
    cut: watch::Sender<bool>,
}

/// A proxy at work; dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Begins to pass on everything to `upstream`.
    pub async fn to(upstream: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a UDP socket"));
        let address = front.local_addr().expect("its address");
        let rules = Rules { loss: 0.0, delay: Duration::ZERO, seed: Seed::new(0) };
        let shared = Arc::new(Shared {
            upstream,
            rules: Mutex::new(rules),
            limit: AtomicU64::new(u64::MAX),
            down: AtomicU64::new(0),
            up: AtomicU64::new(0),
            cut: watch::Sender::new(false),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(front_loop(front, shared.clone()));
        Self { address, shared, _tasks: tasks }
    }

    /// What nodes dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Loses this share of the packets (0 to 1), each way, by a seed.
    pub fn lose(&self, share: f64, seed: u64) {
        let mut rules = self.shared.rules();
        (rules.loss, rules.seed) = (share, Seed::new(seed));
    }

    /// Makes every packet late.
    pub fn delay(&self, delay: Duration) {
        self.shared.rules().delay = delay;
    }

    /// Silence.
    pub fn cut(&self) {
        self.shared.cut.send_replace(true);
    }

    /// Silence, once so many more bytes have gone towards the nodes.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.limit.store(self.received().saturating_add(bytes), Ordering::SeqCst);
    }

    /// Waits for the cut.
    pub async fn is_cut(&self) {
        let mut cut = self.shared.cut.subscribe();
        cut.wait_for(|cut| *cut).await.expect("the proxy");
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.shared.limit.store(u64::MAX, Ordering::SeqCst);
        self.shared.cut.send_replace(false);
    }

    /// Bytes that went towards the nodes.
    pub fn received(&self) -> u64 {
        self.shared.down.load(Ordering::SeqCst)
    }

    /// Bytes that the nodes sent.
    pub fn sent(&self) -> u64 {
        self.shared.up.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn rules(&self) -> std::sync::MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a packet passes, and how late.
    fn passes(&self) -> Option<Duration> {
        if *self.cut.borrow() {
            return None;
        }
        let mut rules = self.rules();
        let share = rules.loss;
        (share == 0.0 || !rules.seed.happens(share)).then_some(rules.delay)
    }
}

async fn front_loop(front: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut buffer = vec![0; 65536];
    loop {
        let Ok((length, node)) = front.recv_from(&mut buffer).await else { continue };
        let way = match ways.get(&node) {
            Some(way) => way.clone(),
            None => {
                let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a UDP socket"));
                way.connect(shared.upstream).await.expect("the server's address");
                back.spawn(back_loop(front.clone(), way.clone(), node, shared.clone()));
                ways.insert(node, way.clone());
                way
            }
        };
        if let Some(delay) = shared.passes() {
            shared.up.fetch_add(length as u64, Ordering::SeqCst);
            let packet = buffer[..length].to_vec();
            // A server that is away answers with an ICMP error; that packet is lost, like others.
            later(delay, async move { _ = way.send(&packet).await }).await;
        }
    }
}

async fn back_loop(front: Arc<UdpSocket>, way: Arc<UdpSocket>, node: SocketAddr, shared: Arc<Shared>) {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok(length) = way.recv(&mut buffer).await else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let Some(delay) = shared.passes() else { continue };
        let gone = shared.down.fetch_add(length as u64, Ordering::SeqCst) + length as u64;
        let (front, packet) = (front.clone(), buffer[..length].to_vec());
        later(delay, async move { _ = front.send_to(&packet, node).await }).await;
        if gone >= shared.limit.load(Ordering::SeqCst) {
            shared.cut.send_replace(true);
        }
    }
}

async fn later(delay: Duration, send: impl Future<Output = ()> + Send + 'static) {
    if delay.is_zero() {
        return send.await;
    }
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        send.await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        });
        address
    }

    async fn answer(client: &UdpSocket) -> Option<usize> {
        let mut buffer = [0; 2048];
        tokio::time::timeout(Duration::from_millis(200), client.recv(&mut buffer)).await.ok()?.ok()
    }

    #[tokio::test]
    async fn it_passes_on_counts_and_cuts() {
        let proxy = Proxy::to(echo().await).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(proxy.address()).await.unwrap();
        client.send(&[1; 100]).await.unwrap();
        assert_eq!(answer(&client).await, Some(100));
        assert_eq!((proxy.sent(), proxy.received()), (100, 100));
        proxy.cut_after(50);
        client.send(&[1; 100]).await.unwrap();
        assert_eq!(answer(&client).await, Some(100), "the packet that crosses the limit still passes");
        proxy.is_cut().await;
        client.send(&[1; 100]).await.unwrap();
        assert_eq!(answer(&client).await, None);
        proxy.heal();
        client.send(&[1; 100]).await.unwrap();
        assert_eq!(answer(&client).await, Some(100));
        proxy.lose(1.0, 1);
        client.send(&[1; 100]).await.unwrap();
        assert_eq!(answer(&client).await, None);
    }
}
