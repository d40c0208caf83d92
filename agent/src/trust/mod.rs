//! What this node believes about releases and channels: a client of The Update Framework, by the crate `tough`.
//!
//! ```text
//! server ──files──▶ [absorb] ── verified in memory ──▶ copy-8/ ── renamed link ──▶ current
//!                      │ signature, hashes, versions no lower than before, expiry
//!                      ▼
//!                   TrustError: what was held before stays
//!
//! DIR/first.root.json   the root that the token named
//! DIR/current           a link to the copy that counts; replacing it is the one atomic step
//! DIR/doubt             there while the server names other contents than we hold; see [`Trust::have`]
//! DIR/copy-8/           the newest root, one file a role, the target files asked for so far, and `clock`
//! ```
//! Nothing from the network is believed for coming over TLS: a stolen server could hand out anything. It is believed
//! when [`View`](view) says so, and kept only then. A crash while a copy is being made leaves the old one in place
//! and a folder that the next copy removes.
//!
//! One process absorbs at a time (the agent's run lock sees to that); any number may read.

mod copy;
mod error;
mod view;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use goldsync_proto::limits::{TRUST_BYTES_MAX, TRUST_FILE_MAX, TRUST_FILES_MAX};
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef, Word};
use goldsync_proto::trust::{FileName, ROOT, TIMESTAMP};
use goldsync_proto::verity::RootHash;
use tough::schema::{Root, Signed};

pub use error::TrustError;
use view::{Files, View};

/// A node's signed metadata.
#[derive(Debug)]
pub struct Trust {
    dir: PathBuf,
    versions: BTreeMap<String, u64>,
}

impl Trust {
    /// Begins with a root, whose hash the caller has held against the token. Enrolling again with the same fleet
    /// keeps what is known, so that enrolling is no way to roll a node back; another root begins anew.
    pub fn init(dir: &Path, root_text: &str) -> Result<Self, TrustError> {
        let root: Signed<Root> = serde_json::from_str(root_text)
            .map_err(|error| TrustError::Inconsistent(format!("the root cannot be read: {error}")))?;
        let verified = root.signed.verify_role(&root);
        verified.map_err(|error| TrustError::Signature { role: ROOT.to_owned(), reason: error.to_string() })?;
        if copy::first_root(dir)?.is_some_and(|held| held == root_text.as_bytes())
            && let Ok(known) = Self::open(dir)
        {
            return Ok(known);
        }
        let name = FileName::role(ROOT, root.signed.version.get()).to_string();
        let files = Files::from([(name, Bytes::copy_from_slice(root_text.as_bytes()))]);
        // In this order: a crash in between leaves no first root, and so the next enrolment begins anew.
        copy::forget_first_root(dir)?;
        copy::replace(dir, &files, None)?;
        copy::set_first_root(dir, root_text)?;
        Self::open(dir)
    }

    /// Opens what [`Trust::init`] made.
    pub fn open(dir: &Path) -> Result<Self, TrustError> {
        let files = copy::read(dir)?.ok_or(TrustError::NoRoot)?;
        Ok(Self { dir: dir.to_owned(), versions: versions_of(&files)? })
    }

    /// Role to version, for `Request::Trust`.
    ///
    /// After an answer that did not fit what is held, or when what is held does not fit together, only the root: a server
    /// that was restored from a backup gives the same version numbers to other contents, and a disk may rot; either way the
    /// server must send all of it.
    pub fn have(&self) -> BTreeMap<String, u64> {
        let mut versions = self.versions.clone();
        if copy::doubt(&self.dir) {
            versions.retain(|role, _| role == ROOT);
        }
        versions
    }

    /// Takes what the server sent, if it is all that it should be; returns whether anything is new. With no files it
    /// is [`Trust::check_now`].
    pub async fn absorb(&mut self, files: Vec<(String, Vec<u8>)>) -> Result<bool, TrustError> {
        self.absorb_at(files, Utc::now()).await
    }

    /// [`Trust::absorb`] at another time.
    pub async fn absorb_at(&mut self, files: Vec<(String, Vec<u8>)>, now: DateTime<Utc>) -> Result<bool, TrustError> {
        if files.is_empty() {
            self.doubtful(self.view().await)?.check_fresh(now)?;
            return Ok(false);
        }
        let held = copy::read(&self.dir)?.ok_or(TrustError::NoRoot)?;
        let candidate = merge(held.clone(), files)?;
        let scratch = copy::Scratch::new(&self.dir, &held)?;
        let view = self.doubtful(self.verify(&held, candidate, &scratch).await)?;
        view.check_fresh(now)?;
        let kept = view.kept();
        if kept == held {
            copy::clear_doubt(&self.dir)?;
            return Ok(false);
        }
        copy::replace(&self.dir, &kept, scratch.clock()?.as_deref())?;
        self.versions = view.versions();
        Ok(true)
    }

    /// Notes that what is held may be what does not fit, so that all of it is asked for next time.
    fn doubtful(&self, verified: Result<View, TrustError>) -> Result<View, TrustError> {
        if verified.as_ref().is_err_and(TrustError::misfit) {
            copy::set_doubt(&self.dir)?;
        }
        verified
    }

    /// Verifies the local copy again, expiry included: for when the server has nothing newer.
    pub async fn check_now(&self) -> Result<(), TrustError> {
        self.check_at(Utc::now()).await
    }

    /// [`Trust::check_now`] at another time.
    pub async fn check_at(&self, now: DateTime<Utc>) -> Result<(), TrustError> {
        self.view().await?.check_fresh(now)
    }

    /// The target files to ask the server for before [`Trust::desired`] can answer for this channel.
    pub async fn wanted(&self, channel: &Word) -> Result<Vec<String>, TrustError> {
        Ok(self.view().await?.wanted(channel))
    }

    /// Where a channel points; `None` if it was never promoted to.
    pub async fn pointer(&self, channel: &Word) -> Result<Option<Pointer>, TrustError> {
        self.view().await?.pointer(channel, Utc::now()).await
    }

    /// A signed release.
    pub async fn manifest(&self, release: &ReleaseRef) -> Result<Manifest, TrustError> {
        self.view().await?.manifest(release, Utc::now()).await
    }

    /// The releases of this name whose manifests were never asked for, those with the highest versions first.
    pub async fn unread(&self, name: &Word) -> Result<Vec<ReleaseRef>, TrustError> {
        Ok(self.view().await?.unread(name))
    }

    /// The signed release, of those whose manifests are held, whose hash tree has this root.
    pub async fn sealed_by(&self, root: &RootHash) -> Result<Option<Manifest>, TrustError> {
        self.view().await?.sealed_by(root, Utc::now()).await
    }

    /// What the nodes of a channel shall run: its pointer and the release that it names, which agree on the image;
    /// `None` if it was never promoted to.
    pub async fn desired(&self, channel: &Word) -> Result<Option<(Pointer, Manifest)>, TrustError> {
        self.desired_at(channel, Utc::now()).await
    }

    /// [`Trust::desired`] at another time.
    pub async fn desired_at(
        &self,
        channel: &Word,
        now: DateTime<Utc>,
    ) -> Result<Option<(Pointer, Manifest)>, TrustError> {
        let view = self.view().await?;
        let Some(pointer) = view.pointer(channel, now).await? else { return Ok(None) };
        let manifest = view.manifest(&pointer.release, now).await?;
        if pointer.image != manifest.image {
            return Err(TrustError::OtherImage {
                channel: channel.clone(),
                release: pointer.release,
                pointed: Box::new(pointer.image),
                signed: Box::new(manifest.image),
            });
        }
        Ok(Some((pointer, manifest)))
    }

    async fn view(&self) -> Result<View, TrustError> {
        let held = copy::read(&self.dir)?.ok_or(TrustError::NoRoot)?;
        let scratch = copy::Scratch::new(&self.dir, &held)?;
        self.verify(&held, held.clone(), &scratch).await
    }

    /// Verifies `files` from the newest root held on.
    async fn verify(&self, held: &Files, files: Files, scratch: &copy::Scratch) -> Result<View, TrustError> {
        let version = self.versions.get(ROOT).copied().unwrap_or(0);
        let root = held.get(&FileName::role(ROOT, version).to_string()).ok_or(TrustError::NoRoot)?;
        if !files.contains_key(&FileName::Timestamp.to_string()) {
            return Err(TrustError::Nothing);
        }
        View::verify(root, files, scratch.path(), &self.dir.join("current").join(copy::CLOCK)).await
    }
}

/// Lays what was sent over what is held, within the limits.
fn merge(mut held: Files, sent: Vec<(String, Vec<u8>)>) -> Result<Files, TrustError> {
    let too_much = |what: &str, got: usize, max: u64| {
        let (what, got) = (what.to_owned(), got as u64);
        if got > max { Err(TrustError::TooMuch { what, got, max }) } else { Ok(()) }
    };
    too_much("files in one answer", sent.len(), TRUST_FILES_MAX as u64)?;
    let mut seen = std::collections::BTreeSet::new();
    for (name, bytes) in sent {
        name.parse::<FileName>()?;
        too_much(&format!("bytes in {name}"), bytes.len(), TRUST_FILE_MAX)?;
        if !seen.insert(name.clone()) {
            return Err(TrustError::Twice { name });
        }
        held.insert(name, bytes.into());
    }
    too_much("bytes of signed metadata", held.values().map(Bytes::len).sum(), TRUST_BYTES_MAX)?;
    Ok(held)
}

/// Role to version, by the names and the timestamp of a verified copy.
fn versions_of(files: &Files) -> Result<BTreeMap<String, u64>, TrustError> {
    let mut versions = BTreeMap::new();
    for (name, bytes) in files {
        match name.parse()? {
            FileName::Role { role, version } => versions.insert(role, version),
            FileName::Timestamp => {
                copy::timestamp_version(bytes).and_then(|it| versions.insert(TIMESTAMP.to_owned(), it))
            }
            FileName::Target(_) => None,
        };
    }
    Ok(versions)
}
