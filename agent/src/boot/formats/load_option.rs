//! UEFI's load option, the content of a variable `Boot####`: what a firmware's boot menu calls an entry.
//!
//! ```text
//!  0  u32  attributes; bit 0: active, the firmware may start it unasked
//!  4  u16  bytes of the device path
//!  6       description: UTF-16, ended by a zero
//!          device path
//!          optional data: what the loader is given, for a kernel its command line
//! ```
//! Numbers are little-endian. The device path is kept as it is: only the firmware needs to understand it.

/// The most a variable has: what the kernel's efivarfs hands out at once is far less.
pub const SIZE_MAX: usize = 64 << 10;

const ACTIVE: u32 = 1;

/// Why bytes are no load option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadOptionError {
    /// Too short, or no end of the description.
    #[error("ends in its {0}")]
    Cut(&'static str),
    /// More than any firmware keeps.
    #[error("has {found} bytes; at most {SIZE_MAX} are read")]
    Size {
        /// Bytes there.
        found: usize,
    },
}

/// A load option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadOption {
    /// Bit 0: active.
    pub attributes: u32,
    /// What people see.
    pub description: String,
    /// Where the loader lies.
    pub device_path: Vec<u8>,
    /// What it is given.
    pub data: Vec<u8>,
}

impl LoadOption {
    /// Reads one.
    pub fn read(bytes: &[u8]) -> Result<Self, LoadOptionError> {
        if bytes.len() > SIZE_MAX {
            return Err(LoadOptionError::Size { found: bytes.len() });
        }
        let (attributes, rest) = bytes.split_first_chunk::<4>().ok_or(LoadOptionError::Cut("attributes"))?;
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(LoadOptionError::Cut("lengths"))?;
        let end = rest.chunks_exact(2).position(|unit| unit == [0, 0]).ok_or(LoadOptionError::Cut("description"))?;
        let (description, rest) = rest.split_at(2 * end);
        let length = usize::from(u16::from_le_bytes(*length));
        let (device_path, data) = rest[2..].split_at_checked(length).ok_or(LoadOptionError::Cut("device path"))?;
        Ok(Self {
            attributes: u32::from_le_bytes(*attributes),
            description: text(description),
            device_path: device_path.to_vec(),
            data: data.to_vec(),
        })
    }

    /// Whether the firmware may start it unasked.
    pub fn active(&self) -> bool {
        self.attributes & ACTIVE != 0
    }
}

/// UTF-16, little-endian, up to the first zero; what is none becomes U+FFFD.
pub fn text(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// A list of entries' numbers, as in `BootOrder`; an odd byte at the end is none.
pub fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
    }

    fn option(attributes: u32, length: u16, description: &str, rest: &[u8]) -> Vec<u8> {
        [&attributes.to_le_bytes()[..], &length.to_le_bytes(), &utf16(description), rest].concat()
    }

    #[test]
    fn the_four_parts_are_told_apart() {
        let read = LoadOption::read(&option(1, 4, "goldsync a", &[0x7f, 0xff, 4, 0, b'r', 0])).unwrap();
        assert_eq!((read.description.as_str(), read.active()), ("goldsync a", true));
        assert_eq!((read.device_path, read.data), (vec![0x7f, 0xff, 4, 0], vec![b'r', 0]));
        assert!(!LoadOption::read(&option(8, 0, "", &[])).unwrap().active());
        assert_eq!(text(&[0x3d, 0xd8, b'x', 0, 0, 0, b'y', 0]), "\u{fffd}x");
        assert_eq!(numbers(&[1, 0, 0x34, 0x12, 7]), [1, 0x1234]);
    }

    #[test]
    fn what_is_cut_is_refused() {
        let whole = option(1, 4, "goldsync a", &[1, 2, 3, 4]);
        for cut in 0..whole.len() {
            assert!(LoadOption::read(&whole[..cut]).is_err(), "{cut}");
        }
        assert_eq!(LoadOption::read(&vec![0; SIZE_MAX + 1]), Err(LoadOptionError::Size { found: SIZE_MAX + 1 }));
        assert_eq!(LoadOption::read(&whole[..12]), Err(LoadOptionError::Cut("description")));
        assert_eq!(LoadOption::read(&whole[..whole.len() - 1]), Err(LoadOptionError::Cut("device path")));
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in vec(any::<u8>(), 0..200)) {
            if let Ok(read) = LoadOption::read(&bytes) {
                prop_assert!(read.device_path.len() + read.data.len() + 8 <= bytes.len());
            }
        }

        #[test]
        fn what_was_put_in_is_read(attributes: u32, description in "[^\0]{0,20}", path in vec(any::<u8>(), 0..40), data in vec(any::<u8>(), 0..40)) {
            let bytes = option(attributes, path.len() as u16, &description, &[path.clone(), data.clone()].concat());
            let expected = LoadOption { attributes, description, device_path: path, data };
            prop_assert_eq!(LoadOption::read(&bytes).unwrap(), expected);
        }
    }
}
