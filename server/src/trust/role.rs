//! Reading, making and signing the metadata of one role. No file, no clock.

use std::collections::HashMap;
use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA256, digest};
use chrono::{DateTime, SecondsFormat, Utc};
use goldsync_proto::limits::TRUST_FILE_MAX;
use serde::de::DeserializeOwned;
use tough::TargetName;
use tough::schema::key::Key as PublicKey;
use tough::schema::{
    DelegatedRole, Delegations, Hashes, Metafile, PathPattern, PathSet, Role, RoleKeys, RoleType, Root, Signed,
    Snapshot, Target, Targets, Timestamp,
};

use super::TrustError;
use super::key::Key;
use super::operator::Delegate;

/// The version of the TUF specification that this metadata follows.
const SPEC: &str = "1.0.0";

/// Signs a role. The text is what travels, what is stored, and what other roles hash.
pub(super) fn sign<T: Role>(role: T, keys: &[&Key]) -> Result<String, TrustError> {
    let name = T::TYPE.to_string();
    let message = role.canonical_form().map_err(|error| TrustError::unreadable(&name, error))?;
    let signatures = keys.iter().map(|key| key.sign(&message)).collect();
    serde_json::to_string(&Signed { signed: role, signatures }).map_err(|error| TrustError::unreadable(&name, error))
}

/// Reads a signed role. Nothing is verified yet.
pub(super) fn read<T: DeserializeOwned>(name: &str, text: &[u8]) -> Result<Signed<T>, TrustError> {
    check_size(name, text.len())?;
    serde_json::from_slice(text).map_err(|error| TrustError::unreadable(name, error))
}

/// Holds a file's size against the limit.
pub(super) fn check_size(what: &str, len: usize) -> Result<(), TrustError> {
    let got = len as u64;
    if got > TRUST_FILE_MAX {
        return Err(TrustError::TooLarge { what: what.to_owned(), got, max: TRUST_FILE_MAX });
    }
    Ok(())
}

/// A time as `tough` keeps it.
pub(super) fn moment<T: DeserializeOwned>(at: DateTime<Utc>) -> Result<T, TrustError> {
    let text = at.to_rfc3339_opts(SecondsFormat::Secs, true);
    serde_json::from_value(text.into()).map_err(|error| TrustError::unreadable("expires", error))
}

/// When a role expires.
pub(super) fn expires(role: &impl Role) -> DateTime<Utc> {
    DateTime::from_timestamp(role.expires().as_second(), 0).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// Whether a role is still good.
pub(super) fn check_fresh(name: &str, role: &impl Role, now: DateTime<Utc>) -> Result<(), TrustError> {
    let at = expires(role);
    if now < at { Ok(()) } else { Err(TrustError::Expired { role: name.to_owned(), at }) }
}

/// The version after this one.
pub(super) fn next(version: NonZeroU64) -> NonZeroU64 {
    version.saturating_add(1)
}

/// SHA-256, the hash that TUF metadata uses.
pub(super) fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&SHA256, bytes).as_ref().to_vec()
}

fn hashes(bytes: &[u8]) -> Hashes {
    Hashes { sha256: sha256(bytes).into(), _extra: HashMap::new() }
}

/// How a role lists a target file.
pub(super) fn target(text: &str) -> Target {
    let (length, hashes) = (text.len() as u64, hashes(text.as_bytes()));
    Target { length, hashes, custom: HashMap::new(), _extra: HashMap::new() }
}

/// The name of a target, as `tough` keeps it.
pub(super) fn target_name(name: &str) -> Result<TargetName, TrustError> {
    TargetName::new(name).map_err(|error| TrustError::Target { target: name.to_owned(), reason: error.to_string() })
}

fn metafile(version: NonZeroU64, text: &[u8]) -> Metafile {
    Metafile { length: Some(text.len() as u64), hashes: Some(hashes(text)), version, _extra: HashMap::new() }
}

/// A root that names these keys, one a role.
pub(super) fn root(keys: &[(RoleType, &PublicKey)], expires: DateTime<Utc>) -> Result<Root, TrustError> {
    let mut root = Root {
        spec_version: SPEC.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires: moment(expires)?,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (role, key) in keys {
        set_key(&mut root, *role, key)?;
    }
    Ok(root)
}

/// Makes `key` the one key of a role.
pub(super) fn set_key(root: &mut Root, role: RoleType, key: &PublicKey) -> Result<(), TrustError> {
    let id = key.key_id().map_err(|error| TrustError::unreadable("root", error))?;
    root.keys.insert(id.clone(), key.clone());
    root.roles.insert(role, RoleKeys { keyids: vec![id], threshold: NonZeroU64::MIN, _extra: HashMap::new() });
    let named: Vec<_> = root.roles.values().flat_map(|role| role.keyids.clone()).collect();
    root.keys.retain(|id, _| named.contains(id));
    Ok(())
}

/// An empty list of targets: what a delegated role begins with.
pub(super) fn empty_targets(expires: DateTime<Utc>) -> Result<Targets, TrustError> {
    let mut targets = Targets::new(SPEC.to_owned(), NonZeroU64::MIN, moment(expires)?);
    targets.delegations = None;
    Ok(targets)
}

/// Makes `key` the one key of a delegated role, which is added if it is not there.
pub(super) fn delegate(all: &mut Delegations, to: &Delegate, key: &PublicKey) -> Result<(), TrustError> {
    let name = to.role();
    let unreadable = |error: tough::schema::Error| TrustError::unreadable(&name, error);
    let id = key.key_id().map_err(unreadable)?;
    let paths = PathSet::Paths(vec![PathPattern::new(to.pattern()).map_err(unreadable)?]);
    let (keyids, threshold) = (vec![id.clone()], NonZeroU64::MIN);
    // Terminating: what matches this role's paths is looked for nowhere else.
    let role = DelegatedRole { name: name.clone(), keyids, threshold, paths, terminating: true, targets: None };
    match all.roles.iter_mut().find(|held| held.name == name) {
        Some(held) => *held = role,
        None => all.roles.push(role),
    }
    all.keys.insert(id, key.clone());
    let named: Vec<_> = all.roles.iter().flat_map(|role| role.keyids.clone()).collect();
    all.keys.retain(|id, _| named.contains(id));
    Ok(())
}

/// A snapshot of these roles: `(name, version, text)`.
pub(super) fn snapshot<'a>(
    version: NonZeroU64,
    expires: DateTime<Utc>,
    roles: impl IntoIterator<Item = (&'a str, NonZeroU64, &'a [u8])>,
) -> Result<Snapshot, TrustError> {
    let mut snapshot = Snapshot::new(SPEC.to_owned(), version, moment(expires)?);
    let meta = roles.into_iter().map(|(name, version, text)| (format!("{name}.json"), metafile(version, text)));
    snapshot.meta.extend(meta);
    Ok(snapshot)
}

/// A timestamp of this snapshot.
pub(super) fn timestamp(
    version: NonZeroU64,
    expires: DateTime<Utc>,
    snapshot_version: NonZeroU64,
    snapshot_text: &[u8],
) -> Result<Timestamp, TrustError> {
    let mut timestamp = Timestamp::new(SPEC.to_owned(), version, moment(expires)?);
    timestamp.meta.insert("snapshot.json".to_owned(), metafile(snapshot_version, snapshot_text));
    Ok(timestamp)
}
