//! The node's configuration: TOML, merged from drop-ins, checked whole before anything is done with it.
//!
//! ```text
//! /usr/lib/goldsync  <  /run/goldsync  <  /etc/goldsync       agent.toml of each, then
//!                                                             agent.toml.d/*.toml of all three, by file name;
//!                                                             the same name in a later folder replaces the earlier file
//! --config FILE      replaces all of them
//! ```
//! Later files win, key by key. An unknown key is an error that names the file and the nearest key there is, because
//! a misspelt limit that silently does not hold is worse than a node that does not start.
//!
//! [`read`](load::read) finds and merges the text, [`Config::from_raw`] checks it without looking at the machine, and
//! [`Config::check_machine`] looks at what only the machine can tell (two names for one slot).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use chrono_tz::Tz;
use croner::Cron;
use goldsync_proto::block::Geometry;
use goldsync_proto::release::{Word, check_labels};
use goldsync_proto::units::{Rate, Span};
use goldsync_proto::wire::Prefer;

use crate::slot::{Identity, SlotName};

mod activation;
mod budget;
mod health;
mod keys;
mod load;
mod raw;
mod restart;

pub use activation::{Activation, Backend, Kernel, SystemdBoot, knows_backend, knows_key};
pub use budget::{Budget, LinkBudget};
pub use health::Health;
pub use load::Where;
pub use restart::{How, Restart};

/// The UDP port of a server that names none.
pub const DEFAULT_PORT: u16 = 7400;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server; `None` leaves it to what the node was enrolled with.
    pub server: Option<Address>,
    /// The channel to follow.
    pub channel: Word,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// The state folder.
    pub state: PathBuf,
    /// The two slots.
    pub slots: Slots,
    /// How a slot becomes the active one.
    pub activation: Activation,
    /// What a release must show before it is kept.
    pub health: Health,
    /// When the machine may be disturbed, and how it is started again.
    pub restart: Restart,
    /// When to look without being told.
    pub schedule: Schedule,
    /// How many bytes an update may take.
    pub budget: Budget,
    /// How much of the machine to use.
    pub limits: Limits,
}

/// `HOST:PORT` of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Name or address, without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// Where images live on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// File or block device.
    pub a: PathBuf,
    /// File or block device.
    pub b: PathBuf,
    /// The most that a file slot may hold. Default: no limit but the file system's.
    pub size: Option<u64>,
}

impl Slots {
    /// The path of slot `name`.
    pub fn path(&self, name: SlotName) -> &Path {
        match name {
            SlotName::A => &self.a,
            SlotName::B => &self.b,
        }
    }
}

/// When to look for a new release without being told.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Minute, hour, day, month, weekday. `None`: only when told.
    pub cron: Option<Cron>,
    /// A random delay of up to this much, so that a fleet does not knock all at once. Default 30 min.
    pub splay: Duration,
    /// The zone that `cron` counts in. Default UTC.
    pub time_zone: Tz,
}

/// How much of the machine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Threads that hash, scan and unpack. Default: one for each processor, at most 4.
    pub threads: usize,
    /// Bytes of local sources that the rolling scan may look at in one update. When they are used up, the rest is
    /// fetched: a larger download, never a wrong image. Default 64 GiB; 0 turns the rolling scan off.
    pub scan_budget: u64,
    /// Which packs to ask for, where the server has two: those that unpack quickly, or those that are smallest.
    pub prefer: Prefer,
    /// When a server that answers too slowly, or not at all, is given up.
    pub patience: Patience,
}

/// When a server that answers too slowly, or not at all, is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long nothing may arrive where something is due. Default 30 s.
    pub silence: Duration,
    /// The slowest that what is due may arrive. Default 256 B/s over 2 min: below any link that IP is spoken over, above what
    /// keeps a node busy for ever.
    pub slowest: Rate,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(30), slowest: Rate { bytes: 256, over: Duration::from_secs(120) } }
    }
}

/// Why a configuration was turned down. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("configuration: {} cannot be read: {error}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// There is none.
    #[error(
        "configuration: no agent.toml in {places}; `goldsync-agent init --write` makes one for this machine; or name one with --config"
    )]
    None {
        /// Where it was looked for.
        places: String,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("configuration: {}: {error}", file.display())]
    Syntax {
        /// In which file.
        file: PathBuf,
        /// What the reader says, with line and column.
        error: String,
    },
    /// A key that is not known.
    #[error("configuration: {}: unknown key `{key}`; {hint}", file.display())]
    UnknownKey {
        /// In which file.
        file: PathBuf,
        /// Its full name.
        key: String,
        /// The nearest key, or all of them.
        hint: String,
    },
    /// A value that cannot be used.
    #[error("configuration: `{key}` {problem}")]
    Value {
        /// Its full name.
        key: &'static str,
        /// The value, the limit, the remedy.
        problem: String,
    },
}

fn value(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, problem: problem.into() }
}

impl Config {
    /// Reads and checks the configuration, and holds it against this machine.
    pub fn load(place: &Where) -> Result<Self, ConfigError> {
        let config = Self::from_raw(load::read(place)?)?;
        config.check_machine()?;
        Ok(config)
    }

    /// Reads and checks one text. `name` stands for the file in errors.
    pub fn parse(name: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::from_raw(load::merge([(name.to_owned(), text.to_owned())])?)
    }

    /// Checks everything that can be checked without looking at the machine.
    fn from_raw(raw: raw::Raw) -> Result<Self, ConfigError> {
        let server = raw.server.as_deref().map(str::parse).transpose().map_err(|problem| value("server", problem))?;
        let channel =
            raw.channel.ok_or_else(|| value("channel", "is missing; for example: channel = \"production\""))?;
        let channel = channel.parse().map_err(|error| value("channel", format!("cannot be used: {error}")))?;
        let labels = raw.labels.unwrap_or_default();
        check_labels(&labels).map_err(|error| value("labels", format!("cannot be used: {error}")))?;
        let schedule = schedule(raw.schedule.unwrap_or_default())?;
        let state = absolute("state", raw.state.unwrap_or_else(|| PathBuf::from("/var/lib/goldsync")))?;
        let config = Self {
            server,
            channel,
            labels,
            slots: slots(raw.slots.unwrap_or_default())?,
            activation: activation::activation(raw.activation.unwrap_or_default())?,
            health: health::health(raw.health.unwrap_or_default())?,
            restart: restart::restart(raw.restart.unwrap_or_default(), schedule.time_zone)?,
            schedule,
            budget: budget::budget(raw.budget.unwrap_or_default())?,
            limits: limits(raw.limits.unwrap_or_default())?,
            state,
        };
        config.check_paths()?;
        Ok(config)
    }

    /// No path may stand for two things.
    fn check_paths(&self) -> Result<(), ConfigError> {
        let (a, b) = (&self.slots.a, &self.slots.b);
        if a == b {
            return Err(value("slots", format!("a and b are both {}; give each a place of its own", a.display())));
        }
        for name in SlotName::ALL {
            let slot = self.slots.path(name);
            if self.state.starts_with(slot) {
                let (state, slot) = (self.state.display(), slot.display());
                return Err(value(
                    "state",
                    format!("{state} lies in slot {name} ({slot}), which is overwritten whole"),
                ));
            }
            if matches!(&self.activation.backend, Backend::Symlink { link } if link == slot) {
                return Err(value(
                    "activation.link",
                    format!("is slot {name} itself; name a path where the link may be"),
                ));
            }
            if let Backend::Mount { target, .. } = &self.activation.backend
                && (slot.starts_with(target) || self.state.starts_with(target))
            {
                let problem =
                    "is a folder of the slots' or of the state folder's, which must not lie inside the volume";
                return Err(value("activation.target", problem));
            }
        }
        Ok(())
    }

    /// What only the machine can tell: two names for one file or device, a state folder on a slot's file system.
    pub fn check_machine(&self) -> Result<(), ConfigError> {
        let (a, b) = (Identity::of(&self.slots.a).ok(), Identity::of(&self.slots.b).ok());
        if let (Some(first), Some(second)) = (a, b)
            && first == second
        {
            let (a, b) = (self.slots.a.display(), self.slots.b.display());
            return Err(value(
                "slots",
                format!("a ({a}) and b ({b}) are the same file or device; give each a place of its own"),
            ));
        }
        let existing = self.state.ancestors().find_map(|path| std::fs::metadata(path).ok());
        let state_device = existing.as_ref().map(std::os::unix::fs::MetadataExt::dev);
        for (name, identity) in [(SlotName::A, a), (SlotName::B, b)] {
            let slot = self.slots.path(name).display();
            if std::fs::metadata(self.slots.path(name)).is_ok_and(|meta| meta.is_dir()) {
                return Err(value(
                    "slots",
                    format!("{name} ({slot}) is a folder; a slot is a regular file or a block device"),
                ));
            }
            if let (Some(Identity::Device(number)), Some(device)) = (identity, state_device)
                && number == device
            {
                let state = self.state.display();
                return Err(value(
                    "state",
                    format!("{state} lies on slot {name} ({slot}), which is overwritten whole"),
                ));
            }
        }
        Ok(())
    }
}

fn slots(raw: raw::Slots) -> Result<Slots, ConfigError> {
    let missing = |key| value(key, "is missing; name a file or a block device for each slot");
    let size = raw.size.map(|size| size.bytes("slots.size")).transpose()?;
    if let Some(size) = size {
        Geometry::new(size).map_err(|error| value("slots.size", format!("cannot be used: {error}")))?;
    }
    Ok(Slots {
        a: absolute("slots.a", raw.a.ok_or_else(|| missing("slots.a"))?)?,
        b: absolute("slots.b", raw.b.ok_or_else(|| missing("slots.b"))?)?,
        size,
    })
}

fn schedule(raw: raw::Schedule) -> Result<Schedule, ConfigError> {
    let cron = match raw.cron.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let parsed = text.parse::<Cron>();
            Some(parsed.map_err(|error| {
                let example = "five fields are expected: minute hour day month weekday, for example \"30 3 * * *\"";
                value("schedule.cron", format!("is {text:?}: {error}; {example}"))
            })?)
        }
    };
    let splay = span("schedule.splay", raw.splay.as_deref(), Duration::from_secs(30 * 60))?;
    let time_zone = zone("schedule.time_zone", raw.time_zone.as_deref().unwrap_or("UTC"))?;
    Ok(Schedule { cron, splay, time_zone })
}

fn zone(key: &'static str, zone: &str) -> Result<Tz, ConfigError> {
    zone.parse().map_err(|_| {
        value(key, format!("is {zone:?}, which is no zone of the tz database; for example \"Europe/Vienna\""))
    })
}

fn span(key: &'static str, text: Option<&str>, default: Duration) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(default) };
    text.parse().map(|Span(span)| span).map_err(|error| value(key, format!("cannot be used: {error}")))
}

fn limits(raw: raw::Limits) -> Result<Limits, ConfigError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = raw.threads.unwrap_or(processors.min(4));
    if !(1..=256).contains(&threads) {
        return Err(value("limits.threads", format!("is {threads}; 1 to 256 are allowed")));
    }
    let scan_budget = raw.scan_budget.map_or(Ok(64 << 30), |size| size.bytes("limits.scan_budget"))?;
    let prefer = match raw.prefer.as_deref() {
        None | Some("time") => Prefer::Time,
        Some("bytes") => Prefer::Bytes,
        Some(other) => return Err(value("limits.prefer", format!("is {other:?}; there are \"time\" and \"bytes\""))),
    };
    let patience = patience(raw.silence.as_deref(), raw.slowest.as_deref())?;
    Ok(Limits { threads, scan_budget, prefer, patience })
}

/// Neither can be turned off: what nobody waits for in vain is part of what a node promises.
fn patience(silence: Option<&str>, slowest: Option<&str>) -> Result<Patience, ConfigError> {
    let default = Patience::default();
    let spans = Duration::from_secs(1)..=Duration::from_secs(3600);
    let silence = span("limits.silence", silence, default.silence)?;
    if !spans.contains(&silence) {
        return Err(value("limits.silence", format!("is {}; 1 s to 1 hour are allowed", Span(silence))));
    }
    let slowest = slowest.map_or(Ok(default.slowest), str::parse::<Rate>);
    let slowest = slowest.map_err(|error| value("limits.slowest", format!("cannot be used: {error}")))?;
    if slowest.bytes == 0 || !spans.contains(&slowest.over) {
        let problem = format!("is {slowest}; at least 1 B/s, counted over 1 s to 1 hour, is needed");
        return Err(value("limits.slowest", problem));
    }
    Ok(Patience { silence, slowest })
}

fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if !path.is_absolute() {
        return Err(value(key, format!("is {}; an absolute path is needed", path.display())));
    }
    // `a/../b` and `a//b` would hide that two paths are one.
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(value(key, format!("is {}; write it without `..`", path.display())));
    }
    Ok(path.components().collect())
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "is {text:?}; write HOST:PORT, for example golden.example.net:{DEFAULT_PORT} or [2001:db8::1]:{DEFAULT_PORT}"
            )
        };
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(refuse)?)),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(DEFAULT_PORT), str::parse).map_err(|_| refuse())?;
        let bracketed = text.starts_with('[');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c) || (bracketed && ":%".contains(c));
        if host.is_empty() || port == 0 || !host.chars().all(plain) {
            return Err(refuse());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests;
