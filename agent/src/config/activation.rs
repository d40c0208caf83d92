//! The section `[activation]`: one back-end, and the keys that belong to it.

use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, absolute, raw, span, value};
use crate::boot::{Effect, Template};
use crate::program::Program;
use crate::volume::{OptionsError, Volume};

/// Starts that a boot loader counts, if the configuration does not say.
const TRIES: u8 = 3;

/// The most that all boot loaders can count.
const TRIES_MAX: u8 = 9;

/// The most that U-Boot's scripts can count: their arithmetic is hexadecimal, their comparison decimal.
const UBOOT_TRIES_MAX: u8 = 8;

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
    /// GRUB; see `boot::Grub`.
    Grub {
        /// Its environment block. Default `/boot/grub/grubenv`.
        grubenv: PathBuf,
    },
    /// systemd-boot; see `boot::SystemdBoot`.
    SystemdBoot(SystemdBoot),
    /// U-Boot; see `boot::Uboot`.
    Uboot {
        /// Where the copies of its environment are, in the words of fw_printenv. Default `/etc/fw_env.config`.
        env_config: PathBuf,
        /// One copy must do.
        single: bool,
    },
    /// The firmware; see `boot::Uefi`.
    Uefi {
        /// Where its variables are. Default `/sys/firmware/efi/efivars`.
        efivars: PathBuf,
        /// The boot entries of a and b: numbers or descriptions. Default `goldsync a` and `goldsync b`.
        entries: [String; 2],
    },
    /// A mount point shows the active slot.
    Mount {
        /// The mount point.
        target: PathBuf,
        /// How a slot is mounted.
        volume: Volume,
    },
}

/// What systemd-boot needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemdBoot {
    /// Where the EFI system partition is mounted.
    pub esp: PathBuf,
    /// Where the firmware's variables are. Default `/sys/firmware/efi/efivars`.
    pub efivars: PathBuf,
    /// What is started.
    pub kernel: Kernel,
    /// Its command line.
    pub options: Template,
}

/// Where the kernel of an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// In the image.
    Image {
        /// The kernel.
        linux: PathBuf,
        /// Its initrd.
        initrd: Option<PathBuf>,
    },
    /// In the image, in one file with its initrd.
    Unified {
        /// The unified kernel image.
        uki: PathBuf,
    },
    /// On the EFI system partition, whatever the image is: a machine's own.
    Esp {
        /// The kernel, from the partition's root.
        linux: PathBuf,
        /// Its initrd.
        initrd: Option<PathBuf>,
    },
}

/// Every back-end's name and the keys that belong to it alone.
const BACKENDS: &[(&str, &[&str])] = &[
    ("symlink", &["link"]),
    ("command", &["command", "time_limit", "takes_effect"]),
    ("grub", &["grubenv"]),
    ("systemd-boot", &["esp", "efivars", "kernel", "initrd", "kernel_from", "uki", "options"]),
    ("uboot", &["env_config", "single"]),
    ("uefi", &["efivars", "entry_a", "entry_b"]),
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
    let tries = tries(name, raw.tries)?;
    let cmdline = absolute("activation.cmdline", raw.cmdline.clone().unwrap_or_else(|| "/proc/cmdline".into()))?;
    let backend = match name {
        "symlink" => symlink(raw)?,
        "grub" => grub(raw)?,
        "systemd-boot" => systemd_boot(raw)?,
        "uboot" => uboot(raw)?,
        "uefi" => uefi(raw)?,
        "mount" => mount(raw)?,
        _ => command(raw)?,
    };
    Ok(Activation { backend, tries, cmdline })
}

/// Whether there is a back-end of this name.
pub fn knows_backend(name: &str) -> bool {
    BACKENDS.iter().any(|(backend, _)| *backend == name)
}

/// Whether a back-end has a key of its own of this name.
pub fn knows_key(name: &str, key: &str) -> bool {
    BACKENDS.iter().any(|(backend, own)| *backend == name && own.contains(&key))
}

/// The keys that belong to one back-end or another, and whether they are there.
fn given(raw: &raw::Activation) -> Vec<(&'static str, bool)> {
    vec![
        ("activation.link", raw.link.is_some()),
        ("activation.command", raw.command.is_some()),
        ("activation.time_limit", raw.time_limit.is_some()),
        ("activation.takes_effect", raw.takes_effect.is_some()),
        ("activation.grubenv", raw.grubenv.is_some()),
        ("activation.esp", raw.esp.is_some()),
        ("activation.efivars", raw.efivars.is_some()),
        ("activation.kernel", raw.kernel.is_some()),
        ("activation.initrd", raw.initrd.is_some()),
        ("activation.kernel_from", raw.kernel_from.is_some()),
        ("activation.uki", raw.uki.is_some()),
        ("activation.options", raw.options.is_some()),
        ("activation.env_config", raw.env_config.is_some()),
        ("activation.single", raw.single.is_some()),
        ("activation.entry_a", raw.entry_a.is_some()),
        ("activation.entry_b", raw.entry_b.is_some()),
        ("activation.target", raw.target.is_some()),
        ("activation.fstype", raw.fstype.is_some()),
        ("activation.verity", raw.verity.is_some()),
    ]
}

fn tries(backend: &str, given: Option<u8>) -> Result<u8, ConfigError> {
    let (default, most) = match backend {
        "uefi" => (1, 1),
        "uboot" => (TRIES, UBOOT_TRIES_MAX),
        _ => (TRIES, TRIES_MAX),
    };
    let tries = given.unwrap_or(default);
    if (1..=most).contains(&tries) {
        return Ok(tries);
    }
    Err(value("activation.tries", format!("is {tries}; the back-end \"{backend}\" counts 1 to {most}")))
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

fn grub(raw: raw::Activation) -> Result<Backend, ConfigError> {
    let grubenv = raw.grubenv.unwrap_or_else(|| "/boot/grub/grubenv".into());
    Ok(Backend::Grub { grubenv: absolute("activation.grubenv", grubenv)? })
}

fn systemd_boot(raw: raw::Activation) -> Result<Backend, ConfigError> {
    let esp = raw.esp.clone().ok_or_else(|| {
        value("activation.esp", "is missing; name where the EFI system partition is mounted, for example /boot/efi")
    })?;
    let template = raw.options.as_deref().ok_or_else(|| {
        let example = "options = \"root=PARTUUID={partuuid} ro\"";
        value("activation.options", format!("is missing; write the kernel's command line, for example {example}"))
    })?;
    let options = Template::read(template).map_err(|problem| value("activation.options", problem))?;
    Ok(Backend::SystemdBoot(SystemdBoot {
        esp: absolute("activation.esp", esp)?,
        efivars: efivars(&raw)?,
        kernel: kernel(raw)?,
        options,
    }))
}

fn uboot(raw: raw::Activation) -> Result<Backend, ConfigError> {
    let env_config = raw.env_config.unwrap_or_else(|| "/etc/fw_env.config".into());
    let env_config = absolute("activation.env_config", env_config)?;
    Ok(Backend::Uboot { env_config, single: raw.single.unwrap_or(false) })
}

fn uefi(raw: raw::Activation) -> Result<Backend, ConfigError> {
    let efivars = efivars(&raw)?;
    let a = raw.entry_a.unwrap_or_else(|| "goldsync a".to_owned());
    let b = raw.entry_b.unwrap_or_else(|| "goldsync b".to_owned());
    if a.eq_ignore_ascii_case(&b) {
        return Err(value("activation.entry_b", format!("is {b:?}, as that of a; give each slot an entry of its own")));
    }
    Ok(Backend::Uefi { efivars, entries: [a, b] })
}

fn efivars(raw: &raw::Activation) -> Result<PathBuf, ConfigError> {
    absolute("activation.efivars", raw.efivars.clone().unwrap_or_else(|| "/sys/firmware/efi/efivars".into()))
}

fn kernel(raw: raw::Activation) -> Result<Kernel, ConfigError> {
    let initrd = raw.initrd.map(|initrd| line("activation.initrd", initrd)).transpose()?;
    let linux = raw.kernel.map(|kernel| line("activation.kernel", kernel)).transpose()?;
    let uki = raw.uki.map(|uki| line("activation.uki", uki)).transpose()?;
    match (linux, uki, raw.kernel_from.as_deref()) {
        (Some(linux), None, None | Some("image")) => Ok(Kernel::Image { linux, initrd }),
        (Some(linux), None, Some("esp")) => Ok(Kernel::Esp { linux, initrd }),
        (None, Some(uki), None | Some("image")) if initrd.is_none() => Ok(Kernel::Unified { uki }),
        (_, Some(_), _) => {
            let problem =
                "is a kernel with its initrd, from the image; remove `kernel`, `initrd` and `kernel_from`, or this";
            Err(value("activation.uki", problem))
        }
        (None, None, _) => {
            let problem = "is missing; name the kernel in the image, for example kernel = \"/vmlinuz\", or a unified one with `uki`";
            Err(value("activation.kernel", problem))
        }
        (_, _, other) => {
            let problem = format!("is {:?}; there are \"image\" and \"esp\"", other.unwrap_or_default());
            Err(value("activation.kernel_from", problem))
        }
    }
}

/// A path that becomes a line of a boot entry.
fn line(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    let path = absolute(key, path)?;
    let plain = |text: &str| !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if path.to_str().is_some_and(plain) {
        return Ok(path);
    }
    Err(value(key, format!("is {path:?}; a boot entry takes no path with spaces in it")))
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
