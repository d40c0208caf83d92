//! GRUB with `packaging/grub/goldsync.cfg`, as its manual says that environment blocks and scripts are read.

use std::path::{Path, PathBuf};

use goldsync_agent::slot::SlotName;

use super::{Loader, Start};
use crate::simdisk::tree::{Op, Tree};

const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// GRUB, with its files in one folder.
#[derive(Debug)]
pub struct Grub {
    /// The folder of `grubenv` and `goldsync.env`.
    pub folder: PathBuf,
}

impl Loader for Grub {
    fn start(&self, disk: &Tree) -> Start {
        let path = self.folder.join("grubenv");
        let bytes = disk.read(&path).unwrap_or_default();
        let [slot, tries, good] = ["goldsync_slot", "goldsync_tries", "goldsync_good"].map(|name| load(bytes, name));
        let (asked, good) = (slot.parse::<SlotName>().ok(), good.parse::<SlotName>().ok());
        let Some(slot) = asked else { return self.by_the_other_file(disk, &slot) };
        let save = |variables: &[(&str, &str)]| written(disk, &path, bytes, variables);
        match (tries.as_str(), good) {
            ("-" | "", _) => only(slot),
            ("1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9", _) => {
                let left = tries.parse::<u8>().map_or(0, |tries| tries - 1).to_string();
                Start { slot: Some(slot), ops: save(&[("goldsync_tries", &left)]) }
            }
            // Both failed: a menu, and after five minutes the last one again.
            (_, None) => only(slot),
            (_, Some(good)) => {
                let back = [("goldsync_slot", good.as_str()), ("goldsync_tries", "3"), ("goldsync_good", "-")];
                Start { slot: Some(good), ops: save(&back) }
            }
        }
    }
}

impl Grub {
    fn by_the_other_file(&self, disk: &Tree, asked: &str) -> Start {
        let good = load(disk.read(&self.folder.join("goldsync.env")).unwrap_or_default(), "goldsync_good");
        match good.parse() {
            Ok(good) => only(good),
            // Nobody ever said anything.
            Err(_) if asked.is_empty() && good.is_empty() => only(SlotName::A),
            Err(_) => Start::default(),
        }
    }
}

fn only(slot: SlotName) -> Start {
    Start { slot: Some(slot), ops: Vec::new() }
}

/// A variable's value; nothing, if the block has no signature, or no such variable. (None of ours has anything escaped.)
fn load(block: &[u8], name: &str) -> String {
    let Some(rest) = block.strip_prefix(SIGNATURE) else { return String::new() };
    let value = |line: &[u8]| Some(line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec());
    let found = rest.split(|byte| *byte == b'\n').filter_map(value).next_back();
    String::from_utf8(found.unwrap_or_default()).unwrap_or_default()
}

/// `save_env`: values are exchanged where they stand, and the whole block is written over its sectors.
fn written(disk: &Tree, path: &Path, block: &[u8], variables: &[(&str, &str)]) -> Vec<Op> {
    let mut block = block.to_vec();
    for (name, value) in variables {
        let line = format!("\n{name}=");
        let at = block.windows(line.len()).position(|bytes| bytes == line.as_bytes());
        let Some(at) = at.map(|at| at + line.len()) else { continue };
        let len = block[at..].iter().position(|byte| *byte == b'\n').unwrap_or(0);
        block.splice(at..at + len, value.bytes());
        block.resize(1024, b'#');
    }
    let id = disk.find(path).expect("a block that was read");
    vec![Op::Write { id, at: 0, bytes: block.into() }, Op::Sync { id }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simdisk::loader::starts;
    use crate::simdisk::tree::{Node, ROOT};

    fn disk(text: &str) -> Tree {
        let mut block = [SIGNATURE, text.as_bytes()].concat();
        block.resize(1024, b'#');
        let mut disk = Tree::default();
        disk.apply(&Op::Create { folder: ROOT, name: "grubenv".into(), id: 2, node: Node::File(block) });
        disk
    }

    #[test]
    fn tries_are_counted_and_then_it_goes_back() {
        let grub = Grub { folder: PathBuf::new() };
        let mut disk = disk("goldsync_slot=b\ngoldsync_tries=2\ngoldsync_good=a\nsaved_entry=0\n");
        let (a, b) = (Some(SlotName::A), Some(SlotName::B));
        assert_eq!(starts(&grub, &mut disk, 7), [b, b, a, a, a, a, a]);
        assert_eq!(load(disk.read(Path::new("grubenv")).unwrap(), "saved_entry"), "0");
    }

    #[test]
    fn without_a_signature_nothing_is_read() {
        let grub = Grub { folder: PathBuf::new() };
        let mut torn = disk("goldsync_slot=b\n");
        torn.write(2, 0, b"?");
        assert_eq!(starts(&grub, &mut torn, 1), [Some(SlotName::A)], "as on a machine that was never told anything");
    }
}
