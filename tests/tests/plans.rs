//! Plans that are there before a node asks, and get better while nobody looks.

use goldsync_server::config::Config;
use goldsync_tests::{Fleet, Image, Machine, Proxy, eventually};
use serde_json::Value;

/// A program of which a new version means other addresses everywhere: equal pieces are short, near copies long. Most addresses move
/// as far as the others, some a little farther.
fn rewired(image: &Image) -> Image {
    let mut bytes = image.bytes.clone();
    for operand in bytes.chunks_exact_mut(4).skip(3).step_by(9) {
        let by = if operand[1] < 16 { 0x41 } else { 0x40 };
        operand[0] = operand[0].wrapping_add(by);
    }
    Image { bytes }
}

/// What `goldsync release show` says of the release's only likely base.
async fn base_of(fleet: &Fleet, release: &str) -> Value {
    let shown = fleet.operator.json(["release", "show", release]).await;
    let bases = shown["bases"].as_array().cloned().unwrap_or_default();
    assert_eq!(bases.len(), 1, "{shown}");
    bases[0].clone()
}

/// Waits until the likely base has a plan of this kind, and nothing is under way.
async fn until(fleet: &Fleet, release: &str, kind: &str) -> Value {
    eventually(&format!("{release} has a {kind} plan"), async || {
        let base = base_of(fleet, release).await;
        (base[kind].is_u64() && base["under_way"] == false).then_some(base)
    })
    .await
}

/// A node that would rather spare bytes than time.
async fn frugal(fleet: &Fleet, name: &str) -> Machine {
    let mut node = fleet.node(name).await;
    node.more = "prefer = \"bytes\"\n".into();
    node.write_config();
    node
}

/// Goal: a release knows where its nodes come from; the plans are there, and good, before the first of them asks; and each node
/// gets the kind that it prefers.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_before_anybody_asks() {
    let fleet = Fleet::start().await;
    let old = Image::noise(1, 4);
    let new = rewired(&old);
    fleet.ship(&old, "web:1").await;
    let (hasty, frugal) = (fleet.node("n1").await, frugal(&fleet, "n2").await);
    for node in [&hasty, &frugal] {
        node.sync().await.updated();
    }
    // A daemon says what its node runs.
    let daemon = hasty.daemon();
    fleet.publish(&new, "web:2").await;
    eventually("the node is counted", async || (base_of(&fleet, "web:2").await["nodes"] == 1).then_some(())).await;
    let base = until(&fleet, "web:2", "smallest").await;
    assert_eq!(base["image"], old.id());
    assert_eq!(base["releases"], serde_json::json!(["web:1"]));
    let text = fleet.operator.run(["release", "show", "web:2"]).await.ok().out;
    assert!(
        text.contains("web:1 (1 node): quick ") && text.contains(", thorough ") && text.contains(", smallest "),
        "{text}"
    );

    daemon.stop().await;
    fleet.operator.promote("web:2", "production").await;
    let (thorough, smallest) = (hasty.sync().await.updated(), frugal.sync().await.updated());
    for (node, account, kind) in [(&hasty, &thorough, "thorough"), (&frugal, &smallest, "smallest")] {
        node.runs(&new);
        let bytes = base[kind].as_u64().expect("bytes");
        assert!((bytes..bytes + 16 * 1024).contains(&account.received), "{kind}: {bytes} were announced: {account:?}");
    }
    let quick = base["quick"].as_u64().expect("bytes");
    assert!(
        thorough.received * 3 < quick * 2 && smallest.received < thorough.received,
        "{thorough:?}, {smallest:?}, {quick}"
    );
}

/// Goal: who cannot wait takes the quick plan; better ones come later, a restart in between or not; and who was in the
/// middle of the quick one goes on with what is there.
#[tokio::test(flavor = "multi_thread")]
async fn better_plans_come_later() {
    let mut fleet = Fleet::start_with(|config: &mut Config| config.plans.thorough = false).await;
    let old = Image::noise(2, 6);
    let new = rewired(&old);
    fleet.ship(&old, "web:1").await;
    let (first, half_way) = (frugal(&fleet, "n1").await, frugal(&fleet, "n2").await);
    for node in [&first, &half_way] {
        node.sync().await.updated();
    }
    fleet.ship(&new, "web:2").await;
    let quick = first.sync().await.updated();
    first.runs(&new);
    assert_eq!(quick.path, "pack");
    until(&fleet, "web:2", "quick").await;

    let proxy = Proxy::to(fleet.quic()).await;
    let half_way = half_way.by(proxy.address());
    proxy.cut_after(quick.received / 2);
    let mut run = half_way.spawn(&["sync"]);
    proxy.is_cut().await;
    run.kill().await.expect("SIGKILL");
    half_way.runs(&old);

    fleet.down().await;
    fleet.reconfigure(|config| config.plans.thorough = true);
    fleet.up().await;
    until(&fleet, "web:2", "smallest").await;
    proxy.heal();
    let rest = half_way.sync().await.updated();
    half_way.runs(&new);
    assert!(
        rest.received < quick.received * 7 / 10,
        "what was unpacked is not fetched again: {rest:?} after {quick:?}"
    );
}
