//! Deciding how the golden image is made, and making what needs no network.
//!
//! ```text
//! active slot holds a release  ─▶ the server's plan for that pair   ─┐
//!              or nearly so    ─▶ the same, and what drifted          │
//! active slot holds anything   ─▶ our own plan from the signature   ─┼─▶ local steps ─▶ packs or blocks ─▶ proof
//! nothing local                ─▶ the server's cold plan            ─┘
//! ```
//! A plan that does not arrive (the server does not know the base, or takes too long) costs bytes, not the update: the next
//! way down is taken.

use std::sync::Arc;
use std::time::Duration;

use goldsync_proto::block::{Geometry, byte_of};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::{BLOCK, PLAN_WIRE_MAX};
use goldsync_proto::plan::{Plan, PlanError, Source, Step};
use goldsync_proto::refusal::Reason;
use goldsync_proto::release::Section;
use goldsync_proto::wire::{Answer, Prefer, Request};
use tokio_util::sync::CancellationToken;

use crate::fetch::{self, FetchError};
use crate::job::{Job, JobError};
use crate::link::{Link, LinkError};

pub mod derive;
pub mod mosaic;
pub mod near;
pub mod own;

/// How long a node waits for a plan that is being made before it makes its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the server how to make the target from `base`; `None` if it cannot say.
pub async fn from_server(job: &Arc<Job>, base: Option<ImageId>) -> Result<Option<Plan>, JobError> {
    let pair = Pair { base, target: job.target.image, geometry: job.geometry, prefer: job.prefer };
    Ok(fetch_plan(&job.link, &job.stop, pair, PATIENCE).await?.map(|(plan, _)| plan))
}

/// What a plan is for.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// What is there; `None` for a cold plan.
    pub base: Option<ImageId>,
    /// What is wanted.
    pub target: ImageId,
    /// Its geometry.
    pub geometry: Geometry,
    /// Which plan, if there are two.
    pub prefer: Prefer,
}

/// The server's plan for a pair and its length as it travelled; `None` if there is none within `patience`.
pub async fn fetch_plan(
    link: &Link,
    stop: &CancellationToken,
    pair: Pair,
    patience: Duration,
) -> Result<Option<(Plan, u64)>, JobError> {
    let Some(section) = ask(link, stop, pair, patience).await? else { return Ok(None) };
    let wire = fetch::object(link, section, PLAN_WIRE_MAX as u64, "the plan").await?;
    let Pair { base, target, geometry, .. } = pair;
    match Plan::decode(&wire) {
        Ok(plan) if (plan.base, plan.target, plan.geometry) == (base, target, geometry) => {
            Ok(Some((plan, section.length)))
        }
        Ok(_) => useless("it is for other images"),
        Err(error) => useless(&error),
    }
}

/// A plan that is no good is the server's fault and costs bytes only.
fn useless<T>(why: &(impl std::fmt::Display + ?Sized)) -> Result<Option<T>, JobError> {
    tracing::warn!("the server's plan is of no use: {why}; going another way");
    Ok(None)
}

async fn ask(
    link: &Link,
    stop: &CancellationToken,
    pair: Pair,
    patience: Duration,
) -> Result<Option<Section>, JobError> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if stop.is_cancelled() {
            return Err(JobError::Stopped);
        }
        let request = Request::Plan { base: pair.base, target: pair.target, prefer: pair.prefer };
        match link.ask(&request).await {
            Ok((Answer::Plan { name, length }, _)) => return Ok(Some(Section { name, length })),
            Ok((Answer::Making { retry_ms }, _)) => {
                // Within bounds, whatever the server says.
                let pause = Duration::from_millis(retry_ms.clamp(50, 5000));
                if tokio::time::Instant::now() + pause > deadline {
                    return Ok(None);
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.cancelled() => return Err(JobError::Stopped),
                }
            }
            Ok((other, _)) => return Err(fetch::unexpected("a request for a plan", &other).into()),
            Err(LinkError::Refused { refusal, .. })
                if matches!(
                    refusal.reason,
                    Reason::UnknownBase | Reason::PlanTooLarge | Reason::Busy | Reason::Internal
                ) =>
            {
                tracing::info!(%refusal, "no plan from the server");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Carries out the steps that need no network, in the target's order: keeping, copying, zeroing.
pub fn make_local(job: &Arc<Job>, plan: &Plan) -> Result<(), JobError> {
    let base = job.base.as_ref().and_then(|base| base.blocks.as_ref()).filter(|_| plan.base.is_some());
    for (first, step) in plan.placed() {
        job.go_on()?;
        match step {
            Step::Copy { source: Source::Active, from, count } => {
                job.stage.copy(first, byte_of(from), count, base)?;
            }
            Step::CopyBytes { source: Source::Active, from, count } => job.stage.copy(first, from, count, None)?,
            Step::Copy { source: Source::Standby, from, count } => job.stage.shift(first, byte_of(from), count)?,
            Step::CopyBytes { source: Source::Standby, from, count } => job.stage.shift(first, from, count)?,
            Step::Zero { count } => job.stage.zero(first, count)?,
            Step::Keep { count } => job.stage.keep(count),
            Step::Patch { .. } | Step::Fetch { .. } | Step::Derive { .. } => {}
        }
    }
    Ok(())
}

/// The runs of target blocks that a plan asks the server for.
pub fn fetched_runs(plan: &Plan) -> Vec<(u32, u32)> {
    let fetched = plan.placed().filter(|(_, step)| matches!(step, Step::Fetch { .. }));
    fetched.map(|(first, step)| (first, step.count())).collect()
}

/// Blocks that are fetched, of how many.
pub fn fetched_share(plan: &Plan) -> (u64, u64) {
    let fetched = fetched_runs(plan).iter().map(|(_, count)| u64::from(*count)).sum();
    (fetched, plan.geometry.size() / BLOCK)
}

impl From<PlanError> for JobError {
    fn from(error: PlanError) -> Self {
        FetchError::Answer { what: "a request for a plan", got: error.to_string() }.into()
    }
}

/// The name of a section's kept copy in the cache folder.
fn cached(job: &Job, name: Digest) -> std::path::PathBuf {
    job.cache.join(name.to_string())
}
