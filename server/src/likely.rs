//! Which images a release will mostly be updated from, and the plans for them, made before anybody asks.
//!
//! What the nodes run that follow the release's name, what its channels point at, and its last releases: the way from each of
//! those is prepared at publish, at promote and at the start, in the background. No node waits for it: one that asks early gets
//! the quick plan, or goes by the signature.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use goldsync_proto::digest::ImageId;
use goldsync_proto::release::{Manifest, ReleaseRef, Word};

use crate::catalog::CatalogError;
use crate::hub::Hub;

/// The last releases that count though no node is known to run them: who was away comes from there.
const LAST: usize = 3;

/// Plans prepared for one release. Each costs the store what it changes, and the server a minute a GiB.
const BASES_MAX: usize = 8;

/// An image that nodes will come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its id.
    pub image: ImageId,
    /// The releases that it was published as.
    pub releases: Vec<ReleaseRef>,
    /// Nodes that run it.
    pub nodes: u64,
}

/// The likely bases of a release, those that most nodes run first.
pub async fn bases(hub: &Hub, manifest: &Manifest) -> Result<Vec<Base>, CatalogError> {
    let name = &manifest.release.name;
    let mut published: HashMap<ImageId, Vec<ReleaseRef>> = HashMap::new();
    // The newest first.
    let mut order = Vec::new();
    for row in hub.catalog.releases().await?.into_iter().filter(|row| row.manifest.release.name == *name) {
        published.entry(row.manifest.image).or_default().push(row.manifest.release);
        order.push(row.manifest.image);
    }
    let pointers = hub.catalog.pointers().await?;
    let following: BTreeSet<&Word> = pointers.iter().filter(|p| p.release.name == *name).map(|p| &p.channel).collect();
    let mut nodes: HashMap<ImageId, u64> = HashMap::new();
    for (channel, image) in running(hub).await? {
        if published.contains_key(&image) || channel.is_some_and(|channel| following.contains(&channel)) {
            *nodes.entry(image).or_default() += 1;
        }
    }
    let mut images: Vec<ImageId> = nodes.keys().copied().collect();
    // By count; the id settles the rest, so that every caller sees one order.
    images.sort_unstable_by_key(|image| (std::cmp::Reverse(nodes.get(image).copied()), *image));
    images.extend(pointers.iter().filter(|p| p.release.name == *name).map(|p| p.image));
    images.extend(order.into_iter().filter(|image| *image != manifest.image).take(LAST));
    let mut seen = BTreeSet::from([manifest.image]);
    images.retain(|image| hub.store.image(*image).is_some() && seen.insert(*image));
    images.truncate(BASES_MAX);
    let base = |image| Base {
        image,
        releases: published.get(&image).cloned().unwrap_or_default(),
        nodes: nodes.get(&image).copied().unwrap_or(0),
    };
    Ok(images.into_iter().map(base).collect())
}

/// The channel and the image of each node, as it last said.
async fn running(hub: &Hub) -> Result<Vec<(Option<Word>, ImageId)>, CatalogError> {
    let rows = hub.catalog.nodes().await?.into_iter().filter(|row| row.revoked_at.is_none());
    let mut nodes: BTreeMap<Word, _> = rows.map(|row| (row.node, (row.channel, row.report))).collect();
    for (node, live) in hub.roster.all() {
        if let Some(said) = nodes.get_mut(&node) {
            *said = (Some(live.said.channel), Some(live.said.report));
        }
    }
    let active = |(channel, report): (_, Option<goldsync_proto::wire::Report>)| Some((channel, report?.active?.image?));
    Ok(nodes.into_values().filter_map(active).collect())
}

/// Makes the plans to a release, in the background: from nothing, then from each likely base.
pub fn prepare(hub: &Arc<Hub>, manifest: &Manifest) {
    let (hub, manifest) = (hub.clone(), manifest.clone());
    tokio::spawn(async move { prepare_now(&hub, &manifest).await });
}

async fn prepare_now(hub: &Arc<Hub>, manifest: &Manifest) {
    let bases = match bases(hub, manifest).await {
        Ok(bases) => bases,
        Err(error) => return tracing::error!(%error, "the likely bases could not be read"),
    };
    for base in [None].into_iter().chain(bases.into_iter().map(|base| Some(base.image))) {
        if let Err(error) = hub.packs.prepare(base, manifest.image).await {
            tracing::warn!(%error, "a plan could not be made ahead of time");
        }
    }
}

/// Does so for what the channels point at: what a kill cut off is taken up again.
pub async fn prepare_promoted(hub: &Arc<Hub>) -> Result<(), CatalogError> {
    let promoted: BTreeSet<ReleaseRef> = hub.catalog.pointers().await?.into_iter().map(|p| p.release).collect();
    let mut manifests = Vec::new();
    for release in promoted {
        manifests.extend(hub.catalog.release(&release).await?.map(|row| row.manifest));
    }
    let hub = hub.clone();
    tokio::spawn(async move {
        for manifest in manifests {
            prepare_now(&hub, &manifest).await;
        }
    });
    Ok(())
}
