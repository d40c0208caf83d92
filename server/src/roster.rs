//! The roster: which nodes are connected now, how each says it is, and the handles by which they are told things.
//!
//! ```text
//! session ── admit ──▶ connection     any connection of a node that showed its certificate
//!         ── join ───▶ control        its control stream: an outbox, and the last report
//! channel, orders ── tell ──▶ outbox ──▶ the node
//! api ── revoke ──▶ every connection of the node is closed at once
//! ```
//! Everything is in memory behind one lock that is held for no await. What nodes say is written to the catalog by one
//! task, a second's worth at a time, and not for mere progress: a fleet that updates would otherwise keep the disk busy
//! with what is stale by the time it is synced.
//!
//! A node that does not read what it is told never blocks anybody: its outbox is bounded, and when it is full the
//! connection is closed; the node looks at the signed metadata when it comes back, so nothing is lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use goldsync_proto::refusal::close;
use goldsync_proto::release::Word;
use goldsync_proto::wire::{Report, ServerSays};
use tokio::sync::{Notify, mpsc};

use crate::catalog::{Catalog, CatalogError, Heard, now};

/// Messages that wait for a node to read them. A healthy node reads within a round trip.
const OUTBOX: usize = 32;

/// How often what nodes said is written down.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Closes a connection with one of `refusal::close`'s codes. A seam: tests need no sockets.
pub trait Close: Send + Sync {
    /// Closes it. Returns at once.
    fn close(&self, code: u32, why: &str);
}

impl Close for quinn::Connection {
    fn close(&self, code: u32, why: &str) {
        quinn::Connection::close(self, code.into(), why.as_bytes());
    }
}

/// Names a connection within this process.
pub type ConnectionId = u64;

/// What a node said when it opened its control stream.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The channel that it follows.
    pub channel: Word,
    /// Its labels, the token's over its own.
    pub labels: BTreeMap<String, String>,
    /// Its agent's version.
    pub version: String,
    /// Whether it is a daemon, and so takes orders.
    pub daemon: bool,
    /// How it is.
    pub report: Report,
}

/// A node that is connected now, or was since this server started.
#[derive(Clone, Debug)]
pub struct Live {
    /// What it said; the report is the latest one.
    pub said: Joined,
    /// When it was last heard of.
    pub last_seen: String,
    /// Whether a control stream of it is open.
    pub connected: bool,
    /// Whether that of its daemon is.
    pub listening: bool,
}

/// Why a connection was not admitted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The node was revoked.
    #[error("node {0} is revoked")]
    Revoked(Word),
}

/// See the module.
pub struct Roster {
    catalog: Arc<Catalog>,
    per_node_max: usize,
    state: Mutex<State>,
    dirty: Notify,
}

#[derive(Default)]
struct State {
    next: ConnectionId,
    nodes: HashMap<Word, Entry>,
    revoked: HashSet<Word>,
    /// Nodes with something to write down.
    dirty: HashSet<Word>,
}

#[derive(Default)]
struct Entry {
    connections: HashMap<ConnectionId, Line>,
    controls: HashMap<ConnectionId, Control>,
    said: Option<Joined>,
    last_seen: String,
    away_since: Option<Instant>,
}

/// A connection.
struct Line {
    connection: Arc<dyn Close>,
    /// Requests under way on it.
    streams: Arc<AtomicUsize>,
}

struct Control {
    outbox: mpsc::Sender<ServerSays>,
    daemon: bool,
}

impl Entry {
    /// The connection that is missed least: the oldest on which nothing is under way; then what is not the daemon's. What
    /// died without a word stays open for `nodes.idle_timeout`, and nobody can tell it from what is only silent.
    fn least_missed(&self) -> Option<ConnectionId> {
        let missed = |id: &ConnectionId, line: &Line| match self.controls.get(id) {
            Some(control) if control.daemon => 3,
            _ if line.streams.load(Ordering::Relaxed) > 0 => 2,
            Some(_) => 1,
            None => 0,
        };
        self.connections.iter().map(|(id, line)| (missed(id, line), *id)).min().map(|(_, id)| id)
    }

    /// Takes a connection out. Its session hears of it by the closing.
    fn replace(&mut self, id: ConnectionId) {
        if self.controls.remove(&id).is_some_and(|control| control.daemon) && !self.listening() {
            self.away_since = Some(Instant::now());
        }
        if let Some(line) = self.connections.remove(&id) {
            line.connection.close(close::REPLACED, "newer connections of this node took its place");
        }
    }

    fn listening(&self) -> bool {
        self.controls.values().any(|control| control.daemon)
    }
}

impl Roster {
    /// An empty roster that writes what nodes say to `catalog` (see [`Roster::keep_writing`]).
    pub fn new(catalog: Arc<Catalog>, per_node_max: usize) -> Arc<Self> {
        Arc::new(Self { catalog, per_node_max, state: Mutex::default(), dirty: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half-way through a change; a poisoned lock still holds a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a connection of a node whose certificate was checked. Dropping the guard takes it out again.
    pub fn admit(self: &Arc<Self>, node: &Word, connection: Arc<dyn Close>) -> Result<Admitted, AdmitError> {
        let mut state = self.state();
        // Asked under the same lock that a revocation takes: no connection slips in between its check and this.
        if state.revoked.contains(node) {
            return Err(AdmitError::Revoked(node.clone()));
        }
        let id = state.next;
        state.next += 1;
        let entry = state.nodes.entry(node.clone()).or_default();
        // An agent that was killed leaves its connection open: one that is killed over and over must not lock itself out.
        while entry.connections.len() >= self.per_node_max.max(1)
            && let Some(oldest) = entry.least_missed()
        {
            tracing::info!(%node, max = self.per_node_max, "too many connections of one node; the oldest idle one is closed");
            entry.replace(oldest);
        }
        let streams = Arc::new(AtomicUsize::new(0));
        entry.connections.insert(id, Line { connection, streams: streams.clone() });
        Ok(Admitted { roster: self.clone(), node: node.clone(), id, streams })
    }

    /// Closes all connections of a node and lets none in again. The catalog must know of the revocation already.
    pub fn revoke(&self, node: &Word) {
        let mut state = self.state();
        state.revoked.insert(node.clone());
        state.dirty.remove(node);
        let Some(entry) = state.nodes.get_mut(node) else { return };
        entry.connections.values().for_each(|line| line.connection.close(close::REVOKED, "this node was revoked"));
        entry.controls.clear();
    }

    /// Closes everything: the server is going down.
    pub fn close_all(&self) {
        for entry in self.state().nodes.values() {
            entry
                .connections
                .values()
                .for_each(|line| line.connection.close(close::SHUTDOWN, "the server is going down"));
        }
    }

    /// Tells one node's daemon something. `false`: it is not there, or does not read.
    pub fn tell(&self, node: &Word, say: &ServerSays) -> bool {
        let mut state = self.state();
        state.nodes.get_mut(node).is_some_and(|entry| tell(entry, say))
    }

    /// Tells all daemons that follow `channel`. Returns how many.
    pub fn tell_channel(&self, channel: &Word, say: &ServerSays) -> usize {
        let mut state = self.state();
        let follows = |entry: &&mut Entry| entry.said.as_ref().is_some_and(|said| said.channel == *channel);
        state.nodes.values_mut().filter(follows).filter_map(|entry| tell(entry, say).then_some(())).count()
    }

    /// A node that was heard of since this server started.
    pub fn live(&self, node: &Word) -> Option<Live> {
        self.state().nodes.get(node).and_then(live)
    }

    /// All of them.
    pub fn all(&self) -> HashMap<Word, Live> {
        self.state().nodes.iter().filter_map(|(node, entry)| Some((node.clone(), live(entry)?))).collect()
    }

    /// Nodes with an open control stream.
    pub fn connected(&self) -> usize {
        self.state().nodes.values().filter(|entry| !entry.controls.is_empty()).count()
    }

    /// How long a node's daemon has been away; `None` while it is here.
    pub fn away(&self, node: &Word) -> Option<Duration> {
        let state = self.state();
        let entry = state.nodes.get(node)?;
        if entry.listening() { None } else { entry.away_since.map(|since| since.elapsed()) }
    }

    /// Writes what nodes say to the catalog until `stop`, and what is left then.
    pub async fn keep_writing(self: Arc<Self>, stop: tokio_util::sync::CancellationToken) {
        loop {
            let go_on = tokio::select! {
                () = stop.cancelled() => false,
                () = self.dirty.notified() => true,
            };
            if let Err(error) = self.write_down().await {
                tracing::error!(%error, "what nodes said could not be written down; it will be tried again");
                self.dirty.notify_one();
            }
            if !go_on {
                return;
            }
            // Gather what comes within this time into one transaction; stopping need not wait for it.
            let _ = tokio::time::timeout(FLUSH_EVERY, stop.cancelled()).await;
        }
    }

    /// Writes down everything that is not written yet.
    pub async fn write_down(&self) -> Result<(), CatalogError> {
        let (nodes, said) = self.take_dirty();
        if said.is_empty() {
            return Ok(());
        }
        let written = self.catalog.heard(&said).await;
        if written.is_err() {
            self.state().dirty.extend(nodes);
        }
        written
    }

    fn take_dirty(&self) -> (HashSet<Word>, Vec<Heard>) {
        let mut state = self.state();
        let nodes = std::mem::take(&mut state.dirty);
        let heard = |node: &Word| {
            let entry = state.nodes.get(node)?;
            let said = entry.said.clone()?;
            Some(Heard {
                node: node.clone(),
                channel: said.channel,
                labels: said.labels,
                version: said.version,
                report: Report { progress: None, ..said.report },
                last_seen: entry.last_seen.clone(),
            })
        };
        let said = nodes.iter().filter_map(heard).collect();
        (nodes, said)
    }
}

fn tell(entry: &mut Entry, say: &ServerSays) -> bool {
    let mut told = false;
    for (id, control) in entry.controls.iter().filter(|(_, control)| control.daemon) {
        match control.outbox.try_send(say.clone()) {
            Ok(()) => told = true,
            Err(_) => {
                if let Some(line) = entry.connections.get(id) {
                    line.connection.close(close::PROTOCOL, "the control stream is not read");
                }
            }
        }
    }
    told
}

fn live(entry: &Entry) -> Option<Live> {
    Some(Live {
        said: entry.said.clone()?,
        last_seen: entry.last_seen.clone(),
        connected: !entry.controls.is_empty(),
        listening: entry.listening(),
    })
}

/// A connection in the roster. Dropping it takes the connection out.
pub struct Admitted {
    roster: Arc<Roster>,
    node: Word,
    id: ConnectionId,
    streams: Arc<AtomicUsize>,
}

/// A request under way on a connection, until this is dropped.
pub struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admitted {
    /// Counts a request of this connection: it is not idle.
    pub fn stream(&self) -> UnderWay {
        self.streams.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.streams.clone())
    }

    /// Whose it is.
    pub fn node(&self) -> &Word {
        &self.node
    }

    /// Makes this connection's control stream the node's. A daemon takes the place of an older one. `None`: this
    /// connection has a control stream already.
    pub fn join(&self, said: Joined) -> Option<mpsc::Receiver<ServerSays>> {
        let (outbox, inbox) = mpsc::channel(OUTBOX);
        let mut state = self.roster.state();
        if state.revoked.contains(&self.node) {
            return None;
        }
        let entry = state.nodes.get_mut(&self.node)?;
        if entry.controls.contains_key(&self.id) {
            return None;
        }
        if said.daemon {
            let older: Vec<_> = entry.controls.iter().filter(|(_, c)| c.daemon).map(|(id, _)| *id).collect();
            for id in older {
                entry.controls.remove(&id);
                if let Some(line) = entry.connections.get(&id) {
                    line.connection.close(close::REPLACED, "a newer connection of this node took its place");
                }
            }
            entry.away_since = None;
        }
        entry.controls.insert(self.id, Control { outbox, daemon: said.daemon });
        entry.said = Some(said);
        entry.last_seen = now();
        state.dirty.insert(self.node.clone());
        drop(state);
        self.roster.dirty.notify_one();
        Some(inbox)
    }

    /// Takes a report; the last one counts.
    pub fn report(&self, report: Report) {
        let mut state = self.roster.state();
        let State { nodes, dirty, .. } = &mut *state;
        let Some(entry) = nodes.get_mut(&self.node) else { return };
        entry.last_seen = now();
        let Some(said) = &mut entry.said else { return };
        let substance = |report: &Report| Report { progress: None, ..report.clone() };
        let worth_writing = substance(&said.report) != substance(&report);
        said.report = report;
        if worth_writing && dirty.insert(self.node.clone()) {
            self.roster.dirty.notify_one();
        }
    }

    /// Takes out the control stream, with the connection still there.
    pub fn leave(&self) {
        self.out(false);
    }

    fn out(&self, connection_too: bool) {
        let mut state = self.roster.state();
        let State { nodes, dirty, revoked, .. } = &mut *state;
        let Some(entry) = nodes.get_mut(&self.node) else { return };
        if let Some(control) = entry.controls.remove(&self.id) {
            entry.last_seen = now();
            if control.daemon && !entry.listening() {
                entry.away_since = Some(Instant::now());
            }
            if !revoked.contains(&self.node) && dirty.insert(self.node.clone()) {
                self.roster.dirty.notify_one();
            }
        }
        if connection_too {
            entry.connections.remove(&self.id);
        }
        if entry.connections.is_empty() && entry.said.is_none() {
            nodes.remove(&self.node);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.out(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::scratch;
    use goldsync_proto::wire::{Phase, Progress};

    #[derive(Default)]
    struct Wire(Mutex<Vec<u32>>);

    impl Close for Wire {
        fn close(&self, code: u32, _: &str) {
            self.0.lock().unwrap().push(code);
        }
    }

    impl Wire {
        fn closed(&self) -> Vec<u32> {
            self.0.lock().unwrap().clone()
        }
    }

    fn word(text: &str) -> Word {
        text.parse().unwrap()
    }

    fn said(channel: &str, daemon: bool) -> Joined {
        let report = Report::default();
        Joined { channel: word(channel), labels: BTreeMap::new(), version: "0.1.0".into(), daemon, report }
    }

    async fn roster(per_node_max: usize) -> (tempfile::TempDir, Arc<Roster>) {
        let (dir, catalog) = scratch().await;
        (dir, Roster::new(Arc::new(catalog), per_node_max))
    }

    fn moved(channel: &str) -> ServerSays {
        ServerSays::Moved { channel: word(channel) }
    }

    #[tokio::test]
    async fn only_daemons_of_the_channel_are_told() {
        let (_dir, roster) = roster(8).await;
        let nodes = [("a", "dev", true), ("b", "dev", false), ("c", "qa", true)];
        let mut held: Vec<_> = nodes
            .iter()
            .map(|(node, channel, daemon)| {
                let admitted = roster.admit(&word(node), Arc::new(Wire::default())).unwrap();
                let inbox = admitted.join(said(channel, *daemon)).unwrap();
                (admitted, inbox)
            })
            .collect();
        assert_eq!(roster.tell_channel(&word("dev"), &moved("dev")), 1);
        assert_eq!(held[0].1.try_recv().ok(), Some(moved("dev")));
        assert!(held[1].1.try_recv().is_err() && held[2].1.try_recv().is_err());
        assert_eq!(roster.connected(), 3);
        held.clear();
        assert_eq!(roster.connected(), 0);
        assert!(!roster.live(&word("a")).unwrap().connected, "what it said is still known");
    }

    #[tokio::test]
    async fn a_newer_daemon_takes_the_place_of_the_older_one_and_a_command_does_not() {
        let (_dir, roster) = roster(8).await;
        let lines: Vec<_> = (0..3).map(|_| Arc::new(Wire::default())).collect();
        let admit = |n: usize| roster.admit(&word("a"), lines[n].clone()).unwrap();
        let (first, command, second) = (admit(0), admit(1), admit(2));
        let mut first_inbox = first.join(said("dev", true)).unwrap();
        command.join(said("dev", false)).unwrap();
        assert!(lines[0].closed().is_empty());
        let _second_inbox = second.join(said("dev", true)).unwrap();
        assert_eq!(lines[0].closed(), [close::REPLACED]);
        assert!(lines[1].closed().is_empty() && lines[2].closed().is_empty());
        assert_eq!(first_inbox.recv().await, None);
        drop(first);
        assert!(roster.live(&word("a")).unwrap().listening, "the older one's end does not take the newer one out");
        assert!(second.join(said("dev", true)).is_none(), "one control stream a connection");
    }

    #[tokio::test]
    async fn a_revoked_node_loses_every_connection_and_gets_no_new_one() {
        let (_dir, roster) = roster(8).await;
        let lines: Vec<_> = (0..2).map(|_| Arc::new(Wire::default())).collect();
        let held: Vec<_> = lines.iter().map(|line| roster.admit(&word("a"), line.clone()).unwrap()).collect();
        let _inbox = held[0].join(said("dev", true)).unwrap();
        roster.revoke(&word("a"));
        assert!(lines.iter().all(|line| line.closed() == [close::REVOKED]));
        assert!(!roster.tell(&word("a"), &moved("dev")));
        let refused = roster.admit(&word("a"), Arc::new(Wire::default())).err();
        assert_eq!(refused, Some(AdmitError::Revoked(word("a"))));
        assert!(held[1].join(said("dev", true)).is_none());
    }

    /// Goal: a node never has more connections than it may, and never is without one: the least missed goes.
    #[tokio::test]
    async fn the_oldest_idle_connection_makes_room() {
        let (_dir, roster) = roster(4).await;
        let lines: Vec<_> = (0..8).map(|_| Arc::new(Wire::default())).collect();
        let admit = |n: usize| roster.admit(&word("a"), lines[n].clone()).unwrap();
        let (daemon, busy, command, idle) = (admit(0), admit(1), admit(2), admit(3));
        let mut inbox = daemon.join(said("dev", true)).unwrap();
        command.join(said("dev", false)).unwrap();
        let under_way = busy.stream();
        let open = || (0..8).filter(|n| lines[*n].closed().is_empty()).collect::<Vec<_>>();
        let fifth = admit(4);
        assert_eq!(lines[3].closed(), [close::REPLACED]);
        let _at_work = fifth.stream();
        let sixth = admit(5);
        assert_eq!(lines[2].closed(), [close::REPLACED], "a command that has only said how it is");
        drop(under_way);
        let _also = sixth.stream();
        let seventh = admit(6);
        assert_eq!(lines[1].closed(), [close::REPLACED], "its request is over");
        let _too = seventh.stream();
        let _eighth = admit(7);
        assert_eq!(open(), [0, 5, 6, 7], "all are at work: the oldest goes, but not the daemon's");
        assert_eq!(roster.tell_channel(&word("dev"), &moved("dev")), 1);
        assert_eq!(inbox.try_recv().ok(), Some(moved("dev")));
        // The end of a session that was closed takes nobody else out.
        drop((idle, command, busy, fifth));
        assert_eq!(roster.state().nodes[&word("a")].connections.len(), 4);
        assert!(roster.admit(&word("b"), Arc::new(Wire::default())).is_ok());
    }

    #[tokio::test]
    async fn a_node_that_does_not_read_is_closed_and_blocks_nobody() {
        let (_dir, roster) = roster(2).await;
        let line = Arc::new(Wire::default());
        let admitted = roster.admit(&word("a"), line.clone()).unwrap();
        let _unread = admitted.join(said("dev", true)).unwrap();
        for _ in 0..OUTBOX {
            assert_eq!(roster.tell_channel(&word("dev"), &moved("dev")), 1);
        }
        assert!(line.closed().is_empty());
        assert_eq!(roster.tell_channel(&word("dev"), &moved("dev")), 0);
        assert_eq!(line.closed(), [close::PROTOCOL]);
    }

    #[tokio::test]
    async fn progress_is_shown_but_not_written() {
        let (_dir, roster) = roster(2).await;
        let admitted = roster.admit(&word("a"), Arc::new(Wire::default())).unwrap();
        let _inbox = admitted.join(said("dev", true)).unwrap();
        roster.write_down().await.unwrap();
        let fetching = |done| Report {
            phase: Phase::Fetch,
            progress: Some(Progress { done, total: 9, received: done }),
            ..Report::default()
        };
        admitted.report(fetching(1));
        assert_eq!(roster.state().dirty.len(), 1, "a phase is worth writing");
        roster.write_down().await.unwrap();
        admitted.report(fetching(2));
        assert_eq!(roster.state().dirty.len(), 0, "progress is not");
        assert_eq!(roster.live(&word("a")).unwrap().said.report, fetching(2));
    }
}
