//! Power is lost while a boot loader's files change: by us, and by the loader that counts. At every operation: what starts is whole,
//! a trial that never comes to anything ends, and the next run finishes what was begun.
//!
//! The back-end is the real one, on a simulated disk with the laws of its place; the loader is a model of our own
//! ([`goldsync_tests::simdisk::loader`]). The images are not there: a list says which slot may be started when.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use goldsync_agent::boot::{self, Activation, Holds};
use goldsync_agent::config::{Config, Where};
use goldsync_agent::slot::SlotName;
use goldsync_proto::digest::ImageId;
use goldsync_tests::SimDisk;
use goldsync_tests::disk::skip;
use goldsync_tests::simdisk::Recording;
use goldsync_tests::simdisk::cut::{Fate, Laws};
use goldsync_tests::simdisk::loader::{Grub, Loader, starts};
use goldsync_tests::simdisk::rig::count;
use goldsync_tests::simdisk::tree::Tree;

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

/// Starts that are counted.
const TRIES: u8 = 3;

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
    laws: Laws,
    loader: &'a dyn Loader,
    name: &'static str,
    operations: usize,
    cuts: u64,
    disks: HashSet<[u8; 32]>,
    _folder: tempfile::TempDir,
}

/// How many ways of losing are tried at each operation: many more than where each costs an update.
fn seeds() -> u64 {
    8 * std::env::var("GOLDSYNC_CUT_SEEDS").map_or(2, |text| text.parse().expect("GOLDSYNC_CUT_SEEDS is a number"))
}

impl<'a> Bench<'a> {
    fn new(name: &'static str, loader: &'a dyn Loader, laws: Laws, activation: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = match SimDisk::mount(&folder.path().join("disk"), 64 << 20, Path::new("none")) {
            Ok(disk) => disk,
            Err(why) => {
                skip(name, &why);
                return None;
            }
        };
        let point = disk.point().display();
        let activation = activation.replace("DISK", &point.to_string());
        let text = format!(
            "server = \"127.0.0.1:1\"\nchannel = \"production\"\nstate = \"{point}/state\"\n\
             [slots]\na = \"{point}/a.img\"\nb = \"{point}/b.img\"\n\
             [activation]\ncmdline = \"{point}/cmdline\"\n{activation}"
        );
        fs::write(disk.point().join("agent.toml"), text).expect("agent.toml");
        let (operations, cuts, disks) = Default::default();
        let bench = Self { disk, laws, loader, name, operations, cuts, disks, _folder: folder };
        bench.boot(A);
        Some(bench)
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
        starts(self.loader, &mut self.disk.tree(), times)
    }

    /// Starts it once, with power: from which slot.
    fn start(&self) -> SlotName {
        let mut tree = self.disk.tree();
        let slot = starts(self.loader, &mut tree, 1)[0].unwrap_or_else(|| panic!("{}: nothing starts", self.name));
        self.disk.exchange(&tree);
        self.boot(slot);
        slot
    }

    /// Makes a call, and cuts it everywhere: whatever starts must be one of `whole`, and starts in vain must end in `good`. Then the
    /// machine starts and makes the same call again, or the one that fits what it was started from.
    fn step(&mut self, call: Call, whole: &[SlotName], good: SlotName) {
        let base = self.disk.record();
        self.call(call);
        let recording = self.disk.recorded(base);
        let after = self.disk.tree();
        self.cut(&recording, &format!("{call:?}"), |bench, place| {
            bench.vain(place, whole, good);
            let slot = bench.start();
            match call {
                Call::Retire(_) | Call::Activate(_, _) if slot == good => bench.again(call, place),
                // It came to its trial, or is still allowed to start: it is well.
                Call::Activate(slot, _) | Call::Retire(slot) => bench.again(Call::Confirm(slot), place),
                Call::Confirm(confirmed) => {
                    assert_eq!(slot, confirmed, "{place}");
                    bench.again(call, place);
                }
            }
        });
        self.disk.exchange(&after);
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
        let start = self.loader.start(&base);
        let recording = Recording { base, ops: start.ops };
        self.cut(&recording, "the loader's count", |bench, place| bench.vain(place, whole, good));
        self.disk.exchange(&recording.base);
        self.start()
    }

    fn cut(&mut self, recording: &Recording, what: &str, judge: impl Fn(&Self, &str)) {
        self.operations += recording.ops.len();
        for at in 0..=recording.ops.len() {
            for fate in Fate::all(seeds()) {
                self.cuts += 1;
                let tree: Tree = recording.cut(at, &self.laws, fate);
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
    Holds { image: ImageId::of(slot.as_str().as_bytes()), release: release.parse().expect("a release"), size: 4096 }
}

/// A machine's life: an update that is confirmed, one that comes to nothing, a rollback; each step cut everywhere.
fn life(bench: &mut Bench<'_>) {
    for round in 0..2 {
        // Slot b is written and tried. In the second round it holds the old release, whole until it is retired.
        bench.step(Call::Retire(B), if round == 0 { &[A] } else { &[A, B] }, A);
        bench.promised(Call::Retire(B), "retired");
        bench.step(Call::Activate(B, TRIES), &[A, B], A);
        bench.promised(Call::Activate(B, TRIES), "activated");
        if round == 0 {
            // It never comes so far as to say that it is well.
            let all: Vec<SlotName> = (0..usize::from(TRIES)).map(|_| bench.counted(&[A, B], A)).collect();
            assert_eq!(all, [B, B, B]);
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
    for (name, laws) in [("grub", Laws::default()), ("grub on FAT", Laws { fat: vec!["boot".into()] })] {
        let loader = Grub { folder: "boot".into() };
        let activation = "backend = \"grub\"\ngrubenv = \"DISK/boot/grubenv\"\n";
        let Some(mut bench) = Bench::new(name, &loader, laws, activation) else { return };
        fs::create_dir(bench.path("boot")).expect("a folder");
        let mut block = b"# GRUB Environment Block\nsaved_entry=0\n".to_vec();
        block.resize(1024, b'#');
        fs::write(bench.path("boot/grubenv"), block).expect("grubenv");
        life(&mut bench);
        bench.count();
    }
}
