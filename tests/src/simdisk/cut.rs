//! Power cuts: which file systems may be found after one.
//!
//! Until it is synced, nothing is sure to last, and nothing is sure not to:
//!
//! | not synced yet          | what may be found                                                                     |
//! |-------------------------|---------------------------------------------------------------------------------------|
//! | bytes written           | all, none, or any of their sectors of 512 bytes, whatever was written before or after |
//! | a file's new length     | the old one or the new one; with the new one and without the bytes, zeros             |
//! | names (made, removed)   | each or not; but of one name's changes never a later one without the earlier ones     |
//! | a rename                | the same, as one step                                                                 |
//!
//! A file's sync covers its bytes and length, not its name; a folder's sync covers its names, not their files' bytes. Both is
//! what POSIX promises, and less than ext4, XFS and Btrfs do: who is safe here is safe there.
//!
//! **FAT** has no journal, and a folder's entry is name, place and length of a file in one. Below a folder of [`Laws::fat`]
//! a rename is what `fs/fat/namei_vfat.c` makes of it: the entry of the new name is made or taken over, *then* led to the
//! file's bytes (which is the file's own metadata, written with the file and not with the folder), *then* the old name is
//! removed; what was replaced gives its clusters back through the allocation table, which any sync writes out. These reach the
//! disk in any order. So a cut in the middle of a rename may leave the new name with old bytes, without bytes, or with what
//! is left in clusters that were given back, and the old name there or gone; and after a sync of the folder alone still so.
//!
//! **Firmware's variables** (efivarfs) below a folder of [`Laws::variables`]: one write is one variable, whole and at once, and so is
//! a removal. A name that was only made, or a file that was only cut, is nothing to the firmware.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tree::{Id, Node, Op, Tree};
use crate::seed::Seed;

/// Bytes that reach a disk together or not at all.
pub const SECTOR: usize = 512;

/// What is promised where.
#[derive(Clone, Debug, Default)]
pub struct Laws {
    /// Folders, by their paths, at and below which the laws of FAT hold.
    pub fat: Vec<PathBuf>,
    /// Folders whose files are a firmware's variables.
    pub variables: Vec<PathBuf>,
}

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of it is found: all that was held back is lost.
    Lost,
    /// All of it is found: as if only the process had been killed.
    Kept,
    /// Names are found, bytes are not: what renames do that overtake the data.
    Names,
    /// Bytes are found, names are not.
    Bytes,
    /// As it falls: each by itself, and bytes by the sector.
    Chance(u64),
}

impl Fate {
    /// The four plain ones, and `seeds` by chance.
    pub fn all(seeds: u64) -> impl Iterator<Item = Self> {
        [Self::Lost, Self::Kept, Self::Names, Self::Bytes].into_iter().chain((0..seeds).map(Self::Chance))
    }
}

/// A part of an operation that reaches the disk by itself.
enum Step<'a> {
    /// Bytes, a hole or a length: of the file.
    Bytes(Id, &'a Op),
    /// An atomic change of names.
    Names(&'a Op),
    /// An entry without bytes.
    Entry(Id, &'a OsString),
    /// An entry is led to a file.
    Lead(Id, &'a OsString, Id),
    /// An entry goes.
    Gone(Id, &'a OsString),
    /// A file's clusters are given back: who still finds it by an entry finds anything.
    Freed(Id),
    /// A firmware's variable, by its folder and name, has this value.
    Variable(Id, OsString, Arc<[u8]>),
}

/// Who makes a step last.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Cover {
    File(Id),
    Folder(Id),
    /// Any sync at all.
    Any,
}

/// The file system found after power was lost behind `ops`, which were carried out on `base`: a disk at rest.
pub fn after(base: &Tree, ops: &[Op], laws: &Laws, fate: Fate) -> Tree {
    let steps = Steps::of(base, ops, laws);
    // The same seed falls otherwise at each operation.
    let seed = if let Fate::Chance(seed) = fate { seed } else { 0 };
    let mut dice = Dice { fate, seed: Seed::new(seed << 32 | ops.len() as u64) };
    let mut found = base.clone();
    found.number_after(&steps.seen);
    let mut lost = HashSet::new();
    for (at, cover, step) in &steps.all {
        let sure = cover.iter().all(|cover| steps.synced.get(cover).is_some_and(|sync| sync > at));
        settle(&mut found, step, sure, &mut dice, &mut lost);
    }
    found
}

struct Steps<'a> {
    /// Which operation it is a part of, what makes it last, and what it is.
    all: Vec<(usize, Vec<Cover>, Step<'a>)>,
    /// The last sync of each.
    synced: HashMap<Cover, usize>,
    /// What all see while power is on: tells what a rename replaces.
    seen: Tree,
}

impl<'a> Steps<'a> {
    fn of(base: &Tree, ops: &'a [Op], laws: &Laws) -> Self {
        let mut steps = Self { all: Vec::new(), synced: HashMap::new(), seen: base.clone() };
        let [mut fat, mut variables] = [&laws.fat, &laws.variables].map(|folders| below(base, folders));
        for (at, op) in ops.iter().enumerate() {
            for law in [&mut fat, &mut variables] {
                if let Op::Create { folder, id, .. } = op
                    && law.contains(folder)
                {
                    law.insert(*id);
                }
            }
            if !steps.take_variable(at, op, &variables) {
                steps.take_apart(at, op, &fat);
            }
            steps.seen.apply(op);
        }
        steps
    }

    /// Whether an operation is about a firmware's variable.
    fn take_variable(&mut self, at: usize, op: &'a Op, variables: &HashSet<Id>) -> bool {
        match op {
            Op::Write { id, bytes, .. } if variables.contains(id) => {
                let path = self.seen.path_of(*id).expect("a variable with a name");
                let folder = path.parent().and_then(|folder| self.seen.find(folder)).expect("its folder");
                let name = path.file_name().expect("its name").to_owned();
                self.all.push((at, Vec::new(), Step::Variable(folder, name, bytes.clone())));
                true
            }
            Op::Remove { folder, name } if variables.contains(folder) => {
                self.all.push((at, Vec::new(), Step::Gone(*folder, name)));
                true
            }
            Op::Create { id, .. } | Op::Resize { id, .. } => variables.contains(id),
            _ => false,
        }
    }

    fn take_apart(&mut self, at: usize, op: &'a Op, fat: &HashSet<Id>) {
        let seen = &self.seen;
        let mut step = |cover: &[Cover], step| self.all.push((at, cover.to_vec(), step));
        match op {
            Op::Write { id, .. } | Op::Punch { id, .. } | Op::Resize { id, .. } => {
                step(&[Cover::File(*id)], Step::Bytes(*id, op));
            }
            Op::Create { folder, .. } => step(&[Cover::Folder(*folder)], Step::Names(op)),
            Op::Remove { folder, name } if fat.contains(folder) => {
                step(&[Cover::Folder(*folder)], Step::Gone(*folder, name));
                if let Some(id) = seen.child(*folder, name) {
                    step(&[Cover::Any], Step::Freed(id));
                }
            }
            Op::Remove { folder, .. } => step(&[Cover::Folder(*folder)], Step::Names(op)),
            Op::Rename { folder, name, to, new } if fat.contains(to) => {
                // The kernel asks for neither a name that is not there, nor for nothing.
                let Some(moved) = seen.child(*folder, name).filter(|_| (folder, name) != (to, new)) else { return };
                let replaced = seen.child(*to, new);
                if replaced.is_none() {
                    step(&[Cover::Folder(*to)], Step::Entry(*to, new));
                }
                step(&[Cover::File(moved)], Step::Lead(*to, new, moved));
                step(&[Cover::Folder(*folder)], Step::Gone(*folder, name));
                if let Some(id) = replaced {
                    step(&[Cover::Any], Step::Freed(id));
                }
            }
            Op::Rename { folder, to, .. } => step(&[Cover::Folder(*folder), Cover::Folder(*to)], Step::Names(op)),
            Op::Sync { id } => drop([Cover::File(*id), Cover::Any].map(|cover| self.synced.insert(cover, at))),
            Op::SyncFolder { id } => drop([Cover::Folder(*id), Cover::Any].map(|cover| self.synced.insert(cover, at))),
        }
    }
}

/// All that lies in some folders, and they.
fn below(tree: &Tree, folders: &[PathBuf]) -> HashSet<Id> {
    let inside = |path: &Path| folders.iter().any(|folder| path.starts_with(folder));
    tree.walk().into_iter().filter(|(path, _)| inside(path)).map(|(_, id)| id).collect()
}

struct Dice {
    fate: Fate,
    seed: Seed,
}

impl Dice {
    fn keeps_names(&mut self) -> bool {
        match self.fate {
            Fate::Lost | Fate::Bytes => false,
            Fate::Kept | Fate::Names => true,
            Fate::Chance(_) => self.seed.happens(0.5),
        }
    }

    fn keeps_bytes(&mut self) -> Torn {
        match self.fate {
            Fate::Lost | Fate::Names => Torn::None,
            Fate::Kept | Fate::Bytes => Torn::All,
            Fate::Chance(_) => [Torn::All, Torn::None, Torn::Some][self.seed.below(3) as usize],
        }
    }

    /// Whether a length lasts although bytes did not.
    fn keeps_length(&mut self) -> bool {
        matches!(self.fate, Fate::Names) || (matches!(self.fate, Fate::Chance(_)) && self.seed.happens(0.5))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Torn {
    All,
    None,
    Some,
}

fn settle<'a>(found: &mut Tree, step: &Step<'a>, sure: bool, dice: &mut Dice, lost: &mut HashSet<(Id, &'a OsString)>) {
    match step {
        Step::Bytes(id, op) => {
            let kept = if sure { Torn::All } else { dice.keeps_bytes() };
            bytes(found, *id, op, kept, dice);
        }
        Step::Names(op) => {
            let names = names_of(op);
            // Of one name's changes, none is found whose forerunner is not.
            let stands = names.iter().all(|name| !lost.contains(name));
            if sure || (stands && dice.keeps_names()) {
                found.apply(op);
                lost.retain(|name| !names.contains(name));
            } else {
                // Without a name it is there all the same, for the later steps that speak of it.
                if let Op::Create { id, node, .. } = op {
                    found.insert(*id, node.clone());
                }
                lost.extend(names);
            }
        }
        Step::Entry(folder, name) => {
            if sure || dice.keeps_names() {
                let empty = found.fresh();
                found.insert(empty, Node::File(Vec::new()));
                found.put(*folder, name, empty);
            }
        }
        Step::Lead(folder, name, id) => {
            // Without an entry there is nothing that could be led.
            if found.child(*folder, name).is_some() && (sure || dice.keeps_names()) {
                found.put(*folder, name, *id);
            }
        }
        Step::Gone(folder, name) => {
            if sure || dice.keeps_names() {
                found.take(*folder, name);
            }
        }
        Step::Freed(id) => {
            if sure || dice.keeps_names() {
                freed(found, *id, &mut dice.seed);
            }
        }
        Step::Variable(folder, name, value) => {
            let id = found.fresh();
            found.insert(id, Node::File(value.to_vec()));
            found.put(*folder, name, id);
        }
    }
}

fn names_of(op: &Op) -> Vec<(Id, &OsString)> {
    match op {
        Op::Create { folder, name, .. } | Op::Remove { folder, name } => vec![(*folder, name)],
        Op::Rename { folder, name, to, new } => vec![(*folder, name), (*to, new)],
        _ => Vec::new(),
    }
}

fn bytes(found: &mut Tree, id: Id, op: &Op, kept: Torn, dice: &mut Dice) {
    match (kept, op) {
        (Torn::All, op) => found.apply(op),
        (Torn::Some, Op::Write { at, bytes, .. }) => {
            sectors(*at, bytes.len() as u64, &mut dice.seed, |from, to| {
                found.write(id, from, &bytes[(from - at) as usize..(to - at) as usize]);
            });
            keep_length(found, id, op, dice);
        }
        (Torn::Some, Op::Punch { at, len, .. }) => {
            sectors(*at, *len, &mut dice.seed, |from, to| found.punch(id, from, to - from));
        }
        // A length has no halves.
        (Torn::Some, Op::Resize { .. }) if dice.keeps_length() => found.apply(op),
        _ => keep_length(found, id, op, dice),
    }
}

/// Without its bytes, a write may still have made the file longer.
fn keep_length(found: &mut Tree, id: Id, op: &Op, dice: &mut Dice) {
    let (Op::Write { at, bytes, .. }, Some(Node::File(file))) = (op, found.get(id)) else { return };
    let end = at + bytes.len() as u64;
    if end > file.len() as u64 && dice.keeps_length() {
        found.resize(id, end);
    }
}

/// Shows those sectors of a range that are kept.
fn sectors(at: u64, len: u64, seed: &mut Seed, mut keep: impl FnMut(u64, u64)) {
    let sector = SECTOR as u64;
    let mut from = at;
    while from < at + len {
        let to = (from / sector * sector + sector).min(at + len);
        if seed.happens(0.5) {
            keep(from, to);
        }
        from = to;
    }
}

/// Bytes of clusters that belong to nobody: as they were, or others'.
fn freed(found: &mut Tree, id: Id, seed: &mut Seed) {
    let len = match found.get(id) {
        Some(Node::File(bytes)) => bytes.len(),
        _ => return,
    };
    if seed.happens(0.5) {
        found.write(id, 0, &seed.noise(len));
    }
}
