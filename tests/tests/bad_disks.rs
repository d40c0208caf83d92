//! The disk fails: no room, errors on reads, writes and syncs, half a write, bits that turn. An error says what failed and where, the
//! active image is untouched, and when the disk is well again the next run finishes. What turned silently is found and mended.
//!
//! The disk is simulated ([`goldsync_tests::simdisk`]) and fails at the first operation of a kind, then at the second, and so on until
//! a run meets no fault any more. What takes a real kernel's file system or device is in `bad_input.rs`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fuser::Errno;
use goldsync_agent::slot::SlotName;
use goldsync_proto::wire::Outcome;
use goldsync_tests::Image;
use goldsync_tests::machine::Told;
use goldsync_tests::simdisk::Recording;
use goldsync_tests::simdisk::fault::{Fault, On, What};
use goldsync_tests::simdisk::rig::{Rig, count};
use goldsync_tests::simdisk::tree::{Op, Tree};

const EIO: What = What::Fail(Errno::EIO);

/// A node before an update, its disk, and how it went.
struct Scene {
    rig: Rig,
    old: Image,
    new: Image,
    base: Tree,
    /// Runs with a fault, and how many of them failed.
    faults: u64,
    failed: u64,
}

impl Scene {
    async fn new(test: &str, seed: u64) -> Option<Self> {
        let (rig, old, new) = Rig::before_update(test, seed).await?;
        let base = rig.disk.tree();
        Some(Self { rig, old, new, base, faults: 0, failed: 0 })
    }

    /// One run with a fault, and one without. How the first ended, if the fault struck.
    async fn run(&mut self, what: &str, arm: impl FnOnce(&Rig)) -> Option<Result<(), (String, u8)>> {
        let Self { rig, old, new, base, .. } = self;
        rig.disk.exchange(base);
        arm(rig);
        let told: Told<Outcome> = rig.node.sync().await;
        let struck = rig.disk.lift() > 0;
        let ended = told.result.map(drop).map_err(|error| (error.to_string(), error.exit_code()));
        match &ended {
            Ok(()) => rig.node.runs(new),
            Err((error, _)) => {
                assert!(struck, "{what}: {error}");
                rig.node.runs(old);
                rig.node.tells_no_lie();
                let next = rig.node.sync().await;
                assert!(next.result.is_ok(), "{what}, and afterwards: {:?}", next.result);
                rig.node.runs(new);
            }
        }
        rig.node.tells_no_lie();
        self.faults += u64::from(struck);
        self.failed += u64::from(ended.is_err());
        struck.then_some(ended)
    }

    /// A fault from the first such operation on, from the second on, ..., until none is met. Each time the run must fail, with this
    /// exit code and these words. (A fault that came once only could be met within a longer write, and be over when the rest of it
    /// is tried again: then nothing failed.)
    async fn each_time(&mut self, fault: Fault, code: u8, words: &[&str]) {
        for after in 0.. {
            let what = format!("{fault:?} after {after}");
            let fault = fault.clone().after(after);
            let Some(ended) = self.run(&what, |rig| rig.disk.arm(fault)).await else {
                assert!(after > 0, "{what}: it was never met");
                return;
            };
            let (error, got) = ended.expect_err(&what);
            assert_eq!(got, code, "{what}: {error}");
            words.iter().for_each(|word| assert!(error.contains(word), "{what}: expected {word:?} in: {error}"));
        }
    }

    fn count(&self, what: &str) {
        count(format!("bad disks: {what}: {} faults, {} runs failed and said so", self.faults, self.failed));
    }

    async fn recorded(&self) -> Recording {
        self.rig.record(async |node| drop(node.sync().await.updated())).await
    }
}

/// Goal: a disk that takes not one byte more, wherever that is.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_suddenly_full() {
    let Some(mut scene) = Scene::new("a_disk_that_is_suddenly_full", 1).await else { return };
    let bytes = |op: &Op| if let Op::Write { bytes, .. } = op { bytes.len() as u64 } else { 0 };
    let all: u64 = scene.recorded().await.ops.iter().map(bytes).sum();
    let points: BTreeSet<u64> = (0..24).map(|part| all * part / 24).chain([1, 4095, 4096, all - 1]).collect();
    for room in points {
        let what = format!("room for {room} of {all} bytes");
        let ended = scene.run(&what, |rig| rig.disk.full_after(room)).await;
        if let Some(Err((error, code))) = ended {
            assert_eq!(code, 5, "{what}: {error}");
            assert!(error.contains("No space left"), "{what}: {error}");
            assert!(error.contains("slot b") || error.contains("/state/"), "{what}: {error}");
        }
    }
    scene.count("a full disk");
}

/// Goal: a standby slot that cannot be written, here or there.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_slot_that_fails() {
    let Some(mut scene) = Scene::new("a_standby_slot_that_fails", 2).await else { return };
    let words = ["slot b", "b.img", "Input/output error"];
    for (on, word) in [(On::Write, "writing"), (On::Sync, "writing"), (On::Read, "reading")] {
        scene.each_time(Fault::new("b.img", on, EIO), 5, &[&words[..], &[word]].concat()).await;
    }
    // Where no hole can be had in what lies there already, zeros are written.
    scene.rig.disk.exchange(&scene.base);
    Image::noise(20, 1).write(scene.rig.node.slot(SlotName::B));
    scene.base = scene.rig.disk.tree();
    for errno in [Errno::EIO, Errno::EOPNOTSUPP] {
        let fault = Fault::new("b.img", On::Punch, What::Fail(errno));
        assert_eq!(scene.run("no holes", |rig| rig.disk.arm(fault)).await, Some(Ok(())));
    }
    scene.count("errors of the standby slot");
}

/// Goal: an active slot that cannot be read in places.
#[tokio::test(flavor = "multi_thread")]
async fn an_active_slot_that_fails() {
    let Some(mut scene) = Scene::new("an_active_slot_that_fails", 3).await else { return };
    scene.each_time(Fault::new("a.img", On::Read, EIO), 5, &["slot a", "a.img", "reading", "Input/output error"]).await;
    scene.count("errors of the active slot");
}

/// Goal: a state folder that fails, at each file in each way.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_that_fails() {
    let Some(mut scene) = Scene::new("a_state_folder_that_fails", 4).await else { return };
    for (path, on) in touched(&scene.recorded().await) {
        if path.starts_with("state") && !path.starts_with("state/cache") {
            let what = format!("{on:?} {}", path.display());
            let fault = Fault::new(&path, on, EIO).once();
            let Some(Err((error, code))) = scene.run(&what, |rig| rig.disk.arm(fault)).await else { continue };
            assert_eq!(code, 5, "{what}: {error}");
            assert!(error.contains("/state/") && error.contains("Input/output error"), "{what}: {error}");
        }
    }
    scene.count("errors of the state folder");
}

/// What a recording writes, syncs and names.
fn touched(recording: &Recording) -> Vec<(PathBuf, On)> {
    let mut tree = recording.base.clone();
    let mut touched = Vec::new();
    for op in &recording.ops {
        tree.apply(op);
        let (id, on) = match op {
            Op::Write { id, .. } => (*id, On::Write),
            Op::Sync { id } | Op::SyncFolder { id } => (*id, On::Sync),
            Op::Create { folder, name, .. } | Op::Rename { to: folder, new: name, .. } => {
                (tree.child(*folder, name).expect("a new name"), On::Name)
            }
            _ => continue,
        };
        let at = (tree.path_of(id).expect("a named file"), on);
        if !touched.contains(&at) {
            touched.push(at);
        }
    }
    touched
}

/// Goal: a disk that reads and writes less than it is asked to is slow, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_half() {
    let Some(mut scene) = Scene::new("a_disk_that_does_half", 5).await else { return };
    for most in [1000, 4096, 70_000] {
        for (path, on) in
            [("b.img", On::Write), ("b.img", On::Read), ("a.img", On::Read), ("state/slots/b.json.new", On::Write)]
        {
            let short = Fault::new(path, on, What::Short(if path.starts_with("state") { 7 } else { most }));
            let what = format!("{short:?}");
            let ended =
                scene.run(&what, |rig| rig.disk.arm(short)).await.unwrap_or_else(|| panic!("{what}: never met"));
            assert_eq!(ended, Ok(()), "{what}");
        }
    }
    scene.count("short reads and writes");
}

/// Goal: writes that a disk says it has done and has not are found by the read-back and done again; if it never does them, it is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_forgets() {
    let Some(mut scene) = Scene::new("a_disk_that_forgets", 6).await else { return };
    for after in 0.. {
        let fault = Fault::new("b.img", On::Write, What::Forget).after(after).once();
        match scene.run(&format!("write {after} is forgotten"), |rig| rig.disk.arm(fault)).await {
            Some(ended) => assert_eq!(ended, Ok(()), "write {after}"),
            None => break,
        }
    }
    let always = Fault::new("b.img", On::Write, What::Forget);
    let ended = scene.run("all writes are forgotten", |rig| rig.disk.arm(always)).await;
    let (error, code) = ended.expect("it was met").expect_err("a slot that takes nothing");
    assert_eq!(code, 7, "{error}");
    assert!(error.contains(&scene.new.id()) && error.contains("the disk or the memory is failing"), "{error}");
    scene.count("forgotten writes");
}

/// Goal: rot in the active slot, before a run and in the middle of it, never comes into the next image.
#[tokio::test(flavor = "multi_thread")]
async fn rot_in_the_slot_that_is_read() {
    let Some(mut scene) = Scene::new("rot_in_the_slot_that_is_read", 7).await else { return };
    for at in (0..scene.old.len()).step_by(64 << 10) {
        let fault = |after| Fault::new("a.img", On::Read, rot("a.img", at + 77)).after(after).once();
        for after in [0, 2] {
            // The active slot is rotten from here on: what matters is what becomes of the other.
            let Scene { rig, base, new, .. } = &scene;
            rig.disk.exchange(base);
            rig.disk.arm(fault(after));
            rig.disk.flip(Path::new("a.img"), at + 40_000);
            rig.node.sync().await.updated();
            let struck = rig.disk.lift();
            rig.node.runs(new);
            scene.faults += 1 + struck;
        }
    }
    let Scene { rig, base, old, .. } = &scene;
    rig.disk.exchange(base);
    rig.disk.flip(Path::new("a.img"), 300_000);
    let report = rig.node.verify().await.ok();
    assert_eq!((report.drifted, report.runs), (1, vec![(300_000 / 4096, 1)]));
    rig.fleet.operator.promote("web:1", "production").await;
    assert_eq!(rig.node.repair().await.updated().repaired, 1);
    rig.node.runs(old);
    scene.count("rot in the active slot");
}

fn rot(file: &str, at: u64) -> What {
    What::Rot { file: file.into(), at }
}

/// Goal: rot in the standby slot is found by the read-back, at the latest when it is activated or looked at.
#[tokio::test(flavor = "multi_thread")]
async fn rot_in_the_slot_that_is_written() {
    let Some(mut scene) = Scene::new("rot_in_the_slot_that_is_written", 8).await else { return };
    for at in (0..scene.new.len()).step_by(96 << 10) {
        // With the sync before the read-back: everything is there by then.
        let fault = Fault::new("b.img", On::Sync, rot("b.img", at + 99)).once();
        let ended = scene.run("rot before the read-back", |rig| rig.disk.arm(fault)).await;
        assert_eq!(ended, Some(Ok(())), "{at}");
    }
    // Behind the read-back, as the proof is written down.
    let Scene { rig, base, old, new, .. } = &scene;
    rig.disk.exchange(base);
    rig.disk.arm(Fault::new("state/slots/b.json", On::Name, rot("b.img", 500_000)).after(1).once());
    rig.node.download().await.ok();
    assert_eq!(rig.disk.lift(), 1);
    let (error, code) = rig.node.activate().await.failed();
    assert_eq!(code, 7, "{error}");
    assert!(error.contains("slot b") && error.contains(&new.id()), "{error}");
    rig.node.runs(old);
    rig.node.sync().await.updated();
    rig.node.runs(new);
    // And behind that as well: a look finds it, a repair mends it.
    rig.disk.flip(Path::new("b.img"), 400_000);
    assert_eq!(rig.node.verify().await.ok().drifted, 1);
    assert_eq!(rig.node.repair().await.updated().repaired, 1);
    rig.node.runs(new);
    assert_eq!(rig.node.active(), Some(SlotName::A));
    scene.faults += 2;
    scene.count("rot in the standby slot");
}
