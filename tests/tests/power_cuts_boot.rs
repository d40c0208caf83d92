//! Power is lost while a boot loader's files change: by us, and by the loader that counts. At every operation: what starts is whole,
//! a trial that never comes to anything ends, and the next run finishes what was begun.
//!
//! The back-end is the real one, on a simulated disk with the laws of its place; the loader is a model of our own
//! ([`goldsync_tests::simdisk::loader`]). Here the back-ends are alone, everywhere and in all orders: the images are not there, a list says
//! which slot may be started when. The whole agent's trials are cut in `power_cuts_trial.rs`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use goldsync_agent::boot::{self, Activation, Holds};
use goldsync_agent::config::{Config, Where};
use goldsync_agent::slot::SlotName;
use goldsync_proto::digest::ImageId;
use goldsync_tests::SimDisk;
use goldsync_tests::disk::{Loop, skip};
use goldsync_tests::seed::Seed;
use goldsync_tests::simdisk::Recording;
use goldsync_tests::simdisk::cut::Fate;
use goldsync_tests::simdisk::loader::{Fitted, starts};
use goldsync_tests::simdisk::rig::{count, seeds};
use goldsync_tests::simdisk::tree::Tree;

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

/// Starts after which every trial is over, and every second one, too.
const LONG: usize = 12;

/// What the agent says to a back-end.
#[derive(Clone, Copy, Debug)]
enum Call {
    Retire(SlotName),
    Activate(SlotName, u8),
    Confirm(SlotName),
}

/// A machine without images: a disk, a back-end, a loader.
struct Bench<'a> {
    disk: SimDisk,
    fitted: &'a Fitted,
    name: &'static str,
    operations: usize,
    cuts: u64,
    disks: HashSet<[u8; 32]>,
    _folder: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    fn new(name: &'static str, fitted: &'a Fitted) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = match SimDisk::mount(&folder.path().join("disk"), 64 << 20, Path::new("none")) {
            Ok(disk) => disk,
            Err(why) => {
                skip(name, &why);
                return None;
            }
        };
        let point = disk.point().display();
        let activation = fitted.activation(disk.point());
        let text = format!(
            "server = \"127.0.0.1:1\"\nchannel = \"production\"\nstate = \"{point}/state\"\n\
             [slots]\na = \"{point}/a.img\"\nb = \"{point}/b.img\"\n\
             [activation]\ncmdline = \"{point}/cmdline\"\n{activation}"
        );
        fs::write(disk.point().join("agent.toml"), text).expect("agent.toml");
        let (operations, cuts, disks) = Default::default();
        fitted.prepare(disk.point());
        let bench = Self { disk, fitted, name, operations, cuts, disks, _folder: folder };
        bench.boot(A);
        Some(bench)
    }

    /// Slots elsewhere.
    fn slots(&self, a: &Path, b: &Path) {
        let text = fs::read_to_string(self.path("agent.toml")).expect("agent.toml");
        let [old_a, old_b] = ["a.img", "b.img"].map(|name| self.path(name).display().to_string());
        let text = text.replace(&old_a, &a.display().to_string()).replace(&old_b, &b.display().to_string());
        fs::write(self.path("agent.toml"), text).expect("agent.toml");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.point().join(name)
    }

    /// The kernel was started for this slot.
    fn boot(&self, slot: SlotName) {
        fs::write(self.path("cmdline"), format!("ro goldsync.slot={slot}\n")).expect("the command line");
    }

    fn backend(&self) -> Box<dyn Activation> {
        let config = Config::load(&Where::File(self.path("agent.toml")));
        boot::open(&config.unwrap_or_else(|error| panic!("{}: {error}", self.name)))
    }

    fn call(&self, call: Call) {
        let backend = self.backend();
        let done = match call {
            Call::Retire(slot) => backend.retire(slot),
            Call::Activate(slot, tries) => backend.activate(slot, &holds(slot), tries),
            Call::Confirm(slot) => backend.confirm(slot),
        };
        done.unwrap_or_else(|error| panic!("{}: {call:?}: {error}", self.name));
    }

    /// Starts the machine so many times in vain; the disk is as before.
    fn starts(&self, times: usize) -> Vec<Option<SlotName>> {
        starts(self.fitted.loader.as_ref(), &mut self.disk.tree(), times)
    }

    /// Starts it once, with power: from which slot.
    fn start(&self) -> SlotName {
        let mut tree = self.disk.tree();
        let slot = starts(self.fitted.loader.as_ref(), &mut tree, 1)[0]
            .unwrap_or_else(|| panic!("{}: nothing starts", self.name));
        self.disk.exchange(&tree);
        self.boot(slot);
        slot
    }

    /// Makes a call, and cuts it everywhere: whatever starts must be one of `whole`, and starts in vain must end in `good`. Then the
    /// machine starts and makes the same call again, or the one that fits what it was started from. The same if it is not power that
    /// is lost first but the process, and power in the next one.
    fn step(&mut self, call: Call, whole: &[SlotName], good: SlotName) {
        let recording = self.record(call);
        let after = self.disk.tree();
        self.cut(&recording, 0, &format!("{call:?}"), |bench, place| bench.go_on(call, place, whole, good));
        // A run that finds a trial half prepared may go on with it, or have been told of something newer.
        let nexts = if let Call::Activate(slot, 1..) = call { vec![call, Call::Retire(slot)] } else { vec![call] };
        for (at, next) in (1..recording.ops.len()).flat_map(|at| nexts.iter().map(move |next| (at, *next))) {
            self.disk.exchange(&recording.cut(at, &self.fitted.laws, Fate::Kept));
            let joined = recording.killed(at, &self.record(next));
            let what = format!("{call:?} killed at {at}, then {next:?}");
            self.cut(&joined, at, &what, |bench, place| bench.go_on(next, place, whole, good));
        }
        self.disk.exchange(&after);
    }

    /// After a cut in a call: what starts, and that the call which fits what was started keeps its promise then.
    fn go_on(&self, call: Call, place: &str, whole: &[SlotName], good: SlotName) {
        self.vain(place, whole, good);
        let slot = self.start();
        match call {
            Call::Retire(_) | Call::Activate(_, _) if slot == good => self.again(call, place),
            // It came to its trial, or is still allowed to start: it is well.
            Call::Activate(slot, _) | Call::Retire(slot) => self.again(Call::Confirm(slot), place),
            // Who has one start has had it.
            Call::Confirm(_) if self.fitted.tries == 1 => self.again(Call::Confirm(slot), place),
            Call::Confirm(confirmed) => {
                assert_eq!(slot, confirmed, "{place}");
                self.again(call, place);
            }
        }
    }

    fn record(&self, call: Call) -> Recording {
        let base = self.disk.record();
        self.call(call);
        self.disk.recorded(base)
    }

    /// A call that is made after a cut: what it promises holds.
    fn again(&self, call: Call, place: &str) {
        self.call(call);
        self.promised(call, place);
    }

    /// What must be true when a call has returned.
    fn promised(&self, call: Call, place: &str) {
        let starts = self.starts(LONG);
        match call {
            Call::Retire(slot) => {
                assert!(starts.iter().all(|start| *start == Some(slot.other())), "{place}: after {call:?}: {starts:?}");
            }
            Call::Activate(slot, tries) => {
                let counted = if tries == 0 { LONG } else { usize::from(tries) };
                assert!(
                    starts[..counted].iter().all(|start| *start == Some(slot)),
                    "{place}: after {call:?}: {starts:?}"
                );
            }
            Call::Confirm(slot) => {
                assert!(starts.iter().all(|start| *start == Some(slot)), "{place}: after {call:?}: {starts:?}");
            }
        }
    }

    /// Starts that come to nothing: each of something whole, and in the end of what was good.
    fn vain(&self, place: &str, whole: &[SlotName], good: SlotName) {
        let starts = self.starts(LONG);
        let is_whole = |start: &Option<SlotName>| start.is_some_and(|slot| whole.contains(&slot));
        assert!(starts.iter().all(is_whole), "{place}: {starts:?}, of which only {whole:?} may be");
        if whole == [A, B] && good == A {
            assert_eq!(starts.last(), Some(&Some(good)), "{place}: {starts:?}: a trial without an end");
        }
    }

    /// The loader starts the machine, and is cut off while it writes.
    fn counted(&mut self, whole: &[SlotName], good: SlotName) -> SlotName {
        let base = self.disk.tree();
        let start = self.fitted.loader.start(&base);
        let recording = Recording { base, ops: start.ops };
        self.cut(&recording, 0, "the loader's count", |bench, place| bench.vain(place, whole, good));
        self.disk.exchange(&recording.base);
        self.start()
    }

    fn cut(&mut self, recording: &Recording, from: usize, what: &str, judge: impl Fn(&Self, &str)) {
        self.operations += recording.ops.len() - from;
        for at in from..=recording.ops.len() {
            for fate in Fate::all(16 * seeds()) {
                self.cuts += 1;
                let tree: Tree = recording.cut(at, &self.fitted.laws, fate);
                // Different things must hold of the same disk in different steps.
                let word = blake3::hash(&[&tree.digest()[..], what.as_bytes()].concat());
                if self.disks.insert(*word.as_bytes()) {
                    self.disk.exchange(&tree);
                    let place =
                        format!("{}: {what}, power lost before {} ({at}), {fate:?}", self.name, recording.name(at));
                    judge(self, &place);
                }
            }
        }
    }

    fn count(self) {
        let Self { name, operations, cuts, disks, .. } = self;
        count(format!("power cuts: {name}: {operations} operations, {cuts} cuts, {} different disks", disks.len()));
    }
}

fn holds(slot: SlotName) -> Holds {
    let release = format!("web:{}", if slot == A { 1 } else { 2 });
    Holds {
        image: ImageId::of(slot.as_str().as_bytes()),
        release: release.parse().expect("a release"),
        size: 4096,
        verity: None,
    }
}

/// A machine's life: an update that comes to nothing, one that is confirmed, a rollback; each step cut everywhere. `write` puts the
/// image of a round into slot b.
fn life(bench: &mut Bench<'_>, write: impl Fn(usize)) {
    for round in 0..2 {
        // Slot b is written and tried. In the second round it holds the old release, whole until it is retired.
        bench.step(Call::Retire(B), if round == 0 { &[A] } else { &[A, B] }, A);
        bench.promised(Call::Retire(B), "retired");
        write(round);
        let tries = bench.fitted.tries;
        bench.step(Call::Activate(B, tries), &[A, B], A);
        bench.promised(Call::Activate(B, tries), "activated");
        if round == 0 {
            // It never comes so far as to say that it is well.
            (0..tries).for_each(|_| assert_eq!(bench.counted(&[A, B], A), B));
            assert_eq!(bench.counted(&[A], A), A, "tries are over");
            bench.step(Call::Confirm(A), &[A], A);
        } else {
            assert_eq!(bench.counted(&[A, B], A), B);
            bench.step(Call::Confirm(B), &[A, B], B);
            bench.promised(Call::Confirm(B), "confirmed");
        }
    }
    // Back, by hand: a was good before, and is not counted.
    bench.step(Call::Activate(A, 0), &[A, B], B);
    assert_eq!(bench.counted(&[A], A), A);
    bench.promised(Call::Confirm(A), "went back");
}

/// Goal: grubenv on a file system with a journal, and on the ESP, of which GRUB and we write the same 1024 bytes.
#[test]
fn grub() {
    alone("grub", &Fitted::grub());
    alone("grub on FAT", &Fitted::grub_on_fat());
}

/// Goal: U-Boot's environment, of which U-Boot and we write the copy that does not count, in turns.
#[test]
fn uboot() {
    alone("U-Boot", &Fitted::uboot());
}

/// Goal: entries on an ESP, for a kernel that is not the image's.
#[test]
fn systemd_boot() {
    alone("systemd-boot", &Fitted::systemd_boot());
}

/// Goal: a firmware's variables.
#[test]
fn uefi() {
    alone("UEFI", &Fitted::uefi());
}

fn alone(name: &'static str, fitted: &Fitted) {
    let Some(mut bench) = Bench::new(name, fitted) else { return };
    life(&mut bench, |_| {});
    bench.count();
}

/// Goal: entries on an ESP, and the kernels that images carry: who names a kernel has it whole, and the one of its image.
#[test]
fn systemd_boot_with_kernels_of_images() {
    const TEST: &str = "systemd_boot_with_kernels_of_images";
    let kernel = |name: &str| Seed::new(name.len() as u64).noise(5000 * name.len());
    let of = [(A, "a"), (B, "b2"), (B, "b03")];
    let folder = tempfile::tempdir().expect("a folder");
    let image = |name: &str| erofs(folder.path(), name, &kernel(name));
    let (images, slots) = match of.map(|(_, name)| image(name)) {
        [Ok(a), Ok(b), Ok(c)] => {
            ([a, b, c], ["slot-a", "slot-b"].map(|name| Loop::new(&folder.path().join(name), 1 << 20)))
        }
        [a, ..] => return skip(TEST, &a.err().unwrap_or_default()),
    };
    let [Ok(slot_a), Ok(slot_b)] = slots else { return skip(TEST, "no loop devices") };
    let put = |slot: &Loop, image: &[u8]| {
        let device = fs::File::options().write(true).open(&slot.device).expect("a slot");
        std::os::unix::fs::FileExt::write_all_at(&device, image, 0).expect("an image");
        device.sync_all().expect("an image");
    };
    put(&slot_a, &images[0]);
    let kernels = of.map(|(slot, name)| (slot, kernel(name))).to_vec();
    let fitted = Fitted::systemd_boot_with(kernels, kernel("a"), "kernel = \"/vmlinuz\"\n");
    let Some(mut bench) = Bench::new("systemd-boot, kernels", &fitted) else { return };
    bench.slots(&slot_a.device, &slot_b.device);
    life(&mut bench, |round| put(&slot_b, &images[1 + round]));
    bench.count();
}

/// A file system with a kernel in it.
fn erofs(folder: &Path, name: &str, kernel: &[u8]) -> Result<Vec<u8>, String> {
    let (content, image) = (folder.join(name), folder.join(format!("{name}.erofs")));
    fs::create_dir_all(&content).expect("a folder");
    fs::write(content.join("vmlinuz"), kernel).expect("a kernel");
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&content).output();
    match made {
        Ok(output) if output.status.success() => Ok(fs::read(image).expect("an image")),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(why) => Err(format!("mkfs.erofs: {why}")),
    }
}
