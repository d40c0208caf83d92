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

    #[test]
    fn a_file_is_no_device_and_the_cure_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.img"), [0; 4096]).unwrap();
        let error = open(&folder.path().join("a.img"), Path::new("/vmlinuz")).unwrap_err().to_string();
        assert!(error.contains("kernel_from"), "{error}");
    }
}
