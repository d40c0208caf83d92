//! Looking a stored image over: what of it cannot be read any more.
//!
//! Every object that the image needs is read once and held against its hashes: layout and sections whole, of the segments the
//! frames that the image needs. Nothing is unpacked, so that it takes as long as reading the image's compressed bytes.

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::pack::hash16;

use super::files::blocking;
use super::layout::{Frame, Layout, Place};
use super::{Store, StoreError};

/// Frames read at once.
const AHEAD: usize = 4;

/// What is wrong with a stored image.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    /// The frames that cannot be read: segment and offset. Empty if only a layout or a section is damaged.
    pub(crate) frames: HashSet<(Digest, u64)>,
}

impl Store {
    /// What of an image is damaged or missing; `None` if nothing is.
    pub(crate) async fn damage(self: &Arc<Self>, image: ImageId) -> Result<Option<Damage>, StoreError> {
        let record = self.known(image)?;
        let sections = record.sections;
        for section in [sections.subtrees, sections.blocks, sections.rolling] {
            if let Err(error) = self.objects.whole(section).await {
                return found(image, &error).map(Some);
            }
        }
        // From the disk, not from memory.
        let layout = match self.objects.whole(record.layout).await {
            Ok(bytes) => blocking(move || Ok::<_, StoreError>(Layout::decode(&bytes).ok())).await?,
            Err(error) => return found(image, &error).map(Some),
        };
        let Some(layout) = layout else { return Ok(Some(Damage::default())) };
        let frames = self.unreadable(image, &layout).await?;
        Ok((!frames.is_empty()).then_some(Damage { frames }))
    }

    async fn unreadable(&self, image: ImageId, layout: &Layout) -> Result<HashSet<(Digest, u64)>, StoreError> {
        // All of them: what the image does not use itself is some frame's prefix.
        let frames: Vec<(Digest, Frame)> =
            layout.frames().iter().filter_map(|frame| Some((layout.segment_of(frame)?, *frame))).collect();
        let mut checks = stream::iter(frames)
            .map(|(segment, frame)| async move { (segment, frame.offset, self.check_frame(segment, frame).await) })
            .buffer_unordered(AHEAD);
        let mut bad = HashSet::new();
        while let Some((segment, offset, checked)) = checks.next().await {
            if let Err(error) = checked {
                found(image, &error)?;
                bad.insert((segment, offset));
            }
        }
        // What comes after a lost prefix is lost, too.
        let key = |frame: &Frame| Some((layout.segment_of(frame)?, frame.offset));
        for (number, frame) in (0..).zip(layout.frames()) {
            let behind = layout.prefix(number).iter().any(|piece| match piece.place {
                Place::Stored { frame, .. } => {
                    layout.frames().get(frame as usize).and_then(key).is_some_and(|key| bad.contains(&key))
                }
                Place::Zero => false,
            });
            bad.extend(key(frame).filter(|_| behind));
        }
        Ok(bad)
    }

    /// Holds a frame's stored bytes against their hash.
    pub(super) async fn check_frame(&self, segment: Digest, frame: Frame) -> Result<(), StoreError> {
        let wire = self.frames.fetch(segment, frame).await?;
        let same = blocking(move || Ok::<_, StoreError>(hash16(&wire) == frame.wire_hash)).await?;
        let what = || format!("the frame at byte {} does not hash to what its layout says", frame.offset);
        if same { Ok(()) } else { Err(StoreError::damaged(segment, what())) }
    }
}

/// A disk that gives an error where an object lies has lost it, too: only our own end is no word about the object.
fn found(image: ImageId, error: &StoreError) -> Result<Damage, StoreError> {
    if matches!(error, StoreError::Stopping) {
        return Err(StoreError::Stopping);
    }
    tracing::warn!(%image, %error, "a stored image is damaged");
    Ok(Damage::default())
}
