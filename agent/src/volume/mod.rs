//! A slot's image as a volume: attached, and mounted read-only where nobody sees it yet.
//!
//! ```text
//! a file  ─▶ [looped]: a loop device ┐
//! a block device ────────────────────┴▶ [verity], if wanted ─▶ fsopen, fsconfig, fsmount ─▶ [Detached] ─▶ a mount point
//! ```
//! Nothing of it outlives its use, and nothing needs to be cleaned up: the loop device detaches itself when its last user goes,
//! the device mapper's device is removed then, and a mount that was put nowhere ends with its descriptor. So a process that is
//! killed half-way leaves nothing behind. Who puts a volume where, and which one is the active slot's, is `boot`'s business.
//!
//! Everything here needs root, and the calls block. The kernel parses the file system: whatever it makes of an image was proven
//! to be the release's before.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use goldsync_proto::content::detect;
use goldsync_proto::limits::BLOCK;
use goldsync_proto::verity::Sealed;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MoveMountFlags};

use crate::slot::{Identity, SlotName};

/// How often a file is asked for that the kernel could not be sure about.
const OPEN_TRIES: u32 = 1000;

mod looped;
mod mapper;
mod options;

pub use mapper::running_root;
pub use options::{Options, OptionsError};

/// How a slot's image is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// The kernel's name for the file system; told by the image's first bytes if left out.
    pub file_system: Option<String>,
    /// Mount options; read-only is not one of them, because it always is.
    pub options: Options,
    /// Whether the kernel shall check every block as it is read: by dm-verity, against the root hash that the publisher signed.
    pub verity: bool,
}

/// Why a slot cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// A step failed.
    #[error("{what} {}: {error}{}", path.display(), said(words))]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
        /// What the kernel says of it.
        words: String,
    },
    /// Nothing that the kernel could mount is recognised in it.
    #[error(
        "{} begins like {looks}, and that is not mounted unasked (erofs, squashfs and ext4 are); name the file system by `activation.fstype`, or publish one",
        path.display()
    )]
    Unknown {
        /// The slot.
        path: PathBuf,
        /// What it looks like.
        looks: &'static str,
    },
    /// There is nothing to check it against.
    #[error(
        "the release in {} was signed without a hash tree, and `activation.verity` demands one; publish it with `goldsync publish --verity`",
        path.display()
    )]
    NotSealed {
        /// The slot.
        path: PathBuf,
    },
    /// The kernel has no device mapper.
    #[error(
        "dm-verity is not to be had: {} {error}; load it (`modprobe dm-verity`), or set `activation.verity` to false",
        path.display()
    )]
    NoMapper {
        /// Where it would be.
        path: PathBuf,
        /// What is wrong with it.
        error: io::Error,
    },
    /// The kernel cannot do what this takes.
    #[error("{what} takes Linux {needed}, and this is {have}; {instead}")]
    Kernel {
        /// What is to be done.
        what: &'static str,
        /// From which kernel on.
        needed: &'static str,
        /// This one.
        have: String,
        /// What can be done instead.
        instead: &'static str,
    },
}

impl VolumeError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { what, path, error, words: String::new() }
    }
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

/// A block device, kept there by being open.
#[derive(Debug)]
struct Device {
    node: PathBuf,
    file: File,
}

/// A volume that is mounted, but nowhere yet; dropped, it is unmounted.
#[derive(Debug)]
pub struct Detached {
    mount: OwnedFd,
    slot: PathBuf,
}

impl Volume {
    /// Attaches slot `name` at `path` and mounts it nowhere. `sealed` is what its release says of its hash tree.
    pub fn mount(&self, name: SlotName, path: &Path, sealed: Option<&Sealed>) -> Result<Detached, VolumeError> {
        let sealed = match (self.verity, sealed) {
            (false, _) => return self.mount_unchecked(path),
            (true, Some(sealed)) => sealed,
            (true, None) => return Err(VolumeError::NotSealed { path: path.to_owned() }),
        };
        self.mount_device(path, &mapper::open(name, &attach(path)?, sealed)?)
    }

    /// The same without dm-verity, whatever was asked for: of a slot that was read back just now.
    pub fn mount_unchecked(&self, path: &Path) -> Result<Detached, VolumeError> {
        self.mount_device(path, &attach(path)?)
    }

    fn mount_device(&self, path: &Path, device: &Device) -> Result<Detached, VolumeError> {
        let file_system = match &self.file_system {
            Some(given) => given,
            None => probe(path, device)?,
        };
        Ok(Detached { mount: self.mount_as(file_system, device)?, slot: path.to_owned() })
    }

    fn mount_as(&self, file_system: &str, device: &Device) -> Result<OwnedFd, VolumeError> {
        let node = &device.node;
        let context = rustix::mount::fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| match error {
            Errno::NOSYS => too_old("mounting a volume", "5.2", "activate by \"symlink\" or \"command\" here"),
            Errno::NODEV => VolumeError::io("the kernel does not know the file system of", node)(error.into()),
            error => VolumeError::io("opening the file system of", node)(error.into()),
        })?;
        let fail = |what: &'static str, error: Errno| {
            let mut failure = VolumeError::io(what, node)(error.into());
            if let VolumeError::Io { words, .. } = &mut failure {
                *words = complaints(&context);
            }
            failure
        };
        let set = |key: &str, value: Option<&str>| match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key, value),
            None => rustix::mount::fsconfig_set_flag(&context, key),
        };
        rustix::mount::fsconfig_set_string(&context, "source", node).map_err(|error| fail("naming", error))?;
        set("ro", None).map_err(|error| fail("asking for read-only of", error))?;
        if let Some((key, value)) = no_replay(file_system) {
            set(key, value).map_err(|error| fail("asking for no replay of the journal of", error))?;
        }
        for (key, value) in self.options.parameters() {
            set(key, value).map_err(|error| fail("setting the options of", error))?;
        }
        rustix::mount::fsconfig_create(&context).map_err(|error| fail("mounting", error))?;
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, self.options.attributes());
        mount.map_err(|error| fail("mounting", error))
    }
}

impl Detached {
    /// Puts it on a mount point, over whatever is there.
    pub fn put(&self, point: &Path) -> Result<(), VolumeError> {
        self.move_to(point, MoveMountFlags::empty())
            .map_err(|error| VolumeError::io("mounting on", point)(error.into()))
    }

    /// Puts it beneath what is mounted there: invisible until that is taken away.
    pub fn put_beneath(&self, point: &Path) -> Result<(), VolumeError> {
        self.move_to(point, MoveMountFlags::MOVE_MOUNT_BENEATH).map_err(|error| {
            // What the kernel does not know and what cannot be done here are both EINVAL to it; asking it first, and only then
            // its version, lets a kernel that was given the feature later have its way.
            if error == Errno::INVAL && !replaces_live() {
                let instead = "stop what reads the volume, unmount it and activate again; or activate by \"symlink\", or restart \
                               into the slot (a boot loader, `soft-reboot`)";
                return too_old("replacing a mounted volume while it is read", "6.5", instead);
            }
            VolumeError::io("mounting beneath what is on", point)(error.into())
        })
    }

    /// The slot.
    pub fn slot(&self) -> &Path {
        &self.slot
    }

    /// Opens a file of the volume by its path there. Symbolic links lead nowhere outside.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        let how = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 1;
        loop {
            match rustix::fs::openat2(&self.mount, path, how, Mode::empty(), inside) {
                // Who renames or mounts anything meanwhile keeps the kernel from being sure of a `..`: it wants to be asked again.
                Err(Errno::AGAIN) if tries < OPEN_TRIES => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return Ok(File::from(opened?)),
            }
        }
    }

    fn move_to(&self, point: &Path, how: MoveMountFlags) -> Result<(), Errno> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | how;
        rustix::mount::move_mount(&self.mount, "", CWD, point, flags)
    }
}

fn attach(path: &Path) -> Result<Device, VolumeError> {
    let open = |path: &Path| File::open(path).map_err(VolumeError::io("opening", path));
    match Identity::of(path).map_err(VolumeError::io("looking at", path))? {
        Identity::Device(_) => Ok(Device { node: path.to_owned(), file: open(path)? }),
        Identity::File(..) => looped::attach(path, &open(path)?),
    }
}

/// The kernel's name for the file system that the image's first block tells. No more is read: what is bad elsewhere is for who reads
/// it to find.
fn probe(path: &Path, device: &Device) -> Result<&'static str, VolumeError> {
    let mut head = vec![0; BLOCK as usize];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match device.file.read_at(rest, filled as u64).map_err(VolumeError::io("reading", path))? {
            0 => break,
            read => filled += read,
        }
    }
    head.truncate(filled);
    match detect(&head) {
        Some("erofs") => Ok("erofs"),
        Some("squashfs") => Ok("squashfs"),
        Some("ext2" | "ext3" | "ext4") => Ok("ext4"),
        looks => Err(VolumeError::Unknown { path: path.to_owned(), looks: looks.unwrap_or("nothing that is known") }),
    }
}

/// The option by which a file system leaves its journal alone. One that was not empty would be replayed even when mounted read-only:
/// written into the slot, whose proof would be void.
fn no_replay(file_system: &str) -> Option<(&'static str, Option<&'static str>)> {
    match file_system {
        "ext3" | "ext4" => Some(("noload", None)),
        "xfs" => Some(("norecovery", None)),
        "btrfs" => Some(("rescue", Some("nologreplay"))),
        _ => None,
    }
}

/// What the kernel wrote about a file system that it would not mount.
fn complaints(context: &OwnedFd) -> String {
    let Ok(mut log) = context.try_clone().map(File::from) else { return String::new() };
    let (mut said, mut line) = (Vec::new(), [0; 512]);
    // One message for each read, `e text`; ENODATA when there are no more. It keeps few.
    while let (Ok(read @ 1..), true) = (log.read(&mut line), said.len() < 8) {
        let text = String::from_utf8_lossy(&line[..read]);
        said.push(text.trim().trim_start_matches(['e', 'w', 'i']).trim().to_owned());
    }
    said.join("; ")
}

fn too_old(what: &'static str, needed: &'static str, instead: &'static str) -> VolumeError {
    let have = rustix::system::uname().release().to_string_lossy().into_owned();
    VolumeError::Kernel { what, needed, have, instead }
}

/// Whether this kernel is one that can replace a volume while it is read.
pub fn replaces_live() -> bool {
    kernel().is_some_and(|kernel| kernel >= (6, 5))
}

/// The kernel's version.
fn kernel() -> Option<(u32, u32)> {
    version(&rustix::system::uname().release().to_string_lossy())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_s_version_is_its_first_two_numbers() {
        for (release, expected) in [
            ("6.5.0-35-generic", Some((6, 5))),
            ("6.12.95+deb13-amd64", Some((6, 12))),
            ("5.14.0-503.el9", Some((5, 14))),
            ("4.19", Some((4, 19))),
            ("six", None),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
        assert!(kernel().is_some());
    }

    #[test]
    fn what_is_no_file_system_is_told_with_what_it_looks_like() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slot");
        let mut erofs = vec![0; 4096];
        erofs[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        let mut ext4 = vec![0; 4096];
        ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
        let mut disk = vec![0; 4096];
        disk[512..520].copy_from_slice(b"EFI PART");
        for (bytes, expected) in [
            (erofs, Ok("erofs")),
            (ext4, Ok("ext4")),
            (b"hsqs".to_vec(), Ok("squashfs")),
            (disk, Err("begins like gpt")),
            (vec![], Err("nothing that is known")),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let device = Device { node: path.clone(), file: File::open(&path).unwrap() };
            match (probe(&path, &device), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{error}"),
                (found, expected) => panic!("{found:?}, {expected:?} expected"),
            }
        }
    }

    #[test]
    fn a_seal_that_is_demanded_and_missing_is_refused_before_anything_is_attached() {
        let volume = Volume { verity: true, ..Volume::default() };
        let error = volume.mount(SlotName::A, Path::new("/no/such/slot"), None).unwrap_err().to_string();
        assert!(error.contains("goldsync publish --verity"), "{error}");
    }
}
