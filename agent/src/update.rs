//! The flow of one update, and its verbs: check, download, activate, rollback, sync.
//!
//! ```text
//! check ─▶ plan ─▶ fetch + stage ─▶ verify ─▶ (proven) ─▶ swap
//!   │ nothing new                                 │
//!   └▶ up to date                                 └▶ later, by `activate`
//! ```
//! Each verb that changes anything holds the state folder's lock from its first look to its last write. Whatever fails, and
//! wherever, the active slot is as it was: it is written by nobody, and the swap comes after the proof. What was staged stays,
//! and the next run goes on from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::Utc;
use goldsync_proto::block::{Geometry, byte_of, runs_of};
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::{BLOCK, TRUST_BYTES_MAX, TRUST_FILE_MAX, TRUST_FILES_MAX};
use goldsync_proto::plan::{Plan, Source as From, Step};
use goldsync_proto::release::{Manifest, ManifestError, ReleaseRef};
use goldsync_proto::verity::Derived;
use goldsync_proto::wire::{Account, Answer, Outcome, Phase, Progress, Request, Wait, WaitOn};
use tokio_util::sync::CancellationToken;

use crate::boot::{Activation, ActivationError, Effect};
use crate::budget::{self, Ceiling, OverBudget};
use crate::config::{Budget, Config, How};
use crate::fetch;
use crate::job::{Base, Hashes, Job, JobError};
use crate::journal::{Journal, JournalError, Proven, RunLock, SlotRecord, Trial};
use crate::link::{Link, LinkError, Wire};
use crate::plan::{self, near::Stranger};
use crate::restart::{self, Next, RestartError};
use crate::slot::{SlotError, SlotName, Source, Standby, Wanted};
use crate::stage::{Before, Stage, StageError};
use crate::swap::{Swap, SwapError};
use crate::trial::{self, Settled, Standing};
use crate::trust::{Trust, TrustError};
use crate::verify::{self, RegionHash};

/// Rounds of asking for signed metadata: roles, then the pointer, then its manifest; one more for a move in between.
const TRUST_ROUNDS: usize = 4;

/// Manifests of older releases that are asked for at a time, when only a root hash tells what runs; and how often.
const UNREAD: usize = 64;
const UNREAD_ROUNDS: usize = 8;

/// How long a forecast waits for a plan that is being made.
const FORECAST_PATIENCE: Duration = Duration::from_secs(10);

/// How often progress is told.
const TICK: Duration = Duration::from_millis(250);

/// What a verb tells while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A step of the flow begins.
    Phase(Phase),
    /// How far it is.
    Progress(Progress),
    /// For people.
    Note(String),
}

/// Takes events; called from any thread, must not block.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// What the verbs work with.
pub struct Context {
    /// As the operator wrote it.
    pub config: Arc<Config>,
    /// What was proven.
    pub journal: Journal,
    /// Which slot is active.
    pub activation: Box<dyn Activation>,
    /// What was signed.
    pub trust: Trust,
    /// The server; `None` for verbs that need none.
    pub link: Option<Arc<Link>>,
    /// Who is told.
    pub events: Events,
    /// Set when the work shall stop at the next safe place.
    pub stop: CancellationToken,
    /// Whether somebody asked for this. If nobody did (a schedule, a hint), a release that failed or was rolled back from is left
    /// alone: see [`crate::swap`].
    pub asked: bool,
    /// Whether nobody is at hand: then the maintenance window and the people who use the machine are waited for, and the machine
    /// is started again where that is needed; see [`crate::restart`].
    pub unattended: bool,
    /// Whether an update may take more bytes than the budget allows.
    pub any_size: bool,
}

/// Why a verb failed. The active slot is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// Plan, fetch, stage or proof.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Signed metadata.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A signed manifest that says the impossible.
    #[error("release {release}: {error}")]
    Manifest {
        /// Which.
        release: ReleaseRef,
        /// Why.
        error: ManifestError,
    },
    /// Which slot is active.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The release wants a newer agent.
    #[error("release {release} needs goldsync-agent {minimum} or newer, this is {have}; update the agent first")]
    TooOld {
        /// Which.
        release: ReleaseRef,
        /// As signed.
        minimum: String,
        /// This one.
        have: &'static str,
    },
    /// The channel points nowhere.
    #[error("channel {channel} has no release yet; promote one: `goldsync promote NAME:VERSION {channel}`")]
    NoRelease {
        /// Which.
        channel: goldsync_proto::release::Word,
    },
    /// The swap.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// What is active now has not shown itself good: the other slot is the way back.
    #[error(
        "{release} is on trial in slot {slot}, and the other slot is what there is to go back to: it is not written; wait, or keep what runs: `goldsync-agent confirm --force`"
    )]
    OnTrial {
        /// What runs.
        release: ReleaseRef,
        /// Where.
        slot: SlotName,
    },
    /// It did not show itself good, and the node went back.
    #[error("{release} was not kept: {why}; it is not tried again until somebody asks: `goldsync-agent sync`")]
    Unhealthy {
        /// What failed.
        release: ReleaseRef,
        /// What was wrong, and what was done about it.
        why: String,
    },
    /// The machine cannot be started again.
    #[error(transparent)]
    Restart(#[from] RestartError),
    /// No slot is active.
    #[error("no slot is active yet; `goldsync-agent sync` installs one")]
    NoActive,
    /// Nothing says what the active slot should be.
    #[error("slot {slot} is active, but no release was ever proven in it; `goldsync-agent sync` makes it one")]
    Unclaimed {
        /// The active slot.
        slot: SlotName,
    },
    /// A verb that needs the server was called without one.
    #[error("this needs the server, and there is no connection")]
    NoLink,
}

macro_rules! through_job {
    ($($error:ty),*) => {$(
        impl std::convert::From<$error> for UpdateError {
            fn from(error: $error) -> Self {
                Self::Job(error.into())
            }
        }
    )*};
}
through_job!(LinkError, JournalError, StageError, crate::fetch::FetchError);

impl std::convert::From<SlotError> for UpdateError {
    fn from(error: SlotError) -> Self {
        StageError::from(error).into()
    }
}

impl UpdateError {
    /// The process's exit code, as documented in `--help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Job(JobError::Link(error)) => error.exit_code(),
            Self::NoLink => 4,
            Self::Activation(error) | Self::Swap(SwapError::Activation(error)) => error.exit_code(),
            Self::Job(JobError::Stage(_)) => 5,
            Self::Job(JobError::Proof { .. }) | Self::Swap(SwapError::Unproven { .. }) => 7,
            Self::Job(JobError::Journal(JournalError::Busy { .. })) => 75,
            Self::Job(JobError::Journal(_)) | Self::Swap(SwapError::Journal(_)) => 5,
            Self::Job(JobError::Stopped) => 130,
            Self::Trust(TrustError::Disk(_)) => 5,
            Self::Job(JobError::Budget(_)) => 9,
            Self::Trust(_) | Self::Manifest { .. } | Self::TooOld { .. } => 3,
            Self::Unhealthy { .. } => 8,
            _ => 1,
        }
    }
}

/// What `check` found.
#[derive(Clone, Debug)]
pub struct Check {
    /// The release that the channel points at.
    pub target: Manifest,
    /// The active slot.
    pub active: Option<SlotName>,
    /// What it holds, as far as this node knows.
    pub running: Option<Proven>,
    /// What is to be done.
    pub verdict: Verdict,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing: the active slot holds it.
    UpToDate,
    /// Activate: the standby slot holds it, proven.
    Staged,
    /// Start the machine again: it is activated, and the next start runs it.
    Activated,
    /// Download and activate.
    Update,
    /// Nothing: it failed on this node or was rolled back from, and nobody asked for it since.
    Held,
}

impl Context {
    pub(crate) fn tell(&self, event: Event) {
        (self.events)(event);
    }

    /// Starts the machine again, into what the next start takes.
    pub(crate) fn restart(&self, how: &How) -> Result<(), UpdateError> {
        let next = self.activation.look()?.next;
        let proven = next.map(|slot| self.proven(slot)).transpose()?.flatten();
        let next = next.map(|slot| Next {
            slot,
            slots: &self.config.slots,
            sealed: proven.as_ref().and_then(|proven| proven.verity.as_ref()),
        });
        Ok(restart::restart(how, next)?)
    }

    /// The connection.
    pub fn link(&self) -> Result<Arc<Link>, UpdateError> {
        self.link.clone().ok_or(UpdateError::NoLink)
    }

    fn swap<'a>(&'a self, lock: &'a RunLock) -> Swap<'a> {
        Swap { journal: &self.journal, activation: self.activation.as_ref(), lock }
    }

    /// Where the next image goes.
    pub fn standby(&self) -> Result<SlotName, UpdateError> {
        Ok(self.activation.active()?.map_or(SlotName::A, SlotName::other))
    }

    /// What a slot was proven to hold.
    pub fn proven(&self, slot: SlotName) -> Result<Option<Proven>, UpdateError> {
        Ok(self.journal.slot(slot)?.proven().cloned())
    }
}

/// Fetches signed metadata that is newer than ours, and verifies all of it again.
pub async fn refresh(ctx: &mut Context) -> Result<(), UpdateError> {
    let mut want = Vec::new();
    let mut doubted = false;
    for _ in 0..TRUST_ROUNDS {
        let files = trust_files(ctx.link()?.as_ref(), ctx.trust.have(), want).await?;
        match ctx.trust.absorb(files).await {
            // What is held may be what does not fit; now all of it is asked for, once.
            Err(error) if error.misfit() && !doubted => {
                tracing::info!(%error, "asking for all signed metadata");
                (doubted, want) = (true, Vec::new());
                continue;
            }
            absorbed => absorbed?,
        };
        want = ctx.trust.wanted(&ctx.config.channel).await?;
        if want.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Asks for one release's manifest, if it is not held.
pub async fn manifest(ctx: &mut Context, release: &ReleaseRef) -> Result<Manifest, UpdateError> {
    if let Ok(manifest) = ctx.trust.manifest(release).await {
        return Ok(manifest);
    }
    let files = trust_files(ctx.link()?.as_ref(), ctx.trust.have(), vec![release.target()]).await?;
    ctx.trust.absorb(files).await?;
    Ok(ctx.trust.manifest(release).await?)
}

async fn trust_files(
    link: &Link,
    have: std::collections::BTreeMap<String, u64>,
    want: Vec<String>,
) -> Result<Vec<(String, Vec<u8>)>, UpdateError> {
    let (answer, mut body) = link.ask(&Request::Trust { have, want }).await?;
    let Answer::Trust { files } = answer else {
        return Err(fetch::unexpected("a request for signed metadata", &answer).into());
    };
    let total: u64 = files.iter().fold(0, |sum, file| sum.saturating_add(file.length));
    if files.len() > TRUST_FILES_MAX || total > TRUST_BYTES_MAX {
        let (what, got, expected) = ("signed metadata", total, TRUST_BYTES_MAX);
        return Err(fetch::FetchError::Length { what, got, expected }.into());
    }
    let mut read = Vec::with_capacity(files.len());
    for file in files {
        read.push((file.name, body.bytes(file.length, TRUST_FILE_MAX, "signed metadata").await?));
    }
    body.end("signed metadata").await?;
    Ok(read)
}

/// Is there something new, signed and allowed? Changes nothing but the local copy of signed metadata.
pub async fn check(ctx: &mut Context) -> Result<Check, UpdateError> {
    ctx.tell(Event::Phase(Phase::Check));
    refresh(ctx).await?;
    check_offline(ctx).await
}

/// The same by the signed metadata that is here, without a server.
pub async fn check_offline(ctx: &mut Context) -> Result<Check, UpdateError> {
    let channel = ctx.config.channel.clone();
    let (_, target) = ctx.trust.desired(&channel).await?.ok_or(UpdateError::NoRelease { channel })?;
    judge(ctx, target).await
}

/// What an update would cost, by the server's plan for it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Forecast {
    /// Which way: `pack` or `cold`.
    pub path: &'static str,
    /// Bytes of the plan and of all it needs from the server, at most: what turns out to be here is not fetched.
    pub received: u64,
    /// Blocks of the image that come from the server.
    pub fetched: u64,
}

/// Asks what an update would cost. `None` if there is nothing to do, or if the server cannot tell at once: it is still making
/// the plan, or does not know what is here.
pub async fn forecast(ctx: &Context, check: &Check) -> Result<Option<Forecast>, UpdateError> {
    let base = check.running.as_ref().map(|running| running.image);
    if check.verdict != Verdict::Update || (base.is_none() && check.active.is_some()) {
        return Ok(None);
    }
    let (target, geometry) = (check.target.image, acceptable(&check.target)?);
    let pair = plan::Pair { base, target, geometry, prefer: ctx.config.limits.prefer };
    let plan = plan::fetch_plan(ctx.link()?.as_ref(), &ctx.stop, pair, FORECAST_PATIENCE).await?;
    Ok(plan.map(|(plan, length)| Forecast {
        path: if base.is_some() { "pack" } else { "cold" },
        received: length + wire_of(&plan),
        fetched: plan.packs.iter().map(|pack| u64::from(pack.raw_len) / BLOCK).sum(),
    }))
}

/// By how much an update would be over the budget, as far as the server's plan tells.
pub async fn over_budget(ctx: &Context, check: &Check) -> Result<Option<OverBudget>, UpdateError> {
    let Some(ceiling) = ceiling(ctx)? else { return Ok(None) };
    let forecast = forecast(ctx, check).await?;
    Ok(forecast.and_then(|forecast| ceiling.allow(forecast.received, true).err()))
}

/// Bytes of all packs of a plan.
fn wire_of(plan: &Plan) -> u64 {
    plan.packs.iter().map(|pack| u64::from(pack.wire_len)).sum()
}

async fn judge(ctx: &mut Context, target: Manifest) -> Result<Check, UpdateError> {
    acceptable(&target)?;
    let active = ctx.activation.active()?;
    let running = active.map(|slot| ctx.proven(slot)).transpose()?.flatten();
    let standby = ctx.proven(ctx.standby()?)?;
    let holds = |proven: &Option<Proven>| proven.as_ref().is_some_and(|proven| proven.image == target.image);
    let held = if ctx.asked { None } else { ctx.journal.held_back(target.image)? };
    let waits = matches!(trial::look(ctx)?, Some((trial, Standing::Waits)) if trial.image == target.image);
    let verdict = if holds(&running) {
        Verdict::UpToDate
    } else if let Some(held) = held {
        let (release, why) = (&target.release, held.why);
        ctx.tell(Event::Note(format!("{release} is held: {why}; `goldsync-agent sync` goes there again")));
        Verdict::Held
    } else if waits {
        Verdict::Activated
    } else if holds(&standby) {
        Verdict::Staged
    } else {
        Verdict::Update
    };
    Ok(Check { target, active, running, verdict })
}

/// What the kernel proves of the active slot counts like a proof of our own: a slot without a record, every read of which it checks
/// against a root hash, is the release that was signed with that hash. Nothing is scanned. The signed list of releases says which
/// that may be; manifests that were never needed are asked for, the newest first, some at a time.
async fn recognised(ctx: &mut Context, check: Check) -> Result<Check, UpdateError> {
    let (Some(active), None) = (check.active, &check.running) else { return Ok(check) };
    let Some(root) = ctx.activation.root_hash() else { return Ok(check) };
    for _ in 0..UNREAD_ROUNDS {
        if let Some(manifest) = ctx.trust.sealed_by(&root).await? {
            ctx.tell(Event::Note(format!(
                "slot {active} is {}, by the root hash that it is read with",
                manifest.release
            )));
            ctx.journal.set_proven_as(active, &manifest)?;
            return judge(ctx, check.target).await;
        }
        let unread = ctx.trust.unread(&check.target.release.name).await?;
        let want: Vec<String> = unread.iter().take(UNREAD).map(ReleaseRef::target).collect();
        if want.is_empty() {
            break;
        }
        let files = trust_files(ctx.link()?.as_ref(), ctx.trust.have(), want).await?;
        ctx.trust.absorb(files).await?;
    }
    tracing::warn!(%root, "no signed release has the root hash that the active slot is read with");
    Ok(check)
}

fn acceptable(target: &Manifest) -> Result<Geometry, UpdateError> {
    let release = || target.release.clone();
    let geometry = target.check().map_err(|error| UpdateError::Manifest { release: release(), error })?;
    let have = env!("CARGO_PKG_VERSION");
    match &target.minimum_agent {
        Some(minimum) if numbers(minimum) > numbers(have) => {
            Err(UpdateError::TooOld { release: release(), minimum: minimum.clone(), have })
        }
        _ => Ok(geometry),
    }
}

/// A version's numbers, for comparison: `1.10.2` comes after `1.9`.
fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

/// Check, and bring the standby slot to the channel's release, proven. Activates nothing.
pub async fn download(ctx: &mut Context) -> Result<(Check, Option<Account>), UpdateError> {
    let _lock = ctx.journal.lock()?;
    let begun = Begun::now(ctx);
    let check = check(ctx).await?;
    let check = recognised(ctx, check).await?;
    let account = stage_if_needed(ctx, &check, &begun).await?;
    Ok((check, account))
}

/// The same for a signed release that is named, whatever the channel points at.
pub async fn install(ctx: &mut Context, release: &ReleaseRef) -> Result<(Check, Option<Account>), UpdateError> {
    let _lock = ctx.journal.lock()?;
    let begun = Begun::now(ctx);
    ctx.tell(Event::Phase(Phase::Check));
    refresh(ctx).await?;
    let target = manifest(ctx, release).await?;
    let check = judge(ctx, target).await?;
    let check = recognised(ctx, check).await?;
    let account = stage_if_needed(ctx, &check, &begun).await?;
    Ok((check, account))
}

async fn stage_if_needed(ctx: &Context, check: &Check, begun: &Begun) -> Result<Option<Account>, UpdateError> {
    let account = match check.verdict {
        Verdict::UpToDate | Verdict::Held | Verdict::Activated => None,
        Verdict::Staged if renewed(ctx, check).await? => None,
        Verdict::Staged | Verdict::Update => stage(ctx, &check.target, begun).await?,
    };
    ctx.tell(Event::Phase(Phase::Idle));
    Ok(account)
}

/// What is staged counts as staged now: what ran before the active slot's image and is wanted again is proven again, so that
/// `activate` takes it for what comes next. `false` if it is not what it was.
async fn renewed(ctx: &Context, check: &Check) -> Result<bool, UpdateError> {
    let slot = ctx.standby()?;
    let proven = ctx.proven(slot)?;
    if proven.is_some_and(|proven| check.running.as_ref().is_none_or(|running| proven.at > running.at)) {
        return Ok(true);
    }
    let good = still_proven(ctx, slot).await?.is_ok();
    if good {
        ctx.journal.set_proven_as(slot, &check.target)?;
    }
    Ok(good)
}

/// Check, download, activate: the whole chain. Does nothing if the channel's release runs already. A trial that is on is
/// brought to its end first.
pub async fn sync(ctx: &mut Context) -> Result<Outcome, UpdateError> {
    settled(ctx).await?;
    let lock = ctx.journal.lock()?;
    let begun = Begun::now(ctx);
    let check = check(ctx).await?;
    let check = recognised(ctx, check).await?;
    let staged = match check.verdict {
        Verdict::UpToDate | Verdict::Held => None,
        Verdict::Activated => Some(begun.account(ctx, "staged", None)),
        Verdict::Staged if still_proven(ctx, ctx.standby()?).await?.is_ok() => Some(begun.account(ctx, "staged", None)),
        Verdict::Staged | Verdict::Update => stage(ctx, &check.target, &begun).await?,
    };
    let Some(account) = staged else {
        ctx.tell(Event::Phase(Phase::Idle));
        return Ok(Outcome::UpToDate);
    };
    let account = begun.finish(ctx, account);
    if let Some(wait) = gate(ctx).await? {
        ctx.tell(Event::Phase(Phase::Idle));
        return Ok(Outcome::Waits { account, wait });
    }
    if check.verdict != Verdict::Activated {
        swap(ctx, &lock)?;
    }
    drop(lock);
    in_use(ctx, begun.finish(ctx, account)).await
}

/// What keeps the machine from being disturbed now; nothing does if somebody is at hand.
async fn gate(ctx: &Context) -> Result<Option<Wait>, UpdateError> {
    if !ctx.unattended {
        return Ok(None);
    }
    let (config, effect) = (ctx.config.clone(), ctx.activation.takes_effect());
    let asked = tokio::task::spawn_blocking(move || restart::gate(&config.restart, effect, Utc::now())).await;
    Ok(asked.map_err(|error| JobError::Worker(error.to_string()))?)
}

/// What was just activated comes into use: at once, and then shows itself good; or by a restart.
pub(crate) async fn in_use(ctx: &Context, account: Account) -> Result<Outcome, UpdateError> {
    if ctx.activation.takes_effect() == Effect::AtOnce {
        settled(ctx).await?;
        return Ok(Outcome::Updated { account });
    }
    let how = &ctx.config.restart.how;
    let why = if ctx.unattended && *how != How::None {
        ctx.restart(how)?;
        "the machine is started again now"
    } else {
        "the next start of the machine runs it"
    };
    Ok(Outcome::Waits { account, wait: Wait { on: WaitOn::Restart, why: why.into(), until: None } })
}

/// Brings a trial to its end, if one is on. One that failed is an error.
pub async fn settled(ctx: &Context) -> Result<Settled, UpdateError> {
    let settled = trial::settle(ctx).await?;
    ctx.tell(Event::Phase(Phase::Idle));
    match settled {
        Settled::Back { left: release, why } => Err(UpdateError::Unhealthy { release, why }),
        other => Ok(other),
    }
}

/// The outcome of a trial that ended well.
pub fn confirmed() -> Outcome {
    Outcome::Updated { account: Account { path: "confirm".into(), ..Account::default() } }
}

/// Makes the standby slot, staged and proven by an earlier run, the active one. Needs no server.
pub async fn activate(ctx: &mut Context) -> Result<(Proven, Outcome), UpdateError> {
    let lock = ctx.journal.lock()?;
    let proven = ctx.swap(&lock).next()?;
    prove_again(ctx, &proven).await?;
    swap(ctx, &lock)?;
    drop(lock);
    let account = Account { path: "activate".into(), ..Account::default() };
    Ok((proven, in_use(ctx, account).await?))
}

/// Goes back to what was active before, and holds the release that is left; what was activated and has not been started yet is
/// called off. Needs no server.
pub async fn rollback(ctx: &mut Context) -> Result<(Proven, Outcome), UpdateError> {
    let lock = ctx.journal.lock()?;
    let account = Account { path: "rollback".into(), ..Account::default() };
    if let Some((trial, Standing::Waits)) = trial::look(ctx)? {
        ctx.journal.hold(trial.image, &trial.release, "it was called off by hand before it was started")?;
        trial::call_off(ctx, trial.slot)?;
        ctx.journal.end_trial()?;
        let active = ctx.activation.active()?.ok_or(UpdateError::NoActive)?;
        let proven = ctx.proven(active)?.ok_or(UpdateError::Unclaimed { slot: active })?;
        return Ok((proven, Outcome::Updated { account }));
    }
    let proven = ctx.swap(&lock).previous()?;
    prove_again(ctx, &proven).await?;
    ctx.tell(Event::Phase(Phase::Swap));
    ctx.swap(&lock).back()?;
    drop(lock);
    ctx.tell(Event::Phase(Phase::Idle));
    Ok((proven, in_use(ctx, account).await?))
}

/// The same, if `from` is what runs or what the next start runs; else there is nothing to go back from.
pub async fn rollback_from(ctx: &mut Context, from: &ReleaseRef) -> Result<Outcome, UpdateError> {
    let waits = matches!(trial::look(ctx)?, Some((trial, Standing::Waits)) if trial.release == *from);
    let active = ctx.activation.active()?;
    let running = active.map(|slot| ctx.proven(slot)).transpose()?.flatten();
    if !waits && running.is_none_or(|running| running.release != *from) {
        return Ok(Outcome::UpToDate);
    }
    Ok(rollback(ctx).await?.1)
}

/// Makes the standby slot, just proven, the active one.
pub(crate) fn swap(ctx: &Context, lock: &RunLock) -> Result<(), UpdateError> {
    ctx.tell(Event::Phase(Phase::Swap));
    let (from, to, proven) = ctx.swap(lock).look()?;
    trial::begin(ctx, from, to, &proven)?;
    // Somebody, or the channel, wants it: whatever it did before.
    ctx.journal.let_go(proven.image)?;
    ctx.tell(Event::Phase(Phase::Idle));
    Ok(())
}

/// Before a swap without a download: the standby slot must be golden now, not only when it was staged.
async fn prove_again(ctx: &Context, proven: &Proven) -> Result<(), UpdateError> {
    let (slot, expected) = (ctx.standby()?, proven.image);
    match still_proven(ctx, slot).await? {
        Ok(()) => Ok(()),
        Err(got) => Err(SwapError::Unproven { slot, got, expected }.into()),
    }
}

/// Reads a slot that was proven in an earlier run once more: disks rot, and what is activated must be golden now. A record
/// that is no longer true is cleared, and what the slot reads as instead is told.
pub(crate) async fn still_proven(ctx: &Context, slot: SlotName) -> Result<Result<(), ImageId>, UpdateError> {
    ctx.tell(Event::Phase(Phase::Verify));
    let Some(proven) = ctx.proven(slot)? else { return Ok(Err(ImageId::of(b""))) };
    let got = match Source::open(slot, ctx.config.slots.path(slot)) {
        Ok(source) => hash_slot(ctx, &Arc::new(source), proven.size).await?.map_or(ImageId::of(b""), |(id, _)| id),
        // A file that somebody removed is made anew like one that rotted.
        Err(SlotError::Missing { .. }) => ImageId::of(b""),
        Err(error) => return Err(error.into()),
    };
    if got == proven.image {
        return Ok(Ok(()));
    }
    ctx.tell(Event::Note(format!("slot {slot} was proven to hold {} and no longer does", proven.release)));
    ctx.journal.set_empty(slot)?;
    Ok(Err(got))
}

/// The image id of a slot's first `size` bytes, and their regions' hashes; `None` if it has fewer.
async fn hash_slot(
    ctx: &Context,
    source: &Arc<Source>,
    size: u64,
) -> Result<Option<(ImageId, Vec<RegionHash>)>, UpdateError> {
    let Some(geometry) = Geometry::new(size).ok().filter(|_| source.len() >= size) else { return Ok(None) };
    let (threads, stop, source) = (ctx.config.limits.threads, ctx.stop.clone(), source.clone());
    let hash = move || {
        verify::hash_regions(threads, &stop, geometry, |at, bytes| Ok(source.read_medium(at, bytes)?)).map(Some)
    };
    let hashed = tokio::task::spawn_blocking(hash).await;
    Ok(hashed.map_err(|error| JobError::Worker(error.to_string()))??)
}

/// When a verb began, and what the connection had moved by then.
struct Begun {
    at: Instant,
    wire: Wire,
}

impl Begun {
    /// A connection made for this verb counts whole, its handshake included; a daemon's counts from here.
    fn now(ctx: &Context) -> Self {
        let at = Instant::now();
        let used = ctx.link.as_ref().filter(|link| link.was_asked());
        Self { at, wire: used.map_or(Wire::default(), |link| link.wire()) }
    }

    fn account(&self, ctx: &Context, path: &str, job: Option<&Job>) -> Account {
        let count = |pick: fn(&crate::stage::Tally) -> &std::sync::atomic::AtomicU64| {
            job.map_or(0, |job| pick(&job.stage.tally).load(Ordering::Relaxed))
        };
        let account = Account {
            path: path.to_owned(),
            written: count(|tally| &tally.written),
            skipped: count(|tally| &tally.skipped),
            repaired: count(|tally| &tally.repaired),
            derived: count(|tally| &tally.derived),
            ..Account::default()
        };
        self.finish(ctx, account)
    }

    fn finish(&self, ctx: &Context, account: Account) -> Account {
        let wire = ctx.link.as_ref().map_or(Wire::default(), |link| link.wire().since(self.wire));
        let elapsed_ms = self.at.elapsed().as_millis() as u64;
        Account { received: wire.received, sent: wire.sent, elapsed_ms, ..account }
    }
}

/// Brings the standby slot to `target`, proven. `None` if the active slot turns out to hold it already.
async fn stage(ctx: &Context, target: &Manifest, begun: &Begun) -> Result<Option<Account>, UpdateError> {
    ctx.tell(Event::Phase(Phase::Plan));
    let geometry = acceptable(target)?;
    let base = base(ctx, target).await?;
    if base.as_ref().is_some_and(|base| base.image == target.image) {
        return Ok(None);
    }
    let job = open_job(ctx, target, geometry, base)?;
    let path = watched(ctx, &job, make(ctx, &job)).await?;
    prove(ctx, &job, target).await?;
    Ok(Some(begun.account(ctx, path, Some(&job))))
}

/// Makes a standby copy of the active slot's own release, and with it fetches what drifted.
pub(crate) async fn stage_repair(ctx: &Context, target: &Manifest) -> Result<Account, UpdateError> {
    let begun = Begun::now(ctx);
    ctx.tell(Event::Phase(Phase::Repair));
    let geometry = acceptable(target)?;
    let base = base(ctx, target).await?;
    let job = open_job(ctx, target, geometry, base)?;
    let known = job.base.as_ref().is_some_and(|base| base.image == target.image && base.blocks.is_some());
    let work = async {
        if known {
            let steps = vec![Step::Copy { source: From::Active, from: 0, count: geometry.blocks() }];
            let (base, target) = (Some(target.image), target.image);
            let plan = Plan { base, target, geometry, steps, objects: vec![], packs: vec![], trees: vec![] };
            job.blocking(move |job| plan::make_local(job, &plan)).await
        } else {
            by_signature(ctx, &job).await.map(|_| ())
        }
    };
    watched(ctx, &job, work).await?;
    prove(ctx, &job, target).await?;
    Ok(begun.account(ctx, "repair", Some(&job)))
}

/// What the active slot holds: by its record, or found out by hashing it.
async fn base(ctx: &Context, target: &Manifest) -> Result<Option<Base>, UpdateError> {
    let Some(active) = ctx.activation.active()? else { return Ok(None) };
    if let Some(proven) = ctx.proven(active)? {
        // Hashes that are damaged are only lost: the base is then believed without them, and the proof decides.
        let blocks = ctx.journal.blocks(active, proven.image).unwrap_or(None).map(Hashes::Kept);
        return Ok(Some(Base { image: proven.image, blocks, regions: Vec::new() }));
    }
    let source = Arc::new(Source::open(active, ctx.config.slots.path(active))?);
    let found = hash_slot(ctx, &source, target.size).await?;
    if found.as_ref().is_some_and(|(image, _)| *image == target.image) {
        ctx.journal.set_proven_as(active, target)?;
        return Ok(Some(Base { image: target.image, blocks: None, regions: Vec::new() }));
    }
    // A file is as long as its image; of a device only its record could tell.
    let whole = source.kind() == crate::slot::Kind::File;
    let (hashed, found) = if whole && source.len() != target.size {
        (source.len(), hash_slot(ctx, &source, source.len()).await?)
    } else {
        (target.size, found)
    };
    let (image, regions) = found.unzip();
    let regions = regions.unwrap_or_default();
    let near = nearest(ctx, target, (source, hashed, regions.clone())).await?;
    let exactly = || image.filter(|_| whole).map(|image| Base { image, blocks: None, regions });
    Ok(near.or_else(exactly))
}

/// The release that a slot without a record came from, if its server knows one.
async fn nearest(
    ctx: &Context,
    target: &Manifest,
    (active, hashed, regions): (Arc<Source>, u64, Vec<RegionHash>),
) -> Result<Option<Base>, UpdateError> {
    let (target, wanted) = (target.image, acceptable(target)?);
    let (threads, stop, folder) = (ctx.config.limits.threads.max(1), ctx.stop.clone(), cache(ctx, wanted)?);
    let stranger = Stranger { active, hashed, regions, target, wanted, threads, stop, folder };
    Ok(plan::near::find(ctx.link()?.as_ref(), stranger).await?)
}

/// The folder for what one run needs beside the slots.
fn cache(ctx: &Context, geometry: Geometry) -> Result<PathBuf, StageError> {
    let cache = ctx.journal.state().join("cache");
    let made = std::fs::create_dir_all(&cache);
    made.map_err(|error| StageError::Scratch { blocks: geometry.blocks(), error })?;
    Ok(cache)
}

fn open_job(ctx: &Context, target: &Manifest, geometry: Geometry, base: Option<Base>) -> Result<Arc<Job>, UpdateError> {
    let name = ctx.standby()?;
    if let Some((Trial { release, slot, .. }, Standing::Running)) = trial::look(ctx)? {
        return Err(UpdateError::OnTrial { release, slot });
    }
    let active = ctx.activation.active()?.map(|slot| Source::open(slot, ctx.config.slots.path(slot))).transpose()?;
    let record = ctx.journal.slot(name)?;
    let at_once = ctx.activation.takes_effect() == Effect::AtOnce;
    if at_once {
        // What readers are just leaving is waited for; else it would count as in use.
        trial::call_off(ctx, name)?;
    }
    let standby = Standby::open(&Wanted {
        name,
        path: ctx.config.slots.path(name),
        image: geometry,
        limit: ctx.config.slots.size,
        active: active.as_ref(),
    })?;
    let cache = cache(ctx, geometry)?;
    if !at_once {
        // A boot loader must not start from what is half written. What waits for a restart is called off with it.
        trial::call_off(ctx, name)?;
    }
    ctx.journal.end_trial()?;
    // Durable before the first byte: from here on nobody may believe the slot.
    ctx.journal.set_staging(name, target.image, &target.release)?;
    let before = before(ctx, &record, &standby, active.as_ref(), target);
    let stage = Stage::new(standby, active, geometry, before, &cache)?;
    Ok(Arc::new(Job {
        stage,
        link: ctx.link()?,
        target: target.clone(),
        geometry,
        base,
        stop: ctx.stop.clone(),
        threads: ctx.config.limits.threads.max(1),
        scan_budget: ctx.config.limits.scan_budget,
        prefer: ctx.config.limits.prefer,
        ceiling: ceiling(ctx)?,
        cache,
    }))
}

/// The most bytes that an update may take over the link there is.
pub fn ceiling(ctx: &Context) -> Result<Option<Ceiling>, UpdateError> {
    if ctx.any_size || ctx.config.budget == Budget::default() {
        return Ok(None);
    }
    let interface = ctx.link()?.local_ip().and_then(budget::interface);
    Ok(Ceiling::of(&ctx.config.budget, interface.as_deref()))
}

/// What the standby slot begins with. A clone of the active slot, where it costs nothing: then only what changes is written.
/// Not over what an interrupted run staged.
fn before(ctx: &Context, record: &SlotRecord, standby: &Standby, active: Option<&Source>, target: &Manifest) -> Before {
    let resumes = matches!(record, SlotRecord::Staging(staging) if staging.image == target.image);
    if !resumes && active.is_some_and(|active| standby.clone_of(active)) {
        return Before::Cloned;
    }
    let proven = record.proven().and_then(|proven| ctx.journal.blocks(standby.name(), proven.image).unwrap_or(None));
    proven.map_or(Before::Unknown, Before::Proven)
}

/// Tells progress while `work` goes on.
async fn watched<T>(
    ctx: &Context,
    job: &Arc<Job>,
    work: impl Future<Output = Result<T, JobError>>,
) -> Result<T, UpdateError> {
    let start = job.link.wire();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done?),
            _ = ticks.tick() => {
                let done = (job.stage.tally.done() * BLOCK).min(job.target.size);
                let received = job.link.wire().since(start).received;
                job.afford(received, false)?;
                ctx.tell(Event::Progress(Progress { done, total: job.target.size, received }));
            }
            () = ctx.stop.cancelled() => return Err(JobError::Stopped.into()),
        }
    }
}

/// Stages the target by the best way there is; says which.
async fn make(ctx: &Context, job: &Arc<Job>) -> Result<&'static str, JobError> {
    if let Some(base) = job.base.as_ref().map(|base| base.image)
        && let Some(plan) = plan::from_server(job, Some(base)).await?
    {
        carry_out(ctx, job, plan).await?;
        return Ok("pack");
    }
    if (job.stage.active.is_some() || job.stage.has_own()) && by_signature(ctx, job).await? {
        return Ok("signature");
    }
    match plan::from_server(job, None).await? {
        Some(plan) => {
            carry_out(ctx, job, plan).await?;
            Ok("cold")
        }
        None => {
            ctx.tell(Event::Phase(Phase::Fetch));
            job.afford(job.geometry.size(), true)?;
            fetch::blocks(job, job.target.image, &[(0, job.geometry.blocks())], with_followers(vec![])).await?;
            Ok("blocks")
        }
    }
}

/// Local steps and packs at the same time: they write different blocks. What derives from those comes last.
async fn carry_out(ctx: &Context, job: &Arc<Job>, plan: Plan) -> Result<(), JobError> {
    ctx.tell(Event::Phase(Phase::Fetch));
    job.afford(wire_of(&plan), true)?;
    check_space(job, &plan)?;
    let plan = Arc::new(plan);
    let local = plan.clone();
    tokio::try_join!(job.blocking(move |job| plan::make_local(job, &local)), fetch::packs::run(job, &plan),)?;
    derive(job, plan.derived()).await
}

async fn derive(job: &Arc<Job>, derived: Vec<Derived>) -> Result<(), JobError> {
    job.stage.set_derived(derived);
    job.blocking(plan::derive::run).await
}

/// Plans by the signature and carries it out; `false` if next to nothing of the golden image is here, and a cold fetch is
/// better.
async fn by_signature(ctx: &Context, job: &Arc<Job>) -> Result<bool, JobError> {
    let own = plan::own::make(job).await?;
    let (fetched, blocks) = plan::fetched_share(&own.plan);
    ctx.tell(Event::Note(format!("{} of {blocks} blocks are here already", blocks - fetched)));
    if fetched * 10 > blocks * 9 {
        return Ok(false);
    }
    ctx.tell(Event::Phase(Phase::Fetch));
    job.afford(fetched * BLOCK, true)?;
    check_space(job, &own.plan)?;
    let plan::own::Own { plan, followers, mosaic } = own;
    let derived = plan.derived();
    // In this order: what the standby slot holds is a source until it is moved.
    job.blocking(move |job| plan::make_local(job, &plan)).await?;
    let put = with_followers(followers);
    let broken = mosaic.fetch(job, put.clone()).await?;
    if !broken.is_empty() {
        tracing::info!(blocks = broken.len(), "put together wrongly by a hash that was too short; fetching them whole");
    }
    fetch::blocks(job, job.target.image, &runs_of(broken), put).await?;
    derive(job, derived).await?;
    Ok(true)
}

/// Stages blocks, and with each the blocks that are equal to it.
fn with_followers(followers: Vec<(u32, u32)>) -> impl Fn(&Job, u32, &[u8]) -> Result<(), JobError> + Clone + Send {
    let followers = Arc::new(followers);
    move |job, first, bytes| {
        job.stage.put(first, bytes)?;
        for (leader, block) in (first..).zip(bytes.chunks_exact(BLOCK as usize)) {
            plan::own::followers_of(&followers, leader).try_for_each(|follower| job.stage.put(follower, block))?;
        }
        Ok(())
    }
}

fn check_space(job: &Job, plan: &Plan) -> Result<(), JobError> {
    let cloned = job.stage.cloned();
    let takes_room = |(first, step): &(u32, Step)| match step {
        Step::Zero { .. } => false,
        Step::Copy { source: From::Active, from, .. } => !cloned || from != first,
        _ => true,
    };
    let data = plan.placed().filter(takes_room).map(|(_, step)| byte_of(step.count())).sum();
    let standby = &job.stage.standby;
    // What a clone holds is shared: it is not room that could be written over.
    let checked = if cloned { standby.check_free(data) } else { standby.check_space(data) };
    Ok(checked.map_err(StageError::from)?)
}

/// Reads back, mends, and makes the proof durable.
async fn prove(ctx: &Context, job: &Arc<Job>, target: &Manifest) -> Result<(), UpdateError> {
    ctx.tell(Event::Phase(Phase::Verify));
    watched(ctx, job, verify::prove(job)).await?;
    job.blocking(verify::learn_rest).await?;
    let slot = job.stage.standby.name();
    let mut blocks = ctx.journal.write_blocks(slot, target.image)?;
    let all: Vec<u32> = (0..job.geometry.blocks()).collect();
    for part in all.chunks(4096) {
        let hashes: Vec<u64> = part.iter().map(|block| job.stage.golden.get(*block)).collect();
        blocks.push(&hashes)?;
    }
    blocks.finish()?;
    ctx.journal.set_proven_as(slot, target)?;
    // Sections were kept for an interrupted run only.
    let _ = std::fs::remove_dir_all(&job.cache);
    ctx.tell(Event::Phase(Phase::Staged));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("0.10.0") > numbers("0.9.9"));
        assert!(numbers("1.0") > numbers("0.99"));
        assert_eq!(numbers("1.2.3-rc1"), numbers("1.2.3"));
    }
}
