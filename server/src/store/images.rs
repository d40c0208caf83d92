//! The small index of stored images: one file an image, written last.
//!
//! ```text
//! images/<image id>    JSON: number, size, layout, sections, segments made for it, bytes added, hash trees
//! ```
//! An image exists when this file does. Everything it names was synced before it was written, and it is renamed into
//! place: that rename is the commit point of a publish.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::release::{Section, Sections};
use goldsync_proto::verity::Derived;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::files::{list, prepare_folder, sync_parent, write_durable};

const FORMAT: u32 = 1;

/// What the store knows of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    format: u32,
    /// Its id.
    pub image: ImageId,
    /// Images are numbered as they come.
    pub number: u64,
    /// Bytes in it.
    pub size: u64,
    /// Where its layout is.
    pub layout: Section,
    /// Where its signature is.
    pub sections: Sections,
    /// Bytes that it added to the store.
    pub added: u64,
    /// The segments that were made for it; the others that its layout names are older images'.
    pub segments: Vec<Digest>,
    /// What of it derives from the rest. Found when it came; a record from before that was done has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<Derived>,
}

impl ImageRecord {
    /// A record as this server writes it.
    pub(crate) fn new(
        image: ImageId,
        number: u64,
        geometry: Geometry,
        layout: Section,
        sections: Sections,
        added: u64,
        segments: Vec<Digest>,
    ) -> Self {
        let (size, derived) = (geometry.size(), Vec::new());
        Self { format: FORMAT, image, number, size, layout, sections, added, segments, derived }
    }

    /// The same of an image of which some blocks derive.
    pub(crate) fn deriving(self, derived: Vec<Derived>) -> Self {
        Self { derived, ..self }
    }

    fn read(path: &Path, image: ImageId) -> Result<Self, StoreError> {
        let refuse = |what: String| StoreError::Record { path: path.to_owned(), what };
        let text = fs::read(path).map_err(StoreError::io("read", path))?;
        let record: Self = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        if record.format != FORMAT {
            return Err(refuse(format!("format {} is not known here, only {FORMAT}", record.format)));
        }
        if record.image != image {
            return Err(refuse(format!("it is about image {}", record.image)));
        }
        Geometry::new(record.size).map_err(|error| refuse(error.to_string()))?;
        Ok(record)
    }
}

#[derive(Debug)]
pub(crate) struct Images {
    folder: PathBuf,
    records: RwLock<HashMap<ImageId, Arc<ImageRecord>>>,
}

impl Images {
    pub(crate) fn open(folder: PathBuf) -> Result<Self, StoreError> {
        prepare_folder(&folder)?;
        let mut records = HashMap::new();
        for path in list(&folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if let Ok(image) = name.parse() {
                records.insert(image, Arc::new(ImageRecord::read(&path, image)?));
            }
        }
        Ok(Self { folder, records: RwLock::new(records) })
    }

    pub(crate) fn get(&self, image: ImageId) -> Option<Arc<ImageRecord>> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).get(&image).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<ImageRecord>> {
        let mut all: Vec<_> = self.records.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_unstable_by_key(|record| record.image);
        all
    }

    /// Makes an image exist.
    pub(crate) fn commit(&self, record: ImageRecord) -> Result<(), StoreError> {
        let path = self.folder.join(record.image.to_string());
        let mut text = serde_json::to_vec_pretty(&record)
            .map_err(|error| StoreError::Record { path: path.clone(), what: error.to_string() })?;
        text.push(b'\n');
        write_durable(&path, &text)?;
        self.records.write().unwrap_or_else(PoisonError::into_inner).insert(record.image, Arc::new(record));
        Ok(())
    }

    /// When an image was committed.
    pub(crate) fn age(&self, image: ImageId) -> Result<Duration, StoreError> {
        let path = self.folder.join(image.to_string());
        let written = fs::metadata(&path).and_then(|meta| meta.modified()).map_err(StoreError::io("read", &path))?;
        Ok(SystemTime::now().duration_since(written).unwrap_or_default())
    }

    /// Makes an image not exist any more; on return that survives a power cut.
    pub(crate) fn remove(&self, image: ImageId) -> Result<(), StoreError> {
        let path = self.folder.join(image.to_string());
        self.records.write().unwrap_or_else(PoisonError::into_inner).remove(&image);
        fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        sync_parent(&path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::verity::{Salted, Tree};

    fn record() -> ImageRecord {
        let section = Section { name: Digest::of(b"s"), length: 8 };
        let sections = Sections { subtrees: section, blocks: section, rolling: section };
        let geometry = Geometry::new(4096).unwrap();
        let tree = Tree { data: 0, blocks: 2, at: 3, salted: Salted::Before, salt: vec![7; 32] };
        ImageRecord::new(ImageId::of(b"x"), 7, geometry, section, sections, 9, vec![Digest::of(b"a")])
            .deriving(vec![Derived { tree, runs: vec![(3, 1)] }])
    }

    #[test]
    fn a_record_survives_reopening() {
        let folder = tempfile::tempdir().unwrap();
        Images::open(folder.path().into()).unwrap().commit(record()).unwrap();
        let images = Images::open(folder.path().into()).unwrap();
        assert_eq!(images.all(), [Arc::new(record())]);
        assert_eq!(images.get(ImageId::of(b"y")), None);
    }

    #[test]
    fn a_record_that_cannot_be_used_is_named() {
        for (from, to, why) in [
            ("\"format\": 1", "\"format\": 2", "format 2"),
            ("\"size\": 4096", "\"size\": 4097", "4097"),
            ("\"size\"", "\"sise\"", "missing field `size`"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            Images::open(folder.path().into()).unwrap().commit(record()).unwrap();
            let path = folder.path().join(record().image.to_string());
            fs::write(&path, fs::read_to_string(&path).unwrap().replace(from, to)).unwrap();
            let error = Images::open(folder.path().into()).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_record_under_another_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Images::open(folder.path().into()).unwrap().commit(record()).unwrap();
        let other = folder.path().join(ImageId::of(b"y").to_string());
        fs::rename(folder.path().join(record().image.to_string()), other).unwrap();
        let error = Images::open(folder.path().into()).unwrap_err().to_string();
        assert!(error.contains("it is about image"), "{error}");
    }
}
