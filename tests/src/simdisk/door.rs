//! The door: the kernel's requests, carried out on a [`Tree`] under a lock. Nothing is cached on the way, so that every read
//! and write of a program comes here as it was made, in pieces of at most 128 KiB.
//!
//! Files that a program maps to write have a second body in memory, which the kernel maps instead (FUSE passthrough, Linux 6.9).
//! Else the kernel would ask us to write out what was mapped while it holds our own process's memory, and both would wait for ever.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, MemfdFlags};

use super::fault::{Faults, On, What};
use super::tree::{Id, Node, Op, ROOT, Tree};

/// The most bytes in one request.
const PIECE: u32 = 128 << 10;
/// The kernel asks again each time.
const NEVER: Duration = Duration::ZERO;
const GRAIN: u64 = 4096;

/// What is behind the door.
#[derive(Debug)]
pub(super) struct Behind {
    pub(super) tree: Tree,
    /// What was done, while somebody wants to know.
    pub(super) log: Option<Vec<Op>>,
    pub(super) faults: Faults,
    /// How often the whole disk was exchanged: the kernel shall not take a new file for an old one of the same number.
    pub(super) epoch: u64,
    /// Bytes in all.
    pub(super) capacity: u64,
    /// The folder whose files may be mapped, and their second bodies.
    mapped: PathBuf,
    bodies: HashMap<Id, Body>,
    began: SystemTime,
}

#[derive(Debug)]
struct Body {
    file: File,
    known: BackingId,
}

impl Behind {
    pub(super) fn new(capacity: u64, mapped: &Path) -> Self {
        let (tree, log, faults, epoch, bodies) = Default::default();
        Self { tree, log, faults, epoch, capacity, mapped: mapped.to_owned(), bodies, began: SystemTime::now() }
    }

    /// Exchanges everything.
    pub(super) fn exchange(&mut self, tree: &Tree) {
        self.tree = tree.clone();
        self.epoch += 1;
        self.log = None;
        self.bodies.clear();
    }

    /// The body of a file that may be mapped; `open` makes it known to the kernel.
    fn body(&mut self, id: Id, open: impl FnOnce(&File) -> io::Result<BackingId>) -> io::Result<Option<&BackingId>> {
        let may_be = self.tree.path_of(id).is_some_and(|path| path.starts_with(&self.mapped));
        let bytes = match self.tree.get(id) {
            Some(Node::File(bytes)) if may_be => bytes,
            _ => return Ok(None),
        };
        let body = match self.bodies.entry(id) {
            Entry::Occupied(body) => body.into_mut(),
            Entry::Vacant(place) => {
                let file = File::from(rustix::fs::memfd_create("goldsync-simdisk", MemfdFlags::CLOEXEC)?);
                file.write_all_at(bytes, 0)?;
                let known = open(&file)?;
                place.insert(Body { file, known })
            }
        };
        Ok(Some(&body.known))
    }

    /// What was written by a mapping is as good as written, and as little synced.
    fn take_mapped(&mut self, id: Id) {
        let Some(body) = self.bodies.get(&id) else { return };
        let Some(Node::File(bytes)) = self.tree.get(id) else { return };
        let mut now = vec![0; bytes.len()];
        if body.file.read_exact_at(&mut now, 0).is_ok() && now != *bytes {
            self.perform(Op::Write { id, at: 0, bytes: now.into() });
        }
    }

    /// The same for all that is mapped.
    pub(super) fn take_all_mapped(&mut self) {
        let ids: Vec<Id> = self.bodies.keys().copied().collect();
        ids.into_iter().for_each(|id| self.take_mapped(id));
    }

    /// Lets a file's second body follow.
    fn follow(&self, op: &Op) -> io::Result<()> {
        let body = |id| self.bodies.get(id).map(|body| &body.file);
        match op {
            Op::Write { id, at, bytes } => body(id).map_or(Ok(()), |file| file.write_all_at(bytes, *at)),
            Op::Punch { id, at, len } => {
                body(id).map_or(Ok(()), |file| file.write_all_at(&vec![0; *len as usize], *at))
            }
            Op::Resize { id, len } => body(id).map_or(Ok(()), |file| file.set_len(*len)),
            _ => Ok(()),
        }
    }

    fn ino(&self, id: Id) -> INodeNo {
        if id == ROOT { INodeNo::ROOT } else { INodeNo(self.epoch << 40 | id) }
    }

    fn id(&self, ino: INodeNo) -> Result<Id, Errno> {
        match ino.0 {
            ROOT => Ok(ROOT),
            ino if ino >> 40 == self.epoch => Ok(ino & ((1 << 40) - 1)),
            _ => Err(Errno::ESTALE),
        }
    }

    fn node(&self, ino: INodeNo) -> Result<(Id, &Node), Errno> {
        let id = self.id(ino)?;
        Ok((id, self.tree.get(id).ok_or(Errno::ENOENT)?))
    }

    fn attr(&self, id: Id) -> Result<FileAttr, Errno> {
        let (kind, perm, size) = match self.tree.get(id).ok_or(Errno::ENOENT)? {
            Node::File(bytes) => (FileType::RegularFile, 0o600, bytes.len()),
            Node::Folder(names) => (FileType::Directory, 0o700, names.len()),
            Node::Link(target) => (FileType::Symlink, 0o777, target.as_os_str().len()),
        };
        let (size, time) = (size as u64, self.began);
        Ok(FileAttr {
            ino: self.ino(id),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: GRAIN as u32,
            flags: 0,
        })
    }

    /// Carries out an operation and notes it. What is done to a file without a name cannot be found again, and is not noted.
    pub(super) fn perform(&mut self, op: Op) {
        let named = match op {
            Op::Write { id, .. } | Op::Punch { id, .. } | Op::Resize { id, .. } | Op::Sync { id } => {
                self.tree.path_of(id).is_some()
            }
            _ => true,
        };
        self.tree.apply(&op);
        self.follow(&op).expect("a file's second body in memory");
        if let Some(log) = self.log.as_mut().filter(|_| named) {
            log.push(op);
        }
    }

    /// What goes wrong with this, if it does not simply fail.
    fn strike(&mut self, id: Id, name: Option<&OsStr>, on: On) -> Result<Option<What>, Errno> {
        if self.faults.none() {
            return Ok(None);
        }
        let path = self.tree.path_of(id).map(|path| name.map_or(path.clone(), |name| path.join(name)));
        match path.and_then(|path| self.faults.strike(&path, on)) {
            Some(What::Fail(errno)) => Err(errno),
            struck => Ok(struck),
        }
    }

    /// A bit turns, if that is what goes wrong.
    fn rot(&mut self, what: Option<What>) {
        if let Some(What::Rot { file, at }) = what {
            self.flip(&file, at);
        }
    }

    /// Turns a bit of a file, behind everybody's back.
    pub(super) fn flip(&mut self, file: &Path, at: u64) {
        let byte = self.tree.read(file).and_then(|bytes| bytes.get(at as usize)).copied();
        if let (Some(id), Some(byte)) = (self.tree.find(file), byte) {
            self.tree.write(id, at, &[byte ^ 4]);
        }
    }

    fn create(&mut self, folder: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let folder = self.id(folder)?;
        if self.tree.child(folder, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let struck = self.strike(folder, Some(name), On::Name)?;
        let (id, name) = (self.tree.fresh(), name.to_owned());
        self.perform(Op::Create { folder, name, id, node });
        self.rot(struck);
        self.attr(id)
    }

    fn remove(&mut self, folder: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let folder = self.id(folder)?;
        let id = self.tree.child(folder, name).ok_or(Errno::ENOENT)?;
        if self.tree.names(id).is_some_and(|names| !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.perform(Op::Remove { folder, name: name.to_owned() });
        Ok(())
    }

    fn rename(&mut self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr), flags: RenameFlags) -> Result<(), Errno> {
        let (folder, target) = (self.id(from.0)?, self.id(to.0)?);
        self.tree.child(folder, from.1).ok_or(Errno::ENOENT)?;
        let there = self.tree.child(target, to.1);
        if flags == RenameFlags::RENAME_NOREPLACE && there.is_some() {
            return Err(Errno::EEXIST);
        }
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return Err(Errno::EINVAL);
        }
        let struck = self.strike(target, Some(to.1), On::Name)?;
        self.perform(Op::Rename { folder, name: from.1.to_owned(), to: target, new: to.1.to_owned() });
        self.rot(struck);
        Ok(())
    }

    fn read(&mut self, ino: INodeNo, at: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let id = self.id(ino)?;
        self.take_mapped(id);
        let struck = self.strike(id, None, On::Read)?;
        let size = if let Some(What::Short(most)) = struck { size.min(most) } else { size };
        let Node::File(bytes) = self.node(ino)?.1 else { return Err(Errno::EISDIR) };
        let from = (at as usize).min(bytes.len());
        let to = (from + size as usize).min(bytes.len());
        let read = bytes[from..to].to_vec();
        self.rot(struck);
        Ok(read)
    }

    fn write(&mut self, ino: INodeNo, at: u64, bytes: &[u8]) -> Result<u32, Errno> {
        let id = self.id(ino)?;
        let struck = self.strike(id, None, On::Write)?;
        let asked =
            if let Some(What::Short(most)) = struck { most.min(bytes.len() as u32) } else { bytes.len() as u32 };
        let len = self.faults.fit(asked);
        if len == 0 && asked > 0 {
            return Err(Errno::ENOSPC);
        }
        if !matches!(struck, Some(What::Forget)) {
            self.perform(Op::Write { id, at, bytes: bytes[..len as usize].into() });
        }
        self.rot(struck);
        Ok(len)
    }

    fn resize(&mut self, ino: INodeNo, len: u64) -> Result<(), Errno> {
        match self.node(ino)? {
            (id, Node::File(bytes)) if bytes.len() as u64 != len => self.perform(Op::Resize { id, len }),
            _ => {}
        }
        Ok(())
    }

    fn fallocate(&mut self, ino: INodeNo, at: u64, len: u64, mode: i32) -> Result<(), Errno> {
        let (id, _) = self.node(ino)?;
        match FallocateFlags::from_bits_retain(mode as u32) {
            mode if mode == FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE => {
                self.strike(id, None, On::Punch)?;
                self.perform(Op::Punch { id, at, len });
                Ok(())
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn sync(&mut self, ino: INodeNo, op: impl FnOnce(Id) -> Op) -> Result<(), Errno> {
        let id = self.id(ino)?;
        let struck = self.strike(id, None, On::Sync)?;
        self.perform(op(id));
        self.rot(struck);
        Ok(())
    }
}

/// The file system that the kernel speaks to.
#[derive(Debug)]
pub(super) struct Door(pub(super) Arc<Mutex<Behind>>);

impl Door {
    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, folder: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let behind = self.behind();
        let id = behind.tree.child(behind.id(folder)?, name).ok_or(Errno::ENOENT)?;
        behind.attr(id)
    }

    fn changed(&self, ino: INodeNo, size: Option<u64>) -> Result<FileAttr, Errno> {
        let mut behind = self.behind();
        size.map_or(Ok(()), |size| behind.resize(ino, size))?;
        let id = behind.id(ino)?;
        behind.attr(id)
    }
}

/// Answers with what a request came to.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:ident => $good:expr) => {
        match $result {
            Ok($value) => $good,
            Err(errno) => $reply.error(errno),
        }
    };
}

const FIRST: Generation = Generation(0);
const HANDLE: FileHandle = FileHandle(0);
const PAST_CACHE: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

impl Filesystem for Door {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let fail = |_| io::Error::other("FUSE without mappings and passthrough; Linux 6.9 has both");
        let wanted = InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP | InitFlags::FUSE_PASSTHROUGH;
        config.add_capabilities(wanted).map_err(fail)?;
        config.set_max_stack_depth(1).map_err(|_| io::Error::other("the depth of file systems"))?;
        config.set_max_write(PIECE).map(drop).map_err(|_| io::Error::other("the size of a write"))
    }

    fn lookup(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.look(folder, name), attr => reply.entry(&NEVER, &attr, FIRST));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.changed(ino, None), attr => reply.attr(&NEVER, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(reply, self.changed(ino, size), attr => reply.attr(&NEVER, &attr));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.behind().node(ino) {
            Ok((_, Node::Link(target))) => reply.data(target.as_os_str().as_encoded_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(&self, _: &Request, folder: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.behind().create(folder, name, Node::Folder(Default::default()));
        answer!(reply, made, attr => reply.entry(&NEVER, &attr, FIRST));
    }

    fn symlink(&self, _: &Request, folder: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.behind().create(folder, name, Node::Link(target.to_owned()));
        answer!(reply, made, attr => reply.entry(&NEVER, &attr, FIRST));
    }

    fn create(&self, _: &Request, folder: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut behind = self.behind();
        let made = behind.create(folder, name, Node::File(Vec::new()));
        let made = made.and_then(|attr| Ok((attr, behind.id(attr.ino)?)));
        answer!(reply, made, made => {
            let (attr, id) = made;
            match behind.body(id, |file| reply.open_backing(file)) {
                Ok(Some(body)) => reply.created_passthrough(&NEVER, &attr, FIRST, HANDLE, PAST_CACHE, body),
                Ok(None) => reply.created(&NEVER, &attr, FIRST, HANDLE, PAST_CACHE),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut behind = self.behind();
        answer!(reply, behind.id(ino), id => match behind.body(id, |file| reply.open_backing(file)) {
            Ok(Some(body)) => reply.opened_passthrough(HANDLE, PAST_CACHE, body),
            Ok(None) => reply.opened(HANDLE, PAST_CACHE),
            Err(error) => reply.error(error.into()),
        });
    }

    fn unlink(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.behind().remove(folder, name), _done => reply.ok());
    }

    fn rmdir(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.behind().remove(folder, name), _done => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        folder: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.behind().rename((folder, name), (to, new), flags), _done => reply.ok());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(reply, self.behind().read(ino, at, size), bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(reply, self.behind().write(ino, at, bytes), written => reply.written(written));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.behind().sync(ino, |id| Op::Sync { id }), _done => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.behind().sync(ino, |id| Op::SyncFolder { id }), _done => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let behind = self.behind();
        let names = match behind.node(ino) {
            Ok((_, Node::Folder(names))) => names,
            Ok(_) => return reply.error(Errno::ENOTDIR),
            Err(errno) => return reply.error(errno),
        };
        for (next, (name, id)) in (1..).zip(names).skip(offset as usize) {
            let kind = match behind.tree.get(*id) {
                Some(Node::Folder(_)) => FileType::Directory,
                Some(Node::Link(_)) => FileType::Symlink,
                _ => FileType::RegularFile,
            };
            if reply.add(behind.ino(*id), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let behind = self.behind();
        let (all, free) = (behind.capacity / GRAIN, behind.capacity.saturating_sub(behind.tree.used()) / GRAIN);
        reply.statfs(all, free, free, 1 << 20, 1 << 20, GRAIN as u32, 255, GRAIN as u32);
    }

    fn fallocate(&self, _: &Request, ino: INodeNo, _: FileHandle, at: u64, len: u64, mode: i32, reply: ReplyEmpty) {
        answer!(reply, self.behind().fallocate(ino, at, len, mode), _done => reply.ok());
    }
}
