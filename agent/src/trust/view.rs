//! One verified state: what `tough` makes of a set of files, and what can be read from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use goldsync_proto::limits::TRUST_FILE_MAX;
use goldsync_proto::release::{Manifest, Pointer, RELEASES_ROLE, ReleaseRef, Word, channel_role};
use goldsync_proto::trust::{FileName, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Target};
use goldsync_proto::verity::RootHash;
use serde::de::DeserializeOwned;
use tough::schema::Role;
use tough::{
    ExpirationEnforcement, IntoVec, Limits, Repository, RepositoryLoader, TargetName, Transport, TransportError,
    TransportErrorKind, TransportStream,
};
use url::Url;

use super::TrustError;

/// File name to bytes.
pub(super) type Files = BTreeMap<String, Bytes>;

const CUT_OFF: &str =
    "the server has not renewed it; is this machine cut off from the real server, or its clock wrong?";
const UNSIGNED: &str = "an operator must sign it again";

/// Hands `tough` files that are in memory.
#[derive(Clone, Debug)]
struct Shelf(Arc<Files>);

#[async_trait]
impl Transport for Shelf {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        match self.0.get(&file_name(&url)) {
            Some(bytes) => Ok(Box::pin(futures::stream::iter([Ok(bytes.clone())]))),
            None => Err(TransportError::new(TransportErrorKind::FileNotFound, url)),
        }
    }
}

/// The file that a URL asks for. `tough` asks for a target by `SHA256.NAME`; here it lies under its name. Of all
/// characters of our names, only `+` is escaped in a URL's path.
fn file_name(url: &Url) -> String {
    let last = url.path_segments().and_then(Iterator::last).unwrap_or_default().replace("%2B", "+");
    let hashed = last.split_once('.').filter(|(hash, name)| hash.len() == 64 && name.parse::<Target>().is_ok());
    hashed.map_or_else(|| last.clone(), |(_, name)| name.to_owned())
}

/// Metadata whose signatures, versions and hashes fit together, and which is no older than what was seen before.
///
/// `tough` enforces expiry for all roles or for none. For all would let a channel that nobody promotes to stop the
/// nodes of every other channel, so it is asked for none, and each reader here asks for the roles it relies on:
/// the four top roles always, a channel's role for its pointer, `releases` for a manifest.
pub(super) struct View {
    repository: Repository,
    files: Arc<Files>,
}

impl View {
    /// Verifies `files` from `root` on. `store` is `tough`'s datastore: a folder with what was trusted last, in
    /// which it leaves what is trusted now; `clock` is where people find the latest known time.
    pub async fn verify(root: &[u8], files: Files, store: &Path, clock: &Path) -> Result<Self, TrustError> {
        let files = Arc::new(files);
        let base = || Url::parse("goldsync:///").map_err(|error| TrustError::Inconsistent(error.to_string()));
        let limits = Limits {
            max_root_size: TRUST_FILE_MAX,
            max_targets_size: TRUST_FILE_MAX,
            max_timestamp_size: TRUST_FILE_MAX,
            max_snapshot_size: TRUST_FILE_MAX,
            ..Limits::default()
        };
        let loading = RepositoryLoader::new(&root, base()?, base()?)
            .transport(Shelf(files.clone()))
            .limits(limits)
            .datastore(store)
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .load();
        let repository = loading.await.map_err(|error| TrustError::from_tough(error, clock))?;
        Ok(Self { repository, files })
    }

    /// Role to version.
    pub fn versions(&self) -> BTreeMap<String, u64> {
        let top = [
            (ROOT, self.repository.root().signed.version),
            (TIMESTAMP, self.repository.timestamp().signed.version),
            (SNAPSHOT, self.repository.snapshot().signed.version),
            (TARGETS, self.repository.targets().signed.version),
        ];
        let targets = &self.repository.targets().signed;
        let delegated = targets.role_names().into_iter().filter_map(|name| {
            let role = targets.delegated_targets(name).ok()?;
            Some((name.as_str(), role.signed.version))
        });
        top.into_iter().chain(delegated).map(|(name, version)| (name.to_owned(), version.get())).collect()
    }

    /// The files that this state consists of: the newest root, each role's version, and the listed targets that are
    /// there and right. Everything else that was sent is not kept.
    pub fn kept(&self) -> Files {
        let mut kept = Files::new();
        let mut keep = |name: String| {
            if let Some(bytes) = self.files.get(&name) {
                kept.insert(name, bytes.clone());
            }
        };
        for (role, version) in self.versions() {
            keep(FileName::role(&role, version).to_string());
        }
        for name in self.files.keys() {
            if name.parse::<Target>().is_ok() && self.holds(name) {
                keep(name.clone());
            }
        }
        kept
    }

    /// Whether a target is listed, and its file here is the one that was signed.
    fn holds(&self, name: &str) -> bool {
        let Ok(target) = TargetName::new(name) else { return false };
        let Ok(entry) = self.repository.targets().signed.find_target(&target, false) else { return false };
        let sha256 = |bytes: &Bytes| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let same = |bytes: &Bytes| bytes.len() as u64 == entry.length && entry.hashes.sha256 == *sha256(bytes).as_ref();
        self.files.get(name).is_some_and(same)
    }

    fn lists(&self, name: &str) -> bool {
        TargetName::new(name).is_ok_and(|name| self.repository.targets().signed.find_target(&name, false).is_ok())
    }

    /// None of the top roles may have expired.
    pub fn check_fresh(&self, now: DateTime<Utc>) -> Result<(), TrustError> {
        fresh(TIMESTAMP, &self.repository.timestamp().signed, now, CUT_OFF)?;
        fresh(SNAPSHOT, &self.repository.snapshot().signed, now, CUT_OFF)?;
        fresh(ROOT, &self.repository.root().signed, now, UNSIGNED)?;
        fresh(TARGETS, &self.repository.targets().signed, now, UNSIGNED)
    }

    fn check_role(&self, role: &str, now: DateTime<Utc>) -> Result<(), TrustError> {
        self.check_fresh(now)?;
        let missing = |_| TrustError::Missing { name: format!("the metadata of role {role}") };
        fresh(role, &self.repository.targets().signed.delegated_targets(role).map_err(missing)?.signed, now, UNSIGNED)
    }

    /// The target files that are listed, wanted for this channel, and not here.
    pub fn wanted(&self, channel: &Word) -> Vec<String> {
        let target = Target::Channel(channel.clone()).to_string();
        if !self.lists(&target) {
            return Vec::new();
        }
        if !self.holds(&target) {
            return vec![target];
        }
        // Not verified by `tough` yet, but `holds` has just compared its hash; it only decides what to ask for.
        let pointer: Option<Pointer> = self.files.get(&target).and_then(|text| serde_json::from_slice(text).ok());
        let release = pointer.map(|pointer| pointer.release.target());
        release.into_iter().filter(|release| self.lists(release) && !self.holds(release)).collect()
    }

    /// Where a channel points; `None` if it was never promoted to.
    pub async fn pointer(&self, channel: &Word, now: DateTime<Utc>) -> Result<Option<Pointer>, TrustError> {
        let role = channel_role(channel);
        let channels = || {
            let names = self.repository.targets().signed.role_names();
            names.into_iter().filter_map(|name| name.strip_prefix("channel-")).collect::<Vec<_>>().join(", ")
        };
        if self.repository.delegated_role(&role).is_none() {
            return Err(TrustError::UnknownChannel { channel: channel.clone(), known: channels() });
        }
        self.check_role(&role, now)?;
        let target = Target::Channel(channel.clone()).to_string();
        let Some(pointer) = self.read::<Pointer>(&target).await? else { return Ok(None) };
        if pointer.format != 1 {
            let format = pointer.format;
            return Err(TrustError::Inconsistent(format!(
                "{target}: format {format} is not known here, only 1; update goldsync-agent"
            )));
        }
        if pointer.channel != *channel {
            return Err(TrustError::Inconsistent(format!("{target} is the pointer of channel {}", pointer.channel)));
        }
        Ok(Some(pointer))
    }

    /// A signed release.
    pub async fn manifest(&self, release: &ReleaseRef, now: DateTime<Utc>) -> Result<Manifest, TrustError> {
        self.check_role(RELEASES_ROLE, now)?;
        let target = release.target();
        let unknown = || TrustError::UnknownRelease { release: release.clone() };
        let manifest: Manifest = self.read(&target).await?.ok_or_else(unknown)?;
        if manifest.release != *release {
            return Err(TrustError::Inconsistent(format!("{target} is the manifest of {}", manifest.release)));
        }
        manifest.check().map_err(|source| TrustError::Manifest { release: release.clone(), source })?;
        Ok(manifest)
    }

    /// The releases of this name whose manifests are listed and not here, those with the highest versions first.
    pub fn unread(&self, name: &Word) -> Vec<ReleaseRef> {
        let Ok(role) = self.repository.targets().signed.delegated_targets(RELEASES_ROLE) else { return Vec::new() };
        let of_name = |target: &TargetName| match target.raw().parse() {
            Ok(Target::Release(release)) if release.name == *name => Some(release),
            _ => None,
        };
        let listed = role.signed.targets.keys().filter_map(of_name);
        let mut unread: Vec<_> = listed.filter(|release| !self.holds(&release.target())).collect();
        unread.sort_by_cached_key(|release| std::cmp::Reverse(order(release.version.as_str())));
        unread
    }

    /// The signed release, of those whose manifests are here, whose hash tree has this root.
    pub async fn sealed_by(&self, root: &RootHash, now: DateTime<Utc>) -> Result<Option<Manifest>, TrustError> {
        let wanted = format!("\"{root}\"");
        let says = |bytes: &Bytes| bytes.windows(wanted.len()).any(|part| part == wanted.as_bytes());
        for (name, _) in self.files.iter().filter(|(_, bytes)| says(bytes)) {
            let Ok(Target::Release(release)) = name.parse() else { continue };
            let Ok(manifest) = self.manifest(&release, now).await else { continue };
            if manifest.verity.as_ref().is_some_and(|sealed| sealed.root_hash == *root) {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// Reads a target through `tough`, which verifies its length and hash; `None` if it is not listed.
    async fn read<T: DeserializeOwned>(&self, target: &str) -> Result<Option<T>, TrustError> {
        let damaged = |error: tough::error::Error| TrustError::from_tough(error, Path::new(""));
        let name = TargetName::new(target).map_err(damaged)?;
        let Some(stream) = self.repository.read_target(&name).await.map_err(damaged)? else { return Ok(None) };
        let bytes = stream.into_vec().await.map_err(damaged)?;
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| TrustError::Inconsistent(format!("{target} cannot be read: {error}")))
    }
}

/// A version's numbers, then its text: `1.10` comes after `1.9`.
fn order(version: &str) -> (Vec<u64>, String) {
    let numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    (numbers.collect(), version.to_owned())
}

fn fresh(name: &str, role: &impl Role, now: DateTime<Utc>, remedy: &'static str) -> Result<(), TrustError> {
    let at = DateTime::from_timestamp(role.expires().as_second(), 0).unwrap_or(DateTime::<Utc>::MIN_UTC);
    if now < at { Ok(()) } else { Err(TrustError::Expired { role: name.to_owned(), at, now, remedy }) }
}
