//! Power is lost, at every operation that changes the disk: what would start then is a whole proven image, no record tells a
//! lie, and the next run finishes what was begun.
//!
//! The disk is simulated ([`goldsync_tests::simdisk`]): it loses, tears and reorders what was not synced, as its laws allow. The
//! agent on it is the real one. `GOLDSYNC_CUT_SEEDS` sets how many ways of losing are tried at each operation, beside four plain
//! ones; a failure names its place, and `GOLDSYNC_CUT` goes there alone.

use std::path::{Path, PathBuf};

use goldsync_tests::simdisk::cut::{Fate, Laws};
use goldsync_tests::simdisk::rig::{Cuts, Rig, concerns_starting, images, well_without};
use goldsync_tests::simdisk::tree::Op;
use goldsync_tests::{Image, Machine, damage};

/// What the link leads to, if there is a link, must be one of these images.
#[track_caller]
fn starts(rig: &Rig, images: &[&Image]) {
    let running = rig.node.running();
    assert!(images.iter().any(|image| image.id() == running), "what would start is no image: {running}");
}

fn posix() -> Laws {
    Laws::default()
}

/// Goal: the first image of a machine arrives whole or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_install() {
    let Some(rig) = Rig::new("a_first_install").await else { return };
    let (image, _) = images(10);
    rig.fleet.ship(&image, "web:1").await;
    let recording = rig.record(async |node| drop(node.sync().await.updated())).await;
    let found = |rig: &Rig| {
        if rig.node.active().is_some() {
            starts(rig, &[&image]);
        }
        rig.node.tells_no_lie();
    };
    let next = async |rig: &Rig| drop(rig.node.sync().await.ok());
    Cuts::of(&rig, "first", &posix()).everywhere(&recording, found, next, |rig| rig.node.runs(&image)).await;
}

/// Goal: an update into an empty slot.
#[tokio::test(flavor = "multi_thread")]
async fn an_update() {
    let Some((rig, old, new)) = Rig::before_update("an_update", 20).await else { return };
    let recording = rig.record(async |node| drop(node.sync().await.updated())).await;
    updated_after(&rig, "update", &recording, &old, &new).await;
}

/// Goal: an update over an older release: the standby slot's own content and record are believed by the run that is cut.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_over_an_older_release() {
    let Some((rig, _, new)) = Rig::before_update("an_update_over_an_older_release", 30).await else { return };
    rig.node.sync().await.updated();
    let third = new.edited(33, 9).shifted(34, 500 << 10, 8192);
    rig.fleet.ship(&third, "web:3").await;
    let recording = rig.record(async |node| drop(node.sync().await.updated())).await;
    updated_after(&rig, "over", &recording, &new, &third).await;
}

/// A node that is healthy as long as a file is not there, which lies on another disk.
async fn on_trial(test: &str, seed: u64) -> Option<(Rig, Image, Image, PathBuf)> {
    let sick = |node: &Machine| node.folder.with_extension("sick");
    let health = |node: &mut Machine| well_without(node, &sick(node));
    let (rig, old, new) = Rig::before_update_with(test, seed, health).await?;
    let file = sick(&rig.node);
    Some((rig, old, new, file))
}

/// Goal: a trial is taken up again wherever it was cut off, and ends well.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial() {
    let Some((rig, old, new, _)) = on_trial("a_trial", 80).await else { return };
    let recording = rig.record(async |node| drop(node.sync().await.updated())).await;
    let found = |rig: &Rig| {
        starts(rig, &[&old, &new]);
        rig.node.tells_no_lie();
    };
    let next = async |rig: &Rig| drop(rig.node.sync().await.ok());
    let done = |rig: &Rig| {
        rig.node.runs(&new);
        assert_eq!(rig.node.node().journal.trial().expect("the trial"), None);
    };
    Cuts::of(&rig, "trial", &posix()).only(concerns_starting).everywhere(&recording, found, next, done).await;
}

/// Goal: one that ends badly leads back, wherever it was cut off, and the release is held.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_fails() {
    let Some((rig, old, new, sick)) = on_trial("a_trial_that_fails", 90).await else { return };
    std::fs::write(&sick, "").expect("a file");
    let recording = rig.record(async |node| drop(node.sync().await.failed())).await;
    let found = |rig: &Rig| {
        starts(rig, &[&old, &new]);
        rig.node.tells_no_lie();
    };
    let next = async |rig: &Rig| {
        let (error, code) = rig.node.sync().await.failed();
        assert_eq!(code, 8, "{error}");
    };
    let done = |rig: &Rig| {
        rig.node.runs(&old);
        let journal = rig.node.node().journal;
        assert_eq!(journal.trial().expect("the trial"), None);
        assert!(journal.held().expect("what is held").iter().any(|held| held.image.to_string() == new.id()));
    };
    Cuts::of(&rig, "failing-trial", &posix()).only(concerns_starting).everywhere(&recording, found, next, done).await;
}

async fn updated_after(
    rig: &Rig,
    name: &str,
    recording: &goldsync_tests::simdisk::Recording,
    old: &Image,
    new: &Image,
) {
    let found = |rig: &Rig| {
        starts(rig, &[old, new]);
        rig.node.tells_no_lie();
    };
    let next = async |rig: &Rig| drop(rig.node.sync().await.ok());
    let done = |rig: &Rig| {
        rig.node.runs(new);
        rig.node.tells_no_lie();
    };
    Cuts::of(rig, name, &posix()).everywhere(recording, found, next, done).await;
}

/// Goal: what a killed run has not synced is not relied on: the link to the new image lasts before the next one is written over the old.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_release_after_a_kill() {
    // A link in a folder of its own, that nothing else lets last.
    let elsewhere = |node: &mut Machine| {
        std::fs::create_dir(node.folder.join("links")).expect("a folder");
        std::os::unix::fs::symlink("links/current", node.link()).expect("a link to the link");
        let link = node.folder.join("links/current");
        node.activation = format!("backend = \"symlink\"\nlink = \"{}\"\n", link.display());
    };
    let rig = Rig::before_update_with("a_newer_release_after_a_kill", 100, elsewhere).await;
    let Some((rig, old, new)) = rig else { return };
    let first = rig.record(async |node| drop(node.sync().await.updated())).await;
    let linked = |at: &usize| {
        matches!(first.ops[*at], Op::Rename { .. })
            && first.path(*at).is_some_and(|path| path.ends_with("links/current"))
    };
    let at = 1 + (0..first.ops.len()).find(linked).expect("the link's rename");
    let third = new.edited(101, 30);
    rig.fleet.ship(&third, "web:3").await;
    rig.disk.exchange(&first.cut(at, &posix(), Fate::Kept));
    let second = rig.record(async |node| drop(node.sync().await.updated())).await;
    let found = |rig: &Rig| starts(rig, &[&old, &new, &third]);
    let next = async |rig: &Rig| drop(rig.node.sync().await.ok());
    let done = |rig: &Rig| {
        rig.node.runs(&third);
        rig.node.tells_no_lie();
    };
    let slot_or_link = |path: &Path| path.starts_with("a.img") || path.starts_with("links");
    let cuts = Cuts::of(&rig, "newer-after-kill", &posix()).only(slot_or_link).from(at);
    cuts.everywhere(&first.killed(at, &second), found, next, done).await;
}

/// Goal: a download that is activated later: neither half activates what is not proven.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_and_an_activation() {
    let Some((rig, old, new)) = Rig::before_update("a_download_and_an_activation", 40).await else { return };
    let download = rig.record(async |node| drop(node.download().await.ok())).await;
    let found = |rig: &Rig| {
        starts(rig, &[&old]);
        rig.node.tells_no_lie();
    };
    let staged = |rig: &Rig| {
        rig.node.runs(&old);
        rig.node.tells_no_lie();
        let slot = rig.node.active().expect("an active slot").other();
        let image = rig.node.record(slot).proven().expect("a proof").image.to_string();
        assert_eq!(image, new.id());
    };
    let next = async |rig: &Rig| drop(rig.node.download().await.ok());
    Cuts::of(&rig, "download", &posix()).everywhere(&download, found, next, staged).await;

    rig.disk.exchange(&download.cut(download.ops.len(), &posix(), Fate::Kept));
    let activation = rig.record(async |node| drop(node.activate().await.ok())).await;
    updated_after(&rig, "activate", &activation, &old, &new).await;
}

/// Goal: going back is as safe as going on, and a rollback that power interrupted is not undone behind the operator's back.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback() {
    let Some((rig, old, new)) = Rig::before_update("a_rollback", 50).await else { return };
    rig.node.sync().await.updated();
    let recording = rig.record(async |node| drop(node.rollback().await.ok())).await;
    let found = |rig: &Rig| {
        starts(rig, &[&old, &new]);
        rig.node.tells_no_lie();
        if rig.node.running() == old.id() {
            let held = rig.node.node().journal.held().expect("what is held");
            let left = held.iter().any(|held| held.image.to_string() == new.id());
            assert!(left, "the release that was left is not held: {held:?}");
        }
    };
    let next = async |rig: &Rig| {
        if rig.node.running() == new.id() {
            rig.node.rollback().await.ok();
        }
    };
    let done = |rig: &Rig| {
        rig.node.runs(&old);
        rig.node.tells_no_lie();
    };
    Cuts::of(&rig, "rollback", &posix()).everywhere(&recording, found, next, done).await;
}

/// Goal: a repair never makes it worse: what drifted stays as it is until a whole copy takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair() {
    let Some((rig, _, new)) = Rig::before_update("a_repair", 60).await else { return };
    rig.node.sync().await.updated();
    damage::flip(&rig.node.link(), 61, 5);
    let (drifted, slot) = (rig.node.running(), rig.node.active().expect("an active slot"));
    let recording = rig.record(async |node| drop(node.repair().await.updated())).await;
    let found = |rig: &Rig| {
        let active = rig.node.active().expect("an active slot");
        let expected = if active == slot { drifted.clone() } else { new.id() };
        assert_eq!(rig.node.running(), expected);
        let other = rig.node.record(slot.other());
        if let Some(proven) = other.proven() {
            let bytes = std::fs::read(rig.node.slot(slot.other())).expect("the other slot");
            assert_eq!(blake3::hash(&bytes).to_hex().to_string(), proven.image.to_string(), "a lie");
        }
    };
    let next = async |rig: &Rig| drop(rig.node.repair().await.ok());
    Cuts::of(&rig, "repair", &posix()).everywhere(&recording, found, next, |rig| rig.node.runs(&new)).await;
}
