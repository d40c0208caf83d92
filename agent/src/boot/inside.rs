//! Files of the image in a slot, without the slot's being mounted anywhere: for the kernel that an image carries.
//!
//! The file system is mounted read-only, without devices and set-user-ids, and attached to no path: nobody else can see it, and
//! it is gone when the last file is closed. ext4 does not replay its journal, so that not one byte of a proven slot changes.
//! Symbolic links (`/vmlinuz` of Debian) are followed inside the image and never out of it.
//!
//! What can go wrong: a slot that is a file would need a loop device (use `kernel_from = "esp"` there); an unknown file system.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

/// Opens a file in the slot at a path. Tests have another one, without mounts.
pub(super) type OpenInSlot = fn(&Path, &Path) -> io::Result<File>;

/// File systems by what stands at some byte of them.
const KNOWN: &[(&str, usize, &[u8])] =
    &[("squashfs", 0, b"hsqs"), ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]), ("ext4", 1080, &[0x53, 0xef])];

/// Opens `file`, an absolute path inside the image, in the device `slot`.
pub(super) fn open(slot: &Path, file: &Path) -> io::Result<File> {
    let mut device = File::open(slot)?;
    if !device.metadata()?.file_type().is_block_device() {
        let why = "the slot is no block device; set activation.kernel_from = \"esp\" and keep the kernel there";
        return Err(io::Error::other(why));
    }
    let mut head = [0; 2048];
    device.read_exact(&mut head)?;
    let Some(system) = file_system(&head) else {
        return Err(io::Error::other("the slot holds none of ext4, EROFS and squashfs"));
    };
    let root = mount(slot, system)?;
    let how = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = openat2(&root, file, how, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?;
    Ok(File::from(opened))
}

fn file_system(head: &[u8]) -> Option<&'static str> {
    let found = KNOWN.iter().find(|(_, at, magic)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    found.map(|(name, ..)| *name)
}

/// The file system's root, attached nowhere.
fn mount(slot: &Path, system: &str) -> io::Result<rustix::fd::OwnedFd> {
    let context = fsopen(system, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", slot)?;
    fsconfig_set_flag(context, "ro")?;
    if system == "ext4" {
        fsconfig_set_flag(context, "noload")?;
    }
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_magic() {
        let head = |at: usize, magic: &[u8]| {
            let mut head = vec![0; 2048];
            head[at..at + magic.len()].copy_from_slice(magic);
            head
        };
        assert_eq!(file_system(&head(0, b"hsqs")), Some("squashfs"));
        assert_eq!(file_system(&head(1024, &[0xe2, 0xe1, 0xf5, 0xe0])), Some("erofs"));
        assert_eq!(file_system(&head(1080, &[0x53, 0xef])), Some("ext4"));
        assert_eq!(file_system(&[0; 2048]), None);
        assert_eq!(file_system(&[0x53]), None);
    }

    /// Runs a program that may be missing; its output, if it was there and succeeded.
    fn run(program: &str, arguments: &[&str]) -> Option<String> {
        let done = std::process::Command::new(program).args(arguments).output().ok()?;
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }

    /// A loop device, given back at the end.
    struct Loop(String);

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = run("losetup", &["-d", &self.0]);
        }
    }

    #[test]
    fn a_file_is_read_out_of_a_file_system_that_is_mounted_nowhere_and_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir_all(tree.join("boot")).unwrap();
        std::fs::write(tree.join("boot/vmlinuz-6.1"), "the kernel").unwrap();
        // Absolute, as in Debian: it must not lead to this machine's own.
        std::os::unix::fs::symlink("/boot/vmlinuz-6.1", tree.join("vmlinuz")).unwrap();
        std::os::unix::fs::symlink("../../../etc/hostname", tree.join("out")).unwrap();
        let (tree, image) = (tree.display().to_string(), folder.path().join("image"));
        let path = image.display().to_string();
        for make in [
            vec!["mkfs.ext4", "-q", "-d", &tree, &path, "8M"],
            vec!["mkfs.erofs", &path, &tree],
            vec!["mksquashfs", &tree, &path, "-quiet", "-noappend"],
        ] {
            let _ = std::fs::remove_file(&image);
            let device = run(make[0], &make[1..]).and_then(|_| run("losetup", &["-f", "--show", &path])).map(Loop);
            let Some(device) = device else {
                eprintln!("skipped: {} or a loop device is not to be had", make[0]);
                continue;
            };
            let before = std::fs::read(&image).unwrap();
            let slot = Path::new(&device.0);
            let mut file = match open(slot, Path::new("/vmlinuz")) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    eprintln!("skipped: mounting needs root");
                    return;
                }
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                    eprintln!("skipped: this kernel has no {}", make[0]);
                    continue;
                }
                opened => opened.unwrap(),
            };
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "the kernel", "{}", make[0]);
            assert_eq!(open(slot, Path::new("/out")).unwrap_err().kind(), io::ErrorKind::NotFound);
            assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(&device.0));
            drop(file);
            drop(device);
            assert_eq!(std::fs::read(&image).unwrap(), before, "{} was not written", make[0]);
        }
    }

    #[test]
    fn a_file_is_no_device_and_the_cure_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.img"), [0; 4096]).unwrap();
        let error = open(&folder.path().join("a.img"), Path::new("/vmlinuz")).unwrap_err().to_string();
        assert!(error.contains("kernel_from"), "{error}");
    }
}
