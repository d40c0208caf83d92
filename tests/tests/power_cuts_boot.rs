//! Power is lost while a boot loader's files change: by us, and by the loader that counts. At every operation: what starts is whole,
//! a trial that never comes to anything ends, and the next run finishes what was begun.
//!
//! The back-end is the real one, on a simulated disk with the laws of its place; the loader is a model of our own
//! ([`goldsync_tests::simdisk::loader`]). First the back-ends alone, everywhere and in all orders: the images are not there, a list says
//! which slot may be started when. Then the whole agent, over a trial from the first byte to its end: what starts is the image.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use goldsync_agent::boot::{self, Activation, Holds};
use goldsync_agent::config::{Config, Where};
use goldsync_agent::slot::SlotName;
use goldsync_proto::digest::ImageId;
use goldsync_tests::disk::{Loop, skip};
use goldsync_tests::seed::Seed;
use goldsync_tests::simdisk::Recording;
use goldsync_tests::simdisk::cut::{Fate, Laws};
use goldsync_tests::simdisk::loader::{Firmware, Grub, Loader, SystemdBoot, Uboot, starts};
use goldsync_tests::simdisk::rig::{Cuts, Rig, concerns_starting, count, images, seeds};
use goldsync_tests::simdisk::tree::Tree;
use goldsync_tests::{Image, Machine, SimDisk};

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

/// Starts that are counted. A firmware allows one.
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
    tries: u8,
    name: &'static str,
    operations: usize,
    cuts: u64,
    disks: HashSet<[u8; 32]>,
    _folder: tempfile::TempDir,
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
        let bench = Self { disk, laws, loader, tries: TRIES, name, operations, cuts, disks, _folder: folder };
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
    /// machine starts and makes the same call again, or the one that fits what it was started from. The same if it is not power that
    /// is lost first but the process, and power in the next one.
    fn step(&mut self, call: Call, whole: &[SlotName], good: SlotName) {
        let recording = self.record(call);
        let after = self.disk.tree();
        self.cut(&recording, 0, &format!("{call:?}"), |bench, place| bench.go_on(call, place, whole, good));
        // A run that finds a trial half prepared may go on with it, or have been told of something newer.
        let nexts = if let Call::Activate(slot, 1..) = call { vec![call, Call::Retire(slot)] } else { vec![call] };
        for (at, next) in (1..recording.ops.len()).flat_map(|at| nexts.iter().map(move |next| (at, *next))) {
            self.disk.exchange(&recording.cut(at, &self.laws, Fate::Kept));
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
            Call::Confirm(_) if self.tries == 1 => self.again(Call::Confirm(slot), place),
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
        let start = self.loader.start(&base);
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
        let tries = bench.tries;
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

const GRUB: &str = "backend = \"grub\"\ngrubenv = \"DISK/boot/grubenv\"\n";

/// A block as `grub-editenv` makes it, with something of somebody else's.
fn grub_folder(disk: &Path) {
    let mut block = b"# GRUB Environment Block\nsaved_entry=0\n".to_vec();
    block.resize(1024, b'#');
    fs::create_dir(disk.join("boot")).expect("a folder");
    fs::write(disk.join("boot/grubenv"), block).expect("grubenv");
}

/// Goal: grubenv on a file system with a journal, and on the ESP, of which GRUB and we write the same 1024 bytes.
#[test]
fn grub() {
    for (name, laws) in [("grub", Laws::default()), ("grub on FAT", on_fat("boot"))] {
        let loader = Grub { folder: "boot".into() };
        let Some(mut bench) = Bench::new(name, &loader, laws, GRUB) else { return };
        grub_folder(bench.disk.point());
        life(&mut bench, |_| {});
        bench.count();
    }
}

const UBOOT: &str = "backend = \"uboot\"\nenv_config = \"DISK/fw_env.config\"\n";

fn uboot_loader() -> Uboot {
    Uboot { file: "uboot.env".into(), size: 2048 }
}

/// Both copies, of which the checksum and what it covers lie in different sectors.
fn environment(disk: &Path, loader: &Uboot) {
    let file = disk.join("uboot.env");
    let long = "board ".repeat(120);
    let variables = [("bootargs", long.as_str()), ("goldsync_slot", "a"), ("goldsync_good", "a")];
    fs::write(&file, loader.made(&variables)).expect("the environment");
    let file = file.display();
    fs::write(disk.join("fw_env.config"), format!("{file} 0x0 0x800\n{file} 0x800 0x800\n")).expect("fw_env.config");
}

/// Goal: U-Boot's environment, of which U-Boot and we write the copy that does not count, in turns.
#[test]
fn uboot() {
    let loader = uboot_loader();
    let Some(mut bench) = Bench::new("U-Boot", &loader, Laws::default(), UBOOT) else { return };
    environment(bench.disk.point(), &loader);
    life(&mut bench, |_| {});
    bench.count();
}

const ESP: &str =
    "backend = \"systemd-boot\"\nesp = \"DISK/esp\"\nefivars = \"DISK/efivars\"\noptions = \"root=/dev/{slot} ro\"\n";

/// An ESP from which slot a was started by an entry of somebody else's.
fn esp(disk: &Path, kernel: &[u8]) {
    let path = |name: &str| disk.join("esp").join(name);
    fs::create_dir_all(path("loader/entries")).expect("an ESP");
    fs::write(path("loader/loader.conf"), "timeout 0\ndefault goldsync-*\n").expect("loader.conf");
    fs::write(path("first"), kernel).expect("a kernel");
    let entry = "title first\nsort-key a\nversion 1\nlinux /first\noptions root=/dev/a goldsync.slot=a\n";
    fs::write(path("loader/entries/first.conf"), entry).expect("an entry");
}

/// A kernel that is not the image's.
const FIXED: &str = "kernel = \"/first\"\nkernel_from = \"esp\"\n";

fn of_both() -> Vec<(SlotName, Vec<u8>)> {
    vec![(A, b"of both".to_vec()), (B, b"of both".to_vec())]
}

fn on_fat(folder: &str) -> Laws {
    Laws { fat: vec![folder.into()], ..Laws::default() }
}

/// Goal: entries on an ESP, and the kernels that images carry: who names a kernel has it whole, and the one of its image.
#[test]
fn systemd_boot_with_kernels_of_images() {
    const TEST: &str = "systemd_boot_with_kernels_of_images";
    let kernel = |name: &str| Seed::new(name.len() as u64).noise(5000 * name.len());
    let of = [(A, "a"), (B, "b2"), (B, "b03")];
    let loader = SystemdBoot { esp: "esp".into(), kernels: of.map(|(slot, name)| (slot, kernel(name))).to_vec() };
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
    let activation = format!("{ESP}kernel = \"/vmlinuz\"\n");
    let Some(mut bench) = Bench::new("systemd-boot, kernels", &loader, on_fat("esp"), &activation) else { return };
    bench.slots(&slot_a.device, &slot_b.device);
    esp(bench.disk.point(), &kernel("a"));
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

/// Goal: entries on an ESP, for a kernel that is not the image's.
#[test]
fn systemd_boot() {
    let loader = SystemdBoot { esp: "esp".into(), kernels: of_both() };
    let activation = format!("{ESP}{FIXED}");
    let Some(mut bench) = Bench::new("systemd-boot", &loader, on_fat("esp"), &activation) else { return };
    esp(bench.disk.point(), b"of both");
    life(&mut bench, |_| {});
    bench.count();
}

const UEFI: &str = "backend = \"uefi\"\nefivars = \"DISK/efivars\"\n";

fn firmware() -> Firmware {
    Firmware { variables: "efivars".into(), entries: vec![(1, A), (2, B)] }
}

fn of_firmware() -> Laws {
    Laws { variables: vec!["efivars".into()], ..Laws::default() }
}

/// A firmware that would rather start from the network, which has nothing to offer.
fn variables(disk: &Path) {
    fs::create_dir(disk.join("efivars")).expect("a folder");
    let entries = [(1, "goldsync a"), (2, "goldsync b"), (3, "network")];
    let entries = entries.map(|(number, description)| Firmware::entry(number, description));
    for (name, value) in entries.into_iter().chain([("BootOrder".into(), Firmware::list(&[3, 1]))]) {
        fs::write(disk.join("efivars").join(firmware().file(&name)), value).expect("a variable");
    }
}

/// Goal: a firmware's variables.
#[test]
fn uefi() {
    let loader = firmware();
    let Some(mut bench) = Bench::new("UEFI", &loader, of_firmware(), UEFI) else { return };
    bench.tries = 1;
    variables(bench.disk.point());
    life(&mut bench, |_| {});
    bench.count();
}

/// A node with a boot loader, on a simulated disk.
struct Booting<'a> {
    rig: &'a Rig,
    loader: &'a dyn Loader,
    /// Starts that are allowed.
    tries: u8,
    /// What may start; the last is what it is to come to.
    images: Vec<String>,
}

impl Booting<'_> {
    /// What every start would take, in vain, must be one of the images; no record tells a lie.
    fn found(&self) {
        let mut tree = self.rig.disk.tree();
        let starts = starts(self.loader, &mut tree, LONG);
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
        let start = self.loader.start(&self.rig.disk.tree());
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
            Err(error) if self.tries == 1 && error.exit_code() == 8 => {}
            done => drop(done.unwrap_or_else(|error| panic!("{error}"))),
        };
        self.until_arrived(sync).await;
        assert_eq!(self.held(), Vec::<String>::new());
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
async fn machine(name: &str, activation: &str, prepare: impl FnOnce(&mut Machine), old: &Image) -> Option<Rig> {
    let set_up = |node: &mut Machine| {
        let folder = node.folder.display().to_string();
        node.activation = format!("cmdline = \"DISK/cmdline\"\n{activation}").replace("DISK", &folder);
        prepare(node);
        fs::write(node.folder.join("cmdline"), "run=0 goldsync.slot=a\n").expect("the command line");
    };
    let rig = Rig::with(name, set_up).await?;
    old.write(rig.node.slot(A));
    rig.fleet.ship(old, "web:1").await;
    rig.node.sync().await.ok();
    Some(rig)
}

/// An update by a boot loader: staged and activated, started and counted, confirmed; all of it cut everywhere.
async fn update_by(
    name: &str,
    loader: &dyn Loader,
    laws: Laws,
    activation: &str,
    waits: Waits,
    prepare: impl FnOnce(&Path),
) {
    let tries = if activation == UEFI { 1 } else { TRIES };
    let (old, new) = images(70);
    let Some(rig) = machine(name, activation, |node| prepare(&node.folder), &old).await else { return };
    let mut shown = vec![old.id()];
    if waits == Waits::Another {
        let other = old.edited(72, 5);
        rig.fleet.ship(&other, "web:2").await;
        rig.node.sync().await.ok();
        shown.push(other.id());
    }
    rig.fleet.ship(&new, "web:3").await;
    shown.push(new.id());
    let booting = Booting { rig: &rig, loader, tries, images: shown };

    let staged = rig.record(async |node| drop(node.sync().await.ok())).await;
    let base = rig.disk.tree();
    let counted = Recording { ops: loader.start(&base).ops, base };
    assert_eq!(booting.start(), B, "{name}");
    let confirmed = rig.record(async |node| drop(node.sync().await.ok())).await;
    assert!(booting.arrived(), "{name}");
    for (part, recording) in [("staged", staged), ("counted", counted), ("confirmed", confirmed)] {
        let next = async |_: &Rig| booting.go_on().await;
        // What the image's way into the slot comes to is cut in `power_cuts.rs`: it knows no loader.
        let cuts = Cuts::of(&rig, format!("{name}-{part}"), &laws).only(concerns_starting).restarting();
        cuts.everywhere(&recording, |_| booting.found(), next, |_| booting.found()).await;
    }
}

/// Goal: a whole update by GRUB.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_grub() {
    let loader = Grub { folder: "boot".into() };
    update_by("grub", &loader, Laws::default(), GRUB, Waits::Nothing, grub_folder).await;
}

/// Goal: an update by GRUB over a release that waits for its start.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_grub_over_one_that_waits() {
    let loader = Grub { folder: "boot".into() };
    update_by("grub-waiting", &loader, Laws::default(), GRUB, Waits::Another, grub_folder).await;
}

/// Goal: the same by systemd-boot.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_systemd_boot() {
    let loader = SystemdBoot { esp: "esp".into(), kernels: of_both() };
    let activation = format!("{ESP}{FIXED}");
    let prepare = |disk: &Path| esp(disk, b"of both");
    update_by("systemd-boot", &loader, on_fat("esp"), &activation, Waits::Another, prepare).await;
}

/// Goal: the same by U-Boot.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_uboot() {
    let loader = uboot_loader();
    let prepare = |disk: &Path| environment(disk, &loader);
    update_by("uboot", &loader, Laws::default(), UBOOT, Waits::Another, prepare).await;
}

/// Goal: the same by a firmware.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_uefi() {
    update_by("uefi", &firmware(), of_firmware(), UEFI, Waits::Another, variables).await;
}

/// Goal: one that waits is called off by hand; one that comes up sick is left again. Wherever that is cut off, it is held in the
/// end, and for the reason that it was left for.
#[tokio::test(flavor = "multi_thread")]
async fn releases_that_are_left_by_grub() {
    const TEST: &str = "releases_that_are_left_by_grub";
    let elsewhere = tempfile::tempdir().expect("a folder");
    let sick = elsewhere.path().join("sick");
    let (old, new) = images(74);
    let prepare = |node: &mut Machine| {
        grub_folder(&node.folder);
        let command = format!("commands = [[\"/usr/bin/test\", \"!\", \"-e\", \"{}\"]]", sick.display());
        node.more = format!("[health]\n{command}\nevery = \"20 ms\"\ndeadline = \"100 ms\"\n");
    };
    let Some(rig) = machine(TEST, GRUB, prepare, &old).await else { return };
    rig.fleet.ship(&new, "web:2").await;
    rig.node.sync().await.ok();
    let (waits, loader) = (rig.disk.tree(), Grub { folder: "boot".into() });
    let booting = Booting { rig: &rig, loader: &loader, tries: TRIES, images: vec![new.id(), old.id()] };

    // Somebody says so until it is so, and the daemon comes up, too.
    let call_off = async |node: &Machine| {
        drop(node.rollback().await.result);
        drop(node.confirm().await.result);
    };
    let recording = rig.record(async |node| drop(node.rollback().await.ok())).await;
    left(&booting, "called-off", &recording, call_off, "by hand").await;

    rig.disk.exchange(&waits);
    assert_eq!(booting.start(), B);
    fs::write(&sick, "").expect("a file");
    let recording = rig.record(async |node| drop(node.sync().await.failed())).await;
    let confirm = async |node: &Machine| drop(node.confirm().await.result);
    left(&booting, "sick", &recording, confirm, "went back to web:1").await;
}

/// Cuts how a release is left: the last image runs in the end, and the other is held for that reason.
async fn left(booting: &Booting<'_>, name: &str, recording: &Recording, next: impl AsyncFn(&Machine), why: &str) {
    let next = async |_: &Rig| {
        booting.until_arrived(&next).await;
        let held = booting.held();
        assert!(held.len() == 1 && held[0].contains(why), "held: {held:?}");
    };
    let cuts = Cuts::of(booting.rig, name, &Laws::default()).only(concerns_starting).restarting();
    cuts.everywhere(recording, |_| booting.found(), next, |_| booting.found()).await;
}
