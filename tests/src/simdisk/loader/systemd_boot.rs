//! systemd-boot, as the Boot Loader Specification and its Automatic Boot Assessment say: entries by name and content, those with no tries
//! left last, tries counted by renaming. The rename is the firmware's, on FAT.

use std::cmp::{Ordering, Reverse};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use goldsync_agent::slot::SlotName;

use super::{Loader, Start};
use crate::simdisk::tree::{Op, Tree};

/// systemd-boot, with its ESP at a path.
#[derive(Debug)]
pub struct SystemdBoot {
    /// The ESP.
    pub esp: PathBuf,
    /// What a kernel may be, whole, by slot: none other is ever to be started.
    pub kernels: Vec<(SlotName, Vec<u8>)>,
}

/// An entry that can be started.
#[derive(Debug)]
struct Entry {
    file: OsString,
    /// Without the counter.
    stem: String,
    tries: Option<(u32, u32)>,
    sort_key: String,
    version: String,
    options: String,
    kernel: PathBuf,
}

impl Loader for SystemdBoot {
    fn start(&self, disk: &Tree) -> Start {
        let folder = self.esp.join("loader/entries");
        let Some(id) = disk.find(&folder) else { return Start::default() };
        let names = disk.names(id).into_iter().flatten().map(|(name, _)| name);
        let mut entries: Vec<Entry> = names.filter_map(|name| self.entry(disk, &folder, name)).collect();
        entries.sort_by(|a, b| a.order(b));
        let Some(first) = self.default(disk, &entries) else { return Start::default() };
        let slot = first.slot();
        self.check(disk, first, slot);
        let counted = first.tries.map(|(left, done)| {
            let new = format!("{}+{}-{}.conf", first.stem, left.saturating_sub(1), done + 1).into();
            let file = disk.child(id, &first.file).expect("an entry that was read");
            let rename = Op::Rename { folder: id, name: first.file.clone(), to: id, new };
            vec![rename, Op::Sync { id: file }, Op::SyncFolder { id }]
        });
        Start { slot, ops: counted.unwrap_or_default() }
    }
}

impl SystemdBoot {
    /// An entry, if it is one, and what it loads is there.
    fn entry(&self, disk: &Tree, folder: &Path, name: &OsString) -> Option<Entry> {
        let file = name.to_str()?;
        let stem = file.strip_suffix(".conf").filter(|stem| !stem.starts_with('.'))?;
        let text = String::from_utf8_lossy(disk.read(&folder.join(name))?).into_owned();
        let value = |key: &str| {
            let of_line =
                |line: &str| Some(line.trim().strip_prefix(key)?.strip_prefix([' ', '\t'])?.trim().to_owned());
            text.lines().find_map(of_line)
        };
        let kernel = self.esp.join(value("linux").or(value("efi"))?.trim_start_matches('/'));
        disk.read(&kernel)?;
        let (stem, tries) = counter(stem);
        let [sort_key, version, options] = ["sort-key", "version", "options"].map(|key| value(key).unwrap_or_default());
        Some(Entry { file: name.clone(), stem, tries, sort_key, version, options, kernel })
    }

    /// The first that `default` in loader.conf means, else the first.
    fn default<'a>(&self, disk: &Tree, entries: &'a [Entry]) -> Option<&'a Entry> {
        let text = String::from_utf8_lossy(disk.read(&self.esp.join("loader/loader.conf"))?).into_owned();
        let pattern = text.lines().find_map(|line| line.strip_prefix("default "));
        let prefix = pattern.and_then(|pattern| pattern.trim().strip_suffix('*'));
        let meant = |entry: &&Entry| prefix.is_some_and(|prefix| entry.stem.starts_with(prefix));
        entries.iter().find(meant).or(entries.first())
    }

    /// A kernel that is not whole, or not the slot's, must never be named by what starts.
    fn check(&self, disk: &Tree, entry: &Entry, slot: Option<SlotName>) {
        let kernel = disk.read(&entry.kernel).unwrap_or_default();
        let known = self.kernels.iter().any(|(of, whole)| Some(*of) == slot && whole == kernel);
        assert!(known, "{:?} starts {}, which is not whole", entry.file, entry.kernel.display());
    }
}

impl Entry {
    fn slot(&self) -> Option<SlotName> {
        self.options.split_whitespace().find_map(|word| word.strip_prefix("goldsync.slot="))?.parse().ok()
    }

    fn order(&self, other: &Self) -> Ordering {
        let bad = |entry: &Self| entry.tries.is_some_and(|(left, _)| left == 0);
        let keyed = |entry: &Self| Reverse(!entry.sort_key.is_empty());
        let first = (bad(self), keyed(self), &self.sort_key).cmp(&(bad(other), keyed(other), &other.sort_key));
        let versions = if self.sort_key.is_empty() { Ordering::Equal } else { natural(&other.version, &self.version) };
        let left = |entry: &Self| Reverse(entry.tries.map_or(u32::MAX, |(left, _)| left));
        first.then(versions).then(natural(&other.stem, &self.stem)).then(left(self).cmp(&left(other)))
    }
}

/// `goldsync-b-7+2-1`: its name, and tries left and done.
fn counter(stem: &str) -> (String, Option<(u32, u32)>) {
    let read = |text: &str| {
        let (left, done) = text.split_once('-').unwrap_or((text, "0"));
        Some((left.parse().ok()?, done.parse().ok()?))
    };
    match stem.rsplit_once('+').map(|(name, text)| (name, read(text))) {
        Some((name, Some(tries))) => (name.to_owned(), Some(tries)),
        _ => (stem.to_owned(), None),
    }
}

/// Numbers by what they are worth, all else by its letters: as much of the specification's order as our names need.
fn natural(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<(bool, String)> {
        let mut parts: Vec<(bool, String)> = Vec::new();
        for letter in text.chars() {
            let digit = letter.is_ascii_digit();
            match parts.last_mut() {
                Some((same, part)) if *same == digit => part.push(letter),
                _ => parts.push((digit, letter.to_string())),
            }
        }
        parts
    };
    let key = |(digit, part): (bool, String)| {
        let number = part.trim_start_matches('0').to_owned();
        if digit { (true, number.len(), number) } else { (false, 0, part) }
    };
    parts(a).into_iter().map(key).cmp(parts(b).into_iter().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simdisk::loader::starts;
    use crate::simdisk::tree::{Node, ROOT};

    #[test]
    fn entries_are_ordered_counted_and_passed_over() {
        let kernels = [SlotName::A, SlotName::B].map(|slot| (slot, b"kernel".to_vec())).to_vec();
        let loader = SystemdBoot { esp: PathBuf::new(), kernels };
        let mut disk = Tree::default();
        let mut add = |folder, name: &str, node| {
            let (id, name) = (disk.fresh(), name.into());
            disk.apply(&Op::Create { folder, name, id, node });
            id
        };
        let top = add(ROOT, "loader", Node::Folder(Default::default()));
        let entries = add(top, "entries", Node::Folder(Default::default()));
        add(top, "loader.conf", Node::File(b"timeout 3\ndefault goldsync-*\n".to_vec()));
        add(ROOT, "k", Node::File(b"kernel".to_vec()));
        for (name, slot, version, linux) in [
            ("goldsync-a-9.conf", "a", 9, "linux /k"),
            ("goldsync-b-10+2.conf", "b", 10, "linux /k"),
            ("goldsync-b-11.conf", "b", 11, "linux /nothing"),
            ("goldsync-b-12.conf", "b", 12, ""),
            ("zz.conf", "b", 99, "linux /k"),
        ] {
            let text = format!("sort-key g\nversion {version}\noptions ro goldsync.slot={slot}\n{linux}\n");
            add(entries, name, Node::File(text.into_bytes()));
        }
        let (a, b) = (Some(SlotName::A), Some(SlotName::B));
        assert_eq!(starts(&loader, &mut disk, 4), [b, b, a, a]);
        assert!(disk.find(Path::new("loader/entries/goldsync-b-10+0-2.conf")).is_some());
    }
}
