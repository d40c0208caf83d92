//! Removing what nothing needs any more, so that a kill at any point costs nothing but the work.
//!
//! ```text
//! 1  plans of images that are to go      (see `packs`)
//! 2  images/<image id>                   from here on the image does not exist
//! 3  objects that no image and no plan names any more
//! ```
//! Names go before what they name: a death in between leaves objects that belong to nothing, and the next collection
//! removes them. What an image needs is everything that its record and its layout name, and whatever those differ from.
//! A segment goes when the last image goes that lies in a part of it.
//!
//! What was written or read within [`super::StoreOptions::grace`] stays, for the next time: a plan in the making has
//! objects that nothing names yet, and a node may be in the middle of one that nothing names any more.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use goldsync_proto::digest::{Digest, ImageId};

use super::files::blocking;
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

    use super::*;
    use crate::golden::Uploads;
    use crate::golden::testing::{BLOCK, noise, publish, read_runs};
    use crate::packs::{Packs, PacksOptions};
    use crate::store::StoreOptions;

    struct Server {
        store: Arc<Store>,
        uploads: Arc<Uploads>,
        packs: Arc<Packs>,
    }

    impl Server {
        async fn open(folder: &Path, grace: Duration) -> Self {
            let store = Store::open(folder, StoreOptions { grace, ..StoreOptions::default() }).await.unwrap();
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

    /// Goal: killed before any change of the disk, a collection costs nothing that is needed, and the next one leaves just
    /// what an undisturbed one leaves. Method: the same store again and again, broken one change later each time.
    #[tokio::test]
    async fn a_collection_may_be_killed_at_any_change() {
        let scratch = tempfile::tempdir().unwrap();
        let (whole, images) = (scratch.path().join("whole"), images());
        let ids: Vec<ImageId> = images.iter().map(|bytes| ImageId::of(bytes)).collect();
        let gone = [ids[1], ids[2]];
        {
            let server = Server::open(&whole, Duration::ZERO).await;
            for bytes in &images {
                publish(&server.uploads, bytes).await.unwrap();
            }
            for (base, target) in [(Some(0), 1), (Some(2), 3), (Some(0), 3), (None, 2), (None, 3)] {
                server.packs.prepare(base.map(|base: usize| ids[base]), ids[target]).await.unwrap();
            }
        }
        let mut left = None;
        let mut changes = 0;
        // Undisturbed first.
        for breaks_in in std::iter::once(u64::MAX).chain(0..) {
            let folder = scratch.path().join("torn");
            copy(&whole, &folder);
            let killed = {
                let server = Server::open(&folder, Duration::ZERO).await;
                server.store.objects().break_in(breaks_in);
                server.collect(&gone).await.is_err()
            };
            let server = Server::open(&folder, Duration::ZERO).await;
            for (image, bytes) in ids.iter().zip(&images) {
                let lives = server.store.image(*image).is_some();
                assert!(lives || gone.contains(image), "a needed image is lost after {breaks_in} changes");
                assert!(
                    !lives || server.bytes(*image).await == *bytes,
                    "a visible image is torn after {breaks_in} changes"
                );
            }
            server.collect(&gone).await.unwrap();
            server.packs.prepare(Some(ids[0]), ids[3]).await.unwrap();
            assert_eq!(server.packs.made(), 0, "the plan between images that stay is still there");
            let now = files(&folder);
            assert_eq!(left.get_or_insert_with(|| now.clone()), &now, "after {breaks_in} changes");
            std::fs::remove_dir_all(&folder).unwrap();
            if breaks_in == u64::MAX {
                assert!(now.values().sum::<u64>() < files(&whole).values().sum::<u64>() - 1000 * BLOCK as u64);
                continue;
            }
            if !killed {
                break;
            }
            changes += 1;
        }
        assert!(changes > 10, "{changes}");
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
        assert_eq!(crate::golden::testing::asked_frames(&server.uploads, &images[0]).await.len(), 0);
        publish(&server.uploads, &images[0]).await.unwrap();
        assert_eq!(server.bytes(first).await, images[0]);
    }
}
