//! When a machine may be disturbed, and how it is started again.
//!
//! ```text
//! staged ─▶ window open? ─▶ nothing forbids it? ─▶ nobody logged in? ─▶ activate, restart
//!             └ no: until it opens └ no: look again in a minute └ no: likewise
//! ```
//! This is asked only for what nobody is at hand for: the daemon's updates. A verb that somebody types is done at once, and starts
//! nothing again unless told to. What is in use at once (a link, a live mount) waits for the window alone.
//!
//! A release is activated just before the restart that it waits for, not earlier: a machine that is started again outside of its
//! window, by a power cut say, comes up as it was. With `restart.how = "none"` the restart is somebody else's, and the release is
//! activated in the window to wait for it.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use goldsync_proto::verity::Sealed;
use goldsync_proto::wire::{Wait, WaitOn};

use crate::boot::nextroot::NextRootError;
use crate::boot::{self, Effect};
use crate::config::{How, Restart};
use crate::program::{Program, ProgramError};
use crate::slot::SlotName;

mod logind;
pub mod window;

/// How long the service manager may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the machine was not started again. What was activated waits for the next start, whoever brings it about.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// The program that does it.
    #[error("the machine was not started again: {0}")]
    Program(#[from] ProgramError),
    /// Nothing here can start the machine again.
    #[error(
        "the machine was not started again: there is neither systemctl nor reboot; set restart.how to \"none\" or to a command"
    )]
    NoProgram,
    /// This service manager has no such thing.
    #[error(
        "the machine was not started again: soft-reboot needs systemd 254 or later, {found}; set restart.how to \"reboot\""
    )]
    NoSoftReboot {
        /// What is there.
        found: String,
    },
    /// The slot to start into.
    #[error("the machine was not started again: {0}")]
    NextRoot(#[from] NextRootError),
    /// There is no slot to start into.
    #[error("the machine was not started again: no slot was ever activated")]
    NoNext,
    /// The count of soft-reboots.
    #[error("the machine was not started again: /run/goldsync cannot be written: {0}")]
    Count(std::io::Error),
}

/// What keeps the machine from being disturbed now, if anything does. Blocks for as long as the login manager takes.
pub fn gate(restart: &Restart, effect: Effect, now: DateTime<Utc>) -> Option<Wait> {
    let closed = closed(restart, now);
    // What is not ours to do needs nobody's leave: who starts the machine again asks them.
    let ours = effect == Effect::AtRestart && restart.how != How::None;
    let forbidden = || (ours && restart.inhibitors).then(logind::inhibitor).flatten();
    let logged_in = || (ours && restart.sessions).then(logind::session).flatten();
    closed.or_else(forbidden).or_else(logged_in)
}

/// Until when the windows are closed, if they are.
fn closed(restart: &Restart, now: DateTime<Utc>) -> Option<Wait> {
    match window::now(&restart.windows, restart.time_zone, now) {
        window::Now::Open => None,
        window::Now::OpensAt(at) => {
            let windows: Vec<String> = restart.windows.iter().map(ToString::to_string).collect();
            let why = format!("the maintenance window ({}, {}) is closed", windows.join("; "), restart.time_zone);
            Some(Wait { on: WaitOn::Window, why, until: Some(at.to_rfc3339_opts(SecondsFormat::Secs, true)) })
        }
    }
}

/// What the next start takes.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// The slot.
    pub slot: SlotName,
    /// Its path.
    pub path: &'a Path,
    /// What its release says of its hash tree.
    pub sealed: Option<&'a Sealed>,
}

/// Starts the machine again. Returns as soon as that is under way.
pub fn restart(how: &How, next: Option<Next<'_>>) -> Result<(), RestartError> {
    match how {
        How::None => Ok(()),
        How::Command(program) => Ok(program.call(&[], &[]).map(drop)?),
        How::Reboot => {
            // Without systemd as the first process, systemctl has nobody to talk to.
            let systemd = Path::new("/run/systemd/system").exists();
            let call = if systemd { found("systemctl").map(|path| vec![path, "reboot".into()]) } else { None };
            let call = call.or_else(|| found("reboot").map(|path| vec![path])).ok_or(RestartError::NoProgram)?;
            Ok(Program { command: call, limit: PATIENCE }.call(&[], &[]).map(drop)?)
        }
        How::SoftReboot(root) => {
            soft_reboot_there()?;
            let systemctl = found("systemctl").ok_or(RestartError::NoProgram)?;
            let Next { slot, path, sealed } = next.ok_or(RestartError::NoNext)?;
            root.prepare(slot, path, sealed)?;
            boot::count_soft_reboot().map_err(RestartError::Count)?;
            Ok(Program { command: vec![systemctl, "soft-reboot".into()], limit: PATIENCE }.call(&[], &[]).map(drop)?)
        }
    }
}

/// Whether the service manager can start user space alone.
fn soft_reboot_there() -> Result<(), RestartError> {
    let no = |found: String| RestartError::NoSoftReboot { found };
    let systemctl = found("systemctl").ok_or_else(|| no("and there is no systemctl here".into()))?;
    let text = Program { command: vec![systemctl, "--version".into()], limit: PATIENCE }.call(&[], &[])?;
    match version(&text) {
        Some(254..) => Ok(()),
        Some(version) => Err(no(format!("this is {version}"))),
        None => Err(no("and this one does not say what it is".into())),
    }
}

/// `systemd 252 (252.39-1~deb12u2)`
fn version(text: &str) -> Option<u32> {
    let word = text.strip_prefix("systemd ")?.split([' ', '.', '~', '-', '\n']).next()?;
    word.parse().ok()
}

/// A program of the system's.
pub(crate) fn found(name: &str) -> Option<String> {
    let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    folders.iter().map(|folder| format!("{folder}/{name}")).find(|path| Path::new(path).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(windows: &[&str], how: How) -> Restart {
        Restart {
            how,
            windows: windows.iter().map(|text| text.parse().unwrap()).collect(),
            time_zone: chrono_tz::UTC,
            inhibitors: false,
            sessions: false,
        }
    }

    #[test]
    fn a_closed_window_says_when_it_opens() {
        let restart = config(&["Mon-Fri 02:00-04:00"], How::Reboot);
        let wait = gate(&restart, Effect::AtRestart, "2026-11-21T03:00:00Z".parse().unwrap()).unwrap();
        assert_eq!((wait.on, wait.until.as_deref()), (WaitOn::Window, Some("2026-11-23T02:00:00Z")));
        assert!(wait.why.contains("02:00-04:00, UTC"), "{}", wait.why);
        assert_eq!(gate(&restart, Effect::AtOnce, "2026-11-23T02:00:00Z".parse().unwrap()), None);
        assert_eq!(gate(&config(&[], How::None), Effect::AtRestart, Utc::now()), None);
    }

    #[test]
    fn the_service_managers_version_is_read() {
        for (text, expected) in [
            ("systemd 252 (252.39-1~deb12u2)\n+PAM", Some(252)),
            ("systemd 254.26 (x)", Some(254)),
            ("systemd 257~rc1 (x)", Some(257)),
            ("busybox", None),
            ("", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    #[test]
    fn a_sites_program_starts_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("restarted");
        let command = vec!["/bin/sh".into(), "-c".into(), format!("touch {}", file.display())];
        restart(&How::Command(Program { command, limit: PATIENCE }), None).unwrap();
        assert!(file.exists());
        let failing = How::Command(Program { command: vec!["/bin/false".into()], limit: PATIENCE });
        assert!(restart(&failing, None).unwrap_err().to_string().contains("was not started again"));
        restart(&How::None, None).unwrap();
    }
}
