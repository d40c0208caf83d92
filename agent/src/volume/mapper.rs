//! dm-verity through the device mapper: a device whose every block is checked against a root hash as it is read.
//!
//! ```text
//! DEV_CREATE goldsync-a-0 ─▶ TABLE_LOAD one target, read-only ─▶ DEV_SUSPEND (resumes) ─▶ opened ─▶ DEV_REMOVE, deferred
//! ```
//! A deferred removal is carried out when the last user lets go: of the device, and so of what it lies on. Messages are built and
//! read as bytes, with every length from the kernel checked; the ioctls are the one thing that is not pure here.
//! The layout is <linux/dm-ioctl.h>, version 4, in this machine's byte order.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use goldsync_proto::limits::BLOCK;
use goldsync_proto::verity::{RootHash, Sealed};

use super::{Device, VolumeError};
use crate::slot::SlotName;

const CONTROL: &str = "/dev/mapper/control";

const DEV_CREATE: u32 = 3;
const DEV_REMOVE: u32 = 4;
const DEV_SUSPEND: u32 = 6;
const TABLE_LOAD: u32 = 9;
const TABLE_STATUS: u32 = 12;

const READ_ONLY: u32 = 1;
const STATUS_TABLE: u32 = 1 << 4;
const BUFFER_FULL: u32 = 1 << 8;
const DEFERRED_REMOVE: u32 = 1 << 17;

/// `struct dm_ioctl`.
const HEAD: usize = 312;
/// `struct dm_target_spec`.
const SPEC: usize = 40;
const SECTOR: u64 = 512;
/// Room for what the kernel answers: a verity target's line has at most 700 characters.
const ROOM: usize = 16 << 10;

/// Devices of one slot at a time: old ones may still be held by their readers.
const NAMES: u32 = 64;

/// Makes a device over `below` that gives the data of a sealed image, checked. It goes when its last user does.
pub(super) fn open(slot: SlotName, below: &Device, sealed: &Sealed) -> Result<Device, VolumeError> {
    let control = control()?;
    let number = below.file.metadata().map_err(VolumeError::io("looking at", &below.node))?.rdev();
    let target = target(sealed.data_blocks * (BLOCK / SECTOR), "verity", &line(number, sealed));
    let (name, made) = create(&control, slot)?;
    let path = Path::new("/dev/mapper").join(&name);
    let undo = |error| {
        // Nobody uses it yet. A device that stays is taken by the next attempt.
        let _ = call(&control, DEV_REMOVE, &message(&name, 0, 0, 0, &[]));
        VolumeError::io("setting up dm-verity as", &path)(error)
    };
    let set_up = || {
        call(&control, TABLE_LOAD, &message(&name, 0, READ_ONLY, 1, &target))?;
        call(&control, DEV_SUSPEND, &message(&name, 0, 0, 0, &[]))?;
        let node = PathBuf::from(format!("/dev/dm-{}", rustix::fs::minor(made)));
        let file = opened(&node)?;
        call(&control, DEV_REMOVE, &message(&name, 0, DEFERRED_REMOVE, 0, &[]))?;
        Ok(Device { node, file })
    };
    set_up().map_err(undo)
}

/// The root hash by which the kernel checks every read of device `number`, if it is a dm-verity device.
pub fn running_root(number: u64) -> Option<RootHash> {
    let answer = call(&control().ok()?, TABLE_STATUS, &message("", number, STATUS_TABLE, 0, &[])).ok()?;
    let (kind, line) = only_target(&answer)?;
    root_of(kind, line)
}

fn control() -> Result<File, VolumeError> {
    let open = File::options().read(true).write(true).open(CONTROL);
    open.map_err(|error| VolumeError::NoMapper { path: CONTROL.into(), error })
}

/// A device by a name that is free, and its number. What an earlier attempt left and nobody uses gives its name back.
fn create(control: &File, slot: SlotName) -> Result<(String, u64), VolumeError> {
    let fail = VolumeError::io("making a device by", Path::new(CONTROL));
    for index in 0..NAMES {
        let name = format!("goldsync-{slot}-{index}");
        let _ = call(control, DEV_REMOVE, &message(&name, 0, 0, 0, &[]));
        match call(control, DEV_CREATE, &message(&name, 0, 0, 0, &[])) {
            Ok(answer) => {
                let number = field::<8>(&answer, 40).map(u64::from_ne_bytes);
                return number.map(|number| (name, number)).ok_or_else(|| fail(io::ErrorKind::InvalidData.into()));
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Err(fail(io::ErrorKind::ResourceBusy.into()))
}

/// The node is made by the kernel, or by who keeps /dev, a moment later.
fn opened(node: &Path) -> io::Result<File> {
    for _ in 0..100 {
        match File::open(node) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            done => return done,
        }
    }
    File::open(node)
}

/// What dm-verity is told: data and tree lie on one device.
fn line(number: u64, sealed: &Sealed) -> String {
    let device = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let Sealed { version, algorithm, data_block_size, hash_block_size, data_blocks, salt, root_hash, .. } = sealed;
    let salt: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
    let salt = if salt.is_empty() { "-" } else { &salt };
    let start = sealed.hash_start();
    format!(
        "{version} {device} {device} {data_block_size} {hash_block_size} {data_blocks} {start} {algorithm} {root_hash} {salt}"
    )
}

/// The root hash in a target's line.
fn root_of(kind: &str, line: &str) -> Option<RootHash> {
    let words: Vec<&str> = line.split(' ').collect();
    let &[_, _, _, _, _, _, _, "sha256", root, ..] = words.as_slice() else { return None };
    root.parse().ok().filter(|_| kind == "verity")
}

/// A call's message: the head, and what belongs to it. A device goes by its name or by its number.
fn message(name: &str, number: u64, flags: u32, targets: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ROOM);
    let size = (HEAD + data.len()).max(ROOM) as u32;
    for word in [4, 0, 0, size, HEAD as u32, targets, 0, flags, 0, 0] {
        out.extend(word.to_ne_bytes());
    }
    out.extend(number.to_ne_bytes());
    // 128 bytes of name with its zero, 129 of UUID, 7 to the end.
    out.extend(name.bytes().take(127));
    out.resize(HEAD, 0);
    out.extend(data);
    out.resize(size as usize, 0);
    out
}

/// One target, over a whole device of so many sectors.
fn target(sectors: u64, kind: &str, line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(0_u64.to_ne_bytes());
    out.extend(sectors.to_ne_bytes());
    let padded = (SPEC + line.len() + 1).next_multiple_of(8);
    out.extend(0_i32.to_ne_bytes());
    out.extend((padded as u32).to_ne_bytes());
    out.extend(kind.bytes().take(15));
    out.resize(SPEC, 0);
    out.extend(line.bytes());
    out.resize(padded, 0);
    out
}

/// The one target in an answer: its kind and its line. `None` if there are more, or fewer, or not all of it.
fn only_target(answer: &[u8]) -> Option<(&str, &str)> {
    let word = |at: usize| field::<4>(answer, at).map(u32::from_ne_bytes);
    if word(20)? != 1 || word(28)? & BUFFER_FULL != 0 {
        return None;
    }
    let spec = answer.get(word(16)? as usize..)?;
    Some((text(spec.get(24..SPEC)?)?, text(spec.get(SPEC..)?)?))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Text up to its zero.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

/// Makes one call: the message as the kernel left it.
fn call(control: &File, command: u32, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut buffer = message.to_vec();
    // _IOWR(0xfd, command, struct dm_ioctl)
    let request: u32 = (3 << 30) | ((HEAD as u32) << 16) | (0xfd << 8) | command;
    // SAFETY: the kernel reads and writes at most `data_size` bytes, which `message` made the buffer's length; the buffer lives
    // until the call is over.
    let done = unsafe { libc::ioctl(control.as_raw_fd(), request as _, buffer.as_mut_ptr()) };
    if done == 0 { Ok(buffer) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed() -> Sealed {
        Sealed {
            version: 1,
            algorithm: "sha256".into(),
            data_block_size: 4096,
            hash_block_size: 4096,
            data_blocks: 300,
            hash_offset: 300 * 4096,
            salt: vec![0xab, 0x01],
            root_hash: RootHash([0x5a; 32]),
        }
    }

    #[test]
    fn the_line_is_what_veritysetup_would_load() {
        let number = rustix::fs::makedev(7, 3);
        let root = "5a".repeat(32);
        assert_eq!(line(number, &sealed()), format!("1 7:3 7:3 4096 4096 300 301 sha256 {root} ab01"));
        let bare = Sealed { salt: vec![], version: 0, ..sealed() };
        assert_eq!(line(number, &bare), format!("0 7:3 7:3 4096 4096 300 301 sha256 {root} -"));
        assert_eq!(root_of("verity", &line(number, &bare)), Some(RootHash([0x5a; 32])));
        assert_eq!(root_of("linear", &line(number, &bare)), None);
        assert_eq!(root_of("verity", "1 7:3 7:3 4096 4096 300 301 sha512 00 -"), None);
    }

    #[test]
    fn messages_lie_as_the_kernel_reads_them() {
        let target = target(2400, "verity", "1 7:3");
        assert_eq!(target.len(), 48);
        assert_eq!((&target[8..16], &target[20..24]), (&2400_u64.to_ne_bytes()[..], &48_u32.to_ne_bytes()[..]));
        assert_eq!((&target[24..31], &target[40..46]), (&b"verity\0"[..], &b"1 7:3\0"[..]));
        let message = message("goldsync-a-0", 0x0703, READ_ONLY, 1, &target);
        assert_eq!(message.len(), ROOM);
        for (at, word) in [(0, 4), (12, ROOM as u32), (16, 312), (20, 1), (28, READ_ONLY), (32, 0)] {
            assert_eq!(message[at..at + 4], word.to_ne_bytes(), "{at}");
        }
        assert_eq!((&message[40..48], &message[48..61]), (&0x0703_u64.to_ne_bytes()[..], &b"goldsync-a-0\0"[..]));
        assert_eq!(message[312..360], target);
        assert_eq!(only_target(&message), Some(("verity", "1 7:3")));
    }

    #[test]
    fn answers_that_are_not_whole_are_none() {
        let target = target(8, "verity", "x");
        assert_eq!(only_target(&message("", 0, 0, 2, &target)), None);
        assert_eq!(only_target(&message("", 0, BUFFER_FULL, 1, &target)), None);
        assert_eq!(only_target(&message("", 0, 0, 1, &target)[..340]), None);
        let mut far = message("", 0, 0, 1, &target);
        far[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(only_target(&far), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..500), line: String) {
            let _ = only_target(&bytes);
            let _ = root_of("verity", &line);
        }
    }
}
