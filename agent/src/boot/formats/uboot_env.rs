//! U-Boot's environment: variables with a checksum, in one copy or in two of which the newer whole one counts.
//!
//! ```text
//! one copy     0  u32  CRC-32 of what follows
//!              4       NAME=VALUE\0 NAME=VALUE\0 ... \0, then anything up to the copy's size
//! of two       0  u32  CRC-32 of what follows the flag
//!              4  u8   flag: the copy's age; 0 is newer than 255, else the greater one is newer, and of equals the first
//!              5       variables, as above
//! ```
//! Numbers are little-endian. What others have put there is kept, in its order.

/// The largest copy that is read; boards have 4 KiB to 256 KiB.
pub const SIZE_MAX: usize = 16 << 20;

/// Why bytes are no environment, or variables do not fit one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UbootEnvError {
    /// Not whole.
    #[error("has the checksum {found:08x}, its content {computed:08x}: it was torn or never written")]
    Checksum {
        /// As it stands there.
        found: u32,
        /// Of what stands there.
        computed: u32,
    },
    /// Too small to hold anything.
    #[error("has {found} bytes, which are too few")]
    Size {
        /// Bytes there.
        found: usize,
    },
    /// The list of variables has no end, or something that is no variable in it.
    #[error("holds no list of NAME=VALUE that ends with an empty one")]
    List,
    /// Too much in it.
    #[error("would hold {needed} bytes of {size}: take other variables out with `fw_setenv NAME`")]
    Full {
        /// Bytes that all variables take.
        needed: usize,
        /// Bytes of a copy.
        size: usize,
    },
}

/// Variables, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    list: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Variables {
    /// A variable's value; of several the last, which is the one that stays when U-Boot loads them.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.list.iter().rfind(|(other, _)| other == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Sets a variable, in its place or at the end. Neither may have a zero in it, nor the name a `=`.
    pub fn set(&mut self, name: &str, value: &str) {
        let mut found = false;
        self.list.retain_mut(|(other, old)| {
            let same = other == name.as_bytes();
            let first = same && !found;
            if first {
                (*old, found) = (value.as_bytes().to_vec(), true);
            }
            first || !same
        });
        if !found {
            self.list.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
    }

    fn read(mut rest: &[u8]) -> Result<Self, UbootEnvError> {
        let mut list = Vec::new();
        loop {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(UbootEnvError::List)?;
            let (variable, after) = (&rest[..end], &rest[end + 1..]);
            if variable.is_empty() {
                return Ok(Self { list });
            }
            let cut =
                variable.iter().position(|byte| *byte == b'=').filter(|cut| *cut > 0).ok_or(UbootEnvError::List)?;
            list.push((variable[..cut].to_vec(), variable[cut + 1..].to_vec()));
            rest = after;
        }
    }

    fn write(&self, size: usize) -> Result<Vec<u8>, UbootEnvError> {
        let lines = self.list.iter().flat_map(|(name, value)| [name.as_slice(), b"=", value, b"\0"]);
        let mut bytes = lines.collect::<Vec<_>>().concat();
        // An empty list is two zeros long, as U-Boot writes it.
        let needed = (bytes.len() + 1).max(2);
        if needed > size {
            return Err(UbootEnvError::Full { needed, size });
        }
        bytes.resize(size, 0);
        Ok(bytes)
    }
}

/// A copy that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Its age, if it is one of two.
    pub flag: Option<u8>,
    /// What it says.
    pub variables: Variables,
}

impl Copy {
    /// Reads a copy, one of two or the only one.
    pub fn read(bytes: &[u8], of_two: bool) -> Result<Self, UbootEnvError> {
        let small = UbootEnvError::Size { found: bytes.len() };
        let (found, rest) = bytes.split_first_chunk::<4>().ok_or(small.clone())?;
        let (flag, data) = if of_two {
            let (flag, data) = rest.split_first().ok_or(small.clone())?;
            (Some(*flag), data)
        } else {
            (None, rest)
        };
        if data.len() < 2 || bytes.len() > SIZE_MAX {
            return Err(small);
        }
        let (found, computed) = (u32::from_le_bytes(*found), crc32(data));
        if found != computed {
            return Err(UbootEnvError::Checksum { found, computed });
        }
        Ok(Self { flag, variables: Variables::read(data)? })
    }

    /// The bytes of a copy of this size.
    pub fn write(&self, size: usize) -> Result<Vec<u8>, UbootEnvError> {
        let head = 4 + self.flag.iter().len();
        let data = self.variables.write(size.saturating_sub(head))?;
        Ok([&crc32(&data).to_le_bytes()[..], self.flag.as_slice(), &data].concat())
    }
}

/// Which of two copies counts, by their flags: 0 or 1.
pub fn newer(first: u8, second: u8) -> usize {
    match (first, second) {
        (255, 0) => 1,
        (0, 255) => 0,
        _ => usize::from(second > first),
    }
}

/// CRC-32 as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(!0, step)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let (mut crc, mut bit) = (at as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::fs;
    use std::process::Command;

    fn variables(list: &[(&str, &str)]) -> Variables {
        let mut variables = Variables::default();
        list.iter().for_each(|(name, value)| variables.set(name, value));
        variables
    }

    #[test]
    fn the_checksum_is_zlibs() {
        assert_eq!((crc32(b""), crc32(b"123456789")), (0, 0xcbf4_3926));
    }

    #[test]
    fn a_copy_is_laid_out_as_u_boot_has_it() {
        let copy = Copy { flag: Some(7), variables: variables(&[("a", "1"), ("b", "x=y")]) };
        let bytes = copy.write(20).unwrap();
        assert_eq!(&bytes[4..], b"\x07a=1\0b=x=y\0\0\0\0\0\0");
        assert_eq!(bytes[..4], crc32(&bytes[5..]).to_le_bytes());
        assert_eq!(Copy::read(&bytes, true).unwrap(), copy);
        let single = Copy { flag: None, ..copy };
        let bytes = single.write(16).unwrap();
        assert_eq!(&bytes[4..], b"a=1\0b=x=y\0\0\0");
        assert_eq!(Copy::read(&bytes, false).unwrap(), single);
        assert_eq!(
            Copy::read(&Copy { flag: None, variables: variables(&[]) }.write(8).unwrap(), false).unwrap().variables,
            variables(&[])
        );
    }

    #[test]
    fn variables_keep_their_places() {
        let mut list = Variables::read(b"x=1\0y=2\0x=3\0\0\xff\xff").unwrap();
        assert_eq!((list.get("x"), list.get("y"), list.get("z")), (Some(&b"3"[..]), Some(&b"2"[..]), None));
        list.set("x", "4");
        list.set("z", "");
        assert_eq!(list.write(20).unwrap(), *b"x=4\0y=2\0z=\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_is_torn_or_no_list_is_refused() {
        let bytes = Copy { flag: Some(1), variables: variables(&[("a", "1")]) }.write(32).unwrap();
        for at in (0..32).filter(|at| *at != 4) {
            let mut torn = bytes.clone();
            torn[at] ^= 0x10;
            assert!(matches!(Copy::read(&torn, true), Err(UbootEnvError::Checksum { .. })), "{at}");
        }
        for list in [&b"a=1\0b=2\0"[..], b"a=1", b"a\0\0", b"=1\0\0"] {
            assert_eq!(Variables::read(list), Err(UbootEnvError::List));
        }
        assert_eq!(Copy::read(&[0; 5], true), Err(UbootEnvError::Size { found: 5 }));
        let full = Copy { flag: None, variables: variables(&[("abc", "1234567")]) };
        assert_eq!(full.write(16), Err(UbootEnvError::Full { needed: 13, size: 12 }));
    }

    #[test]
    fn the_newer_copy_is_the_one_after() {
        for (first, second, expected) in [(1, 2, 1), (2, 1, 0), (3, 3, 0), (255, 0, 1), (0, 255, 0), (254, 255, 1)] {
            assert_eq!(newer(first, second), expected, "{first} {second}");
        }
    }

    #[test]
    fn u_boots_own_tools_read_what_is_written_here_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("list"), "bootcmd=run goldsync\nbootlimit=3\n").unwrap();
        let made = Command::new("mkenvimage").args(["-r", "-s", "4096", "-o", &path("one"), &path("list")]).output();
        let Ok(made) = made else {
            eprintln!("skipped: mkenvimage is not installed (package u-boot-tools)");
            return;
        };
        assert!(made.status.success());
        let copy = Copy::read(&fs::read(path("one")).unwrap(), true).unwrap();
        assert_eq!(copy.variables, variables(&[("bootcmd", "run goldsync"), ("bootlimit", "3")]));
        let mut next = copy.clone();
        next.variables.set("goldsync_slot", "b");
        next.flag = copy.flag.map(|flag| flag.wrapping_add(1));
        fs::write(path("two"), next.write(4096).unwrap()).unwrap();
        fs::write(path("config"), format!("{} 0 0x1000\n{} 0 0x1000\n", path("one"), path("two"))).unwrap();
        let Ok(printed) = Command::new("fw_printenv").args(["-c", &path("config")]).output() else {
            eprintln!("skipped in part: fw_printenv is not installed (package libubootenv-tool)");
            return;
        };
        let mut lines: Vec<_> = String::from_utf8(printed.stdout).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["bootcmd=run goldsync", "bootlimit=3", "goldsync_slot=b"]);
        let set = Command::new("fw_setenv").args(["-c", &path("config"), "goldsync_slot", "a"]).output().unwrap();
        assert!(set.status.success(), "{set:?}");
        let copies = ["one", "two"].map(|name| Copy::read(&fs::read(path(name)).unwrap(), true).unwrap());
        let flags = copies.each_ref().map(|copy| copy.flag.unwrap());
        assert_eq!(newer(flags[0], flags[1]), 0, "the tool wrote the copy that did not count: {flags:?}");
        assert_eq!(copies[0].variables.get("goldsync_slot"), Some(&b"a"[..]));
    }

    proptest! {
        #[test]
        fn any_bytes_with_the_right_checksum_end(data in vec(prop_oneof![Just(0), Just(b'='), any::<u8>()], 2..200), of_two: bool) {
            let flag = if of_two { vec![3] } else { vec![] };
            let bytes = [&crc32(&data).to_le_bytes()[..], &flag, &data].concat();
            if let Ok(copy) = Copy::read(&bytes, of_two) {
                prop_assert_eq!(Copy::read(&copy.write(bytes.len()).unwrap(), of_two).unwrap(), copy);
            }
        }

        #[test]
        fn what_is_set_is_read(names in vec("[a-z]{1,3}", 0..8), value in "[^\0]{0,9}") {
            let mut list = Variables::default();
            names.iter().for_each(|name| list.set(name, "old"));
            list.set("ab", &value);
            let copy = Copy { flag: Some(255), variables: list };
            let read = Copy::read(&copy.write(512).unwrap(), true).unwrap();
            prop_assert_eq!(read.variables.get("ab"), Some(value.as_bytes()));
            prop_assert_eq!(read, copy);
        }
    }
}
