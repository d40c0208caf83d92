//! What each verb does with the engine, and what it says about it.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::CommandFactory;
use goldsync_proto::digest::ImageId;
use goldsync_proto::release::ReleaseRef;
use goldsync_proto::wire::{Account, Hello, Outcome, Wait};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::args::{Args, Enrol, Fetching};
use super::failure::{DRIFT, Failure};
use super::ui::{self, Ui};
use crate::boot::{Effect, Mount, Started};
use crate::config::{Backend, Config, How, Where};
use crate::daemon::remember;
use crate::drift;
use crate::enrol::enrol;
use crate::explain;
use crate::journal::Proven;
use crate::link::{Link, Wire};
use crate::node::Node;
use crate::slot::SlotName;
use crate::status::{self, Status};
use crate::trial::{self, Settled, Standing};
use crate::update::{self, Check, Context, Forecast, UpdateError, Verdict};

/// How long a server may take to note how a one-shot verb left this node.
const FAREWELL: Duration = Duration::from_secs(3);

/// A verb at work.
pub struct Work {
    /// The node.
    pub node: Node,
    /// How to talk.
    pub ui: Ui,
    /// Set when it shall stop.
    pub stop: CancellationToken,
}

#[derive(Serialize)]
struct Checked {
    verdict: Verdict,
    channel: String,
    release: ReleaseRef,
    image: ImageId,
    size: u64,
    active: Option<SlotName>,
    running: Option<ReleaseRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forecast: Option<Forecast>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Account>,
}

#[derive(Serialize)]
struct Swapped {
    active: Option<SlotName>,
    release: ReleaseRef,
    image: ImageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<Wait>,
}

#[derive(Serialize)]
struct Synced {
    #[serde(flatten)]
    outcome: Outcome,
    active: Option<SlotName>,
    release: Option<ReleaseRef>,
    image: Option<ImageId>,
    /// Everything that the connection moved, from handshake to farewell.
    wire: Wire,
    /// What of it the handshake took.
    handshake: Wire,
}

impl Work {
    /// Opens the node.
    pub fn open(place: &Where, ui: Ui, stop: CancellationToken) -> Result<Self, Failure> {
        Ok(Self { node: Node::new(Config::load(place)?)?, ui, stop })
    }

    /// `enroll`
    pub async fn enrol(&self, args: Enrol) -> Result<(), Failure> {
        let token = if args.token == "-" { read_token()? } else { args.token };
        let server = args.server.map_or_else(|| self.node.server(), Ok)?;
        let name = enrol(&self.node, &server, &token, args.name, args.force).await?;
        let value = serde_json::json!({ "node": name, "server": server.to_string() });
        self.ui.result(&value, || {
            format!("this machine is the node {name} of {server}; `goldsync-agent sync` brings it its image")
        });
        Ok(())
    }

    /// `check`
    pub async fn check(&self, forecast: bool) -> Result<(), Failure> {
        let (mut ctx, link) = self.online().await?;
        let check = update::check(&mut ctx).await?;
        let mut checked = self.checked(&check, None)?;
        if forecast {
            checked.forecast = update::forecast(&ctx, &check).await?;
        }
        link.close().await;
        self.ui.result(&checked, || expected(&checked, forecast));
        Ok(())
    }

    /// `download`, `install`
    pub async fn download(&self, release: Option<ReleaseRef>, args: Fetching) -> Result<(), Failure> {
        let (mut ctx, link) = self.online().await?;
        ctx.any_size = args.any_size;
        let done = match &release {
            Some(release) => update::install(&mut ctx, release).await,
            None => update::download(&mut ctx).await,
        };
        let (check, account) = self.told(done, &link).await?;
        if account.is_some() {
            self.farewell(&link).await;
        }
        link.close().await;
        let checked = self.checked(&check, account)?;
        self.ui.result(&checked, || downloaded(&checked));
        Ok(())
    }

    /// `activate`
    pub async fn activate(&self, restart: bool) -> Result<(), Failure> {
        let mut ctx = self.node.context(None, self.ui.events(), self.stop.clone())?;
        let done = self.noted(update::activate(&mut ctx).await)?;
        self.swapped(&ctx, done).await?;
        self.restart_if(restart, &ctx)
    }

    /// `rollback`
    pub async fn rollback(&self, restart: bool) -> Result<(), Failure> {
        let mut ctx = self.node.context(None, self.ui.events(), self.stop.clone())?;
        let done = update::rollback(&mut ctx).await?;
        self.swapped(&ctx, done).await?;
        self.restart_if(restart, &ctx)
    }

    /// `confirm`
    pub async fn confirm(&self, force: bool) -> Result<(), Failure> {
        let ctx = self.node.context(None, self.ui.events(), self.stop.clone())?;
        let settled = match (force, trial::look(&ctx)?) {
            (true, Some((trial, Standing::Running))) => trial::confirm(&ctx, trial)?,
            _ => self.noted(update::settled(&ctx).await)?,
        };
        let (state, release) = match &settled {
            Settled::Confirmed(trial) => ("confirmed", Some(&trial.release)),
            Settled::Waits(trial) => ("waits for a restart", Some(&trial.release)),
            _ => ("nothing on trial", None),
        };
        self.ui.result(&serde_json::json!({ "state": state, "release": release }), || match release {
            Some(release) => format!("{release}: {state}"),
            None => state.to_owned(),
        });
        if matches!(settled, Settled::Confirmed(_)) {
            remember(&self.node, &update::confirmed())?;
            self.tell_of_it().await;
        }
        Ok(())
    }

    /// The end of `activate` and `rollback`. The record is what a daemon beside us watches: it tells the server.
    async fn swapped(&self, ctx: &Context, (proven, outcome): (Proven, Outcome)) -> Result<(), Failure> {
        remember(&self.node, &outcome)?;
        let active = ctx.activation.active()?;
        let Proven { release, image, .. } = proven;
        let wait = match outcome {
            Outcome::Waits { wait, .. } => Some(wait),
            _ => None,
        };
        let swapped = Swapped { active, release, image, wait };
        self.ui.result(&swapped, || {
            let Swapped { release, image, wait, .. } = &swapped;
            let says = match wait {
                Some(wait) => format!("{release} is activated; {}", wait.why),
                None => format!("{release} is active now, in slot {}", active.map_or("?", SlotName::as_str)),
            };
            format!("{says}\n  image     {image}")
        });
        self.tell_of_it().await;
        Ok(())
    }

    /// `mount`
    pub fn mount(&self) -> Result<(), Failure> {
        let Node { config, journal } = &self.node;
        let (Backend::Mount { target, .. }, Some(mount)) = (&config.activation.backend, Mount::configured(config))
        else {
            let message = "nothing to mount: `activation.backend` is not \"mount\"; disable goldsync-mount.service";
            return Err(Failure::new(2, message));
        };
        let started = mount.at_start(&journal.lock()?)?;
        if let Started::Mounted(_, Some(why)) = &started {
            self.ui.note(&format!("not the slot that was chosen: {why}"));
        }
        let (slot, new) = match &started {
            Started::Nothing => (None, false),
            Started::Already(slot) => (Some(*slot), false),
            Started::Mounted(slot, _) => (Some(*slot), true),
        };
        let value = serde_json::json!({ "mounted": slot, "target": target, "new": new });
        self.ui.result(&value, || match slot {
            None => "no slot was ever activated, so none is mounted".to_owned(),
            Some(slot) => {
                format!("slot {slot} is mounted on {}{}", target.display(), if new { "" } else { " already" })
            }
        });
        Ok(())
    }

    /// `--restart`: starts the machine again if what was activated waits for that.
    fn restart_if(&self, wanted: bool, ctx: &Context) -> Result<(), Failure> {
        if !wanted || ctx.activation.takes_effect() == Effect::AtOnce {
            return Ok(());
        }
        let how = match &self.node.config.restart.how {
            How::None => &How::Reboot,
            how => how,
        };
        Ok(ctx.restart(how)?)
    }

    /// Lets the fleet's roster know of a swap that needed no server. The swap is done and said: whatever comes of this, and
    /// however it is interrupted, the verb has succeeded.
    async fn tell_of_it(&self) {
        let tell = async {
            let link = self.node.connect().await.map_err(|error| error.to_string())?;
            self.farewell(&link).await;
            link.close().await;
            Ok::<_, String>(())
        };
        let told = tokio::select! {
            told = tokio::time::timeout(FAREWELL, tell) => told.unwrap_or_else(|_| Err("no answer in time".to_owned())),
            () = self.stop.cancelled() => return,
        };
        if let Err(why) = told {
            self.ui
                .note(&format!("the server does not know of it yet ({why}); it will when this node next speaks to it"));
        }
    }

    /// `sync`
    pub async fn sync(&self, args: Fetching, restart: bool) -> Result<(), Failure> {
        let (mut ctx, link) = self.online().await?;
        ctx.any_size = args.any_size;
        let outcome = self.told(update::sync(&mut ctx).await, &link).await?;
        self.over(&ctx, &link, outcome, "runs already; nothing was fetched and nothing written").await?;
        self.restart_if(restart, &ctx)
    }

    /// `repair`
    pub async fn repair(&self) -> Result<(), Failure> {
        let (mut ctx, link) = self.online().await?;
        let outcome = self.told(drift::repair(&mut ctx).await, &link).await?;
        self.over(&ctx, &link, outcome, "has not drifted; nothing to repair").await
    }

    /// `verify`
    pub async fn verify(&self) -> Result<(), Failure> {
        let mut ctx = self.node.context(None, self.ui.events(), self.stop.clone())?;
        let report = match drift::verify(&mut ctx).await {
            // Only the server can tell where it drifted.
            Err(UpdateError::NoLink) => {
                let (mut ctx, link) = self.online().await?;
                let report = drift::verify(&mut ctx).await;
                link.close().await;
                report
            }
            other => other,
        }?;
        let (slot, release) = (report.slot, &report.release);
        self.ui.result(&report, || match report.drifted {
            0 if report.found == report.image => format!("slot {slot} is {release}, to the last byte\n  image     {}", report.image),
            drifted => {
                let runs: Vec<_> = report.runs.iter().take(20).map(|(first, count)| format!("{first}+{count}")).collect();
                let more = if report.runs.len() > runs.len() { ", …" } else { "" };
                format!(
                    "slot {slot} has drifted from {release}: {drifted} of {} blocks; `goldsync-agent repair` cures it\n  \
                     found     {}\n  expected  {}\n  blocks    {}{more} (first+count)",
                    report.blocks, report.found, report.image, runs.join(", ")
                )
            }
        });
        if report.found == report.image { Ok(()) } else { Err(Failure::new(DRIFT, "")) }
    }

    /// `status`
    pub fn status(&self) -> Result<(), Failure> {
        let status = Status::gather(&self.node.config, &self.node.journal)?;
        self.ui.result(&status, || status.to_string());
        Ok(())
    }

    /// `explain`
    pub async fn explain(&self, offline: bool) -> Result<(), Failure> {
        let quiet: crate::update::Events = Arc::new(|_| {});
        let mut ctx = self.node.context(None, quiet, self.stop.clone())?;
        let link = match offline {
            true => Err("not asked".to_owned()),
            false => tokio::select! {
                connected = self.node.connect() => connected.map(Arc::new).map_err(|error| error.to_string()),
                () = self.stop.cancelled() => return Err(UpdateError::from(crate::job::JobError::Stopped).into()),
            },
        };
        let facts = explain::gather(&self.node, &mut ctx, link.clone()).await;
        if let Ok(link) = link {
            link.close().await;
        }
        let walk = explain::walk(&facts);
        self.ui.result(&walk, || walk.to_string());
        Ok(())
    }

    /// A connection, and a context that uses it.
    async fn online(&self) -> Result<(Context, Arc<Link>), Failure> {
        let connected = tokio::select! {
            connected = self.node.connect() => connected?,
            () = self.stop.cancelled() => return Err(UpdateError::from(crate::job::JobError::Stopped).into()),
        };
        let link = Arc::new(connected);
        // A node without a daemon renews its certificate when somebody calls. One that cannot be renewed now is good for
        // another third of its life.
        match self.node.renew_if_due(&link).await {
            Ok(true) => tracing::info!("the certificate was renewed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the certificate could not be renewed"),
        }
        Ok((self.node.context(Some(link.clone()), self.ui.events(), self.stop.clone())?, link))
    }

    /// Remembers a failure, for `status` and the fleet's roster; being busy or interrupted is none.
    fn noted<T>(&self, done: Result<T, UpdateError>) -> Result<T, Failure> {
        done.map_err(|error| {
            let failure = Failure::from(error);
            if is_failure(&failure) {
                let outcome = Outcome::Failed { error: failure.message.clone() };
                if let Err(error) = remember(&self.node, &outcome) {
                    tracing::error!(%error, "the outcome could not be recorded");
                }
            }
            failure
        })
    }

    /// The same for a verb that talks to the server, which is told at once.
    async fn told<T>(&self, done: Result<T, UpdateError>, link: &Link) -> Result<T, Failure> {
        let noted = self.noted(done);
        if noted.as_ref().is_err_and(is_failure) {
            self.farewell(link).await;
            link.close().await;
        }
        noted
    }

    /// The end of `sync` and `repair`.
    async fn over(&self, ctx: &Context, link: &Link, outcome: Outcome, nothing: &str) -> Result<(), Failure> {
        remember(&self.node, &outcome)?;
        if !matches!(outcome, Outcome::UpToDate) {
            self.farewell(link).await;
        }
        link.close().await;
        let active = ctx.activation.active()?;
        let proven = active.map(|slot| ctx.proven(slot)).transpose()?.flatten();
        let size = proven.as_ref().map(|proven| proven.size);
        let (release, image) = (proven.as_ref().map(|p| p.release.clone()), proven.as_ref().map(|p| p.image));
        let next = self.node.journal.trial()?.map(|trial| trial.release.to_string());
        let synced = Synced { outcome, active, release, image, wire: link.wire(), handshake: link.handshake() };
        self.ui.result(&synced, || {
            let name = synced.release.as_ref().map_or_else(|| "the channel's release".to_owned(), ToString::to_string);
            let slot = active.map_or("?", SlotName::as_str);
            let image = image.map(|image| format!("\n  image     {image}")).unwrap_or_default();
            match &synced.outcome {
                Outcome::Updated { account } => {
                    format!("{name} runs now, in slot {slot}{image}\n{}", ui::account(account, size))
                }
                Outcome::Waits { account, wait } => {
                    format!(
                        "{} is activated; {}\n{}",
                        next.as_deref().unwrap_or("it"),
                        wait.why,
                        ui::account(account, None)
                    )
                }
                _ => format!("{name} {nothing}{image}"),
            }
        });
        Ok(())
    }

    fn checked(&self, check: &Check, account: Option<Account>) -> Result<Checked, Failure> {
        let target = &check.target;
        Ok(Checked {
            verdict: check.verdict,
            channel: self.node.config.channel.to_string(),
            release: target.release.clone(),
            image: target.image,
            size: target.size,
            active: check.active,
            running: check.running.as_ref().map(|running| running.release.clone()),
            held: self.node.journal.held_back(target.image)?.map(|held| held.why),
            forecast: None,
            account,
        })
    }

    /// Tells the server how this verb left the node. It is for the roster only, so that failing is no failure.
    async fn farewell(&self, link: &Link) {
        let Node { config, journal } = &self.node;
        let Ok(report) = status::report(config, journal) else { return };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (channel, labels) = (config.channel.clone(), config.labels.clone());
        let hello = Hello { version, channel, labels, daemon: false, report };
        match tokio::time::timeout(FAREWELL, link.control(hello)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%error, "the server could not be told"),
            Err(_) => tracing::info!("the server could not be told in time"),
        }
    }
}

/// Being busy or interrupted is none.
fn is_failure(failure: &Failure) -> bool {
    ![75, super::failure::INTERRUPTED].contains(&failure.code)
}

fn expected(checked: &Checked, forecast: bool) -> String {
    let Checked { release, channel, .. } = checked;
    let running = checked.running.as_ref().map_or_else(|| "nothing that is known".to_owned(), ToString::to_string);
    let say = match (checked.verdict, &checked.running) {
        (Verdict::UpToDate, _) => format!("{release}, the release of {channel}, runs already"),
        (Verdict::Activated, _) => {
            format!("{channel} is at {release}, which is activated; the next start of the machine runs it")
        }
        (Verdict::Staged, _) => {
            format!("{channel} is at {release}, which is staged and proven; `goldsync-agent sync` switches to it")
        }
        (_, Some(running)) => {
            format!("{channel} is at {release}; {running} runs; `goldsync-agent sync` would move by their difference")
        }
        (_, None) => format!("{channel} is at {release}; {running} runs; `goldsync-agent sync` would install it"),
    };
    let cost = match (&checked.forecast, checked.verdict) {
        (Some(Forecast { path, received, fetched }), _) => {
            format!("\n  forecast  at most {received} bytes, {fetched} blocks, by {path}")
        }
        (None, Verdict::Update) if forecast => {
            "\n  forecast  not known yet; ask again, or let sync find out".to_owned()
        }
        _ => String::new(),
    };
    let held = checked
        .held
        .as_ref()
        .map(|why| format!("\n  held      {why}; the daemon leaves it alone until the channel moves on"));
    let held = held.unwrap_or_default();
    format!("{say}\n  image     {}\n  size      {} bytes{cost}{held}", checked.image, checked.size)
}

fn downloaded(checked: &Checked) -> String {
    let release = &checked.release;
    let image = checked.image;
    match (&checked.account, checked.verdict) {
        (Some(account), _) => format!(
            "{release} is staged and proven; `goldsync-agent activate` switches to it\n  image     {image}\n{}",
            ui::account(account, Some(checked.size))
        ),
        (None, Verdict::Activated) => format!("{release} is activated; the next start of the machine runs it"),
        (None, Verdict::Staged) => {
            format!("{release} is staged and proven already; `goldsync-agent activate` switches to it")
        }
        (None, _) => format!("{release} runs already; nothing was fetched and nothing written"),
    }
}

fn read_token() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(4096).read_to_string(&mut text);
    read.map_err(|error| Failure::new(2, format!("the token cannot be read from standard input: {error}")))?;
    Ok(text.trim().to_owned())
}

/// `completions`
pub fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "goldsync-agent", &mut script);
    ui::print(&script);
}

/// `man`
pub fn man(out: Option<&Path>) -> Result<(), Failure> {
    let made = match out {
        Some(folder) => {
            std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Args::command(), folder))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Args::command()).render(&mut page).inspect(|()| ui::print(&page))
        }
    };
    made.map_err(|error| Failure::new(1, format!("the man pages cannot be written: {error}")))
}
