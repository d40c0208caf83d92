//! Doing what a trial's standing asks for: wait, confirm, go back.

use chrono::Utc;
use goldsync_proto::release::ReleaseRef;
use goldsync_proto::wire::Phase;

use super::{Standing, standing};
use crate::boot::{self, Effect, Holds, Look};
use crate::health::{self, Verdict};
use crate::job::JobError;
use crate::journal::{Proven, Trial};
use crate::node::Node;
use crate::slot::SlotName;
use crate::update::{Context, Event, UpdateError, still_proven};

/// What became of a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// There was none, or it was never begun.
    None,
    /// It waits for a restart.
    Waits(Trial),
    /// It has shown itself good and is kept.
    Confirmed(Trial),
    /// It failed; what was left, and why. The release is held.
    Back {
        /// What failed.
        left: ReleaseRef,
        /// What was wrong, and what was done about it.
        why: String,
    },
}

/// Makes `proven`, in slot `to`, the active slot, on trial where there is something to try: a boot loader that counts, or
/// health that is asked for. The caller holds the lock.
pub fn begin(ctx: &Context, from: Option<SlotName>, to: SlotName, proven: &Proven) -> Result<(), UpdateError> {
    let effect = ctx.activation.takes_effect();
    if effect == Effect::AtOnce && !ctx.config.health.asks() {
        ctx.activation.activate(to, &Holds::of(proven), 0)?;
        return Ok(());
    }
    let activation = &ctx.config.activation;
    let tries = if ctx.activation.counts() { activation.tries } else { 0 };
    let (image, release, run) = (proven.image, proven.release.clone(), boot::run(&activation.cmdline));
    let trial = Trial { slot: to, image, release, from, since: Utc::now(), run, tries, armed: false };
    ctx.journal.set_trial(&trial)?;
    ctx.activation.activate(to, &Holds::of(proven), tries)?;
    ctx.journal.set_trial(&Trial { armed: true, ..trial })?;
    Ok(())
}

/// Takes a slot away from what starts, before it is written or given up. A trial of it, which [`Journal::end_trial`] has to end then,
/// says nothing against its release any more.
///
/// [`Journal::end_trial`]: crate::journal::Journal::end_trial
pub fn call_off(ctx: &Context, slot: SlotName) -> Result<(), UpdateError> {
    ctx.journal.disarm_trial()?;
    Ok(ctx.activation.retire(slot)?)
}

/// The trial that is on, and how it stands.
pub fn look(ctx: &Context) -> Result<Option<(Trial, Standing)>, UpdateError> {
    let Some(trial) = ctx.journal.trial()? else { return Ok(None) };
    let run = boot::run(&ctx.config.activation.cmdline);
    let armed = trial.armed && ctx.activation.knows(trial.slot)?;
    let seen = Trial { armed, ..trial.clone() };
    let stands = standing(&seen, &ctx.activation.look()?, &run, ctx.activation.takes_effect());
    Ok(Some((trial, stands)))
}

/// Brings a trial to its end, as far as it can be now: waits for health up to its deadline. The caller does not hold the lock.
pub async fn settle(ctx: &Context) -> Result<Settled, UpdateError> {
    let Some((trial, stands)) = look(ctx)? else { return Ok(Settled::None) };
    match stands {
        Standing::Waits => Ok(Settled::Waits(trial)),
        Standing::NotTaken => {
            end(ctx, &trial, || keep_what_runs(ctx))?;
            Ok(Settled::None)
        }
        Standing::FellBack => fell_back(ctx, trial),
        Standing::Running => {
            ctx.tell(Event::Phase(Phase::Trial));
            let node = Node { config: ctx.config.clone(), journal: ctx.journal.clone() };
            match health::watch(&node, &ctx.stop).await {
                Verdict::Healthy => confirm(ctx, trial),
                Verdict::Unhealthy(why) => go_back(ctx, trial, why).await,
                Verdict::Stopped => Err(JobError::Stopped.into()),
            }
        }
    }
}

/// Keeps what is on trial.
pub fn confirm(ctx: &Context, trial: Trial) -> Result<Settled, UpdateError> {
    let confirmed = end(ctx, &trial, || Ok(ctx.activation.confirm(trial.slot)?))?;
    Ok(if confirmed { Settled::Confirmed(trial) } else { Settled::None })
}

/// Ends a trial after `last` was done. `false` if another run has ended it meanwhile: then nothing is done.
fn end(ctx: &Context, trial: &Trial, last: impl FnOnce() -> Result<(), UpdateError>) -> Result<bool, UpdateError> {
    let _lock = ctx.journal.lock()?;
    if ctx.journal.trial()?.as_ref() != Some(trial) {
        return Ok(false);
    }
    last()?;
    ctx.journal.end_trial()?;
    Ok(true)
}

/// What runs, and comes next, shall last before the record goes: it may be the work of a run that was killed before it synced. Nor shall
/// it be counted, which a boot loader does with what it went back to by itself.
fn keep_what_runs(ctx: &Context) -> Result<(), UpdateError> {
    match ctx.activation.look()? {
        Look { active: Some(active), next, .. } if next == Some(active) => Ok(ctx.activation.confirm(active)?),
        _ => Ok(()),
    }
}

/// The boot loader went back by itself; it is told that what runs now is good, as it was before.
fn fell_back(ctx: &Context, trial: Trial) -> Result<Settled, UpdateError> {
    let starts = if trial.tries == 1 { "its one start".to_owned() } else { format!("all {} starts", trial.tries) };
    let why = format!("it did not come up: {starts} came to nothing, and the boot loader went back");
    let ended = end(ctx, &trial, || {
        ctx.journal.hold(trial.image, &trial.release, &why)?;
        ctx.activation.look()?.active.map_or(Ok(()), |active| Ok(ctx.activation.confirm(active)?))
    })?;
    Ok(if ended { Settled::Back { left: trial.release, why } } else { Settled::None })
}

async fn go_back(ctx: &Context, trial: Trial, why: String) -> Result<Settled, UpdateError> {
    let previous = match trial.from {
        Some(from) => still_proven(ctx, from).await?.ok().and(ctx.proven(from)?).map(|proven| (from, proven)),
        None => None,
    };
    let done = match &previous {
        Some((_, proven)) => format!("{why}; went back to {}", proven.release),
        // What runs is the only thing that is known to start at all: a boot loader shall not give it up for something worse.
        None => format!("{why}; there is nothing proven to go back to, so it is kept"),
    };
    let ended = end(ctx, &trial, || {
        ctx.journal.hold(trial.image, &trial.release, &done)?;
        // From here on the release is not held for not coming up, but for what was wrong.
        ctx.journal.disarm_trial()?;
        match &previous {
            Some((from, proven)) => Ok(ctx.activation.activate(*from, &Holds::of(proven), 0)?),
            None => Ok(ctx.activation.confirm(trial.slot)?),
        }
    })?;
    if !ended {
        return Ok(Settled::None);
    }
    // Nobody waits for a window with a machine that is not healthy.
    if previous.is_some()
        && ctx.activation.takes_effect() == Effect::AtRestart
        && let Err(error) = ctx.restart(&ctx.config.restart.how)
    {
        tracing::error!(%error, "the way back waits for the next start");
    }
    Ok(Settled::Back { left: trial.release, why: done })
}
