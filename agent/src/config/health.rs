//! The section `[health]`: what a release must show before it is kept.

use std::time::Duration;

use super::{ConfigError, activation, raw, span, value};
use crate::program::Program;

/// What a release must show before it is kept; see `health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Programs that end with 0 when all is well.
    pub commands: Vec<Program>,
    /// systemd units that must be active.
    pub units: Vec<String>,
    /// Whether `boot-complete.target` must be reached.
    pub boot_complete: bool,
    /// Whether the server must be reachable.
    pub server: bool,
    /// How long all of it may take to become true. Default 10 min.
    pub deadline: Duration,
    /// Between two looks. Default 5 s.
    pub every: Duration,
    /// How long it must stay true. Default: one look is enough.
    pub steady: Duration,
}

impl Health {
    /// Whether anything is asked for.
    pub fn asks(&self) -> bool {
        !self.commands.is_empty() || !self.units.is_empty() || self.boot_complete || self.server
    }
}

pub(super) fn health(raw: raw::Health) -> Result<Health, ConfigError> {
    let limit = span("health.time_limit", raw.time_limit.as_deref(), Duration::from_secs(60))?;
    let program = |command| activation::program("health.commands", command, "health.time_limit", limit);
    let deadline = span("health.deadline", raw.deadline.as_deref(), Duration::from_secs(600))?;
    let every = span("health.every", raw.every.as_deref(), Duration::from_secs(5))?;
    let steady = span("health.steady", raw.steady.as_deref(), Duration::ZERO)?;
    if deadline.is_zero() || every.is_zero() {
        let key = if deadline.is_zero() { "health.deadline" } else { "health.every" };
        return Err(value(key, "is 0; nothing becomes well in no time"));
    }
    if steady >= deadline {
        return Err(value(
            "health.steady",
            format!("is {steady:?}, which does not fit into health.deadline ({deadline:?}); raise that one"),
        ));
    }
    let units = raw.units.unwrap_or_default();
    if let Some(unit) = units.iter().find(|unit| !unit_name(unit)) {
        return Err(value(
            "health.units",
            format!("has {unit:?}, which is no unit's name; for example \"nginx.service\""),
        ));
    }
    Ok(Health {
        commands: raw.commands.unwrap_or_default().into_iter().map(program).collect::<Result<_, _>>()?,
        units,
        boot_complete: raw.boot_complete.unwrap_or(false),
        server: raw.server.unwrap_or(false),
        deadline,
        every,
        steady,
    })
}

/// What systemd allows, with a type at its end, and not what `systemctl` would take for an option.
fn unit_name(unit: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    unit.len() <= 255 && !unit.starts_with('-') && unit.contains('.') && unit.chars().all(allowed)
}
