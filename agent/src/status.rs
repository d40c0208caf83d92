//! `goldsync-agent status`: what this node is, from its own records. Asks no server, takes no lock, changes nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use chrono::SecondsFormat;
use goldsync_proto::release::Word;
use goldsync_proto::wire::{Held, Outcome, Phase, Report, SlotReport, TrialReport};
use serde::Serialize;

use crate::boot::{self, ActivationError, Look};
use crate::config::Config;
use crate::journal::{Drift, Journal, JournalError, Last, SlotRecord};
use crate::slot::{Identity, SlotName};

/// How a node is.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The agent's version.
    pub version: &'static str,
    /// The channel that it follows.
    pub channel: Word,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The active slot; `None` before the first activation.
    pub active: Option<SlotName>,
    /// Why the active slot cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_error: Option<String>,
    /// Both slots.
    pub slots: Vec<SlotStatus>,
    /// The slot on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialReport>,
    /// Releases that are not gone to again unasked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
    /// How the last update ended.
    pub last: Option<Last>,
    /// What the last look at the active slot found, if it was at what is active now.
    pub drift: Option<Drift>,
    /// The process that is at work now.
    pub working: Option<u32>,
}

/// How a slot is.
#[derive(Clone, Debug, Serialize)]
pub struct SlotStatus {
    /// `a` or `b`.
    pub slot: SlotName,
    /// As configured.
    pub path: PathBuf,
    /// Whether there is a file or device now.
    pub present: bool,
    /// What it holds, by the node's own proof.
    #[serde(flatten)]
    pub record: SlotRecord,
}

impl Status {
    /// Gathers it.
    pub fn gather(config: &Config, journal: &Journal) -> Result<Self, JournalError> {
        let (look, activation_error) = match boot::open(config).look() {
            Ok(look) => (look, None),
            Err(error) => (Look::default(), Some(error.to_string())),
        };
        let active = look.active;
        let slot = |slot: SlotName| -> Result<SlotStatus, JournalError> {
            let path = config.slots.path(slot).to_owned();
            Ok(SlotStatus { slot, present: Identity::of(&path).is_ok(), path, record: journal.slot(slot)? })
        };
        let slots = vec![slot(SlotName::A)?, slot(SlotName::B)?];
        let image =
            active.and_then(|name| slots.iter().find(|slot| slot.slot == name)?.record.proven().map(|p| p.image));
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            channel: config.channel.clone(),
            labels: config.labels.clone(),
            active,
            activation_error,
            slots,
            trial: on_trial(journal, &look)?,
            held: journal.held()?,
            last: journal.last()?,
            drift: journal.drift()?.filter(|drift| Some(drift.image) == image),
            working: journal.holder(),
        })
    }

    fn slot(&self, name: SlotName) -> Option<&SlotStatus> {
        self.slots.iter().find(|slot| slot.slot == name)
    }
}

/// What the server is told: both slots, the last error, drift. `phase` and progress are the caller's.
pub fn report(config: &Config, journal: &Journal) -> Result<Report, ReportError> {
    let look = boot::open(config).look()?;
    let active = look.active;
    let standby = active.unwrap_or(SlotName::A).other();
    let slot = |name: SlotName| -> Result<Option<SlotReport>, ReportError> {
        let record = journal.slot(name)?;
        let proven = record.proven();
        let Ok(slot) = name.as_str().parse() else { return Ok(None) };
        Ok(Some(SlotReport { slot, image: proven.map(|p| p.image), release: proven.map(|p| p.release.clone()) }))
    };
    let active_report = active.map(slot).transpose()?.flatten();
    let image = active_report.as_ref().and_then(|slot| slot.image);
    let (error, wait) = match journal.last()?.map(|last| last.outcome) {
        Some(Outcome::Failed { error }) => (Some(error), None),
        Some(Outcome::Waits { wait, .. }) => (None, Some(wait)),
        _ => (None, None),
    };
    let trial = on_trial(journal, &look)?;
    let phase = match (&error, &trial) {
        (Some(_), _) => Phase::Failed,
        (None, Some(TrialReport { running: true, .. })) => Phase::Trial,
        (None, None) if wait.is_some() => Phase::Staged,
        _ => Phase::Idle,
    };
    Ok(Report {
        standby: slot(standby)?,
        phase,
        trial,
        wait,
        held: journal.held()?,
        progress: None,
        error,
        drifted: journal.drift()?.filter(|drift| Some(drift.image) == image).map(|drift| drift.drifted),
        active: active_report,
    })
}

/// The trial, as it is told.
fn on_trial(journal: &Journal, look: &Look) -> Result<Option<TrialReport>, JournalError> {
    let Some(trial) = journal.trial()? else { return Ok(None) };
    let Ok(slot) = trial.slot.as_str().parse() else { return Ok(None) };
    let running = look.active == Some(trial.slot);
    let tries = look.tries.filter(|_| look.next == Some(trial.slot));
    let since = trial.since.to_rfc3339_opts(SecondsFormat::Secs, true);
    Ok(Some(TrialReport { slot, release: trial.release, since, running, tries }))
}

/// Why a report cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The state folder.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The activation back-end.
    #[error(transparent)]
    Activation(#[from] ActivationError),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "channel  {}", self.channel)?;
        if !self.labels.is_empty() {
            let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            writeln!(f, "labels   {}", labels.join(" "))?;
        }
        for name in SlotName::ALL {
            let role = match self.active {
                Some(active) if active == name => "active",
                Some(_) => "standby",
                None => "not active",
            };
            if let Some(slot) = self.slot(name) {
                writeln!(f, "slot {name}   {role:<10} {}", describe(slot))?;
            }
        }
        match (&self.activation_error, self.active) {
            (Some(error), _) => writeln!(f, "active   cannot be told: {error}")?,
            (None, None) => writeln!(f, "active   none yet; `goldsync-agent sync` installs the channel's release")?,
            _ => {}
        }
        match &self.drift {
            Some(Drift { at, drifted: 0, .. }) => writeln!(f, "drift    none, as of {}", time(at))?,
            Some(Drift { at, drifted, .. }) => {
                writeln!(f, "drift    {drifted} blocks, as of {}; `goldsync-agent repair` cures it", time(at))?;
            }
            None => writeln!(f, "drift    not looked for yet; `goldsync-agent verify` looks")?,
        }
        if let Some(trial) = &self.trial {
            let tries = trial.tries.map(|tries| format!(", {tries} tries left")).unwrap_or_default();
            let state = if trial.running { "has to show itself good" } else { "waits for a restart" };
            writeln!(f, "trial    {} in slot {} {state}{tries}, since {}", trial.release, trial.slot, trial.since)?;
        }
        for held in &self.held {
            writeln!(f, "held     {} since {}: {}", held.release, held.since, held.why)?;
        }
        match &self.last {
            Some(last) => writeln!(f, "last     {} {}", time(&last.at), outcome(last))?,
            None => writeln!(f, "last     no update yet")?,
        }
        match self.working {
            Some(process) => write!(f, "now      process {process} is at work"),
            None => write!(f, "now      idle"),
        }
    }
}

/// A phase in words; `None` when nothing goes on.
pub fn words(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Check => Some("asking for news"),
        Phase::Plan => Some("looking what is here"),
        Phase::Fetch => Some("fetching and staging"),
        Phase::Verify => Some("reading back"),
        Phase::Swap => Some("switching"),
        Phase::Trial => Some("looking whether it is healthy"),
        Phase::Repair => Some("looking for drift"),
        _ => None,
    }
}

fn describe(slot: &SlotStatus) -> String {
    let path = slot.path.display();
    match &slot.record {
        _ if !slot.present => format!("{path}: nothing there"),
        SlotRecord::Empty => format!("{path}: nothing is known of it"),
        SlotRecord::Staging(staging) => {
            format!("{path}: being written since {}: {} {}", time(&staging.since), staging.release, staging.image)
        }
        SlotRecord::Proven(proven) => {
            format!("{path}: {} {} ({} bytes, proven {})", proven.release, proven.image, proven.size, time(&proven.at))
        }
    }
}

fn outcome(last: &Last) -> String {
    let release = last.release.as_ref().map(|release| format!(" {release}")).unwrap_or_default();
    match &last.outcome {
        Outcome::UpToDate => format!("up to date:{release}"),
        Outcome::Updated { account } if account.received == 0 => format!("went to{release} by {}", account.path),
        Outcome::Updated { account } => format!(
            "updated to{release} by {}: {} bytes received, {} blocks written, {} skipped",
            account.path, account.received, account.written, account.skipped
        ),
        Outcome::Waits { wait, .. } => format!("staged{release}, and waits: {}", wait.why),
        Outcome::Failed { error } => format!("failed{release}: {error}"),
        other => format!("{other:?}"),
    }
}

fn time(at: &chrono::DateTime<chrono::Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Node;
    use crate::node::testing::node;
    use goldsync_proto::digest::ImageId;

    #[test]
    fn a_new_node_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let Node { config, journal } = node(folder.path());
        let status = Status::gather(&config, &journal).unwrap();
        let text = status.to_string();
        assert!(text.contains("active   none yet") && text.contains("no update yet"), "{text}");
        let report = report(&config, &journal).unwrap();
        assert_eq!((report.active, report.phase), (None, Phase::Idle));
        assert_eq!(report.standby.unwrap().slot.as_str(), "b");
    }

    #[test]
    fn a_node_tells_its_slots_its_drift_and_its_last_error() {
        let folder = tempfile::tempdir().unwrap();
        let Node { config, journal } = node(folder.path());
        let (image, release) = (ImageId::of(b"x"), "web:1".parse().unwrap());
        std::fs::write(folder.path().join("b"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path().join("b"), folder.path().join("current")).unwrap();
        journal.set_proven(SlotName::B, image, &release, 4096).unwrap();
        journal.set_drift(image, 3).unwrap();
        journal.set_last(Some(release.clone()), Outcome::Failed { error: "the disk is full".into() }).unwrap();
        let status = Status::gather(&config, &journal).unwrap();
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["active"], &json["slots"][1]["state"]), (&"b".into(), &"proven".into()));
        assert_eq!(json["slots"][1]["image"], image.to_string());
        assert_eq!((&json["slots"][0]["state"], &json["working"]), (&"empty".into(), &serde_json::Value::Null));
        let text = status.to_string();
        for expected in ["slot b   active", "slot a   standby", "3 blocks", "failed web:1: the disk is full", "idle"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let reported = report(&config, &journal).unwrap();
        assert_eq!(reported.active.unwrap().image, Some(image));
        assert_eq!((reported.phase, reported.drifted), (Phase::Failed, Some(3)));
        // Drift of an image that is no longer active says nothing of this one.
        journal.set_drift(ImageId::of(b"old"), 9).unwrap();
        assert_eq!(report(&config, &journal).unwrap().drifted, None);
        let _held = journal.lock().unwrap();
        assert_eq!(Status::gather(&config, &journal).unwrap().working, Some(std::process::id()));
    }
}
