//! A UDP proxy between nodes and a server: a bad line of our own.
//!
//! ```text
//! node ──▶ proxy ──▶ (a socket for each node) ──▶ server
//!      ◀──       ◀──                          ◀──
//!           each packet: silent? too large? lost? no room? ─▶ late, and later by chance ─▶ on its way
//! ```
//! What it loses and how late a packet is, is decided by seeds, one packet at a time, so that a run is like the last one as
//! far as the packets are. A *cut* is silence both ways, as when a cable is pulled; a *stall* is silence one way.
//! [`Proxy::cut_after`] cuts at a number of bytes towards the nodes and lets a test wait for that moment. *Rebinding* is what
//! a router does that forgot: from the node's next packet on, the server sees it come from another port, and what was under way to
//! the old one is lost. [`Proxy::tally`] says what was done, so that a test can tell that its fault happened at all.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::seed::Seed;

/// How long a packet may wait for its turn on a line of limited rate; one that would have to wait longer is dropped.
const QUEUE: Duration = Duration::from_secs(1);

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the nodes.
    Up,
    /// Towards the nodes.
    Down,
}

/// What was done to packets, both ways together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent on.
    pub passed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped, because they were larger than the line takes.
    pub too_large: u64,
    /// Dropped, because the line was full.
    pub overflowed: u64,
    /// Swallowed by a cut or a stall.
    pub swallowed: u64,
    /// Sent on after one that had come later.
    pub overtaken: u64,
    /// Bytes of the largest that came.
    pub largest: usize,
    /// Nodes that got another port.
    pub rebound: u64,
}

/// What happens to packets.
#[derive(Debug)]
struct Rules {
    /// The share of packets that is lost, each way.
    loss: f64,
    losing: Seed,
    /// How much later packets arrive, and how much more than that by chance.
    delay: Duration,
    jitter: Duration,
    jittering: Seed,
    /// Bytes in a second, each way.
    rate: u64,
    /// Bytes that a packet may have.
    largest: usize,
    /// Until when the line is taken, each way.
    taken: [Instant; 2],
    tally: Tally,
}

/// What a packet was found worth: how late it is, and its number among those of its way.
struct Pass {
    delay: Duration,
    number: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            loss: 0.0,
            losing: Seed::new(0),
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            jittering: Seed::new(0),
            rate: u64::MAX,
            largest: usize::MAX,
            taken: [Instant::now(); 2],
            tally: Tally::default(),
        }
    }
}

impl Rules {
    fn judge(&mut self, way: Way, length: usize) -> Option<Duration> {
        self.tally.largest = self.tally.largest.max(length);
        if length > self.largest {
            self.tally.too_large += 1;
            return None;
        }
        if self.loss > 0.0 && self.losing.happens(self.loss) {
            self.tally.lost += 1;
            return None;
        }
        let now = Instant::now();
        let taken = &mut self.taken[way as usize];
        let wait = taken.saturating_duration_since(now);
        if wait > QUEUE {
            self.tally.overflowed += 1;
            return None;
        }
        let own = (length as u64).saturating_mul(1_000_000_000) / self.rate;
        let turn = wait + Duration::from_nanos(own);
        *taken = now + turn;
        let jitter = self.jittering.below(self.jitter.as_micros() as u64 + 1);
        self.tally.passed += 1;
        Some(turn + self.delay + Duration::from_micros(jitter))
    }
}

/// One direction's count.
#[derive(Debug, Default)]
struct Count {
    bytes: AtomicU64,
    /// Bytes at which nothing more passes this way.
    stall: AtomicU64,
    /// Packets that were taken in, and the highest number that was sent on.
    taken: AtomicU64,
    sent: AtomicU64,
}

impl Count {
    fn new() -> Self {
        Self { stall: AtomicU64::new(u64::MAX), ..Self::default() }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    rules: Mutex<Rules>,
    ways: [Count; 2],
    /// Bytes towards the nodes at which the line is cut, and at which nodes get another port.
    limit: AtomicU64,
    rebind: AtomicU64,
    /// Which ports are in use: those of nodes that were given one under this number.
    ports: AtomicU64,
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
        let shared = Arc::new(Shared {
            upstream,
            rules: Mutex::default(),
            ways: [Count::new(), Count::new()],
            limit: AtomicU64::new(u64::MAX),
            rebind: AtomicU64::new(u64::MAX),
            ports: AtomicU64::new(0),
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
        (rules.loss, rules.losing) = (share, Seed::new(seed));
    }

    /// Makes every packet late.
    pub fn delay(&self, delay: Duration) {
        self.shared.rules().delay = delay;
    }

    /// Makes every packet later by up to this much, by a seed: they overtake each other.
    pub fn jitter(&self, jitter: Duration, seed: u64) {
        let mut rules = self.shared.rules();
        (rules.jitter, rules.jittering) = (jitter, Seed::new(seed));
    }

    /// Lets so many bytes pass in a second, each way. A few make a line that drips.
    pub fn rate(&self, bytes: u64) {
        self.shared.rules().rate = bytes.max(1);
    }

    /// Drops packets with more bytes than this, without a word: a black hole for larger ones.
    pub fn largest(&self, bytes: usize) {
        self.shared.rules().largest = bytes;
    }

    /// Gives every node another port towards the server, once so many more bytes have gone towards the nodes.
    pub fn rebind_after(&self, bytes: u64) {
        self.shared.rebind.store(self.received().saturating_add(bytes), Ordering::SeqCst);
    }

    /// The same, now.
    pub fn rebind(&self) {
        self.shared.ports.fetch_add(1, Ordering::SeqCst);
    }

    /// Silence one way, once so many more bytes have passed that way.
    pub fn stall_after(&self, way: Way, bytes: u64) {
        let count = self.shared.count(way);
        count.stall.store(count.bytes().saturating_add(bytes), Ordering::SeqCst);
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

    /// A good line again: whatever was asked for is over.
    pub fn heal(&self) {
        let shared = &self.shared;
        for limit in [&shared.limit, &shared.rebind, &shared.ways[0].stall, &shared.ways[1].stall] {
            limit.store(u64::MAX, Ordering::SeqCst);
        }
        shared.cut.send_replace(false);
        let mut rules = shared.rules();
        *rules = Rules { tally: rules.tally, ..Rules::default() };
    }

    /// Bytes that went towards the nodes.
    pub fn received(&self) -> u64 {
        self.shared.count(Way::Down).bytes()
    }

    /// Bytes that the nodes sent.
    pub fn sent(&self) -> u64 {
        self.shared.count(Way::Up).bytes()
    }

    /// What was done so far.
    pub fn tally(&self) -> Tally {
        self.shared.rules().tally
    }
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, way: Way) -> &Count {
        &self.ways[way as usize]
    }

    /// Whether a packet passes, and how late.
    fn pass(&self, way: Way, length: usize) -> Option<Pass> {
        let mut rules = self.rules();
        let count = self.count(way);
        if *self.cut.borrow() || count.bytes() >= count.stall.load(Ordering::SeqCst) {
            rules.tally.swallowed += 1;
            return None;
        }
        let delay = rules.judge(way, length)?;
        count.bytes.fetch_add(length as u64, Ordering::SeqCst);
        Some(Pass { delay, number: count.taken.fetch_add(1, Ordering::SeqCst) })
    }

    /// Sends a packet on when its time has come.
    async fn send(
        self: &Arc<Self>,
        way: Way,
        Pass { delay, number }: Pass,
        send: impl Future<Output = ()> + Send + 'static,
    ) {
        let shared = self.clone();
        let in_time = async move {
            if shared.count(way).sent.fetch_max(number, Ordering::SeqCst) > number {
                shared.rules().tally.overtaken += 1;
            }
            send.await;
        };
        if delay.is_zero() {
            return in_time.await;
        }
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            in_time.await;
        });
    }

    /// What bytes towards the nodes set off.
    fn reached(&self) {
        let gone = self.count(Way::Down).bytes();
        if gone >= self.limit.load(Ordering::SeqCst) {
            self.cut.send_replace(true);
        }
        let at = self.rebind.load(Ordering::SeqCst);
        if gone >= at && self.rebind.compare_exchange(at, u64::MAX, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.ports.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A node's port towards the server.
struct Port {
    socket: Arc<UdpSocket>,
    number: u64,
    back: AbortHandle,
}

async fn front_loop(front: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut ports: HashMap<SocketAddr, Port> = HashMap::new();
    let mut back = JoinSet::new();
    let mut buffer = vec![0; 65536];
    loop {
        let Ok((length, node)) = front.recv_from(&mut buffer).await else { continue };
        let number = shared.ports.load(Ordering::SeqCst);
        if ports.get(&node).is_none_or(|port| port.number != number) {
            let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a UDP socket"));
            socket.connect(shared.upstream).await.expect("the server's address");
            let back = back.spawn(back_loop(front.clone(), socket.clone(), node, shared.clone()));
            if let Some(old) = ports.insert(node, Port { socket, number, back }) {
                old.back.abort();
                shared.rules().tally.rebound += 1;
            }
        }
        let Some(port) = ports.get(&node) else { continue };
        if let Some(pass) = shared.pass(Way::Up, length) {
            let (socket, packet) = (port.socket.clone(), buffer[..length].to_vec());
            // A server that is away answers with an ICMP error; that packet is lost, like others.
            shared.send(Way::Up, pass, async move { _ = socket.send(&packet).await }).await;
        }
    }
}

async fn back_loop(front: Arc<UdpSocket>, socket: Arc<UdpSocket>, node: SocketAddr, shared: Arc<Shared>) {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok(length) = socket.recv(&mut buffer).await else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let Some(pass) = shared.pass(Way::Down, length) else { continue };
        let (front, packet) = (front.clone(), buffer[..length].to_vec());
        shared.send(Way::Down, pass, async move { _ = front.send_to(&packet, node).await }).await;
        shared.reached();
    }
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

    async fn pair() -> (Proxy, UdpSocket) {
        let proxy = Proxy::to(echo().await).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(proxy.address()).await.unwrap();
        (proxy, client)
    }

    /// The first bytes of what comes back, in order, of packets 0 to 49.
    async fn fifty(client: &UdpSocket) -> Vec<u8> {
        for number in 0..50 {
            client.send(&[number; 100]).await.unwrap();
        }
        let (mut buffer, mut back) = ([0; 2048], Vec::new());
        let wait = Duration::from_millis(400);
        while let Ok(Ok(_)) = tokio::time::timeout(wait, client.recv(&mut buffer)).await {
            back.push(buffer[0]);
        }
        back
    }

    #[test]
    fn what_it_loses_and_holds_up_is_the_seeds_choice() {
        let choices = |seed| {
            let mut rules = Rules::default();
            (rules.loss, rules.losing) = (0.3, Seed::new(seed));
            (rules.jitter, rules.jittering) = (Duration::from_millis(9), Seed::new(seed));
            let choices: Vec<_> = (0..500).map(|_| rules.judge(Way::Up, 1200)).collect();
            assert_eq!(rules.tally.lost + rules.tally.passed, 500);
            assert!((100..200).contains(&rules.tally.lost), "{:?}", rules.tally);
            choices
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }

    #[tokio::test]
    async fn packets_overtake_each_other_and_all_arrive() {
        let (proxy, client) = pair().await;
        proxy.jitter(Duration::from_millis(50), 7);
        let mut back = fifty(&client).await;
        assert!(!back.is_sorted() && proxy.tally().overtaken > 0, "{back:?}");
        back.sort_unstable();
        assert_eq!(back, (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn large_packets_vanish_and_a_full_line_drops() {
        let (proxy, client) = pair().await;
        proxy.largest(1000);
        client.send(&[1; 1001]).await.unwrap();
        assert_eq!(answer(&client).await, None);
        client.send(&[1; 1000]).await.unwrap();
        assert_eq!(answer(&client).await, Some(1000));
        assert_eq!((proxy.tally().too_large, proxy.tally().largest), (1, 1001));
        // Five seconds of packets for a line that holds one.
        proxy.rate(1000);
        let back = fifty(&client).await;
        assert!(proxy.tally().overflowed > 20 && back.len() < 30, "{back:?} {:?}", proxy.tally());
    }

    #[tokio::test]
    async fn a_stall_is_one_way_and_a_node_gets_another_port() {
        let (proxy, client) = pair().await;
        proxy.stall_after(Way::Down, 100);
        for expected in [Some(100), None] {
            client.send(&[1; 100]).await.unwrap();
            assert_eq!(answer(&client).await, expected);
        }
        assert_eq!((proxy.sent(), proxy.received(), proxy.tally().swallowed), (200, 100, 1));
        proxy.heal();
        proxy.rebind_after(100);
        for rebound in [0, 1, 1] {
            client.send(&[1; 100]).await.unwrap();
            assert_eq!(answer(&client).await, Some(100));
            assert_eq!(proxy.tally().rebound, rebound);
        }
    }
}
