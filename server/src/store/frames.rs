//! Reading frames: fetched by range, held against their hash, unpacked, and kept for a while.
//!
//! Neighbouring blocks lie in the same frame, and nodes that update at the same time ask for the same blocks: what was
//! unpacked last is kept, within [`KEPT_BYTES`].

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use goldsync_proto::digest::Digest;
use goldsync_proto::pack::{decompress, hash16};

use super::StoreError;
use super::files::blocking;
use super::layout::Frame;
use super::lru::Lru;
use super::objects::Objects;

/// Unpacked frames kept in memory.
const KEPT_BYTES: u64 = 32 << 20;

#[derive(Debug)]
pub(crate) struct Frames {
    objects: Arc<Objects>,
    kept: Mutex<Lru<(Digest, u64), Bytes>>,
}

impl Frames {
    pub(crate) fn new(objects: Arc<Objects>) -> Self {
        Self { objects, kept: Mutex::new(Lru::new(KEPT_BYTES)) }
    }

    /// The blocks of a frame of `segment` that has no prefix.
    pub(crate) async fn read(&self, segment: Digest, frame: Frame) -> Result<Bytes, StoreError> {
        let key = (segment, frame.offset);
        if let Some(raw) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(raw);
        }
        let wire = self.fetch(segment, frame).await?;
        let raw = Bytes::from(blocking(move || unpack(segment, &frame, &wire, &[])).await?);
        let weight = raw.len() as u64;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).put(key, raw.clone(), weight);
        Ok(raw)
    }

    /// A frame's bytes as they are stored, not looked at yet.
    pub(crate) async fn fetch(&self, segment: Digest, frame: Frame) -> Result<Bytes, StoreError> {
        let range = frame.offset..frame.offset + u64::from(frame.wire_len);
        match self.objects.read(segment, range).await {
            // It is the layout that points there, not a peer.
            Err(StoreError::BadRange { length, end, .. }) => {
                Err(StoreError::damaged(segment, format!("it ends at byte {length}, a frame at byte {end}")))
            }
            Err(StoreError::NotFound { .. }) => Err(StoreError::damaged(segment, "it is not there")),
            other => other,
        }
    }
}

/// Proves and unpacks a frame's stored bytes.
pub(crate) fn unpack(segment: Digest, frame: &Frame, wire: &[u8], prefix: &[u8]) -> Result<Vec<u8>, StoreError> {
    let at = frame.offset;
    if hash16(wire) != frame.wire_hash {
        return Err(StoreError::damaged(
            segment,
            format!("the frame at byte {at} does not hash to what its layout says"),
        ));
    }
    let raw = decompress(frame.codec, wire, frame.raw_len as usize, prefix)
        .map_err(|error| StoreError::damaged(segment, format!("the frame at byte {at}: {error}")))?;
    // A wrong prefix gives other bytes, and no error.
    if !prefix.is_empty() && hash16(&raw) != frame.raw_hash {
        return Err(StoreError::damaged(segment, format!("the frame at byte {at} does not unpack after its prefix")));
    }
    Ok(raw)
}
