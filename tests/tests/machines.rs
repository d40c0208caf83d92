//! Stories with virtual machines: real kernels, real boot loaders, the agent inside and the server outside.
//!
//! Goal: a machine that was updated really starts the new image, and one whose new image is no good goes back by itself.
//! Method: the emulator starts a disk that was made as a factory would; its init follows a story's orders and says on
//! the console how far it is; afterwards the disk is read from outside, byte for byte.
//!
//! `scripts/make-machines` makes what is needed, in `$GOLDSYNC_MACHINES`; without that variable every test here says that it
//! was skipped.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use goldsync_tests::disk::skip;
use goldsync_tests::scene::{CHANNEL, NAME};
use goldsync_tests::vm::rig::slot_with;
use goldsync_tests::vm::{Firmware, Flaw, Kind, Layout, Loader, Part, Rig, Table, Vm, cuts, image};
use serde_json::Value;

/// How long an operator waits for what a machine has yet to say. No measure of anything.
const PATIENCE: Duration = Duration::from_secs(600);

const LAYOUT: Layout = Layout { table: Table::Mbr, esp: 40, slot: 64, state: 24 };

fn rig(test: &str) -> Result<Option<Rig>> {
    Rig::open(test, env!("CARGO_BIN_EXE_goldsync-demo"), Kind::Whole)
}

const COMMAND: &str = "backend = \"command\"\ncommand = [\"/usr/libexec/slots\"]\ntakes_effect = \"at-restart\"";

/// A factory's machine becomes a node, gets the next release into its other slot, and starts it.
#[test]
fn command_updates_and_restarts() -> Result<()> {
    let Some(rig) = rig("command_updates_and_restarts")? else { return Ok(()) };
    rig.release("1", Flaw::None)?;
    let second = rig.release("2", Flaw::None)?;
    let disk = rig.disk("machine", LAYOUT, COMMAND)?;
    let orders = rig.orders(
        r#"
case $release in
  story:1) do_or_say node sync --json; say "synced $(cat /tmp/done)"; again ;;
  story:2) do_or_say node confirm; do_or_say node status; say "status $(tr '\n' ';' </tmp/done)"; off ;;
esac"#,
    );
    let mut vm = Vm::start(&rig.kernel("")?, &disk.path, &orders)?;
    ensure!(vm.wait("up")? == "story:1 a", "it began with {:?}", vm.marks());
    let synced = vm.wait("synced")?;
    ensure!(vm.wait("up")? == "story:2 b", "it went on with {:?}", vm.marks());
    let status = vm.wait("status")?;
    vm.off()?;
    ensure!(slot_with(&disk, &second)? == Some("b"), "slot b is not story:2");
    ensure!(disk.state_file("/slots")? == "b\n-\n0\n", "{}", disk.state_file("/slots")?);
    eprintln!("{synced}\n{status}");
    Ok(())
}

/// What follows the section `activation` where health is asked for.
const HEALTH: &str = r#"
[health]
commands = [["/usr/libexec/health"]]
deadline = "3 s"
every = "1 s"

[restart]
how = "command"
command = ["/usr/libexec/restart"]
"#;

/// Release 2 says how the last trial ended, and goes on when it is told to. Release 4 is started, and not well.
const LOADER_ORDERS: &str = r#"
settle() { node confirm >/tmp/done 2>&1; say "settled $? $(tr '\n' ' ' </tmp/done)"; }
case $release in
  story:1) do_or_say node sync; say "synced"; again ;;
  story:2)
    settle
    node explain >/tmp/done 2>&1
    say "explained $(tr '\n' ' ' </tmp/done)"
    read -r line
    [ "$line" = "go on" ] || off
    do_or_say node sync
    say "synced"
    again
    ;;
  *) settle; sleep 1000 ;;
esac"#;

#[test]
fn systemd_boot() -> Result<()> {
    told_by_loader("systemd_boot", Loader::SystemdBoot)
}

#[test]
fn uefi() -> Result<()> {
    if shortened("uefi") { Ok(()) } else { told_by_loader("uefi", Loader::Uefi) }
}

#[test]
fn grub_bios() -> Result<()> {
    told_by_loader("grub_bios", Loader::GrubBios)
}

#[test]
fn grub_efi() -> Result<()> {
    if shortened("grub_efi") { Ok(()) } else { told_by_loader("grub_efi", Loader::GrubEfi) }
}

/// Whether there is only time for each kind of loader once: a story takes minutes of processor time on an emulator without hardware's
/// help.
fn shortened(test: &str) -> bool {
    let short = std::env::var_os("GOLDSYNC_VM_SHORT").is_some_and(|value| value == "1");
    if short {
        skip(
            test,
            "GOLDSYNC_VM_SHORT is 1: GRUB is shown with BIOS and EFI with systemd-boot; GOLDSYNC_VM_SHORT=0 for all",
        );
    }
    short
}

/// How an image comes to nothing before the agent: each kind with one loader of a kind that CI always has time for.
fn dead_for(loader: Loader) -> Flaw {
    match loader {
        Loader::GrubBios | Loader::Uefi => Flaw::NoInit,
        Loader::GrubEfi | Loader::SystemdBoot => Flaw::Panics,
    }
}

/// The whole way with a boot loader: an update is started and confirmed; the next image has no init, or one that ends at once, so
/// that the kernel panics, and the loader goes back by itself; the one after that starts and is not well, and the agent goes back.
fn told_by_loader(test: &str, loader: Loader) -> Result<()> {
    let Some(rig) = rig(test)? else { return Ok(()) };
    rig.release("1", Flaw::None)?;
    let second = rig.release("2", Flaw::None)?;
    let layout = Layout { table: loader.table(), ..LAYOUT };
    let activation = format!("{}\ntries = {}\n{HEALTH}", loader.activation(), loader.counted());
    let disk = rig.disk("machine", layout, &activation)?;
    let Some(firmware) = loader.install(&rig, test, &disk)? else { return Ok(()) };
    let orders = rig.orders(&format!("{}{LOADER_ORDERS}", loader.orders(&disk)));

    let mut vm = Vm::start(&firmware, &disk.path, &orders)?;
    ensure!(vm.wait("up")? == "story:1 a", "it began with {:?}", vm.marks());
    vm.wait("synced")?;
    ensure!(vm.wait("up")? == "story:2 b", "it went on with {:?}", vm.marks());
    let settled = vm.wait("settled")?;
    ensure!(settled.starts_with("0 ") && settled.contains("confirmed"), "{settled}");

    rig.release("3", dead_for(loader))?;
    vm.type_line("go on")?;
    vm.wait("synced")?;
    let before = vm.marks().len();
    ensure!(vm.wait("up")? == "story:2 b", "it did not go back: {:?}", vm.marks());
    // Fewer only if a start came to nothing even before the initramfs: it is counted by the loader, not by what it starts.
    let starts = vm.marks()[before..].iter().filter(|mark| **mark == "starting a").count();
    ensure!(starts <= usize::from(loader.counted()), "{starts} starts of a: {:?}", vm.marks());
    let settled = vm.wait("settled")?;
    ensure!(settled.contains("story:3 was not kept"), "{settled}");
    let dead = vm.wait("explained")?;
    ensure!(dead.contains("did not come up"), "{dead}");

    rig.release("4", Flaw::Unhealthy)?;
    vm.type_line("go on")?;
    vm.wait("synced")?;
    ensure!(vm.wait("up")? == "story:4 a", "it did not start story:4: {:?}", vm.marks());
    ensure!(vm.wait("up")? == "story:2 b", "it did not go back: {:?}", vm.marks());
    vm.wait("settled")?;
    let unwell = vm.wait("explained")?;
    ensure!(unwell.contains("the service does not answer"), "{unwell}");
    vm.type_line("off")?;
    vm.off()?;
    ensure!(slot_with(&disk, &second)? == Some("b"), "slot b is not story:2");
    eprintln!("{test}: {dead}\n{test}: {unwell}");
    Ok(())
}

/// Neither slot starts: GRUB says so and waits in its menu. A technician writes a whole image into slot b from outside and chooses
/// it there; the node then updates the other slot by itself, and that is what starts from now on.
#[test]
fn both_slots_bad() -> Result<()> {
    let test = "both_slots_bad";
    let Some(rig) = rig(test)? else { return Ok(()) };
    rig.release("1", Flaw::None)?;
    let second = rig.release("2", Flaw::None)?;
    let disk = rig.disk("machine", LAYOUT, &format!("{}\n{HEALTH}", Loader::GrubBios.activation()))?;
    let Some(firmware) = Loader::GrubBios.install(&rig, test, &disk)? else { return Ok(()) };
    let dead = rig.image("3", Flaw::NoInit)?;
    disk.put(Part::A, &dead)?;
    disk.put(Part::B, &dead)?;
    // What GRUB itself has written when b came to nothing, and then a, twice.
    let block = "# GRUB Environment Block\ngoldsync_slot=a\ngoldsync_tries=1\ngoldsync_good=-\n";
    disk.esp_write("/grub/grubenv", format!("{block:#<1024}"))?;
    let orders = rig.orders(
        r#"
case $release in
  story:1) do_or_say node sync; say "synced"; again ;;
  story:2) do_or_say node confirm; say "confirmed"; off ;;
esac"#,
    );
    let mut vm = Vm::start(&firmware, &disk.path, &orders)?;
    ensure!(vm.wait("starting")? == "a");
    let said = vm.wait_line("both slots failed")?;
    vm.cut()?;

    disk.put(Part::B, &rig.image("1", Flaw::None)?)?;
    let mut vm = Vm::start(&firmware, &disk.path, &orders)?;
    vm.wait_line("both slots failed")?;
    // Down, and Enter.
    vm.type_line("\u{e}")?;
    ensure!(vm.wait("up")? == "story:1 b", "the menu was not obeyed: {:?}", vm.marks());
    vm.wait("synced")?;
    ensure!(vm.wait("up")? == "story:2 a", "the node was not mended: {:?}", vm.marks());
    vm.wait("confirmed")?;
    vm.off()?;
    ensure!(slot_with(&disk, &second)? == Some("a"), "slot a is not story:2");
    let block = String::from_utf8_lossy(&disk.esp_read("/grub/grubenv")?).into_owned();
    ensure!(block.contains("goldsync_slot=a\ngoldsync_tries=-\ngoldsync_good=a\n"), "{block}");
    eprintln!("{test}: {said}");
    Ok(())
}

/// A block that turned on the disk is not handed to any program of a sealed image; `verify` finds it, and `repair` mends it.
#[test]
fn verity_catches_a_turned_block() -> Result<()> {
    let test = "verity_catches_a_turned_block";
    let Some(rig) = rig(test)? else { return Ok(()) };
    let Some(veritysetup) = veritysetup(test) else { return Ok(()) };
    let image = rig.image("2", Flaw::None)?;
    let offset = fs::metadata(&image)?.len();
    let hash = image::seal(&image)?;
    rig.release("2", Flaw::None)?;
    let disk = rig.disk("machine", LAYOUT, COMMAND)?;
    let orders = rig.orders(
        r#"
look() {
  wrong=
  for file in /usr/share/payload/*; do cat "$file" >/tmp/payload 2>/dev/null || wrong="$wrong $file"; done
  if [ -z "$wrong" ]; then say "whole"; else say "caught$wrong"; fi
}
case $release in
  story:1) do_or_say node sync --json; say "synced"; off ;;
  story:2)
    look
    node verify >/tmp/done 2>&1
    say "verified $? $(head -n 1 /tmp/done)"
    grep -q goldsync.repair /proc/cmdline && { do_or_say node repair; say "repaired"; }
    off
    ;;
esac"#,
    );
    let sealed = |slot: &str, more: &str| {
        let words = format!("goldsync.slot={slot} goldsync.roothash={hash} goldsync.hashoffset={offset} {more}");
        rig.sealed_kernel(veritysetup, &words)
    };
    let start = |firmware: &Firmware| Vm::start(firmware, &disk.path, &orders);

    let mut vm = start(&rig.kernel("goldsync.slot=a")?)?;
    vm.wait("synced")?;
    vm.off()?;
    let mut vm = start(&sealed("b", "")?)?;
    ensure!(vm.wait("up")? == "story:2 b");
    vm.wait("whole")?;
    ensure!(vm.wait("verified")?.starts_with("0 "), "drift in a fresh slot: {:?}", vm.marks());
    vm.off()?;

    disk.flip(Part::B, image::place_of(&image, "/usr/share/payload/4")?)?;
    let mut vm = start(&sealed("b", "goldsync.repair")?)?;
    let wrong = vm.wait("caught")?;
    ensure!(wrong == "/usr/share/payload/4", "{wrong}");
    ensure!(vm.wait("verified")?.starts_with("6 "), "verify did not find it: {:?}", vm.marks());
    vm.wait("repaired")?;
    vm.off()?;
    let mut vm = start(&sealed("a", "")?)?;
    ensure!(vm.wait("up")? == "story:2 a");
    vm.wait("whole")?;
    vm.off()?;
    eprintln!("{test}: {wrong}");
    Ok(())
}

/// What opens dm-verity in an initramfs; says loudly if it is not there.
fn veritysetup(test: &str) -> Option<&'static Path> {
    let program = Path::new(image::VERITYSETUP);
    if !program.is_file() {
        skip(test, "veritysetup is not installed; run scripts/install-packages vm");
        return None;
    }
    Some(program)
}

/// A release is sealed when it is published. Its root hash comes to the loader's entry, and so to the kernel's command line: the machine
/// reads its root through it. An agent that has forgotten what the slot holds knows it by that hash, and does not read the slot.
#[test]
fn root_hash_by_the_loaders_entry() -> Result<()> {
    let (test, loader) = ("root_hash_by_the_loaders_entry", Loader::SystemdBoot);
    let Some(rig) = Rig::open(test, env!("CARGO_BIN_EXE_goldsync-demo"), Kind::Sealed)? else { return Ok(()) };
    if veritysetup(test).is_none() {
        return Ok(());
    }
    rig.release("1", Flaw::None)?;
    let words = "goldsync.load=verity goldsync.roothash={root_hash} goldsync.hashoffset={hash_offset} ";
    let activation = loader.activation().replace("options = \"", &format!("options = \"{words}"));
    let disk = rig.disk("machine", Layout { table: loader.table(), esp: 80, slot: 72, ..LAYOUT }, &activation)?;
    let Some(firmware) = loader.install(&rig, test, &disk)? else { return Ok(()) };
    let orders = rig.orders(
        r#"
# In sectors of 512 bytes.
read_so_far() { awk '{ print $3 }' /sys/class/block/vda3/stat; }
case $release in
  story:1) do_or_say node sync; say "synced"; again ;;
  story:2)
    say "root $(awk '$2 == "/" && $1 != "rootfs" { print $1 }' /proc/mounts) $(tr ' ' '\n' </proc/cmdline | sed -n 's/^goldsync.roothash=//p')"
    do_or_say node confirm
    rm /state/goldsync/slots/b.json
    before=$(read_so_far)
    do_or_say node sync
    say "known $(($(read_so_far) - before)) $(tr '\n' ' ' </tmp/done)"
    do_or_say node status
    say "status $(tr '\n' ' ' </tmp/done)"
    off
    ;;
esac"#,
    );
    let image = rig.image("2", Flaw::None)?;
    let path = image.to_str().context("a path as text")?;
    let publish = ["publish", path, "--name", NAME, "--version", "2", "--verity", "--quiet", "--json"];
    rig.scene.server.goldsync(publish)?.ok()?;
    rig.scene.server.promote(&format!("{NAME}:2"), CHANNEL)?;
    let shown = rig.scene.server.goldsync(["release", "show", &format!("{NAME}:2"), "--json"])?.ok()?.json()?;
    let signed = shown["manifest"]["verity"]["root_hash"].as_str().with_context(|| format!("no root hash: {shown}"))?;

    // The factory's image is not sealed.
    let mut vm = Vm::start(&firmware, &disk.path, &orders)?;
    ensure!(vm.wait("up")? == "story:1 a", "it began with {:?}", vm.marks());
    vm.wait("synced")?;
    ensure!(vm.wait("up")? == "story:2 b", "it went on with {:?}", vm.marks());
    let root = vm.wait("root")?;
    ensure!(root == format!("/dev/mapper/root {signed}"), "{root}, and {signed} is signed");
    let known = vm.wait("known")?;
    let (sectors, said) = known.split_once(' ').context("sectors, and what was said")?;
    // What programs read of their own files, and not the slot.
    ensure!(sectors.parse::<u64>()? * 512 < fs::metadata(&image)?.len() / 4, "the slot was read: {known}");
    ensure!(said.contains("story:2"), "{said}");
    let status = vm.wait("status")?;
    vm.off()?;
    eprintln!("{test}: {root}; {known}; {status}");
    Ok(())
}

/// systemd starts the daemon, and the daemon starts user space again: the machine is told of a release, and then of one that is not
/// well, and nobody types anything. The kernel stays the same one all along.
#[test]
fn soft_reboot() -> Result<()> {
    let test = "soft_reboot";
    let Some(rig) = Rig::open(test, env!("CARGO_BIN_EXE_goldsync-demo"), Kind::Systemd)? else { return Ok(()) };
    if rig.parts.optional(test, "userland").is_none() {
        return Ok(());
    }
    rig.release("1", Flaw::None)?;
    let disk = rig.systemd_disk("machine", Layout { slot: 100, ..LAYOUT })?;
    let Some(firmware) = Loader::GrubBios.install(&rig, test, &disk)? else { return Ok(()) };

    let mut vm = Vm::start(&firmware, &disk.path, &rig.enrolment()?)?;
    let first = Start::of(&mut vm)?;
    ensure!(first.release == "story:1 a", "it began with {first:?}");
    shown(&rig, &mut vm, "runs story:1", |node| node["report"]["active"]["release"] == "story:1")?;

    let second = rig.release("2", Flaw::None)?;
    let updated = Start::of(&mut vm)?;
    ensure!(updated.release == "story:2 b" && updated.follows(&first), "{first:?}, then {updated:?}");
    shown(&rig, &mut vm, "keeps story:2", |node| {
        node["current"] == true && node["report"]["trial"].is_null() && node["report"]["active"]["release"] == "story:2"
    })?;

    rig.release("3", Flaw::Unhealthy)?;
    let unwell = Start::of(&mut vm)?;
    ensure!(unwell.release == "story:3 a" && unwell.follows(&updated), "{updated:?}, then {unwell:?}");
    let back = Start::of(&mut vm)?;
    ensure!(back.release == "story:2 b" && back.follows(&unwell), "{unwell:?}, then {back:?}");
    let node = shown(&rig, &mut vm, "is back from story:3", |node| {
        node["report"]["trial"].is_null()
            && node["report"]["active"]["release"] == "story:2"
            && node["report"]["held"][0]["release"] == "story:3"
    })?;
    let why = node["report"]["held"][0]["why"].to_string();
    ensure!(why.contains("the service does not answer") && why.contains("went back to story:2"), "{why}");
    vm.type_line("off")?;
    vm.off()?;
    ensure!(slot_with(&disk, &second)? == Some("b"), "slot b is not story:2");
    // What a real start takes is the same.
    let block = String::from_utf8_lossy(&disk.esp_read("/grub/grubenv")?).into_owned();
    ensure!(block.contains("goldsync_slot=b\ngoldsync_tries=-\ngoldsync_good=b\n"), "{block}");
    eprintln!("{test}: {first:?}, {updated:?}, {unwell:?}, {back:?}; {why}");
    Ok(())
}

/// What a machine with systemd says when it has started.
#[derive(Debug)]
struct Start {
    /// Release and slot.
    release: String,
    /// The kernel's name for this run of it.
    kernel: String,
    /// How long that runs.
    uptime: f64,
    /// systemd's version, and how often it has started user space on this kernel, if it counts that: it does from 256 on.
    systemd: (u32, Option<u32>),
}

impl Start {
    fn of(vm: &mut Vm) -> Result<Self> {
        let release = vm.wait("up")?;
        let kernel = vm.wait("kernel")?;
        let (kernel, uptime) = kernel.split_once(' ').context("a run of the kernel and its time")?;
        let systemd = vm.wait("systemd")?;
        let (version, count) = systemd.split_once(' ').context("a version and a count")?;
        let count = if count.is_empty() { None } else { Some(count.parse()?) };
        Ok(Self { release, kernel: kernel.into(), uptime: uptime.parse()?, systemd: (version.parse()?, count) })
    }

    /// Whether this is the next start of user space, on the same kernel.
    fn follows(&self, before: &Self) -> bool {
        let counted = self.systemd.1 == before.systemd.1.map(|count| count + 1);
        self.kernel == before.kernel && self.uptime > before.uptime && counted
    }
}

/// The one node, as the operator sees it, once `wanted` is true of it.
fn shown(rig: &Rig, vm: &mut Vm, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        let nodes = rig.scene.server.goldsync(["fleet", "status", "--json"])?.ok()?.json()?;
        if wanted(&nodes[0]) {
            return Ok(nodes[0].clone());
        }
        ensure!(Instant::now() < until, "the node never {what}: {nodes}\n{}", vm.said());
        ensure!(
            !vm.run_for(Duration::from_millis(500))?,
            "the machine went off before the node {what}:\n{}",
            vm.said()
        );
    }
}

/// The plug is pulled at random moments of updates: whatever starts then is a whole release, and the next run finishes. As many
/// times as `GOLDSYNC_VM_CUTS` says, or as fit into `GOLDSYNC_VM_SECONDS`, at moments that `GOLDSYNC_VM_SEED` chooses.
#[test]
fn power_cuts() -> Result<()> {
    let rig = Rig::open("power_cuts", env!("CARGO_BIN_EXE_goldsync-demo"), Kind::Small)?;
    let Some(rig) = rig else { return Ok(()) };
    let disk = rig.disk("machine", Layout { esp: 34, slot: 16, state: 64, ..LAYOUT }, COMMAND)?;
    let (count, seed) = (cuts::asked("GOLDSYNC_VM_CUTS", 10)?, cuts::asked("GOLDSYNC_VM_SEED", 1)?);
    let limit = Duration::from_secs(cuts::asked("GOLDSYNC_VM_SECONDS", 86_400)?);
    let tally = cuts::cut(&rig, &disk, &rig.kernel("")?, count, seed, limit)?;
    if tally.cuts < count {
        skip("power_cuts", &format!("{} of {count} cuts: GOLDSYNC_VM_SECONDS ({limit:?}) were over", tally.cuts));
    }
    eprintln!(
        "{} power cuts, seed {seed}; the last thing done: {:?}; it came back {:?}",
        tally.cuts, tally.after, tally.came_back
    );
    Ok(())
}
