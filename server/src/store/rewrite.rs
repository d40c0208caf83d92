//! Writing segments anew of which most is dead: no image needs it any more.
//!
//! ```text
//! images' layouts ─▶ what of each segment is needed ─▶ segments to give up
//! 1  new segments     frames as they are; of frames of which little is needed, the blocks that are, packed together
//! 2  rewrite.json     which frames went where: from here on it is carried through
//! 3  images/<id>      one after the other: a layout that names the new place
//! 4  rewrite.json     goes
//! ```
//! The old segments belong to nothing then, and a later collection removes them, like anything that nobody read within the
//! grace: who reads by the old layout or by an old plan reads on. A death before 2 leaves objects that belong to nothing;
//! after it the next run goes on at 3, so that no block is copied twice. Every image can be read at every moment.
//!
//! What is copied is proven first, so that rot is not carried on under a good name: each frame against its hashes, and, read
//! back from where it lies now, each block against the signatures of the images that need it. A segment of which something
//! needed is damaged stays as it is. Memory: one new segment. Copying rests for as long as it works.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use goldsync_proto::block::byte_of;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::BLOCK;
use goldsync_proto::pack::{Codec, compress, hash16};
use goldsync_proto::release::Section;
use goldsync_proto::signature::{BlockHashes, block_hash};
use serde::{Deserialize, Serialize};

use super::files::{blocking, sync_parent, write_durable};
use super::frames::unpack;
use super::layout::{BlockSet, FRAME_BLOCKS_MAX, Frame, FramePlace, Layout, Move, Place};
use super::{ImageRecord, Store, StoreError};

const FORMAT: u32 = 1;

/// Compressed bytes of one new segment. Small in tests, so that there are several.
const SEGMENT_MAX: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// Bytes copied before images are moved: what is there twice at a time.
const RUN_MAX: u64 = 1 << 30;

/// zstd's level for what is packed anew.
const LEVEL: i32 = 9;

/// How long it works before it rests as long.
const TURN: Duration = Duration::from_millis(50);

/// What writing segments anew came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Segments that nothing needs any more.
    pub segments: u64,
    /// Bytes in them: they go after the grace.
    pub dead: u64,
    /// Bytes of the segments that took their place.
    pub written: u64,
    /// Images that lie elsewhere now.
    pub images: u64,
}

/// A frame that some image needs.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    frame: Frame,
    /// It comes after nothing.
    alone: bool,
    needed: BlockSet,
}

impl Wanted {
    /// So little of it is needed that the rest is left behind.
    fn is_scattered(&self) -> bool {
        self.alone && self.needed.len() * 2 < self.frame.blocks()
    }

    /// About how many bytes of it would be copied.
    fn keeps(&self) -> u64 {
        let all = u64::from(self.frame.wire_len);
        if self.is_scattered() { all * u64::from(self.needed.len()) / u64::from(self.frame.blocks()) } else { all }
    }
}

/// A segment that is to be given up.
#[derive(Debug)]
struct Victim {
    name: Digest,
    length: u64,
    keeps: u64,
    frames: BTreeMap<u64, Wanted>,
}

/// `rewrite.json`: what was copied, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rewriting {
    format: u32,
    /// The segments that are given up.
    from: Vec<Section>,
    /// Those that take their place.
    to: Vec<Section>,
    frames: Vec<Copied>,
}

/// A frame of an old segment, and the frame of a new one in which its blocks lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Copied {
    from: u32,
    from_offset: u64,
    blocks: BlockSet,
    to: u32,
    offset: u64,
    wire_len: u32,
    raw_len: u32,
    codec: u8,
    wire_hash: [u8; 16],
    raw_hash: [u8; 16],
    first: u8,
    /// Nothing must be unpacked before it.
    alone: bool,
}

impl Rewriting {
    /// Where each frame went. `None` if the record does not hold together.
    fn moves(&self) -> Option<HashMap<FramePlace, Move>> {
        let pair = |copied: &Copied| {
            let from = self.from.get(copied.from as usize)?.name;
            Some(((from, copied.from_offset), self.to(copied)?))
        };
        self.frames.iter().map(pair).collect()
    }

    fn to(&self, copied: &Copied) -> Option<Move> {
        let Copied { offset, wire_len, raw_len, wire_hash, raw_hash, first, blocks, .. } = *copied;
        let codec = Codec::from_number(copied.codec).ok()?;
        let frame = Frame { segment: 0, offset, wire_len, raw_len, codec, wire_hash, raw_hash };
        let segment = self.to.get(copied.to as usize)?.name;
        let fits = u32::from(first) + blocks.len() <= frame.blocks();
        fits.then_some(Move { blocks, segment, frame, first })
    }

    /// The objects that nothing else names yet.
    pub(crate) fn names(&self) -> impl Iterator<Item = Digest> {
        self.to.iter().map(|section| section.name)
    }
}

impl Store {
    fn rewriting_path(&self) -> PathBuf {
        self.folder.join("rewrite.json")
    }

    /// What was copied and is not carried through yet. What cannot be used is removed: it is begun anew.
    pub(crate) async fn rewriting(&self) -> Result<Option<Rewriting>, StoreError> {
        let path = self.rewriting_path();
        blocking(move || {
            let text = match fs::read(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                text => text.map_err(StoreError::io("read", &path))?,
            };
            let read = serde_json::from_slice(&text).ok();
            let good = read.filter(|read: &Rewriting| read.format == FORMAT && read.moves().is_some());
            if good.is_none() {
                fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
            Ok(good)
        })
        .await
    }

    async fn write_rewriting(&self, rewriting: &Rewriting) -> Result<(), StoreError> {
        #[cfg(test)]
        self.objects.broken()?;
        let path = self.rewriting_path();
        let text = serde_json::to_vec(rewriting)
            .map_err(|error| StoreError::Record { path: path.clone(), what: error.to_string() })?;
        blocking(move || write_durable(&path, &text)).await
    }

    async fn end_rewriting(&self) -> Result<(), StoreError> {
        #[cfg(test)]
        self.objects.broken()?;
        let path = self.rewriting_path();
        blocking(move || {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            sync_parent(&path)
        })
        .await
    }

    /// What images need of the segments that they lie in, without the images that `goes` names.
    async fn wanted(
        &self,
        goes: impl Fn(ImageId) -> bool,
    ) -> Result<BTreeMap<Digest, BTreeMap<u64, Wanted>>, StoreError> {
        let mut wanted: BTreeMap<Digest, BTreeMap<u64, Wanted>> = BTreeMap::new();
        for record in self.images().into_iter().filter(|record| !goes(record.image)) {
            let layout = self.layout(record.image).await?;
            for ((number, frame), needed) in (0..).zip(layout.frames()).zip(layout.needed()) {
                let Some((segment, offset)) = layout.place_of(frame) else { continue };
                let new = Wanted { frame: *frame, alone: layout.prefix(number).is_empty(), needed };
                let frames = wanted.entry(segment).or_default();
                frames.entry(offset).and_modify(|known| known.needed.join(&needed)).or_insert(new);
            }
        }
        Ok(wanted)
    }

    /// The segments of which more is dead than is allowed, but for those that something else needs whole.
    async fn victims(&self, goes: impl Fn(ImageId) -> bool, held: &HashSet<Digest>) -> Result<Vec<Victim>, StoreError> {
        let mut victims = Vec::new();
        for (name, mut frames) in self.wanted(goes).await? {
            frames.retain(|_, wanted| !wanted.needed.is_empty());
            let length = self.objects.takes(name).await?;
            let keeps: u64 = frames.values().map(Wanted::keeps).sum();
            let dead = length.saturating_sub(keeps);
            if dead * 100 > length * u64::from(self.rewrite_above) && !held.contains(&name) {
                victims.push(Victim { name, length, keeps, frames });
            }
        }
        // The first of the new layouts is stored whole, the others as what differs from it.
        let cost = self.images().iter().map(|record| record.layout.length).max().unwrap_or(0);
        let dead: u64 = victims.iter().map(|victim| victim.length.saturating_sub(victim.keeps)).sum();
        Ok(if dead > cost { victims } else { Vec::new() })
    }

    /// About how many bytes writing segments anew would give back if these images went.
    pub(crate) async fn dead_without(
        &self,
        images: &HashSet<ImageId>,
        held: &HashSet<Digest>,
    ) -> Result<u64, StoreError> {
        let victims = self.victims(|image| images.contains(&image), held).await?;
        Ok(victims.iter().map(|victim| victim.length.saturating_sub(victim.keeps)).sum())
    }

    /// Copies what is needed of segments that are mostly dead, unless that was done before a death. `None`: there are none.
    pub(crate) async fn begin_rewriting(&self, held: &HashSet<Digest>) -> Result<Option<Rewriting>, StoreError> {
        if let Some(begun) = self.rewriting().await? {
            return Ok(Some(begun));
        }
        let mut copying = Copying::new(self);
        let mut bytes = 0;
        for victim in self.victims(|_| false, held).await? {
            if bytes > 0 && bytes + victim.keeps > RUN_MAX {
                break;
            }
            if self.is_sound(&victim).await? {
                bytes += victim.keeps;
                copying.take(&victim).await?;
            }
        }
        let rewriting = copying.finish().await?;
        if rewriting.from.is_empty() {
            return Ok(None);
        }
        self.write_rewriting(&rewriting).await?;
        Ok(Some(rewriting))
    }

    /// Whether all that is needed of a segment can be read. What cannot stays where it is, to be mended there.
    async fn is_sound(&self, victim: &Victim) -> Result<bool, StoreError> {
        for wanted in victim.frames.values() {
            match self.check_frame(victim.name, wanted.frame).await {
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::warn!(segment = %victim.name, %error, "a segment is damaged and is not written anew");
                    return Ok(false);
                }
                checked => checked?,
            }
        }
        Ok(true)
    }

    /// Makes images lie in the new segments. Nothing else may make images exist meanwhile.
    pub(crate) async fn carry_through(self: &Arc<Self>, rewriting: &Rewriting) -> Result<Rewritten, StoreError> {
        let moved = self.move_images(rewriting).await;
        // The grace begins now, for those who read by what was true until now.
        rewriting.from.iter().for_each(|section| self.objects.touch(section.name));
        if let Ok(_) | Err(StoreError::Damaged { .. }) = moved {
            // What was copied wrong is not tried again; images that were not moved lie where they did.
            self.end_rewriting().await?;
        }
        let sum = |sections: &[Section]| sections.iter().map(|section| section.length).sum();
        let segments = rewriting.from.len() as u64;
        Ok(Rewritten { segments, dead: sum(&rewriting.from), written: sum(&rewriting.to), images: moved? })
    }

    async fn move_images(self: &Arc<Self>, rewriting: &Rewriting) -> Result<u64, StoreError> {
        let moves = Arc::new(rewriting.moves().unwrap_or_default());
        let proven = self.read_back(rewriting).await?;
        let from: HashSet<Digest> = rewriting.from.iter().map(|section| section.name).collect();
        let to: HashSet<Digest> = rewriting.names().collect();
        let mut records = self.images();
        records.sort_unstable_by_key(|record| record.number);
        let (mut images, mut last) = (0, None);
        for record in records {
            let layout = self.layout(record.image).await?;
            if layout.segments().iter().any(|segment| from.contains(segment)) {
                let (old, moves) = (layout.clone(), moves.clone());
                let refuse = |source| StoreError::Layout { name: record.layout.name, source };
                let moved = blocking(move || Ok::<_, StoreError>(old.moved(&moves))).await?.map_err(refuse)?;
                if moved != *layout {
                    self.check_blocks(record.image, &moved, &proven).await?;
                    last = Some(self.settle(&record, moved, &from, last).await?);
                    images += 1;
                }
            } else if layout.segments().iter().any(|segment| to.contains(segment)) {
                last = Some(record.layout);
            }
        }
        Ok(images)
    }

    /// Stores a layout and makes an image lie as it says. `last`: the layout that the one before it came to.
    async fn settle(
        self: &Arc<Self>,
        record: &ImageRecord,
        layout: Layout,
        from: &HashSet<Digest>,
        last: Option<Section>,
    ) -> Result<Section, StoreError> {
        let encoded = blocking(move || Ok::<_, StoreError>(Bytes::from(layout.encode()))).await?;
        let (section, _) = self.objects.put_after(encoded, last).await?;
        let mut moved = record.clone();
        moved.layout = section;
        moved.segments.retain(|segment| !from.contains(segment));
        #[cfg(test)]
        self.objects.broken()?;
        self.commit(moved).await?;
        Ok(section)
    }

    /// Reads all that was copied from where it lies now. Answers with the block hashes of what unpacks by itself.
    async fn read_back(&self, rewriting: &Rewriting) -> Result<HashMap<FramePlace, Vec<u64>>, StoreError> {
        let mut proven = HashMap::new();
        for copied in &rewriting.frames {
            let Some(moved) = rewriting.to(copied) else { continue };
            let place = (moved.segment, moved.frame.offset);
            if proven.contains_key(&place) {
                continue;
            }
            let (wire, alone) = (self.frames.fetch(moved.segment, moved.frame).await?, copied.alone);
            let hashes = blocking(move || {
                if !alone {
                    let same = hash16(&wire) == moved.frame.wire_hash;
                    let what = "what was copied to it reads back as something else";
                    return if same { Ok(Vec::new()) } else { Err(StoreError::damaged(moved.segment, what)) };
                }
                let raw = unpack(moved.segment, &moved.frame, &wire, &[])?;
                Ok(raw.chunks_exact(BLOCK as usize).map(block_hash).collect())
            });
            proven.insert(place, hashes.await?);
        }
        Ok(proven)
    }

    /// Holds the blocks that an image has in new segments against its signature.
    async fn check_blocks(
        &self,
        image: ImageId,
        layout: &Layout,
        proven: &HashMap<FramePlace, Vec<u64>>,
    ) -> Result<(), StoreError> {
        let signed = self.block_hashes(image).await?;
        let signed = BlockHashes::new(&signed);
        for extent in layout.extents() {
            let Place::Stored { frame, from } = extent.place else { continue };
            let place = layout.frames().get(frame as usize).and_then(|frame| layout.place_of(frame));
            let Some((place, hashes)) = place.and_then(|place| Some((place, proven.get(&place)?))) else { continue };
            // What must be unpacked after something else was held against its own hash only.
            for (at, hash) in hashes.iter().skip(from.into()).take(extent.count as usize).enumerate() {
                let block = extent.first + at as u32;
                if signed.get(block) != Some(*hash) {
                    let what = format!("what was copied to it is not block {block} of image {image}");
                    return Err(StoreError::damaged(place.0, what));
                }
            }
        }
        Ok(())
    }
}

/// New segments in the making.
struct Copying<'a> {
    store: &'a Store,
    done: Rewriting,
    /// Frames of the segment that is being filled, and their bytes.
    wires: Vec<Bytes>,
    filled: u64,
    /// Blocks of scattered frames, and which of `done.frames` they are.
    gathered: Vec<u8>,
    gathered_of: Vec<usize>,
    since: Instant,
}

impl<'a> Copying<'a> {
    fn new(store: &'a Store) -> Self {
        let done = Rewriting { format: FORMAT, from: Vec::new(), to: Vec::new(), frames: Vec::new() };
        let (wires, filled, gathered, gathered_of) = Default::default();
        Self { store, done, wires, filled, gathered, gathered_of, since: Instant::now() }
    }

    async fn take(&mut self, victim: &Victim) -> Result<(), StoreError> {
        self.done.from.push(Section { name: victim.name, length: victim.length });
        for wanted in victim.frames.values() {
            let wire = self.store.frames.fetch(victim.name, wanted.frame).await?;
            let raw = self.prove(victim.name, *wanted, wire.clone()).await?;
            if wanted.is_scattered() {
                self.gather(wanted, &raw).await?;
            } else {
                let Move { blocks, frame, .. } = Move::whole(victim.name, &wanted.frame);
                let number = self.note(wanted, blocks, 0);
                self.add(&[number], frame, wire).await?;
            }
            self.rest().await;
        }
        Ok(())
    }

    /// Holds a frame against its hashes; what unpacks by itself, unpacked.
    async fn prove(&self, segment: Digest, wanted: Wanted, wire: Bytes) -> Result<Vec<u8>, StoreError> {
        blocking(move || {
            let refuse =
                || StoreError::damaged(segment, format!("the frame at byte {} is rotten", wanted.frame.offset));
            if !wanted.alone {
                return if hash16(&wire) == wanted.frame.wire_hash { Ok(Vec::new()) } else { Err(refuse()) };
            }
            let raw = unpack(segment, &wanted.frame, &wire, &[])?;
            if hash16(&raw) == wanted.frame.raw_hash { Ok(raw) } else { Err(refuse()) }
        })
        .await
    }

    /// Notes a frame whose place is not known yet.
    fn note(&mut self, wanted: &Wanted, blocks: BlockSet, first: u8) -> usize {
        let Frame { offset, wire_len, raw_len, codec, wire_hash, raw_hash, .. } = wanted.frame;
        let (from, from_offset) = (self.done.from.len() as u32 - 1, offset);
        let (to, codec, alone) = (0, codec as u8, wanted.alone);
        self.done.frames.push(Copied {
            from,
            from_offset,
            blocks,
            to,
            offset,
            wire_len,
            raw_len,
            codec,
            wire_hash,
            raw_hash,
            first,
            alone,
        });
        self.done.frames.len() - 1
    }

    /// Takes the needed blocks of a frame along with those of others.
    async fn gather(&mut self, wanted: &Wanted, raw: &[u8]) -> Result<(), StoreError> {
        let have = |gathered: &[u8]| gathered.len() as u64 / BLOCK;
        if have(&self.gathered) + u64::from(wanted.needed.len()) > FRAME_BLOCKS_MAX {
            self.pack().await?;
        }
        let number = self.note(wanted, wanted.needed, have(&self.gathered) as u8);
        self.gathered_of.push(number);
        for block in wanted.needed.blocks() {
            let start = byte_of(block) as usize;
            self.gathered.extend_from_slice(raw.get(start..start + BLOCK as usize).unwrap_or_default());
        }
        Ok(())
    }

    /// Makes a frame of what was gathered.
    async fn pack(&mut self) -> Result<(), StoreError> {
        let (raw, of) = (std::mem::take(&mut self.gathered), std::mem::take(&mut self.gathered_of));
        if raw.is_empty() {
            return Ok(());
        }
        let packed = blocking(move || {
            let (codec, wire) = compress(&raw, &[], LEVEL);
            let (wire_len, raw_len) = (wire.len() as u32, raw.len() as u32);
            let (wire_hash, raw_hash) = (hash16(&wire), hash16(&raw));
            let frame = Frame { segment: 0, offset: 0, wire_len, raw_len, codec, wire_hash, raw_hash };
            Ok::<_, StoreError>((frame, Bytes::from(wire)))
        });
        let (frame, wire) = packed.await?;
        self.add(&of, frame, wire).await
    }

    /// Gives a frame its place, and tells the noted ones that lie in it.
    async fn add(&mut self, of: &[usize], frame: Frame, wire: Bytes) -> Result<(), StoreError> {
        if self.filled > 0 && self.filled + wire.len() as u64 > SEGMENT_MAX {
            self.store_segment().await?;
        }
        let (to, offset) = (self.done.to.len() as u32, self.filled);
        for at in of {
            if let Some(copied) = self.done.frames.get_mut(*at) {
                let Frame { wire_len, raw_len, codec, wire_hash, raw_hash, .. } = frame;
                let codec = codec as u8;
                *copied = Copied { to, offset, wire_len, raw_len, codec, wire_hash, raw_hash, ..copied.clone() };
            }
        }
        self.filled += wire.len() as u64;
        self.wires.push(wire);
        Ok(())
    }

    async fn store_segment(&mut self) -> Result<(), StoreError> {
        let wires = std::mem::take(&mut self.wires);
        if !wires.is_empty() {
            self.done.to.push(self.store.objects.put_parts(wires).await?);
        }
        self.filled = 0;
        Ok(())
    }

    async fn finish(mut self) -> Result<Rewriting, StoreError> {
        self.pack().await?;
        self.store_segment().await?;
        Ok(self.done)
    }

    async fn rest(&mut self) {
        let worked = self.since.elapsed();
        if worked >= TURN {
            tokio::time::sleep(worked).await;
            self.since = Instant::now();
        }
    }
}
