//! Power is lost in the trial of what was activated by a boot loader, from the first byte to its end, and while a release is left again. At
//! every operation that concerns the start: what starts is an image, the next run finishes what was begun, and what is held as bad is
//! held for what it did.
//!
//! The agent is the real one, whole; loader and disk are as in `power_cuts_boot.rs`.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsync_agent::slot::SlotName;
use goldsync_tests::simdisk::Recording;
use goldsync_tests::simdisk::loader::{Fitted, starts};
use goldsync_tests::simdisk::rig::{Cuts, Rig, concerns_starting, images, well_without};
use goldsync_tests::{Image, Machine};

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

/// Starts after which every trial is over.
const LONG: usize = 12;

/// A node with a boot loader, on a simulated disk.
struct Booting<'a> {
    rig: &'a Rig,
    fitted: &'a Fitted,
    /// What may start; the last is what it is to come to.
    images: Vec<String>,
}

impl Booting<'_> {
    /// What every start would take, in vain, must be one of the images; no record tells a lie.
    fn found(&self) {
        let mut tree = self.rig.disk.tree();
        let starts = starts(self.fitted.loader.as_ref(), &mut tree, LONG);
        for slot in &starts {
            let slot = slot.unwrap_or_else(|| panic!("nothing starts: {starts:?}"));
            let bytes = tree.read(Path::new(if slot == A { "a.img" } else { "b.img" })).unwrap_or_default();
            let image = blake3::hash(bytes).to_hex().to_string();
            assert!(self.images.contains(&image), "slot {slot} would start and holds no image: {starts:?}");
        }
        self.rig.node.tells_no_lie();
    }

    /// The machine starts, with power, in its next run.
    fn start(&self) -> SlotName {
        let start = self.fitted.loader.start(&self.rig.disk.tree());
        self.rig.disk.perform(&start.ops);
        static RUN: AtomicU64 = AtomicU64::new(1);
        let (run, slot) = (RUN.fetch_add(1, Ordering::Relaxed), start.slot.expect("something starts"));
        fs::write(self.rig.node.folder.join("cmdline"), format!("run={run} goldsync.slot={slot}\n")).expect("a start");
        slot
    }

    /// Starts and syncs, until the last image runs and nothing is on trial. No release is to blame for power that was lost.
    async fn go_on(&self) {
        let sync = async |node: &Machine| match node.sync().await.result {
            // Power that goes in the only start that is allowed looks like a start that came to nothing.
            Err(error) if self.fitted.tries == 1 && error.exit_code() == 8 => {}
            done => drop(done.unwrap_or_else(|error| panic!("{error}"))),
        };
        self.until_arrived(sync).await;
        let mut held = self.held();
        if self.fitted.tries == 1 {
            held.retain(|why| !why.contains("its one start came to nothing"));
        }
        assert_eq!(held, Vec::<String>::new());
    }

    /// Starts and does something, until the last image runs and nothing is on trial.
    async fn until_arrived(&self, next: impl AsyncFn(&Machine)) {
        for _ in 0..4 {
            self.start();
            next(&self.rig.node).await;
            if self.arrived() {
                return;
            }
        }
        panic!("it does not get there");
    }

    /// The same; the release that is left is then held for that reason.
    async fn leaves(&self, next: impl AsyncFn(&Machine), why: &str) {
        self.until_arrived(next).await;
        let held = self.held();
        assert!(held.len() == 1 && held[0].contains(why), "held: {held:?}");
    }

    /// Cuts a recording wherever it concerns the start; `next` is what the machine does then. What the image's way into the slot comes to is
    /// cut in `power_cuts.rs`: it knows no loader.
    async fn cut(&self, name: &str, recording: &Recording, next: impl AsyncFn()) {
        let cuts = Cuts::of(self.rig, name, &self.fitted.laws).only(concerns_starting).restarting();
        cuts.everywhere(recording, |_| self.found(), async |_| next().await, |_| self.found()).await;
    }

    /// Why releases are held.
    fn held(&self) -> Vec<String> {
        let held = self.rig.node.node().journal.held().expect("what is held");
        held.into_iter().map(|held| held.why).collect()
    }

    fn arrived(&self) -> bool {
        let (node, active) = (&self.rig.node, self.rig.node.active());
        let record = active.map(|slot| node.record(slot));
        let image = record.as_ref().and_then(|record| Some(record.proven()?.image.to_string()));
        image.as_ref() == self.images.last() && node.node().journal.trial().expect("the trial").is_none()
    }
}

/// What waits for its start when an update comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    Nothing,
    /// Another release, which is then never started.
    Another,
}

/// A machine that came with `old` in slot a, and is a node now.
async fn machine(name: &str, fitted: &Fitted, old: &Image, change: impl FnOnce(&mut Machine)) -> Option<Rig> {
    let set_up = |node: &mut Machine| {
        fitted.prepare(&node.folder);
        let cmdline = node.folder.join("cmdline");
        node.activation = format!("cmdline = \"{}\"\n{}", cmdline.display(), fitted.activation(&node.folder));
        fs::write(cmdline, "run=0 goldsync.slot=a\n").expect("the command line");
        change(node);
    };
    let rig = Rig::with(name, set_up).await?;
    old.write(rig.node.slot(A));
    rig.fleet.ship(old, "web:1").await;
    rig.node.sync().await.ok();
    Some(rig)
}

/// An update by a boot loader: staged and activated, started and counted, confirmed; all of it cut everywhere.
async fn update_by(name: &str, fitted: &Fitted, waits: Waits) {
    let (old, new) = images(70);
    let Some(rig) = machine(name, fitted, &old, |_| {}).await else { return };
    let mut shown = vec![old.id()];
    if waits == Waits::Another {
        let other = old.edited(72, 5);
        rig.fleet.ship(&other, "web:2").await;
        rig.node.sync().await.ok();
        shown.push(other.id());
    }
    rig.fleet.ship(&new, "web:3").await;
    shown.push(new.id());
    let booting = Booting { rig: &rig, fitted, images: shown };

    let staged = rig.record(async |node| drop(node.sync().await.ok())).await;
    let base = rig.disk.tree();
    let counted = Recording { ops: fitted.loader.start(&base).ops, base };
    assert_eq!(booting.start(), B, "{name}");
    let confirmed = rig.record(async |node| drop(node.sync().await.ok())).await;
    assert!(booting.arrived(), "{name}");
    for (part, recording) in [("staged", staged), ("counted", counted), ("confirmed", confirmed)] {
        booting.cut(&format!("{name}-{part}"), &recording, async || booting.go_on().await).await;
    }
}

/// Goal: a whole update by GRUB.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_grub() {
    update_by("grub", &Fitted::grub(), Waits::Nothing).await;
}

/// Goal: an update by GRUB over a release that waits for its start.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_grub_over_one_that_waits() {
    update_by("grub-waiting", &Fitted::grub(), Waits::Another).await;
}

/// Goal: the same by systemd-boot.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_systemd_boot() {
    update_by("systemd-boot", &Fitted::systemd_boot(), Waits::Another).await;
}

/// Goal: the same by U-Boot.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_uboot() {
    update_by("uboot", &Fitted::uboot(), Waits::Another).await;
}

/// Goal: the same by a firmware.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_uefi() {
    update_by("uefi", &Fitted::uefi(), Waits::Another).await;
}

/// Goal: one that waits is called off by hand; one that comes up sick is left again. Wherever that is cut off, it is held in the
/// end, and for the reason that it was left for.
#[tokio::test(flavor = "multi_thread")]
async fn releases_that_are_left_by_grub() {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let sick = elsewhere.path().join("sick");
    let ((old, new), fitted) = (images(74), Fitted::grub());
    let rig = machine("releases_that_are_left_by_grub", &fitted, &old, |node| well_without(node, &sick)).await;
    let Some(rig) = rig else { return };
    rig.fleet.ship(&new, "web:2").await;
    rig.node.sync().await.ok();
    let waits = rig.disk.tree();
    let booting = Booting { rig: &rig, fitted: &fitted, images: vec![new.id(), old.id()] };

    // Somebody says so until it is so, and the daemon comes up, too.
    let call_off = async |node: &Machine| {
        drop(node.rollback().await.result);
        drop(node.confirm().await.result);
    };
    let recording = rig.record(async |node| drop(node.rollback().await.ok())).await;
    booting.cut("called-off", &recording, async || booting.leaves(call_off, "by hand").await).await;

    rig.disk.exchange(&waits);
    assert_eq!(booting.start(), B);
    fs::write(&sick, "").expect("a file");
    let recording = rig.record(async |node| drop(node.sync().await.failed())).await;
    let confirm = async |node: &Machine| drop(node.confirm().await.result);
    booting.cut("sick", &recording, async || booting.leaves(confirm, "went back to web:1").await).await;
}
