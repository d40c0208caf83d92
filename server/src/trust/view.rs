//! What a TUF client makes of a set of files: the same verification, by the same crate, that a node does.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use goldsync_proto::limits::TRUST_FILE_MAX;
use goldsync_proto::trust::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use tough::schema::{Root, Signed, Snapshot, Targets, Timestamp};
use tough::{
    ExpirationEnforcement, Limits, RepositoryLoader, Transport, TransportError, TransportErrorKind, TransportStream,
};
use url::Url;

use super::TrustError;

/// File name to bytes.
pub(super) type Files = BTreeMap<String, Bytes>;

/// Hands `tough` files that are in memory.
#[derive(Clone, Debug)]
struct Shelf(Arc<Files>);

#[async_trait]
impl Transport for Shelf {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let name = file_name(&url);
        match self.0.get(&name) {
            Some(bytes) => Ok(Box::pin(futures::stream::iter([Ok(bytes.clone())]))),
            None => Err(TransportError::new(TransportErrorKind::FileNotFound, url)),
        }
    }
}

/// The file that a URL asks for. Of all characters of our names, only `+` is escaped in a URL's path.
fn file_name(url: &Url) -> String {
    let last = url.path_segments().and_then(Iterator::last).unwrap_or_default();
    last.replace("%2B", "+")
}

/// Metadata whose signatures, versions and hashes fit together. Expiry is *not* checked here: that needs the time,
/// and what may be expired depends on who asks.
#[derive(Debug)]
pub(super) struct View {
    pub root: Signed<Root>,
    pub timestamp: Signed<Timestamp>,
    pub snapshot: Signed<Snapshot>,
    /// With the delegated roles inside.
    pub targets: Signed<Targets>,
}

impl View {
    /// Verifies `files` from `trusted_root` on.
    pub async fn verify(trusted_root: &[u8], files: &Files) -> Result<Self, TrustError> {
        let base = || Url::parse("goldsync:///").map_err(|error| TrustError::Unverified(error.to_string()));
        let limits = Limits {
            max_root_size: TRUST_FILE_MAX,
            max_targets_size: TRUST_FILE_MAX,
            max_timestamp_size: TRUST_FILE_MAX,
            max_snapshot_size: TRUST_FILE_MAX,
            ..Limits::default()
        };
        let loaded = RepositoryLoader::new(&trusted_root, base()?, base()?)
            .transport(Shelf(Arc::new(files.clone())))
            .limits(limits)
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .load()
            .await
            .map_err(|error| TrustError::Unverified(error.to_string()))?;
        Ok(Self {
            root: loaded.root().clone(),
            timestamp: loaded.timestamp().clone(),
            snapshot: loaded.snapshot().clone(),
            targets: loaded.targets().clone(),
        })
    }

    /// A delegated role, verified.
    pub fn delegated(&self, role: &str) -> Result<&Signed<Targets>, TrustError> {
        self.targets.signed.delegated_targets(role).map_err(|_| TrustError::UnknownRole {
            role: role.to_owned(),
            known: self.delegated_names().collect::<Vec<_>>().join(", "),
        })
    }

    /// The delegated roles' names.
    pub fn delegated_names(&self) -> impl Iterator<Item = &str> {
        let roles = self.targets.signed.delegations.iter().flat_map(|all| &all.roles);
        roles.map(|role| role.name.as_str())
    }

    /// Role to version.
    pub fn versions(&self) -> BTreeMap<String, u64> {
        let top = [
            (ROOT, self.root.signed.version),
            (TIMESTAMP, self.timestamp.signed.version),
            (SNAPSHOT, self.snapshot.signed.version),
            (TARGETS, self.targets.signed.version),
        ];
        let delegated = self.delegated_names().filter_map(|name| {
            let role = self.targets.signed.delegated_targets(name).ok()?;
            Some((name, role.signed.version))
        });
        let plain = |(name, version): (&str, NonZeroU64)| (name.to_owned(), version.get());
        top.into_iter().chain(delegated).map(plain).collect()
    }
}
