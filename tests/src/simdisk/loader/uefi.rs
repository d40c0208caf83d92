//! A firmware's boot manager: `BootNext` once, else the first of `BootOrder` that it has something for (UEFI specification, 3.1).

use std::ffi::OsString;
use std::path::PathBuf;

use goldsync_agent::slot::SlotName;

use super::{Loader, Start};
use crate::simdisk::tree::{Op, Tree};

/// The namespace of the specification's own variables.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// A firmware, with its variables in one folder. What lies behind an entry it knows by number.
#[derive(Debug)]
pub struct Firmware {
    /// The folder.
    pub variables: PathBuf,
    /// Which entries start which slots; all others lead nowhere.
    pub entries: Vec<(u16, SlotName)>,
}

impl Firmware {
    /// The file of a variable.
    pub fn file(&self, name: &str) -> OsString {
        format!("{name}-{GLOBAL}").into()
    }

    /// The variable of an entry, and its value: active, with a description and neither path nor data.
    pub fn entry(number: u16, description: &str) -> (String, Vec<u8>) {
        let text = description.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        (format!("Boot{number:04X}"), [7, 0, 0, 0, 1, 0, 0, 0, 0, 0].into_iter().chain(text).collect())
    }

    /// The value of a list of entries.
    pub fn list(numbers: &[u16]) -> Vec<u8> {
        [7, 0, 0, 0].into_iter().chain(numbers.iter().flat_map(|number| number.to_le_bytes())).collect()
    }

    fn numbers(&self, disk: &Tree, name: &str) -> Vec<u16> {
        let value =
            disk.read(&self.variables.join(self.file(name))).and_then(|bytes| bytes.get(4..)).unwrap_or_default();
        value.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }
}

impl Loader for Firmware {
    fn start(&self, disk: &Tree) -> Start {
        let (once, order) = (self.numbers(disk, "BootNext"), self.numbers(disk, "BootOrder"));
        let leads = |number: &u16| self.entries.iter().find(|(entry, _)| entry == number).map(|(_, slot)| *slot);
        let slot = once.iter().take(1).chain(&order).find_map(leads);
        let folder = disk.find(&self.variables).expect("a firmware's variables");
        // It is gone before it is followed.
        let gone = Op::Remove { folder, name: self.file("BootNext") };
        Start { slot, ops: if once.is_empty() { Vec::new() } else { vec![gone] } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simdisk::loader::starts;
    use crate::simdisk::tree::{Node, ROOT};

    #[test]
    fn next_counts_once_and_what_leads_nowhere_is_passed_over() {
        let (a, b) = (SlotName::A, SlotName::B);
        let firmware = Firmware { variables: PathBuf::new(), entries: vec![(1, a), (2, b)] };
        let mut disk = Tree::default();
        let mut set = |id, name: &str, numbers: &[u16]| {
            let node = Node::File(Firmware::list(numbers));
            disk.apply(&Op::Create { folder: ROOT, name: firmware.file(name), id, node });
        };
        set(2, "BootOrder", &[3, 1]);
        set(3, "BootNext", &[2]);
        assert_eq!(starts(&firmware, &mut disk, 3), [Some(b), Some(a), Some(a)]);
    }
}
