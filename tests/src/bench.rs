//! Two slots with mountable images, to be mounted and replaced.

use std::fs;
use std::path::{Path, PathBuf};

use goldsync_agent::boot::{Holds, Mount, Started};
use goldsync_agent::config::Slots;
use goldsync_agent::journal::Journal;
use goldsync_agent::slot::SlotName;
use goldsync_agent::volume::Volume;
use goldsync_proto::digest::ImageId;

use crate::volumes::Kind;

/// Bytes in each file: read in several pieces, so that a reader that saw two images in one file would notice.
pub const FILE: usize = 96 << 10;
/// Files in an image.
pub const FILES: usize = 4;

/// Two slots with a mount point and a state folder.
#[derive(Debug)]
pub struct Bench {
    /// All of it.
    pub folder: tempfile::TempDir,
    /// Both, with images in them.
    pub slots: Slots,
    /// The mount point.
    pub target: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Or the folder could not be removed; what is still mounted ends with the namespace.
        while rustix::mount::unmount(&self.target, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

impl Bench {
    /// With an image of the kind in each slot: files full of `a`, and of `b`.
    pub fn new(kind: Kind) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let slots = Slots { a: folder.path().join("a.img"), b: folder.path().join("b.img"), size: None };
        let target = folder.path().join("app");
        fs::create_dir(&target).expect("a mount point");
        for name in SlotName::ALL {
            make(kind, folder.path(), name.as_str().as_bytes()[0], slots.path(name))?;
        }
        let bench = Self { folder, slots, target };
        bench.journal();
        Some(bench)
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// What is remembered there.
    pub fn journal(&self) -> Journal {
        Journal::open(&self.state()).expect("a journal")
    }

    /// The back-end, for volumes as they are.
    pub fn mount(&self) -> Mount {
        Mount::new(&self.target, &Volume::default(), &self.slots, &self.state())
    }

    /// What a start of the machine mounts.
    pub fn at_start(&self) -> Started {
        let journal = self.journal();
        let lock = journal.lock().expect("the lock");
        self.mount().at_start(&lock).expect("a start")
    }

    /// What a machine that was switched off has mounted.
    pub fn power_off(&self) {
        while rustix::mount::unmount(&self.target, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }

    /// What readers see.
    pub fn seen(&self) -> char {
        fs::read(self.target.join("file-0")).expect("a file")[0].into()
    }
}

/// An image of files that are full of one letter.
pub fn make(kind: Kind, folder: &Path, letter: u8, image: &Path) -> Option<()> {
    let files = folder.join(format!("files-{}", letter as char));
    fs::create_dir_all(&files).expect("a folder");
    for number in 0..FILES {
        fs::write(files.join(format!("file-{number}")), vec![letter; FILE]).expect("a file");
    }
    kind.make(&files, image)
}

/// What a slot is said to hold, where it is of no interest.
pub fn holds() -> Holds {
    Holds { image: ImageId::of(b"x"), release: "web:1".parse().expect("a release"), size: 4096, verity: None }
}
