//! Immutable objects, each named by the BLAKE3 hash of its bytes.
//!
//! ```text
//! objects/3f/3f2a...     one file an object
//! objects/3f/3f2a....d   or what differs from another; see [`super::delta`]
//! ```
//! An object is written beside its place, synced, and renamed into it, so that a name never stands for half of its
//! bytes. Writing an object that exists replaces it with the same bytes, which also heals a damaged one. Nothing here
//! knows which objects belong to which image; see [`super::Store::sweep`] for those that belong to none.
//! The interface is `object_store`'s, so that another back-end can take the local folder's place.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use goldsync_proto::digest::Digest;
use goldsync_proto::release::Section;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};

use super::StoreError;
use super::files::{blocking, list};

/// The objects of one data folder.
#[derive(Debug)]
pub struct Objects {
    folder: PathBuf,
    backend: Arc<dyn ObjectStore>,
    stored: AtomicU64,
    /// When objects were last read.
    read: Mutex<HashMap<Digest, Instant>>,
    #[cfg(test)]
    breaks_in: AtomicU64,
}

impl Objects {
    /// Opens the folder, makes it if need be, and removes what unfinished writes left in it.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&folder).map_err(StoreError::io("create", &folder))?;
        let mut stored = 0;
        for path in object_files(&folder)? {
            if name_of(&path).is_some() {
                stored += fs::metadata(&path).map_err(StoreError::io("read", &path))?.len();
            } else if path.to_string_lossy().contains('#') {
                fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        let backend = Arc::new(LocalFileSystem::new_with_prefix(&folder)?.with_fsync(true));
        Ok(Self {
            folder,
            backend,
            stored: AtomicU64::new(stored),
            read: Mutex::default(),
            #[cfg(test)]
            breaks_in: AtomicU64::new(u64::MAX),
        })
    }

    /// From now on `changes` objects are stored, or files of the store removed, and no more.
    #[cfg(test)]
    pub(crate) fn break_in(&self, changes: u64) {
        self.breaks_in.store(changes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn broken(&self) -> Result<(), StoreError> {
        let left = self.breaks_in.load(Ordering::Relaxed);
        self.breaks_in.store(left.saturating_sub(1), Ordering::Relaxed);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        if left == 0 { Err(StoreError::io("write", &self.folder)(full)) } else { Ok(()) }
    }

    /// Bytes in all objects.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Stores bytes; on return they survive a power cut.
    pub async fn put(&self, bytes: impl Into<Bytes>) -> Result<Section, StoreError> {
        self.put_parts(vec![bytes.into()]).await
    }

    /// Stores the bytes of `parts`, one after the other, as one object.
    pub async fn put_parts(&self, parts: Vec<Bytes>) -> Result<Section, StoreError> {
        Ok(self.put_new(parts).await?.0)
    }

    /// The same, and whether there was no such object before.
    pub(crate) async fn put_new(&self, parts: Vec<Bytes>) -> Result<(Section, bool), StoreError> {
        #[cfg(test)]
        self.broken()?;
        let (section, parts) = blocking(move || Ok::<_, StoreError>((section_of(&parts), parts))).await?;
        let before = self.length_if_any(section.name).await?;
        self.backend.put(&place(section.name), PutPayload::from_iter(parts)).await?;
        self.count(section.length, before);
        Ok((section, before == 0))
    }

    /// Takes back an object that nothing names yet.
    pub(crate) async fn take_back(&self, name: Digest) -> Result<(), StoreError> {
        let length = self.len_plain(name).await?.unwrap_or(0);
        self.backend.delete(&place(name)).await?;
        self.stored.fetch_sub(length, Ordering::Relaxed);
        Ok(())
    }

    /// Stores a file's bytes, in bounded memory.
    pub(crate) async fn put_file(&self, path: &Path) -> Result<Section, StoreError> {
        let path = path.to_owned();
        let (mut file, section) = blocking(move || {
            let mut file = File::open(&path).map_err(StoreError::io("open", &path))?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&mut file).map_err(StoreError::io("read", &path))?;
            file.rewind().map_err(StoreError::io("rewind", &path))?;
            let section = Section { name: Digest(*hasher.finalize().as_bytes()), length: hasher.count() };
            Ok::<_, StoreError>(((file, path), section))
        })
        .await?;
        let before = self.length_if_any(section.name).await?;
        let mut upload = self.backend.put_multipart(&place(section.name)).await?;
        let mut left = section.length;
        while left > 0 {
            let (returned, part) = blocking(move || read_next(file, left)).await?;
            (file, left) = (returned, left - part.len() as u64);
            if let Err(error) = upload.put_part(part.into()).await {
                let _ = upload.abort().await;
                return Err(error.into());
            }
        }
        upload.complete().await?;
        self.count(section.length, before);
        Ok(section)
    }

    fn count(&self, length: u64, before: u64) {
        self.stored.fetch_add(length, Ordering::Relaxed);
        self.stored.fetch_sub(before, Ordering::Relaxed);
    }

    async fn length_if_any(&self, name: Digest) -> Result<u64, StoreError> {
        Ok(self.len_plain(name).await?.unwrap_or(0))
    }

    /// Bytes in an object.
    pub async fn len(&self, name: Digest) -> Result<u64, StoreError> {
        if let Some(length) = self.len_plain(name).await? {
            return Ok(length);
        }
        self.delta(name).await?.map(|head| head.length).ok_or(StoreError::NotFound { name })
    }

    /// Bytes in an object that is kept as it is.
    pub(super) async fn len_plain(&self, name: Digest) -> Result<Option<u64>, StoreError> {
        match self.backend.head(&place(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes of the file that says how an object differs from another.
    pub(super) async fn delta_len(&self, name: Digest) -> Result<Option<u64>, StoreError> {
        match self.backend.head(&delta_place(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Up to `length` bytes, from `offset`, of the file that says how an object differs from another.
    pub(super) async fn delta_bytes(
        &self,
        name: Digest,
        offset: u64,
        length: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        let Some(size) = self.delta_len(name).await? else { return Ok(None) };
        let place = delta_place(name);
        let range = offset.min(size)..offset.saturating_add(length).min(size);
        if range.is_empty() {
            return Ok(Some(Bytes::new()));
        }
        Ok(Some(self.backend.get_range(&place, range).await?))
    }

    /// Stores how an object differs from another.
    pub(super) async fn put_delta(&self, name: Digest, parts: Vec<Bytes>) -> Result<(), StoreError> {
        #[cfg(test)]
        self.broken()?;
        let place = delta_place(name);
        let length = parts.iter().map(|part| part.len() as u64).sum();
        let before = self.delta_len(name).await?.unwrap_or(0);
        self.backend.put(&place, PutPayload::from_iter(parts)).await?;
        self.count(length, before);
        Ok(())
    }

    /// The bytes of `range`, all of which must be inside the object. They are not held against the object's name.
    pub async fn read(&self, name: Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return self.outside(name, &range).await.map(|()| Bytes::new());
        }
        self.touch(name);
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = match self.backend.get_opts(&place(name), options).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return self.read_otherwise(name, range).await,
            Err(error) => return Err(self.outside(name, &range).await.err().unwrap_or(error.into())),
        };
        let (length, wanted) = (found.meta.size, range.end - range.start);
        if range.end > length {
            return Err(bad_range(name, &range, length));
        }
        let bytes = found.bytes().await?;
        if bytes.len() as u64 != wanted {
            return Err(StoreError::damaged(name, format!("{} bytes read of {wanted}", bytes.len())));
        }
        Ok(bytes)
    }

    /// As if somebody read it now.
    pub(super) fn touch(&self, name: Digest) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Instant::now());
    }

    /// The bytes of an object that is not kept as it is.
    async fn read_otherwise(&self, name: Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let head = self.delta(name).await?.ok_or(StoreError::NotFound { name })?;
        if range.end > head.length {
            return Err(bad_range(name, &range, head.length));
        }
        self.read_delta(name, &head, range).await
    }

    /// The bytes from `offset`: `length` of them, or fewer where the object ends.
    pub async fn read_part(&self, name: Digest, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let have = self.len(name).await?;
        if offset > have {
            return Err(bad_range(name, &(offset..offset.saturating_add(length)), have));
        }
        self.read(name, offset..offset.saturating_add(length).min(have)).await
    }

    /// All bytes, proven against the name.
    pub async fn whole(&self, section: Section) -> Result<Bytes, StoreError> {
        let name = section.name;
        let have = self.len(name).await?;
        if have != section.length {
            return Err(StoreError::damaged(name, format!("{have} bytes instead of {}", section.length)));
        }
        let bytes = self.read(name, 0..have).await?;
        blocking(move || match Digest::of(&bytes) {
            got if got == name => Ok(bytes),
            got => Err(StoreError::damaged(name, format!("its bytes hash to {got}"))),
        })
        .await
    }

    async fn outside(&self, name: Digest, range: &Range<u64>) -> Result<(), StoreError> {
        let length = self.len(name).await?;
        if range.end > length || range.start > range.end { Err(bad_range(name, range, length)) } else { Ok(()) }
    }

    /// Removes the objects that `keep` turns down, and that were neither written nor read for `grace`.
    pub(crate) fn sweep(&self, keep: impl Fn(Digest) -> bool, grace: Duration) -> Result<Swept, StoreError> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, at| at.elapsed() < grace);
        let mut swept = Swept::default();
        for path in object_files(&self.folder)? {
            let Some(name) = name_of(&path).filter(|name| !keep(*name)) else { continue };
            let meta = fs::metadata(&path).map_err(StoreError::io("read", &path))?;
            let in_use = self.read.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&name);
            if in_use || !older(&meta, grace) {
                swept.later += meta.len();
                continue;
            }
            #[cfg(test)]
            self.broken()?;
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            self.stored.fetch_sub(meta.len(), Ordering::Relaxed);
            (swept.files, swept.freed) = (swept.files + 1, swept.freed + meta.len());
        }
        Ok(swept)
    }

    /// Bytes that an object takes on disk, in whichever form; 0 if it is not there.
    pub(crate) async fn takes(&self, name: Digest) -> Result<u64, StoreError> {
        Ok(self.len_plain(name).await?.unwrap_or(0) + self.delta_len(name).await?.unwrap_or(0))
    }
}

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files removed.
    pub files: u64,
    /// Bytes in them.
    pub freed: u64,
    /// Bytes that nothing needs, but that were written or read lately.
    pub later: u64,
}

/// Whether a file was last written more than `age` ago. A clock that went back makes nothing old.
pub(crate) fn older(meta: &fs::Metadata, age: Duration) -> bool {
    let written = meta.modified().unwrap_or_else(|_| SystemTime::now());
    SystemTime::now().duration_since(written).is_ok_and(|since| since >= age)
}

fn place(name: Digest) -> ObjectPath {
    let hex = name.to_string();
    ObjectPath::from_iter([hex.get(..2).unwrap_or_default(), &hex])
}

fn delta_place(name: Digest) -> ObjectPath {
    let hex = name.to_string();
    ObjectPath::from_iter([hex.get(..2).unwrap_or_default(), &format!("{hex}{DELTA}")])
}

/// The object that a file is, or belongs to.
fn name_of(path: &Path) -> Option<Digest> {
    let file = path.file_name()?.to_str()?;
    file.strip_suffix(DELTA).unwrap_or(file).parse().ok()
}

fn object_files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    for shelf in list(folder)?.into_iter().filter(|path| path.is_dir()) {
        files.extend(list(&shelf)?);
    }
    Ok(files)
}

/// The ending of files that say how an object differs from another.
const DELTA: &str = ".d";

/// Bytes of a file that are held at a time while it is stored.
const PART: u64 = 8 << 20;

fn read_next((mut file, path): (File, PathBuf), left: u64) -> Result<((File, PathBuf), Vec<u8>), StoreError> {
    let mut part = vec![0; left.min(PART) as usize];
    file.read_exact(&mut part).map_err(StoreError::io("read", &path))?;
    Ok(((file, path), part))
}

fn section_of(parts: &[Bytes]) -> Section {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    Section { name: Digest(*hasher.finalize().as_bytes()), length: hasher.count() }
}

fn bad_range(name: Digest, range: &Range<u64>, length: u64) -> StoreError {
    StoreError::BadRange { name, start: range.start, end: range.end, length }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Objects) {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path().join("objects")).unwrap();
        (folder, objects)
    }

    #[tokio::test]
    async fn an_object_is_found_by_its_hash_and_counted_once() {
        let (folder, objects) = open();
        let section = objects.put_parts(vec![Bytes::from("gol"), Bytes::from("den")]).await.unwrap();
        assert_eq!((section.name, section.length), (Digest::of(b"golden"), 6));
        objects.put("golden").await.unwrap();
        assert_eq!(objects.stored(), 6);
        let hex = section.name.to_string();
        assert_eq!(fs::read(folder.path().join("objects").join(&hex[..2]).join(&hex)).unwrap(), b"golden");
        assert_eq!(objects.whole(section).await.unwrap(), "golden");
        assert_eq!(Objects::open(folder.path().join("objects")).unwrap().stored(), 6);
    }

    #[tokio::test]
    async fn ranges_inside_are_read_and_others_are_told_apart_from_a_missing_object() {
        let (_folder, objects) = open();
        let name = objects.put("golden").await.unwrap().name;
        assert_eq!(objects.read(name, 1..3).await.unwrap(), "ol");
        assert_eq!(objects.read(name, 6..6).await.unwrap(), "");
        assert_eq!(objects.read_part(name, 4, 100).await.unwrap(), "en");
        assert_eq!(objects.read_part(name, 6, 100).await.unwrap(), "");
        for range in [0..7, 6..7, 7..7, 7..9, 100..200, 0..u64::MAX] {
            let error = objects.read(name, range.clone()).await.unwrap_err();
            assert!(matches!(error, StoreError::BadRange { length: 6, .. }), "{range:?}: {error}");
        }
        assert!(matches!(objects.read_part(name, 7, 1).await, Err(StoreError::BadRange { .. })));
        let other = Digest::of(b"other");
        assert!(matches!(objects.read(other, 0..1).await, Err(StoreError::NotFound { .. })));
        assert!(matches!(objects.read(other, 0..0).await, Err(StoreError::NotFound { .. })));
        assert!(matches!(objects.len(other).await, Err(StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn damage_is_named_and_healed_by_storing_again() {
        let (folder, objects) = open();
        let section = objects.put("golden").await.unwrap();
        let hex = section.name.to_string();
        let path = folder.path().join("objects").join(&hex[..2]).join(&hex);
        for damage in ["rolled", "gold"] {
            fs::write(&path, damage).unwrap();
            let error = objects.whole(section).await.unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }) && error.to_string().contains(&hex), "{error}");
            objects.put("golden").await.unwrap();
            assert_eq!(objects.whole(section).await.unwrap(), "golden");
        }
    }

    #[tokio::test]
    async fn half_written_and_unwanted_objects_are_swept() {
        let (folder, objects) = open();
        let (kept, gone) = (objects.put("kept").await.unwrap(), objects.put("gone").await.unwrap());
        let draft = folder.path().join("objects").join(&gone.name.to_string()[..2]).join("abc#1");
        fs::write(&draft, b"half").unwrap();
        let objects = Objects::open(folder.path().join("objects")).unwrap();
        assert!(!draft.exists());
        let later = objects.sweep(|name| name == kept.name, Duration::from_secs(60)).unwrap();
        assert_eq!((later.freed, later.later), (0, 4));
        assert_eq!(objects.sweep(|name| name == kept.name, Duration::ZERO).unwrap().freed, 4);
        assert_eq!(objects.stored(), 4);
        assert!(objects.whole(kept).await.is_ok());
        assert!(matches!(objects.len(gone.name).await, Err(StoreError::NotFound { .. })));
    }
}
