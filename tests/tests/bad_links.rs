//! Bad links: whatever a line does to packets, an update comes through, or it ends with an error that says what was wrong; nothing
//! hangs, and nothing is lost. How slow a thing may be is the product's own limit (`[limits]`, `nodes.idle_timeout`), set short.

use std::time::Duration;

use goldsync_agent::slot::SlotName;
use goldsync_proto::wire::Request;
use goldsync_server::config::Config;
use goldsync_server::config::units::Span;
use goldsync_tests::disk::skip;
use goldsync_tests::image::MIB;
use goldsync_tests::net::Net;
use goldsync_tests::proxy::Tally;
use goldsync_tests::seed::Seed;
use goldsync_tests::{Fleet, Image, Liar, Machine, Proxy, Say, Way, eventually};

/// What two runs may fetch twice; see `interruption.rs`.
const IN_FLIGHT: u64 = 6 * MIB as u64 + 256 * 1024;

/// A node that runs `old`, behind a proxy, and a channel that has moved on to `new`.
struct Scene {
    fleet: Fleet,
    proxy: Proxy,
    node: Machine,
    old: Image,
    new: Image,
}

/// A server that takes three seconds of silence for a peer's end, and tells its nodes to do likewise.
fn impatient(config: &mut Config) {
    (config.nodes.keep_alive, config.nodes.idle_timeout) = (Span::seconds(1), Span::seconds(3));
}

impl Scene {
    /// So many MiB are new; `limits` are lines of the node's `[limits]`.
    async fn new(seed: u64, mib: usize, limits: &str) -> Self {
        Self::on(Fleet::start_with(impatient).await, seed, mib, limits).await
    }

    async fn on(fleet: Fleet, seed: u64, mib: usize, limits: &str) -> Self {
        let old = Image::noise(seed, 2);
        let new =
            Image { bytes: [&old.bytes[..MIB], &Image::noise(seed + 1000, mib).bytes, &old.bytes[MIB..]].concat() };
        fleet.ship(&old, "web:1").await;
        let mut node = fleet.node("n1").await;
        node.sync().await.updated();
        fleet.ship(&new, "web:2").await;
        let proxy = Proxy::to(fleet.quic()).await;
        node.more = limits.into();
        let node = node.by(proxy.address());
        Self { fleet, proxy, node, old, new }
    }

    /// Back to before the update.
    async fn begin_again(&self) {
        self.node.agent(&["rollback"]).await.ok();
        let standby = self.node.active().expect("an active slot").other();
        std::fs::remove_file(self.node.slot(standby)).expect("the standby slot");
        self.node.node().journal.set_empty(standby).expect("the record");
    }

    /// The node's last error as `status` shows it and as the server heard it.
    async fn told_everybody(&self, node: &Machine, words: &[&str]) {
        let status = node.agent(&["status"]).await.ok().out;
        let fleet = self.fleet.operator.node(&node.name).await.expect("a node");
        let report = fleet["report"]["error"].as_str().unwrap_or_default().to_owned();
        for word in words {
            assert!(status.contains("failed") && status.contains(word), "{word}: {status}");
            assert!(report.contains(word), "{word}: {fleet}");
        }
    }

    #[track_caller]
    fn untouched(&self) {
        self.node.runs(&self.old);
        self.node.tells_no_lie();
    }

    #[track_caller]
    fn arrived(&self) {
        self.node.runs(&self.new);
        self.node.tells_no_lie();
    }
}

async fn runs(node: &Machine, image: &Image) {
    let id = image.id();
    let arrived = async || (node.link().exists() && node.running() == id).then_some(());
    eventually(&format!("{} runs {id}", node.name), arrived).await;
}

/// Goal: a bad line makes an update slow and nothing else. Each row is a whole update; its last column says that the fault happened.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_bad_line() {
    type Row = (&'static str, fn(&Proxy), fn(Tally) -> bool);
    let rows: [Row; 8] = [
        ("5 % lost", |line| line.lose(0.05, 1), |tally| tally.lost > 20),
        ("20 % lost", |line| line.lose(0.2, 2), |tally| tally.lost > 100),
        ("40 ms later each way", |line| line.delay(Duration::from_millis(40)), |tally| tally.passed > 500),
        ("out of order", |line| line.jitter(Duration::from_millis(20), 3), |tally| tally.overtaken > 100),
        ("400 kB a second", |line| line.rate(400_000), |tally| tally.passed > 500),
        ("1200 bytes a packet", |line| line.largest(1200), |tally| tally.largest <= 1200),
        ("another port, again and again", |line| line.rate(1_000_000), |tally| tally.rebound > 5),
        (
            "lost, late, out of order and narrow",
            |line| {
                line.lose(0.01, 4);
                line.delay(Duration::from_millis(10));
                line.jitter(Duration::from_millis(10), 5);
                line.rate(1_000_000);
            },
            |tally| tally.lost > 5 && tally.overtaken > 50,
        ),
    ];
    for (number, (what, spoil, happened)) in rows.into_iter().enumerate() {
        // Above what the worst of them does, by far: a line that is merely bad is not given up.
        let limits = "slowest = \"1 KiB/s over 5 s\"";
        let scene = Scene::new(10 * number as u64, 1, limits).await;
        spoil(&scene.proxy);
        let node = scene.node.clone();
        let run = async { node.sync().await.updated() };
        let account = if what.starts_with("another port") {
            // By packets and not by the clock: however slow both ends are, a path is there long enough to be used.
            let rebind = async {
                let mut next = 0;
                loop {
                    let passed = scene.proxy.tally().passed;
                    if passed >= next {
                        scene.proxy.rebind();
                        next = passed + 80;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! { account = run => account, () = rebind => unreachable!() }
        } else {
            run.await
        };
        scene.arrived();
        let tally = scene.proxy.tally();
        assert!(happened(tally), "{what}: {tally:?}");
        println!("{what}: {} bytes received, {tally:?}", account.received);
    }
}

/// Goal: whatever a seed draws (loss, delay, jitter, rate, other ports, a stall), a run comes through, or ends with exit code 4 and the old
/// image; then the line is healed, and the next run comes through. `GOLDSYNC_TESTS_LINES` says how many lines are drawn.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes, and a machine that has nothing else to do: docs/PROOF.md says how to run it"]
async fn lines_drawn_by_seed() {
    let lines = std::env::var("GOLDSYNC_TESTS_LINES").map_or(5, |text| text.parse().expect("GOLDSYNC_TESTS_LINES"));
    // More patience than a busy machine could use up on a line that was healed.
    let patient = |config: &mut Config| {
        (config.nodes.keep_alive, config.nodes.idle_timeout) = (Span::seconds(1), Span::seconds(10));
    };
    let scene =
        Scene::on(Fleet::start_with(patient).await, 190, 1, "silence = \"10 s\"\nslowest = \"1 KiB/s over 20 s\"")
            .await;
    let mut failed = 0;
    for number in 0..lines {
        let mut seed = Seed::new(number);
        let ms = |seed: &mut Seed, most| Duration::from_millis(seed.below(most));
        let line = &scene.proxy;
        line.lose(seed.below(40) as f64 / 1000.0, number);
        line.delay(ms(&mut seed, 10));
        line.jitter(ms(&mut seed, 10), number);
        line.rate([u64::MAX, 10_000_000, 1_000_000][seed.below(3) as usize]);
        if seed.happens(0.5) {
            line.rebind_after(seed.below(MIB as u64));
        }
        if seed.happens(0.3) {
            let (way, at) = if seed.happens(0.5) { (Way::Up, 6_000) } else { (Way::Down, MIB as u64) };
            line.stall_after(way, seed.below(at));
        }
        let ran = scene.node.agent(&["sync"]).await;
        if ran.code != Some(0) {
            failed += 1;
            let ran = ran.fails(4, &["127.0.0.1"]);
            assert!(!ran.err.contains("panic"), "line {number}: {}", ran.err);
            scene.untouched();
            line.heal();
            scene.node.sync().await.updated();
        }
        scene.arrived();
        line.heal();
        scene.begin_again().await;
    }
    println!("{lines} lines, {failed} runs given up: {:?}", scene.proxy.tally());
}

/// Goal: a line that does not carry what QUIC needs (1200 bytes) is an error that says so, at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_for_small_packets_only() {
    let scene = Scene::new(100, 1, "").await;
    scene.proxy.largest(1199);
    scene.node.agent(&["sync"]).await.fails(4, &["cannot be reached", "packets of 1200 bytes"]);
    assert!(scene.proxy.tally().too_large > 0);
    scene.untouched();
    scene.proxy.heal();
    scene.node.sync().await.updated();
    scene.arrived();
}

/// Goal: a line that begins to drop large packets in the middle of a download, while small ones keep the connection alive, is given
/// up with an error, and the daemon goes on when it is better, with what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_in_the_middle() {
    let scene = Scene::new(110, 12, "silence = \"2 s\"").await;
    let begun = scene.proxy.received();
    let daemon = scene.node.daemon();
    eventually("4 MiB have arrived", async || (scene.proxy.received() > begun + 4 * MIB as u64).then_some(())).await;
    scene.proxy.largest(1000);
    let failed = async || {
        let last = scene.node.node().journal.last().expect("the last outcome")?;
        format!("{:?}", last.outcome).contains("nothing arrived for 2 s").then_some(())
    };
    eventually("it is given up", failed).await;
    scene.untouched();
    scene.proxy.heal();
    runs(&scene.node, &scene.new).await;
    daemon.stop().await;
    scene.arrived();
    let received = scene.proxy.received() - begun;
    assert!(received < 12 * MIB as u64 + IN_FLIGHT, "{received} bytes");
}

/// Goal: a server that dies in the middle of an update and comes back: the daemon finds it again by itself, and fetches only the
/// rest.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_in_the_middle() {
    let mut scene = Scene::new(120, 12, "").await;
    let begun = scene.proxy.received();
    scene.proxy.cut_after(5 * MIB as u64);
    let daemon = scene.node.daemon();
    scene.proxy.is_cut().await;
    scene.fleet.crash().await;
    scene.proxy.heal();
    scene.fleet.up().await;
    runs(&scene.node, &scene.new).await;
    daemon.stop().await;
    scene.arrived();
    let received = scene.proxy.received() - begun;
    assert!(received < 12 * MIB as u64 + IN_FLIGHT, "{received} bytes");
}

/// Goal: a router that gives the node another port in the middle of a download, or while nothing goes on, is not noticed: one
/// connection, nothing fetched twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_forgets() {
    let scene = Scene::new(130, 4, "").await;
    let begun = scene.proxy.received();
    for at in [20_000, MIB as u64, 3 * MIB as u64] {
        scene.proxy.rebind_after(at);
        let (rebound, before) = (scene.proxy.tally().rebound, scene.proxy.received());
        scene.node.sync().await.updated();
        scene.arrived();
        assert_eq!(scene.proxy.tally().rebound, rebound + 1, "{at}");
        let received = scene.proxy.received() - before;
        assert!(received < 5 * MIB as u64, "{received} bytes at {at}");
        scene.begin_again().await;
    }
    assert!(scene.proxy.received() > begun);
    // While nothing goes on: what the server says then goes to the old port, and is lost until the node speaks again.
    scene.node.sync().await.updated();
    let daemon = scene.node.daemon();
    let connected = async || scene.fleet.operator.node("n1").await.filter(|node| node["connected"] == true);
    eventually("n1 is connected", connected).await;
    let rebound = scene.proxy.tally().rebound;
    scene.proxy.rebind();
    scene.fleet.operator.promote("web:1", "production").await;
    runs(&scene.node, &scene.old).await;
    assert!(scene.proxy.tally().rebound > rebound);
    daemon.stop().await;
}

/// Goal: a line that goes silent one way is given up after the idle limit, with an error that says so, and the daemon tries again by
/// itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_stalls_one_way() {
    for (number, way, at) in [(0, Way::Down, 2 * MIB as u64), (1, Way::Up, 5_000)] {
        let scene = Scene::new(140 + number, 8, "").await;
        scene.proxy.stall_after(way, at);
        let (error, code) = scene.node.sync().await.failed();
        assert!(code == 4 && error.contains("the connection was lost: timed out"), "{way:?}: {error}");
        scene.untouched();
        assert!(scene.proxy.tally().swallowed > 0);
        let daemon = scene.node.daemon();
        eventually("it tries again", async || (scene.proxy.tally().swallowed > 5).then_some(())).await;
        scene.proxy.heal();
        runs(&scene.node, &scene.new).await;
        daemon.stop().await;
        scene.arrived();
    }
}

/// Goal: a server that is there and does not send what is due (its line lives on) is an error after `limits.silence`; the daemon says so
/// to the operator, and tries again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stalls() {
    let scene = Scene::new(150, 1, "silence = \"1 s\"").await;
    let objects = std::sync::atomic::AtomicU64::new(0);
    let liar = Liar::between(&scene.node, &scene.fleet, move |request| match request {
        Request::Object { .. } if objects.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => Say::Stuck(vec![9]),
        _ => Say::Truth,
    });
    let node = scene.node.by(liar.address());
    let daemon = node.daemon();
    let reported = async || {
        let node = scene.fleet.operator.node("n1").await?;
        node["report"]["error"].as_str()?.contains("nothing arrived for 1 s while").then_some(())
    };
    eventually("the operator sees it", reported).await;
    scene.untouched();
    runs(&node, &scene.new).await;
    daemon.stop().await;
    scene.arrived();
}

/// Goal: a line that drips, a packet now and then and never silence, does not hold a node for ever: it is noticed, and
/// said to everybody, with rate, limit and remedy; when the line is good again, the update goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_drips() {
    let scene = Scene::new(160, 4, "slowest = \"64 KiB/s over 3 s\"").await;
    scene.proxy.rate(8_000);
    let words = ["slow retrieval", "B/s arrived while", "`limits.slowest` is 64 KiB/s over 3 s", "try another network"];
    scene.node.agent(&["sync"]).await.fails(4, &words);
    scene.untouched();
    scene.told_everybody(&scene.node, &words).await;
    scene.proxy.heal();
    scene.node.sync().await.updated();
    scene.arrived();
}

/// Goal: the same from a server that drips byte by byte, whatever it was asked: an answer's frame as well as every kind of body.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drips() {
    let scene = Scene::new(170, 1, "slowest = \"1 KiB/s over 1 s\"").await;
    type Kind = fn(&Request) -> bool;
    let kinds: [(&str, Kind); 6] = [
        ("trust", |request| matches!(request, Request::Trust { .. })),
        ("plan", |request| matches!(request, Request::Plan { .. })),
        ("object", |request| matches!(request, Request::Object { .. })),
        ("blocks", |request| matches!(request, Request::Blocks { .. })),
        ("grain hashes", |request| matches!(request, Request::GrainHashes { .. })),
        ("grains", |request| matches!(request, Request::Grains { .. })),
    ];
    let mut empty = scene.fleet.node("n2").await;
    empty.more = scene.node.more.clone();
    for (what, drips) in kinds {
        // Without a plan a node goes by the signature, and asks for grains, or for blocks if it has nothing to look in.
        let without_plan = matches!(what, "blocks" | "grain hashes" | "grains");
        let node = if what == "blocks" { &empty } else { &scene.node };
        let liar = Liar::between(node, &scene.fleet, move |request| match request {
            request if drips(request) => Say::Drip(Duration::from_millis(50)),
            Request::Plan { .. } if without_plan => {
                let refusal = goldsync_proto::refusal::Refusal::new(goldsync_proto::refusal::Reason::Busy, "not now");
                Say::answer(&goldsync_proto::wire::Answer::Refused { refusal }, &[])
            }
            _ => Say::Truth,
        });
        let node = node.by(liar.address());
        let ran = node.agent(&["sync"]).await.fails(4, &["slow retrieval", "`limits.slowest` is 1 KiB/s over 1 s"]);
        println!("{what}: {}", ran.err.trim());
        scene.untouched();
        scene.told_everybody(&node, &["slow retrieval"]).await;
    }
    scene.node.by(scene.fleet.quic()).sync().await.updated();
    scene.arrived();
}

/// Goal: what only a kernel's own network has: an MTU of 1280, an address that becomes another one in the middle of a download, a
/// cable that is pulled for a while. One run comes through all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_on_the_move() {
    let name = "a_machine_on_the_move";
    let net = match Net::new(1280) {
        Ok(net) => net,
        Err(why) => return skip(name, &format!("no network namespace here: {why}")),
    };
    let fleet = Fleet::start_on(net.outside(), |_| {}).await;
    let (old, new) = (Image::noise(180, 4), Image::noise(181, 24));
    let node = fleet.node("n1").await;
    for (release, image) in [("web:1", &old), ("web:2", &new)] {
        fleet.ship(image, release).await;
        let run = net.spawn(&node, &["sync", "--json"]);
        if release == "web:2" {
            let standby = node.slot(SlotName::B).to_owned();
            let begun =
                || std::fs::metadata(&standby).is_ok_and(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) > 0);
            eventually("something is staged", async || begun().then_some(())).await;
            net.move_on();
            net.cable(false);
            tokio::time::sleep(Duration::from_millis(300)).await;
            net.cable(true);
        }
        let ran = node.finish(run).await.ok();
        assert_eq!(ran.json()["outcome"], "updated", "{}", ran.out);
        node.runs(image);
        node.tells_no_lie();
    }
    // And for good.
    net.cable(false);
    let run = net.spawn(&node, &["check"]);
    node.finish(run).await.fails(4, &["cannot be reached"]);
}
