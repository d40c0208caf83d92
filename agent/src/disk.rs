//! Files that are either old or new, never half: written beside, synced, renamed over, and the folder synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file or folder of the state folder that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}: {source}", path.display())]
pub struct DiskError {
    /// What was being done: `cannot read`, ...
    pub doing: &'static str,
    /// To which file.
    pub path: PathBuf,
    /// The system's reason.
    pub source: std::io::Error,
}

/// Turns the system's reason into an error that names the file.
pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError { doing, path, source }
}

/// Writes a new file, durably but for its name; see [`sync_dir`].
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed("cannot write", path))
}

/// Replaces `dir/name`, atomically and durably; only the owner may read it.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
    let (path, beside) = (dir.join(name), dir.join(format!(".{name}.new")));
    write_new(&beside, bytes)?;
    fs::rename(&beside, &path).map_err(failed("cannot replace", &path))?;
    sync_dir(dir)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("cannot sync", dir))
}

/// Makes a folder that only its owner may enter, and its parents.
pub(crate) fn make_dir(dir: &Path) -> Result<(), DiskError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("cannot create", dir))
}
