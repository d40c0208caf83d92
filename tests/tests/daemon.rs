//! The daemon: told when there is work, never polling, never losing a change; and the operator who orders and turns away.
//!
//! No node here has a schedule, unless its test says so: whatever a daemon does after its first look, it was told to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use goldsync_proto::wire::{Answer, Request};
use goldsync_server::config::units::Span;
use goldsync_tests::image::MIB;
use goldsync_tests::liar::framed;
use goldsync_tests::{Fleet, Image, Liar, Machine, Proxy, Say, eventually};
use serde_json::Value;

async fn runs(node: &Machine, image: &Image) {
    let id = image.id();
    eventually(&format!("{} runs {id}", node.name), async || {
        (node.link().exists() && node.running() == id).then_some(())
    })
    .await;
}

/// The node as `fleet status` shows it, once `wanted` is true of it.
async fn shown(fleet: &Fleet, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name} {what}"), async || fleet.operator.node(name).await.filter(|node| wanted(node))).await
}

async fn connected(fleet: &Fleet, name: &str) {
    shown(fleet, name, "is connected", |node| node["connected"] == true).await;
}

/// Goal: a promotion reaches a connected node by itself, and the operator sees it arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_pushed() {
    let fleet = Fleet::start().await;
    let (old, new) = (Image::new(1, 2), Image::new(1, 2).edited(10, 5));
    let node = fleet.node("n1").await;
    let daemon = node.daemon();
    connected(&fleet, "n1").await;
    fleet.ship(&old, "web:1").await;
    runs(&node, &old).await;
    fleet.ship(&new, "web:2").await;
    runs(&node, &new).await;
    let seen = shown(&fleet, "n1", "says what it runs", |node| node["report"]["active"]["release"] == "web:2").await;
    assert_eq!(seen["current"], true, "{seen}");
    assert_eq!(seen["report"]["standby"]["release"], "web:1", "{seen}");
    daemon.stop().await;
    shown(&fleet, "n1", "is gone", |node| node["connected"] == false).await;
}

/// Goal: only the channel's own nodes move.
#[tokio::test(flavor = "multi_thread")]
async fn another_channel_is_not_ours() {
    let fleet = Fleet::start().await;
    let (image, other) = (Image::new(2, 2), Image::new(20, 2));
    let (ours, mut theirs) = (fleet.node("n1").await, fleet.node("n2").await);
    theirs.channel = "staging".into();
    theirs.write_config();
    fleet.ship(&image, "web:1").await;
    fleet.operator.promote("web:1", "staging").await;
    let daemons = [ours.daemon(), theirs.daemon()];
    for node in [&ours, &theirs] {
        runs(node, &image).await;
        connected(&fleet, &node.name).await;
    }
    fleet.publish(&other, "web:2").await;
    fleet.operator.promote("web:2", "staging").await;
    runs(&theirs, &other).await;
    assert_eq!(ours.running(), image.id());
    for daemon in daemons {
        daemon.stop().await;
    }
}

/// Goal: a change that arrives during an update is handled after it. The line is cut in the middle of the first update, the
/// channel moves on in that silence, and the node must end at the second release with nobody telling it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_during_an_update_is_not_lost() {
    let fleet = Fleet::start().await;
    let (first, second) = (Image::noise(3, 6), Image::noise(30, 2));
    let proxy = Proxy::to(fleet.quic()).await;
    let node = fleet.node("n1").await.by(proxy.address());
    let daemon = node.daemon();
    connected(&fleet, "n1").await;
    fleet.publish(&first, "web:1").await;
    fleet.publish(&second, "web:2").await;
    proxy.cut_after(2 * MIB as u64);
    fleet.operator.promote("web:1", "production").await;
    proxy.is_cut().await;
    fleet.operator.promote("web:2", "production").await;
    proxy.heal();
    runs(&node, &second).await;
    daemon.stop().await;
    node.tells_no_lie();
}

/// Goal: a server that is stopped and started again finds its nodes back, and they what they missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_restart() {
    let mut fleet = Fleet::start().await;
    let (old, new) = (Image::new(4, 2), Image::new(4, 2).edited(40, 5));
    fleet.ship(&old, "web:1").await;
    fleet.publish(&new, "web:2").await;
    let node = fleet.node("n1").await;
    let daemon = node.daemon();
    runs(&node, &old).await;
    connected(&fleet, "n1").await;
    fleet.down().await;
    fleet.up().await;
    connected(&fleet, "n1").await;
    fleet.operator.promote("web:2", "production").await;
    runs(&node, &new).await;
    daemon.stop().await;
}

/// Goal: the same when the server dies without a word: the node finds out by its silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_crash() {
    let mut fleet = Fleet::start_with(|config| {
        (config.nodes.keep_alive, config.nodes.idle_timeout) = (Span::seconds(1), Span::seconds(3));
    })
    .await;
    let (old, new) = (Image::new(5, 2), Image::new(5, 2).edited(50, 5));
    fleet.ship(&old, "web:1").await;
    fleet.publish(&new, "web:2").await;
    let node = fleet.node("n1").await;
    let daemon = node.daemon();
    runs(&node, &old).await;
    connected(&fleet, "n1").await;
    fleet.crash().await;
    fleet.up().await;
    fleet.operator.promote("web:2", "production").await;
    runs(&node, &new).await;
    daemon.stop().await;
}

/// Goal: a revoked node loses its open connection at once, is refused afterwards with words that say why, and keeps what
/// it runs.
#[tokio::test(flavor = "multi_thread")]
async fn revocation() {
    let fleet = Fleet::start().await;
    let (old, new) = (Image::new(6, 2), Image::new(6, 2).edited(60, 5));
    fleet.ship(&old, "web:1").await;
    let (node, other) = (fleet.node("n1").await, fleet.node("n2").await);
    let daemons = [node.daemon(), other.daemon()];
    for node in [&node, &other] {
        runs(node, &old).await;
        connected(&fleet, &node.name).await;
    }
    let link = node.node().connect().await.expect("a connection");
    fleet.operator.json(["node", "revoke", "n1"]).await;
    assert!(link.closed().await.revoked(), "the open connection was not closed for that reason");
    fleet.ship(&new, "web:2").await;
    runs(&other, &new).await;
    node.agent(&["sync"]).await.fails(4, &["revoked", "enrol"]);
    assert_eq!(node.running(), old.id());
    let listed = fleet.operator.json(["node", "list"]).await;
    let listed = listed.as_array().expect("nodes").iter().find(|node| node["node"] == "n1").cloned().expect("n1");
    assert_eq!((&listed["revoked"], &listed["connected"]), (&true.into(), &false.into()), "{listed}");
    // A new token makes it a node again; a daemon that waits notices by itself.
    let token = fleet.operator.token().await;
    node.agent(&["enroll", "--force", "--token", &token, "--name", "n3"]).await.ok();
    runs(&node, &new).await;
    for daemon in daemons {
        daemon.stop().await;
    }
}

/// Goal: a fleet sync reaches every connected node, shows each one's progress, and ends with what each came to; its exit
/// code is not 0 if any node failed or is away.
#[tokio::test(flavor = "multi_thread")]
async fn fleet_sync() {
    let fleet = Fleet::start().await;
    let image = Image::new(7, 3);
    let mut nodes = Vec::new();
    for name in ["n1", "n2", "n3"] {
        let mut node = fleet.node(name).await;
        // It would wait for hours of its own accord.
        let role = if name == "n3" { "db" } else { "web" };
        node.more = format!("[labels]\nrole = \"{role}\"\n");
        node.schedule = "splay = \"6 h\"".into();
        node.write_config();
        nodes.push(node);
    }
    let daemons: Vec<_> = nodes.iter().map(Machine::daemon).collect();
    for node in &nodes {
        connected(&fleet, &node.name).await;
    }
    fleet.publish(&image, "web:1").await;
    fleet.operator.promote("web:1", "production").await;
    // A folder in the slot's place: this node cannot do it.
    std::fs::create_dir(&nodes[2].slots[0]).expect("a folder");

    let web = ["fleet", "sync", "--channel", "production", "--selector", "role=web", "--now"];
    let ran = fleet.operator.run(web).await.ok();
    for words in ["n1", "n2", "updated", "web:1", "cold"] {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
    assert!(!ran.out.contains("n3"), "{}", ran.out);
    assert!(ran.err.contains("n1") && ran.err.contains("n2"), "progress: {}", ran.err);
    for node in &nodes[..2] {
        node.runs(&image);
    }

    let all = fleet.operator.run(["fleet", "sync", "--channel", "production", "--now", "--json"]).await;
    let all = all.fails(1, &["1 node failed"]);
    let synced = all.json();
    assert_eq!(synced["good"], false, "{synced}");
    assert!(all.out.contains("folder"), "the node's own words: {}", all.out);
    let status = fleet.operator.run(["fleet", "status"]).await.ok();
    assert!(status.out.contains("2 current") && status.out.contains("1 failed"), "{}", status.out);

    let mut daemons = daemons.into_iter();
    daemons.next_back().expect("n3's").stop().await;
    shown(&fleet, "n3", "is gone", |node| node["connected"] == false).await;
    fleet.operator.run(["fleet", "sync", "--channel", "production", "--now"]).await.fails(1, &["not connected"]);
    let forgiven = ["fleet", "sync", "--channel", "production", "--now", "--allow-absent"];
    fleet.operator.run(forgiven).await.ok();
    fleet.operator.run(["fleet", "sync", "--channel", "qa", "--now"]).await.fails(1, &["no node"]);
    for daemon in daemons {
        daemon.stop().await;
    }
}

/// Goal: a node that nobody tells anything looks by its schedule. Between node and server stands somebody who swallows all
/// that the server says on the control stream.
#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_is_a_fallback() {
    let fleet = Fleet::start().await;
    let image = Image::new(8, 2);
    let mut node = fleet.node("n1").await;
    node.schedule = "cron = \"* * * * *\"\nsplay = \"0\"".into();
    let deaf = Arc::new(AtomicBool::new(false));
    let heard = deaf.clone();
    let liar = Liar::between(&node, &fleet, move |request| match request {
        Request::Control { .. } => {
            heard.store(true, Ordering::SeqCst);
            Say::Stuck(framed(&Answer::Welcome { version: "0.0.0".into() }))
        }
        _ => Say::Truth,
    });
    let node = node.by(liar.address());
    let daemon = node.daemon();
    eventually("the daemon's hello", async || deaf.load(Ordering::SeqCst).then_some(())).await;
    eventually("its first look", async || (liar.asked() >= 2).then_some(())).await;
    fleet.ship(&image, "web:1").await;
    runs(&node, &image).await;
    daemon.stop().await;
}

/// Goal: a release that was rolled back from on a node is left alone there until the channel moves on, or somebody asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_stays() {
    let mut fleet = Fleet::start().await;
    let old = Image::new(9, 2);
    let (bad, good) = (old.edited(90, 5), old.edited(91, 5));
    fleet.ship(&old, "web:1").await;
    let node = fleet.node("n1").await;
    let daemon = node.daemon();
    runs(&node, &old).await;
    fleet.ship(&bad, "web:2").await;
    runs(&node, &bad).await;
    eventually("the update is over", async || node.node().journal.holder().is_none().then_some(())).await;
    node.agent(&["rollback"]).await.ok();
    shown(&fleet, "n1", "says that it went back", |node| node["report"]["active"]["release"] == "web:1").await;
    // Every new connection begins with a look.
    fleet.down().await;
    fleet.up().await;
    connected(&fleet, "n1").await;
    let looked = fleet.operator.run(["fleet", "status"]).await.ok();
    assert!(looked.out.contains("web:1"), "{}", looked.out);
    assert_eq!(node.running(), old.id());
    fleet.ship(&good, "web:3").await;
    runs(&node, &good).await;
    daemon.stop().await;
}

/// Goal: a machine that is no node yet waits, and begins when it becomes one.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_before_its_enrolment() {
    let fleet = Fleet::start().await;
    let image = Image::new(10, 2);
    fleet.ship(&image, "web:1").await;
    let node = fleet.machine("n1");
    let daemon = node.daemon();
    let token = fleet.operator.token().await;
    node.agent(&["enroll", "--token", &token, "--name", "n1"]).await.ok();
    runs(&node, &image).await;
    daemon.stop().await;
}
