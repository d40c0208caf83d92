//! Fleet orders: "sync now", or "go back from this release", to all connected nodes of a channel, and what came of it at each.
//!
//! ```text
//! api ── give ──▶ order 7: a, b, c ── ServerSays::Sync ──▶ nodes
//! session ── heard / done ──▶ order 7 ── events ──▶ api, one line a change
//! ```
//! An order is over for a node when it says `SyncDone`, when it is revoked, when it stays away for too long, or when
//! the order is given up by age. A node that comes back before is told again: the order may have been lost with its
//! connection, and to sync twice is harmless, as is going back from a release that does not run any more.
//!
//! Readers see the newest state of each node and never a queue: a slow one skips progress, not outcomes, and costs
//! nothing. Orders live in memory; their numbers come from the catalog and are never reused, so that an answer that
//! comes after a restart is known to be nobody's.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use goldsync_proto::release::Word;
use goldsync_proto::wire::{Outcome, Report, ServerSays};
use tokio::sync::watch;

use crate::api::types::{SyncEvent, SyncOrder, SyncRequest};
use crate::catalog::{Act, Catalog, CatalogError};
use crate::channel;
use crate::roster::Roster;

/// Orders whose outcome is still known. The oldest are forgotten first.
const KEPT: usize = 256;

/// All orders of this server's run.
pub struct Orders {
    live: Mutex<BTreeMap<u64, Arc<Order>>>,
}

/// One order.
pub struct Order {
    number: u64,
    says: ServerSays,
    given: Instant,
    state: Mutex<State>,
    /// The newest version in `state`; readers wait for it to grow.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<Word, NodeState>,
    /// Version to the node that changed then; a node has its newest version only.
    changes: BTreeMap<u64, Word>,
    open: usize,
}

#[derive(Default)]
struct NodeState {
    version: u64,
    report: Option<Report>,
    outcome: Option<Outcome>,
}

impl Order {
    fn new(number: u64, says: ServerSays, nodes: &[Word]) -> Self {
        let mut state = State { open: nodes.len(), ..State::default() };
        for (version, node) in (1..).zip(nodes) {
            state.nodes.insert(node.clone(), NodeState { version, ..NodeState::default() });
            state.changes.insert(version, node.clone());
        }
        let version = watch::Sender::new(nodes.len() as u64);
        Self { number, says, given: Instant::now(), state: Mutex::new(state), version }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a node's state, unless the order is over for it.
    fn change(&self, node: &Word, change: impl FnOnce(&mut NodeState)) {
        let mut state = self.state();
        let State { nodes, changes, open } = &mut *state;
        let Some(entry) = nodes.get_mut(node).filter(|entry| entry.outcome.is_none()) else { return };
        change(entry);
        if entry.outcome.is_some() {
            *open -= 1;
        }
        let version = *self.version.borrow() + 1;
        changes.remove(&entry.version);
        entry.version = version;
        changes.insert(version, node.clone());
        // Still under the lock, so that versions only grow.
        self.version.send_replace(version);
    }

    /// The nodes that the order is not over for.
    fn open(&self) -> Vec<Word> {
        let state = self.state();
        state.nodes.iter().filter(|(_, entry)| entry.outcome.is_none()).map(|(node, _)| node.clone()).collect()
    }

    fn fail(&self, node: &Word, error: String) {
        self.change(node, |entry| entry.outcome = Some(Outcome::Failed { error }));
    }

    /// What changed since `seen`, and whether the order is over.
    fn since(&self, seen: &mut u64) -> (Vec<SyncEvent>, bool) {
        let state = self.state();
        let changed = state.changes.range(*seen + 1..).filter_map(|(_, node)| {
            let entry = state.nodes.get(node)?;
            Some(SyncEvent { node: node.clone(), report: entry.report.clone(), outcome: entry.outcome.clone() })
        });
        let events = changed.collect();
        *seen = *self.version.borrow();
        (events, state.open == 0)
    }
}

/// Reads an order's events from the present state on.
pub struct Events {
    order: Arc<Order>,
    seen: u64,
    over: bool,
    version: watch::Receiver<u64>,
}

/// Changes are gathered for so long, so that a busy fleet costs a reader a few lines a second for each node.
const GATHER: Duration = Duration::from_millis(100);

impl Events {
    /// The next changes; first the present state of each node. `None`: every node is done, and all was told.
    pub async fn next(&mut self) -> Option<Vec<SyncEvent>> {
        if self.over {
            return None;
        }
        loop {
            self.version.borrow_and_update();
            let (events, over) = self.order.since(&mut self.seen);
            self.over = over;
            if !events.is_empty() {
                return Some(events);
            }
            if over || self.version.changed().await.is_err() {
                return None;
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}

impl Default for Orders {
    fn default() -> Self {
        Self::new()
    }
}

impl Orders {
    /// No orders.
    pub fn new() -> Self {
        Self { live: Mutex::default() }
    }

    fn live(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Order>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn each(&self) -> Vec<Arc<Order>> {
        self.live().values().cloned().collect()
    }

    /// Orders every connected node that matches to sync.
    pub async fn give(
        &self,
        catalog: &Catalog,
        roster: &Roster,
        request: &SyncRequest,
        act: Act,
    ) -> Result<SyncOrder, CatalogError> {
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for node in channel::nodes(catalog, roster).await? {
            let matches = !node.revoked
                && node.channel.as_ref() == Some(&request.channel)
                && channel::matches(&request.selector, &node.labels);
            if matches {
                let listening = roster.live(&node.node).is_some_and(|live| live.listening);
                if listening { present.push(node.node) } else { absent.push(node.node) }
            }
        }
        let selector = request.selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
        let what = request
            .back_from
            .as_ref()
            .map_or_else(|| format!("now {}", request.now), |from| format!("back from {from}"));
        let detail = format!(
            "channel {}, selector {selector:?}, {what}, {} nodes, {} absent",
            request.channel,
            present.len(),
            absent.len()
        );
        let number = catalog.add_order(request.channel.as_str(), &selector, act.on(detail)).await?;
        let says = match &request.back_from {
            Some(from) => ServerSays::Rollback { order: number, from: from.clone() },
            None => ServerSays::Sync { order: number, now: request.now },
        };
        let order = Arc::new(Order::new(number, says, &present));
        // Known before anybody is told, so that no answer can come too early.
        self.keep(order.clone());
        let lost = |node: &Word| !roster.tell(node, &order.says);
        let (late, reached): (Vec<_>, Vec<_>) = present.into_iter().partition(lost);
        for node in &late {
            order.fail(node, "it disconnected as the order was given; it will see the channel when it is back".into());
        }
        Ok(SyncOrder { order: number, nodes: reached.into_iter().chain(late).collect(), absent })
    }

    fn keep(&self, order: Arc<Order>) {
        let mut live = self.live();
        live.insert(order.number, order);
        while live.len() > KEPT {
            live.pop_first();
        }
    }

    /// An order's events; `None` if no such order is known.
    pub fn events(&self, number: u64) -> Option<Events> {
        let order = self.live().get(&number)?.clone();
        let version = order.version.subscribe();
        Some(Events { order, seen: 0, over: false, version })
    }

    /// A node says how it is.
    pub fn heard(&self, node: &Word, report: &Report) {
        for order in self.each() {
            order.change(node, |entry| entry.report = Some(report.clone()));
        }
    }

    /// A node says that an order is over.
    pub fn done(&self, node: &Word, number: u64, outcome: Outcome) {
        let order = self.live().get(&number).cloned();
        if let Some(order) = order {
            order.change(node, |entry| entry.outcome = Some(outcome));
        }
    }

    /// What a node that has just connected must be told (again).
    pub fn open_for(&self, node: &Word) -> Vec<ServerSays> {
        let open = |order: &Arc<Order>| order.state().nodes.get(node).is_some_and(|entry| entry.outcome.is_none());
        self.each().into_iter().filter(open).map(|order| order.says.clone()).collect()
    }

    /// A node was revoked: no order will be answered by it.
    pub fn revoked(&self, node: &Word) {
        self.each().iter().for_each(|order| order.fail(node, "the node was revoked".into()));
    }

    /// Gives up nodes that are away for too long, and orders that are too old. Call it every few seconds.
    pub fn give_up(&self, roster: &Roster, away_max: Duration, lifetime: Duration) {
        for order in self.each() {
            let old = order.given.elapsed() > lifetime;
            for node in order.open() {
                if old {
                    order.fail(&node, format!("no answer within {} s (`orders.lifetime`)", lifetime.as_secs()));
                } else if roster.away(&node).is_some_and(|away| away > away_max) {
                    let error =
                        format!("disconnected, and not back within {} s (`orders.away_max`)", away_max.as_secs());
                    order.fail(&node, error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::wire::Phase;

    fn word(text: &str) -> Word {
        text.parse().unwrap()
    }

    fn orders(nodes: &[&str]) -> Orders {
        let orders = Orders::new();
        let nodes: Vec<_> = nodes.iter().map(|n| word(n)).collect();
        orders.keep(Arc::new(Order::new(7, ServerSays::Sync { order: 7, now: true }, &nodes)));
        orders
    }

    fn phase(phase: Phase) -> Report {
        Report { phase, ..Report::default() }
    }

    fn names(events: &[SyncEvent]) -> Vec<(String, bool)> {
        let mut names: Vec<_> = events.iter().map(|e| (e.node.to_string(), e.outcome.is_some())).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_reader_sees_the_present_state_then_changes_then_the_end() {
        let orders = orders(&["a", "b"]);
        let mut events = orders.events(7).unwrap();
        assert_eq!(names(&events.next().await.unwrap()), [("a".into(), false), ("b".into(), false)]);
        orders.heard(&word("a"), &phase(Phase::Check));
        orders.heard(&word("a"), &phase(Phase::Fetch));
        let changes = events.next().await.unwrap();
        assert_eq!(changes.len(), 1, "a slow reader sees the newest state only");
        assert_eq!(changes[0].report.as_ref().unwrap().phase, Phase::Fetch);
        orders.done(&word("a"), 7, Outcome::UpToDate);
        orders.done(&word("b"), 7, Outcome::Failed { error: "disk".into() });
        assert_eq!(names(&events.next().await.unwrap()), [("a".into(), true), ("b".into(), true)]);
        assert!(events.next().await.is_none());
        let mut late = orders.events(7).unwrap();
        assert_eq!(late.next().await.unwrap().len(), 2, "a late reader misses no outcome");
        assert!(late.next().await.is_none());
    }

    #[tokio::test]
    async fn the_first_outcome_of_a_node_counts_and_strangers_have_none() {
        let orders = orders(&["a"]);
        orders.done(&word("x"), 7, Outcome::UpToDate);
        orders.done(&word("a"), 8, Outcome::UpToDate);
        assert_eq!(orders.open_for(&word("a")), [ServerSays::Sync { order: 7, now: true }]);
        assert!(orders.open_for(&word("x")).is_empty());
        orders.done(&word("a"), 7, Outcome::UpToDate);
        orders.done(&word("a"), 7, Outcome::Failed { error: "late".into() });
        let events = orders.events(7).unwrap().next().await.unwrap();
        assert_eq!(events[0].outcome, Some(Outcome::UpToDate));
        assert!(orders.open_for(&word("a")).is_empty());
        assert!(orders.events(8).is_none());
    }

    #[tokio::test]
    async fn an_order_to_nobody_is_over_at_once() {
        let orders = orders(&[]);
        assert!(orders.events(7).unwrap().next().await.is_none());
    }

    #[tokio::test]
    async fn a_revoked_node_and_an_old_order_end_as_failures() {
        let orders = orders(&["a", "b"]);
        let (_dir, catalog) = crate::catalog::tests::scratch().await;
        let roster = Roster::new(Arc::new(catalog), 1);
        orders.revoked(&word("a"));
        orders.give_up(&roster, Duration::MAX, Duration::ZERO);
        let events = orders.events(7).unwrap().next().await.unwrap();
        let errors: BTreeMap<_, _> = events
            .into_iter()
            .map(|event| match event.outcome {
                Some(Outcome::Failed { error }) => (event.node.to_string(), error),
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(errors["a"].contains("revoked") && errors["b"].contains("orders.lifetime"), "{errors:?}");
    }
}
