//! Slots mounted at a mount point and replaced while they are read. Root and loop devices are needed; without, loudly skipped.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use goldsync_agent::boot::nextroot::NextRoot;
use goldsync_agent::boot::{Activation, Effect, Look, Mount, Started};
use goldsync_agent::config::Slots;
use goldsync_agent::program::Program;
use goldsync_agent::restart::{self, Next};
use goldsync_agent::slot::{self, SlotName, Standby, Wanted};
use goldsync_agent::volume::Volume;
use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_tests::bench::{Bench, FILE, FILES, holds, make};
use goldsync_tests::disk::{Loop, skip};
use goldsync_tests::volumes::{Kind, text, tool};
use goldsync_tests::{Fleet, Image, namespace};

const A: SlotName = SlotName::A;
const B: SlotName = SlotName::B;

/// What readers came to.
#[derive(Debug, Default)]
struct Seen {
    opens: AtomicU64,
    missing: AtomicU64,
    torn: AtomicU64,
}

/// Opens, reads and closes files until told to stop.
fn read_on(target: &Path, seen: &Seen, stop: &AtomicBool) {
    let mut bytes = Vec::with_capacity(FILE);
    let whole = |bytes: &[u8]| bytes.len() == FILE && bytes[1..] == bytes[..FILE - 1];
    for number in (0..FILES).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        bytes.clear();
        let read = File::open(target.join(format!("file-{number}"))).and_then(|mut file| file.read_to_end(&mut bytes));
        seen.opens.fetch_add(1, Ordering::Relaxed);
        if read.is_err() {
            seen.missing.fetch_add(1, Ordering::Relaxed);
        } else if !whole(&bytes) {
            seen.torn.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Readers in tight loops see one image or the other, whole, whatever the file system.
#[test]
fn swaps_never_show_a_gap() {
    const NAME: &str = "swaps_never_show_a_gap";
    if !namespace::own(NAME) {
        return;
    }
    for kind in Kind::ALL {
        let Some(bench) = Bench::new(kind) else {
            skip(NAME, &format!("{kind:?}: no mkfs here; scripts/install-packages images"));
            continue;
        };
        let mount = bench.mount();
        mount.activate(A, &holds(), 0).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        let (seen, stop, swaps) = (Seen::default(), AtomicBool::new(false), 30);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| read_on(&bench.target, &seen, &stop));
            }
            for swap in 0..swaps {
                let (slot, letter) = if swap % 2 == 0 { (B, 'b') } else { (A, 'a') };
                let done = mount.activate(slot, &holds(), 0).map(|()| (bench.seen(), mount.active()));
                if !matches!(&done, Ok((seen, Ok(Some(active)))) if *seen == letter && *active == slot) {
                    stop.store(true, Ordering::Relaxed);
                    panic!("{kind:?}, swap {swap}: {done:?}");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        eprintln!("{kind:?}: {swaps} swaps, {seen:?}");
        assert!(seen.opens.load(Ordering::Relaxed) > 100, "{seen:?}");
        assert_eq!((seen.missing.into_inner(), seen.torn.into_inner()), (0, 0), "{kind:?}");
        assert_eq!(slot::used(&bench.slots.b), None, "{kind:?}: the slot that was left can be written");
    }
}

/// Who has a file of the old volume open keeps it; the slot is not written until they let go, and it is said who they are.
#[test]
fn a_slot_that_is_still_read_is_not_written() {
    const NAME: &str = "a_slot_that_is_still_read_is_not_written";
    if !namespace::own(NAME) {
        return;
    }
    let Some(bench) = Bench::new(Kind::Erofs) else { return skip(NAME, "no mkfs.erofs here") };
    let mount = bench.mount();
    mount.activate(A, &holds(), 0).expect("a slot that is mounted");
    let mut held = File::open(bench.target.join("file-1")).expect("a file");
    mount.activate(B, &holds(), 0).expect("a slot that is replaced");
    assert_eq!((bench.seen(), mount.active().expect("a look")), ('b', Some(B)));
    let own = std::process::id().to_string();
    let refused = mount.retire(A).expect_err("a slot that is in use").to_string();
    assert!(refused.contains("slot a") && refused.contains(&own), "{refused}");
    let image = Geometry::new(4096).expect("a size");
    let wanted = Wanted { name: A, path: &bench.slots.a, image, limit: None, active: None };
    let refused = Standby::open(&wanted).expect_err("a slot that is in use").to_string();
    assert!(refused.contains("taken away") && refused.contains(&own), "{refused}");
    let mut bytes = Vec::new();
    held.read_to_end(&mut bytes).expect("the old file");
    assert_eq!(bytes, vec![b'a'; FILE], "the old file, whole");
    drop(held);
    mount.retire(A).expect("a slot that nobody uses");
    Standby::open(&wanted).expect("a slot that nobody uses");
}

/// A machine that starts mounts what was chosen, however it ended; a slot on trial so many times as it has tries.
#[test]
fn a_machine_that_starts_mounts_what_was_chosen() {
    const NAME: &str = "a_machine_that_starts_mounts_what_was_chosen";
    if !namespace::own(NAME) {
        return;
    }
    let Some(bench) = Bench::new(Kind::Erofs) else { return skip(NAME, "no mkfs.erofs here") };
    let (mount, look) = (bench.mount(), |active, next, tries| Look { active, next, tries });
    assert_eq!(bench.at_start(), Started::Nothing);
    assert_eq!((mount.look().expect("a look"), mount.takes_effect()), (Look::default(), Effect::AtOnce));
    mount.activate(A, &holds(), 0).expect("a slot that is mounted");
    assert_eq!(bench.at_start(), Started::Already(A));
    bench.power_off();
    assert_eq!(mount.look().expect("a look"), look(Some(A), Some(A), None), "never written, mounted or not");
    assert_eq!((bench.at_start(), bench.seen()), (Started::Mounted(A, None), 'a'));
    // On trial.
    mount.activate(B, &holds(), 2).expect("a slot that is replaced");
    assert_eq!(mount.look().expect("a look"), look(Some(B), Some(B), Some(2)));
    for left in [1, 0] {
        bench.power_off();
        assert_eq!((bench.at_start(), bench.seen()), (Started::Mounted(B, None), 'b'), "{left} left");
    }
    bench.power_off();
    let Started::Mounted(A, Some(why)) = bench.at_start() else { panic!("the slot that was good before") };
    assert!(why.contains("slot b used up its tries"), "{why}");
    assert_eq!(mount.look().expect("a look"), look(Some(A), Some(A), None));
    // Before it is written, nothing leads to it any more.
    mount.retire(B).expect("a slot that nobody uses");
    bench.power_off();
    assert_eq!(bench.at_start(), Started::Mounted(A, None));
    mount.activate(B, &holds(), 3).expect("a slot that is replaced");
    mount.confirm(B).expect("a slot that is good");
    bench.power_off();
    assert_eq!(bench.at_start(), Started::Mounted(B, None));
    // A slot that cannot be mounted, or is only half written, is not insisted on.
    bench.power_off();
    fs::write(&bench.slots.b, vec![0; 8192]).expect("a slot");
    let Started::Mounted(A, Some(why)) = bench.at_start() else { panic!("the slot that can be mounted") };
    assert!(why.contains("slot b") && why.contains("nothing that is known"), "{why}");
    bench.journal().set_staging(A, ImageId::of(b"x"), &"web:2".parse().expect("a release")).expect("a record");
    bench.power_off();
    let (journal, mount) = (bench.journal(), bench.mount());
    let error = mount.at_start(&journal.lock().expect("the lock")).expect_err("no slot").to_string();
    assert!(error.contains("half written") && error.contains("neither slot"), "{error}");
    // A choice that cannot be read is not taken for none.
    fs::write(bench.state().join("mount.json"), "{").expect("a choice");
    assert!(mount.look().expect_err("a damaged choice").to_string().contains("mount.json"));
}

/// A swap that was interrupted between its two steps is gone on with, or undone.
#[test]
fn an_interrupted_swap_is_settled() {
    const NAME: &str = "an_interrupted_swap_is_settled";
    if !namespace::own(NAME) {
        return;
    }
    let Some(bench) = Bench::new(Kind::Squashfs) else { return skip(NAME, "no mksquashfs here") };
    let mount = bench.mount();
    let beneath = || {
        let detached = Volume::default().mount(B, &bench.slots.b, None).expect("a volume");
        detached.put_beneath(&bench.target).expect("a mount beneath");
    };
    mount.activate(A, &holds(), 0).expect("a slot that is mounted");
    beneath();
    assert_eq!((mount.active().expect("a look"), bench.seen()), (Some(A), 'a'));
    mount.activate(B, &holds(), 0).expect("a swap that goes on");
    assert_eq!((mount.active().expect("a look"), bench.seen()), (Some(B), 'b'));
    mount.activate(A, &holds(), 0).expect("a slot that is replaced");
    beneath();
    mount.retire(B).expect("a slot that is not mounted any more");
    assert_eq!((mount.active().expect("a look"), bench.seen()), (Some(A), 'a'));
    bench.power_off();
    assert!(fs::read_dir(&bench.target).expect("a folder").next().is_none(), "there was only one mount");
}

/// What is not ours is left alone, and what could not be replaced is said before anything is.
#[test]
fn what_is_mounted_by_others_is_left_alone() {
    const NAME: &str = "what_is_mounted_by_others_is_left_alone";
    if !namespace::own(NAME) {
        return;
    }
    let Some(bench) = Bench::new(Kind::Ext4) else { return skip(NAME, "no mke2fs here") };
    let mount = bench.mount();
    let says = |result: Result<(), _>, words: &str| {
        let error: goldsync_agent::boot::ActivationError = result.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    };
    tool("mount", &["-t", "tmpfs", "somebody", text(&bench.target)]);
    says(mount.activate(A, &holds(), 0), "somebody is mounted on");
    says(mount.look().map(drop), "neither slot");
    bench.power_off();
    let nowhere = Mount::new(&bench.folder.path().join("no"), &Volume::default(), &bench.slots, &bench.state());
    says(nowhere.activate(A, &holds(), 0), "mkdir -p");
    assert_eq!(nowhere.active().expect("a look"), None);
    // A file system inside the volume would go with it.
    fs::create_dir(bench.folder.path().join("files-a/data")).expect("a folder");
    make(Kind::Ext4, bench.folder.path(), b'a', &bench.slots.a).expect("an image");
    mount.activate(A, &holds(), 0).expect("a slot that is mounted");
    tool("mount", &["-t", "tmpfs", "data", text(&bench.target.join("data"))]);
    says(mount.activate(B, &holds(), 0), "data is mounted inside");
    assert_eq!((mount.active().expect("a look"), bench.seen()), (Some(A), 'a'));
    tool("umount", &[text(&bench.target.join("data"))]);
    // What the kernel will not mount is quoted, and changes nothing.
    fs::write(&bench.slots.b, [fs::read(&bench.slots.b).expect("a slot")[..4096].to_vec(), vec![0; 4096]].concat())
        .expect("a slot");
    says(mount.activate(B, &holds(), 0), "mounting /dev/loop");
    assert_eq!((mount.active().expect("a look"), bench.seen()), (Some(A), 'a'));
}

/// Block devices need no loop device: the slot is mounted itself, and is busy as long as somebody reads.
#[test]
fn slots_that_are_devices_are_mounted_as_they_are() {
    const NAME: &str = "slots_that_are_devices_are_mounted_as_they_are";
    if !namespace::own(NAME) {
        return;
    }
    let Some(mut bench) = Bench::new(Kind::Erofs) else { return skip(NAME, "no mkfs.erofs here") };
    let devices = SlotName::ALL.map(|name| {
        let path = bench.slots.path(name);
        File::options().write(true).open(path).and_then(|file| file.set_len(4 << 20)).expect("equal sizes");
        Loop::over(path, &[])
    });
    let [Ok(a), Ok(b)] = devices else { return skip(NAME, "no loop devices to be had here") };
    bench.slots = Slots { a: a.device.clone(), b: b.device.clone(), size: None };
    let mount = bench.mount();
    mount.activate(A, &holds(), 0).expect("a slot that is mounted");
    let held = File::open(bench.target.join("file-2")).expect("a file");
    mount.activate(B, &holds(), 0).expect("a slot that is replaced");
    assert_eq!((bench.seen(), mount.active().expect("a look")), ('b', Some(B)));
    let refused = mount.retire(A).expect_err("a slot that is in use").to_string();
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    drop(held);
    mount.retire(A).expect("a slot that nobody uses");
    let image = Geometry::new(4096).expect("a size");
    let wanted = Wanted { name: A, path: &bench.slots.a, image, limit: None, active: None };
    drop(Standby::open(&wanted).expect("a slot that nobody uses"));
    bench.power_off();
}

/// All of it by the verbs: install, update while it is read, roll back, start again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_volume_is_replaced_while_it_is_read() {
    const NAME: &str = "a_node_whose_volume_is_replaced_while_it_is_read";
    if !namespace::own(NAME) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let images: Vec<_> = [b'1', b'2']
        .into_iter()
        .map_while(|letter| {
            let image = folder.path().join(letter.to_string());
            make(Kind::Erofs, folder.path(), letter, &image)?;
            Some(Image { bytes: fs::read(&image).expect("an image") })
        })
        .collect();
    let [old, new] = images.as_slice() else { return skip(NAME, "no mkfs.erofs here") };
    let fleet = Fleet::start().await;
    fleet.ship(old, "web:1").await;
    let mut node = fleet.node("n1").await;
    let target = node.folder.join("app");
    fs::create_dir(&target).expect("a mount point");
    node.activation = format!("backend = \"mount\"\ntarget = \"{}\"\noptions = \"nodev,nosuid\"\n", target.display());
    node.write_config();
    let seen = || fs::read(target.join("file-3")).expect("a file")[0].into();
    node.agent(&["mount"]).await.ok();
    node.sync().await.updated();
    assert_eq!((seen(), node.active()), ('1', Some(A)));
    fleet.ship(new, "web:2").await;
    let (readers, stop) = (Seen::default(), AtomicBool::new(false));
    let account = std::thread::scope(|scope| {
        scope.spawn(|| read_on(&target, &readers, &stop));
        let account = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(node.sync())).updated();
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
        account
    });
    assert_eq!(account.path, "pack", "the active slot is the base: {account:?}");
    assert_eq!((seen(), node.active()), ('2', Some(B)));
    assert_eq!((readers.missing.into_inner(), readers.torn.into_inner()), (0, 0));
    let status = node.agent(&["status", "--json"]).await.ok().json();
    assert_eq!(status["active"], "b", "{status}");
    node.agent(&["rollback"]).await.ok();
    assert_eq!((seen(), node.active()), ('1', Some(A)));
    node.agent(&["sync"]).await.ok();
    assert_eq!(seen(), '2');
    // Switched off, and on again.
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).expect("a mount");
    let told = node.agent(&["mount", "--json"]).await.ok().json();
    assert_eq!((told["mounted"].as_str(), told["new"].as_bool(), seen()), (Some("b"), Some(true), '2'));
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).expect("a mount");
}

/// A slot becomes the next root, with what the machine keeps put over it; what is no system is refused, and nothing stays.
#[test]
fn a_next_root_is_whole_or_not_there() {
    const NAME: &str = "a_next_root_is_whole_or_not_there";
    if !namespace::own(NAME) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (files, image, kept) = (folder.path().join("root"), folder.path().join("a.img"), folder.path().join("kept"));
    for made in ["usr/lib", "etc", &text(folder.path())[1..]] {
        fs::create_dir_all(files.join(made)).expect("a folder");
    }
    fs::create_dir_all(files.join(&text(&kept)[1..])).expect("a folder");
    fs::create_dir(&kept).expect("a folder");
    fs::write(kept.join("mine"), "kept").expect("a file");
    if Kind::Erofs.make(&files, &image).is_none() {
        return skip(NAME, "no mkfs.erofs here");
    }
    let slots = Slots { a: image.clone(), b: folder.path().join("b.img"), size: None };
    let next = NextRoot { place: folder.path().join("next"), volume: Volume::default(), keep: vec![kept.clone()] };
    let refused = next.prepare(A, &slots, None).expect_err("no system").to_string();
    assert!(refused.contains("os-release"), "{refused}");
    fs::write(files.join("usr/lib/os-release"), "ID=gold\n").expect("a file");
    Kind::Erofs.make(&files, &image).expect("an image");
    let strict = NextRoot { keep: vec![kept.clone(), "/no/such".into()], ..next.clone() };
    let refused = strict.prepare(A, &slots, None).expect_err("no place").to_string();
    assert!(refused.contains("/no/such"), "{refused}");
    assert!(fs::read_dir(&next.place).expect("a folder").next().is_none(), "nothing stays");
    // Twice: what an earlier attempt left is replaced.
    for _ in 0..2 {
        next.prepare(A, &slots, None).expect("a root");
        assert_eq!(fs::read_to_string(next.place.join("usr/lib/os-release")).expect("a file"), "ID=gold\n");
        let through = next.place.join(&text(&kept)[1..]);
        assert_eq!(fs::read_to_string(through.join("mine")).expect("a file"), "kept");
        fs::write(through.join("mine"), "kept").expect("what is kept can be written");
        assert!(fs::write(next.place.join("etc/new"), "x").is_err(), "the image cannot");
    }
    // A folder of the root that is prepared, as `/etc` of the running image would be.
    let pins = NextRoot { place: folder.path().join("other"), keep: vec![next.place.join("etc")], ..next.clone() };
    let refused = pins.prepare(A, &slots, None).expect_err("a slot that would stay in use").to_string();
    assert!(refused.contains("lies in slot a itself") && refused.contains("restart.keep"), "{refused}");
    assert!(!pins.place.exists(), "nothing was begun");
    next.clear().expect("nothing");
    assert!(fs::read_dir(&next.place).expect("a folder").next().is_none(), "nothing stays");
    assert_eq!(slot::used(&image), None, "the slot can be written");
    // It lies there for who starts it, and for nobody else. The count of such starts is kept in /run: not in this machine's.
    rustix::mount::mount("run", "/run", "tmpfs", rustix::mount::MountFlags::empty(), None).expect("a /run of its own");
    let program = |name: &str| Program { command: vec![name.into()], limit: Duration::from_secs(60) };
    let into = Next { slot: A, slots: &slots, sealed: None };
    restart::soft_reboot(&next, into, &program("/bin/false")).expect_err("nobody starts it");
    assert!(fs::read_dir(&next.place).expect("a folder").next().is_none(), "nothing stays");
    restart::soft_reboot(&next, into, &program("/bin/true")).expect("it is started");
    assert!(next.place.join("usr/lib/os-release").exists());
    next.clear().expect("nothing");
}
