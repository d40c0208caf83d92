//! One state of a server's signed metadata, verified as a whole, and what a node lacks of it. No file, no clock.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use goldsync_proto::limits::TRUST_FILES_MAX;
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef, Word};
use goldsync_proto::trust::{FileName, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Target};
use tough::schema::{Signed, Targets};

use super::view::{Files, View};
use super::{TrustError, check, role};

/// One state. Cheap to read from many connections at once.
#[derive(Debug)]
pub(super) struct Held {
    pub view: View,
    pub versions: BTreeMap<String, u64>,
    /// All roots, and the present version of every other role.
    pub metadata: Files,
    /// Target files by their plain names.
    pub targets: Files,
    pointers: BTreeMap<Word, Pointer>,
}

impl Held {
    /// Verifies metadata as a node would, and that each listed target is there and means what its name says.
    /// `find` is given a target's name and SHA-256.
    pub async fn verify(
        metadata: Files,
        find: impl Fn(&str, &[u8]) -> Result<Option<Bytes>, TrustError>,
    ) -> Result<Self, TrustError> {
        let first = FileName::role(ROOT, 1).to_string();
        let root = metadata.get(&first).ok_or_else(|| TrustError::UnknownTarget { target: first.clone() })?;
        let view = View::verify(root, &metadata).await?;
        for name in view.delegated_names() {
            view.delegated(name)?;
        }
        let mut targets = Files::new();
        for (name, entry) in view.targets.signed.targets_iter() {
            let name = name.raw();
            let missing = || TrustError::Target { target: name.to_owned(), reason: "is missing".to_owned() };
            let bytes = find(name, &entry.hashes.sha256)?.ok_or_else(missing)?;
            check::target_bytes(name, entry, &bytes)?;
            targets.insert(name.to_owned(), bytes);
        }
        let versions = view.versions();
        let mut held = Self { view, versions, metadata, targets, pointers: BTreeMap::new() };
        held.pointers = held.read_pointers()?;
        held.forget_old();
        Ok(held)
    }

    /// Every pointer, each of which names a held release and its image.
    fn read_pointers(&self) -> Result<BTreeMap<Word, Pointer>, TrustError> {
        let mut pointers = BTreeMap::new();
        for (name, text) in &self.targets {
            let Target::Channel(channel) = name.parse()? else { continue };
            let pointer = check::pointer(name, text)?;
            let manifest = self.manifest(&pointer.release)?;
            if manifest.image != pointer.image {
                let reason =
                    format!("points at image {}, but {} is image {}", pointer.image, pointer.release, manifest.image);
                return Err(TrustError::Target { target: name.clone(), reason });
            }
            pointers.insert(channel, pointer);
        }
        Ok(pointers)
    }

    /// Drops metadata that the snapshot no longer names. Roots stay: an old node climbs them one by one.
    fn forget_old(&mut self) {
        let meta = &self.view.snapshot.signed.meta;
        let snapshot = self.view.snapshot.signed.version.get();
        self.metadata.retain(|name, _| match name.parse() {
            Ok(FileName::Timestamp) => true,
            Ok(FileName::Role { role, .. }) if role == ROOT => true,
            Ok(FileName::Role { role, version }) if role == SNAPSHOT => version == snapshot,
            Ok(FileName::Role { role, version }) => {
                meta.get(&format!("{role}.json")).is_some_and(|named| named.version.get() == version)
            }
            _ => false,
        });
    }

    /// A release's manifest.
    pub fn manifest(&self, release: &ReleaseRef) -> Result<Manifest, TrustError> {
        let name = release.target();
        let text = self.targets.get(&name).ok_or_else(|| TrustError::UnknownTarget { target: name.clone() })?;
        check::manifest(&name, text)
    }

    /// Where a channel points.
    pub fn pointer(&self, channel: &Word) -> Option<&Pointer> {
        self.pointers.get(channel)
    }

    /// The version held of a role; 0 if there is none.
    pub fn version(&self, role: &str) -> u64 {
        self.versions.get(role).copied().unwrap_or(0)
    }

    /// The text of a role's present version.
    pub fn text(&self, role: &str) -> Option<&Bytes> {
        self.metadata.get(&FileName::role(role, self.version(role)).to_string())
    }

    /// A role that lists targets: `targets` itself or a delegated one.
    pub fn list(&self, role: &str) -> Result<&Signed<Targets>, TrustError> {
        if role == TARGETS { Ok(&self.view.targets) } else { self.view.delegated(role) }
    }

    /// When each role expires.
    pub fn expiries(&self) -> BTreeMap<String, DateTime<Utc>> {
        let view = &self.view;
        let mut all = BTreeMap::from([
            (ROOT.to_owned(), role::expires(&view.root.signed)),
            (TIMESTAMP.to_owned(), role::expires(&view.timestamp.signed)),
            (SNAPSHOT.to_owned(), role::expires(&view.snapshot.signed)),
            (TARGETS.to_owned(), role::expires(&view.targets.signed)),
        ]);
        let delegated = view.delegated_names().filter_map(|name| Some((name, view.delegated(name).ok()?)));
        all.extend(delegated.map(|(name, role)| (name.to_owned(), role::expires(&role.signed))));
        all
    }

    /// The files that a node lacks. A version that the node has and we have not is sent ours, so that it sees, and
    /// says, that we were rolled back.
    ///
    /// With a channel's newer role go its pointer and the manifest that it names: they are what the node would ask
    /// for next, and cost less than the question.
    pub fn newer(&self, have: &BTreeMap<String, u64>, want: &[String]) -> Result<Vec<(String, Bytes)>, TrustError> {
        if want.len() > TRUST_FILES_MAX {
            let (got, max) = (want.len() as u64, TRUST_FILES_MAX as u64);
            return Err(TrustError::TooLarge { what: "the list of wanted target files".to_owned(), got, max });
        }
        let known = |role: &str| have.get(role).copied().unwrap_or(0);
        let mut files = Vec::new();
        let mut wanted: BTreeSet<String> = want.iter().cloned().collect();
        for version in known(ROOT).saturating_add(1)..=self.version(ROOT) {
            self.push(&mut files, FileName::role(ROOT, version));
        }
        let top = [TIMESTAMP, SNAPSHOT, TARGETS];
        let delegated = self.versions.keys().map(String::as_str).filter(|role| *role != ROOT && !top.contains(role));
        for role in top.into_iter().chain(delegated) {
            if self.version(role) != known(role) {
                self.push(&mut files, FileName::role(role, self.version(role)));
                wanted.extend(self.companions(role));
            }
        }
        for name in wanted {
            let bytes = self.targets.get(&name).ok_or_else(|| TrustError::UnknownTarget { target: name.clone() })?;
            files.push((name, bytes.clone()));
        }
        Ok(files)
    }

    fn push(&self, files: &mut Vec<(String, Bytes)>, name: FileName) {
        let name = name.to_string();
        files.extend(self.metadata.get(&name).cloned().map(|bytes| (name, bytes)));
    }

    fn companions(&self, role: &str) -> Vec<String> {
        let channel = role.strip_prefix("channel-").and_then(|channel| channel.parse().ok());
        let pointer = channel.and_then(|channel: Word| self.pointer(&channel));
        pointer.map_or_else(Vec::new, |pointer| {
            vec![Target::Channel(pointer.channel.clone()).to_string(), pointer.release.target()]
        })
    }
}
