//! `goldsync node list`, `goldsync node revoke`.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::fail::Outcome;
use super::table::{Column, Table};
use super::{Desk, screen, show};
use crate::api::types::Node;
use crate::cli::{NodeList, NodeRevoke, Selector, label_map};

/// `goldsync node list`
pub async fn list(desk: &Desk, args: &NodeList) -> Outcome {
    let nodes = desk.client.nodes(args.which.channel.as_ref(), selector(&args.which.selector)?).await?;
    if args.json.json {
        return screen::print_json(&nodes);
    }
    screen::print_table(&table(&nodes, Utc::now()), "no node matches")
}

/// The selector as the API takes it.
pub fn selector(selector: &Selector) -> Outcome<Option<String>> {
    let pairs: Vec<String> = label_map(&selector.labels)?.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Ok((!pairs.is_empty()).then(|| pairs.join(",")))
}

fn table(nodes: &[Node], now: DateTime<Utc>) -> Table {
    let mut table = Table::new([
        ("NODE", Column::Left),
        ("STATE", Column::Left),
        ("CHANNEL", Column::Left),
        ("AGENT", Column::Left),
        ("SEEN", Column::Right),
        ("ENROLLED (UTC)", Column::Left),
        ("LABELS", Column::Soft),
    ]);
    for node in nodes {
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let state = match (node.revoked, node.connected) {
            (true, _) => "revoked",
            (false, true) => "online",
            (false, false) => "offline",
        };
        table.row([
            node.node.to_string(),
            state.into(),
            node.channel.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            node.version.clone().unwrap_or_else(|| "-".into()),
            seen(node, now),
            show::time(&node.enrolled_at),
            labels.join(","),
        ]);
    }
    table
}

/// How long ago a node was heard of.
pub fn seen(node: &Node, now: DateTime<Utc>) -> String {
    node.last_seen.as_deref().map_or_else(|| "never".into(), |at| show::ago(at, now))
}

/// `goldsync node revoke`
pub async fn revoke(desk: &Desk, args: &NodeRevoke) -> Outcome {
    desk.interrupted.leaves("whether the node is revoked, `goldsync node list` says");
    desk.client.revoke(&args.node).await?;
    if args.json.json {
        return screen::print_json(&json!({ "node": args.node, "revoked": true }));
    }
    screen::print(&format!(
        "{} is revoked: its certificate is refused from now on, its open connection is cut.\n\
         It keeps running the image that it has. To take it back: goldsync token create",
        args.node
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Label;

    fn label(key: &str, value: &str) -> Label {
        Label { key: key.into(), value: value.into() }
    }

    #[test]
    fn a_selector_travels_as_pairs() {
        let given = Selector { labels: vec![label("site", "muc"), label("role", "web"), label("role", "web")] };
        assert_eq!(selector(&given), Ok(Some("role=web,site=muc".into())));
        assert_eq!(selector(&Selector { labels: vec![] }), Ok(None));
        let twice = selector(&Selector { labels: vec![label("role", "web"), label("role", "db")] }).unwrap_err();
        assert!(twice.message.contains("\"web\" and as \"db\""), "{twice}");
    }

    #[test]
    fn a_node_is_online_offline_or_revoked() {
        let node = |name: &str, connected, revoked| Node {
            node: name.parse().unwrap(),
            channel: Some("dev".parse().unwrap()),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            connected,
            last_seen: Some("2026-11-21T09:00:00Z".into()),
            version: Some("0.1.0".into()),
            report: None,
            current: None,
            revoked,
            enrolled_at: "2026-11-20T09:00:00Z".into(),
        };
        let nodes = [node("a", true, false), node("b", false, false), node("c", false, true)];
        let expected = "\
NODE  STATE    CHANNEL  AGENT   SEEN  ENROLLED (UTC)       LABELS
a     online   dev      0.1.0  5 min  2026-11-20 09:00:00  role=web
b     offline  dev      0.1.0  5 min  2026-11-20 09:00:00  role=web
c     revoked  dev      0.1.0  5 min  2026-11-20 09:00:00  role=web
";
        assert_eq!(table(&nodes, "2026-11-21T09:05:00Z".parse().unwrap()).render(Some(80)), expected);
    }
}
