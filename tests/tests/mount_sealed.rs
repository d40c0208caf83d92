//! A slot that is mounted through dm-verity: on this machine, if its kernel has a device mapper, and in a virtual machine, whose has.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use goldsync_agent::boot::{Activation, Holds, Mount, Started};
use goldsync_agent::slot::{self, SlotName};
use goldsync_agent::volume::Volume;
use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::release::Manifest;
use goldsync_proto::signature::Signature;
use goldsync_proto::verity;
use goldsync_tests::bench::{Bench, FILE, FILES, holds};
use goldsync_tests::disk::skip;
use goldsync_tests::vm::{Kind as Machine, Layout, Rig, Table, Vm};
use goldsync_tests::volumes::Kind;
use goldsync_tests::{Run, namespace};

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

/// Appends a hash tree to the image in a slot, and records it as that release's.
fn seal(bench: &Bench, slot: SlotName) -> Holds {
    let data = fs::read(bench.slots.path(slot)).expect("an image");
    let (tree, sealed) = verity::seal(&data, ImageId::of(&data)).expect("a tree");
    let bytes = [data, tree].concat();
    fs::write(bench.slots.path(slot), &bytes).expect("a slot");
    let geometry = Geometry::new(bytes.len() as u64).expect("a size");
    let signature = Signature::of(geometry, &bytes).expect("a signature");
    let manifest = Manifest {
        format: 1,
        release: "web:1".parse().expect("a release"),
        image: signature.image,
        size: geometry.size(),
        sections: signature.sections(),
        file_system: None,
        verity: Some(sealed.clone()),
        minimum_agent: None,
        labels: Default::default(),
        published_at: String::new(),
    };
    bench.journal().set_proven_as(slot, &manifest).expect("a record");
    Holds { verity: Some(sealed), ..holds() }
}

/// Through dm-verity: what was signed is read, what was changed is an error, and nothing stays behind. Where the kernel is too old
/// to replace a volume, it says so and changes nothing.
#[test]
fn a_volume_is_checked_by_the_kernel() {
    const NAME: &str = "a_volume_is_checked_by_the_kernel";
    if !namespace::own(NAME) {
        return;
    }
    if !Path::new("/dev/mapper/control").exists() {
        return skip(NAME, "this kernel has no device mapper");
    }
    let Some(bench) = Bench::new(Kind::Erofs) else { return skip(NAME, "no mkfs.erofs here") };
    let volume = Volume { verity: true, ..Volume::default() };
    let mount = Mount::new(&bench.target, &volume, &bench.slots, &bench.state());
    let refused = mount.activate(A, &holds(), 0).expect_err("a release without a tree").to_string();
    assert!(refused.contains("publish --verity"), "{refused}");
    let (a, b) = (seal(&bench, A), seal(&bench, B));
    let root = |holds: &Holds| holds.verity.as_ref().map(|sealed| sealed.root_hash);
    mount.activate(A, &a, 0).expect("a slot that is mounted");
    assert_eq!((mount.active().expect("a look"), bench.seen(), mount.root_hash()), (Some(A), 'a', root(&a)));
    let used = slot::used(&bench.slots.a).expect("a slot in use");
    assert!(used.how.contains("through /dev/dm-"), "{used:?}");
    match mount.activate(B, &b, 0) {
        Ok(()) => {
            assert_eq!((mount.active().expect("a look"), bench.seen(), mount.root_hash()), (Some(B), 'b', root(&b)))
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("takes Linux 6.5, and this is"), "{error}");
            assert_eq!((mount.active().expect("a look"), bench.seen()), (Some(A), 'a'));
            eprintln!("not replaced while it is read: {error}");
            bench.power_off();
            mount.activate(B, &b, 0).expect("a slot that is mounted plainly");
        }
    }
    mount.retire(A).expect("a slot that nobody uses");
    bench.power_off();
    // The device mapper removes in the background what nobody uses any more.
    let stays = || {
        let mut devices = fs::read_dir("/sys/block").expect("/sys").flatten();
        devices.any(|entry| {
            fs::read_to_string(entry.path().join("dm/name")).is_ok_and(|name| name.starts_with("goldsync-"))
        })
    };
    let gone = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        !stays()
    });
    assert!(gone, "a device stays");
    // After a start, by the record; and with another tree's root hash, not at all.
    let journal = bench.journal();
    let lock = journal.lock().expect("the lock");
    assert_eq!(mount.at_start(&lock).expect("a start"), Started::Mounted(B, None));
    bench.power_off();
    assert!(mount.activate(B, &a, 0).is_err(), "another root hash");
    // One byte of one file.
    let mut bytes = fs::read(&bench.slots.b).expect("a slot");
    let at = bytes.windows(FILE).position(|part| part.iter().all(|byte| *byte == b'b')).expect("a file's bytes");
    bytes[at + 3 * 4096 + 7] ^= 1;
    fs::write(&bench.slots.b, &bytes).expect("a slot");
    mount.activate(B, &b, 0).expect("a slot that is mounted");
    let read: Vec<bool> =
        (0..FILES).map(|number| fs::read(bench.target.join(format!("file-{number}"))).is_ok()).collect();
    assert_eq!(read.iter().filter(|read| !**read).count(), 1, "one file cannot be read, and is not wrong: {read:?}");
}

/// What the machine does with this very program.
const ORDERS: &str = r#"
export TMPDIR=/tmp
story --exact a_volume_is_checked_by_the_kernel --nocapture --test-threads 1 >/tmp/done 2>&1
code=$?
cat /tmp/done >/dev/console
grep -q '1 passed' /tmp/done && ! grep -q SKIPPED /tmp/done || code="$code, or skipped"
say "told $code"
off
"#;

/// The same story, told by a kernel that has a device mapper, and is older than 6.5: it cannot replace what is mounted.
#[test]
fn a_volume_is_checked_by_a_machines_kernel() -> Result<()> {
    let test = "a_volume_is_checked_by_a_machines_kernel";
    let Some(mut rig) = Rig::open(test, env!("CARGO_BIN_EXE_goldsync-demo"), Machine::Small)? else { return Ok(()) };
    let story = rig.path("story");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&story).arg(std::env::current_exe()?);
    Run::of(strip)?.ok()?;
    if !rig.bring(test, &[&story, Path::new("/usr/bin/mkfs.erofs")]) {
        return Ok(());
    }
    let layout = Layout { table: Table::Mbr, esp: 34, slot: 16, state: 128 };
    let disk = rig.disk("machine", layout, "backend = \"command\"\ncommand = [\"/usr/libexec/slots\"]")?;
    rig.release("1", goldsync_tests::vm::Flaw::None)?;
    let mut vm = Vm::start(&rig.kernel("goldsync.load=volume")?, &disk.path, &rig.orders(ORDERS))?;
    let told = vm.wait("told")?;
    vm.off()?;
    ensure!(told == "0", "it ended with {told}:\n{}", vm.said());
    ensure!(vm.said().contains("takes Linux 6.5, and this is"), "it replaced a volume:\n{}", vm.said());
    Ok(())
}
