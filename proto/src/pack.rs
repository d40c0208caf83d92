//! Packs: golden blocks on the wire, compressed, with or without a prefix taken from the base.
//!
//! A *pack* belongs to a plan, which gives its lengths, hashes and prefix; it is hashed before it is decoded. A *literal
//! frame* carries its own head and answers a request for blocks, or uploads them:
//!
//! | offset | size | field    | bounds                                        |
//! |-------:|-----:|----------|-----------------------------------------------|
//! |      0 |    4 | wire_len | 1 ..= raw_len                                 |
//! |      4 |    4 | raw_len  | a multiple of 512, 512 ..= `PACK_RAW_MAX`     |
//! |      8 |    1 | codec    | 0 raw, 1 zstd, 2 delta, 3 patch               |
//! |      9 |      | bytes    | wire_len of them                              |
//!
//! Frames that answer one request are a [`Chain`]: each is compressed with the raw bytes before it, at most
//! `FRAME_PREFIX_MAX` of them, as its prefix. Where whole blocks were asked for, `raw_len` is a multiple of 4096.
//!
//! Decoding writes at most `raw_len` bytes, whatever the input says. A prefix that the node holds wrongly gives an error
//! or other bytes, never more of them: the pack's raw hash tells.

use std::cell::RefCell;

use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, DParameter, ResetDirective};

use crate::codec::{CodecError, Reader};
use crate::limits::{FRAME_PREFIX_MAX, GRAIN, PACK_RAW_MAX};

mod bits;
pub mod delta;
pub mod patch;

/// How a pack's bytes are written. The seam for further codecs: a number here, an arm in [`decompress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One zstd frame, its prefix referred to and not carried.
    Zstd = 1,
    /// Copies out of the prefix, corrected, as a model of them says: [`delta`].
    Delta = 2,
    /// The same, quick to unpack: [`patch`].
    Patch = 3,
}

impl Codec {
    /// Reads a codec's number.
    pub fn from_number(number: u8) -> Result<Self, CodecError> {
        match number {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            2 => Ok(Self::Delta),
            3 => Ok(Self::Patch),
            other => Err(CodecError::Unknown { field: "codec", got: u64::from(other) }),
        }
    }
}

/// Why a pack does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Its head is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The lengths do not fit each other or the bounds.
    #[error(
        "a pack of {wire} bytes on the wire cannot hold {raw} bytes: a multiple of {GRAIN}, at most {PACK_RAW_MAX}, and never more on the wire than raw"
    )]
    Lengths {
        /// Bytes on the wire.
        wire: usize,
        /// Bytes unpacked.
        raw: usize,
    },
    /// It gave another number of bytes.
    #[error("a pack decoded to {got} bytes, {expected} expected")]
    Short {
        /// Bytes that came out.
        got: usize,
        /// Bytes promised.
        expected: usize,
    },
    /// The decoder refused it.
    #[error("a pack does not decode: {0}")]
    Zstd(&'static str),
    /// Nor did ours.
    #[error("a pack does not decode: {0}")]
    Delta(&'static str),
    /// Copies that are none.
    #[error("a pack does not decode: {0}")]
    Patch(&'static str),
}

/// The first 16 bytes of BLAKE3: enough to refuse bytes that nobody can choose twice.
pub fn hash16(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(blake3::hash(bytes).as_bytes().split_at(16).0);
    short
}

/// The largest window that a decoder is asked to keep; covers the largest prefix and pack together.
const WINDOW_LOG_MAX: u32 = 23;

thread_local! {
    static DECODER: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

fn refused(code: zstd_safe::ErrorCode) -> PackError {
    PackError::Zstd(zstd_safe::get_error_name(code))
}

/// Compresses `raw`, with `prefix` as the bytes thought to stand before it, at zstd's `level`.
///
/// What would not shrink comes back as it is. `raw` must not lie inside `prefix`: zstd forgets a prefix that its input
/// overlaps.
pub fn compress(raw: &[u8], prefix: &[u8], level: i32) -> (Codec, Vec<u8>) {
    let mut wire = Vec::with_capacity(zstd_safe::compress_bound(raw.len()));
    match compress_zstd(raw, prefix, level, &mut wire) {
        Ok(len) if len < raw.len() => (Codec::Zstd, wire),
        // A compressor that fails costs bytes, not correctness.
        _ => (Codec::Raw, raw.to_vec()),
    }
}

fn compress_zstd(raw: &[u8], prefix: &[u8], level: i32, wire: &mut Vec<u8>) -> Result<usize, zstd_safe::ErrorCode> {
    let mut encoder = CCtx::create();
    encoder.set_parameter(CParameter::CompressionLevel(level))?;
    encoder.set_parameter(CParameter::ContentSizeFlag(false))?;
    encoder.set_parameter(CParameter::DictIdFlag(false))?;
    if !prefix.is_empty() {
        encoder.set_parameter(CParameter::WindowLog(window_log(prefix.len() + raw.len())))?;
        encoder.ref_prefix(prefix)?;
    }
    encoder.compress2(wire, raw)
}

fn window_log(len: usize) -> u32 {
    len.next_power_of_two().trailing_zeros().clamp(17, WINDOW_LOG_MAX)
}

/// Decodes `wire` to exactly `raw_len` bytes.
pub fn decompress(codec: Codec, wire: &[u8], raw_len: usize, prefix: &[u8]) -> Result<Vec<u8>, PackError> {
    check_lengths(wire.len(), raw_len)?;
    match codec {
        Codec::Raw if wire.len() == raw_len => Ok(wire.to_vec()),
        Codec::Raw => Err(PackError::Short { got: wire.len(), expected: raw_len }),
        Codec::Zstd => decompress_zstd(wire, raw_len, prefix),
        Codec::Delta => delta::decode(wire, raw_len, prefix).map_err(PackError::Delta),
        Codec::Patch => patch::decode(wire, raw_len, prefix),
    }
}

fn decompress_zstd(wire: &[u8], raw_len: usize, prefix: &[u8]) -> Result<Vec<u8>, PackError> {
    let mut raw = Vec::with_capacity(raw_len);
    // A context of its own where a prefix is borrowed, so that the borrow ends here; the shared one otherwise.
    let got = if prefix.is_empty() {
        DECODER.with_borrow_mut(|decoder| decode_into(decoder, wire, &mut raw))?
    } else {
        let mut decoder = DCtx::create();
        decoder.ref_prefix(prefix).map_err(refused)?;
        decode_into(&mut decoder, wire, &mut raw)?
    };
    if got == raw_len { Ok(raw) } else { Err(PackError::Short { got, expected: raw_len }) }
}

fn decode_into(decoder: &mut DCtx<'_>, wire: &[u8], raw: &mut Vec<u8>) -> Result<usize, PackError> {
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(refused)?;
    let result = decoder.decompress(raw, wire).map_err(refused);
    if result.is_err() {
        // What a broken frame leaves in the context must not meet the next one.
        decoder.reset(ResetDirective::SessionAndParameters).map_err(refused)?;
    }
    result
}

fn check_lengths(wire: usize, raw: usize) -> Result<(), PackError> {
    let whole = raw > 0 && raw <= PACK_RAW_MAX && raw.is_multiple_of(GRAIN as usize);
    if whole && (1..=raw).contains(&wire) { Ok(()) } else { Err(PackError::Lengths { wire, raw }) }
}

/// Bytes before a literal frame's own.
pub const FRAME_HEAD: usize = 9;

/// A literal frame's head, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes that follow.
    pub wire_len: usize,
    /// Bytes that they decode to.
    pub raw_len: usize,
    /// How.
    pub codec: Codec,
}

/// Reads a literal frame's head.
pub fn frame_head(head: [u8; FRAME_HEAD]) -> Result<FrameHead, PackError> {
    let mut reader = Reader::new(&head);
    let (wire_len, raw_len) = (reader.u32("wire_len")? as usize, reader.u32("raw_len")? as usize);
    let codec = Codec::from_number(reader.u8("codec")?)?;
    check_lengths(wire_len, raw_len)?;
    Ok(FrameHead { wire_len, raw_len, codec })
}

/// What literal frames of one answer have in common: the raw bytes that the next one may refer to.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    tail: Vec<u8>,
}

impl Chain {
    /// The next frame's prefix.
    pub fn prefix(&self) -> &[u8] {
        &self.tail
    }

    /// Goes on behind `raw`.
    pub fn push(&mut self, raw: &[u8]) {
        self.tail.extend_from_slice(raw);
        let surplus = self.tail.len().saturating_sub(FRAME_PREFIX_MAX);
        self.tail.drain(..surplus);
    }
}

/// A literal frame that refers to nothing, at most [`PACK_RAW_MAX`] bytes of whole blocks.
pub fn write_frame(raw: &[u8], level: i32) -> Vec<u8> {
    write_frame_after(&[], raw, level)
}

/// A literal frame behind `prefix`, at most [`PACK_RAW_MAX`] bytes.
pub fn write_frame_after(prefix: &[u8], raw: &[u8], level: i32) -> Vec<u8> {
    let (codec, wire) = compress(raw, prefix, level);
    let mut frame = Vec::with_capacity(FRAME_HEAD + wire.len());
    frame.extend_from_slice(&(wire.len() as u32).to_le_bytes());
    frame.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    frame.push(codec as u8);
    frame.extend_from_slice(&wire);
    frame
}

/// Reads a whole literal frame that refers to nothing: the blocks' bytes.
pub fn read_frame(frame: &[u8]) -> Result<Vec<u8>, PackError> {
    read_frame_after(&[], frame)
}

/// Reads a whole literal frame behind `prefix`.
pub fn read_frame_after(prefix: &[u8], frame: &[u8]) -> Result<Vec<u8>, PackError> {
    let mut reader = Reader::new(frame);
    let head = frame_head(reader.array("frame head")?)?;
    let wire = reader.bytes("frame", head.wire_len)?;
    reader.end("frame")?;
    decompress(head.codec, wire, head.raw_len, prefix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use proptest::prelude::*;

    #[test]
    fn a_pack_reads_back_with_and_without_its_prefix() {
        let base = noise(4 << 20, 1);
        let mut raw = base[3_000_001..3_000_001 + (1 << 20) - 5].to_vec();
        raw.extend_from_slice(b"tail!");
        let (codec, wire) = compress(&raw, &base, 9);
        assert_eq!(codec, Codec::Zstd);
        assert!(wire.len() < 1000, "{} bytes: the prefix was not found", wire.len());
        assert_eq!(decompress(codec, &wire, raw.len(), &base).unwrap(), raw);

        let (codec, wire) = compress(&raw, &[], 9);
        assert_eq!((codec, wire.len()), (Codec::Raw, raw.len()));
        assert_eq!(decompress(codec, &wire, raw.len(), &[]).unwrap(), raw);
    }

    #[test]
    fn a_wrong_prefix_gives_an_error_or_other_bytes_of_the_same_length() {
        let (base, other) = (noise(1 << 20, 1), noise(1 << 20, 2));
        let (codec, wire) = compress(&[&base[..32768], &base[32768..65536]].concat(), &base, 9);
        assert_eq!(codec, Codec::Zstd);
        match decompress(codec, &wire, 65536, &other) {
            Ok(bytes) => assert_ne!(hash16(&bytes), hash16(&base[..65536])),
            Err(error) => assert!(matches!(error, PackError::Zstd(_) | PackError::Short { .. })),
        }
    }

    #[test]
    fn a_frame_that_would_grow_beyond_its_word_is_refused() {
        let (codec, wire) = compress(&vec![7; 1 << 20], &[], 3);
        assert!(decompress(codec, &wire, 4096, &[]).is_err());
        assert_eq!(decompress(codec, &wire, 2 << 20, &[]), Err(PackError::Lengths { wire: wire.len(), raw: 2 << 20 }));
        assert!(decompress(codec, &wire, (1 << 20) - 1, &[]).is_err());
        assert_eq!(decompress(codec, &wire, 1 << 20, &[]).unwrap(), vec![7; 1 << 20]);
    }

    #[test]
    fn frames_of_a_chain_refer_to_those_before_them() {
        let raw = noise(3 << 20, 9);
        let mut written = Chain::default();
        let mut read = Chain::default();
        let mut sizes = Vec::new();
        for at in [0, 0, 1, 2, 0] {
            let piece = &raw[at << 20..(at + 1) << 20];
            let frame = write_frame_after(written.prefix(), piece, 9);
            written.push(piece);
            sizes.push(frame.len());
            let back = read_frame_after(read.prefix(), &frame).unwrap();
            assert_eq!(back, piece);
            read.push(&back);
        }
        let full = (1 << 20) + FRAME_HEAD;
        assert!(sizes[1] < 1000, "{sizes:?}: what came just before is referred to");
        assert_eq!(
            (sizes[0], sizes[2], sizes[3], sizes[4]),
            (full, full, full, full),
            "and no more than two frames back"
        );
        assert_eq!(written.prefix().len(), FRAME_PREFIX_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_blocks_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_frame(&bytes);
            let _ = decompress(Codec::Zstd, &bytes, 8192, b"prefix");
            let _ = decompress(Codec::Delta, &bytes, 8192, b"prefix");
        }

        #[test]
        fn frames_read_back(blocks in 1_usize..5, seed: u64) {
            let raw = noise(blocks * 4096, seed);
            prop_assert_eq!(read_frame(&write_frame(&raw, 3)).unwrap(), raw);
        }
    }
}
