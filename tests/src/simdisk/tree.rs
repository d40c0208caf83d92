//! What a file system holds: folders, files and links, in memory, and the operations that change them.
//!
//! A file is known by its [`Id`], a name is an entry in a folder that leads to one. A file without a name stays: somebody may
//! have it open, and after a power cut an older name may lead to it again. Copies share what they have in common.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A file, whatever its name.
pub type Id = u64;

/// The topmost folder.
pub const ROOT: Id = 1;

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Bytes.
    File(Vec<u8>),
    /// Names.
    Folder(BTreeMap<OsString, Id>),
    /// A symbolic link.
    Link(PathBuf),
}

/// What changes a file system, or makes a change last. In the order in which it was asked for.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// A new file, folder or link gets a name.
    Create {
        /// In which folder.
        folder: Id,
        /// Its name.
        name: OsString,
        /// It.
        id: Id,
        /// As it begins.
        node: Node,
    },
    /// Bytes are written.
    Write {
        /// To which file.
        id: Id,
        /// Where.
        at: u64,
        /// Which.
        bytes: Arc<[u8]>,
    },
    /// A hole is punched: zeros, within the file's length.
    Punch {
        /// Into which file.
        id: Id,
        /// Where.
        at: u64,
        /// How many bytes.
        len: u64,
    },
    /// A file is cut, or extended with zeros.
    Resize {
        /// Which.
        id: Id,
        /// Its length from now on.
        len: u64,
    },
    /// A name goes.
    Remove {
        /// In which folder.
        folder: Id,
        /// Which.
        name: OsString,
    },
    /// A name becomes another, and replaces what had that.
    Rename {
        /// In which folder.
        folder: Id,
        /// Which.
        name: OsString,
        /// To which folder.
        to: Id,
        /// And name.
        new: OsString,
    },
    /// A file's bytes and length shall last.
    Sync {
        /// Which.
        id: Id,
    },
    /// A folder's names shall last.
    SyncFolder {
        /// Which.
        id: Id,
    },
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { folder, name, id, node } => {
                let what = match node {
                    Node::File(_) => "file",
                    Node::Folder(_) => "folder",
                    Node::Link(_) => "link",
                };
                write!(f, "create {what} #{id} as #{folder}/{}", name.display())
            }
            Self::Write { id, at, bytes } => write!(f, "write {} bytes at {at} of #{id}", bytes.len()),
            Self::Punch { id, at, len } => write!(f, "punch {len} bytes at {at} of #{id}"),
            Self::Resize { id, len } => write!(f, "resize #{id} to {len}"),
            Self::Remove { folder, name } => write!(f, "remove #{folder}/{}", name.display()),
            Self::Rename { folder, name, to, new } => {
                write!(f, "rename #{folder}/{} to #{to}/{}", name.display(), new.display())
            }
            Self::Sync { id } => write!(f, "sync #{id}"),
            Self::SyncFolder { id } => write!(f, "sync folder #{id}"),
        }
    }
}

/// A file system.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: HashMap<Id, Arc<Node>>,
    next: Id,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: HashMap::from([(ROOT, Arc::new(Node::Folder(BTreeMap::new())))]), next: ROOT + 1 }
    }
}

impl Tree {
    /// A number that no file has or had.
    pub fn fresh(&mut self) -> Id {
        self.next += 1;
        self.next - 1
    }

    /// Gives no number again that the other tree knows.
    pub fn number_after(&mut self, other: &Self) {
        self.next = self.next.max(other.next);
    }

    /// What a file is.
    pub fn get(&self, id: Id) -> Option<&Node> {
        self.nodes.get(&id).map(Arc::as_ref)
    }

    /// What a name in a folder leads to.
    pub fn child(&self, folder: Id, name: &OsStr) -> Option<Id> {
        self.names(folder)?.get(name).copied()
    }

    /// The names in a folder.
    pub fn names(&self, folder: Id) -> Option<&BTreeMap<OsString, Id>> {
        match self.get(folder)? {
            Node::Folder(names) => Some(names),
            _ => None,
        }
    }

    /// What a path from the top leads to; links are not followed.
    pub fn find(&self, path: &Path) -> Option<Id> {
        path.components().try_fold(ROOT, |folder, part| match part {
            Component::Normal(name) => self.child(folder, name),
            _ => Some(folder),
        })
    }

    /// A file's bytes, by its path.
    pub fn read(&self, path: &Path) -> Option<&[u8]> {
        match self.get(self.find(path)?)? {
            Node::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The path of a file that has a name.
    pub fn path_of(&self, id: Id) -> Option<PathBuf> {
        self.walk().into_iter().find(|(_, found)| *found == id).map(|(path, _)| path)
    }

    /// All names, and what they lead to; a folder before what is in it.
    pub fn walk(&self) -> Vec<(PathBuf, Id)> {
        let mut all = vec![(PathBuf::new(), ROOT)];
        let mut at = 0;
        while let Some((path, id)) = all.get(at).cloned() {
            let names = self.names(id).into_iter().flatten();
            all.extend(names.map(|(name, id)| (path.join(name), *id)));
            at += 1;
        }
        all
    }

    /// Bytes in files that have a name.
    pub fn used(&self) -> u64 {
        let bytes = |(_, id)| match self.get(id) {
            Some(Node::File(bytes)) => bytes.len() as u64,
            _ => 0,
        };
        self.walk().into_iter().map(bytes).sum()
    }

    /// A word for all that can be seen: names, bytes, lengths, targets. Equal trees have equal words.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for (path, id) in self.walk() {
            put(path.as_os_str().as_encoded_bytes());
            match self.get(id) {
                Some(Node::File(bytes)) => put(bytes),
                Some(Node::Link(target)) => put(target.as_os_str().as_encoded_bytes()),
                Some(Node::Folder(_)) | None => put(b""),
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Carries out an operation. What does not fit (a name that is not there) changes nothing: after a power cut, that is
    /// what is left of it.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { folder, name, id, node } => {
                self.insert(*id, node.clone());
                self.put(*folder, name, *id);
            }
            Op::Write { id, at, bytes } => self.write(*id, *at, bytes),
            Op::Punch { id, at, len } => self.punch(*id, *at, *len),
            Op::Resize { id, len } => self.resize(*id, *len),
            Op::Remove { folder, name } => drop(self.take(*folder, name)),
            Op::Rename { folder, name, to, new } => {
                if let Some(id) = self.take(*folder, name) {
                    self.put(*to, new, id);
                }
            }
            Op::Sync { .. } | Op::SyncFolder { .. } => {}
        }
    }

    /// Adds a file that nothing leads to yet.
    pub fn insert(&mut self, id: Id, node: Node) {
        self.nodes.insert(id, Arc::new(node));
        self.next = self.next.max(id + 1);
    }

    /// Lets a name lead to a file.
    pub fn put(&mut self, folder: Id, name: &OsStr, id: Id) {
        if let Some(Node::Folder(names)) = self.node(folder) {
            names.insert(name.to_owned(), id);
        }
    }

    /// Takes a name away; what it led to.
    pub fn take(&mut self, folder: Id, name: &OsStr) -> Option<Id> {
        match self.node(folder) {
            Some(Node::Folder(names)) => names.remove(name),
            _ => None,
        }
    }

    /// Overwrites bytes; beyond the end the file grows.
    pub fn write(&mut self, id: Id, at: u64, bytes: &[u8]) {
        if let Some(Node::File(file)) = self.node(id) {
            let (from, to) = (at as usize, at as usize + bytes.len());
            file.resize(file.len().max(to), 0);
            file[from..to].copy_from_slice(bytes);
        }
    }

    /// Makes bytes zero, within the file's length.
    pub fn punch(&mut self, id: Id, at: u64, len: u64) {
        if let Some(Node::File(file)) = self.node(id) {
            let to = (at.saturating_add(len) as usize).min(file.len());
            let from = (at as usize).min(to);
            file[from..to].fill(0);
        }
    }

    /// Cuts a file, or extends it with zeros.
    pub fn resize(&mut self, id: Id, len: u64) {
        if let Some(Node::File(file)) = self.node(id) {
            file.resize(len as usize, 0);
        }
    }

    fn node(&mut self, id: Id) -> Option<&mut Node> {
        self.nodes.get_mut(&id).map(Arc::make_mut)
    }
}
