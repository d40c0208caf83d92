//! What all rooms of a running server share.

use std::sync::Arc;

use goldsync_proto::release::Word;

use crate::authority::Authority;
use crate::catalog::{Act, Catalog, CatalogError};
use crate::config::Config;
use crate::golden::Uploads;
use crate::near::Sketches;
use crate::orders::Orders;
use crate::packs::Packs;
use crate::roster::Roster;
use crate::store::Store;
use crate::trust::Trust;

/// One of each. Everything in it may be used by many tasks at once.
pub struct Hub {
    /// As configured and checked.
    pub config: Config,
    /// What is known, in SQL.
    pub catalog: Arc<Catalog>,
    /// What is signed.
    pub trust: Arc<Trust>,
    /// Who signs nodes' certificates.
    pub authority: Authority,
    /// What is stored.
    pub store: Arc<Store>,
    /// What is being stored.
    pub uploads: Arc<Uploads>,
    /// Plans between images.
    pub packs: Arc<Packs>,
    /// What the images look like, in short.
    pub near: Sketches,
    /// Who is connected.
    pub roster: Arc<Roster>,
    /// What was ordered.
    pub orders: Orders,
    /// Rung when something may have become unneeded; see `collector`.
    pub unneeded: tokio::sync::Notify,
    /// Held while signed metadata and catalog change together.
    pub publishing: tokio::sync::Mutex<()>,
}

impl Hub {
    /// Turns a node away for good: first in the catalog, so that it cannot come back, then here and now.
    /// `None`: there is no such node.
    pub async fn revoke(&self, node: &Word, act: Act) -> Result<Option<bool>, CatalogError> {
        let changed = self.catalog.revoke(node, act).await?;
        if changed.is_some() {
            self.roster.revoke(node);
            self.orders.revoked(node);
        }
        Ok(changed)
    }
}
