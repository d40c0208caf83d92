//! Slots on real files and, where this process may, on real loop devices.

use std::fs;
use std::process::Command;

use goldsync_proto::block::Geometry;

use super::*;

const MIB: u64 = 1 << 20;

fn wanted<'a>(path: &'a Path, size: u64, active: Option<&'a Source>) -> Wanted<'a> {
    Wanted { name: SlotName::B, path, image: Geometry::new(size).unwrap(), limit: None, active }
}

fn refused(wanted: &Wanted<'_>) -> String {
    Standby::open(wanted).map(|_| ()).unwrap_err().to_string()
}

/// A loop device over a file; detached when dropped.
struct Loop(String);

impl Loop {
    /// `None`, loudly, where loop devices cannot be had.
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made {
            Ok(made) if made.status.success() => Some(Self(String::from_utf8(made.stdout).unwrap().trim().to_owned())),
            other => {
                eprintln!("SKIPPED: no loop device to be had here (root and losetup are needed): {other:?}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn sized(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

#[test]
fn a_missing_file_slot_is_created_and_written_in_whole_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.img");
    let slot = Standby::open(&wanted(&path, MIB, None)).unwrap();
    slot.set_len(MIB).unwrap();
    slot.write_at(8192, &[7; 4096]).unwrap();
    slot.sync_data().unwrap();
    let mut back = [0; 4096];
    slot.read_at(8192, &mut back).unwrap();
    assert_eq!(back, [7; 4096]);
    for (offset, length) in [(1, 4096), (0, 100)] {
        let error = slot.write_at(offset, &vec![0; length]).unwrap_err().to_string();
        assert!(error.contains("whole blocks"), "{error}");
    }
    assert!(slot.read_at(MIB - 10, &mut back).unwrap_err().to_string().contains("4096 bytes at 1048566"));
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < MIB, "a mostly empty slot is sparse");
}

#[test]
fn zeros_become_a_hole_and_read_as_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.img");
    let slot = Standby::open(&wanted(&path, MIB, None)).unwrap();
    slot.write_at(0, &vec![9; MIB as usize]).unwrap();
    slot.zero_at(4096, MIB - 8192).unwrap();
    slot.sync_data().unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, MIB);
    assert!(bytes[4096..bytes.len() - 4096].iter().all(|byte| *byte == 0));
    assert_eq!((bytes[0], bytes[bytes.len() - 1]), (9, 9));
}

#[test]
fn a_second_owner_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = sized(folder.path(), "b.img", MIB);
    let first = Standby::open(&wanted(&path, MIB, None)).unwrap();
    assert!(refused(&wanted(&path, MIB, None)).contains("another process holds its lock"));
    drop(first);
    assert!(Standby::open(&wanted(&path, MIB, None)).is_ok());
}

#[test]
fn the_active_slot_is_refused_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = sized(folder.path(), "a.img", MIB);
    let active = Source::open(SlotName::A, &path).unwrap();
    let (hard, soft) = (folder.path().join("hard"), folder.path().join("soft"));
    fs::hard_link(&path, &hard).unwrap();
    std::os::unix::fs::symlink(&path, &soft).unwrap();
    for name in [&path, &hard, &soft] {
        let error = refused(&wanted(name, MIB, Some(&active)));
        assert!(error.contains("is the active slot under another name"), "{error}");
    }
}

#[test]
fn a_small_limit_names_both_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.img");
    let error = refused(&Wanted { limit: Some(MIB), ..wanted(&path, 2 * MIB, None) });
    assert!(error.contains("holds 1048576 bytes, the image has 2097152") && error.contains("slots.size"), "{error}");
}

#[test]
fn what_is_no_slot_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refused(&wanted(folder.path(), MIB, None)).contains("is a folder"));
    assert!(refused(&wanted(Path::new("/dev/null"), MIB, None)).contains("is a character device"));
    let missing = refused(&wanted(Path::new("/dev/goldsync-none"), MIB, None));
    assert!(missing.contains("/dev/goldsync-none does not exist; plug the device in"), "{missing}");
    let missing = refused(&wanted(&folder.path().join("no/b.img"), MIB, None));
    assert!(missing.contains("create its folder"), "{missing}");
    let gone = Source::open(SlotName::A, &folder.path().join("a.img")).unwrap_err();
    assert!(matches!(gone, SlotError::Missing { slot: SlotName::A, .. }), "{gone}");
}

#[test]
fn a_full_file_system_is_told_before_the_first_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.img");
    let slot = Standby::open(&wanted(&path, MIB, None)).unwrap();
    slot.check_space(MIB).unwrap();
    let error = slot.check_space(1 << 60).unwrap_err();
    assert!(matches!(error, SlotError::NoSpace { needed, .. } if needed == 1 << 60), "{error}");
    slot.write_at(0, &vec![9; MIB as usize]).unwrap();
    slot.sync_data().unwrap();
    let SlotError::NoSpace { needed, .. } = slot.check_space(1 << 60).unwrap_err() else { panic!("no such space") };
    assert!(needed <= (1 << 60) - MIB, "what the file holds already counts: {needed}");
}

#[test]
fn a_device_is_opened_exclusively_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let Some(device) = Loop::over(&sized(folder.path(), "disk", 2 * MIB)) else { return };
    let slot = Standby::open(&wanted(device.path(), MIB, None)).unwrap();
    assert_eq!((slot.kind(), slot.capacity()), (Kind::Device, 2 * MIB));
    let error = refused(&wanted(device.path(), MIB, None));
    assert!(error.contains("in use"), "{error}");
    assert!(slot.write_at(2 * MIB, &[0; 4096]).is_err());
    drop(slot);
    let error = refused(&wanted(device.path(), 3 * MIB, None));
    assert!(error.contains("holds 2097152 bytes, the image has 3145728"), "{error}");
}

#[test]
fn devices_of_different_sizes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(small) = Loop::over(&sized(folder.path(), "small", 2 * MIB)) else { return };
    let Some(large) = Loop::over(&sized(folder.path(), "large", 4 * MIB)) else { return };
    let active = Source::open(SlotName::A, small.path()).unwrap();
    let error = refused(&wanted(large.path(), MIB, Some(&active)));
    assert!(error.contains("4194304") && error.contains("2097152") && error.contains("make them equal"), "{error}");
}

#[test]
fn a_file_behind_a_loop_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = sized(folder.path(), "disk", 2 * MIB);
    let Some(device) = Loop::over(&file) else { return };
    let error = refused(&wanted(&file, MIB, None));
    assert!(error.contains(&format!("losetup -d {}", device.0)), "{error}");
}

#[test]
fn a_read_only_device_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(device) = Loop::over(&sized(folder.path(), "disk", 2 * MIB)) else { return };
    let set = |how: &str| Command::new("blockdev").arg(how).arg(device.path()).status().is_ok_and(|s| s.success());
    if !set("--setro") {
        eprintln!("SKIPPED: no blockdev here");
        return;
    }
    let error = refused(&wanted(device.path(), MIB, None));
    // The kernel keeps this for the device's next user.
    assert!(set("--setrw"));
    assert!(error.contains("is read-only; make it writable"), "{error}");
}

#[test]
fn a_mounted_slot_is_refused_whether_device_or_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = sized(folder.path(), "disk", 16 * MIB);
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no mkfs.ext4 here");
        return;
    }
    let Some(device) = Loop::over(&file) else { return };
    let point = folder.path().join("mnt");
    fs::create_dir(&point).unwrap();
    let mounted = Command::new("mount").arg(device.path()).arg(&point).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting is not allowed here");
        return;
    }
    let errors = [refused(&wanted(device.path(), MIB, None)), refused(&wanted(&file, MIB, None))];
    let unmounted = Command::new("umount").arg(&point).status().unwrap();
    assert!(unmounted.success());
    for error in errors {
        assert!(error.contains("mounted read-write on") && error.contains("umount"), "{error}");
    }
}
