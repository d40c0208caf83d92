//! Bringing the catalog up to the signed metadata, after a death between the two.
//!
//! A publish or a promotion is first in the metadata, then in the catalog. If the server died in between, nodes see it
//! and operators do not; this finishes the work. What an operator was about to submit is looked up in the metadata, and has its
//! line in the audit log if it is there. The metadata is never changed here.

use std::collections::BTreeMap;

use goldsync_proto::release::{Manifest, Pointer, RELEASES_ROLE, channel_target};
use serde_json::Value;

use crate::api::trust::{text_hash, told};
use crate::catalog::{Act, Catalog, CatalogError, Intent, NewRelease, Taken};
use crate::hub::Hub;
use crate::prune::PRUNE;
use crate::store::Store;
use crate::trust::{Trust, TrustError};

/// Why the catalog could not be brought up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// The catalog's fault.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The metadata's.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A file of the metadata is not what it must be.
    #[error("{name}: {why}")]
    Unreadable {
        /// Which.
        name: String,
        /// Why.
        why: String,
    },
}

/// Adds to the catalog what is signed and missing there. Returns how many releases and pointers.
pub async fn recover(hub: &Hub) -> Result<(usize, usize), RecoverError> {
    let _alone = hub.publishing.lock().await;
    submissions(&hub.trust, &hub.catalog).await?;
    let releases = releases(&hub.trust, &hub.catalog, &hub.store).await?;
    let pointers = pointers(&hub.trust, &hub.catalog).await?;
    if releases + pointers > 0 {
        tracing::warn!(releases, pointers, "the catalog was behind the signed metadata and was brought up");
    }
    Ok((releases, pointers))
}

/// Roles that were submitted when the server died: those that are in the metadata were taken.
async fn submissions(trust: &Trust, catalog: &Catalog) -> Result<(), RecoverError> {
    for intent in catalog.intents().await? {
        if intent.what == PRUNE {
            pruned(trust, catalog, &intent).await?;
            continue;
        }
        let is_held =
            |(role, hash): &(&String, &String)| trust.text(role).is_some_and(|text| text_hash(&text) == **hash);
        let held: Vec<_> = intent.roles.iter().filter(is_held).map(|(role, _)| role).collect();
        let act = (!held.is_empty()).then(|| {
            let detail = format!("{}, recovered", told(trust, held.into_iter()));
            Act::new(&intent.who, "trust.submit", detail, &intent.from)
        });
        tracing::warn!(who = intent.who, taken = act.is_some(), "roles were being submitted when the server died");
        catalog.settle(intent.id, act).await?;
    }
    Ok(())
}

/// Releases that were being pruned when the server died: if the metadata lists them no more, they are taken out here, too.
async fn pruned(trust: &Trust, catalog: &Catalog, intent: &Intent) -> Result<(), RecoverError> {
    let hash = intent.roles.get(RELEASES_ROLE);
    if trust.text(RELEASES_ROLE).is_some_and(|text| Some(&text_hash(&text)) == hash) {
        let signed = signed_releases(trust)?;
        let rows = catalog.releases().await?.into_iter().map(|row| row.manifest.release);
        let gone: Vec<_> = rows.filter(|release| !signed.contains(&release.target())).collect();
        catalog.prune(&gone, &Act::new(&intent.who, PRUNE, "", &intent.from)).await?;
        tracing::warn!(who = intent.who, releases = gone.len(), "releases were being pruned when the server died");
    }
    Ok(catalog.settle(intent.id, None).await?)
}

async fn releases(trust: &Trust, catalog: &Catalog, store: &Store) -> Result<usize, RecoverError> {
    let mut added = 0;
    for target in signed_releases(trust)? {
        let text = target_text(trust, &target)?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|error| unreadable(&target, error))?;
        if catalog.image_of(&manifest.release).await?.is_some() {
            continue;
        }
        let bytes = store.image(manifest.image).map_or(0, |record| record.added);
        let act = Act::new("server", "release.publish", format!("{}, recovered", manifest.release), "this machine");
        let new = NewRelease { manifest: &manifest, text: &text, added: bytes };
        added += usize::from(catalog.add_release(new, act).await? == Taken::New);
    }
    Ok(added)
}

async fn pointers(trust: &Trust, catalog: &Catalog) -> Result<usize, RecoverError> {
    let mut moved = 0;
    let known: BTreeMap<_, Pointer> = catalog.pointers().await?.into_iter().map(|p| (p.channel.clone(), p)).collect();
    for channel in trust.channels() {
        let Some(signed) = trust.pointer(&channel) else { continue };
        if known.get(&channel) == Some(&signed) {
            continue;
        }
        let text = target_text(trust, &channel_target(&channel))?;
        let detail = format!("{channel} to {}, recovered", signed.release);
        catalog.promote(&signed, &text, Act::new("server", "channel.promote", detail, "this machine")).await?;
        moved += 1;
    }
    Ok(moved)
}

/// The target files that the newest version of the role `releases` lists.
fn signed_releases(trust: &Trust) -> Result<Vec<String>, RecoverError> {
    let version = trust.versions().get(RELEASES_ROLE).copied().unwrap_or_default();
    let name = format!("{version}.{RELEASES_ROLE}.json");
    let files = trust.files();
    let text = files.get(&name).ok_or_else(|| unreadable(&name, "it is not among the metadata"))?;
    let role: Value = serde_json::from_str(text).map_err(|error| unreadable(&name, error))?;
    let targets = role.pointer("/signed/targets").and_then(Value::as_object);
    Ok(targets.map(|targets| targets.keys().cloned().collect()).unwrap_or_default())
}

fn target_text(trust: &Trust, target: &str) -> Result<String, RecoverError> {
    let files = trust.newer(&trust.versions(), &[target.to_owned()])?;
    let (_, bytes) = files.into_iter().next_back().ok_or_else(|| unreadable(target, "it is not among the targets"))?;
    String::from_utf8(bytes.to_vec()).map_err(|error| unreadable(target, error))
}

fn unreadable(name: &str, why: impl ToString) -> RecoverError {
    RecoverError::Unreadable { name: name.to_owned(), why: why.to_string() }
}
