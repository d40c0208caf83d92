//! Slots, devices, configurations and releases that cannot be: each one gives one clear error that names the value, the limit
//! and the remedy, with the documented exit code, and nothing is lost.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use goldsync_agent::slot::SlotName;
use goldsync_tests::disk::{Loop, Mounted, make_ext4, skip};
use goldsync_tests::image::MIB;
use goldsync_tests::{Fleet, Image, Machine, Proxy};

/// A node that runs `web:1`, and a channel that has moved on to `web:2`.
async fn scene(seed: u64, mib: usize) -> (Fleet, Machine, Image, Image) {
    let old = Image::new(seed, mib);
    let new = old.edited(seed + 1000, 20);
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    (fleet, node, old, new)
}

/// Goal: no configuration is half-believed: what cannot be is said with its value and what to write instead.
#[tokio::test(flavor = "multi_thread")]
async fn configurations() {
    let fleet = Fleet::start().await;
    let node = fleet.machine("n1");
    let good = fs::read_to_string(node.config()).expect("agent.toml");
    let (a, b) = (node.slots[0].display().to_string(), node.slots[1].display().to_string());
    let folder = node.folder.display().to_string();
    fs::create_dir(node.folder.join("dir")).expect("a folder");
    let cases: Vec<(String, Vec<&str>)> = vec![
        (
            good.replace("[limits]\nthreads", "[limits]\nthread"),
            vec!["agent.toml", "`limits.thread`", "did you mean `limits.threads`?"],
        ),
        (good.replace("channel =", "chanel ="), vec!["`chanel`", "did you mean `channel`?"]),
        (good.replace("threads = 2", "threads = 0"), vec!["`limits.threads`", "0"]),
        (good.replace("threads = 2", "threads = \"many\""), vec!["agent.toml", "threads"]),
        (good.replace("channel = \"production\"", "channel = \"Production!\""), vec!["`channel`", "Production!"]),
        (good.replace("splay = \"0\"", "splay = \"soon\""), vec!["`schedule.splay`", "soon", "15 min"]),
        (good.replace("splay = \"0\"", "cron = \"at noon\""), vec!["`schedule.cron`", "at noon", "30 3 * * *"]),
        (good.replace(&format!("b = \"{b}\""), &format!("b = \"{a}\"")), vec!["`slots`", "both", "place of its own"]),
        (good.replace(&format!("b = \"{b}\""), "b = \"relative.img\""), vec!["relative.img", "absolute"]),
        (good.replace(&format!("b = \"{b}\""), &format!("b = \"{folder}/dir\"")), vec!["is a folder"]),
        (good.replace("\"symlink\"", "\"magic\""), vec!["`activation.backend`", "magic", "symlink"]),
        (good.replace("[limits]", "[limits"), vec!["agent.toml"]),
        (String::new(), vec!["`channel`", "missing"]),
    ];
    for (text, words) in cases {
        fs::write(node.config(), &text).expect("agent.toml");
        let ran = node.agent(&["status"]).await;
        assert_eq!(ran.code, Some(2), "{words:?}: {}{}", ran.out, ran.err);
        for word in &words {
            assert!(ran.err.contains(word), "{word:?} is not in: {}", ran.err);
        }
    }
    fs::remove_file(node.config()).expect("agent.toml");
    node.agent(&["status"]).await.fails(2, &["agent.toml"]);
}

/// Goal: two names for one slot would mean writing what runs; whichever way they come about, nothing is written.
#[tokio::test(flavor = "multi_thread")]
async fn the_active_slot_under_another_name() {
    let (_fleet, node, old, _) = scene(2, 2).await;
    let (a, b) = (node.slot(SlotName::A), node.slot(SlotName::B));
    let before = node.stamps();
    symlink(a, b).expect("a link to the active slot");
    node.agent(&["sync"]).await.fails(2, &["same file or device", "place of its own"]);
    fs::remove_file(b).expect("the link");
    fs::hard_link(a, b).expect("a hard link to the active slot");
    node.agent(&["sync"]).await.fails(2, &["same file or device", "place of its own"]);
    fs::remove_file(b).expect("the hard link");
    assert_eq!(fs::read(a).expect("slot a"), old.bytes);
    let changed = node.stamps().differing(&before);
    assert!(changed.iter().all(|path| path == a), "only the link count of slot a: {changed:?}");
    node.agent(&["sync"]).await.ok();
}

/// Goal: a link that leads elsewhere is somebody's own doing: not ours to replace, and nothing is guessed from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_link() {
    let (_fleet, node, old, _) = scene(3, 2).await;
    let elsewhere = node.folder.join("elsewhere.img");
    old.write(&elsewhere);
    fs::remove_file(node.link()).expect("the link");
    symlink(&elsewhere, node.link()).expect("a link elsewhere");
    node.agent(&["sync"]).await.fails(1, &["elsewhere.img"]);
    fs::remove_file(node.link()).expect("the link");
    fs::write(node.link(), "somebody's data").expect("a file in the link's place");
    node.agent(&["sync"]).await.fails(1, &["current"]);
    assert_eq!(fs::read_to_string(node.link()).expect("the file"), "somebody's data");
}

/// Goal: a slot that is none (missing folder, missing device, character device, folder) is named with what it is.
#[tokio::test(flavor = "multi_thread")]
async fn slots_that_are_none() {
    let (_fleet, mut node, old, _) = scene(4, 2).await;
    let folder = node.folder.clone();
    for (path, words) in [
        (folder.join("none/b.img"), ["does not exist", "create its folder"]),
        ("/dev/goldsync-no-such-device".into(), ["does not exist", "plug the device in"]),
        ("/dev/null".into(), ["a character device", "regular file or a block device"]),
    ] {
        node.slots[1] = path.clone();
        node.write_config();
        node.agent(&["sync"]).await.fails(5, &[&["slot b", path.to_str().expect("a path")], &words[..]].concat());
        node.runs(&old);
    }
}

/// Goal: a release larger than the slot is refused before a byte is fetched, with both sizes and what to change.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_larger_than_the_slot() {
    let (fleet, mut node, old, _) = scene(5, 2).await;
    let large = old.grown(50, 2);
    fleet.ship(&large, "web:3").await;
    node.more = String::new();
    let text = fs::read_to_string(node.config()).expect("agent.toml");
    fs::write(node.config(), text.replace("[slots]\n", "[slots]\nsize = \"3 MiB\"\n")).expect("agent.toml");
    let proxy = Proxy::to(fleet.quic()).await;
    let text = fs::read_to_string(node.config()).expect("agent.toml");
    fs::write(node.config(), text.replace(&fleet.quic().to_string(), &proxy.address().to_string()))
        .expect("agent.toml");
    node.agent(&["sync"]).await.fails(5, &["slot b", "3145728", "4194304", "`slots.size`"]);
    assert!(proxy.received() < 32 * 1024, "{} bytes were fetched for nothing", proxy.received());
    node.runs(&old);
}

/// Goal: a release that needs a newer agent, a channel without a release, and a channel that is none, each say so.
#[tokio::test(flavor = "multi_thread")]
async fn releases_that_are_not_for_us() {
    let (fleet, mut node, old, new) = scene(6, 2).await;
    let path = new.edited(60, 2).write(&fleet.path("newer"));
    let path = path.to_str().expect("a path");
    let publish = ["publish", path, "--name", "web", "--version", "3", "--minimum-agent", "99.0.0"];
    fleet.operator.json(publish).await;
    fleet.operator.promote("web:3", "production").await;
    node.agent(&["sync"]).await.fails(3, &["web:3", "99.0.0", "update the agent first"]);
    node.runs(&old);
    node.channel = "qa".into();
    node.write_config();
    node.agent(&["sync"]).await.fails(1, &["qa", "no release yet", "goldsync promote"]);
    node.channel = "nightly".into();
    node.write_config();
    node.agent(&["sync"]).await.fails(3, &["no channel nightly", "production"]);
    node.runs(&old);
}

/// Goal: images that cannot be releases are refused by size, kind and name before anything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be() {
    let fleet = Fleet::start().await;
    let file = |name: &str, len: u64| {
        let path = fleet.path(name);
        fs::File::create(&path).and_then(|file| file.set_len(len)).expect(name);
        path
    };
    for (path, release, code, words) in [
        (file("empty", 0), "web:1", 1, &["0 bytes", "publish a file system or a disk"][..]),
        (file("ragged", 4097), "web:1", 1, &["4097", "4096-byte blocks", "truncate -s"]),
        (file("huge", (1 << 40) + 4096), "web:1", 1, &["1099511631872", "1 TiB"]),
        (fleet.path("none"), "web:1", 5, &["none"]),
        (fleet.path("server"), "web:1", 2, &["a folder", "mkfs"]),
        (file("good", 4096), "Web Server:1", 2, &["Web Server"]),
        (file("good2", 4096), "web:1_2", 2, &["1_2"]),
    ] {
        fleet.operator.try_publish(&path, release).await.fails(code, words);
    }
    let releases = fleet.operator.json(["release", "list"]).await;
    assert_eq!(releases.as_array().map(Vec::len), Some(0), "{releases}");
    fleet.operator.run(["promote", "web:1", "production"]).await.fails(1, &["no release web:1", "release list"]);
    fleet.publish(&Image::new(7, 1), "web:1").await;
    fleet.operator.run(["promote", "web:1", "nightly"]).await.fails(1, &["nightly", "production"]);
}

/// Whether devices can be had; says loudly if not.
fn devices(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "loop devices and mounts need root");
    }
    root
}

macro_rules! or_skip {
    ($test:literal, $made:expr) => {
        match $made {
            Ok(made) => made,
            Err(why) => return skip($test, &why),
        }
    };
}

/// Goal: a slot that is mounted is never written, whether it is a device or a file beneath a loop device.
#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_slot() {
    if !devices("a_mounted_slot") {
        return;
    }
    let (_fleet, node, old, new) = scene(8, 2).await;
    let b = node.slot(SlotName::B).to_owned();
    or_skip!("a_mounted_slot", make_ext4(&b, 4 * MIB as u64));
    let point = node.folder.join("mnt");
    let mounted = or_skip!("a_mounted_slot", Mounted::of(&b, &point, "loop"));
    fs::write(point.join("precious"), "data").expect("a file");
    let point_text = point.to_str().expect("a path");
    node.agent(&["sync"]).await.fails(5, &["slot b", "mounted read-write", point_text, "umount"]);
    assert_eq!(fs::read_to_string(point.join("precious")).expect("the file"), "data");
    node.runs(&old);
    drop(mounted);
    // umount -l may let go a moment later.
    goldsync_tests::eventually("the slot is free", async || {
        (node.agent(&["sync"]).await.code == Some(0)).then_some(())
    })
    .await;
    node.runs(&new);
}

/// A node whose slots are devices of these sizes.
async fn on_devices(seed: u64, a: usize, b: usize) -> Result<(Fleet, Machine, [Loop; 2]), String> {
    let fleet = Fleet::start().await;
    let mut node = fleet.node("n1").await;
    let files = [node.folder.join("a.dev"), node.folder.join("b.dev")];
    let loops = [Loop::new(&files[0], (a * MIB) as u64)?, Loop::new(&files[1], (b * MIB) as u64)?];
    node.slots = loops.each_ref().map(|one| one.device.clone());
    node.write_config();
    let _ = seed;
    Ok((fleet, node, loops))
}

fn prefix(path: &Path, len: u64) -> String {
    let bytes = fs::read(path).expect("a device");
    blake3::hash(&bytes[..len as usize]).to_hex().to_string()
}

/// Goal: block devices are slots like files: cold, by pack, drifted and back, with images smaller than the device.
#[tokio::test(flavor = "multi_thread")]
async fn devices_as_slots() {
    if !devices("devices_as_slots") {
        return;
    }
    let (fleet, node, _loops) = or_skip!("devices_as_slots", on_devices(9, 5, 5).await);
    let old = Image::new(9, 4);
    let new = old.edited(90, 20);
    fleet.ship(&old, "web:1").await;
    // A device always holds something: of zeros, at least, there are some here already.
    assert_eq!(node.sync().await.updated().path, "signature");
    assert_eq!(prefix(&node.link(), old.len()), old.id());
    fleet.ship(&new, "web:2").await;
    assert_eq!(node.sync().await.updated().path, "pack");
    assert_eq!(prefix(&node.link(), new.len()), new.id());
    node.agent(&["verify"]).await.ok();
    // Drift, behind the agent's back and through the device.
    goldsync_tests::damage::scribble(node.slot(SlotName::B), 91, 40_960, 4096);
    node.agent(&["verify"]).await.fails(6, &[]);
    assert_eq!(node.repair().await.updated().repaired, 1);
    assert_eq!(prefix(&node.link(), new.len()), new.id());
    assert_eq!(node.active(), Some(SlotName::A));
}

/// Goal: slots of different sizes are said to be, before an image that fits only one of them is staged.
#[tokio::test(flavor = "multi_thread")]
async fn devices_of_different_sizes() {
    if !devices("devices_of_different_sizes") {
        return;
    }
    let (fleet, node, _loops) = or_skip!("devices_of_different_sizes", on_devices(10, 5, 4).await);
    let old = Image::new(10, 3);
    fleet.ship(&old, "web:1").await;
    node.sync().await.updated();
    fleet.ship(&old.edited(100, 5), "web:2").await;
    node.agent(&["sync"]).await.fails(5, &["different sizes", "5242880", "4194304", "make them equal"]);
    assert_eq!(prefix(&node.link(), old.len()), old.id());
}

/// Goal: a device that is too small, read-only, or in use by another program is refused with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_cannot_be_written() {
    if !devices("devices_that_cannot_be_written") {
        return;
    }
    let (fleet, mut node, loops) = or_skip!("devices_that_cannot_be_written", on_devices(11, 2, 2).await);
    fleet.ship(&Image::new(11, 3), "web:1").await;
    node.agent(&["sync"]).await.fails(5, &["slot a", "2097152", "3145728", "larger device"]);
    fleet.ship(&Image::new(11, 1), "web:2").await;
    drop(loops);
    let file = node.folder.join("a.dev");
    let read_only = or_skip!("devices_that_cannot_be_written", Loop::over(&file, &["--read-only"]));
    node.slots = [read_only.device.clone(), node.folder.join("b.img")];
    node.write_config();
    node.agent(&["sync"]).await.fails(5, &["slot a", "read-only", "blockdev --setrw"]);
    drop(read_only);
    // A file that another loop device is backed by.
    let held = or_skip!("devices_that_cannot_be_written", Loop::over(&file, &[]));
    node.slots[0] = file;
    node.write_config();
    let device = held.device.to_str().expect("a device").to_owned();
    node.agent(&["sync"]).await.fails(5, &["slot a", &device, "losetup -d"]);
}

/// Goal: an active slot whose medium fails is an error of the disk, with the place of the failure; the other slot helps.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_device() {
    if !devices("an_unreadable_device") {
        return;
    }
    let (fleet, node, _loops) = or_skip!("an_unreadable_device", on_devices(12, 4, 4).await);
    let (old, new) = (Image::noise(12, 4), Image::noise(12, 4).edited(120, 5));
    fleet.ship(&old, "web:1").await;
    node.sync().await.updated();
    // The loop device goes on for 4 MiB, the file beneath it does not: reads behind its end fail as on a bad disk.
    let beneath = fs::File::options().write(true).open(node.folder.join("a.dev")).expect("the file beneath");
    beneath.set_len(2 * MIB as u64).expect("half a disk");
    drop_cache(node.slot(SlotName::A));
    let ran = node.agent(&["verify"]).await;
    if ran.code == Some(6) {
        return skip("an_unreadable_device", "this kernel reads zeros behind the end of a loop device's file");
    }
    ran.fails(5, &["slot a", "reading", node.slot(SlotName::A).to_str().expect("a path")]);
    fleet.ship(&new, "web:2").await;
    let told = node.sync().await;
    match told.result {
        // It may have found a way around the bad place; then what runs is golden.
        Ok(_) => assert_eq!(prefix(&node.link(), new.len()), new.id()),
        Err(error) => assert_eq!(error.exit_code(), 5, "{error}"),
    }
}

fn drop_cache(device: &Path) {
    let file = fs::File::open(device).expect("a device");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
}

/// Goal: a file system without room is an error with the numbers, before the download and in the middle of it; when there is
/// room again, the next run goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk() {
    if !devices("a_full_disk") {
        return;
    }
    let fleet = Fleet::start().await;
    let (old, new) = (Image::noise(13, 2), Image::noise(130, 8));
    let mut node = fleet.node("n1").await;
    let small = or_skip!("a_full_disk", Mounted::tmpfs(&node.folder.join("small"), 10 * MIB as u64));
    node.slots[1] = small.point.join("b.img");
    node.write_config();
    fleet.ship(&old, "web:1").await;
    node.sync().await.updated();
    fleet.ship(&new, "web:2").await;

    let filler = small.point.join("filler");
    fs::write(&filler, vec![1; 5 * MIB]).expect("a filler");
    node.agent(&["sync"]).await.fails(5, &["slot b", "8388608", "free"]);
    node.runs(&old);
    node.tells_no_lie();

    fs::remove_file(&filler).expect("the filler");
    let proxy = Proxy::to(fleet.quic()).await;
    let node = node.by(proxy.address());
    proxy.cut_after(5 * MIB as u64);
    let run = node.spawn(&["sync"]);
    proxy.is_cut().await;
    fill(&filler);
    proxy.heal();
    let ran = node.finish(run).await.fails(5, &["slot b"]);
    assert!(ran.err.contains("No space left"), "{}", ran.err);
    node.runs(&old);
    node.tells_no_lie();

    fs::remove_file(&filler).expect("the filler");
    let before = proxy.received();
    node.sync().await.updated();
    node.runs(&new);
    assert!(proxy.received() - before < new.len(), "it began again");
}

/// Fills a file system to the last byte.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).expect("a filler");
    while file.write_all(&[1; 4096]).is_ok() {}
}

/// Goal: a state folder without room is an error too, and costs nothing that was proven.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_state_folder() {
    if !devices("a_full_state_folder") {
        return;
    }
    let (_fleet, node, old, new) = scene(14, 2).await;
    // The state moves to a small file system, as it is.
    let small = or_skip!("a_full_state_folder", Mounted::tmpfs(&node.folder.join("small"), MIB as u64));
    let copied =
        std::process::Command::new("cp").args(["-a", "--"]).arg(node.state()).arg(small.point.join("state")).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let text = fs::read_to_string(node.config()).expect("agent.toml");
    let state = format!("state = \"{}\"", node.state().display());
    let moved = format!("state = \"{}\"", small.point.join("state").display());
    fs::write(node.config(), text.replace(&state, &moved)).expect("agent.toml");
    let filler = small.point.join("filler");
    fill(&filler);
    node.agent(&["sync"]).await.fails(5, &["No space left", "state"]);
    assert_eq!(node.running(), old.id());
    fs::remove_file(&filler).expect("the filler");
    node.agent(&["sync"]).await.ok();
    assert_eq!(node.running(), new.id());
}
