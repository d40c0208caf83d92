//! U-Boot with its environment twice, CONFIG_BOOTCOUNT_ENV, and scripts that go back in `altbootcmd`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use goldsync_agent::slot::SlotName;

use super::{Loader, Start};
use crate::simdisk::tree::{Op, Tree};

/// U-Boot, with two copies of its environment behind each other in a file.
#[derive(Debug)]
pub struct Uboot {
    /// The file.
    pub file: PathBuf,
    /// Bytes of a copy.
    pub size: usize,
}

type Variables = BTreeMap<String, String>;

impl Uboot {
    /// Two whole copies, with these variables.
    pub fn made(&self, variables: &[(&str, &str)]) -> Vec<u8> {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        [self.copy(&variables, 1), self.copy(&variables, 0)].concat()
    }

    fn copy(&self, variables: &Variables, flag: u8) -> Vec<u8> {
        let lines: String = variables.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
        let mut content = lines.into_bytes();
        content.resize(self.size - 5, 0);
        [&crc(&content).to_le_bytes()[..], &[flag], &content].concat()
    }

    /// The copy that counts: its number, flag and variables.
    fn current(&self, file: &[u8]) -> Option<(usize, u8, Variables)> {
        let read = |at: usize| {
            let copy = file.get(at * self.size..(at + 1) * self.size)?;
            let (head, content) = copy.split_at(5);
            let whole = crc(content).to_le_bytes() == head[..4];
            let lines = content.split(|byte| *byte == 0).take_while(|line| !line.is_empty());
            let pair = |line| String::from_utf8_lossy(line).split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned()));
            whole.then(|| (at, head[4], lines.filter_map(pair).collect()))
        };
        match (read(0), read(1)) {
            (Some(first), Some(second)) => {
                let newer = match (first.1, second.1) {
                    (255, 0) => true,
                    (0, 255) => false,
                    (first, second) => second > first,
                };
                Some(if newer { second } else { first })
            }
            (first, second) => first.or(second),
        }
    }
}

impl Loader for Uboot {
    fn start(&self, disk: &Tree) -> Start {
        let file = disk.read(&self.file).unwrap_or_default();
        let Some((at, flag, mut variables)) = self.current(file) else { return Start::default() };
        let value = |variables: &Variables, name: &str| variables.get(name).cloned().unwrap_or_default();
        let slot = |variables: &Variables, name: &str| value(variables, name).parse::<SlotName>().ok();
        if value(&variables, "upgrade_available") != "1" {
            return Start { slot: slot(&variables, "goldsync_slot"), ops: Vec::new() };
        }
        let number = |variables: &Variables, name: &str| value(variables, name).parse::<u64>().unwrap_or(0);
        let count = number(&variables, "bootcount") + 1;
        variables.insert("bootcount".into(), count.to_string());
        let id = disk.find(&self.file).expect("a file that was read");
        // `saveenv` writes the copy that does not count, and then counts on that one.
        let save = |variables: &Variables, nth: u8| {
            let to = if nth % 2 == 1 { 1 - at } else { at };
            let bytes = self.copy(variables, flag.wrapping_add(nth)).into();
            vec![Op::Write { id, at: (to * self.size) as u64, bytes }, Op::Sync { id }]
        };
        let mut ops = save(&variables, 1);
        if count > number(&variables, "bootlimit")
            && let Some(good) = slot(&variables, "goldsync_good")
        {
            let back = [("goldsync_slot", good.as_str()), ("goldsync_good", "-"), ("bootcount", "0")];
            back.into_iter().for_each(|(name, value)| drop(variables.insert(name.into(), value.into())));
            ops.extend(save(&variables, 2));
        }
        // Both failed: it says so, waits, and tries the last one again.
        Start { slot: slot(&variables, "goldsync_slot"), ops }
    }
}

fn crc(bytes: &[u8]) -> u32 {
    let one = |crc: u32, byte: &u8| {
        let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        (0..8).fold(crc ^ u32::from(*byte), step)
    };
    !bytes.iter().fold(!0, one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simdisk::loader::starts;
    use crate::simdisk::tree::{Node, ROOT};

    #[test]
    fn starts_are_counted_in_turns_and_then_it_goes_back() {
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
        let loader = Uboot { file: "env".into(), size: 256 };
        let variables =
            [("goldsync_slot", "b"), ("goldsync_good", "a"), ("upgrade_available", "1"), ("bootlimit", "2")];
        let node = Node::File(loader.made(&variables));
        let mut disk = Tree::default();
        disk.apply(&Op::Create { folder: ROOT, name: "env".into(), id: 2, node });
        let (a, b) = (Some(SlotName::A), Some(SlotName::B));
        assert_eq!(starts(&loader, &mut disk, 6), [b, b, a, a, a, a]);
        // One copy torn: the other counts.
        disk.punch(2, 0, 20);
        assert_eq!(starts(&loader, &mut disk, 1), [a]);
        disk.punch(2, 256, 20);
        disk.punch(2, 0, 20);
        assert_eq!(starts(&loader, &mut disk, 1), [None]);
    }
}
