//! One update, run beside the session that asked for it, and what is to be done with its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use goldsync_proto::wire::{NodeSays, Outcome, Phase, Progress, Wait, WaitOn};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::queue::{Cue, Job, Queue};
use crate::journal::JournalError;
use crate::link::Link;
use crate::node::Node;
use crate::trial::Settled;
use crate::update::{self, Event, UpdateError};

/// After a failed update, the same is tried again: not soon, and ever more rarely. Most faults need somebody's hand.
const RETRY_FLOOR: Duration = Duration::from_secs(30);
const RETRY_CEILING: Duration = Duration::from_secs(3600);

/// Somebody must not be disturbed: look again after this.
const DISTURBING: Duration = Duration::from_secs(60);

/// Something is far away, or may have been missed: look again after this.
const RECHECK: Duration = Duration::from_secs(30 * 60);

/// Another run holds the lock: look again after this.
const BUSY: Duration = Duration::from_secs(10);

/// What an update is doing now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) phase: Phase,
    pub(super) progress: Option<Progress>,
}

/// The updates of a daemon.
#[derive(Debug)]
pub(super) struct Work {
    node: Node,
    pub(super) queue: Queue,
    /// Answers to orders, until a connection takes them.
    pub(super) answers: Vec<NodeSays>,
    live: watch::Sender<Live>,
    running: Option<JoinHandle<Result<Outcome, UpdateError>>>,
    retry: Backoff,
    stop: CancellationToken,
}

impl Work {
    pub(super) fn new(node: Node, stop: CancellationToken) -> Self {
        Self {
            node,
            queue: Queue::default(),
            answers: Vec::new(),
            live: watch::Sender::new(Live::default()),
            running: None,
            retry: Backoff::new(RETRY_FLOOR, RETRY_CEILING),
            stop,
        }
    }

    /// What is going on, for reports.
    pub(super) fn live(&self) -> watch::Receiver<Live> {
        self.live.subscribe()
    }

    /// Begins by bringing a trial to its end: what runs now may have been started for the first time. Needs no server.
    pub(super) fn settle(&mut self) {
        self.queue.cue(Cue::look(Instant::now()));
        if self.queue.start(Instant::now()).is_none() {
            return;
        }
        let (node, stop, live) = (self.node.clone(), self.stop.child_token(), self.live.clone());
        self.running = Some(tokio::spawn(async move {
            let ctx = node.context(None, Arc::new(move |event| follow(&live, event)), stop)?;
            Ok(match update::settled(&ctx).await? {
                Settled::Confirmed(trial) => {
                    tracing::info!(release = %trial.release, "it has shown itself good and is kept");
                    update::confirmed()
                }
                _ => Outcome::UpToDate,
            })
        }));
    }

    /// Begins the update that is due, if one is.
    pub(super) fn begin(&mut self, link: &Arc<Link>) {
        let Some(job) = self.queue.start(Instant::now()) else { return };
        let (node, link, stop, live) = (self.node.clone(), link.clone(), self.stop.child_token(), self.live.clone());
        let (asked, back_from) = (!job.orders.is_empty(), job.back_from);
        tracing::info!(asked, "looking for a new release");
        self.running = Some(tokio::spawn(async move {
            let mut ctx = node.context(Some(link), Arc::new(move |event| follow(&live, event)), stop)?;
            (ctx.asked, ctx.unattended) = (asked, true);
            if let Some(from) = back_from {
                return update::rollback_from(&mut ctx, &from).await;
            }
            update::sync(&mut ctx).await
        }));
    }

    /// Waits for the running update; for ever, if none runs. Safe to give up at any time.
    pub(super) async fn ended(&mut self) -> Result<Outcome, UpdateError> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let ended = running.await;
        self.running = None;
        ended.unwrap_or_else(|error| Err(crate::job::JobError::Worker(error.to_string()).into()))
    }

    /// Takes note of how an update ended: for the operator, for the record, and for what is to be done next.
    pub(super) fn finish(&mut self, ended: Result<Outcome, UpdateError>) {
        let job = self.queue.finish();
        self.live.send_replace(Live::default());
        trim();
        let outcome = match ended {
            Err(UpdateError::Job(crate::job::JobError::Journal(JournalError::Busy { holder }))) => {
                tracing::info!(holder, "another run is at work; looking again soon");
                return self.again(job, BUSY);
            }
            Err(UpdateError::Job(crate::job::JobError::Stopped)) => return,
            Err(error) => {
                tracing::error!(%error, "the update failed; the active slot is as it was");
                Outcome::Failed { error: error.to_string() }
            }
            Ok(outcome) => outcome,
        };
        match &outcome {
            Outcome::Failed { .. } => {
                let wait = self.retry.next(rand::random());
                self.queue.cue(Cue::look(Instant::now() + wait));
            }
            Outcome::Updated { account } => {
                self.retry.reset();
                tracing::info!(path = account.path, received = account.received, written = account.written, "updated");
            }
            Outcome::Waits { wait, .. } => {
                self.retry.reset();
                tracing::info!(why = wait.why, until = wait.until, "staged, and waiting");
                self.queue.cue(Cue::look(Instant::now() + look_again(wait, Utc::now())));
            }
            _ => self.retry.reset(),
        }
        if let Err(error) = remember(&self.node, &outcome) {
            tracing::error!(%error, "the outcome could not be recorded");
        }
        let answer = |order| NodeSays::SyncDone { order, outcome: outcome.clone() };
        self.answers.extend(job.orders.into_iter().map(answer));
    }

    fn again(&mut self, job: Job, wait: Duration) {
        let due = Instant::now() + wait;
        self.queue.cue(Cue { back_from: job.back_from, ..Cue::look(due) });
        job.orders.into_iter().for_each(|order| self.queue.cue(Cue { order: Some(order), ..Cue::look(due) }));
    }

    /// Stops what runs and waits until it has, within reason: its blocking part ends at its next block.
    pub(super) async fn stop(&mut self, grace: Duration) {
        self.stop.cancel();
        if self.running.is_some() {
            let _ = tokio::time::timeout(grace, self.ended()).await;
        }
    }
}

/// When to look again whether what is waited for has come. Clocks are set, so a window is looked at again now and then.
fn look_again(wait: &Wait, now: DateTime<Utc>) -> Duration {
    let until = wait.until.as_deref().and_then(|until| DateTime::parse_from_rfc3339(until).ok());
    let until = until.and_then(|until| (until.with_timezone(&Utc) - now).to_std().ok());
    match (wait.on, until) {
        (WaitOn::Window, Some(until)) => until.clamp(Duration::from_secs(1), RECHECK),
        (WaitOn::Inhibitor | WaitOn::Session, _) => DISTURBING,
        _ => RECHECK,
    }
}

/// Remembers an outcome, with the release that it made the active one. "Nothing to do" does not cover the account of the
/// update before it, but it does clear an error, and a wait.
pub fn remember(node: &Node, outcome: &Outcome) -> Result<(), JournalError> {
    let last = node.journal.last()?.map(|last| last.outcome);
    let said = match (outcome, &last) {
        (Outcome::UpToDate, Some(Outcome::Failed { .. } | Outcome::Waits { .. })) => false,
        (Outcome::UpToDate, _) => true,
        // While it waits it looks every minute: that is not news.
        (Outcome::Waits { wait, .. }, Some(Outcome::Waits { wait: last, .. })) => wait == last,
        _ => false,
    };
    if said {
        return Ok(());
    }
    let release = match outcome {
        Outcome::Updated { .. } => node.running().map(|proven| proven.release),
        Outcome::Waits { .. } => node.standing_by().map(|proven| proven.release),
        _ => None,
    };
    node.journal.set_last(release, outcome.clone())
}

fn follow(live: &watch::Sender<Live>, event: Event) {
    match event {
        Event::Phase(phase) => drop(live.send_replace(Live { phase, progress: None })),
        Event::Progress(progress) => live.send_modify(|live| live.progress = Some(progress)),
        Event::Note(note) => tracing::info!("{note}"),
    }
}

/// Gives the memory that an update needed back to the system: a daemon mostly idles.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments but a number, no effect but on the allocator's own free lists; safe from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::node;

    #[test]
    fn nothing_to_do_clears_an_error_but_keeps_an_account() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        let last = || node.journal.last().unwrap().unwrap().outcome;
        let updated = Outcome::Updated { account: Default::default() };
        remember(&node, &Outcome::UpToDate).unwrap();
        assert_eq!(node.journal.last().unwrap(), None, "nothing was done, nothing is written");
        remember(&node, &Outcome::Failed { error: "x".into() }).unwrap();
        remember(&node, &Outcome::UpToDate).unwrap();
        assert_eq!(last(), Outcome::UpToDate);
        remember(&node, &updated).unwrap();
        remember(&node, &Outcome::UpToDate).unwrap();
        assert_eq!(last(), updated);
    }

    #[test]
    fn a_wait_is_looked_at_again_when_it_may_be_over() {
        let now = "2026-11-21T03:00:00Z".parse().unwrap();
        let wait = |on, until: Option<&str>| Wait { on, why: String::new(), until: until.map(Into::into) };
        for (wait, seconds) in [
            (wait(WaitOn::Window, Some("2026-11-21T03:10:00Z")), 600),
            (wait(WaitOn::Window, Some("2026-11-23T03:10:00Z")), 1800),
            (wait(WaitOn::Window, Some("2026-11-20T03:10:00Z")), 1800),
            (wait(WaitOn::Session, None), 60),
            (wait(WaitOn::Restart, None), 1800),
        ] {
            assert_eq!(look_again(&wait, now), Duration::from_secs(seconds), "{wait:?}");
        }
    }

    #[tokio::test]
    async fn a_failed_update_answers_its_orders_and_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut work = Work::new(node(folder.path()), CancellationToken::new());
        work.queue.cue(Cue { order: Some(7), ..Cue::look(Instant::now()) });
        work.queue.start(Instant::now()).unwrap();
        work.finish(Err(UpdateError::NoLink));
        let error = UpdateError::NoLink.to_string();
        assert_eq!(work.answers, [NodeSays::SyncDone { order: 7, outcome: Outcome::Failed { error: error.clone() } }]);
        let wait = work.queue.due().unwrap().saturating_duration_since(Instant::now());
        assert!(wait <= RETRY_FLOOR && wait > RETRY_FLOOR / 3, "{wait:?}");
        assert_eq!(work.node.journal.last().unwrap().unwrap().outcome, Outcome::Failed { error });
    }

    #[tokio::test]
    async fn an_update_that_found_another_run_at_work_keeps_its_orders() {
        let folder = tempfile::tempdir().unwrap();
        let mut work = Work::new(node(folder.path()), CancellationToken::new());
        work.queue.cue(Cue { order: Some(7), ..Cue::look(Instant::now()) });
        work.queue.start(Instant::now()).unwrap();
        work.finish(Err(JournalError::Busy { holder: "process 1".into() }.into()));
        assert_eq!((work.answers.len(), work.node.journal.last().unwrap()), (0, None), "nothing failed");
        assert_eq!(work.queue.start(Instant::now() + BUSY).unwrap().orders, [7]);
    }
}
