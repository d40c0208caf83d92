//! GRUB's environment block: variables in a file of 1024 bytes, which GRUB itself can write because the file keeps its blocks.
//!
//! ```text
//! # GRUB Environment Block\n        25 bytes
//! NAME=VALUE\n                      any number; in VALUE, a backslash keeps the byte after it from ending the line
//! # a comment\n                     any number
//! ####...                           up to the end
//! ```
//! Read as GRUB reads it, strange as that may be: a name is whatever comes before the next `=`, line ends included, and from the
//! first line that is not ended on, nothing is read. What others have put there is kept byte for byte.

/// Bytes of a block.
pub const SIZE: usize = 1024;

const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// Why bytes are no block, or variables do not fit one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrubenvError {
    /// Not the length of a block.
    #[error("has {found} bytes; a GRUB environment block has {SIZE}: make it anew with `grub-editenv FILE create`")]
    Size {
        /// Bytes there.
        found: u64,
    },
    /// Something else.
    #[error("does not begin with \"# GRUB Environment Block\": make it anew with `grub-editenv FILE create`")]
    Signature,
    /// Too much in it.
    #[error("would hold {needed} bytes of {SIZE}: take other variables out with `grub-editenv FILE unset NAME`")]
    Full {
        /// Bytes that all variables take.
        needed: usize,
    },
}

/// A block's lines, as they are written and without the line end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    lines: Vec<Vec<u8>>,
}

impl Block {
    /// Reads a block.
    pub fn read(bytes: &[u8]) -> Result<Self, GrubenvError> {
        if bytes.len() != SIZE {
            return Err(GrubenvError::Size { found: bytes.len() as u64 });
        }
        let mut rest = bytes.strip_prefix(SIGNATURE).ok_or(GrubenvError::Signature)?;
        let mut lines = Vec::new();
        while let Some(length) = line_length(rest) {
            lines.push(rest[..length].to_vec());
            rest = &rest[length + 1..];
        }
        Ok(Self { lines })
    }

    /// A variable's value; of several the last, which is the one that stays when GRUB loads them.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let mut values = self.lines.iter().filter_map(|line| value(line, name));
        values.next_back().map(unescape)
    }

    /// Puts these variables before all others, in this order. Values of the same length as before move nothing.
    pub fn set_first(&mut self, variables: &[(&str, &str)]) {
        self.lines.retain(|line| variables.iter().all(|(name, _)| value(line, name).is_none()));
        let lines = variables.iter().map(|(name, value)| [name.as_bytes(), b"=", &escape(value)].concat());
        self.lines.splice(0..0, lines);
    }

    /// The block's bytes.
    pub fn write(&self) -> Result<[u8; SIZE], GrubenvError> {
        let mut bytes = SIGNATURE.to_vec();
        for line in &self.lines {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        }
        let needed = bytes.len();
        bytes.resize(needed.max(SIZE), b'#');
        bytes.try_into().map_err(|_| GrubenvError::Full { needed })
    }
}

/// The length of the next variable or comment, or `None` where GRUB stops.
fn line_length(rest: &[u8]) -> Option<usize> {
    let comment = rest.first()? == &b'#';
    let mut at = if comment { 0 } else { rest.iter().position(|byte| *byte == b'=')? + 1 };
    loop {
        match rest.get(at)? {
            b'\n' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The value as written, if the line is that variable.
fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

fn escape(value: &str) -> Vec<u8> {
    let escaped = |byte: u8| if matches!(byte, b'\\' | b'\n') { vec![b'\\', byte] } else { vec![byte] };
    value.bytes().flat_map(escaped).collect()
}

fn unescape(value: &[u8]) -> Vec<u8> {
    let mut bytes = value.iter();
    let mut plain = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        plain.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::process::Command;

    /// A block with this after the signature.
    fn block(text: &str) -> Vec<u8> {
        let mut bytes = [SIGNATURE, text.as_bytes()].concat();
        bytes.resize(SIZE, b'#');
        bytes
    }

    #[test]
    fn variables_are_read_as_grub_reads_them() {
        let read = Block::read(&block("# WARNING: by hand\nsaved_entry=2\nx=a\\\\b\\\nc\nx=last\nbroken")).unwrap();
        assert_eq!(read.get("saved_entry").unwrap(), b"2");
        assert_eq!(read.get("x").unwrap(), b"last");
        assert_eq!(read.get("broken"), None);
        assert_eq!(read.get("saved"), None);
        let escaped = Block::read(&block("x=a\\\\b\\\nc\n")).unwrap();
        assert_eq!(escaped.get("x").unwrap(), b"a\\b\nc");
    }

    #[test]
    fn ours_come_first_and_others_stay_where_they_are() {
        let mut read = Block::read(&block("# by hand\nsaved_entry=2\nours=1\nboot_success=1\n")).unwrap();
        read.set_first(&[("ours", "3"), ("more", "a")]);
        let first = read.write().unwrap();
        assert_eq!(first.to_vec(), block("ours=3\nmore=a\n# by hand\nsaved_entry=2\nboot_success=1\n"));
        read.set_first(&[("ours", "2"), ("more", "b")]);
        let second = read.write().unwrap();
        let changed: Vec<usize> = (0..SIZE).filter(|at| first[*at] != second[*at]).collect();
        assert_eq!(changed, [SIGNATURE.len() + 5, SIGNATURE.len() + 12], "two bytes of the first sector");
    }

    #[test]
    fn what_is_no_block_is_refused_with_a_cure() {
        let short = Block::read(&[0; 1000]).unwrap_err();
        assert_eq!(short, GrubenvError::Size { found: 1000 });
        assert!(short.to_string().contains("grub-editenv FILE create"));
        assert_eq!(Block::read(&[b'#'; SIZE]).unwrap_err(), GrubenvError::Signature);
        let mut full = Block::read(&block(&format!("x={}\n", "y".repeat(990)))).unwrap();
        full.set_first(&[("ours", "123")]);
        assert_eq!(full.write().unwrap_err(), GrubenvError::Full { needed: 1027 });
    }

    #[test]
    fn grubs_own_tool_reads_what_is_written_here_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("grubenv");
        let edit = |arguments: &[&str]| Command::new("grub-editenv").arg(&file).args(arguments).output();
        let Ok(made) = edit(&["create"]) else {
            eprintln!("skipped: grub-editenv is not installed (package grub-common)");
            return;
        };
        assert!(made.status.success());
        assert!(edit(&["set", "saved_entry=a\\b", "kernelopts=root=x ro"]).unwrap().status.success());
        let mut block = Block::read(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(block.get("saved_entry").unwrap(), b"a\\b");
        assert_eq!(block.get("kernelopts").unwrap(), b"root=x ro");
        block.set_first(&[("goldsync_slot", "b"), ("goldsync_tries", "3")]);
        std::fs::write(&file, block.write().unwrap()).unwrap();
        assert!(edit(&["set", "goldsync_tries=2"]).unwrap().status.success());
        let listed = String::from_utf8(edit(&["list"]).unwrap().stdout).unwrap();
        assert_eq!(listed, "goldsync_slot=b\ngoldsync_tries=2\nsaved_entry=a\\b\nkernelopts=root=x ro\n");
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(Block::read(&bytes).unwrap().write().unwrap().to_vec(), bytes, "as the tool leaves it");
    }

    /// Bytes that look like a block.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let bytes =
            vec(prop_oneof![Just(b'\n'), Just(b'='), Just(b'\\'), Just(b'#'), Just(b'x'), any::<u8>()], 0..1200);
        bytes.prop_map(|mut bytes| {
            bytes.splice(0..0, SIGNATURE.iter().copied());
            bytes.resize(SIZE, b'#');
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_block_is_read_and_written_alike(bytes in nearly()) {
            let block = Block::read(&bytes).unwrap();
            prop_assert_eq!(Block::read(&block.write().unwrap()).unwrap(), block);
        }

        #[test]
        fn a_variable_that_is_set_is_read_and_no_other_is_touched(bytes in nearly(), value in "[ -~\n]{0,40}") {
            let before = Block::read(&bytes).unwrap();
            let mut after = before.clone();
            after.set_first(&[("goldsync_slot", &value)]);
            if let Ok(written) = after.write() {
                let read = Block::read(&written).unwrap();
                prop_assert_eq!(read.get("goldsync_slot").unwrap(), value.as_bytes());
                let others = |block: &Block| -> Vec<Vec<u8>> {
                    let ours = |line: &&Vec<u8>| line.starts_with(b"goldsync_slot=");
                    block.lines.iter().filter(|line| !ours(line)).cloned().collect()
                };
                prop_assert_eq!(others(&read), others(&before));
            }
        }
    }
}
