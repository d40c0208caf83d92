//! Objects kept as what differs from another object: sections and layouts, which change little from release to release.
//!
//! ```text
//! objects/3f/3f2a....d   "gsd1" | u32 bytes of head | base 32 | base length varint | depth u8 | length varint
//!                        pieces varint, each: codec u8, wire length varint | hash16 of all that | pieces
//! ```
//! A piece is [`PIECE`] bytes of the object, compressed with the same bytes of the base as its prefix. A base may be kept
//! so, too, but no deeper than [`DEPTH_MAX`]: reading a piece unpacks at most that many more. Nothing here proves bytes: who
//! needs them proven holds them against the object's name, as with any other object.

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use goldsync_proto::codec::{CodecError, Reader, Writer};
use goldsync_proto::digest::Digest;
use goldsync_proto::limits::{GRAIN, IMAGE_MAX};
use goldsync_proto::pack::{Codec, compress, decompress, hash16};
use goldsync_proto::release::Section;

use super::StoreError;
use super::files::blocking;
use super::objects::Objects;

const MAGIC: [u8; 4] = *b"gsd1";

/// Bytes of an object in one piece.
const PIECE: u64 = 256 << 10;

/// Objects that must be unpacked to read one.
const DEPTH_MAX: u8 = 32;

/// A head's bytes: 2 GiB of section in pieces of seven bytes each, and some.
const HEAD_MAX: usize = 128 << 10;

const PIECES_MAX: usize = (IMAGE_MAX / 4096 * 8 / PIECE) as usize + 1;

/// zstd's level: made once, and small.
const LEVEL: i32 = 19;

/// How an object is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// What it differs from.
    pub(crate) base: Section,
    depth: u8,
    /// Bytes of the object.
    pub(crate) length: u64,
    /// Codec and bytes of each piece.
    pieces: Vec<(Codec, u32)>,
    /// Bytes before the first piece.
    start: u64,
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(self.base.name.as_bytes()).varint(self.base.length).u8(self.depth).varint(self.length);
        writer.varint(self.pieces.len() as u64);
        for (codec, length) in &self.pieces {
            writer.u8(*codec as u8).varint((*length).into());
        }
        let body = writer.finish();
        let check = hash16(&body);
        [&MAGIC[..], &(body.len() as u32).to_le_bytes(), &body, &check].concat()
    }

    /// Reads a head from an object's first bytes, as many as [`HEAD_MAX`] allows.
    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        if reader.array("magic")? != MAGIC {
            return Err(CodecError::Unknown { field: "magic", got: 0 });
        }
        let length = reader.u32("head")? as usize;
        let body = reader.bytes("head", length.min(HEAD_MAX))?;
        if reader.array::<16>("check")? != hash16(body) {
            return Err(CodecError::Unknown { field: "check", got: 0 });
        }
        let start = (bytes.len() - reader.left()) as u64;
        let mut reader = Reader::new(body);
        let name = Digest(reader.array("base")?);
        let base = Section { name, length: reader.varint("base length", IMAGE_MAX)? };
        let depth = reader.u8("depth")?;
        let length = reader.varint("length", IMAGE_MAX)?;
        let count = reader.count("pieces", PIECES_MAX, 2)?;
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            pieces.push((Codec::from_number(reader.u8("codec")?)?, reader.varint("piece", PIECE)? as u32));
        }
        reader.end("head")?;
        let fits = count as u64 == length.div_ceil(PIECE) && (1..=DEPTH_MAX).contains(&depth);
        if !fits {
            return Err(CodecError::TooLarge { field: "depth", got: depth.into(), max: DEPTH_MAX.into() });
        }
        Ok(Self { base, depth, length, pieces, start })
    }
}

impl Objects {
    /// How an object is kept; `None` if it is kept as it is, or not at all.
    pub(crate) async fn delta(&self, name: Digest) -> Result<Option<Head>, StoreError> {
        let Some(first) = self.delta_bytes(name, 0, HEAD_MAX as u64 + 24).await? else { return Ok(None) };
        let broken = |error: CodecError| StoreError::damaged(name, format!("its difference from another: {error}"));
        Head::decode(&first).map(Some).map_err(broken)
    }

    /// Stores bytes as what differs from `base`, if that is worth it and possible, else as they are. What is kept whole
    /// already stays as it is: others may differ from it. Also answers how many bytes it takes.
    pub(crate) async fn put_after(&self, bytes: Bytes, base: Option<Section>) -> Result<(Section, u64), StoreError> {
        let section = {
            let bytes = bytes.clone();
            blocking(move || Ok::<_, StoreError>(Section { name: Digest::of(&bytes), length: bytes.len() as u64 }))
                .await?
        };
        let plain = self.len_plain(section.name).await?.is_some();
        if !plain && let Some(kept) = self.delta_len(section.name).await? {
            if self.whole(section).await.is_ok() {
                return Ok((section, kept));
            }
        } else if let Some(base) = base.filter(|base| !plain && base.name != section.name)
            && let Some(parts) = self.differ(&bytes, base).await?
        {
            let length = parts.iter().map(|part| part.len() as u64).sum();
            if length < section.length / 2 {
                self.put_delta(section.name, parts).await?;
                return Ok((section, length));
            }
        }
        self.put(bytes).await?;
        Ok((section, section.length))
    }

    /// Head and pieces of `bytes` after `base`. `None` if the base is not what it should be, or too deep.
    async fn differ(&self, bytes: &Bytes, base: Section) -> Result<Option<Vec<Bytes>>, StoreError> {
        let usable = match self.delta(base.name).await {
            Ok(head) => head.map_or(0, |head| head.depth),
            Err(_) => return Ok(None),
        };
        if usable >= DEPTH_MAX || self.len(base.name).await.ok() != Some(base.length) {
            return Ok(None);
        }
        let (mut pieces, mut parts, mut proof) = (Vec::new(), Vec::new(), blake3::Hasher::new());
        for start in (0..base.length.max(bytes.len() as u64)).step_by(PIECE as usize) {
            let Ok(prefix) = self.read_inside(base, start).await else { return Ok(None) };
            proof.update(&prefix);
            let piece =
                bytes.slice((start as usize).min(bytes.len())..(start + PIECE).min(bytes.len() as u64) as usize);
            if piece.is_empty() {
                continue;
            }
            let (codec, wire) =
                blocking(move || Ok::<_, StoreError>(compress(&padded(&piece), &prefix, LEVEL))).await?;
            pieces.push((codec, wire.len() as u32));
            parts.push(Bytes::from(wire));
        }
        // After other bytes than the base's this would be lost as soon as the base is mended.
        if Digest(*proof.finalize().as_bytes()) != base.name {
            return Ok(None);
        }
        let head = Head { base, depth: usable + 1, length: bytes.len() as u64, pieces, start: 0 };
        parts.insert(0, head.encode().into());
        Ok(Some(parts))
    }

    /// The piece of an object that begins at `start`: empty behind its end.
    async fn read_inside(&self, object: Section, start: u64) -> Result<Bytes, StoreError> {
        let end = object.length.min(start + PIECE);
        if start >= end { Ok(Bytes::new()) } else { self.read(object.name, start..end).await }
    }

    /// Bytes of an object that is kept by `head`; the range lies inside it.
    pub(crate) fn read_delta<'a>(
        &'a self,
        name: Digest,
        head: &'a Head,
        range: std::ops::Range<u64>,
    ) -> BoxFuture<'a, Result<Bytes, StoreError>> {
        Box::pin(async move {
            if self.delta(head.base.name).await?.is_some_and(|base| base.depth >= head.depth) {
                return Err(StoreError::damaged(name, "it differs from an object that lies deeper than itself"));
            }
            let mut out = BytesMut::new();
            let first = range.start / PIECE;
            let mut offset = head.start;
            for (number, (codec, length)) in (0..).zip(&head.pieces) {
                let start = number * PIECE;
                if number >= first && start < range.end {
                    let wire = self.delta_bytes(name, offset, (*length).into()).await?.unwrap_or_default();
                    let prefix = self.read_inside(head.base, start).await.map_err(|error| behind(name, error))?;
                    let (codec, len) = (*codec, (head.length - start).min(PIECE) as usize);
                    let piece = blocking(move || unpack(name, codec, &wire, len, &prefix)).await?;
                    let from = range.start.saturating_sub(start) as usize;
                    let to = (range.end - start).min(PIECE) as usize;
                    out.extend_from_slice(piece.get(from..to).unwrap_or_default());
                }
                offset += u64::from(*length);
            }
            Ok(out.freeze())
        })
    }
}

/// What is wrong with the base is wrong with what differs from it.
fn behind(name: Digest, error: StoreError) -> StoreError {
    match error {
        StoreError::NotFound { .. } | StoreError::BadRange { .. } | StoreError::Damaged { .. } => {
            StoreError::damaged(name, format!("it is kept as what differs from another: {error}"))
        }
        error => error,
    }
}

/// Packs hold whole grains.
fn padded(piece: &[u8]) -> Vec<u8> {
    let mut raw = piece.to_vec();
    raw.resize(raw.len().next_multiple_of(GRAIN as usize), 0);
    raw
}

fn unpack(name: Digest, codec: Codec, wire: &[u8], len: usize, prefix: &[u8]) -> Result<Vec<u8>, StoreError> {
    let raw_len = len.next_multiple_of(GRAIN as usize);
    let mut raw = decompress(codec, wire, raw_len, prefix)
        .map_err(|error| StoreError::damaged(name, format!("a piece of it: {error}")))?;
    raw.truncate(len);
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::testing::noise_bytes as noise;
    use proptest::prelude::*;

    fn open() -> (tempfile::TempDir, Objects) {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path().join("objects")).unwrap();
        (folder, objects)
    }

    /// Goal: what changes little costs little, however often, and reads back whole and in any range.
    #[tokio::test]
    async fn a_long_line_of_changes_costs_what_changed() {
        let (folder, objects) = open();
        let mut bytes = noise(700_008, 1);
        let mut last = objects.put(bytes.clone()).await.unwrap();
        for turn in 0..u64::from(DEPTH_MAX) {
            let at = turn as usize * 20_000;
            bytes[at..at + 8].copy_from_slice(&noise(8, turn + 9));
            bytes.extend(noise(8, turn + 99));
            let before = objects.stored();
            last = objects.put_after(bytes.clone().into(), Some(last)).await.unwrap().0;
            assert!(objects.stored() - before < 600, "{} bytes", objects.stored() - before);
            assert!(objects.whole(last).await.unwrap() == bytes);
        }
        for range in [0..1, 262_143..262_145, 262_144..700_000, 699_000..bytes.len()] {
            let got = objects.read(last.name, range.start as u64..range.end as u64).await.unwrap();
            assert!(got == bytes[range]);
        }
        assert_eq!(objects.len(last.name).await.unwrap(), bytes.len() as u64);
        assert!(matches!(objects.read(last.name, 0..9_999_999).await, Err(StoreError::BadRange { .. })));
        // Deeper than that nothing goes: the next is kept as it is, and all survive a restart.
        bytes[5] ^= 1;
        let (plain, _) = objects.put_after(bytes.clone().into(), Some(last)).await.unwrap();
        assert!(
            objects.delta(plain.name).await.unwrap().is_none() && objects.delta(last.name).await.unwrap().is_some()
        );
        let again = Objects::open(folder.path().join("objects")).unwrap();
        assert_eq!(again.stored(), objects.stored());
        assert!(again.whole(last).await.is_ok());
    }

    #[tokio::test]
    async fn a_damaged_base_is_not_built_on_and_tells_what_is_lost() {
        let (folder, objects) = open();
        let (old, new) = (noise(9000, 1), [noise(9000, 1), noise(8, 2)].concat());
        let base = objects.put(old.clone()).await.unwrap();
        let (kept, _) = objects.put_after(new.clone().into(), Some(base)).await.unwrap();
        let hex = base.name.to_string();
        let path = folder.path().join("objects").join(&hex[..2]).join(&hex);
        std::fs::write(&path, noise(9000, 3)).unwrap();
        assert!(matches!(objects.whole(kept).await, Err(StoreError::Damaged { .. })));
        let other = [&new[..], b"another."].concat();
        let (plain, _) = objects.put_after(other.into(), Some(base)).await.unwrap();
        assert!(objects.delta(plain.name).await.unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(objects.whole(kept).await, Err(StoreError::Damaged { .. })));
        objects.put(old).await.unwrap();
        assert!(objects.whole(kept).await.unwrap() == new);
    }

    fn head() -> Head {
        let base = Section { name: Digest::of(b"base"), length: 300_000 };
        let pieces = vec![(Codec::Zstd, 70), (Codec::Raw, 262_144)];
        Head { base, depth: 3, length: 500_000, pieces, start: 0 }
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_head_or_an_error(rest: Vec<u8>, at in 0_usize..80, value: u8) {
            let _ = Head::decode(&rest);
            let body = [&(rest.len() as u32).to_le_bytes(), &rest[..], &hash16(&rest)].concat();
            let _ = Head::decode(&[&MAGIC[..], &body].concat());
            let mut bytes = head().encode();
            let at = at % bytes.len();
            let same = bytes[at] == value;
            bytes[at] = value;
            prop_assert_eq!(Head::decode(&bytes).is_ok(), same);
        }
    }
}
