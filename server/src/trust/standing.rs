//! How each role stands, seen from an operator's folder: its version, its expiry, and whether its key is at hand.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use goldsync_proto::trust::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};
use serde::Serialize;
use tough::schema::RoleType;
use tough::schema::decoded::{Decoded, Hex};

use super::view::View;
use super::{Operator, TrustError, role};

/// Where the key is that a role is signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPlace {
    /// In this folder.
    Here,
    /// In this folder, as the successor of another one: a rotation that was cut short before its last step.
    Pending,
    /// There is a key in this folder, but the metadata names another.
    Replaced,
    /// Not in this folder.
    Elsewhere,
    /// On the server, which signs by itself.
    Server,
}

/// How a role stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub role: String,
    /// Its present version.
    pub version: u64,
    /// When that expires.
    pub expires: DateTime<Utc>,
    /// Where its key is.
    pub key: KeyPlace,
}

impl Operator {
    /// Every role that the server shows, verified: the top roles first, then those that `targets` delegates to.
    pub async fn standings(&self, files: &BTreeMap<String, String>) -> Result<Vec<Standing>, TrustError> {
        let view = self.look(files).await?;
        let mut all = vec![
            self.standing(&view, ROOT, role::expires(&view.root.signed)),
            self.standing(&view, TARGETS, role::expires(&view.targets.signed)),
            self.standing(&view, SNAPSHOT, role::expires(&view.snapshot.signed)),
            self.standing(&view, TIMESTAMP, role::expires(&view.timestamp.signed)),
        ];
        // In the order in which `targets` delegates: `releases`, then the channels as they were made.
        for name in view.delegated_names() {
            all.push(self.standing(&view, name, role::expires(&view.delegated(name)?.signed)));
        }
        Ok(all)
    }

    fn standing(&self, view: &View, role: &str, expires: DateTime<Utc>) -> Standing {
        let version = view.versions().get(role).copied().unwrap_or(0);
        Standing { role: role.to_owned(), version, expires, key: self.place(view, role) }
    }

    fn place(&self, view: &View, role: &str) -> KeyPlace {
        if [SNAPSHOT, TIMESTAMP].contains(&role) {
            return KeyPlace::Server;
        }
        let named = named(view, role);
        let keys = self.keys();
        let here = keys.get(role).ok();
        if here.is_some_and(|key| named.contains(key.key_id())) {
            KeyPlace::Here
        } else if keys.pending(role).is_some_and(|key| named.contains(key.key_id())) {
            KeyPlace::Pending
        } else if here.is_some() {
            KeyPlace::Replaced
        } else {
            KeyPlace::Elsewhere
        }
    }
}

/// The ids of the keys that the metadata names for a role.
fn named<'a>(view: &'a View, role: &str) -> &'a [Decoded<Hex>] {
    let top = |kind| view.root.signed.roles.get(&kind).map(|keys| keys.keyids.as_slice());
    let found = match role {
        ROOT => top(RoleType::Root),
        TARGETS => top(RoleType::Targets),
        _ => {
            let all = view.targets.signed.delegations.as_ref();
            all.and_then(|all| all.roles.iter().find(|held| held.name == role)).map(|held| held.keyids.as_slice())
        }
    };
    found.unwrap_or_default()
}
