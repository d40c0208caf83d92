//! Bad disks: what goes wrong, when, and how often.

use std::path::{Path, PathBuf};

use fuser::Errno;

/// A kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Bytes are read: at most 128 KiB at a time.
    Read,
    /// Bytes are written, likewise.
    Write,
    /// A hole is punched.
    Punch,
    /// A file or folder is synced.
    Sync,
    /// A name is made or replaced.
    Name,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum What {
    /// It fails.
    Fail(Errno),
    /// Less is read or written than was asked for, and that is said.
    Short(u32),
    /// It is done, and then a bit of some file turns, silently.
    Rot {
        /// Which file.
        file: PathBuf,
        /// Which byte of it.
        at: u64,
    },
    /// A write says that it was done, and was not.
    Forget,
}

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    /// In which file or folder, by its path on the disk.
    pub path: PathBuf,
    /// When what is done.
    pub on: On,
    /// So many times it still goes well.
    pub after: u64,
    /// So many times it goes wrong then.
    pub times: u64,
    /// In which way.
    pub what: What,
}

impl Fault {
    /// Something that goes wrong from the first time on, always.
    pub fn new(path: impl Into<PathBuf>, on: On, what: What) -> Self {
        Self { path: path.into(), on, after: 0, times: u64::MAX, what }
    }

    /// The same, after it went well so many times.
    pub fn after(self, after: u64) -> Self {
        Self { after, ..self }
    }

    /// The same, once.
    pub fn once(self) -> Self {
        Self { times: 1, ..self }
    }
}

/// All that goes wrong with a disk.
#[derive(Debug, Default)]
pub(super) struct Faults {
    armed: Vec<Fault>,
    /// How often something went wrong.
    pub(super) struck: u64,
    /// Bytes that can still be written, if that has an end.
    pub(super) room: Option<u64>,
}

impl Faults {
    pub(super) fn arm(&mut self, fault: Fault) {
        self.armed.push(fault);
    }

    /// Whether paths matter at all now.
    pub(super) fn none(&self) -> bool {
        self.armed.is_empty()
    }

    /// What goes wrong with this operation, if anything.
    pub(super) fn strike(&mut self, path: &Path, on: On) -> Option<What> {
        let fault = self.armed.iter_mut().find(|fault| fault.on == on && fault.path == path && fault.times > 0)?;
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        fault.times -= 1;
        self.struck += 1;
        Some(fault.what.clone())
    }

    /// How many of so many bytes have room.
    pub(super) fn fit(&mut self, bytes: u32) -> u32 {
        let Some(room) = &mut self.room else { return bytes };
        let fit = (*room).min(u64::from(bytes)) as u32;
        *room -= u64::from(fit);
        self.struck += u64::from(fit < bytes);
        fit
    }
}
