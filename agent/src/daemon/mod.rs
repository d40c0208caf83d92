//! The daemon: one connection to the server, over which it is told when there is work.
//!
//! ```text
//!  connect ──▶ [session] ──ended──▶ wait (1 s doubling to 5 min, with jitter) ──▶ connect
//!                                     └ revoked or not enrolled: an hour, or until the identity changes
//! ```
//! Idle, it holds one connection and a few timers: no polling, no thread that wakes up. An update that is under way when
//! its connection ends fails or finishes by itself; nothing here is lost by losing a connection, because every new one
//! begins with a look at the channel, and answers to orders wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::identity::IdentityError;
use crate::link::{Link, LinkError};
use crate::node::{Node, NodeError};
use crate::schedule;
use crate::status::ReportError;

mod backoff;
mod queue;
mod session;
mod systemd;
mod watch;
mod work;

use backoff::Backoff;
use session::Session;
use watch::Watch;
use work::Work;

pub use work::remember;

/// Between attempts to connect.
const RECONNECT_FLOOR: Duration = Duration::from_secs(1);
const RECONNECT_CEILING: Duration = Duration::from_secs(300);

/// A connection that lasted so long shows that the server is well.
const STABLE: Duration = Duration::from_secs(60);

/// Between attempts of a node that the server does not want.
const UNWANTED: Duration = Duration::from_secs(3600);

/// How long an update may take to stop.
const GRACE: Duration = Duration::from_secs(20);

/// Why one connection ended, or did not begin.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("a worker ended early: {0}")]
    Worker(String),
}

impl SessionError {
    /// Whether only a new identity, or an operator, can help.
    fn unwanted(&self) -> bool {
        match self {
            Self::Link(error) | Self::Node(NodeError::Link(error)) => error.revoked(),
            Self::Node(NodeError::Identity(IdentityError::NotEnrolled { .. }) | NodeError::NoServer) => true,
            _ => false,
        }
    }
}

/// Runs until `stop`. A node that is not enrolled yet waits until it is.
pub async fn run(node: Node, stop: CancellationToken) {
    let watchdog = tokio::spawn(systemd::watchdog());
    let watch = Watch::over(node.journal.state());
    let mut work = Work::new(node.clone(), stop.child_token());
    let mut backoff = Backoff::new(RECONNECT_FLOOR, RECONNECT_CEILING);
    let mut current = None;
    work.settle();
    systemd::ready();
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let ended = tokio::select! {
            ended = connected(&node, &mut work, &watch, &mut current) => ended,
            () = stop.cancelled() => break,
        };
        if begun.elapsed() >= STABLE {
            backoff.reset();
        }
        let wait = match &ended {
            Err(error) if error.unwanted() => UNWANTED / 2 + schedule::splay(UNWANTED / 2, rand::random()),
            _ => backoff.next(rand::random()),
        };
        let why = ended.err().map_or_else(String::new, |error| error.to_string());
        tracing::warn!(?wait, "{why}; trying again later");
        systemd::status(&format!("not connected: {why}"));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changed_identity(&node, &watch) => backoff.reset(),
            () = stop.cancelled() => {}
        }
    }
    systemd::stopping();
    work.stop(GRACE).await;
    if let Some(link) = current {
        link.close().await;
    }
    watchdog.abort();
}

/// Connects, and works until the connection ends. `current` keeps it for whoever gives this up half-way.
async fn connected(
    node: &Node,
    work: &mut Work,
    watch: &Watch,
    current: &mut Option<Arc<Link>>,
) -> Result<(), SessionError> {
    let link = current.insert(Arc::new(node.connect().await?)).clone();
    let ended = Session { node, work, watch, link: link.clone() }.run().await;
    // However it ended. An update that still uses it fails and says so.
    link.close_now();
    ended
}

/// Waits until the node is somebody else, by `goldsync-agent enroll` in another process.
async fn changed_identity(node: &Node, watch: &Watch) {
    let now = || node.identity().ok().map(|identity| identity.certificate().to_vec());
    let before = now();
    loop {
        watch.changed().await;
        if now() != before {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
