//! One connection of the daemon: hello, reports, orders, and updates, until it ends.
//!
//! ```text
//!  server ── Moved, Sync ──▶ queue ──▶ update ──▶ outcome ──▶ SyncDone
//!  schedule ───────────────▶   ▲          │
//!  failed before, Busy ────────┘          └── phase, progress ──▶ Report, at most 2 a second
//! ```
//! Every connection begins with a look: what moved while there was none was told to nobody.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use goldsync_proto::wire::{Hello, NodeSays, Phase, Report, ServerSays};
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};

use super::queue::Cue;
use super::watch::Watch;
use super::work::{Live, Work};
use super::{SessionError, systemd};
use crate::link::{Ear, Link, LinkError, Mouth};
use crate::node::Node;
use crate::schedule;
use crate::status;

/// Between two reports of one connection.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// A hint comes to all nodes of a channel at once; they come back spread over this, or over their splay if it is less.
const MOVED_SPLAY: Duration = Duration::from_secs(10);

/// Between two looks at the certificate's age.
const RENEWAL_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Clocks are set, and machines sleep: a long wait is looked at again after this.
const RECHECK: TimeDelta = TimeDelta::minutes(30);

/// One connection.
pub(super) struct Session<'a> {
    pub(super) node: &'a Node,
    pub(super) work: &'a mut Work,
    pub(super) watch: &'a Watch,
    pub(super) link: Arc<Link>,
}

impl Session<'_> {
    /// Runs until the connection ends; says why it did. Giving it up (the daemon stops) loses nothing.
    pub(super) async fn run(mut self) -> Result<(), SessionError> {
        let told = look(self.node).await?;
        let control = self.link.control(self.hello(told.clone())).await?;
        tracing::info!(server = self.link.server(), version = control.version(), "connected");
        let (mouth, ear) = control.split();
        let (sender, mut heard) = mpsc::channel(16);
        let _listener = Listener(tokio::spawn(listen(ear, sender)));
        let mut reporter =
            Reporter { mouth, base: told.clone(), said: told, next: Instant::now(), shown: String::new() };
        let mut live = self.work.live();
        let mut scheduled = self.scheduled();
        let mut renewal = Instant::now();
        self.work.queue.cue(Cue::look(Instant::now()));
        loop {
            reporter.answer(&mut self.work.answers).await?;
            let due = self.work.queue.due();
            let now_live = *live.borrow_and_update();
            reporter.status(now_live);
            let report_at = reporter.pending(now_live);
            tokio::select! {
                said = heard.recv() => match said {
                    Some(Ok(said)) => self.take(said),
                    Some(Err(error)) => return Err(error.into()),
                    None => return Err(self.over().await.into()),
                },
                ended = self.work.ended() => {
                    self.work.finish(ended);
                    reporter.base = look(self.node).await?;
                }
                () = at(due) => self.work.begin(&self.link),
                () = until(scheduled) => {
                    if scheduled.is_some_and(|time| time <= Utc::now()) {
                        self.work.queue.cue(Cue::look(Instant::now()));
                        scheduled = self.scheduled();
                    }
                }
                () = at(report_at) => reporter.report(now_live).await?,
                Ok(()) = live.changed() => {}
                () = self.watch.changed() => reporter.base = look(self.node).await?,
                () = at(Some(renewal)) => {
                    renewal = Instant::now() + RENEWAL_EVERY;
                    self.renew().await;
                }
            }
        }
    }

    /// Why there is no more to hear: the connection's end, or, if it goes on, a server that has left the stream.
    async fn over(&self) -> LinkError {
        let left =
            || LinkError::Lost { server: self.link.server().to_owned(), why: "it ended the control stream".into() };
        tokio::time::timeout(Duration::from_secs(1), self.link.closed()).await.unwrap_or_else(|_| left())
    }

    fn hello(&self, report: Report) -> Hello {
        let config = &self.node.config;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Hello { version, channel: config.channel.clone(), labels: config.labels.clone(), daemon: true, report }
    }

    fn take(&mut self, said: ServerSays) {
        let splay = self.node.config.schedule.splay;
        let wait = |limit| schedule::splay(limit, rand::random());
        let cue = match said {
            ServerSays::Moved { channel } if channel == self.node.config.channel => {
                Cue::look(Instant::now() + wait(splay.min(MOVED_SPLAY)))
            }
            ServerSays::Moved { .. } => return,
            ServerSays::Sync { order, now } => {
                let wait = if now { Duration::ZERO } else { wait(splay) };
                tracing::info!(order, ?wait, "ordered to sync");
                Cue { order: Some(order), ..Cue::look(Instant::now() + wait) }
            }
            ServerSays::Rollback { order, from } => {
                tracing::info!(order, %from, "ordered to go back");
                Cue { order: Some(order), back_from: Some(from), ..Cue::look(Instant::now()) }
            }
            other => return tracing::warn!(?other, "the server says something that is not understood here"),
        };
        self.work.queue.cue(cue);
    }

    fn scheduled(&self) -> Option<DateTime<Utc>> {
        schedule::next(&self.node.config.schedule, Utc::now(), rand::random())
    }

    /// A certificate that cannot be renewed now is good for another third of its life; the log says so each time.
    async fn renew(&self) {
        match self.node.renew_if_due(&self.link).await {
            Ok(true) => tracing::info!("the certificate was renewed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the certificate could not be renewed"),
        }
    }
}

/// What the server is told, and when.
struct Reporter {
    mouth: Mouth,
    /// Slots, error, drift.
    base: Report,
    said: Report,
    next: Instant,
    /// What the service manager shows.
    shown: String,
}

impl Reporter {
    fn now(&self, live: Live) -> Report {
        let phase = if live.phase == Phase::Idle { self.base.phase } else { live.phase };
        Report { phase, progress: live.progress, ..self.base.clone() }
    }

    /// When the next report is to be sent; `None` if the server knows all there is.
    fn pending(&self, live: Live) -> Option<Instant> {
        (self.now(live) != self.said).then_some(self.next)
    }

    async fn report(&mut self, live: Live) -> Result<(), LinkError> {
        let report = self.now(live);
        self.mouth.say(&NodeSays::Report { report: report.clone() }).await?;
        self.said = report;
        self.next = Instant::now() + REPORT_EVERY;
        Ok(())
    }

    /// Sends the answers to orders, each only once it is surely on its way.
    async fn answer(&mut self, answers: &mut Vec<NodeSays>) -> Result<(), LinkError> {
        if answers.is_empty() {
            return Ok(());
        }
        // The state first: who waits for the answer may look at the node's state at once.
        self.report(Live::default()).await?;
        while let Some(answer) = answers.first() {
            self.mouth.say(answer).await?;
            answers.remove(0);
        }
        Ok(())
    }

    /// Tells the service manager, if it does not know yet.
    fn status(&mut self, live: Live) {
        let runs = self.base.active.as_ref().and_then(|slot| slot.release.as_ref());
        let runs = runs.map_or_else(|| "nothing proven".to_owned(), ToString::to_string);
        let percent = live.progress.filter(|progress| progress.total > 0);
        let percent = percent.map(|p| format!(" {} %", u128::from(p.done) * 100 / u128::from(p.total)));
        let doing = status::words(live.phase).unwrap_or("idle");
        let text = format!("connected; {runs} runs; {doing}{}", percent.unwrap_or_default());
        if text != self.shown {
            systemd::status(&text);
            self.shown = text;
        }
    }
}

/// Asks for the node's state off the async threads: the back-end may be a program of the site's.
async fn look(node: &Node) -> Result<Report, SessionError> {
    let node = node.clone();
    let made = tokio::task::spawn_blocking(move || status::report(&node.config, &node.journal)).await;
    made.map_err(|error| SessionError::Worker(error.to_string()))?.map_err(SessionError::from)
}

struct Listener(tokio::task::JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A task of its own: hearing must not be given up half-way.
async fn listen(mut ear: Ear, heard: mpsc::Sender<Result<ServerSays, LinkError>>) {
    loop {
        let said = match ear.hear().await {
            Ok(Some(said)) => Ok(said),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let last = said.is_err();
        if heard.send(said).await.is_err() || last {
            return;
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits until a time of the day, or for a while if that is far away.
async fn until(due: Option<DateTime<Utc>>) {
    let Some(due) = due else { return std::future::pending().await };
    let wait = (due - Utc::now()).clamp(TimeDelta::zero(), RECHECK);
    pin!(sleep(wait.to_std().unwrap_or_default())).await;
}
