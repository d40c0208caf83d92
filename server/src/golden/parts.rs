//! Frames that were uploaded, each kept in a file until its image is complete.
//!
//! ```text
//! uploads/<image>/frames/<first block>    "gsu1" | runs: count, each: first, count (varints) | codec u8 | raw_len u32
//!                                         wire_len u32 | wire hash 16 | raw hash 16 | hash16 of all that | frame bytes
//! ```
//! A part was held against its blocks' hashes before it was written. It is not synced: one that a power cut tore fails
//! its hash when the upload is taken up again, is removed, and its blocks are asked for once more.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use goldsync_proto::block::Run;
use goldsync_proto::codec::{CodecError, Reader, Writer};
use goldsync_proto::limits::{BLOCK, IMAGE_MAX, PACK_RAW_MAX};
use goldsync_proto::pack::{Codec, hash16};

use crate::store::StoreError;
use crate::store::files::{list, write_whole};
use crate::store::layout::FRAME_BLOCKS_MAX;

const MAGIC: [u8; 4] = *b"gsu1";
const BLOCKS_MAX: u64 = IMAGE_MAX / BLOCK;

/// A frame that was uploaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The image's blocks that it holds, in order.
    pub(crate) runs: Vec<Run>,
    pub(crate) codec: Codec,
    pub(crate) raw_len: u32,
    pub(crate) wire_len: u32,
    pub(crate) wire_hash: [u8; 16],
    pub(crate) raw_hash: [u8; 16],
}

impl Part {
    /// The image's blocks that it holds, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().flat_map(|(first, count)| *first..*first + *count)
    }

    fn encode(&self, wire: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(&MAGIC).varint(self.runs.len() as u64);
        for (first, count) in &self.runs {
            writer.varint((*first).into()).varint((*count).into());
        }
        writer.u8(self.codec as u8).u32(self.raw_len).u32(self.wire_len);
        writer.bytes(&self.wire_hash).bytes(&self.raw_hash);
        let mut bytes = writer.finish();
        let check = hash16(&bytes);
        bytes.extend_from_slice(&check);
        bytes.extend_from_slice(wire);
        bytes
    }

    /// Reads a part's file: the part and where its frame begins. `None` if it is torn.
    fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut reader = Reader::new(bytes);
        let part = Self::read(&mut reader).ok()?;
        let head = bytes.len() - reader.left();
        let check = reader.array::<16>("check").ok()?;
        let wire = bytes.get(head + check.len()..)?;
        let whole = hash16(bytes.get(..head)?) == check
            && wire.len() == part.wire_len as usize
            && hash16(wire) == part.wire_hash
            && part.blocks().count() as u64 * BLOCK == u64::from(part.raw_len);
        whole.then_some((part, head + check.len()))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        if reader.array("magic")? != MAGIC {
            return Err(CodecError::Unknown { field: "magic", got: 0 });
        }
        let count = reader.count("runs", FRAME_BLOCKS_MAX as usize, 2)?;
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            let first = reader.varint("first", BLOCKS_MAX)? as u32;
            runs.push((first, reader.varint("count", FRAME_BLOCKS_MAX)? as u32));
        }
        let codec = Codec::from_number(reader.u8("codec")?)?;
        let (raw_len, wire_len) = (reader.u32("raw_len")?, reader.u32("wire_len")?);
        if raw_len as usize > PACK_RAW_MAX {
            return Err(CodecError::TooLarge { field: "raw_len", got: raw_len.into(), max: PACK_RAW_MAX as u64 });
        }
        let (wire_hash, raw_hash) = (reader.array("wire hash")?, reader.array("raw hash")?);
        Ok(Self { runs, codec, raw_len, wire_len, wire_hash, raw_hash })
    }
}

fn place(folder: &Path, first: u32) -> PathBuf {
    folder.join(format!("{first:010}"))
}

/// Keeps a part.
pub(crate) fn keep(folder: &Path, part: &Part, wire: &[u8]) -> Result<(), StoreError> {
    let first = part.runs.first().map_or(0, |(first, _)| *first);
    write_whole(&place(folder, first), &part.encode(wire))
}

/// The frame of a part that was kept.
pub(crate) fn wire(folder: &Path, part: &Part) -> Result<Bytes, StoreError> {
    let path = place(folder, part.runs.first().map_or(0, |(first, _)| *first));
    let bytes = Bytes::from(fs::read(&path).map_err(StoreError::io("read", &path))?);
    match Part::decode(&bytes) {
        Some((found, start)) if found == *part => Ok(bytes.slice(start..)),
        _ => Err(StoreError::Record { path, what: "it is not what was uploaded".into() }),
    }
}

/// The parts in a folder, by their first block. Torn ones are removed.
pub(crate) fn scan(folder: &Path) -> Result<Vec<Part>, StoreError> {
    let mut parts = Vec::new();
    for path in list(folder)? {
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        match Part::decode(&bytes) {
            Some((part, _)) if place(folder, part.blocks().next().unwrap_or(0)) == path => parts.push(part),
            _ => fs::remove_file(&path).map_err(StoreError::io("remove", &path))?,
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(wire: &[u8]) -> Part {
        let (wire_hash, raw_hash) = (hash16(wire), hash16(b"raw"));
        let wire_len = wire.len() as u32;
        Part { runs: vec![(7, 2), (300, 1)], codec: Codec::Zstd, raw_len: 3 * 4096, wire_len, wire_hash, raw_hash }
    }

    #[test]
    fn parts_survive_and_torn_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        keep(folder.path(), &part(b"golden"), b"golden").unwrap();
        let whole = fs::read(place(folder.path(), 7)).unwrap();
        for (first, len) in [(8, 0), (9, 3), (10, 30), (11, whole.len() - 1), (12, whole.len())] {
            fs::write(place(folder.path(), first), &whole[..len]).unwrap();
        }
        assert_eq!(scan(folder.path()).unwrap(), [part(b"golden")]);
        assert_eq!(list(folder.path()).unwrap(), [place(folder.path(), 7)]);
        assert_eq!(wire(folder.path(), &part(b"golden")).unwrap(), "golden");
        assert!(wire(folder.path(), &part(b"rolled")).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_part_or_nothing(rest: Vec<u8>, at in 0_usize..200, value: u8) {
            let _ = Part::decode(&[&MAGIC[..], &rest].concat());
            let mut bytes = part(b"golden").encode(b"golden");
            let at = at % bytes.len();
            let same = bytes[at] == value;
            bytes[at] = value;
            prop_assert_eq!(Part::decode(&bytes).is_some(), same);
        }
    }
}
