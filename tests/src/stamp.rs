//! Was anything written? What a file system says of every file below a folder, before and after.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes when a file is written, replaced or merely touched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Every file below some paths.
#[derive(Clone, PartialEq, Eq)]
pub struct Stamps(BTreeMap<PathBuf, Stamp>);

impl Stamps {
    /// Looks at all files and links below `paths`, but for those of which `except` says so.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>, except: impl Fn(&Path) -> bool) -> Self {
        let mut stamps = BTreeMap::new();
        paths.into_iter().for_each(|path| walk(path, &except, &mut stamps));
        Self(stamps)
    }

    /// The files that are not as in `earlier`.
    pub fn differing(&self, earlier: &Self) -> Vec<PathBuf> {
        let all = self.0.keys().chain(earlier.0.keys());
        let mut differing: Vec<_> = all.filter(|path| self.0.get(*path) != earlier.0.get(*path)).cloned().collect();
        differing.sort();
        differing.dedup();
        differing
    }
}

fn walk(path: &Path, except: &impl Fn(&Path) -> bool, stamps: &mut BTreeMap<PathBuf, Stamp>) {
    if except(path) {
        return;
    }
    let Ok(data) = fs::symlink_metadata(path) else { return };
    if data.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            walk(&entry.path(), except, stamps);
        }
        return;
    }
    let stamp = Stamp {
        inode: data.ino(),
        size: data.len(),
        modified: (data.mtime(), data.mtime_nsec()),
        changed: (data.ctime(), data.ctime_nsec()),
    };
    stamps.insert(path.to_owned(), stamp);
}

impl fmt::Debug for Stamps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files", self.0.len())
    }
}
