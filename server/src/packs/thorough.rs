//! Thorough plans: made in the background, one at a time, on one thread of the lowest priority.
//!
//! ```text
//! a quick plan was made, or found at the start ──▶ queue ──▶ made and proven again ──▶ for who would rather spare bytes
//! ```
//! Nothing waits for them. There is no list of what is to be done but the plans themselves: each quick one that has no thorough
//! one beside it when the server starts is taken up. A kill leaves the quick plan and a draft that the next start removes. What
//! failed is not tried again before that: the quick plan serves as well, only larger.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use super::{Grade, Packs, Pair, PlanError};
use crate::store::StoreError;

/// The plans that are to become thorough.
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
    /// Thorough plans made since the start.
    pub fn improved(&self) -> u64 {
        self.thorough.made.load(Ordering::Relaxed)
    }

    /// Queues what was still quick when the server stopped.
    pub(super) fn take_up(self: &Arc<Self>) {
        let quick: Vec<Pair> = {
            let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
            let pairs = records.keys().filter(|(_, grade)| *grade == Grade::Quick).map(|(pair, _)| *pair);
            pairs.filter(|pair| !records.contains_key(&(*pair, Grade::Thorough))).collect()
        };
        quick.into_iter().for_each(|pair| self.improve_later(pair));
    }

    /// Queues one.
    pub(super) fn improve_later(self: &Arc<Self>, pair: Pair) {
        if self.options.thorough.is_none() || pair.0.is_none() || !self.thorough.enter(pair) {
            return;
        }
        let packs = self.clone();
        tokio::spawn(async move {
            let outcome = packs.improve(pair).await;
            if let Err(error) = &outcome {
                tracing::warn!(base = ?pair.0, target = %pair.1, %error, "the quick plan stays");
            }
            packs.thorough.leave(pair, outcome.is_err());
        });
    }

    async fn improve(&self, pair: Pair) -> Result<(), PlanError> {
        let (Some(base), Some(effort)) = (pair.0, self.options.thorough) else { return Ok(()) };
        let _turn = self.thorough.turn.acquire().await.map_err(|_| StoreError::Stopping)?;
        self.check(Some(base), pair.1)?;
        let plan = self.make(base, pair.1, effort).await?;
        let wire = plan.wire_bytes();
        // An image that was taken out meanwhile takes its plans with it.
        self.check(Some(base), pair.1)?;
        self.keep(plan, None, Grade::Thorough).await?;
        tracing::info!(%base, target = %pair.1, wire, "made a thorough plan");
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
    std::thread::Builder::new().name("thorough".into()).spawn(run).map_err(|error| failed(error.to_string()))?;
    done.await.map_err(|_| failed("its thread died".into()))?
}

const LOWEST: i32 = 19;
