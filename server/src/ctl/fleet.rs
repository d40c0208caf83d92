//! `goldsync fleet status`: every node on one line, and a sum below.

use chrono::{DateTime, Utc};
use goldsync_proto::wire::{Phase, Report, SlotReport, Wait};

use super::fail::Outcome;
use super::node::{seen, selector};
use super::table::{Column, Table, plain};
use super::{Desk, screen, show};
use crate::api::types::Node;
use crate::cli::FleetStatus;

/// `goldsync fleet status`
pub async fn status(desk: &Desk, args: &FleetStatus) -> Outcome {
    let mut nodes = desk.client.nodes(args.which.channel.as_ref(), selector(&args.which.selector)?).await?;
    nodes.retain(|node| !node.revoked);
    if args.json.json {
        return screen::print_json(&nodes);
    }
    let table = table(&nodes, Utc::now());
    if table.is_empty() {
        return screen::print("no node matches");
    }
    screen::print(&format!("{}{}\n{}", table.render(screen::width()), reasons(&nodes), sum(&nodes)))
}

fn table(nodes: &[Node], now: DateTime<Utc>) -> Table {
    let mut table = Table::new([
        ("NODE", Column::Left),
        ("CHANNEL", Column::Left),
        ("RUNS", Column::Left),
        ("STANDBY", Column::Soft),
        ("PHASE", Column::Left),
        ("SEEN", Column::Right),
        ("DRIFT", Column::Right),
    ]);
    for node in nodes {
        let report = node.report.as_ref();
        table.row([
            node.node.to_string(),
            node.channel.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            format!("{}{}", mark(node.current), slot(report.and_then(|report| report.active.as_ref()))),
            slot(report.and_then(|report| report.standby.as_ref())),
            phase(node),
            seen(node, now),
            report.and_then(|report| report.drifted).map_or_else(|| "-".into(), drift),
        ]);
    }
    table
}

/// What nodes complain of or wait for, whole: a reason that is cut helps nobody.
fn reasons(nodes: &[Node]) -> String {
    let of = |node: &Node| {
        let report = node.report.as_ref()?;
        let error = report.error.as_deref().map(plain);
        let wait = report.wait.as_ref().map(waits);
        let held = report.held.iter().map(|held| format!("{} is held there: {}", held.release, plain(&held.why)));
        let lines = error.into_iter().chain(wait).chain(held).map(|line| format!("\n{}: {line}\n", node.node));
        Some(lines.collect::<String>())
    };
    nodes.iter().filter_map(of).collect()
}

/// What a node waits for, in a sentence.
pub fn waits(wait: &Wait) -> String {
    let until = wait.until.as_deref().map(|until| format!(", until {}", show::time(until))).unwrap_or_default();
    format!("waits: {}{until}", plain(&wait.why))
}

fn mark(current: Option<bool>) -> char {
    match current {
        Some(true) => '+',
        Some(false) => '!',
        None => '?',
    }
}

/// What a slot holds: the release, or else the image's first digits.
pub fn slot(slot: Option<&SlotReport>) -> String {
    match slot {
        Some(SlotReport { release: Some(release), .. }) => release.to_string(),
        Some(SlotReport { image: Some(image), .. }) => image.short(),
        _ => "-".into(),
    }
}

fn drift(blocks: u64) -> String {
    if blocks == 0 { "no".into() } else { blocks.to_string() }
}

fn phase(node: &Node) -> String {
    if !node.connected {
        return "offline".into();
    }
    let Some(report) = &node.report else { return "-".into() };
    match percent(report) {
        Some(percent) => format!("{} {percent}%", phase_name(report.phase)),
        None => phase_name(report.phase).into(),
    }
}

/// How far the present phase is, if it says.
pub fn percent(report: &Report) -> Option<u64> {
    let progress = report.progress.filter(|progress| progress.total > 0)?;
    Some((u128::from(progress.done.min(progress.total)) * 100 / u128::from(progress.total)) as u64)
}

/// A phase in one word, the words of the design's flow.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::Check => "check",
        Phase::Plan => "plan",
        Phase::Fetch => "fetch",
        Phase::Verify => "verify",
        Phase::Staged => "staged",
        Phase::Swap => "swap",
        Phase::Trial => "trial",
        Phase::Repair => "repair",
        Phase::Failed => "failed",
        // A newer agent may be in a phase that this tool has no word for.
        _ => "busy",
    }
}

fn sum(nodes: &[Node]) -> String {
    let how_many = |test: &dyn Fn(&Node) -> bool| nodes.iter().filter(|node| test(node)).count() as u64;
    let failed = |node: &Node| node.report.as_ref().is_some_and(|report| report.phase == Phase::Failed);
    let on_trial = |node: &Node| node.report.as_ref().is_some_and(|report| report.trial.is_some());
    let waiting = |node: &Node| node.report.as_ref().is_some_and(|report| report.wait.is_some());
    let drifted = |node: &Node| node.report.as_ref().and_then(|report| report.drifted).is_some_and(|blocks| blocks > 0);
    format!(
        "{}: {} online, {} current, {} behind, {} on trial, {} waiting, {} drifted, {} failed",
        show::count(nodes.len() as u64, "node", "nodes"),
        how_many(&|node| node.connected),
        how_many(&|node| node.current == Some(true)),
        how_many(&|node| node.current == Some(false)),
        how_many(&on_trial),
        how_many(&waiting),
        how_many(&drifted),
        how_many(&failed),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::ImageId;
    use goldsync_proto::wire::{Held, Progress, WaitOn};

    fn node(name: &str, report: Option<Report>, current: Option<bool>, connected: bool) -> Node {
        Node {
            node: name.parse().unwrap(),
            channel: Some("production".parse().unwrap()),
            labels: Default::default(),
            connected,
            last_seen: Some("2026-11-21T09:00:00Z".into()),
            version: None,
            report,
            current,
            revoked: false,
            enrolled_at: "2026-11-20T09:00:00Z".into(),
        }
    }

    fn holding(release: Option<&str>, image: Option<ImageId>) -> Option<SlotReport> {
        let release = release.map(|release| release.parse().unwrap());
        Some(SlotReport { slot: "a".parse().unwrap(), image, release })
    }

    #[test]
    fn every_state_has_its_line() {
        let id = ImageId::of(b"x");
        let fetching = Report {
            active: holding(Some("web:1"), Some(id)),
            standby: holding(None, Some(id)),
            phase: Phase::Fetch,
            progress: Some(Progress { done: 41, total: 100, received: 7 }),
            drifted: Some(0),
            ..Report::default()
        };
        let failed = Report {
            active: holding(Some("web:2"), Some(id)),
            phase: Phase::Failed,
            error: Some("no space".into()),
            drifted: Some(3),
            wait: Some(Wait {
                on: WaitOn::Window,
                why: "the maintenance window is closed".into(),
                until: Some("2026-11-22T02:00:00Z".into()),
            }),
            held: vec![Held {
                image: id,
                release: "web:3".parse().unwrap(),
                since: String::new(),
                why: "nginx.service is not active".into(),
            }],
            ..Report::default()
        };
        let nodes = [
            node("a", Some(fetching), Some(false), true),
            node("b", Some(failed), Some(true), true),
            node("c", None, None, false),
        ];
        let short = id.short();
        let expected = format!(
            "\
NODE  CHANNEL     RUNS    STANDBY   PHASE       SEEN  DRIFT
a     production  !web:1  {short}  fetch 41%  5 min     no
b     production  +web:2  -         failed     5 min      3
c     production  ?-      -         offline    5 min      -
"
        );
        assert_eq!(table(&nodes, "2026-11-21T09:05:00Z".parse().unwrap()).render(Some(80)), expected);
        assert_eq!(
            reasons(&nodes),
            "\nb: no space\n\nb: waits: the maintenance window is closed, until 2026-11-22 02:00:00\n\nb: web:3 is held there: nginx.service is not active\n"
        );
        assert_eq!(sum(&nodes), "3 nodes: 2 online, 1 current, 1 behind, 0 on trial, 1 waiting, 1 drifted, 1 failed");
    }

    #[test]
    fn progress_never_says_more_than_all() {
        let report =
            |done, total| Report { progress: Some(Progress { done, total, received: 0 }), ..Report::default() };
        assert_eq!(percent(&report(5, 0)), None);
        assert_eq!(percent(&report(u64::MAX, u64::MAX)), Some(100));
        assert_eq!(percent(&report(200, 100)), Some(100));
        assert_eq!(percent(&report(1, 3)), Some(33));
    }
}
