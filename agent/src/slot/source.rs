//! A slot that is read: the active one, as the plan's source and for `verify`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::direct::Direct;
use super::{Advice, Identity, Kind, SlotError, SlotName, advise, cut_short, kind_of, length_of, open_error};

/// A slot open for reading. Reads are `pread`: a disk that fails gives an error, where a mapping would kill the process.
#[derive(Debug)]
pub struct Source {
    name: SlotName,
    path: PathBuf,
    file: File,
    direct: Direct,
    kind: Kind,
    len: u64,
    identity: Identity,
}

impl Source {
    /// Opens slot `name` at `path`.
    pub fn open(name: SlotName, path: &Path) -> Result<Self, SlotError> {
        let fail = |error| open_error(name, path, error);
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let kind = kind_of(&meta).map_err(|found| SlotError::Kind { slot: name, path: path.to_owned(), found })?;
        let len = length_of(&file).map_err(fail)?;
        let direct = Direct::beside(&file, false);
        Ok(Self { name, path: path.to_owned(), file, direct, kind, len, identity: Identity::from_metadata(&meta) })
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

    /// Bytes; a device may be longer than its image.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it is, whatever its path.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Fills `buffer` from `offset`; the end of the slot within it is an error.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SlotError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| self.read_error(offset, buffer.len(), error))
    }

    /// The same, from the medium and not from the cache, where that can be had.
    pub fn read_medium(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SlotError> {
        match self.direct.read_at(offset, buffer) {
            Some(read) => read.map_err(|error| self.read_error(offset, buffer.len(), error)),
            None => self.read_at(offset, buffer),
        }
    }

    /// The file, to be shared from.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Tells the kernel how it will be read.
    pub fn advise(&self, advice: Advice) {
        advise(&self.file, advice);
    }

    fn read_error(&self, offset: u64, length: usize, error: std::io::Error) -> SlotError {
        SlotError::Read { slot: self.name, path: self.path.clone(), offset, length, error: cut_short(error) }
    }
}
