//! `goldsync fleet explain NODE`: why has this node not updated?
//!
//! The decision as far as the server knows it: what the channel points at, and what the node last said of itself. What only the
//! node can see (its disk, its clock, its data budget until it was over it) `goldsync-agent explain` tells there.

use chrono::{DateTime, Utc};
use goldsync_proto::explain::{State, Walk};
use goldsync_proto::release::Pointer;
use goldsync_proto::wire::{Phase, Report, WaitOn};

use super::fail::{Code, Failure, Outcome};
use super::fleet::{phase_name, slot, waits};
use super::node::seen;
use super::table::plain;
use super::{Desk, screen};
use crate::api::types::Node;
use crate::cli::FleetExplain;

/// `goldsync fleet explain`
pub async fn run(desk: &Desk, args: &FleetExplain) -> Outcome {
    let nodes = desk.client.nodes(None, None).await?;
    let node = nodes.iter().find(|node| node.node == args.node).ok_or_else(|| {
        let failure = Failure::new(Code::Failed, format!("there is no node {}", args.node));
        failure.remedy("`goldsync node list` prints all there are")
    })?;
    let channels = desk.client.channels().await?;
    let pointer = channels.iter().find(|channel| Some(&channel.channel) == node.channel.as_ref());
    let walk = walk(node, pointer.and_then(|channel| channel.pointer.as_ref()), Utc::now());
    if args.json.json { screen::print_json(&walk) } else { screen::print(&walk.to_string()) }
}

/// Walks the decision.
fn walk(node: &Node, pointer: Option<&Pointer>, now: DateTime<Utc>) -> Walk {
    let mut walk = Walk::default();
    match node.revoked {
        true => walk.step("revoked", State::Stops, "it was revoked; to take it back: `goldsync token create`"),
        false => walk.step("revoked", State::Passes, "no"),
    }
    let Some(channel) = &node.channel else {
        walk.step(
            "channel",
            State::Stops,
            "it has never said which channel it follows: it was never connected since it enrolled",
        );
        return walk;
    };
    let Some(pointer) = pointer else {
        let says =
            format!("{channel} has no release yet, or is no channel here; `goldsync promote NAME:VERSION {channel}`");
        walk.step("channel", State::Stops, says);
        return walk;
    };
    let runs = slot(node.report.as_ref().and_then(|report| report.active.as_ref()));
    if node.current == Some(true) {
        walk.step("release", State::Done, format!("{channel} points at {}, and it runs that", pointer.release));
        return walk;
    }
    walk.step("release", State::Passes, format!("{channel} points at {}; it runs {runs}", pointer.release));
    match node.connected {
        true => walk.step("connected", State::Passes, format!("yes, heard of {} ago", seen(node, now))),
        false => {
            let says = format!(
                "no; heard of {} ago. It updates when it connects; on the node: `goldsync-agent doctor`",
                seen(node, now)
            );
            walk.step("connected", State::Waits, says);
        }
    }
    if let Some(report) = &node.report {
        told(&mut walk, report, pointer);
    }
    walk
}

/// What the node said of itself.
fn told(walk: &mut Walk, report: &Report, pointer: &Pointer) {
    let held = report.held.iter().find(|held| held.image == pointer.image);
    match held {
        Some(held) => {
            let says = format!(
                "since {}: {}; to try it there again: `goldsync fleet sync`, or `goldsync-agent sync` on the node",
                held.since,
                plain(&held.why)
            );
            walk.step("failed before", State::Stops, says);
        }
        None => walk.step("failed before", State::Passes, "not there"),
    }
    if let Some(trial) = report.trial.as_ref().filter(|trial| trial.running) {
        let tries = trial.tries.map(|tries| format!(", {tries} tries left")).unwrap_or_default();
        let says =
            format!("{} is on trial since {}{tries}; what comes next waits for that", trial.release, trial.since);
        walk.step("trial", State::Waits, says);
    }
    if let Some(wait) = &report.wait {
        let subject = match wait.on {
            WaitOn::Window => "window",
            WaitOn::Inhibitor => "inhibitors",
            WaitOn::Session => "people",
            WaitOn::Restart => "restart",
            _ => "something",
        };
        walk.step(subject, State::Waits, waits(wait));
    }
    match report.phase {
        Phase::Idle | Phase::Staged | Phase::Failed => {}
        phase => walk.step("at work", State::Waits, format!("it is at it now: {}", phase_name(phase))),
    }
    if let Some(error) = &report.error {
        walk.step("last try", State::Waits, format!("failed, and is tried again, ever more rarely: {}", plain(error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::ImageId;
    use goldsync_proto::wire::{Held, TrialReport, Wait};

    fn node(report: Report) -> Node {
        Node {
            node: "web-1".parse().unwrap(),
            channel: Some("production".parse().unwrap()),
            labels: Default::default(),
            connected: true,
            last_seen: Some("2026-11-21T09:00:00Z".into()),
            version: None,
            report: Some(report),
            current: Some(false),
            revoked: false,
            enrolled_at: "2026-11-20T09:00:00Z".into(),
        }
    }

    fn pointer() -> Pointer {
        Pointer {
            format: 1,
            channel: "production".parse().unwrap(),
            release: "web:2".parse().unwrap(),
            image: ImageId::of(b"new"),
            promoted_at: String::new(),
            promoted_by: String::new(),
        }
    }

    fn ends(node: &Node, pointer: Option<&Pointer>) -> Option<(&'static str, State)> {
        let walk = walk(node, pointer, "2026-11-21T09:05:00Z".parse().unwrap());
        walk.answer().map(|step| (step.subject, step.state))
    }

    #[test]
    fn each_reason_is_found_where_it_decides() {
        use State::{Done, Stops, Waits};
        let (pointer, fine) = (pointer(), || node(Report::default()));
        let held =
            Held { image: pointer.image, release: "web:2".parse().unwrap(), since: String::new(), why: "sick".into() };
        let trial = TrialReport {
            slot: "b".parse().unwrap(),
            release: "web:1".parse().unwrap(),
            since: String::new(),
            running: true,
            tries: Some(2),
        };
        let wait = Wait { on: WaitOn::Session, why: "ada is logged in".into(), until: None };
        let with = |report: Report| node(report);
        for (node, pointer, expected) in [
            (fine(), Some(&pointer), None),
            (Node { revoked: true, ..fine() }, Some(&pointer), Some(("revoked", Stops))),
            (Node { channel: None, ..fine() }, Some(&pointer), Some(("channel", Stops))),
            (fine(), None, Some(("channel", Stops))),
            (Node { current: Some(true), connected: false, ..fine() }, Some(&pointer), Some(("release", Done))),
            (Node { connected: false, ..fine() }, Some(&pointer), Some(("connected", Waits))),
            (with(Report { held: vec![held], ..Report::default() }), Some(&pointer), Some(("failed before", Stops))),
            (with(Report { trial: Some(trial), ..Report::default() }), Some(&pointer), Some(("trial", Waits))),
            (with(Report { wait: Some(wait), ..Report::default() }), Some(&pointer), Some(("people", Waits))),
            (with(Report { phase: Phase::Fetch, ..Report::default() }), Some(&pointer), Some(("at work", Waits))),
            (
                with(Report { phase: Phase::Failed, error: Some("no space".into()), ..Report::default() }),
                Some(&pointer),
                Some(("last try", Waits)),
            ),
        ] {
            assert_eq!(ends(&node, pointer), expected, "{node:?}");
        }
    }
}
