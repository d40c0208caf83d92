//! Plans that are there before a node asks, and get better while nobody looks.

use goldsync_server::config::Config;
use goldsync_tests::image::MIB;
use goldsync_tests::{Fleet, Image, Proxy, eventually};
use serde_json::Value;

/// A program of which a new version means other addresses everywhere: equal pieces are short, near copies long.
fn rewired(image: &Image) -> Image {
    let mut bytes = image.bytes.clone();
    bytes.chunks_exact_mut(4).skip(3).step_by(9).for_each(|operand| operand[0] = operand[0].wrapping_add(0x40));
    Image { bytes }
}

/// What `goldsync release show` says of the release's only likely base.
async fn base_of(fleet: &Fleet, release: &str) -> Value {
    let shown = fleet.operator.json(["release", "show", release]).await;
    let bases = shown["bases"].as_array().cloned().unwrap_or_default();
    assert_eq!(bases.len(), 1, "{shown}");
    bases[0].clone()
}

async fn until(fleet: &Fleet, release: &str, plan: &str) -> Value {
    eventually(&format!("{release} has a {plan} plan"), async || {
        let base = base_of(fleet, release).await;
        (base["plan"] == plan && base["under_way"] == false).then_some(base)
    })
    .await
}

/// Goal: a release knows where its nodes come from; the plan is there, and good, before the first of them asks.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_before_anybody_asks() {
    let fleet = Fleet::start().await;
    let old = Image::noise(1, 4);
    let new = rewired(&old);
    fleet.ship(&old, "web:1").await;
    let node = fleet.node("n1").await;
    node.sync().await.updated();
    // A daemon says what its node runs.
    let daemon = node.daemon();
    fleet.publish(&new, "web:2").await;
    eventually("the node is counted", async || (base_of(&fleet, "web:2").await["nodes"] == 1).then_some(())).await;
    let base = until(&fleet, "web:2", "thorough").await;
    assert_eq!(base["image"], old.id());
    assert_eq!(base["releases"], serde_json::json!(["web:1"]));
    let text = fleet.operator.run(["release", "show", "web:2"]).await.ok().out;
    assert!(text.contains("web:1 (1 node): thorough, "), "{text}");

    daemon.stop().await;
    fleet.operator.promote("web:2", "production").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    let bytes = base["bytes"].as_u64().expect("bytes");
    assert!(account.received < bytes + 16 * 1024, "{bytes} bytes were announced: {account:?}");
}

/// Goal: nodes that cannot wait take the quick plan; the thorough one takes its place, a restart in between or not, for those
/// that come later; and who was in the middle of the quick one loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_thorough_plan_takes_the_quick_ones_place() {
    let mut fleet = Fleet::start_with(|config: &mut Config| config.plans.thorough = false).await;
    let old = Image::noise(2, 6);
    let new = rewired(&old);
    fleet.ship(&old, "web:1").await;
    let (first, half_way, later) = (fleet.node("n1").await, fleet.node("n2").await, fleet.node("n3").await);
    for node in [&first, &half_way, &later] {
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
    until(&fleet, "web:2", "thorough").await;
    let thorough = later.sync().await.updated();
    later.runs(&new);
    assert_eq!(thorough.path, "pack");
    assert!(thorough.received * 2 < quick.received, "{thorough:?} after {quick:?}");

    proxy.heal();
    let rest = half_way.sync().await.updated();
    half_way.runs(&new);
    let unpacked = (new.len() / MIB as u64 / 2).saturating_sub(1);
    let spared = thorough.received * unpacked / (new.len() / MIB as u64);
    assert!(rest.received + spared / 2 < thorough.received, "packs that were unpacked are not fetched again: {rest:?}");
}
