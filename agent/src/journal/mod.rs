//! What a node remembers in its state folder: what each slot was proven to hold, and how the last update ended.
//!
//! ```text
//! STATE/lock            held by the one run that may change anything; holds its process number
//! STATE/slots/a.json    empty | staging { image } | proven { image }
//! STATE/slots/a.blocks  the proven image's block hashes (see [`Blocks`])
//! STATE/last.json       the last outcome
//! STATE/drift.json      what the last look at the active slot found
//! STATE/trial.json      the slot that was activated and has not shown itself good yet
//! STATE/held.json       releases that failed here or were rolled back from: not gone to again unasked
//! ```
//! Every file is replaced whole: written beside, synced, renamed over, the folder synced. The order of writes:
//!
//! ```text
//! (1) record = staging   (2) the slot's blocks, synced   (3) read back   (4) a.blocks   (5) record = proven
//!  power lost after | on disk                       | the next run
//!  1, 2             | staging                       | trusts nothing of the slot, hashes what is there, keeps what fits
//!  3, 4             | staging                       | the same; finds all of it right and writes no block
//!  5                | proven                        | activates
//! ```
//! A record that cannot be read counts as `empty`: only a proof is lost, and the next run makes it again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::HELD_MAX;
use goldsync_proto::release::{Manifest, ReleaseRef};
use goldsync_proto::verity::Sealed;
use goldsync_proto::wire::{Held, Outcome};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::slot::SlotName;

mod blocks;
mod lock;

pub use blocks::{Blocks, BlocksWriter};
pub use lock::RunLock;

/// Letters of a reason that are kept.
const WHY_MAX: usize = 1000;

/// What a slot holds, by this node's own proof.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SlotRecord {
    /// Nothing is known of it.
    #[default]
    Empty,
    /// It is being written, or was when the last run ended: garbage until proven.
    Staging(Staging),
    /// It was read back, whole, and is the image.
    Proven(Proven),
}

/// A slot that is being written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staging {
    /// What it shall become.
    pub image: ImageId,
    /// Under which name.
    pub release: ReleaseRef,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// A slot that holds an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven {
    /// Which.
    pub image: ImageId,
    /// The release it was installed as.
    pub release: ReleaseRef,
    /// Its bytes; a device may have more.
    pub size: u64,
    /// The hash tree that the release was signed with, for who mounts or boots the slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Sealed>,
    /// When it was proven.
    pub at: DateTime<Utc>,
}

impl SlotRecord {
    /// The proof, if there is one.
    pub fn proven(&self) -> Option<&Proven> {
        match self {
            Self::Proven(proven) => Some(proven),
            Self::Empty | Self::Staging(_) => None,
        }
    }
}

/// How the last update ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// The release it was about, if it came so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseRef>,
    /// How.
    pub outcome: Outcome,
}

/// What the last look at the active slot found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// When it looked.
    pub at: DateTime<Utc>,
    /// At which image.
    pub image: ImageId,
    /// Blocks that are not the image's.
    pub drifted: u64,
}

/// A slot that was activated and has not shown itself good yet. What is to be done about it, `trial` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The slot.
    pub slot: SlotName,
    /// Its image.
    pub image: ImageId,
    /// Its release.
    pub release: ReleaseRef,
    /// The slot that was active before, to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SlotName>,
    /// When it was activated.
    pub since: DateTime<Utc>,
    /// In which run of the machine, by `boot::Booted::run`.
    pub run: String,
    /// Starts that the boot loader was told to count; 0 if it counts none.
    pub tries: u8,
    /// Whether the back-end has been told, and not told otherwise since. Without that, what runs says nothing against the release.
    pub armed: bool,
}

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Reading, writing, or the folder itself.
    #[error("state folder: {what} {}: {error}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Another run holds the lock. Exit code 75.
    #[error("another goldsync-agent is at work ({holder}); wait for it, or stop it; nothing was changed")]
    Busy {
        /// `process 4711`, or that it could not be told.
        holder: String,
    },
    /// The block hashes are not whole.
    #[error("state folder: {} is damaged ({why}) and is not used; the next update makes it anew", path.display())]
    Blocks {
        /// The file.
        path: PathBuf,
        /// In what way.
        why: String,
    },
}

/// The state folder.
#[derive(Clone, Debug)]
pub struct Journal {
    state: PathBuf,
}

impl Journal {
    /// Opens the folder `state`, made if it is missing.
    pub fn open(state: &Path) -> Result<Self, JournalError> {
        let slots = state.join("slots");
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&slots).map_err(io_error("making", &slots))?;
        Ok(Self { state: state.to_owned() })
    }

    /// The folder, for what else is kept there (`identity/`, `trust/`).
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Makes this run the only one that may change anything, until the lock is dropped.
    pub fn lock(&self) -> Result<RunLock, JournalError> {
        RunLock::take(&self.state.join("lock"))
    }

    /// The process that is at work now, if any.
    pub fn holder(&self) -> Option<u32> {
        lock::held_by(&self.state.join("lock"))
    }

    /// What slot `name` holds.
    pub fn slot(&self, name: SlotName) -> Result<SlotRecord, JournalError> {
        Ok(read_json(&self.record(name))?.unwrap_or_default())
    }

    /// Whether what was proven came after what `active` holds, so that it has not run yet. An active slot without a record (the
    /// machine came with it) is older than anything proven here.
    pub fn is_newer(&self, proven: &Proven, active: Option<SlotName>) -> Result<bool, JournalError> {
        let record = active.map(|active| self.slot(active)).transpose()?;
        Ok(record.as_ref().and_then(SlotRecord::proven).is_none_or(|active| proven.at > active.at))
    }

    /// Says, durably, that slot `name` is about to be written. Before its first byte.
    pub fn set_staging(&self, name: SlotName, image: ImageId, release: &ReleaseRef) -> Result<(), JournalError> {
        let staging = Staging { image, release: release.clone(), since: Utc::now() };
        self.set(name, &SlotRecord::Staging(staging))
    }

    /// Says, durably, that slot `name` was read back and is the image. Its block hashes were written before.
    pub fn set_proven(
        &self,
        name: SlotName,
        image: ImageId,
        release: &ReleaseRef,
        size: u64,
    ) -> Result<(), JournalError> {
        let proven = Proven { image, release: release.clone(), size, verity: None, at: Utc::now() };
        self.set(name, &SlotRecord::Proven(proven))
    }

    /// The same of a release whose manifest is at hand, with all that it says.
    pub fn set_proven_as(&self, name: SlotName, manifest: &Manifest) -> Result<(), JournalError> {
        let Manifest { image, release, size, verity, .. } = manifest.clone();
        self.set(name, &SlotRecord::Proven(Proven { image, release, size, verity, at: Utc::now() }))
    }

    /// Forgets what slot `name` holds.
    pub fn set_empty(&self, name: SlotName) -> Result<(), JournalError> {
        self.set(name, &SlotRecord::Empty)
    }

    /// The block hashes of `image`, proven to lie in slot `name`; `None` if others or none are kept.
    pub fn blocks(&self, name: SlotName, image: ImageId) -> Result<Option<Blocks>, JournalError> {
        Ok(Blocks::open(&self.block_file(name))?.filter(|blocks| blocks.image() == image))
    }

    /// Begins the file of block hashes of `image` in slot `name`; it takes the old one's place when finished.
    pub fn write_blocks(&self, name: SlotName, image: ImageId) -> Result<BlocksWriter, JournalError> {
        BlocksWriter::create(self.block_file(name), image)
    }

    /// How the last update ended, if there was one.
    pub fn last(&self) -> Result<Option<Last>, JournalError> {
        read_json(&self.state.join("last.json"))
    }

    /// Remembers how an update ended, now.
    pub fn set_last(&self, release: Option<ReleaseRef>, outcome: Outcome) -> Result<(), JournalError> {
        write_json(&self.state.join("last.json"), &Last { at: Utc::now(), release, outcome })
    }

    /// What the last look at the active slot found, if there was one.
    pub fn drift(&self) -> Result<Option<Drift>, JournalError> {
        read_json(&self.state.join("drift.json"))
    }

    /// Remembers what a look at the active slot found, now.
    pub fn set_drift(&self, image: ImageId, drifted: u64) -> Result<(), JournalError> {
        write_json(&self.state.join("drift.json"), &Drift { at: Utc::now(), image, drifted })
    }

    /// The slot on trial, if there is one.
    pub fn trial(&self) -> Result<Option<Trial>, JournalError> {
        read_json(&self.trial_file())
    }

    /// Remembers a trial.
    pub fn set_trial(&self, trial: &Trial) -> Result<(), JournalError> {
        write_json(&self.trial_file(), trial)
    }

    /// The trial is over.
    pub fn end_trial(&self) -> Result<(), JournalError> {
        remove(&self.trial_file())
    }

    /// A trial, if there is one, is about to be called off: a machine that starts from the other slot from now on says nothing
    /// against the release. Comes before the boot loader is told, as [`Journal::end_trial`] comes after.
    pub fn disarm_trial(&self) -> Result<(), JournalError> {
        match self.trial()? {
            Some(trial) if trial.armed => self.set_trial(&Trial { armed: false, ..trial }),
            _ => Ok(()),
        }
    }

    /// The releases that are held back, the latest last.
    pub fn held(&self) -> Result<Vec<Held>, JournalError> {
        Ok(read_json(&self.held_file())?.unwrap_or_default())
    }

    /// Whether an image is held back, and why.
    pub fn held_back(&self, image: ImageId) -> Result<Option<Held>, JournalError> {
        Ok(self.held()?.into_iter().find(|held| held.image == image))
    }

    /// Holds a release back, from now on.
    pub fn hold(&self, image: ImageId, release: &ReleaseRef, why: &str) -> Result<(), JournalError> {
        let mut held = self.held()?;
        held.retain(|other| other.image != image);
        let why = why.chars().take(WHY_MAX).collect();
        held.push(Held {
            image,
            release: release.clone(),
            since: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            why,
        });
        held.drain(..held.len().saturating_sub(HELD_MAX));
        write_json(&self.held_file(), &held)
    }

    /// Holds an image back no more: somebody asked for it.
    pub fn let_go(&self, image: ImageId) -> Result<(), JournalError> {
        let mut held = self.held()?;
        let before = held.len();
        held.retain(|other| other.image != image);
        if held.len() == before { Ok(()) } else { write_json(&self.held_file(), &held) }
    }

    fn trial_file(&self) -> PathBuf {
        self.state.join("trial.json")
    }

    fn held_file(&self) -> PathBuf {
        self.state.join("held.json")
    }

    fn set(&self, name: SlotName, record: &SlotRecord) -> Result<(), JournalError> {
        write_json(&self.record(name), record)
    }

    fn record(&self, name: SlotName) -> PathBuf {
        self.state.join(format!("slots/{name}.json"))
    }

    fn block_file(&self, name: SlotName) -> PathBuf {
        self.state.join(format!("slots/{name}.blocks"))
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |error| JournalError::Io { what, path, error }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, JournalError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("reading", path)(error)),
    };
    Ok(serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a damaged record counts as none"))
        .ok())
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), JournalError> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|error| io_error("writing", path)(error.into()))?;
    json.push(b'\n');
    replace(path, &json)
}

/// Removes a file, durably; one that is not there is removed.
fn remove(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("removing", path)(error)),
    }
}

/// Replaces a small file so that a reader, or the next start, finds the old bytes or the new ones, never a mixture.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let temporary = beside(path);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(io_error("writing", &temporary))?;
    take_place(&temporary, path)
}

/// The one name under which a file's next version is written; what a crash leaves there is overwritten.
fn beside(path: &Path) -> PathBuf {
    path.with_added_extension("new")
}

/// `temporary`, synced, becomes `path`.
fn take_place(temporary: &Path, path: &Path) -> Result<(), JournalError> {
    fs::rename(temporary, path).map_err(io_error("renaming over", path))?;
    sync_folder(path)
}

/// Makes the name `path` durable: fsync(2) of a file does not promise that its name is on disk.
fn sync_folder(path: &Path) -> Result<(), JournalError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("syncing", folder))
}

#[cfg(test)]
mod tests;
