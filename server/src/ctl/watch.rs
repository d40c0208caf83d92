//! What is known of a fleet sync that is under way: a plain state, fed with the server's events, that knows no clock,
//! no socket and no screen.
//!
//! Events may come twice (a stream that is opened again begins with the present state) and late (a report that was
//! overtaken by the outcome): a node that is done stays done.

use std::collections::BTreeMap;

use goldsync_proto::release::Word;
use goldsync_proto::wire::{Outcome as Ended, Phase, Report};
use serde::Serialize;

use crate::api::types::{SyncEvent, SyncOrder};

/// One node of the order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seat {
    /// As it last said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// How it ended.
    pub outcome: Option<Ended>,
}

/// The whole order.
#[derive(Clone, Debug, Serialize)]
pub struct Watch {
    /// Its number.
    pub order: u64,
    /// The nodes that it reached.
    pub nodes: BTreeMap<Word, Seat>,
    /// Nodes that match but are not connected.
    pub absent: Vec<Word>,
}

/// What an event changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing worth a line.
    None,
    /// The node entered another phase.
    Phase(Phase),
    /// The node is done.
    Done,
}

/// How many ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Run the image now and did not before.
    pub updated: u64,
    /// Ran it already.
    pub up_to_date: u64,
    /// Have it staged and proven, and wait for their window or a restart.
    pub waiting: u64,
    /// Did not make it.
    pub failed: u64,
    /// Not done yet.
    pub unfinished: u64,
    /// Not connected.
    pub absent: u64,
}

impl Tally {
    /// Whether the fleet is as asked.
    pub fn good(&self, allow_absent: bool) -> bool {
        self.failed == 0
            && self.unfinished == 0
            && self.waiting == 0
            && (allow_absent || self.absent == 0)
            && self.updated + self.up_to_date + self.absent > 0
    }
}

impl Watch {
    /// Before the first event.
    pub fn new(order: SyncOrder) -> Self {
        let nodes = order.nodes.into_iter().map(|node| (node, Seat::default())).collect();
        Self { order: order.order, nodes, absent: order.absent }
    }

    /// Takes an event.
    pub fn take(&mut self, event: SyncEvent) -> Change {
        // An absent node that connected meanwhile takes part from then on.
        self.absent.retain(|absent| *absent != event.node);
        let seat = self.nodes.entry(event.node).or_default();
        if seat.outcome.is_some() {
            return Change::None;
        }
        let before = seat.report.as_ref().map(|report| report.phase);
        if let Some(report) = event.report {
            seat.report = Some(report);
        }
        seat.outcome = event.outcome;
        let now = seat.report.as_ref().map(|report| report.phase);
        match (&seat.outcome, now) {
            (Some(_), _) => Change::Done,
            (None, Some(phase)) if before != now => Change::Phase(phase),
            _ => Change::None,
        }
    }

    /// Whether every node that was reached is done.
    pub fn over(&self) -> bool {
        self.nodes.values().all(|seat| seat.outcome.is_some())
    }

    /// The sum.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally { absent: self.absent.len() as u64, ..Tally::default() };
        for seat in self.nodes.values() {
            match seat.outcome {
                Some(Ended::Updated { .. }) => tally.updated += 1,
                Some(Ended::UpToDate) => tally.up_to_date += 1,
                Some(Ended::Waits { .. }) => tally.waiting += 1,
                Some(Ended::Failed { .. }) => tally.failed += 1,
                // Not known to be good is not good.
                Some(_) => tally.failed += 1,
                None => tally.unfinished += 1,
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::wire::Account;

    fn word(text: &str) -> Word {
        text.parse().unwrap()
    }

    fn watch(nodes: &[&str], absent: &[&str]) -> Watch {
        let words = |texts: &[&str]| texts.iter().map(|text| word(text)).collect();
        Watch::new(SyncOrder { order: 7, nodes: words(nodes), absent: words(absent) })
    }

    fn report(node: &str, phase: Phase) -> SyncEvent {
        SyncEvent { node: word(node), report: Some(Report { phase, ..Report::default() }), outcome: None }
    }

    fn ended(node: &str, outcome: Ended) -> SyncEvent {
        SyncEvent { node: word(node), report: None, outcome: Some(outcome) }
    }

    #[test]
    fn a_node_goes_through_its_phases_and_is_done_once() {
        let mut watch = watch(&["a"], &[]);
        assert_eq!(watch.take(report("a", Phase::Fetch)), Change::Phase(Phase::Fetch));
        assert_eq!(watch.take(report("a", Phase::Fetch)), Change::None);
        assert!(!watch.over());
        assert_eq!(watch.take(ended("a", Ended::Updated { account: Account::default() })), Change::Done);
        assert!(watch.over());
        assert_eq!(watch.take(report("a", Phase::Idle)), Change::None);
        assert_eq!(watch.take(ended("a", Ended::Failed { error: "late".into() })), Change::None);
        assert_eq!(watch.tally(), Tally { updated: 1, ..Tally::default() });
    }

    #[test]
    fn success_means_every_node_that_matches() {
        let mut watch = watch(&["a", "b"], &["c"]);
        watch.take(ended("a", Ended::UpToDate));
        assert!(!watch.tally().good(true), "b is unfinished");
        watch.take(ended("b", Ended::UpToDate));
        assert!(watch.tally().good(true));
        assert!(!watch.tally().good(false), "c is absent");
        watch.take(ended("c", Ended::UpToDate));
        assert!(watch.tally().good(false), "c came and is done");
        watch.take(ended("d", Ended::Failed { error: "x".into() }));
        assert!(!watch.tally().good(true));
    }

    #[test]
    fn no_node_at_all_is_not_success() {
        assert!(watch(&[], &[]).over());
        assert!(!watch(&[], &[]).tally().good(true));
        assert!(watch(&[], &["c"]).tally().good(true));
    }
}
