//! The section `[restart]`: when a machine may be disturbed, and how it is started again.

use std::time::Duration;

use chrono_tz::Tz;

use super::{ConfigError, absolute, activation, raw, span, value};
use crate::boot::nextroot::{NextRoot, PLACE};
use crate::program::Program;
use crate::restart::window::Window;
use crate::volume::Volume;

/// When a machine may be disturbed, and how it is started again; see `restart`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// How.
    pub how: How,
    /// When what was staged may be activated unasked. Empty: at any time.
    pub windows: Vec<Window>,
    /// The zone that `windows` count in. Default: the schedule's.
    pub time_zone: Tz,
    /// Whether programs that forbid a shutdown are waited for. Default: yes.
    pub inhibitors: bool,
    /// Whether people who are logged in are waited for. Default: yes.
    pub sessions: bool,
}

/// How a machine is started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Not by the agent.
    None,
    /// The whole machine.
    Reboot,
    /// User space alone: `systemctl soft-reboot` into the new slot.
    SoftReboot(NextRoot),
    /// By a site's program.
    Command(Program),
}

pub(super) fn restart(mut raw: raw::Restart, zone: Tz) -> Result<Restart, ConfigError> {
    let limit = span("restart.time_limit", raw.time_limit.as_deref(), Duration::from_secs(60))?;
    let how = match (raw.how.as_deref(), raw.command.take()) {
        (Some("command"), command) => {
            let command = command.unwrap_or_default();
            How::Command(activation::program("restart.command", command, "restart.time_limit", limit)?)
        }
        (_, Some(_)) => return Err(value("restart.command", "belongs to restart.how = \"command\"; remove it")),
        (None | Some("none"), None) => How::None,
        (Some("reboot"), None) => How::Reboot,
        (Some("soft-reboot"), None) => {
            let keep = raw.keep.take().unwrap_or_default().into_iter().map(|path| absolute("restart.keep", path));
            let volume = Volume { verity: raw.verity.take().unwrap_or(false), ..Volume::default() };
            How::SoftReboot(NextRoot { place: PLACE.into(), volume, keep: keep.collect::<Result<_, _>>()? })
        }
        (Some(other), None) => {
            let problem = format!("is {other:?}; known are \"none\", \"reboot\", \"soft-reboot\", \"command\"");
            return Err(value("restart.how", problem));
        }
    };
    if raw.keep.is_some() || raw.verity.is_some() {
        return Err(value("restart.keep", "and `restart.verity` belong to restart.how = \"soft-reboot\"; remove them"));
    }
    let window = |text: String| text.parse().map_err(|error| value("restart.windows", format!("has {error}")));
    let time_zone = raw.time_zone.as_deref().map_or(Ok(zone), |zone| super::zone("restart.time_zone", zone))?;
    Ok(Restart {
        how,
        windows: raw.windows.unwrap_or_default().into_iter().map(window).collect::<Result<_, _>>()?,
        time_zone,
        inhibitors: waited_for("restart.inhibitors", raw.inhibitors.as_deref())?,
        sessions: waited_for("restart.sessions", raw.sessions.as_deref())?,
    })
}

fn waited_for(key: &'static str, text: Option<&str>) -> Result<bool, ConfigError> {
    match text {
        None | Some("wait") => Ok(true),
        Some("ignore") => Ok(false),
        Some(other) => Err(value(key, format!("is {other:?}; there are \"wait\" and \"ignore\""))),
    }
}
