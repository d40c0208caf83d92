//! One run at a time.
//!
//! The kernel holds the lock, so that it ends with its process, however that ends; the number in the file is only for
//! the message of whoever comes second.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{JournalError, io_error};

/// The right to change slots and state; ends when dropped.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl Drop for RunLock {
    /// Closing is not enough: a program that another thread is just starting has the file, too, until it runs.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "the lock of the state folder stays until this process ends");
        }
    }
}

impl RunLock {
    pub(super) fn take(path: &Path) -> Result<Self, JournalError> {
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error("opening", path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(JournalError::Busy { holder: holder(&mut file) }),
            Err(error) => return Err(io_error("locking", path)(error.into())),
        }
        let written = file.set_len(0).and_then(|()| {
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        });
        written.map_err(io_error("writing", path))?;
        Ok(Self { file })
    }
}

/// The process that holds the lock now, for `status`; takes nothing, so that it cannot get in a run's way.
pub(super) fn held_by(path: &Path) -> Option<u32> {
    let process: u32 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    let inode = std::fs::metadata(path).ok()?.ino();
    // 1: FLOCK  ADVISORY  WRITE 4711 fe:00:262157 0 EOF
    let holds = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, holder, place, ..] = fields.as_slice() else { return false };
        holder.parse() == Ok(process) && place.rsplit(':').next().and_then(|inode| inode.parse().ok()) == Some(inode)
    };
    std::fs::read_to_string("/proc/locks").ok()?.lines().any(holds).then_some(process)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    match (read, text.trim().parse::<u32>()) {
        (Ok(_), Ok(process)) => format!("process {process}"),
        _ => "a process that has not given its number yet".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_starting_program_has_open_does_not_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = RunLock::take(&path).unwrap();
        let copy = lock.file.try_clone().unwrap();
        assert!(RunLock::take(&path).is_err());
        drop(lock);
        RunLock::take(&path).unwrap();
        drop(copy);
    }
}
