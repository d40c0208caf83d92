//! What is asked of a target file and of a submitted role before it is taken. No file, no clock.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use goldsync_proto::digest::Digest;
use goldsync_proto::release::{Manifest, Pointer, RELEASES_ROLE};
use goldsync_proto::trust::Target;
use tough::TargetName;
use tough::schema::{Delegations, Signed, Targets};

use super::{TrustError, role};

fn wrong(target: impl ToString, reason: impl ToString) -> TrustError {
    TrustError::Target { target: target.to_string(), reason: reason.to_string() }
}

/// Reads a manifest and checks that it is what its target's name says, and usable.
pub(super) fn manifest(target: &str, text: &[u8]) -> Result<Manifest, TrustError> {
    role::check_size(target, text.len())?;
    let manifest: Manifest = serde_json::from_slice(text).map_err(|error| wrong(target, error))?;
    if manifest.release.target() != target {
        return Err(wrong(target, format!("the manifest inside is that of {}", manifest.release)));
    }
    manifest.check().map_err(|source| TrustError::Manifest { target: target.to_owned(), source })?;
    Ok(manifest)
}

/// Reads a pointer and checks that it is what its target's name says.
pub(super) fn pointer(target: &str, text: &[u8]) -> Result<Pointer, TrustError> {
    role::check_size(target, text.len())?;
    let pointer: Pointer = serde_json::from_slice(text).map_err(|error| wrong(target, error))?;
    if pointer.format != 1 {
        return Err(wrong(target, format!("pointer format {} is not known here, only 1", pointer.format)));
    }
    if Target::Channel(pointer.channel.clone()).to_string() != target {
        return Err(wrong(target, format!("the pointer inside is that of channel {}", pointer.channel)));
    }
    Ok(pointer)
}

/// Holds a target file's bytes against its entry in a role.
pub(super) fn target_bytes(target: &str, entry: &tough::schema::Target, bytes: &[u8]) -> Result<(), TrustError> {
    if bytes.len() as u64 != entry.length {
        return Err(wrong(target, format!("{} bytes, but {} bytes were signed", bytes.len(), entry.length)));
    }
    if entry.hashes.sha256 != role::sha256(bytes) {
        return Err(wrong(target, format!("its bytes (BLAKE3 {}) are not those that were signed", Digest::of(bytes))));
    }
    Ok(())
}

/// Checks the next version of a delegated role: who signed it, that it is the next one, that it is fresh, and that it
/// lists only what it may.
pub(super) fn delegated_role(
    delegations: &Delegations,
    name: &str,
    held: u64,
    new: &Signed<Targets>,
    now: DateTime<Utc>,
) -> Result<(), TrustError> {
    delegations
        .verify_role(new, name)
        .map_err(|error| TrustError::Signature { role: name.to_owned(), reason: error.to_string() })?;
    next_version(name, held, new.signed.version.get())?;
    role::check_fresh(name, &new.signed, now)?;
    if new.signed.delegations.as_ref().is_some_and(|all| !all.roles.is_empty()) {
        return Err(TrustError::Outside { role: name.to_owned(), target: "delegations of its own".to_owned() });
    }
    // `target_is_delegated` asks all roles: leave only this one.
    let only = Delegations {
        keys: Default::default(),
        roles: delegations.roles.iter().filter(|role| role.name == name).cloned().collect(),
    };
    for target in new.signed.targets.keys() {
        let outside = || TrustError::Outside { role: name.to_owned(), target: target.raw().to_owned() };
        let parsed = Target::from_str(target.raw())?;
        if parsed.signer() != name || !only.target_is_delegated(target) {
            return Err(outside());
        }
    }
    Ok(())
}

/// Exactly one more.
pub(super) fn next_version(name: &str, held: u64, got: u64) -> Result<(), TrustError> {
    if held.checked_add(1) == Some(got) {
        return Ok(());
    }
    Err(TrustError::Version { role: name.to_owned(), held, got })
}

/// No release is taken back or changed. A channel's pointer may change, that is what it is for, but not go away.
pub(super) fn nothing_lost(name: &str, held: &Targets, new: &Targets) -> Result<(), TrustError> {
    only_lost(name, held, new, &[])
}

/// The same, but for these targets, which must be gone.
pub(super) fn only_lost(name: &str, held: &Targets, new: &Targets, gone: &[String]) -> Result<(), TrustError> {
    if let Some(target) = new.targets.keys().find(|target| gone.iter().any(|gone| gone == target.raw())) {
        let reason = format!("shall be removed, but the new version of role {name} still lists it");
        return Err(wrong(target.raw(), reason));
    }
    for (target, entry) in &held.targets {
        let (role, raw) = (name.to_owned(), target.raw().to_owned());
        match new.targets.get(target) {
            None if gone.contains(&raw) => {}
            None => return Err(TrustError::Removed { role, target: raw }),
            Some(now) if name == RELEASES_ROLE && now != entry => {
                return Err(TrustError::Changed { role, target: raw });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The targets that a new version lists and the held one does not, or differently.
pub(super) fn news<'a>(
    held: &'a Targets,
    new: &'a Targets,
) -> impl Iterator<Item = (&'a TargetName, &'a tough::schema::Target)> {
    new.targets.iter().filter(|(name, entry)| held.targets.get(*name) != Some(*entry))
}
