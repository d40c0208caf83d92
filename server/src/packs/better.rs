//! Better plans: made in the background, one at a time, on one thread of the lowest priority.
//!
//! ```text
//! a quick plan was made, or found at the start ──▶ queue ──▶ made and proven again, thoroughly ──▶ for all who come later
//!                                                                      and as small as can be ──▶ for who would rather spare bytes
//! ```
//! Nothing waits for them. There is no list of what is to be done but the plans themselves: each quick one that lacks one of the
//! others when the server starts is taken up. A kill leaves the plans that are there and a draft that the next start removes. What
//! failed is not tried again before that: the quick plan serves as well, only larger.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use goldsync_proto::make::Effort;

use super::{Grade, Packs, Pair, PlanError};
use crate::store::StoreError;

/// The pairs that are to have better plans.
#[derive(Debug)]
pub(super) struct Queue {
    pairs: Mutex<HashMap<Pair, Standing>>,
    pub(super) turn: Semaphore,
    made: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Waiting,
    GivenUp,
}

impl Default for Queue {
    fn default() -> Self {
        Self { pairs: Mutex::default(), turn: Semaphore::new(1), made: AtomicU64::new(0) }
    }
}

impl Queue {
    pub(super) fn holds(&self, pair: Pair) -> bool {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner).get(&pair) == Some(&Standing::Waiting)
    }

    /// `false`: it is in the queue already, or was given up.
    fn enter(&self, pair: Pair) -> bool {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let new = !pairs.contains_key(&pair);
        pairs.entry(pair).or_insert(Standing::Waiting);
        new
    }

    fn leave(&self, pair: Pair, given_up: bool) {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if given_up {
            pairs.insert(pair, Standing::GivenUp);
        } else {
            pairs.remove(&pair);
            self.made.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Packs {
    /// Pairs whose plans were bettered since the start.
    pub fn improved(&self) -> u64 {
        self.better.made.load(Ordering::Relaxed)
    }

    /// Queues what was not done when the server stopped.
    pub(super) fn take_up(self: &Arc<Self>) {
        let quick: Vec<Pair> = {
            let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            records.keys().filter(|(_, grade)| *grade == Grade::Quick).map(|(pair, _)| *pair).collect()
        };
        let lacking = quick.into_iter().filter(|pair| self.lacking(*pair).next().is_some());
        lacking.for_each(|pair| self.improve_later(pair));
    }

    /// The kinds of plan that a pair shall have and has not.
    fn lacking(&self, pair: Pair) -> impl Iterator<Item = (Grade, Effort)> {
        let made =
            move |grade| self.records.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&(pair, grade));
        self.options.better.iter().copied().filter(move |(grade, _)| !made(*grade))
    }

    /// Queues one.
    pub(super) fn improve_later(self: &Arc<Self>, pair: Pair) {
        if self.options.better.is_empty() || pair.0.is_none() || !self.better.enter(pair) {
            return;
        }
        let packs = self.clone();
        tokio::spawn(async move {
            let outcome = packs.improve(pair).await;
            if let Err(error) = &outcome {
                tracing::warn!(base = ?pair.0, target = %pair.1, %error, "the quick plan stays");
            }
            packs.better.leave(pair, outcome.is_err());
        });
    }

    async fn improve(&self, pair: Pair) -> Result<(), PlanError> {
        let Some(base) = pair.0 else { return Ok(()) };
        for (grade, effort) in self.lacking(pair) {
            let _turn = self.better.turn.acquire().await.map_err(|_| StoreError::Stopping)?;
            self.check(Some(base), pair.1)?;
            let plan = self.make(base, pair.1, effort).await?;
            let wire = plan.wire_bytes();
            // An image that was taken out meanwhile takes its plans with it.
            self.check(Some(base), pair.1)?;
            self.keep(plan, None, grade).await?;
            tracing::info!(%base, target = %pair.1, ?grade, wire, "made a better plan");
        }
        Ok(())
    }
}

/// Runs `work` on a thread of its own that yields to all others; so do the threads that it starts.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlanError> + Send + 'static,
) -> Result<T, PlanError> {
    let (tell, done) = oneshot::channel();
    let run = move || {
        // To Linux a thread is a process of its own here. Without the priority it is only less polite.
        let _ = rustix::process::setpriority_process(None, LOWEST);
        let _ = tell.send(work());
    };
    let failed = |reason: String| PlanError::Failed { reason };
    std::thread::Builder::new().name("better plans".into()).spawn(run).map_err(|error| failed(error.to_string()))?;
    done.await.map_err(|_| failed("its thread died".into()))?
}

const LOWEST: i32 = 19;
