//! The local copy on disk: made beside the old one, synced, and made current by renaming one link.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use goldsync_proto::limits::{TRUST_BYTES_MAX, TRUST_FILE_MAX};
use goldsync_proto::trust::{FileName, ROOT};
use serde::de::IgnoredAny;
use tough::schema::{Root, Signed, Timestamp};

use super::TrustError;
use super::view::Files;
use crate::disk::{self, DiskError, failed};

/// The file that keeps the latest time at which metadata was taken, by `tough`'s name for it in its datastore.
pub(super) const CLOCK: &str = "latest_known_time.json";
const CURRENT: &str = "current";
const FIRST: &str = "first.root.json";
const DOUBT: &str = "doubt";

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("cannot read", path)(error)),
    }
}

/// The root that the token named.
pub(super) fn first_root(dir: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    read_if_there(&dir.join(FIRST))
}

/// Whether what is held was found to differ from what the server names; see [`set_doubt`].
pub(super) fn doubt(dir: &Path) -> bool {
    dir.join(DOUBT).exists()
}

/// Notes it, until the next copy: versions alone no longer say what the server should send.
pub(super) fn set_doubt(dir: &Path) -> Result<(), DiskError> {
    disk::write_new(&dir.join(DOUBT), b"")
}

/// Forgets it: what is held is what the server names.
pub(super) fn clear_doubt(dir: &Path) -> Result<(), DiskError> {
    let path = dir.join(DOUBT);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("cannot remove", &path)(error)),
        _ => Ok(()),
    }
}

/// Forgets it: what follows is about another fleet.
pub(super) fn forget_first_root(dir: &Path) -> Result<(), DiskError> {
    let path = dir.join(FIRST);
    match fs::remove_file(&path) {
        Ok(()) => disk::sync_dir(dir),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("cannot remove", &path)(error)),
    }
}

/// Keeps the root that the token named.
pub(super) fn set_first_root(dir: &Path, text: &str) -> Result<(), DiskError> {
    disk::replace(dir, FIRST, text.as_bytes())
}

/// The files of the copy that counts; `None` if there is none.
pub(super) fn read(dir: &Path) -> Result<Option<Files>, TrustError> {
    loop {
        let number = number_of(dir);
        match read_copy(dir) {
            // Another process made a new copy current, and removed this one, while it was being read.
            Err(TrustError::Disk(error)) if error.source.kind() == ErrorKind::NotFound && number_of(dir) != number => {}
            done => return done,
        }
    }
}

fn read_copy(dir: &Path) -> Result<Option<Files>, TrustError> {
    let current = dir.join(CURRENT);
    let entries = match fs::read_dir(&current) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("cannot read", &current)(error).into()),
    };
    let (mut files, mut total) = (Files::new(), 0);
    for entry in entries {
        let entry = entry.map_err(failed("cannot read", &current))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.parse::<FileName>().is_err() {
            continue;
        }
        let path = entry.path();
        let len = entry.metadata().map_err(failed("cannot read", &path))?.len();
        total += len;
        for (what, got, max) in [("bytes in a file", len, TRUST_FILE_MAX), ("bytes", total, TRUST_BYTES_MAX)] {
            if got > max {
                return Err(TrustError::TooMuch { what: format!("{what} of {}", path.display()), got, max });
            }
        }
        let bytes = fs::read(&path).map_err(failed("cannot read", &path))?;
        if sound(&name, &bytes) {
            files.insert(name, bytes.into());
        } else {
            // Only what was learned is lost: the server sends it again, and it is verified again.
            tracing::warn!(path = %path.display(), "a damaged file of signed metadata counts as none");
        }
    }
    if !files.keys().any(|name| is_root(name))
        && let Some(first) = first_root(dir)?
        && let Some(version) = root_version(&first)
    {
        // From the root that the token named, every newer one can be climbed to again.
        files.insert(FileName::role(ROOT, version).to_string(), first.into());
    }
    Ok(Some(files))
}

fn is_root(name: &str) -> bool {
    matches!(name.parse(), Ok(FileName::Role { role, .. }) if role == ROOT)
}

/// Whether a file is one at all, and not what a disk made of it. All else is for the verification to say.
fn sound(name: &str, bytes: &[u8]) -> bool {
    match name.parse() {
        Ok(FileName::Role { role, .. }) if role == ROOT => root_version(bytes).is_some(),
        Ok(FileName::Timestamp) => timestamp_version(bytes).is_some(),
        _ => serde_json::from_slice::<IgnoredAny>(bytes).is_ok(),
    }
}

/// The version of a timestamp: the one role whose file's name does not tell it.
pub(super) fn timestamp_version(bytes: &[u8]) -> Option<u64> {
    let timestamp: Signed<Timestamp> = serde_json::from_slice(bytes).ok()?;
    Some(timestamp.signed.version.get())
}

/// The version of a root that is signed by its own keys.
fn root_version(bytes: &[u8]) -> Option<u64> {
    let root: Signed<Root> = serde_json::from_slice(bytes).ok()?;
    root.signed.verify_role(&root).ok()?;
    Some(root.signed.version.get())
}

/// Makes `files` the copy that counts.
pub(super) fn replace(dir: &Path, files: &Files, clock: Option<&[u8]>) -> Result<(), DiskError> {
    disk::make_dir(dir)?;
    let (current, old) = (dir.join(CURRENT), number_of(dir));
    let name = format!("copy-{}", old.map_or(1, |old| old + 1));
    let copy = dir.join(&name);
    // A left-over of a crash, never current: its number is one above.
    remove(&copy)?;
    disk::make_dir(&copy)?;
    for (name, bytes) in files {
        disk::write_new(&copy.join(name), bytes)?;
    }
    if let Some(clock) = clock {
        disk::write_new(&copy.join(CLOCK), clock)?;
    }
    disk::sync_dir(&copy)?;
    disk::sync_dir(dir)?;

    let beside = dir.join(".current.new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("cannot remove", &beside)(error)),
        _ => {}
    }
    symlink(&name, &beside).map_err(failed("cannot create", &beside))?;
    fs::rename(&beside, &current).map_err(failed("cannot replace", &current))?;
    disk::sync_dir(dir)?;
    sweep(dir, &name);
    Ok(())
}

/// Removes older copies, the doubt about them, and what readers that were killed left behind. What cannot be removed
/// is in nobody's way.
fn sweep(dir: &Path, current: &str) {
    let stale = |entry: &fs::DirEntry| {
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        age.is_some_and(|age| age > Duration::from_secs(3600))
    };
    let _ = fs::remove_file(dir.join(DOUBT));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let old_copy = name.starts_with("copy-") && name != current;
        if old_copy || (name.starts_with("scratch-") && stale(&entry)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The number of the copy that counts.
fn number_of(dir: &Path) -> Option<u64> {
    let link = fs::read_link(dir.join(CURRENT)).ok()?;
    link.to_str()?.strip_prefix("copy-")?.parse().ok()
}

fn remove(dir: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("cannot remove", dir)(error)),
        _ => Ok(()),
    }
}

/// A folder for `tough` to keep its memory in while it verifies: seeded with what is trusted now, thrown away
/// afterwards. `tough` writes in place, and would take a file torn by a crash for no memory at all; so that what it
/// remembers between runs comes from the copy, which is never torn.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one, remembering `held`.
    pub fn new(dir: &Path, held: &Files) -> Result<Self, DiskError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("scratch-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let scratch = Self(dir.join(unique));
        remove(&scratch.0)?;
        disk::make_dir(&scratch.0)?;
        for (name, bytes) in held {
            let remembered = match name.parse() {
                Ok(FileName::Timestamp) => "timestamp.json",
                Ok(FileName::Role { role, .. }) if role == "snapshot" => "snapshot.json",
                _ => continue,
            };
            scratch.put(remembered, bytes)?;
        }
        if let Some(clock) = read_if_there(&dir.join(CURRENT).join(CLOCK))? {
            scratch.put(CLOCK, &clock)?;
        }
        Ok(scratch)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.0.join(name);
        fs::write(&path, bytes).map_err(failed("cannot write", &path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The latest time that `tough` knows of.
    pub fn clock(&self) -> Result<Option<Vec<u8>>, DiskError> {
        read_if_there(&self.0.join(CLOCK))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A left-over is in nobody's way: the name is taken anew before use.
        let _ = fs::remove_dir_all(&self.0);
    }
}
