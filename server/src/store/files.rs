//! Small files that are either there whole or not at all, and the door to threads that may block.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::StoreError;

/// Files under this ending are leftovers of a write that never ended.
const TEMPORARY: &str = "tmp";

/// A name beside `path` that no other write uses.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{}-{number}.{TEMPORARY}", std::process::id()))
}

/// Writes `path` whole: on return it survives a power cut, before it the old file does.
pub(crate) fn write_durable(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, bytes, true)
}

/// Writes `path` whole as far as other processes see; after a power cut it may be torn.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace(path, bytes, false)
}

fn replace(path: &Path, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
    let draft = temporary(path);
    let written = write_draft(&draft, path, bytes, durable);
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

fn write_draft(draft: &Path, path: &Path, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
    let mut file = File::create_new(draft).map_err(StoreError::io("create", draft))?;
    file.write_all(bytes).map_err(StoreError::io("write", draft))?;
    if durable {
        file.sync_all().map_err(StoreError::io("sync", draft))?;
    }
    fs::rename(draft, path).map_err(StoreError::io("put in place", path))?;
    if durable {
        sync_parent(path)?;
    }
    Ok(())
}

/// fsync(2) of a file does not promise that its name is on disk: the folder's does.
pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync", folder))
}

/// Makes a folder, and removes what unfinished writes left in it.
pub(crate) fn prepare_folder(folder: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    for path in list(folder)? {
        if path.extension().is_some_and(|ending| ending == TEMPORARY) {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The paths in a folder, in order.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(folder).map_err(StoreError::io("list", folder))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(StoreError::io("list", folder))?;
    paths.sort();
    Ok(paths)
}

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T, E, F>(work: F) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
    F: FnOnce() -> Result<T, E> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Stopping.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        write_durable(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        fs::write(temporary(&path), b"half").unwrap();
        assert_eq!(list(folder.path()).unwrap().len(), 2);
        prepare_folder(folder.path()).unwrap();
        assert_eq!(list(folder.path()).unwrap(), std::slice::from_ref(&path));
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_and_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), b"x").unwrap();
        let error = write_durable(&path, b"bytes").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(list(folder.path()).unwrap(), [path]);
    }
}
