//! The server's side: holding signed metadata, taking the next version of a role, and handing out what a node lacks.
//!
//! ```text
//! DIR/keys/{snapshot,timestamp}.pem       the two online keys; ROLE.next.pem waits for a root that names it
//! DIR/targets/SHA256.release_web_1.json   target files; the hash in the name, so that old and new lie side by side
//! DIR/metadata/4.releases.json            the version in the name, likewise
//! DIR/metadata/timestamp.json             the commit point
//! ```
//! A change is written in that order, each file synced before the next step, `timestamp.json` renamed over last: it
//! names the snapshot, which names every role, which names every target. A crash before the rename leaves the old
//! state whole and some files that nothing names; the next change removes them.
//!
//! One change at a time; readers see the state before or after it and never wait for one. A change's files are
//! written without a pause at which its future could be dropped, so that memory and disk never part.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use goldsync_proto::release::{Manifest, Pointer, RELEASES_ROLE, ReleaseRef, Word};
use goldsync_proto::trust::{FileName, ROOT, SNAPSHOT, TARGETS, Target};
use tokio::sync::Mutex;
use tough::schema::{Root, Signed, Targets};

use super::held::Held;
use super::key::{Online, OnlinePublic};
use super::view::Files;
use super::{Lifetimes, TrustError, check, role};
use crate::disk;

/// The signed metadata that a server holds.
#[derive(Debug)]
pub struct Trust {
    dir: PathBuf,
    lifetimes: Lifetimes,
    held: RwLock<Arc<Held>>,
    /// The keys, and the right to change anything.
    online: Mutex<Online>,
}

/// What a change adds to the present state.
#[derive(Debug, Default)]
struct Change {
    metadata: Files,
    targets: Files,
}

impl Trust {
    /// Makes the server's first state out of an operator's first metadata (see [`super::Operator::found`]). The
    /// online keys must be in `dir` already ([`Online::create`]).
    pub async fn create(dir: &Path, files: &BTreeMap<String, String>) -> Result<Self, TrustError> {
        Self::create_at(dir, files, Lifetimes::default(), Utc::now()).await
    }

    /// [`Trust::create`] with other lifetimes, at another time.
    pub async fn create_at(
        dir: &Path,
        files: &BTreeMap<String, String>,
        lifetimes: Lifetimes,
        now: DateTime<Utc>,
    ) -> Result<Self, TrustError> {
        let path = dir.join("metadata").join("timestamp.json");
        if path.exists() {
            return Err(TrustError::Exists { path });
        }
        disk::make_dir(&dir.join("metadata"))?;
        disk::make_dir(&dir.join("targets"))?;
        let online = Online::load(dir)?;
        let metadata = files.iter().map(|(name, text)| (name.clone(), bytes_of(text))).collect();
        let change = Change { metadata, targets: Files::new() };
        let held = next_state(None, &online, &change, &lifetimes, true, now).await?;
        write_state(dir, &held, None)?;
        Ok(Self { dir: dir.to_owned(), lifetimes, held: RwLock::new(Arc::new(held)), online: Mutex::new(online) })
    }

    /// Opens the server's trust folder and verifies all of it. Expired roles are no hindrance, so that they can be
    /// renewed; see [`Trust::expiries`].
    pub async fn open(dir: &Path) -> Result<Self, TrustError> {
        Self::open_with(dir, Lifetimes::default()).await
    }

    /// [`Trust::open`] with other lifetimes for what the server signs.
    pub async fn open_with(dir: &Path, lifetimes: Lifetimes) -> Result<Self, TrustError> {
        let mut metadata = Files::new();
        for name in disk::names(&dir.join("metadata"))? {
            if name.parse::<FileName>().is_ok() {
                metadata.insert(name.clone(), disk::read(&dir.join("metadata").join(&name))?.into());
            }
        }
        let find = |name: &str, sha256: &[u8]| {
            Ok(disk::read_if_there(&dir.join("targets").join(stored_name(name, sha256)))?.map(Bytes::from))
        };
        let held = Held::verify(metadata, find).await?;
        Online::settle(dir, &held.view.root.signed)?;
        let online = Online::load(dir)?;
        Ok(Self { dir: dir.to_owned(), lifetimes, held: RwLock::new(Arc::new(held)), online: Mutex::new(online) })
    }

    fn held(&self) -> Arc<Held> {
        // A poisoned lock still holds a whole state: it is replaced by one assignment.
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Role to version.
    pub fn versions(&self) -> BTreeMap<String, u64> {
        self.held().versions.clone()
    }

    /// When each role expires.
    pub fn expiries(&self) -> BTreeMap<String, DateTime<Utc>> {
        self.held().expiries()
    }

    /// The files that a node lacks, for `Request::Trust`; empty if it lacks nothing.
    pub fn newer(&self, have: &BTreeMap<String, u64>, want: &[String]) -> Result<Vec<(String, Bytes)>, TrustError> {
        self.held().newer(have, want)
    }

    /// All metadata, for `GET /v1/trust`: what an operator needs to sign the next version of a role.
    pub fn files(&self) -> BTreeMap<String, String> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        self.held().metadata.iter().map(|(name, bytes)| (name.clone(), text(bytes))).collect()
    }

    /// The text of the first root, which a node starts from.
    pub fn first_root(&self) -> String {
        let name = FileName::role(ROOT, 1).to_string();
        self.held().metadata.get(&name).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    /// A signed release.
    pub fn manifest(&self, release: &ReleaseRef) -> Result<Manifest, TrustError> {
        self.held().manifest(release)
    }

    /// Where a channel points; `None` before the first promotion, or if there is no such channel.
    pub fn pointer(&self, channel: &Word) -> Option<Pointer> {
        self.held().pointer(channel).cloned()
    }

    /// A role's newest text, as signed.
    pub fn text(&self, role: &str) -> Option<String> {
        self.held().text(role).map(|text| String::from_utf8_lossy(text).into_owned())
    }

    /// The channels that the metadata knows.
    pub fn channels(&self) -> Vec<Word> {
        let held = self.held();
        held.versions.keys().filter_map(|role| role.strip_prefix("channel-")?.parse().ok()).collect()
    }

    /// Takes the next version of a role, with the target file that it adds or changes, and makes both visible.
    /// Submitting what is held already changes nothing.
    pub async fn submit(
        &self,
        role_name: &str,
        role_text: &str,
        target: Option<(&str, &str)>,
    ) -> Result<(), TrustError> {
        self.submit_at(role_name, role_text, target, Utc::now()).await
    }

    /// [`Trust::submit`] at another time.
    pub async fn submit_at(
        &self,
        role_name: &str,
        role_text: &str,
        target: Option<(&str, &str)>,
        now: DateTime<Utc>,
    ) -> Result<(), TrustError> {
        let online = self.online.lock().await;
        let held = self.held();
        if held.text(role_name).is_some_and(|text| text == role_text) {
            return Ok(());
        }
        let new: Signed<Targets> = role::read(role_name, role_text.as_bytes())?;
        let present = held.list(role_name)?;
        if role_name == TARGETS {
            check_targets(&held.view.root.signed, &new, held.version(TARGETS), now)?;
        } else {
            let delegations = held.view.targets.signed.delegations.clone().unwrap_or_default();
            check::delegated_role(&delegations, role_name, held.version(role_name), &new, now)?;
            check::nothing_lost(role_name, &present.signed, &new.signed)?;
        }
        let mut change = Change::default();
        for (name, entry) in check::news(&present.signed, &new.signed) {
            let name = name.raw();
            let (_, text) = target.filter(|(sent, _)| *sent == name).ok_or_else(|| unsent(name))?;
            check_target(name, entry, text)?;
            change.targets.insert(name.to_owned(), bytes_of(text));
        }
        // The same target once more is harmless: a promotion to where the channel points already.
        if let Some((name, text)) = target.filter(|(name, _)| !change.targets.contains_key(*name)) {
            let reason = format!("was sent, but the new version of role {role_name} does not list it");
            let unlisted = TrustError::Target { target: name.to_owned(), reason };
            let listed = new.signed.targets.get(&role::target_name(name)?).ok_or(unlisted)?;
            check_target(name, listed, text)?;
        }
        let file = FileName::role(role_name, new.signed.version.get());
        change.metadata.insert(file.to_string(), bytes_of(role_text));
        self.commit(&held, &online, change, true, now).await
    }

    /// Takes the next version of role `releases`, which lists these releases no more and changes nothing else. That no
    /// channel points at one of them, the whole state's verification sees to.
    pub async fn submit_removal(&self, role_text: &str, releases: &[ReleaseRef]) -> Result<(), TrustError> {
        let (online, now) = (self.online.lock().await, Utc::now());
        let held = self.held();
        let new: Signed<Targets> = role::read(RELEASES_ROLE, role_text.as_bytes())?;
        let present = &held.list(RELEASES_ROLE)?.signed;
        let delegations = held.view.targets.signed.delegations.clone().unwrap_or_default();
        check::delegated_role(&delegations, RELEASES_ROLE, held.version(RELEASES_ROLE), &new, now)?;
        let gone: Vec<String> = releases.iter().map(ReleaseRef::target).collect();
        check::only_lost(RELEASES_ROLE, present, &new.signed, &gone)?;
        if let Some((target, _)) = check::news(present, &new.signed).next() {
            return Err(unsent(target.raw()));
        }
        let mut change = Change::default();
        let file = FileName::role(RELEASES_ROLE, new.signed.version.get());
        change.metadata.insert(file.to_string(), bytes_of(role_text));
        self.commit(&held, &online, change, true, now).await
    }

    /// Takes the next versions of several roles at once, root included, none of which adds a target file: new keys,
    /// new channels, the same for longer. See [`super::Operator::next_root`] and [`super::Operator::delegate`].
    /// If a root names new online keys, they must be in the folder already: in use, or as [`Trust::next_online`]'s.
    pub async fn submit_roles(&self, roles: &BTreeMap<String, String>) -> Result<(), TrustError> {
        self.submit_roles_at(roles, Utc::now()).await
    }

    /// [`Trust::submit_roles`] at another time.
    pub async fn submit_roles_at(
        &self,
        roles: &BTreeMap<String, String>,
        now: DateTime<Utc>,
    ) -> Result<(), TrustError> {
        let mut online = self.online.lock().await;
        let held = self.held();
        let mut fresh = roles.clone();
        fresh.retain(|role, text| held.text(role).is_none_or(|present| present != text));
        if fresh.is_empty() {
            return Ok(());
        }
        let mut change = Change::default();
        let mut put = |role: &str, version: NonZeroU64, text: &str| {
            change.metadata.insert(FileName::role(role, version.get()).to_string(), bytes_of(text));
        };
        let (mut root, mut keys) = (held.view.root.signed.clone(), None);
        if let Some(text) = fresh.remove(ROOT) {
            let new = self.check_root(&held, &text, now)?;
            keys = Some(Online::named_by(&self.dir, &new)?);
            put(ROOT, new.version, &text);
            root = new;
        }
        let mut delegations = held.view.targets.signed.delegations.clone().unwrap_or_default();
        if let Some(text) = fresh.remove(TARGETS) {
            let new: Signed<Targets> = role::read(TARGETS, text.as_bytes())?;
            check_targets(&root, &new, held.version(TARGETS), now)?;
            put(TARGETS, new.signed.version, &text);
            delegations = new.signed.delegations.unwrap_or_default();
        }
        for (name, text) in &fresh {
            let new: Signed<Targets> = role::read(name, text.as_bytes())?;
            check::delegated_role(&delegations, name, held.version(name), &new, now)?;
            let none = role::empty_targets(now)?;
            let present = held.list(name).map_or(&none, |role| &role.signed);
            check::nothing_lost(name, present, &new.signed)?;
            if let Some((target, _)) = check::news(present, &new.signed).next() {
                return Err(unsent(target.raw()));
            }
            put(name, new.signed.version, text);
        }
        self.commit(&held, keys.as_ref().unwrap_or(&online), change, true, now).await?;
        if let Some(keys) = keys {
            *online = keys;
            if let Err(error) = Online::settle(&self.dir, &root) {
                tracing::warn!(%error, "the new online keys are used, but not in their place; the next start tries again");
            }
        }
        Ok(())
    }

    /// The public halves of the keys that shall follow the server's two, for the next root to name. They are made at
    /// the first call and used from [`Trust::submit_roles`] of that root on.
    pub async fn next_online(&self) -> Result<OnlinePublic, TrustError> {
        // Not while a root is being taken that may name them.
        let _alone = self.online.lock().await;
        Ok(Online::successors(&self.dir)?.public())
    }

    fn check_root(&self, held: &Held, text: &str, now: DateTime<Utc>) -> Result<Root, TrustError> {
        let new: Signed<Root> = role::read(ROOT, text.as_bytes())?;
        for judge in [&held.view.root.signed, &new.signed] {
            judge.verify_role(&new).map_err(|error| unsigned(ROOT, error))?;
        }
        check::next_version(ROOT, held.version(ROOT), new.signed.version.get())?;
        role::check_fresh(ROOT, &new.signed, now)?;
        Ok(new.signed)
    }

    /// Re-signs the timestamp, and the snapshot, when half of their life is over. Call it at start and every hour.
    /// Returns whether anything was signed.
    pub async fn refresh(&self) -> Result<bool, TrustError> {
        self.refresh_at(Utc::now()).await
    }

    /// [`Trust::refresh`] at another time.
    pub async fn refresh_at(&self, now: DateTime<Utc>) -> Result<bool, TrustError> {
        let online = self.online.lock().await;
        let held = self.held();
        let due = |role: &dyn Fn() -> DateTime<Utc>, life: TimeDelta| role() - now < life / 2;
        let snapshot = due(&|| role::expires(&held.view.snapshot.signed), self.lifetimes.snapshot);
        let timestamp = due(&|| role::expires(&held.view.timestamp.signed), self.lifetimes.timestamp);
        if snapshot || timestamp {
            self.commit(&held, &online, Change::default(), snapshot, now).await?;
        }
        Ok(snapshot || timestamp)
    }

    async fn commit(
        &self,
        held: &Held,
        online: &Online,
        change: Change,
        new_snapshot: bool,
        now: DateTime<Utc>,
    ) -> Result<(), TrustError> {
        let next = next_state(Some(held), online, &change, &self.lifetimes, new_snapshot, now).await?;
        // No await from here on: see the module's head.
        write_state(&self.dir, &next, Some(held))?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }
}

fn bytes_of(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn unsent(target: &str) -> TrustError {
    TrustError::Target { target: target.to_owned(), reason: "was signed, but its text was not sent".to_owned() }
}

fn unsigned(role: &str, error: impl ToString) -> TrustError {
    TrustError::Signature { role: role.to_owned(), reason: error.to_string() }
}

fn check_targets(root: &Root, new: &Signed<Targets>, held: u64, now: DateTime<Utc>) -> Result<(), TrustError> {
    root.verify_role(new).map_err(|error| unsigned(TARGETS, error))?;
    check::next_version(TARGETS, held, new.signed.version.get())?;
    role::check_fresh(TARGETS, &new.signed, now)
}

fn check_target(name: &str, entry: &tough::schema::Target, text: &str) -> Result<(), TrustError> {
    check::target_bytes(name, entry, text.as_bytes())?;
    match name.parse()? {
        Target::Release(_) => check::manifest(name, text.as_bytes()).map(|_| ()),
        Target::Channel(_) => check::pointer(name, text.as_bytes()).map(|_| ()),
    }
}

/// A target file's name on disk.
fn stored_name(name: &str, sha256: &[u8]) -> String {
    let hex: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.{name}")
}

/// Signs snapshot and timestamp over the present state and a change, and verifies the result as a node would.
async fn next_state(
    held: Option<&Held>,
    online: &Online,
    change: &Change,
    lifetimes: &Lifetimes,
    new_snapshot: bool,
    now: DateTime<Utc>,
) -> Result<Held, TrustError> {
    let mut metadata = held.map(|held| held.metadata.clone()).unwrap_or_default();
    metadata.extend(change.metadata.clone());
    let after = |version: Option<NonZeroU64>| version.map_or(NonZeroU64::MIN, role::next);
    let (mut snapshot_version, mut snapshot_text) = (NonZeroU64::MIN, Bytes::new());
    if let (Some(held), false) = (held, new_snapshot) {
        snapshot_version = held.view.snapshot.signed.version;
        snapshot_text = held.text(SNAPSHOT).cloned().unwrap_or_default();
    }
    if snapshot_text.is_empty() {
        snapshot_version = after(held.map(|held| held.view.snapshot.signed.version));
        let newest = newest_roles(&metadata)?;
        let roles = newest.iter().map(|(role, (version, text))| (role.as_str(), *version, text.as_ref()));
        let snapshot = role::snapshot(snapshot_version, now + lifetimes.snapshot, roles)?;
        snapshot_text = role::sign(snapshot, &[&online.snapshot])?.into();
        metadata.insert(FileName::role(SNAPSHOT, snapshot_version.get()).to_string(), snapshot_text.clone());
    }
    let version = after(held.map(|held| held.view.timestamp.signed.version));
    let timestamp = role::timestamp(version, now + lifetimes.timestamp, snapshot_version, &snapshot_text)?;
    metadata.insert(FileName::Timestamp.to_string(), role::sign(timestamp, &[&online.timestamp])?.into());
    let find = |name: &str, sha256: &[u8]| {
        let known = [Some(&change.targets), held.map(|held| &held.targets)].into_iter().flatten();
        let fits = |bytes: &&Bytes| role::sha256(bytes) == sha256;
        Ok(known.filter_map(|targets| targets.get(name)).find(fits).cloned())
    };
    Held::verify(metadata, find).await
}

/// The newest version of each role that a snapshot lists.
fn newest_roles(metadata: &Files) -> Result<BTreeMap<String, (NonZeroU64, Bytes)>, TrustError> {
    let mut newest: BTreeMap<String, (NonZeroU64, Bytes)> = BTreeMap::new();
    for (name, text) in metadata {
        let FileName::Role { role, version } = name.parse()? else { continue };
        let version = NonZeroU64::new(version).unwrap_or(NonZeroU64::MIN);
        let older = newest.get(&role).is_none_or(|(held, _)| *held < version);
        if role != ROOT && role != SNAPSHOT && older {
            newest.insert(role, (version, text.clone()));
        }
    }
    Ok(newest)
}

/// Writes what `next` has and `held` has not, the timestamp last, and then removes what nothing names any more.
fn write_state(dir: &Path, next: &Held, held: Option<&Held>) -> Result<(), TrustError> {
    let (metadata_dir, targets_dir) = (dir.join("metadata"), dir.join("targets"));
    let stored = |name: &str, bytes: &Bytes| stored_name(name, &role::sha256(bytes));
    for (name, bytes) in &next.targets {
        if held.and_then(|held| held.targets.get(name)) != Some(bytes) {
            disk::write(&targets_dir, &stored(name, bytes), bytes, disk::PUBLIC)?;
        }
    }
    let timestamp = FileName::Timestamp.to_string();
    for (name, bytes) in next.metadata.iter().filter(|(name, _)| **name != timestamp) {
        if held.and_then(|held| held.metadata.get(name)) != Some(bytes) {
            disk::write(&metadata_dir, name, bytes, disk::PUBLIC)?;
        }
    }
    let Some(bytes) = next.metadata.get(&timestamp) else {
        return Err(TrustError::UnknownTarget { target: timestamp });
    };
    disk::write(&metadata_dir, &timestamp, bytes, disk::PUBLIC)?;

    let named: std::collections::BTreeSet<_> = next.targets.iter().map(|(name, bytes)| stored(name, bytes)).collect();
    disk::remove_others(&metadata_dir, |name| next.metadata.contains_key(name));
    disk::remove_others(&targets_dir, |name| named.contains(name));
    Ok(())
}
