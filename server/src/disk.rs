//! Files that are either old or new, never half: written beside, synced, renamed over, and the folder synced.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file or folder of this machine that could not be read or written.
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

/// Anyone may read it.
pub(crate) const PUBLIC: u32 = 0o644;
/// The owner's alone.
pub(crate) const SECRET: u32 = 0o600;

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError { doing, path, source }
}

/// Replaces `dir/name`, atomically and durably.
pub(crate) fn write(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    let (path, beside) = (dir.join(name), dir.join(format!(".{name}.new")));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    };
    write().map_err(failed("cannot write", &path))?;
    sync_dir(dir)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("cannot sync", dir))
}

/// Makes a folder that only its owner may enter, and its parents.
pub(crate) fn make_dir(dir: &Path) -> Result<(), DiskError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("cannot create", dir))
}

/// The bytes of a file, or `None` if there is none.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("cannot read", path)(error)),
    }
}

/// The bytes of a file that must be there.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).map_err(failed("cannot read", path))
}

/// The names in a folder; none if there is no folder. What begins with a dot is a left-over of [`write()`].
pub(crate) fn names(dir: &Path) -> Result<Vec<String>, DiskError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("cannot read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("cannot read", dir))?;
        names.extend(entry.file_name().into_string().ok().filter(|name| !name.starts_with('.')));
    }
    names.sort();
    Ok(names)
}

/// Removes the files that nothing names any more. What cannot be removed is in nobody's way, and is tried again.
pub(crate) fn remove_others(dir: &Path, keep: impl Fn(&str) -> bool) {
    let Ok(names) = names(dir) else { return };
    for name in names.iter().filter(|name| !keep(name)) {
        if let Err(error) = fs::remove_file(dir.join(name)) {
            tracing::warn!(file = %dir.join(name).display(), %error, "cannot remove a file that nothing names");
        }
    }
}

/// Removes a file, durably.
pub(crate) fn remove(path: &Path) -> Result<(), DiskError> {
    fs::remove_file(path).map_err(failed("cannot remove", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}
