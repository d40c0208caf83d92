//! The section `[activation]`: one back-end, and the keys that belong to it.

use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, absolute, raw, span, value};
use crate::boot::Effect;
use crate::program::Program;
use crate::volume::{OptionsError, Volume};

/// Starts that a boot loader counts, if the configuration does not say.
const TRIES: u8 = 3;

/// The most that all boot loaders can count.
const TRIES_MAX: u8 = 9;

/// How a slot becomes the active one; see `boot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// By what.
    pub backend: Backend,
    /// Starts that a boot loader counts before it goes back to the other slot by itself. Default 3.
    pub tries: u8,
    /// Where the kernel's command line is read, to tell which slot runs. Default `/proc/cmdline`.
    pub cmdline: PathBuf,
}

/// The back-end and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A link points at the active slot.
    Symlink {
        /// The link.
        link: PathBuf,
    },
    /// A site's program.
    Command {
        /// The program and its leading arguments, and how long one call may take (default 60 s).
        program: Program,
        /// When what it activates is in use. Default at once.
        effect: Effect,
    },
    /// A mount point shows the active slot.
    Mount {
        /// The mount point.
        target: PathBuf,
        /// How a slot is mounted.
        volume: Volume,
    },
}

/// Every back-end's name and the keys that belong to it alone.
const BACKENDS: &[(&str, &[&str])] = &[
    ("symlink", &["link"]),
    ("command", &["command", "time_limit", "takes_effect"]),
    ("mount", &["target", "fstype", "options", "verity"]),
];

pub(super) fn activation(raw: raw::Activation) -> Result<Activation, ConfigError> {
    let known = || BACKENDS.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let Some(name) = raw.backend.as_deref() else {
        return Err(value("activation.backend", format!("is missing; known are {}", known())));
    };
    let Some((_, own)) = BACKENDS.iter().find(|(backend, _)| *backend == name) else {
        return Err(value("activation.backend", format!("is {name:?}; known are {}", known())));
    };
    if let Some((key, _)) = given(&raw).into_iter().find(|(key, given)| *given && !own.contains(&short(key))) {
        return Err(value(key, format!("does not belong to the back-end \"{name}\"; remove it")));
    }
    let tries = raw.tries.unwrap_or(TRIES);
    if !(1..=TRIES_MAX).contains(&tries) {
        return Err(value("activation.tries", format!("is {tries}; 1 to {TRIES_MAX} are allowed")));
    }
    let cmdline = absolute("activation.cmdline", raw.cmdline.clone().unwrap_or_else(|| "/proc/cmdline".into()))?;
    let backend = match name {
        "symlink" => symlink(raw)?,
        "mount" => mount(raw)?,
        _ => command(raw)?,
    };
    Ok(Activation { backend, tries, cmdline })
}

/// The keys that belong to one back-end or another, and whether they are there.
fn given(raw: &raw::Activation) -> Vec<(&'static str, bool)> {
    vec![
        ("activation.link", raw.link.is_some()),
        ("activation.command", raw.command.is_some()),
        ("activation.time_limit", raw.time_limit.is_some()),
        ("activation.takes_effect", raw.takes_effect.is_some()),
        ("activation.target", raw.target.is_some()),
        ("activation.fstype", raw.fstype.is_some()),
        ("activation.options", raw.options.is_some()),
        ("activation.verity", raw.verity.is_some()),
    ]
}

fn short(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn symlink(raw: raw::Activation) -> Result<Backend, ConfigError> {
    let link = raw
        .link
        .ok_or_else(|| value("activation.link", "is missing; name the link that shall lead to the active slot"))?;
    Ok(Backend::Symlink { link: absolute("activation.link", link)? })
}

fn command(raw: raw::Activation) -> Result<Backend, ConfigError> {
    let limit = span("activation.time_limit", raw.time_limit.as_deref(), Duration::from_secs(60))?;
    let program = program("activation.command", raw.command.unwrap_or_default(), "activation.time_limit", limit)?;
    let effect = match raw.takes_effect.as_deref() {
        None | Some("at-once") => Effect::AtOnce,
        Some("at-restart") => Effect::AtRestart,
        Some(other) => {
            let problem = format!("is {other:?}; there are \"at-once\" and \"at-restart\"");
            return Err(value("activation.takes_effect", problem));
        }
    };
    Ok(Backend::Command { program, effect })
}

fn mount(raw: raw::Activation) -> Result<Backend, ConfigError> {
    let target = raw.target.ok_or_else(|| {
        value("activation.target", "is missing; name the mount point that shall show the active slot")
    })?;
    let target = absolute("activation.target", target)?;
    if target.parent().is_none() {
        return Err(value("activation.target", "is /, which cannot be replaced; that takes a boot loader's back-end"));
    }
    let plain =
        |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if let Some(name) = raw.fstype.as_ref().filter(|name| !plain(name)) {
        return Err(value(
            "activation.fstype",
            format!("is {name:?}, which names no file system; for example \"erofs\""),
        ));
    }
    let options = raw.options.unwrap_or_default().parse();
    let options =
        options.map_err(|error: OptionsError| value("activation.options", format!("cannot be used: {error}")))?;
    let volume = Volume { file_system: raw.fstype, options, verity: raw.verity.unwrap_or(false) };
    Ok(Backend::Mount { target, volume })
}

/// A program that this configuration names.
pub(super) fn program(
    key: &'static str,
    command: Vec<String>,
    limit_key: &'static str,
    limit: Duration,
) -> Result<Program, ConfigError> {
    if command.first().is_none_or(|program| !program.starts_with('/')) {
        return Err(value(key, "must be a list that begins with a program's absolute path"));
    }
    if limit.is_zero() {
        return Err(value(limit_key, "is 0; no program ends in no time"));
    }
    Ok(Program { command, limit })
}
