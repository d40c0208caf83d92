//! The slot that is written: the only code that opens one for writing.
//!
//! One owner from [`Standby::open`] until it is dropped; the kernel enforces it (`O_EXCL` or `flock`). Nothing is
//! preallocated, and zeros become holes where the medium can have them. Writes may come from several threads, whole
//! blocks each, in any order; writing one twice is harmless. Until the journal says `proven` the slot counts as garbage.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use goldsync_proto::block::Geometry;
use goldsync_proto::limits::BLOCK;
use rustix::fs::{FallocateFlags, FlockOperation};

use super::direct::Direct;
use super::{
    Advice, Identity, Kind, SlotError, SlotName, Source, advise, cut_short, in_use, kind_of, length_of, open_error,
};

/// What is to be written, and beside what.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The slot.
    pub name: SlotName,
    /// Its path.
    pub path: &'a Path,
    /// The image's size.
    pub image: Geometry,
    /// The limit of a file slot, if the configuration sets one.
    pub limit: Option<u64>,
    /// The active slot, if there is one: never the same place, and of the same size if both are devices.
    pub active: Option<&'a Source>,
}

/// A slot open for writing.
#[derive(Debug)]
pub struct Standby {
    name: SlotName,
    path: PathBuf,
    file: File,
    direct: Direct,
    kind: Kind,
    capacity: u64,
}

impl Standby {
    /// Opens the standby slot, or says why it must not be written. A file that is missing is created, empty.
    pub fn open(wanted: &Wanted<'_>) -> Result<Self, SlotError> {
        refuse_before_opening(wanted.name, wanted.path, wanted.active)?;
        let (slot, path) = (wanted.name, wanted.path);
        let fail = |error| open_error(slot, path, error);
        let file = open_file(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let kind = kind_of(&meta).map_err(|found| SlotError::Kind { slot, path: path.to_owned(), found })?;
        // Again, on what was opened: the name may have come to mean something else in between.
        refuse_active(slot, path, wanted.active, Identity::from_metadata(&meta))?;
        if in_use::read_only(Identity::from_metadata(&meta)) {
            return Err(SlotError::ReadOnly { slot, path: path.to_owned() });
        }
        let capacity = match kind {
            Kind::Device => length_of(&file).map_err(fail)?,
            Kind::File => wanted.limit.unwrap_or(u64::MAX),
        };
        let direct = Direct::beside(&file, true);
        let standby = Self { name: slot, path: path.to_owned(), file, direct, kind, capacity };
        standby.claim(Identity::from_metadata(&meta))?;
        standby.refuse_size(wanted)?;
        Ok(standby)
    }

    /// What would keep [`Standby::open`] from it, as far as that can be seen without opening it for writing.
    pub fn obstacle(name: SlotName, path: &Path, active: Option<&Source>) -> Option<SlotError> {
        let seen = refuse_before_opening(name, path, active);
        let read_only = || Identity::of(path).is_ok_and(in_use::read_only);
        seen.err().or_else(|| read_only().then(|| SlotError::ReadOnly { slot: name, path: path.to_owned() }))
    }

    /// Which slot.
    pub fn name(&self) -> SlotName {
        self.name
    }

    /// As configured.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File or device.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes that fit: a device's size, a file's limit.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are there now: a device's size, a file's length.
    pub fn len(&self) -> Result<u64, SlotError> {
        length_of(&self.file).map_err(|error| self.read_error(0, 0, error))
    }

    /// Whether there is nothing to read yet.
    pub fn is_empty(&self) -> Result<bool, SlotError> {
        self.len().map(|len| len == 0)
    }

    /// Fills `buffer` from `offset`; the end of the slot within it is an error.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SlotError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| self.read_error(offset, buffer.len(), error))
    }

    /// The same, from the medium and not from the cache, where that can be had. After [`Standby::sync_data`].
    pub fn read_medium(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SlotError> {
        match self.direct.read_at(offset, buffer) {
            Some(read) => read.map_err(|error| self.read_error(offset, buffer.len(), error)),
            None => self.read_at(offset, buffer),
        }
    }

    /// Writes whole blocks at a block's offset.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SlotError> {
        self.hold(offset, bytes.len() as u64)?;
        let written = self.direct.write_at(offset, bytes).unwrap_or_else(|| self.file.write_all_at(bytes, offset));
        written.map_err(|error| self.write_error(offset, bytes.len(), error))
    }

    /// Makes whole blocks zero: a hole where the medium can have one, written zeros where it cannot.
    pub fn zero_at(&self, offset: u64, length: u64) -> Result<(), SlotError> {
        self.hold(offset, length)?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if length == 0 || rustix::fs::fallocate(&self.file, hole, offset, length).is_ok() {
            return Ok(());
        }
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut at = offset;
        while at < offset + length {
            let step = (offset + length - at).min(ZEROS.len() as u64) as usize;
            let zeros = &ZEROS[..step];
            self.file.write_all_at(zeros, at).map_err(|error| self.write_error(at, step, error))?;
            at += step as u64;
        }
        Ok(())
    }

    /// Gives a file its image's length, cutting or extending it with a hole. A device stays as it is.
    pub fn set_len(&self, size: u64) -> Result<(), SlotError> {
        match self.kind {
            Kind::Device => Ok(()),
            Kind::File => self.file.set_len(size).map_err(|error| self.write_error(size, 0, error)),
        }
    }

    /// Makes the slot share all bytes of the active slot, where both are files of a file system that can (XFS, Btrfs): at once,
    /// with nothing copied. `false`: it cannot be had, and the slot is as it was.
    pub fn clone_of(&self, active: &Source) -> bool {
        if self.kind != Kind::File || active.kind() != Kind::File || active.len() > self.capacity {
            return false;
        }
        let cloned = rustix::fs::ioctl_ficlone(&self.file, active.file());
        cloned.inspect_err(|error| tracing::debug!(%error, "a slot that is not cloned")).is_ok()
    }

    /// Returns once everything written is on the medium.
    pub fn sync_data(&self) -> Result<(), SlotError> {
        self.file.sync_data().map_err(|error| self.write_error(0, 0, error))
    }

    /// Tells the kernel how it will be read. [`Advice::Forget`] after [`Standby::sync_data`] makes the read-back real.
    pub fn advise(&self, advice: Advice) {
        advise(&self.file, advice);
    }

    /// Asks for room for `data` bytes that are not holes, counting what the file has already. A device has its room.
    pub fn check_space(&self, data: u64) -> Result<(), SlotError> {
        if self.kind == Kind::Device {
            return Ok(());
        }
        let fail = |error: io::Error| open_error(self.name, &self.path, error);
        let held = self.file.metadata().map_err(fail)?.blocks() * 512;
        self.check_free(data.saturating_sub(held))
    }

    /// Asks for room for so many bytes more than the file has. A device has its room.
    pub fn check_free(&self, needed: u64) -> Result<(), SlotError> {
        if self.kind == Kind::Device {
            return Ok(());
        }
        let fail = |error: io::Error| open_error(self.name, &self.path, error);
        let system = rustix::fs::fstatvfs(&self.file).map_err(|error| fail(error.into()))?;
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        if needed > free {
            return Err(SlotError::NoSpace { slot: self.name, path: self.path.clone(), needed, free });
        }
        Ok(())
    }

    /// Makes the slot this process's own.
    fn claim(&self, identity: Identity) -> Result<(), SlotError> {
        let in_use =
            |how: String, remedy: String| SlotError::InUse { slot: self.name, path: self.path.clone(), how, remedy };
        if self.kind == Kind::File {
            rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
                in_use("another process holds its lock".into(), format!("`fuser {}` shows which", self.path.display()))
            })?;
        }
        // After the claim, so that nobody who respects locks can come in between.
        match in_use::find(identity) {
            Some(found) => Err(in_use(found.how, found.remedy)),
            None => Ok(()),
        }
    }

    fn refuse_size(&self, wanted: &Wanted<'_>) -> Result<(), SlotError> {
        if let (Kind::Device, Some(active)) = (self.kind, wanted.active)
            && active.kind() == Kind::Device
            && active.len() != self.capacity
        {
            return Err(SlotError::SizesDiffer {
                path: self.path.clone(),
                size: self.capacity,
                other: active.path().to_owned(),
                other_size: active.len(),
            });
        }
        let needed = wanted.image.size();
        if needed > self.capacity {
            let remedy = match self.kind {
                Kind::Device => "use a larger device, or publish a smaller image",
                Kind::File => "raise `slots.size` in the configuration, or publish a smaller image",
            };
            let (slot, path, capacity) = (self.name, self.path.clone(), self.capacity);
            return Err(SlotError::TooSmall { slot, path, capacity, needed, remedy });
        }
        Ok(())
    }

    /// Writes stay on the grid and inside the slot, whatever the caller computed.
    fn hold(&self, offset: u64, length: u64) -> Result<(), SlotError> {
        let on_grid = offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK);
        if on_grid && offset.checked_add(length).is_some_and(|end| end <= self.capacity) {
            return Ok(());
        }
        let why = format!("only whole blocks of {BLOCK} bytes within {} bytes may be written", self.capacity);
        Err(self.write_error(offset, length as usize, io::Error::new(io::ErrorKind::InvalidInput, why)))
    }

    fn read_error(&self, offset: u64, length: usize, error: io::Error) -> SlotError {
        SlotError::Read { slot: self.name, path: self.path.clone(), offset, length, error: cut_short(error) }
    }

    fn write_error(&self, offset: u64, length: usize, error: io::Error) -> SlotError {
        SlotError::Write { slot: self.name, path: self.path.clone(), offset, length, error }
    }
}

/// What can be seen by name: the active slot and mounts give better errors than `O_EXCL` would.
fn refuse_before_opening(slot: SlotName, path: &Path, active: Option<&Source>) -> Result<(), SlotError> {
    match std::fs::metadata(path) {
        Ok(meta) => {
            kind_of(&meta).map_err(|found| SlotError::Kind { slot, path: path.to_owned(), found })?;
            let identity = Identity::from_metadata(&meta);
            refuse_active(slot, path, active, identity)?;
            match in_use::find(identity) {
                Some(found) => {
                    Err(SlotError::InUse { slot, path: path.to_owned(), how: found.how, remedy: found.remedy })
                }
                None => Ok(()),
            }
        }
        // A file slot is created on first use; a device cannot be.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.starts_with("/dev") => Ok(()),
        Err(error) => Err(open_error(slot, path, error)),
    }
}

fn refuse_active(slot: SlotName, path: &Path, active: Option<&Source>, identity: Identity) -> Result<(), SlotError> {
    match active {
        Some(active) if active.identity() == identity => {
            Err(SlotError::IsActive { slot, path: path.to_owned(), active: active.path().to_owned() })
        }
        _ => Ok(()),
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let there = std::fs::metadata(path);
    if there.as_ref().is_ok_and(|meta| kind_of(meta) == Ok(Kind::Device)) {
        return options.custom_flags(libc::O_EXCL).open(path);
    }
    let file = match there {
        Ok(_) => options.open(path)?,
        Err(_) => options.create_new(true).mode(0o600).open(path)?,
    };
    // Its name must last, too. A sync of the file promises only its bytes, and a proof of a file that a power cut took away would
    // be a lie.
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    Ok(file)
}
