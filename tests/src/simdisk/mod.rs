//! A disk that can be cut off at any moment, and that can fail in any way: simulated, under the real agent.
//!
//! ```text
//! the agent, as it is ──▶ kernel ──FUSE──▶ door ──▶ [Tree], in memory
//!                                            │
//!                                            ├──▶ log of operations ──▶ [cut::after]: what may be found after a power cut
//!                                            └──◀ faults: errors, short writes, no room, bits that turn
//! ```
//! The pure half ([`tree`], [`cut`]) knows no kernel: a file system in memory, and the laws by which it loses what was not synced.
//! The other half is a thin door to it. A story records what a verb does, takes the record apart at each operation, puts a
//! disk as it may be found there in the place of the one that the machine has, and lets the machine go on with that.
//!
//! It needs `/dev/fuse` and the right to mount. Nothing is cached by the kernel, so that what is read is what is on the disk.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use rustix::mount::UnmountFlags;

pub mod cut;
mod door;
pub mod fault;
pub mod loader;
pub mod rig;
#[cfg(test)]
mod tests;
pub mod tree;

use cut::{Fate, Laws};
use door::{Behind, Door};
use fault::Fault;
use tree::{Op, Tree};

/// A simulated disk, mounted; unmounted when dropped.
#[derive(Debug)]
pub struct SimDisk {
    point: PathBuf,
    behind: Arc<Mutex<Behind>>,
    session: Option<BackgroundSession>,
}

/// What was done to a disk.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The disk before.
    pub base: Tree,
    /// What was done, in order.
    pub ops: Vec<Op>,
}

impl Recording {
    /// The disk that is found if power goes away before operation `at`.
    pub fn cut(&self, at: usize, laws: &Laws, fate: Fate) -> Tree {
        cut::after(&self.base, &self.ops[..at], laws, fate)
    }

    /// The same disk, if the process was killed before operation `at` and `next` was done afterwards, with power on all the time:
    /// what the first left unsynced is unsynced still.
    pub fn killed(&self, at: usize, next: &Self) -> Self {
        Self { base: self.base.clone(), ops: [&self.ops[..at], &next.ops].concat() }
    }

    /// The path that an operation is about; of names, the new one.
    pub fn path(&self, at: usize) -> Option<PathBuf> {
        let op = self.ops.get(at)?;
        let mut tree = self.base.clone();
        self.ops[..at].iter().for_each(|op| tree.apply(op));
        match op {
            Op::Write { id, .. } | Op::Punch { id, .. } | Op::Resize { id, .. } => tree.path_of(*id),
            Op::Sync { id } | Op::SyncFolder { id } => tree.path_of(*id),
            Op::Create { folder, name, .. } | Op::Remove { folder, name } => Some(tree.path_of(*folder)?.join(name)),
            Op::Rename { to, new, .. } => Some(tree.path_of(*to)?.join(new)),
        }
    }

    /// An operation by its number, for people.
    pub fn name(&self, at: usize) -> String {
        let path = self.path(at).map_or(String::new(), |path| format!(" ({})", path.display()));
        self.ops.get(at).map_or("the end".into(), |op| format!("{op:?}{path}"))
    }
}

impl SimDisk {
    /// Mounts an empty disk of so many bytes on a folder, which is made if it is missing. Only files below `mapped`, a path on the
    /// disk, may be mapped to be written.
    pub fn mount(point: &Path, capacity: u64, mapped: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting needs root".into());
        }
        std::fs::File::options().read(true).write(true).open("/dev/fuse").map_err(|why| format!("/dev/fuse: {why}"))?;
        std::fs::create_dir_all(point).map_err(|why| format!("{}: {why}", point.display()))?;
        let behind = Arc::new(Mutex::new(Behind::new(capacity, mapped)));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("goldsync-simdisk".into()), MountOption::NoDev];
        config.acl = SessionACL::Owner;
        let session = fuser::spawn_mount(Door(behind.clone()), point, &config).map_err(|why| format!("FUSE: {why}"))?;
        Ok(Self { point: point.to_owned(), behind, session: Some(session) })
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The disk as it is.
    pub fn tree(&self) -> Tree {
        self.behind().tree.clone()
    }

    /// Exchanges the whole disk. Nobody may have a file of it open who still wants it.
    pub fn exchange(&self, tree: &Tree) {
        self.behind().exchange(tree);
    }

    /// Does what somebody does who comes before the kernel: a boot loader.
    pub fn perform(&self, ops: &[Op]) {
        let mut behind = self.behind();
        ops.iter().for_each(|op| behind.perform(op.clone()));
    }

    /// Notes what is done from now on, beginning with a disk at rest.
    pub fn record(&self) -> Tree {
        let mut behind = self.behind();
        behind.log = Some(Vec::new());
        behind.tree.clone()
    }

    /// What was done since `base` was taken by [`SimDisk::record`].
    pub fn recorded(&self, base: Tree) -> Recording {
        let mut behind = self.behind();
        behind.take_all_mapped();
        Recording { base, ops: behind.log.take().unwrap_or_default() }
    }

    /// Lets something go wrong.
    pub fn arm(&self, fault: Fault) {
        self.behind().faults.arm(fault);
    }

    /// So many bytes can still be written, although the disk says that it has room.
    pub fn full_after(&self, bytes: u64) {
        self.behind().faults.room = Some(bytes);
    }

    /// All is well again. How often something went wrong.
    pub fn lift(&self) -> u64 {
        std::mem::take(&mut self.behind().faults).struck
    }

    /// Turns a bit of a file, behind everybody's back.
    pub fn flip(&self, file: &Path, at: u64) {
        self.behind().flip(file, at);
    }
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        // By force, so that nobody who still has a file open keeps it, or waits for us for ever.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        if let Err(error) = rustix::mount::unmount(&self.point, flags) {
            eprintln!("left mounted: {}: {error}", self.point.display());
        }
        drop(self.session.take());
    }
}
