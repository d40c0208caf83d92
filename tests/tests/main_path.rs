//! The main job: a node becomes the golden image, byte for byte, whatever it had before.

use goldsync_agent::journal::SlotRecord;
use goldsync_agent::slot::SlotName;
use goldsync_proto::wire::Outcome;
use goldsync_tests::disk::{Mounted, make_xfs, skip};
use goldsync_tests::image::MIB;
use goldsync_tests::{Fleet, Image, Proxy, damage, eventually};

/// What "nothing to do" may cost beyond the handshake, both ways together.
const UP_TO_DATE: u64 = 2048;

/// A node with nothing at all gets the whole image, and it runs.
#[tokio::test(flavor = "multi_thread")]
async fn cold() {
    let fleet = Fleet::start().await;
    let image = Image::new(1, 8);
    fleet.ship(&image, "web:1").await;
    let node = fleet.node("n1").await;
    let account = node.sync().await.updated();
    node.runs(&image);
    assert_eq!(account.path, "cold");
    let blocks = image.len() / 4096;
    assert_eq!(account.written + account.skipped, blocks, "every block is written or skipped, once: {account:?}");
    assert!(account.received < image.len(), "{account:?}");
    // Three of sixteen extents are zeros, and seven are text: what travels is far less than what it weighs.
    assert!(account.received < image.len() * 6 / 10, "{account:?}");
}

/// A node that runs a known release fetches a pack: about what changed, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn update_by_pack() {
    let old = Image::new(2, 8);
    let new = old.edited(20, 40);
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    assert_eq!((account.path.as_str(), account.repaired), ("pack", 0), "{account:?}");
    // 40 blocks of noise are 160 KiB; plan, metadata and packets are the rest.
    assert!(account.received < 40 * 4096 + 32 * 1024, "{account:?}");
    // The old image is in the other slot, whole.
    assert_eq!(goldsync_tests::image::b3sum(node.slot(SlotName::A)), old.id());
    assert_eq!(node.active(), Some(SlotName::B));
    // The third update overwrites what differs, not the whole slot.
    let newer = new.edited(21, 10);
    fleet.ship(&newer, "web:3").await;
    let account = node.sync().await.updated();
    node.runs(&newer);
    assert!(account.written <= 60, "slot a held web:1, of which at most 50 blocks differ: {account:?}");
}

/// A small change in a large binary costs a fraction of the blocks that it touches: packs have a prefix from the base.
#[tokio::test(flavor = "multi_thread")]
async fn a_nudge_costs_less_than_its_blocks() {
    let old = Image::noise(3, 4);
    let new = old.nudged(30, 200);
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    assert!(account.received < 200 * 4096 / 8, "200 changed bytes in 200 blocks of noise: {account:?}");
}

/// An image that the server never saw is a source like any other: the node plans by the signature.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_base_by_signature() {
    let fleet = Fleet::start().await;
    let golden = Image::new(4, 8);
    fleet.ship(&golden, "web:1").await;
    let node = fleet.node("n1").await;
    node.preload(&golden.edited(40, 100));
    let account = node.sync().await.updated();
    node.runs(&golden);
    assert_eq!(account.path, "signature");
    assert!(account.received < golden.len() / 8, "{account:?}");
}

/// The same where the bytes lie off the grid, so that only the rolling scan finds them.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_base_off_the_grid() {
    let fleet = Fleet::start().await;
    let golden = Image::new(5, 8);
    fleet.ship(&golden, "web:1").await;
    let node = fleet.node("n1").await;
    node.preload(&golden.shifted(50, 300_000, 1111));
    let account = node.sync().await.updated();
    node.runs(&golden);
    assert_eq!(account.path, "signature");
    assert!(account.received < golden.len() / 8, "{account:?}");
}

/// An image that was written by hand and then mounted read-write is no release, and yet nearly one: it goes the way of that one.
#[tokio::test(flavor = "multi_thread")]
async fn unknown_base_that_was_a_release() {
    let fleet = Fleet::start().await;
    let old = Image::new(12, 8);
    let new = old.nudged(120, 400);
    for (image, release) in [(&old.shifted(121, 0, 5000), "web:0"), (&old, "web:1"), (&new, "web:2")] {
        fleet.ship(image, release).await;
    }
    let (near, far) = (fleet.node("near").await, fleet.node("far").await);
    near.preload(&old.edited(122, 20));
    far.preload(&old.edited(123, 400));
    let (near_account, far_account) = (near.sync().await.updated(), far.sync().await.updated());
    near.runs(&new);
    far.runs(&new);
    assert_eq!((near_account.path.as_str(), far_account.path.as_str()), ("pack", "signature"));
    // Once for each pack that needs it, and once where it was copied.
    assert!((1..=60).contains(&near_account.repaired), "{near_account:?}");
    assert!(near_account.received * 3 < far_account.received, "{near_account:?} beside {far_account:?}");
    // The golden image itself is nearer than the one before it.
    let same = fleet.node("same").await;
    same.preload(&new.edited(124, 5));
    assert_eq!(same.sync().await.updated().path, "signature");
    same.runs(&new);
}

/// A machine that came with the golden image, proven by nobody, is recognised: nothing is fetched, nothing written.
#[tokio::test(flavor = "multi_thread")]
async fn golden_before_it_was_a_node() {
    let fleet = Fleet::start().await;
    let golden = Image::new(6, 4);
    fleet.ship(&golden, "web:1").await;
    let node = fleet.node("n1").await;
    node.preload(&golden);
    let told = node.sync().await;
    assert!(matches!(told.result, Ok(Outcome::UpToDate)), "{told:?}");
    node.runs(&golden);
    assert!(!node.slot(SlotName::B).exists(), "the standby slot was not needed");
}

/// A known base with drifted blocks stays on the way of packs: what the pack needs is repaired, then it is applied.
#[tokio::test(flavor = "multi_thread")]
async fn drifted_base_by_pack_with_repair() {
    let old = Image::new(7, 8);
    let new = old.edited(70, 40);
    let (fleet, node) = Fleet::with_node(&old).await;
    damage::flip(node.slot(SlotName::A), 71, 25);
    let drifted = goldsync_tests::image::b3sum(node.slot(SlotName::A));
    fleet.ship(&new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    assert_eq!(account.path, "pack");
    assert!(account.repaired > 0 && account.repaired <= 25, "{account:?}");
    assert!(account.received < (40 + 25) * 4096 + 48 * 1024, "{account:?}");
    // The active slot is never written, drifted or not.
    assert_eq!(goldsync_tests::image::b3sum(node.slot(SlotName::A)), drifted);
}

/// Rolling back is the same atomic step to what ran before; the server is not needed.
#[tokio::test(flavor = "multi_thread")]
async fn rollback() {
    let mut fleet = Fleet::start().await;
    let old = Image::new(8, 4);
    let new = old.edited(80, 20);
    fleet.ship(&old, "web:1").await;
    let node = fleet.node("n1").await;
    node.sync().await.updated();
    node.agent(&["rollback"]).await.fails(1, &["slot b"]);
    fleet.ship(&new, "web:2").await;
    node.sync().await.updated();
    fleet.down().await;
    node.agent(&["rollback"]).await.ok();
    node.runs(&old);
    node.agent(&["activate"]).await.ok();
    node.runs(&new);
}

/// Download now, switch later: `download` changes nothing that runs, `activate` needs no server.
#[tokio::test(flavor = "multi_thread")]
async fn download_now_activate_later() {
    let mut fleet = Fleet::start().await;
    let old = Image::new(9, 4);
    let new = old.edited(90, 20);
    fleet.ship(&old, "web:1").await;
    let node = fleet.node("n1").await;
    node.sync().await.updated();
    fleet.ship(&new, "web:2").await;
    let account = node.download().await.ok().expect("something to download");
    assert_eq!(account.path, "pack");
    node.runs(&old);
    assert!(node.download().await.ok().is_none(), "it is staged already");
    fleet.down().await;
    node.agent(&["activate"]).await.ok();
    node.runs(&new);
}

/// Promotion back to an older release is an ordinary, signed act: nodes go back, and what they still hold is not fetched.
#[tokio::test(flavor = "multi_thread")]
async fn promotion_back() {
    let old = Image::new(10, 4);
    let new = old.edited(100, 20);
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    node.sync().await.updated();
    fleet.operator.promote("web:1", "production").await;
    let account = node.sync().await.updated();
    node.runs(&old);
    assert_eq!((account.path.as_str(), account.written), ("staged", 0), "{account:?}");
    let history = fleet.operator.json(["channel", "history", "production"]).await;
    let releases: Vec<_> = history.as_array().expect("promotions").iter().map(|one| one["release"].clone()).collect();
    assert_eq!(releases, ["web:1", "web:2", "web:1"]);
}

/// A second sync moves under 2 KiB beyond the handshake and writes nothing at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_sync_is_a_no_op() {
    let image = Image::new(11, 4);
    let (_fleet, node) = Fleet::with_node(&image).await;
    let before = node.stamps();
    let told = node.sync().await;
    let wire = told.wire.received + told.wire.sent;
    assert!(matches!(told.result, Ok(Outcome::UpToDate)), "{told:?}");
    assert!(wire < UP_TO_DATE, "{wire} bytes: {:?}", told.wire);
    assert_eq!(node.stamps().differing(&before), Vec::<std::path::PathBuf>::new());
    // The command line too, which also remembers how a run ended, once: a look that finds nothing new is not worth a write.
    node.agent(&["sync"]).await.ok();
    let before = node.stamps();
    node.agent(&["sync"]).await.ok();
    node.agent(&["check"]).await.ok();
    assert_eq!(node.stamps().differing(&before), Vec::<std::path::PathBuf>::new());
}

/// Images may grow and shrink from release to release.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_other_sizes() {
    let fleet = Fleet::start().await;
    let small = Image::new(12, 3);
    let large = small.grown(120, 2);
    let node = fleet.node("n1").await;
    for (version, image) in [small.clone(), large.clone(), small.edited(121, 3), large.cut(4)].iter().enumerate() {
        let release = format!("web:{version}");
        fleet.ship(image, &release).await;
        node.sync().await.updated();
        node.runs(image);
        assert_eq!(std::fs::metadata(node.link()).expect("the active slot").len(), image.len());
    }
}

/// A sparse image stays sparse: zeros travel as a step of the plan and become holes.
#[tokio::test(flavor = "multi_thread")]
async fn sparse_stays_sparse() {
    use std::os::unix::fs::MetadataExt;
    let fleet = Fleet::start().await;
    let image = Image::sparse(13, 32);
    fleet.ship(&image, "web:1").await;
    let node = fleet.node("n1").await;
    let account = node.sync().await.updated();
    node.runs(&image);
    assert!(account.received < 32 * 4096 * 2, "{account:?}");
    let held = std::fs::metadata(node.slot(SlotName::A)).expect("slot a").blocks() * 512;
    assert!(held < 2 * MIB as u64, "{held} bytes are allocated for 32 blocks of data");
}

/// Drift is found block by block, and repaired through a standby copy; the drifted slot itself is not written.
#[tokio::test(flavor = "multi_thread")]
async fn drift_is_found_and_repaired() {
    let image = Image::new(14, 4);
    let (_fleet, node) = Fleet::with_node(&image).await;
    node.agent(&["verify"]).await.ok();
    let flipped = damage::flip(node.slot(SlotName::A), 140, 5);
    let report = node.verify().await.ok();
    let found: Vec<u32> = report.runs.iter().flat_map(|(first, count)| *first..first + count).collect();
    assert_eq!((found, report.drifted), (flipped, 5));
    node.agent(&["verify"]).await.fails(6, &[]);
    let drifted = goldsync_tests::image::b3sum(node.slot(SlotName::A));
    let account = node.repair().await.updated();
    node.runs(&image);
    assert_eq!(node.active(), Some(SlotName::B));
    assert_eq!((account.path.as_str(), account.repaired), ("repair", 5), "{account:?}");
    assert!(account.received < 5 * 4096 + 24 * 1024, "{account:?}");
    assert_eq!(goldsync_tests::image::b3sum(node.slot(SlotName::A)), drifted);
    // What drifted is nothing to go back to, and nobody says that it holds the release.
    assert!(matches!(node.record(SlotName::A), SlotRecord::Empty), "{:?}", node.record(SlotName::A));
    node.agent(&["rollback"]).await.fails(1, &["nothing to activate"]);
    let report = goldsync_agent::status::report(&node.node().config, &node.node().journal).expect("a report");
    let standby = report.standby.expect("the standby slot");
    assert_eq!((standby.slot.as_str(), standby.image, standby.release), ("a", None, None));
    assert!(matches!(node.repair().await.ok(), Outcome::UpToDate));
}

/// Every verb of the agent's command line, as a newcomer would use them one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_end_to_end() {
    let fleet = Fleet::start().await;
    let image = Image::new(15, 2);
    fleet.ship(&image, "web:1").await;
    let node = fleet.machine("n1");
    node.agent(&["sync"]).await.fails(2, &["enroll"]);
    let token = fleet.operator.token().await;
    let server = fleet.quic().to_string();
    node.agent(&["enroll", "--server", &server, "--token", &token, "--name", "n1"]).await.ok();
    node.agent(&["check"]).await.ok();
    node.agent(&["download"]).await.ok();
    assert_eq!(node.active(), None);
    node.agent(&["activate"]).await.ok();
    node.runs(&image);
    node.agent(&["verify"]).await.ok();
    node.agent(&["repair"]).await.ok();
    let status = node.agent(&["status", "--json"]).await.ok().json();
    assert_eq!(status["active"], "a", "{status}");
    assert_eq!(status["channel"], "production", "{status}");
}

/// Goal: the fleet's roster follows a rollback and an activation on a node without a daemon; a server that is away costs a note
/// and a few seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_without_a_daemon_is_told() {
    let mut fleet = Fleet::start().await;
    let old = Image::new(77, 1);
    let new = old.edited(78, 3);
    fleet.ship(&old, "web:1").await;
    let node = fleet.node("n1").await;
    node.sync().await.updated();
    fleet.ship(&new, "web:2").await;
    node.sync().await.updated();
    let runs = async |fleet: &Fleet, release: &str| {
        eventually(&format!("{release} in the roster"), async || {
            let node = fleet.operator.node("n1").await?;
            (node["report"]["active"]["release"] == release).then_some(())
        })
        .await;
    };
    let told = node.agent(&["rollback"]).await.ok();
    assert!(!told.err.contains("does not know"), "{}", told.err);
    runs(&fleet, "web:1").await;

    fleet.ship(&old.edited(79, 3), "web:3").await;
    node.agent(&["download"]).await.ok();
    fleet.down().await;
    let begun = std::time::Instant::now();
    let untold = node.agent(&["activate"]).await.ok();
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(untold.err.contains("the server does not know of it yet"), "{}", untold.err);
    fleet.up().await;
    node.sync().await.ok();
    node.agent(&["rollback"]).await.ok();
    node.agent(&["download"]).await.ok();
    node.agent(&["activate"]).await.ok();
    runs(&fleet, "web:3").await;
}

/// On a file system that shares bytes between files an update begins with a clone: what does not change is neither read nor
/// written, and takes no room. An interrupted run's work is not cloned over.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_shares() {
    let test = "a_file_system_that_shares";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "mounting needs root");
    }
    let fleet = Fleet::start().await;
    let mut node = fleet.node("n1").await;
    let (disk, point) = (node.folder.join("xfs"), node.folder.join("mnt"));
    if let Err(why) = make_xfs(&disk, 320 * MIB as u64) {
        return skip(test, &why);
    }
    let _mounted = match Mounted::of(&disk, &point, "loop") {
        Ok(mounted) => mounted,
        Err(why) => return skip(test, &why),
    };
    node.slots = [point.join("a.img"), point.join("b.img")];
    node.write_config();
    let used = || {
        rustix::fs::syncfs(std::fs::File::open(&point).unwrap()).unwrap();
        let system = rustix::fs::statvfs(&point).unwrap();
        (system.f_blocks - system.f_bfree) * system.f_frsize
    };
    let old = Image::noise(60, 32);
    fleet.ship(&old, "web:1").await;
    node.sync().await.updated();
    let before = used();
    let new = old.edited(61, 50);
    fleet.ship(&new, "web:2").await;
    let account = node.sync().await.updated();
    node.runs(&new);
    assert!(account.written <= 50, "{account:?}");
    // XFS takes 128 KiB at a time for what it no longer shares.
    assert!(used() < before + 8 * MIB as u64, "{} bytes more for 50 blocks", used() - before);
    assert_eq!(goldsync_tests::image::b3sum(node.slot(SlotName::A)), old.id());
    // Drift travels into the clone, and the proof finds it there.
    damage::flip(node.slot(SlotName::B), 63, 5);
    let newer = new.edited(62, 30);
    fleet.ship(&newer, "web:3").await;
    let account = node.sync().await.updated();
    node.runs(&newer);
    assert!(account.repaired >= 1, "{account:?}");
    // What an interrupted run staged is there for the next one: no clone was laid over it.
    let newest = newer.edited(64, 3000);
    fleet.ship(&newest, "web:4").await;
    let proxy = Proxy::to(fleet.quic()).await;
    let node = node.by(proxy.address());
    proxy.cut_after(6 * MIB as u64);
    let mut run = node.spawn(&["sync"]);
    proxy.is_cut().await;
    run.kill().await.expect("SIGKILL");
    node.runs(&newer);
    proxy.heal();
    let account = node.sync().await.updated();
    node.runs(&newest);
    assert!(account.received < 9 * MIB as u64, "of 12 MiB, about 6 were there: {account:?}");
}
