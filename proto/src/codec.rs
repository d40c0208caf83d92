//! The only code that touches raw bytes of the binary formats: a reader that cannot run past its end, and a writer.
//!
//! Integers are little-endian. Counts and block numbers travel as LEB128 varints of at most ten bytes. A decoder
//! that is done calls [`Reader::end`], so that a byte too many is an error and not a hiding place.

/// Why bytes could not be read. Always the sender's fault (or the disk's); never retried on the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The bytes end too soon.
    #[error("{field}: {needed} bytes needed, {had} left")]
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Bytes asked for.
        needed: usize,
        /// Bytes there.
        had: usize,
    },
    /// The bytes go on after the end.
    #[error("{extra} bytes follow the end of {field}")]
    Trailing {
        /// What had been read.
        field: &'static str,
        /// Bytes left over.
        extra: usize,
    },
    /// A number is outside its bounds.
    #[error("{field} is {got}, at most {max} allowed")]
    TooLarge {
        /// What was being read.
        field: &'static str,
        /// The number.
        got: u64,
        /// Its bound.
        max: u64,
    },
    /// A number is not written in its one way, or a tag is not known.
    #[error("{field}: {got} is not a known value")]
    Unknown {
        /// What was being read.
        field: &'static str,
        /// The number.
        got: u64,
    },
}

/// Reads the binary formats from a slice.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], CodecError> {
        let truncated = CodecError::Truncated { field, needed: len, had: self.rest.len() };
        let (head, rest) = self.rest.split_at_checked(len).ok_or(truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], CodecError> {
        let truncated = CodecError::Truncated { field, needed: N, had: self.rest.len() };
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, CodecError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// A little-endian `u32`.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, CodecError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// A little-endian `u64`.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, CodecError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A varint of at most `max`.
    pub fn varint(&mut self, field: &'static str, max: u64) -> Result<u64, CodecError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            let part = u64::from(byte & 0x7f);
            // The tenth byte may carry one bit only, and no byte but the first may be an idle zero: one number, one form.
            if (shift == 63 && part > 1) || (shift > 0 && byte == 0) {
                return Err(CodecError::Unknown { field, got: u64::from(byte) });
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return if value > max { Err(CodecError::TooLarge { field, got: value, max }) } else { Ok(value) };
            }
        }
        Err(CodecError::TooLarge { field, got: u64::MAX, max })
    }

    /// A varint that counts things of at least `each` bytes which follow in these same bytes.
    pub fn count(&mut self, field: &'static str, max: usize, each: usize) -> Result<usize, CodecError> {
        let count = self.varint(field, max as u64)? as usize;
        let needed = count.saturating_mul(each);
        if needed > self.left() {
            return Err(CodecError::Truncated { field, needed, had: self.left() });
        }
        Ok(count)
    }

    /// A zigzag varint whose value lies within ±`max`.
    pub fn signed(&mut self, field: &'static str, max: u64) -> Result<i64, CodecError> {
        let raw = self.varint(field, max.saturating_mul(2))?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// Nothing may be left.
    pub fn end(self, field: &'static str) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Trailing { field, extra: self.rest.len() }) }
    }
}

/// Writes the binary formats.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// A little-endian `u32`.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A little-endian `u64`.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A varint, in its shortest form.
    pub fn varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.u8(value as u8)
    }

    /// A zigzag varint.
    pub fn signed(&mut self, value: i64) -> &mut Self {
        self.varint(((value << 1) ^ (value >> 63)) as u64)
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_read_back(value: u64, signed in -(1_i64 << 60)..(1 << 60)) {
            let mut writer = Writer::new();
            writer.varint(value).signed(signed);
            let bytes = writer.finish();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint("value", u64::MAX), Ok(value));
            prop_assert_eq!(reader.signed("signed", 1 << 60), Ok(signed));
            prop_assert_eq!(reader.end("test"), Ok(()));
        }

        #[test]
        fn any_bytes_end_in_a_number_or_an_error(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.varint("value", u64::MAX).is_ok() {}
            prop_assert!(reader.left() <= bytes.len());
        }
    }

    #[test]
    fn a_number_has_one_form() {
        assert!(Reader::new(&[0x81, 0x00]).varint("n", 9).is_err());
        assert!(Reader::new(&[0xff; 11]).varint("n", u64::MAX).is_err());
        assert_eq!(Reader::new(&[9]).varint("n", 8), Err(CodecError::TooLarge { field: "n", got: 9, max: 8 }));
    }

    #[test]
    fn a_count_is_paid_for_by_the_bytes_that_follow() {
        let error = Reader::new(&[100, 0, 0]).count("things", 1000, 8).unwrap_err();
        assert_eq!(error, CodecError::Truncated { field: "things", needed: 800, had: 2 });
    }
}
