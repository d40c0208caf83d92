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
use std::time::Duration;

use anyhow::{Result, ensure};
use goldsync_tests::disk::skip;
use goldsync_tests::vm::rig::slot_with;
use goldsync_tests::vm::{Firmware, Flaw, Kind, Layout, Loader, Part, Rig, Table, Vm, cuts, image};

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

/// The whole way with a boot loader: an update is started and confirmed; the next image has no init, and the loader goes
/// back by itself; the one after that starts and is not well, and the agent goes back.
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

    rig.release("3", Flaw::NoInit)?;
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
    let veritysetup = Path::new("/usr/sbin/veritysetup");
    if !veritysetup.is_file() {
        skip(test, "veritysetup is not installed; run scripts/install-packages vm");
        return Ok(());
    }
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
