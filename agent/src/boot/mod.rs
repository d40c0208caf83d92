//! Activation: the one atomic step that makes the standby slot the active one.
//!
//! A back-end answers a few questions and knows nothing of images, servers or updates. What it must promise is one
//! thing: power lost at any moment of any call leaves a machine that starts from the old slot or from the new one, never from
//! neither. Every call is idempotent. `activate` comes only for a slot that the journal says is proven, and touches nothing that
//! the other slot needs to start; `retire` comes before the first byte of a slot is written.
//!
//! ```text
//!            write, prove                restart                  health
//! retire(b) ──────────────▶ activate(b, 3) ─────▶ b runs, on trial ─────▶ confirm(b)
//!                                          └ three starts came to nothing: the boot loader itself goes back to a
//! ```
//!
//! | back-end       | active is                      | the atomic step                                | takes effect |
//! |----------------|--------------------------------|------------------------------------------------|--------------|
//! | `symlink`      | what a link points at          | rename(2) of a new link over the old one       | at once      |
//! | `command`      | what a site's own program says | the program's duty                             | as it says   |
//! | `grub`         | what the machine runs from     | one sector of GRUB's environment block         | at restart   |
//! | `systemd-boot` | the same                       | a new entry's name on the EFI system partition | at restart   |
//! | `uboot`        | the same                       | the other copy of U-Boot's environment         | at restart   |
//! | `uefi`         | the same                       | one variable of the firmware                   | at restart   |
//! | `mount`        | what is mounted at a mount point | umount(2) of the old one over the new one   | at once      |
//!
//! Each is a file of its own, an `impl Activation`, an arm in [`open`] and a page in `docs/boot/`. Trials, health and the way back
//! are the same for all of them and live in `trial` and `health`, not here.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use goldsync_proto::digest::ImageId;
use goldsync_proto::release::ReleaseRef;
use goldsync_proto::verity::{RootHash, Sealed};

use crate::config::{Backend, Config};
use crate::journal::{JournalError, Proven};
use crate::program::ProgramError;
use crate::slot::SlotName;
use crate::volume::VolumeError;

mod booted;
mod command;
mod formats;
mod grub;
mod inside;
mod kernel;
mod mount;
pub mod nextroot;
mod options;
mod symlink;
mod systemd_boot;
mod uboot;
mod uefi;

pub use booted::{Booted, count_soft_reboot, run};
pub use command::Command;
pub use grub::Grub;
pub use mount::{Mount, Started};
pub use options::Template;
pub use symlink::Symlink;
pub use systemd_boot::SystemdBoot;
pub use uboot::Uboot;
pub use uefi::Uefi;

/// A way to say which slot is active. Calls block.
pub trait Activation: Send + Sync {
    /// What runs, and what the next start takes.
    fn look(&self) -> Result<Look, ActivationError>;

    /// From now on nothing starts from `slot`: its first byte is about to be written. Never called for the active slot.
    fn retire(&self, slot: SlotName) -> Result<(), ActivationError>;

    /// Makes `slot` the one that is in use, at once or from the next start on, atomically and durably. With `tries`, a boot loader
    /// counts so many starts and then goes back to the other slot by itself; 0 is for a slot that was good before.
    fn activate(&self, slot: SlotName, holds: &Holds, tries: u8) -> Result<(), ActivationError>;

    /// `slot`, which runs, has shown itself good: it is started from now on, uncounted. Also for the slot that a boot loader went
    /// back to by itself, so that its starts are not counted any longer either.
    fn confirm(&self, slot: SlotName) -> Result<(), ActivationError>;

    /// Whether the loader has still what it was told about `slot`. Not if it was cut off while it counted, on a file system without a
    /// journal: that it starts another then says nothing against the slot.
    fn knows(&self, slot: SlotName) -> Result<bool, ActivationError> {
        let _ = slot;
        Ok(true)
    }

    /// How the machine was started, where a boot loader decides that.
    fn booted(&self) -> Option<&Booted> {
        None
    }

    /// When an activated slot is in use.
    fn takes_effect(&self) -> Effect {
        if self.booted().is_some() { Effect::AtRestart } else { Effect::AtOnce }
    }

    /// Whether starts of a slot on trial are counted, so that it is given up by itself.
    fn counts(&self) -> bool {
        self.takes_effect() == Effect::AtRestart
    }

    /// The root hash by which the kernel checks every read of the active slot, if it does. Whoever signed it has said which image
    /// that is, so that nobody needs to read it to know.
    fn root_hash(&self) -> Option<RootHash> {
        self.booted()?.root_hash()
    }

    /// The slot that is in use, if any was ever activated. It is never written.
    fn active(&self) -> Result<Option<SlotName>, ActivationError> {
        Ok(self.look()?.active)
    }
}

/// When what was activated is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// When `activate` returns.
    AtOnce,
    /// When the machine has started again.
    AtRestart,
}

/// What a back-end sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The slot that is in use.
    pub active: Option<SlotName>,
    /// The slot that the next start takes; with [`Effect::AtOnce`], the active one, but for a cut between two writes.
    pub next: Option<SlotName>,
    /// How many more starts of `next` the boot loader allows; `None` if it does not count them.
    pub tries: Option<u8>,
}

/// What a slot to be activated holds, for back-ends that label boot entries by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holds {
    /// The image.
    pub image: ImageId,
    /// Its release.
    pub release: ReleaseRef,
    /// Its bytes; a device may have more.
    pub size: u64,
    /// The hash tree that it carries, if it was signed with one.
    pub verity: Option<Sealed>,
}

impl Holds {
    /// What was proven.
    pub fn of(proven: &Proven) -> Self {
        let Proven { image, release, size, verity, .. } = proven.clone();
        Self { image, release, size, verity }
    }
}

/// Why the active slot cannot be told or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// A file or folder of the back-end's.
    #[error("activation by {backend}: {what} {}: {error}", path.display())]
    File {
        /// By whom.
        backend: &'static str,
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// What a boot loader goes by is not as it must be.
    #[error("activation by {backend}: {} {problem}", path.display())]
    Content {
        /// By whom.
        backend: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// The value, the limit, the remedy.
        problem: String,
    },
    /// Something is there, but no link.
    #[error("activation by symlink: {} is not a symbolic link; move it away so that the link can take its place", path.display())]
    NotALink {
        /// Where.
        path: PathBuf,
    },
    /// The link leads elsewhere.
    #[error(
        "activation by symlink: {} points at {}, which is neither slot; point it at a slot, or remove it",
        link.display(), target.display()
    )]
    Foreign {
        /// The link.
        link: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// There is no mount point.
    #[error("activation by mount: {} is no folder ({error}); make it: `mkdir -p {}`", path.display(), path.display())]
    NoPoint {
        /// Where.
        path: PathBuf,
        /// What was found.
        error: io::Error,
    },
    /// What is mounted is somebody else's.
    #[error("activation by mount: {source_of} is mounted on {}, which is neither slot; unmount it, or name another `activation.target`", path.display())]
    ForeignMount {
        /// The mount point.
        path: PathBuf,
        /// What is mounted.
        source_of: String,
    },
    /// Something is mounted inside the volume, and would go with it.
    #[error(
        "activation by mount: {} is mounted inside {}, and would vanish with the volume that is replaced; mount it beside it",
        inner.display(), path.display()
    )]
    Inside {
        /// The mount point.
        path: PathBuf,
        /// What is mounted inside.
        inner: PathBuf,
    },
    /// Attaching or mounting.
    #[error("activation by mount: {0}")]
    Volume(#[from] VolumeError),
    /// The durable choice of what to mount.
    #[error("activation by mount: {0}")]
    Choice(#[from] JournalError),
    /// A slot that shall be written is still read from.
    #[error("slot {slot}: {} is in use: {how}; {remedy}", path.display())]
    Pinned {
        /// Which.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// By whom.
        how: String,
        /// What ends it.
        remedy: String,
    },
    /// Neither slot can be mounted when the machine starts.
    #[error("activation by mount: neither slot can be mounted on {}: {why}", path.display())]
    Neither {
        /// The mount point.
        path: PathBuf,
        /// What was tried, and why it failed.
        why: String,
    },
    /// A site's program failed.
    #[error("activation by command: {0}")]
    Program(#[from] ProgramError),
    /// The program's answer is no answer.
    #[error("activation by command: `{call}` printed {printed:?}; a, b or none is expected")]
    Answer {
        /// Program and verb.
        call: String,
        /// What it printed, cut.
        printed: String,
    },
}

impl ActivationError {
    /// The process's exit code, as documented in `--help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Pinned { .. } | Self::Volume(_) | Self::Neither { .. } => 5,
            _ => 1,
        }
    }
}

/// The back-end that the configuration names.
pub fn open(config: &Config) -> Box<dyn Activation> {
    let booted = || Booted::new(config.activation.cmdline.clone(), &config.slots);
    match &config.activation.backend {
        Backend::Symlink { link } => Box::new(Symlink::new(link.clone(), &config.slots)),
        Backend::Command { program, effect } => Box::new(Command::new(program.clone(), *effect, &config.slots)),
        Backend::Grub { grubenv } => Box::new(Grub::new(grubenv.clone(), booted())),
        Backend::SystemdBoot(settings) => Box::new(SystemdBoot::new(settings, &config.slots, booted())),
        Backend::Uboot { env_config, single } => Box::new(Uboot::new(env_config.clone(), *single, booted())),
        Backend::Uefi { efivars, entries } => Box::new(Uefi::new(efivars.clone(), entries.clone(), booted())),
        Backend::Mount { target, volume } => Box::new(Mount::new(target, volume, &config.slots, &config.state)),
    }
}

fn failed(backend: &'static str, what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActivationError {
    let path = path.to_owned();
    move |error| ActivationError::File { backend, what, path, error }
}

/// Overwrites bytes where they lie, durably: what a boot loader finds by its blocks must keep them.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::config::Slots;

    /// A folder in the place of a machine: what its kernel's command line says, and room for a boot loader's files.
    pub(crate) struct Machine {
        folder: tempfile::TempDir,
    }

    impl Machine {
        /// One that was started from `slot`.
        pub(crate) fn new(slot: Option<SlotName>) -> Self {
            let machine = Self { folder: tempfile::tempdir().unwrap() };
            match slot {
                Some(slot) => machine.boot(slot),
                None => std::fs::write(machine.path("cmdline"), "ro").unwrap(),
            }
            machine
        }

        /// Starts it from `slot`.
        pub(crate) fn boot(&self, slot: SlotName) {
            std::fs::write(self.path("cmdline"), format!("ro goldsync.slot={slot}")).unwrap();
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        pub(crate) fn slots(&self) -> Slots {
            Slots { a: self.path("a.img"), b: self.path("b.img"), size: None }
        }

        pub(crate) fn booted(&self) -> Booted {
            Booted::new(self.path("cmdline"), &self.slots())
        }
    }

    /// Something to activate.
    pub(crate) fn holds() -> Holds {
        Holds { image: ImageId::of(b"x"), release: "web:1".parse().unwrap(), size: 4096, verity: None }
    }
}
