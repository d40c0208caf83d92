//! The operator's side: making the first metadata, and signing each next version of a role.
//!
//! ```text
//! DIR/keys/ROLE.pem      the keys that this operator holds (0600)
//! DIR/trust/root.json    1.root.json, as founded or as given: the one thing taken on faith
//! DIR/trust/seen.json    the newest version of each role ever seen
//! ```
//! Signing begins with the server's present list, so that the server could try to have an old list signed again
//! (and with it, forget a release). It cannot: what it shows is verified from the pinned root on, and no version may
//! be lower than one seen before. Expiry is not held against it here: an expired role is exactly what wants signing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use goldsync_proto::digest::Digest;
use goldsync_proto::release::{
    Manifest, Pointer, RELEASES_PATHS, RELEASES_ROLE, ReleaseRef, Word, channel_role, channel_target,
};
use goldsync_proto::trust::{FileName, ROOT, TARGETS, Target};
use tough::schema::{Delegations, RoleType, Root, Signed, Targets};

use super::key::{Key, Keys, OnlinePublic};
use super::role;
use super::view::{Files, View};
use super::{Lifetimes, TrustError, check};
use crate::disk;

/// An operator's keys, pinned root, and memory of versions.
#[derive(Debug)]
pub struct Operator {
    dir: PathBuf,
    keys: Keys,
    lifetimes: Lifetimes,
}

/// Keys that the next root shall name; `None` leaves a role's key as it is.
#[derive(Debug, Default)]
pub struct NewRoot<'a> {
    /// A new root key. The old one must be at hand too: both sign.
    pub root: Option<&'a Key>,
    /// A new targets key.
    pub targets: Option<&'a Key>,
    /// The keys of a new server, or new keys of the old one.
    pub online: Option<&'a OnlinePublic>,
}

/// A role that `targets` delegates to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delegate {
    /// `releases`
    Releases,
    /// `channel-NAME`
    Channel(Word),
}

impl Delegate {
    /// The role's name.
    pub fn role(&self) -> String {
        match self {
            Self::Releases => RELEASES_ROLE.to_owned(),
            Self::Channel(channel) => channel_role(channel),
        }
    }

    /// The targets that it may sign.
    pub(super) fn pattern(&self) -> String {
        match self {
            Self::Releases => RELEASES_PATHS.to_owned(),
            Self::Channel(channel) => channel_target(channel),
        }
    }
}

impl Operator {
    /// Makes the keys of every offline role in `dir/keys`. Refuses to touch any that exist.
    pub fn create(dir: &Path, channels: &[Word]) -> Result<Self, TrustError> {
        let keys = Keys::create(&dir.join("keys"), channels)?;
        Ok(Self { dir: dir.to_owned(), keys, lifetimes: Lifetimes::default() })
    }

    /// Opens an operator's folder, with whichever keys are in it.
    pub fn open(dir: &Path) -> Result<Self, TrustError> {
        let keys = Keys::load(&dir.join("keys"))?;
        Ok(Self { dir: dir.to_owned(), keys, lifetimes: Lifetimes::default() })
    }

    /// Signs with other lifetimes than the default ones.
    #[must_use]
    pub fn with_lifetimes(mut self, lifetimes: Lifetimes) -> Self {
        self.lifetimes = lifetimes;
        self
    }

    /// The keys at hand.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The keys at hand, to add to them.
    pub fn keys_mut(&mut self) -> &mut Keys {
        &mut self.keys
    }

    fn trust_dir(&self) -> PathBuf {
        self.dir.join("trust")
    }

    fn seen_path(&self) -> PathBuf {
        self.trust_dir().join("seen.json")
    }

    /// Makes the first metadata (`1.root.json`, `1.targets.json`, empty delegated roles), and pins its root.
    /// The server adds snapshot and timestamp; see [`super::Trust::create`].
    pub fn found(
        &self,
        online: &OnlinePublic,
        channels: &[Word],
        now: DateTime<Utc>,
    ) -> Result<BTreeMap<String, String>, TrustError> {
        let (root, targets, releases) = (self.keys.get(ROOT)?, self.keys.get(TARGETS)?, self.keys.get(RELEASES_ROLE)?);
        let named = [
            (RoleType::Root, &root.public()),
            (RoleType::Targets, &targets.public()),
            (RoleType::Snapshot, &online.snapshot),
            (RoleType::Timestamp, &online.timestamp),
        ];
        let root_text = role::sign(role::root(&named, now + self.lifetimes.root)?, &[root])?;
        let mut files = BTreeMap::from([(FileName::role(ROOT, 1).to_string(), root_text.clone())]);

        let mut all = Delegations::new();
        role::delegate(&mut all, &Delegate::Releases, &releases.public())?;
        for channel in channels {
            let key = self.keys.get(&channel_role(channel))?.public();
            role::delegate(&mut all, &Delegate::Channel(channel.clone()), &key)?;
        }
        let mut list = role::empty_targets(now + self.lifetimes.targets)?;
        list.delegations = Some(all);
        files.insert(FileName::role(TARGETS, 1).to_string(), role::sign(list, &[targets])?);

        let empty = role::empty_targets(now + self.lifetimes.releases)?;
        files.insert(FileName::role(RELEASES_ROLE, 1).to_string(), role::sign(empty, &[releases])?);
        for name in channels.iter().map(channel_role) {
            let empty = role::empty_targets(now + self.lifetimes.channels)?;
            files.insert(FileName::role(&name, 1).to_string(), role::sign(empty, &[self.keys.get(&name)?])?);
        }
        self.pin(&root_text)?;
        Ok(files)
    }

    /// Pins a root that was handed over by somebody trusted: a second operator's first step. Refuses another root
    /// than the one that is pinned already.
    pub fn pin(&self, root_text: &str) -> Result<(), TrustError> {
        let root: Signed<Root> = role::read(ROOT, root_text.as_bytes())?;
        let self_signed = root.signed.verify_role(&root);
        self_signed.map_err(|error| TrustError::Signature { role: ROOT.to_owned(), reason: error.to_string() })?;
        disk::make_dir(&self.trust_dir())?;
        let path = self.trust_dir().join("root.json");
        match disk::read_if_there(&path)? {
            Some(held) if held == root_text.as_bytes() => Ok(()),
            Some(_) => Err(TrustError::Exists { path }),
            None => Ok(disk::write(&self.trust_dir(), "root.json", root_text.as_bytes(), disk::PUBLIC)?),
        }
    }

    /// The pinned root's text. Its hash goes into tokens.
    pub fn root(&self) -> Result<String, TrustError> {
        let bytes = disk::read(&self.trust_dir().join("root.json"))?;
        String::from_utf8(bytes).map_err(|error| TrustError::unreadable(ROOT, error))
    }

    /// The hash of the pinned root, as a token carries it.
    pub fn root_hash(&self) -> Result<Digest, TrustError> {
        self.root().map(|text| Digest::of(text.as_bytes()))
    }

    /// Verifies what the server shows, from the pinned root on, and against what it showed before.
    pub(super) async fn look(&self, files: &BTreeMap<String, String>) -> Result<View, TrustError> {
        for (name, text) in files {
            role::check_size(name, text.len())?;
        }
        let files: Files =
            files.iter().map(|(name, text)| (name.clone(), Bytes::copy_from_slice(text.as_bytes()))).collect();
        let view = View::verify(self.root()?.as_bytes(), &files).await?;
        self.remember(&view.versions())?;
        Ok(view)
    }

    fn remember(&self, versions: &BTreeMap<String, u64>) -> Result<(), TrustError> {
        let path = self.seen_path();
        let seen: BTreeMap<String, u64> = match disk::read_if_there(&path)? {
            Some(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| TrustError::unreadable("seen.json", error))?
            }
            None => BTreeMap::new(),
        };
        for (role, &seen) in &seen {
            let got = versions.get(role).copied().unwrap_or(0);
            if got < seen {
                return Err(TrustError::RolledBack { role: role.clone(), seen, got, path });
            }
        }
        if seen == *versions {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(versions).map_err(|error| TrustError::unreadable("seen.json", error))?;
        Ok(disk::write(&self.trust_dir(), "seen.json", &text, disk::SECRET)?)
    }

    /// The next version of role `releases`, with this release in it. `files` is what the server shows
    /// (`GET /v1/trust`); `manifest_text` is signed as it is, byte for byte.
    pub async fn sign_release(
        &self,
        files: &BTreeMap<String, String>,
        manifest_text: &str,
        now: DateTime<Utc>,
    ) -> Result<String, TrustError> {
        let manifest: Manifest =
            serde_json::from_str(manifest_text).map_err(|error| TrustError::unreadable("manifest", error))?;
        let target = Target::Release(manifest.release.clone());
        check::manifest(&target.to_string(), manifest_text.as_bytes())?;
        let view = self.look(files).await?;
        let mut list = view.delegated(RELEASES_ROLE)?.signed.clone();
        let (name, entry) = (role::target_name(&target.to_string())?, role::target(manifest_text));
        if list.targets.get(&name).is_some_and(|held| *held != entry) {
            return Err(TrustError::ReleaseExists { release: manifest.release });
        }
        list.add_target(name, entry);
        self.sign_next(&view, RELEASES_ROLE, list, now)
    }

    /// The next version of role `releases`, without these releases. Those that are not in it are no hindrance: a removal that
    /// broke off is taken up again.
    pub async fn sign_removal(
        &self,
        files: &BTreeMap<String, String>,
        releases: &[ReleaseRef],
        now: DateTime<Utc>,
    ) -> Result<String, TrustError> {
        let view = self.look(files).await?;
        let mut list = view.delegated(RELEASES_ROLE)?.signed.clone();
        for release in releases {
            list.targets.remove(&role::target_name(&release.target())?);
        }
        self.sign_next(&view, RELEASES_ROLE, list, now)
    }

    /// The next version of a channel's role, pointing where `pointer_text` says. The release must be signed already,
    /// and hold the image that the pointer names.
    pub async fn sign_pointer(
        &self,
        files: &BTreeMap<String, String>,
        pointer_text: &str,
        now: DateTime<Utc>,
    ) -> Result<String, TrustError> {
        let pointer: Pointer =
            serde_json::from_str(pointer_text).map_err(|error| TrustError::unreadable("pointer", error))?;
        let target = Target::Channel(pointer.channel.clone());
        check::pointer(&target.to_string(), pointer_text.as_bytes())?;
        let view = self.look(files).await?;
        let release = pointer.release.target();
        if !view.delegated(RELEASES_ROLE)?.signed.targets.contains_key(&role::target_name(&release)?) {
            return Err(TrustError::UnknownTarget { target: release });
        }
        let role_name = channel_role(&pointer.channel);
        let mut list = view.delegated(&role_name)?.signed.clone();
        list.add_target(role::target_name(&target.to_string())?, role::target(pointer_text));
        self.sign_next(&view, &role_name, list, now)
    }

    /// The next version of a delegated role or of `targets`, saying the same for longer.
    pub async fn renew(
        &self,
        files: &BTreeMap<String, String>,
        role_name: &str,
        now: DateTime<Utc>,
    ) -> Result<String, TrustError> {
        let view = self.look(files).await?;
        if role_name == TARGETS {
            return self.sign_targets(&view, view.targets.signed.clone(), self.keys.get(TARGETS)?, now);
        }
        let list = view.delegated(role_name)?.signed.clone();
        self.sign_next(&view, role_name, list, now)
    }

    fn sign_next(
        &self,
        view: &View,
        role_name: &str,
        mut list: Targets,
        now: DateTime<Utc>,
    ) -> Result<String, TrustError> {
        let key = self.keys.get(role_name)?;
        let named = view.targets.signed.delegations.as_ref();
        if !named.is_some_and(|all| names_key(all, role_name, key)) {
            return Err(TrustError::ForeignKey { role: role_name.to_owned(), by: TARGETS });
        }
        list.version = role::next(list.version);
        list.expires = role::moment(now + self.lifetime(role_name))?;
        let text = role::sign(list, &[key])?;
        role::check_size(role_name, text.len())?;
        Ok(text)
    }

    fn sign_targets(
        &self,
        view: &View,
        mut list: Targets,
        key: &Key,
        now: DateTime<Utc>,
    ) -> Result<String, TrustError> {
        list.version = role::next(view.targets.signed.version);
        list.expires = role::moment(now + self.lifetimes.targets)?;
        role::sign(list, &[key])
    }

    /// The next root, signed by the old root key and, if it changes, by the new one. If the targets key changes, the
    /// next version of `targets` comes along. Hand all of it to [`super::Trust::submit_roles`] at once.
    pub async fn next_root(
        &self,
        files: &BTreeMap<String, String>,
        new: &NewRoot<'_>,
        now: DateTime<Utc>,
    ) -> Result<BTreeMap<String, String>, TrustError> {
        let view = self.look(files).await?;
        let (old_root, held) = (self.keys.get(ROOT)?, &view.root.signed);
        if !held.keys.contains_key(old_root.key_id()) {
            return Err(TrustError::ForeignKey { role: ROOT.to_owned(), by: ROOT });
        }
        let mut next = held.clone();
        next.version = role::next(held.version);
        next.expires = role::moment(now + self.lifetimes.root)?;
        let offline = [(RoleType::Root, new.root), (RoleType::Targets, new.targets)];
        for (role, key) in offline.into_iter().filter_map(|(role, key)| Some((role, key?))) {
            role::set_key(&mut next, role, &key.public())?;
        }
        if let Some(online) = new.online {
            role::set_key(&mut next, RoleType::Snapshot, &online.snapshot)?;
            role::set_key(&mut next, RoleType::Timestamp, &online.timestamp)?;
        }
        let signers: Vec<&Key> = [Some(old_root), new.root].into_iter().flatten().collect();
        let mut roles = BTreeMap::from([(ROOT.to_owned(), role::sign(next, &signers)?)]);
        if let Some(key) = new.targets {
            let list = self.sign_targets(&view, view.targets.signed.clone(), key, now)?;
            roles.insert(TARGETS.to_owned(), list);
        }
        Ok(roles)
    }

    /// Gives role `releases` or a channel's role another key, or makes a new channel: the next `targets`, which names
    /// the key, and the role's next version, signed with it. Hand both to [`super::Trust::submit_roles`] at once.
    pub async fn delegate(
        &self,
        files: &BTreeMap<String, String>,
        delegate: &Delegate,
        key: &Key,
        now: DateTime<Utc>,
    ) -> Result<BTreeMap<String, String>, TrustError> {
        let view = self.look(files).await?;
        let name = delegate.role();
        let mut list = view.targets.signed.clone();
        let mut all = list.delegations.take().unwrap_or_default();
        role::delegate(&mut all, delegate, &key.public())?;
        list.delegations = Some(all);
        let present = view.delegated(&name).ok().map(|role| role.signed.clone());
        let mut role = match present {
            Some(mut role) => {
                role.version = role::next(role.version);
                role
            }
            None => role::empty_targets(now)?,
        };
        role.expires = role::moment(now + self.lifetime(&name))?;
        let targets = self.sign_targets(&view, list, self.keys.get(TARGETS)?, now)?;
        Ok(BTreeMap::from([(TARGETS.to_owned(), targets), (name, role::sign(role, &[key])?)]))
    }

    fn lifetime(&self, role_name: &str) -> TimeDelta {
        if role_name == RELEASES_ROLE { self.lifetimes.releases } else { self.lifetimes.channels }
    }
}

fn names_key(delegations: &Delegations, role_name: &str, key: &Key) -> bool {
    delegations.roles.iter().any(|role| role.name == role_name && role.keyids.contains(key.key_id()))
}
