//! `goldsync-agent doctor`: what would stop an update or a way back on this machine, each with its cure.
//!
//! ```text
//! config ─▶ start, loader ─▶ slots, disks ─▶ state ─▶ identity, metadata ─▶ server      each check: a function, a [`Finding`]
//! ```
//! It looks where an update would look, with the same code where there is some, and writes nothing but what `check` writes: the
//! local copy of signed metadata, if the server may be asked. A thing that would stop an update *stops*; a thing that somebody should
//! know of, or that will stop one some day, is a *warning*. Warnings are no failure: exit code 1 means that something stops.

use std::fmt;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::boot::{self, Look};
use crate::config::{Config, Where};
use crate::journal::Journal;
use crate::node::Node;

mod disks;
mod loader;
mod slots;
mod start;
mod state;
mod trust;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// Somebody should know.
    Warning,
    /// An update, or the way back, would fail.
    Stops,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of what.
    pub check: &'static str,
    /// How bad.
    pub verdict: Verdict,
    /// What was found.
    pub says: String,
    /// What helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    fn fine(check: &'static str, says: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fine, says: says.into(), cure: None }
    }

    fn warning(check: &'static str, says: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warning, says: says.into(), cure: Some(cure.into()) }
    }

    fn stops(check: &'static str, says: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Stops, says: says.into(), cure: Some(cure.into()) }
    }

    /// An error of another room: what is wrong stands before its first semicolon, what helps after it.
    fn error(check: &'static str, error: &impl fmt::Display, cure: &str) -> Self {
        let text = error.to_string();
        let text = text.strip_prefix("configuration: ").unwrap_or(&text);
        match text.split_once("; ") {
            Some((says, cure)) => Self::stops(check, says, cure),
            None => Self::stops(check, text, cure),
        }
    }

    fn softened(self) -> Self {
        Self { verdict: self.verdict.min(Verdict::Warning), ..self }
    }
}

/// What all checks found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How many things would stop an update or the way back.
    pub stops: usize,
    /// How many somebody should know of.
    pub warnings: usize,
    /// One by one.
    pub findings: Vec<Finding>,
}

impl Report {
    fn of(findings: Vec<Finding>) -> Self {
        let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
        Self { stops: count(Verdict::Stops), warnings: count(Verdict::Warning), findings }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { check, verdict, says, cure } in &self.findings {
            let verdict = match verdict {
                Verdict::Fine => "ok",
                Verdict::Warning => "warning",
                Verdict::Stops => "STOPS",
            };
            writeln!(f, "{verdict:<8} {check:<10} {says}")?;
            if let Some(cure) = cure {
                writeln!(f, "{:<8} {:<10} -> {cure}", "", "")?;
            }
        }
        match (self.stops, self.warnings) {
            (0, 0) => write!(f, "nothing would stop an update here"),
            (0, warnings) => write!(f, "nothing would stop an update here; {warnings} to know of"),
            (1, _) => write!(f, "one thing would stop an update or the way back"),
            (stops, _) => write!(f, "{stops} things would stop an update or the way back"),
        }
    }
}

/// Looks at everything; with `ask`, also asks the server.
pub async fn examine(place: &Where, ask: bool, stop: CancellationToken) -> Report {
    let config = match Config::load(place) {
        Ok(config) => config,
        Err(error) => {
            let cure = "correct it; `goldsync-agent init` proposes a whole file for this machine";
            return Report::of(vec![Finding::error("config", &error, cure)]);
        }
    };
    let mut findings = vec![Finding::fine(
        "config",
        format!("channel {}, slots {} and {}", config.channel, config.slots.a.display(), config.slots.b.display()),
    )];
    let look = boot::open(&config).look();
    findings.push(start::look(&look));
    let look = look.unwrap_or_default();
    findings.extend(start::pending(&config, &look));
    findings.extend(loader::all(&config));
    findings.extend(slots::all(&config, &look));
    findings.extend(disks::all(std::path::Path::new("/sys"), &config));
    findings.push(state::folder(&config.state));
    // What an update would make is not made here.
    if config.state.is_dir() {
        findings.extend(known(&config, &look).await);
    } else {
        findings.push(trust::not_enrolled());
    }
    if ask && !findings.iter().any(|finding| finding.check == "identity" && finding.verdict == Verdict::Stops) {
        findings.push(trust::server(config, stop).await);
    }
    Report::of(findings)
}

/// What the state folder tells.
async fn known(config: &Config, look: &Look) -> Vec<Finding> {
    let journal = match Journal::open(&config.state) {
        Ok(journal) => journal,
        Err(error) => return vec![Finding::error("state", &error, "let root own it: chmod 700")],
    };
    let node = Node { config: std::sync::Arc::new(config.clone()), journal };
    let mut findings = state::all(&node.journal, look);
    findings.push(trust::identity(&node, chrono::Utc::now()));
    findings.push(trust::metadata(&node, chrono::Utc::now()).await);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examines a machine with this configuration, in which HERE is a folder of its own.
    fn examined(text: &str, ask: bool) -> (Report, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, text.replace("HERE", &folder.path().display().to_string())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        (runtime.block_on(examine(&Where::File(file), ask, CancellationToken::new())), folder)
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_all_that_is_said() {
        let (report, _) = examined("chanel = \"qa\"", true);
        let [finding] = report.findings.as_slice() else { panic!("{report}") };
        assert_eq!((finding.check, finding.verdict, report.stops), ("config", Verdict::Stops, 1));
        assert!(finding.says.contains("unknown key `chanel`"), "{report}");
        assert_eq!(finding.cure.as_deref(), Some("did you mean `channel`?"));
        let text = report.to_string();
        assert!(
            text.contains("STOPS    config")
                && text.contains("-> did you mean")
                && text.contains("one thing would stop"),
            "{text}"
        );
    }

    #[test]
    fn a_new_machine_is_told_to_enrol_and_nothing_is_made() {
        let text = "channel = \"qa\"\nstate = \"HERE/state\"\n[slots]\na = \"HERE/a\"\nb = \"HERE/b\"\n\
                    [activation]\nbackend = \"symlink\"\nlink = \"HERE/current\"\n";
        let (report, folder) = examined(text, true);
        assert_eq!(report.stops, 1, "{report}");
        let stop = report.findings.iter().find(|finding| finding.verdict == Verdict::Stops).unwrap();
        assert!(stop.check == "identity" && stop.cure.as_ref().unwrap().contains("enroll"), "{report}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was made");
    }
}
