//! Channels: what happens when one moves, and which release each points at.
//!
//! A promotion is first signed metadata (see `trust`), then a row of the catalog, then a hint to every node that
//! follows the channel. The order matters: a node that is told looks at the metadata at once.

use std::collections::{BTreeMap, HashMap};

use goldsync_proto::digest::ImageId;
use goldsync_proto::release::Word;
use goldsync_proto::wire::ServerSays;

use crate::api::types::{Channel, Node};
use crate::catalog::{Catalog, CatalogError, NodeRow, now};
use crate::roster::{Live, Roster};

/// Tells every connected node of the channel that it moved. Returns how many.
pub fn announce(roster: &Roster, channel: &Word) -> usize {
    let told = roster.tell_channel(channel, &ServerSays::Moved { channel: channel.clone() });
    tracing::info!(%channel, told, "channel moved");
    told
}

/// Every channel that the signed metadata knows, those never promoted to included.
pub async fn list(catalog: &Catalog, roster: &Roster, known: Vec<Word>) -> Result<Vec<Channel>, CatalogError> {
    let mut pointers: BTreeMap<_, _> = catalog.pointers().await?.into_iter().map(|p| (p.channel.clone(), p)).collect();
    let nodes = nodes(catalog, roster).await?;
    let mut names = known;
    names.extend(pointers.keys().cloned());
    names.sort();
    names.dedup();
    let follows = |node: &Node, channel: &Word| !node.revoked && node.channel.as_ref() == Some(channel);
    Ok(names
        .into_iter()
        .map(|channel| Channel {
            nodes: nodes.iter().filter(|node| follows(node, &channel)).count() as u64,
            pointer: pointers.remove(&channel),
            channel,
        })
        .collect())
}

/// Every node: what the catalog keeps, with what the roster heard since laid over it.
pub async fn nodes(catalog: &Catalog, roster: &Roster) -> Result<Vec<Node>, CatalogError> {
    let pointers = catalog.pointers().await?;
    let golden: HashMap<Word, ImageId> = pointers.into_iter().map(|p| (p.channel, p.image)).collect();
    let mut live = roster.all();
    let rows = catalog.nodes().await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let heard = live.remove(&row.node);
            node(row, heard, &golden)
        })
        .collect())
}

fn node(row: NodeRow, live: Option<Live>, golden: &HashMap<Word, ImageId>) -> Node {
    let revoked = row.revoked_at.is_some();
    let mut node = Node {
        node: row.node,
        channel: row.channel,
        labels: row.labels,
        connected: false,
        last_seen: row.last_seen,
        version: row.version,
        report: row.report,
        current: None,
        revoked,
        enrolled_at: row.enrolled_at,
    };
    if let Some(live) = live {
        node.connected = live.connected && !revoked;
        // An open connection is a sign of life every few seconds; the node need not say anything.
        node.last_seen = Some(if node.connected { now() } else { live.last_seen });
        node.channel = Some(live.said.channel);
        node.labels = live.said.labels;
        node.version = Some(live.said.version);
        node.report = Some(live.said.report);
    }
    let image = node.report.as_ref().and_then(|report| report.active.as_ref()).and_then(|slot| slot.image);
    let wanted = node.channel.as_ref().and_then(|channel| golden.get(channel));
    node.current = image.zip(wanted).map(|(image, wanted)| image == *wanted);
    node
}

/// Whether a node carries all of a selector's labels.
pub fn matches(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roster::Joined;
    use goldsync_proto::wire::{Report, SlotReport};

    fn row() -> NodeRow {
        NodeRow {
            node: "a".parse().unwrap(),
            fixed_labels: BTreeMap::new(),
            labels: BTreeMap::new(),
            enrolled_at: "then".into(),
            revoked_at: None,
            channel: Some("dev".parse().unwrap()),
            version: None,
            report: None,
            last_seen: None,
        }
    }

    fn running(image: Option<ImageId>) -> Live {
        let slot = SlotReport { slot: "a".parse().unwrap(), image, release: None };
        Live {
            said: Joined {
                channel: "dev".parse().unwrap(),
                labels: BTreeMap::new(),
                version: "0.1.0".into(),
                daemon: true,
                report: Report { active: Some(slot), ..Report::default() },
            },
            last_seen: "now".into(),
            connected: true,
            listening: true,
        }
    }

    #[test]
    fn a_node_is_current_if_it_runs_what_its_channel_points_at() {
        let (old, new) = (ImageId::of(b"old"), ImageId::of(b"new"));
        let golden = HashMap::from([("dev".parse().unwrap(), new)]);
        for (image, golden, current) in [
            (Some(new), &golden, Some(true)),
            (Some(old), &golden, Some(false)),
            (None, &golden, None),
            (Some(new), &HashMap::new(), None),
        ] {
            assert_eq!(node(row(), Some(running(image)), golden).current, current);
        }
        assert_eq!(node(row(), None, &golden).current, None);
    }

    #[test]
    fn a_revoked_node_is_never_shown_as_connected() {
        let revoked = NodeRow { revoked_at: Some("then".into()), ..row() };
        let shown = node(revoked, Some(running(None)), &HashMap::new());
        assert!(shown.revoked && !shown.connected);
    }

    #[test]
    fn a_selector_asks_for_all_of_its_labels() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let node = labels(&[("role", "web"), ("site", "north")]);
        for (selector, expected) in [
            (labels(&[]), true),
            (labels(&[("role", "web")]), true),
            (labels(&[("role", "web"), ("site", "south")]), false),
            (labels(&[("rack", "7")]), false),
        ] {
            assert_eq!(matches(&selector, &node), expected, "{selector:?}");
        }
    }
}
