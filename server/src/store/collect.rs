//! Removing what nothing needs any more, so that a kill at any point costs nothing but the work.
//!
//! ```text
//! 1  plans of images that are to go      (see `packs`)
//! 2  images/<image id>                   from here on the image does not exist
//! 3  objects that no image and no plan names any more
//! ```
//! Names go before what they name: a death in between leaves objects that belong to nothing, and the next collection
//! removes them. What an image needs is everything that its record and its layout name, and whatever those differ from.
//! A segment goes when no image lies in any part of it; one of which most is dead is left by its images first, see `rewrite`.
//!
//! What was written or read within [`super::StoreOptions::grace`] stays, for the next time: a plan in the making has
//! objects that nothing names yet, and a node may be in the middle of one that nothing names any more.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use goldsync_proto::digest::{Digest, ImageId};

use super::files::blocking;
use super::rewrite::Rewriting;
use super::{ImageRecord, Store, StoreError, Swept};

/// How long an image that no release ever had waits for one.
const UNSIGNED: Duration = Duration::from_secs(24 * 3600);

/// What is to be collected.
#[derive(Clone, Debug, Default)]
pub struct Unneeded {
    /// Images that shall not exist any more.
    pub images: Vec<ImageId>,
    /// Objects that something else than images needs.
    pub names: HashSet<Digest>,
}

impl Store {
    /// Somebody is going to read an image: it is not to be removed for a while.
    pub(crate) fn ask(&self, image: ImageId) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(image, Instant::now());
    }

    /// Of images that nobody needs, those that nobody asked for lately and, unless they are known to be old, that were not
    /// stored lately: a publisher may be about to sign them.
    pub(crate) fn idle(&self, images: &[ImageId], settled: &HashSet<ImageId>) -> Result<Vec<ImageId>, StoreError> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, at| at.elapsed() < self.grace);
        let mut idle = Vec::new();
        for image in images.iter().filter(|image| !asked.contains_key(image)) {
            if settled.contains(image) || self.images.age(*image)? >= UNSIGNED {
                idle.push(*image);
            }
        }
        Ok(idle)
    }

    /// Makes images not exist any more. Returns the segments in which the others lie.
    pub(crate) async fn remove_images(self: &Arc<Self>, images: &[ImageId]) -> Result<HashSet<Digest>, StoreError> {
        for image in images.iter().copied().filter(|image| self.image(*image).is_some()) {
            #[cfg(test)]
            self.objects.broken()?;
            let store = self.clone();
            blocking(move || {
                store.images.remove(image)?;
                store.forget_whole(image)
            })
            .await?;
            self.layouts.lock().unwrap_or_else(PoisonError::into_inner).remove(&image);
        }
        let mut segments = HashSet::new();
        for record in self.images() {
            // Of an image whose layout cannot be read nobody knows what it needs: its own segments, at least.
            segments.extend(&record.segments);
            if let Ok(layout) = self.layout(record.image).await {
                segments.extend(layout.segments());
            }
        }
        Ok(segments)
    }

    /// Removes objects that belong to no image and are not among `others`.
    pub async fn sweep(self: &Arc<Self>, others: HashSet<Digest>) -> Result<Swept, StoreError> {
        let mut wanted = others;
        for record in self.images() {
            // Whatever cannot be read may still name what is needed: then nothing is removed at all.
            wanted.extend(self.needs(&record).await?);
        }
        wanted.extend(self.rewriting().await?.iter().flat_map(Rewriting::names));
        let wanted = self.with_bases(wanted).await?;
        let (objects, grace) = (self.objects.clone(), self.grace);
        blocking(move || objects.sweep(|name| wanted.contains(&name), grace)).await
    }

    /// Bytes on disk that only these images need.
    pub async fn only_for(self: &Arc<Self>, images: &HashSet<ImageId>) -> Result<u64, StoreError> {
        let (mut theirs, mut others) = (HashSet::new(), HashSet::new());
        for record in self.images() {
            let names = if images.contains(&record.image) { &mut theirs } else { &mut others };
            names.extend(self.needs(&record).await?);
        }
        let (theirs, others) = (self.with_bases(theirs).await?, self.with_bases(others).await?);
        let mut bytes = 0;
        for name in theirs.difference(&others) {
            bytes += self.objects.takes(*name).await?;
        }
        Ok(bytes)
    }

    /// The objects that an image is made of.
    async fn needs(&self, record: &ImageRecord) -> Result<HashSet<Digest>, StoreError> {
        let sections = [record.layout, record.sections.subtrees, record.sections.blocks, record.sections.rolling];
        let mut names: HashSet<Digest> = sections.map(|section| section.name).into();
        names.extend(self.layout(record.image).await?.segments());
        Ok(names)
    }

    /// These objects, and those that they differ from.
    async fn with_bases(&self, mut names: HashSet<Digest>) -> Result<HashSet<Digest>, StoreError> {
        let mut open: Vec<Digest> = names.iter().copied().collect();
        while let Some(name) = open.pop() {
            let base = match self.objects.delta(name).await {
                Ok(head) => head.map(|head| head.base.name),
                // It is lost already, and nothing that it would need can bring it back.
                Err(StoreError::Damaged { .. }) => None,
                Err(error) => return Err(error),
            };
            open.extend(base.filter(|base| names.insert(*base)));
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use goldsync_proto::plan::Plan;
    use goldsync_proto::release::Section;

    use super::*;
    use crate::golden::Uploads;
    use crate::golden::testing::{BLOCK, apply, asked_frames, image_of, noise, object_path, publish, read_runs};
    use crate::packs::{Packs, PacksOptions, PlanState};
    use crate::store::{Rewritten, StoreOptions};

    struct Server {
        store: Arc<Store>,
        uploads: Arc<Uploads>,
        packs: Arc<Packs>,
    }

    impl Server {
        async fn open(folder: &Path, grace: Duration) -> Self {
            Self::open_with(folder, StoreOptions { grace, ..StoreOptions::default() }).await
        }

        async fn open_with(folder: &Path, options: StoreOptions) -> Self {
            let store = Store::open(folder, options).await.unwrap();
            let packs =
                Packs::open(store.clone(), PacksOptions { better: &[], ..PacksOptions::default() }).await.unwrap();
            let uploads = Uploads::open(store.clone()).await.unwrap();
            Self { store, uploads, packs }
        }

        /// As `collector::collect` does.
        async fn collect(&self, gone: &[ImageId]) -> Result<Swept, StoreError> {
            let stays = |image: ImageId| self.store.image(image).is_some() && !gone.contains(&image);
            let names = self.packs.retain(|base, target| base.is_none_or(stays) && stays(target)).await?;
            self.uploads.collect(Unneeded { images: gone.to_vec(), names }).await
        }

        /// As `collector::rewrite` does.
        async fn rewrite(&self) -> Result<Rewritten, StoreError> {
            let rewritten = self.uploads.rewrite(&self.packs.held(|_| true)).await?;
            self.packs.forget_moved().await?;
            Ok(rewritten)
        }

        /// All that the collector does until there is nothing left to do.
        async fn tidy(&self, gone: &[ImageId]) -> Result<Rewritten, StoreError> {
            self.collect(gone).await?;
            let rewritten = self.rewrite().await?;
            self.collect(gone).await?;
            Ok(rewritten)
        }

        /// An image's cold plan.
        async fn plan(&self, image: ImageId) -> Plan {
            let state = self.packs.prepare(None, image).await.unwrap();
            let PlanState::Ready { name, length } = state else { panic!("not ready though it was waited for") };
            Plan::decode(&self.store.objects().whole(Section { name, length }).await.unwrap()).unwrap()
        }

        /// An image's bytes, from the segments alone.
        async fn bytes(&self, image: ImageId) -> Vec<u8> {
            self.store.forget_whole(image).unwrap();
            self.store.materialise(image).await.unwrap().map().unwrap().to_vec()
        }
    }

    /// Four images, each from the one before; the middle two have blocks of their own, and some that the last has, too.
    fn images() -> Vec<Vec<u8>> {
        let first = noise(600, 1);
        let second = [&first[..300 * BLOCK], &noise(9, 2), &first[300 * BLOCK..]].concat();
        let third = [&second[..], &noise(1100, 3)].concat();
        let mut fourth = [&third[..305 * BLOCK], &noise(2, 4)].concat();
        fourth[77] ^= 1;
        vec![first, second, third, fourth]
    }

    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to)
            } else {
                std::fs::copy(entry.path(), to).map(drop).unwrap()
            }
        }
    }

    /// Every file below a folder, but for whole images.
    fn files(folder: &Path) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_dir() && name != "cache" {
                all.extend(files(&entry.path()).into_iter().map(|(inner, len)| (format!("{name}/{inner}"), len)));
            } else if entry.path().is_file() {
                all.insert(name, entry.metadata().unwrap().len());
            }
        }
        all
    }

    /// Images with plans between them, of which some are to go.
    struct Story {
        images: Vec<Vec<u8>>,
        plans: Vec<(Option<usize>, usize)>,
        gone: Vec<usize>,
        /// The plan that is not lost.
        stays: (usize, usize),
    }

    impl Story {
        /// Tidies up, killed before any change of the disk: nothing that is needed is lost, and the next time leaves just what
        /// an undisturbed one leaves. The same store again and again, broken one change later each time. Answers after how many
        /// changes nothing was left to break, and with the bytes before and after.
        async fn tell(&self) -> (u64, u64, u64) {
            let scratch = tempfile::tempdir().unwrap();
            let whole = scratch.path().join("whole");
            let ids: Vec<ImageId> = self.images.iter().map(|bytes| ImageId::of(bytes)).collect();
            let gone: Vec<ImageId> = self.gone.iter().map(|at| ids[*at]).collect();
            {
                let server = Server::open(&whole, Duration::ZERO).await;
                for bytes in &self.images {
                    publish(&server.uploads, bytes).await.unwrap();
                }
                for (base, target) in &self.plans {
                    server.packs.prepare(base.map(|base| ids[base]), ids[*target]).await.unwrap();
                }
            }
            let bytes = |files: &BTreeMap<String, u64>| files.values().sum::<u64>();
            let before = bytes(&files(&whole));
            let mut left = None;
            // Undisturbed first.
            for breaks_in in std::iter::once(u64::MAX).chain(0..) {
                let folder = scratch.path().join("torn");
                copy(&whole, &folder);
                let killed = {
                    let server = Server::open(&folder, Duration::ZERO).await;
                    server.store.objects().break_in(breaks_in);
                    server.tidy(&gone).await.is_err()
                };
                let server = Server::open(&folder, Duration::ZERO).await;
                for (image, bytes) in ids.iter().zip(&self.images) {
                    let lives = server.store.image(*image).is_some();
                    assert!(lives || gone.contains(image), "a needed image is lost after {breaks_in} changes");
                    assert!(
                        !lives || server.bytes(*image).await == *bytes,
                        "a visible image is torn after {breaks_in} changes"
                    );
                }
                server.tidy(&gone).await.unwrap();
                let (base, target) = self.stays;
                server.packs.prepare(Some(ids[base]), ids[target]).await.unwrap();
                assert_eq!(server.packs.made(), 0, "the plan between images that stay is still there");
                let now = files(&folder);
                assert_eq!(left.get_or_insert_with(|| now.clone()), &now, "after {breaks_in} changes");
                std::fs::remove_dir_all(&folder).unwrap();
                if !killed && breaks_in != u64::MAX {
                    return (breaks_in, before, bytes(&now));
                }
            }
            unreachable!("there are fewer changes than numbers")
        }
    }

    #[tokio::test]
    async fn a_collection_may_be_killed_at_any_change() {
        let plans = vec![(Some(0), 1), (Some(2), 3), (Some(0), 3), (None, 2), (None, 3)];
        let story = Story { images: images(), plans, gone: vec![1, 2], stays: (0, 3) };
        let (changes, before, after) = story.tell().await;
        assert!(changes > 10 && after < before - 1000 * BLOCK as u64, "{changes} changes, {before} to {after} bytes");
    }

    /// A first image, of which those after it need: most of one frame, a few blocks of others, and of one what their own
    /// blocks are stored after.
    fn survivors() -> Vec<Vec<u8>> {
        let first = noise(2500, 1);
        let frame = |at: usize| &first[at * 256 * BLOCK..(at + 1) * 256 * BLOCK];
        let few = |at: usize| -> Vec<u8> {
            frame(at).chunks(16 * BLOCK).flat_map(|blocks| &blocks[..BLOCK]).copied().collect()
        };
        let near = |at: usize, by: u8| {
            let mut blocks = frame(3)[at * BLOCK..(at + 4) * BLOCK].to_vec();
            blocks.iter_mut().step_by(500).for_each(|byte| *byte ^= by);
            blocks
        };
        let common: Vec<u8> = [&frame(0)[..200 * BLOCK], &few(1), &few(2)[..], &vec![0; 7 * BLOCK], &few(6)].concat();
        let second = [&common[..], &near(40, 7)].concat();
        let third = [&near(80, 9), &second[..], &noise(30, 5)].concat();
        let fourth = [&second[5 * BLOCK..], &near(160, 11)].concat();
        vec![first, second, third, fourth]
    }

    #[tokio::test]
    async fn writing_segments_anew_may_be_killed_at_any_change() {
        let plans = vec![(None, 1), (None, 2), (Some(1), 2), (Some(1), 3)];
        let story = Story { images: survivors(), plans, gone: vec![0], stays: (1, 3) };
        let (changes, before, after) = story.tell().await;
        assert!(changes > 15 && after < before - 2000 * BLOCK as u64, "{changes} changes, {before} to {after} bytes");
    }

    /// Goal: what is forecast comes back; who has an old plan in hand can carry it out until the grace is over; blocks are found
    /// where they lie now; layouts that differ from one that went still read.
    #[tokio::test]
    async fn what_moved_is_found_and_what_it_left_stays_for_the_grace() {
        let folder = tempfile::tempdir().unwrap();
        let images = survivors();
        let ids: Vec<ImageId> = images.iter().map(|bytes| ImageId::of(bytes)).collect();
        let gone = HashSet::from([ids[0]]);
        // Two with long layouts; the second's is kept as what differs from the first's, and only the first will move.
        let fresh = noise(100, 77);
        let back: Vec<u8> = fresh.chunks(BLOCK).rev().flatten().copied().collect();
        let stays = [&fresh[..], &back.repeat(6)].concat();
        let moves = [&images[1][210 * BLOCK..220 * BLOCK], &stays, &noise(1, 78)].concat();
        let layout_of = |server: &Server, bytes: &[u8]| server.store.image(ImageId::of(bytes)).unwrap().layout;
        let (old, base) = {
            let server = Server::open(folder.path(), Duration::from_secs(600)).await;
            for bytes in &images {
                publish(&server.uploads, bytes).await.unwrap();
            }
            for bytes in [&moves, &stays] {
                publish(&server.uploads, bytes).await.unwrap();
            }
            let base = layout_of(&server, &moves);
            let kept = server.store.objects().delta(layout_of(&server, &stays).name).await.unwrap();
            assert_eq!(kept.map(|head| head.base), Some(base));
            let cold = server.plan(ids[1]).await;
            let mut old = server.store.layout(ids[1]).await.unwrap().segments().to_vec();
            let forecast = server.store.dead_without(&gone, &HashSet::new()).await.unwrap();
            assert_eq!(server.store.dead_without(&HashSet::new(), &HashSet::new()).await.unwrap(), 0);
            let held: HashSet<Digest> = old.iter().copied().collect();
            assert_eq!(server.store.dead_without(&gone, &held).await.unwrap(), 0, "what a plan holds does not go");
            server.collect(&[ids[0]]).await.unwrap();
            let rewritten = server.rewrite().await.unwrap();
            let gain = rewritten.dead - rewritten.written;
            assert!(gain > 1500 * BLOCK as u64 && gain.abs_diff(forecast) < gain / 20, "{rewritten:?}, {forecast}");
            assert_eq!((rewritten.images, server.rewrite().await.unwrap()), (4, Rewritten::default()));
            let swept = server.collect(&[ids[0]]).await.unwrap();
            assert!(swept.freed < 100_000 && swept.later > rewritten.dead / 2, "{swept:?}");
            assert!(apply(&server.store, &cold, &[]).await == images[1]);
            let lies = server.store.layout(ids[1]).await.unwrap();
            old.retain(|segment| !lies.segments().contains(segment));
            assert_eq!(old.len() as u64, rewritten.segments);
            assert!(old.iter().any(|segment| cold.objects.contains(segment)));
            let now = server.plan(ids[1]).await;
            assert!(now.objects.iter().all(|object| !old.contains(object)), "a new plan leads to where the image lies");
            assert_eq!(asked_frames(&server.uploads, &images[1][BLOCK..]).await.len(), 0);
            assert!(layout_of(&server, &moves) != base);
            (old, base)
        };
        let server = Server::open(folder.path(), Duration::ZERO).await;
        let stored = server.store.stored();
        let swept = server.collect(&[]).await.unwrap();
        // Opening it has removed what no plan and no image names.
        assert!(swept.freed < 1000 && stored < files(folder.path()).values().sum::<u64>() + 1000, "{swept:?}");
        for name in old {
            assert!(matches!(server.store.objects().len(name).await, Err(StoreError::NotFound { .. })));
        }
        for (image, bytes) in ids.iter().zip(&images).skip(1) {
            assert!(server.bytes(*image).await == *bytes);
            assert!(server.store.damage(*image).await.unwrap().is_none());
        }
        assert!(server.store.objects().whole(base).await.is_ok(), "what another differs from stays");
        assert!(server.bytes(ImageId::of(&stays)).await == stays);
        assert!(server.bytes(ImageId::of(&moves)).await == moves);
    }

    /// Goal: rot is not carried on under a good name. Method: break a needed frame; then break what was copied.
    #[tokio::test]
    async fn what_is_rotten_is_not_copied_and_a_rotten_copy_is_not_used() {
        let scratch = tempfile::tempdir().unwrap();
        let (whole, torn) = (scratch.path().join("whole"), scratch.path().join("torn"));
        let images = survivors();
        let ids: Vec<ImageId> = images.iter().map(|bytes| ImageId::of(bytes)).collect();
        {
            let server = Server::open(&whole, Duration::ZERO).await;
            for bytes in &images {
                publish(&server.uploads, bytes).await.unwrap();
            }
            server.collect(&[ids[0]]).await.unwrap();
        }
        let spoil = |server: &Server, name: Digest, offset: u64| {
            let path = object_path(&server.store, name);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[offset as usize + 9] ^= 1;
            std::fs::write(path, bytes).unwrap();
        };
        copy(&whole, &torn);
        let server = Server::open(&torn, Duration::ZERO).await;
        let layout = server.store.layout(ids[1]).await.unwrap();
        let frame = layout.frames()[0];
        spoil(&server, layout.segment_of(&frame).unwrap(), frame.offset);
        let first = server.rewrite().await.unwrap();
        let rotten = layout.segment_of(&frame).unwrap();
        assert_eq!(first.segments, 1, "the other is written anew");
        assert!(server.store.layout(ids[1]).await.unwrap().segments().contains(&rotten));
        server.store.forget_whole(ids[1]).unwrap();
        assert!(matches!(server.store.materialise(ids[1]).await, Err(StoreError::Damaged { .. })));
        drop(server);

        std::fs::remove_dir_all(&torn).unwrap();
        copy(&whole, &torn);
        let server = Server::open(&torn, Duration::ZERO).await;
        let begun = server.store.begin_rewriting(&HashSet::new()).await.unwrap().unwrap();
        spoil(&server, begun.names().next().unwrap(), 0);
        assert!(matches!(server.rewrite().await, Err(StoreError::Damaged { .. })));
        assert!(server.store.rewriting().await.unwrap().is_none(), "what was copied wrong is given up");
        for (image, bytes) in ids.iter().zip(&images).skip(1) {
            assert!(server.bytes(*image).await == *bytes);
        }
        assert!(server.rewrite().await.unwrap().segments > 0, "and copied again");
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_used_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).await.unwrap();
        for text in ["", "{}", r#"{"format":2,"from":[],"to":[],"frames":[]}"#] {
            std::fs::write(folder.path().join("rewrite.json"), text).unwrap();
            assert!(store.rewriting().await.unwrap().is_none() && !folder.path().join("rewrite.json").exists());
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]
        #[test]
        fn whatever_stays_reads_back_wherever_it_lies(
            images in proptest::collection::vec(
                proptest::collection::vec((0_usize..40, 1_usize..20, 0_u8..5), 1..12), 2..5),
            first: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let folder = tempfile::tempdir().unwrap();
                let mut images: Vec<Vec<u8>> = images.iter().map(|cuts| image_of(cuts)).collect();
                let options = StoreOptions { grace: Duration::ZERO, rewrite_above: 10, ..StoreOptions::default() };
                let server = Server::open_with(folder.path(), options).await;
                for bytes in &images {
                    publish(&server.uploads, bytes).await.unwrap();
                }
                let goes = images.remove(if first { 0 } else { images.len() - 1 });
                images.retain(|bytes| *bytes != goes);
                server.tidy(&[ImageId::of(&goes)]).await.unwrap();
                for bytes in &images {
                    assert!(server.bytes(ImageId::of(bytes)).await == *bytes);
                }
                publish(&server.uploads, &goes).await.unwrap();
                assert!(server.bytes(ImageId::of(&goes)).await == goes);
            });
        }
    }

    #[tokio::test]
    async fn what_was_read_or_written_lately_waits() {
        let folder = tempfile::tempdir().unwrap();
        let (server, images) = (Server::open(folder.path(), Duration::from_secs(600)).await, images());
        let ids: Vec<ImageId> = images.iter().map(|bytes| ImageId::of(bytes)).collect();
        publish(&server.uploads, &images[0]).await.unwrap();
        publish(&server.uploads, &images[2]).await.unwrap();
        // One is in a publisher's hands: neither known to be old nor signed yet. The other is being read.
        let settled = HashSet::from([ids[0], ids[2]]);
        assert_eq!(server.store.idle(&ids[..1], &settled).unwrap(), []);
        drop(server);
        let server = Server::open(folder.path(), Duration::from_secs(600)).await;
        assert_eq!(server.store.idle(&ids[..1], &HashSet::new()).unwrap(), []);
        assert_eq!(server.store.idle(&ids[..1], &settled).unwrap(), [ids[0]]);
        read_runs(&server.store, ids[2], &[(0, 1)]).await.unwrap();
        assert_eq!(server.store.idle(&[ids[0], ids[2]], &settled).unwrap(), [ids[0]]);
        let swept = server.collect(&[ids[2]]).await.unwrap();
        assert!(swept.freed == 0 && swept.later > 1000 * BLOCK as u64, "{swept:?}");
        assert_eq!(server.bytes(ids[0]).await, images[0]);
    }

    /// Goal: a segment that outlives the image that it was made for is found again after a restart.
    #[tokio::test]
    async fn blocks_of_a_segment_whose_maker_is_gone_are_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let images = images();
        let first = ImageId::of(&images[0]);
        {
            let server = Server::open(folder.path(), Duration::ZERO).await;
            for bytes in &images[..2] {
                publish(&server.uploads, bytes).await.unwrap();
            }
            server.collect(&[first]).await.unwrap();
        }
        let server = Server::open(folder.path(), Duration::ZERO).await;
        assert_eq!(asked_frames(&server.uploads, &images[0]).await.len(), 0);
        publish(&server.uploads, &images[0]).await.unwrap();
        assert_eq!(server.bytes(first).await, images[0]);
    }
}
