//! Activation by a mount point: the active slot's file system, mounted read-only, is what readers see there, and is replaced
//! while they read.
//!
//! ```text
//!        at rest        beneath                detach the top       at rest
//! top    a (seen)       a (seen)   b beneath   b (seen)             b (seen)
//! ```
//! The new slot is mounted where nobody sees it, moved *beneath* the old one (`MOVE_MOUNT_BENEATH`, Linux 6.5), and then the old
//! one is taken away: one atomic step, before which every path leads into a and after which into b, and never nowhere. Who has a
//! file of a open keeps it (the mount is detached lazily): until they let go, slot a's device is busy and slot a is not written.
//!
//! What is mounted is the truth about what is active. A machine that starts has nothing mounted, so there is a durable choice
//! besides, `STATE/mount.json`, which [`Mount::at_start`] follows. The mount comes first and the choice second: what is chosen has
//! been mounted here once, and can be. A cut between the two leaves the choice at the old slot, which is as whole as ever: it is
//! written by nobody before [`Activation::retire`] has moved the choice away from it. A slot on trial is chosen for so many
//! starts, each counted before it is tried; then the other one is taken, as a boot loader would.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use goldsync_proto::verity::{RootHash, Sealed};
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use super::booted::slot_under;
use super::{Activation, ActivationError, Holds, Look};
use crate::config::{Backend, Config, Slots};
use crate::journal::{self, Journal, RunLock, SlotRecord};
use crate::mounts;
use crate::slot::{self, SlotName};
use crate::volume::{self, Detached, Volume, VolumeError};

/// Mounts over each other that are looked at: two, and what interrupted swaps may have left.
const STACK_MAX: usize = 16;

/// How long a reader that is just passing through may keep the old volume.
const PASSING: Duration = Duration::from_millis(300);

/// How long a slot that shall be written is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is mounted at a mount point.
#[derive(Debug)]
pub struct Mount {
    target: PathBuf,
    volume: Volume,
    slots: Slots,
    state: PathBuf,
}

/// What is mounted when the machine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Choice {
    slot: SlotName,
    /// On trial: starts that are left before the other slot is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tries: Option<u8>,
}

impl Choice {
    /// The slot that the next start takes.
    fn next(self) -> SlotName {
        if self.tries == Some(0) { self.slot.other() } else { self.slot }
    }
}

/// What a start came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// No slot was ever activated.
    Nothing,
    /// It was mounted before.
    Already(SlotName),
    /// It is mounted now; with the reason, if it is not the slot that was chosen.
    Mounted(SlotName, Option<String>),
}

impl Mount {
    /// Shows slots at `target`, mounted as `volume` says. The choice is kept in the folder `state`.
    pub fn new(target: &Path, volume: &Volume, slots: &Slots, state: &Path) -> Self {
        Self { target: target.to_owned(), volume: volume.clone(), slots: slots.clone(), state: state.to_owned() }
    }

    /// As the configuration says, if this is its back-end.
    pub fn configured(config: &Config) -> Option<Self> {
        let Backend::Mount { target, volume } = &config.activation.backend else { return None };
        Some(Self::new(target, volume, &config.slots, &config.state))
    }

    /// Mounts the chosen slot after the machine has started. The caller holds the lock.
    pub fn at_start(&self, _lock: &RunLock) -> Result<Started, ActivationError> {
        if let Some(top) = self.stack()?.last() {
            return Ok(Started::Already(*top));
        }
        let Some(choice) = self.choice()? else { return Ok(Started::Nothing) };
        if let Some(left) = choice.tries.and_then(|tries| tries.checked_sub(1)) {
            // Durable before it is tried: a start that ends in the dark was one.
            self.choose(Choice { tries: Some(left), ..choice })?;
        }
        let first = choice.next();
        let mut why = match choice.tries {
            Some(0) => vec![format!("slot {} used up its tries", choice.slot)],
            _ => Vec::new(),
        };
        for slot in [first, first.other()] {
            match self.try_at_start(slot) {
                Ok(()) => return Ok(Started::Mounted(slot, (!why.is_empty()).then(|| why.join("; ")))),
                Err(error) => why.push(format!("slot {slot}: {error}")),
            }
        }
        Err(ActivationError::Neither { path: self.target.clone(), why: why.join("; ") })
    }

    fn try_at_start(&self, slot: SlotName) -> Result<(), ActivationError> {
        let record = self.record(slot)?;
        if let SlotRecord::Staging(_) = record {
            let error = io::Error::other("it is only half written");
            return Err(VolumeError::io("mounting", self.slots.path(slot))(error).into());
        }
        Ok(self.attach(slot, sealed(&record))?.put(&self.point()?)?)
    }

    /// What was proven of a slot.
    fn record(&self, slot: SlotName) -> Result<SlotRecord, ActivationError> {
        Ok(Journal::open(&self.state)?.slot(slot)?)
    }

    fn attach(&self, slot: SlotName, sealed: Option<&Sealed>) -> Result<Detached, VolumeError> {
        self.volume.mount(slot, self.slots.path(slot), sealed)
    }

    /// The mount point as the kernel calls it.
    fn point(&self) -> Result<PathBuf, ActivationError> {
        let point = self.target.canonicalize().and_then(|point| match point.is_dir() {
            true => Ok(point),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        point.map_err(|error| ActivationError::NoPoint { path: self.target.clone(), error })
    }

    /// The slots that are mounted at the mount point, one over the other; the last is seen.
    fn stack(&self) -> Result<Vec<SlotName>, ActivationError> {
        // Without a mount point there is no mount.
        let Ok(point) = self.point() else { return Ok(Vec::new()) };
        let of_entry = |entry: &mounts::Entry| {
            slot_under(entry.device, &self.slots).ok_or_else(|| ActivationError::ForeignMount {
                path: self.target.clone(),
                source_of: entry.source.clone(),
            })
        };
        mounts::on(&mounts::table(), &point).iter().map(of_entry).collect()
    }

    /// What is mounted inside goes with what is replaced.
    fn refuse_inside(&self, point: &Path) -> Result<(), ActivationError> {
        let table = mounts::table();
        match table.iter().find(|entry| entry.point != point && entry.point.starts_with(point)) {
            Some(entry) => Err(ActivationError::Inside { path: point.to_owned(), inner: entry.point.clone() }),
            None => Ok(()),
        }
    }

    /// Makes `slot` the one that is seen, and the only one that is mounted.
    fn show(&self, slot: SlotName, sealed: Option<&Sealed>) -> Result<(), ActivationError> {
        let point = self.point()?;
        for _ in 0..STACK_MAX {
            match *self.stack()?.as_slice() {
                [top] if top == slot => return Ok(()),
                [] => self.attach(slot, sealed)?.put(&point)?,
                [_] => {
                    self.refuse_inside(&point)?;
                    self.attach(slot, sealed)?.put_beneath(&point)?;
                    detach(&point)?;
                }
                // A swap was interrupted between its two steps. What lies beneath was proven then, and is written by nobody as
                // long as it is mounted: it may be seen for a moment.
                [_, ..] => {
                    self.refuse_inside(&point)?;
                    detach(&point)?;
                }
            }
        }
        let error = io::Error::other("others mount there too");
        Err(VolumeError::io("settling what is mounted on", &self.target)(error).into())
    }

    fn choice_file(&self) -> PathBuf {
        self.state.join("mount.json")
    }

    fn choice(&self) -> Result<Option<Choice>, ActivationError> {
        let file = self.choice_file();
        match journal::read_json(&file)? {
            // Taken for none, the slot that it names could be written.
            None if file.exists() => Err(ActivationError::File {
                backend: "mount",
                what: "reading",
                path: file,
                error: io::Error::new(io::ErrorKind::InvalidData, "it is damaged; mount a slot by hand and remove it"),
            }),
            choice => Ok(choice),
        }
    }

    fn choose(&self, choice: Choice) -> Result<(), ActivationError> {
        Ok(journal::write_json(&self.choice_file(), &choice)?)
    }

    /// Waits until nothing uses `slot` any more; what still does.
    fn released(&self, slot: SlotName, patience: Duration) -> Option<slot::Use> {
        let until = Instant::now() + patience;
        // Looking through all processes has its price: less and less often.
        let mut pause = Duration::from_millis(5);
        loop {
            let used = slot::used(self.slots.path(slot))?;
            if Instant::now() >= until {
                return Some(used);
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(500));
        }
    }
}

fn sealed(record: &SlotRecord) -> Option<&Sealed> {
    record.proven().and_then(|proven| proven.verity.as_ref())
}

/// Takes away what is seen; who has it open keeps it.
fn detach(point: &Path) -> Result<(), VolumeError> {
    let detached = rustix::mount::unmount(point, UnmountFlags::DETACH);
    detached.map_err(|error| VolumeError::io("taking away the old mount on", point)(error.into()))
}

impl Activation for Mount {
    fn look(&self) -> Result<Look, ActivationError> {
        let seen = self.stack()?.last().copied();
        let choice = self.choice()?;
        // Nothing is mounted yet after a start: what will be must not be written either.
        let next = choice.map(Choice::next);
        Ok(Look {
            active: seen.or(next),
            next: next.or(seen),
            tries: choice.filter(|choice| Some(choice.slot) == next).and_then(|choice| choice.tries),
        })
    }

    fn retire(&self, slot: SlotName) -> Result<(), ActivationError> {
        let stack = self.stack()?;
        if let Some(top) = stack.last().filter(|top| **top != slot && stack.contains(&slot)) {
            self.show(*top, sealed(&self.record(*top)?))?;
        }
        match self.choice()? {
            Some(choice) if choice.slot == slot || choice.next() == slot => {
                self.choose(Choice { slot: slot.other(), tries: None })?;
            }
            // It must last before the slot is written, and may be the work of a run that was killed before it synced.
            Some(choice) => self.choose(choice)?,
            None => {}
        }
        match self.released(slot, PATIENCE) {
            None => Ok(()),
            Some(slot::Use { how, remedy }) => {
                Err(ActivationError::Pinned { slot, path: self.slots.path(slot).to_owned(), how, remedy })
            }
        }
    }

    fn activate(&self, slot: SlotName, holds: &Holds, tries: u8) -> Result<(), ActivationError> {
        self.show(slot, holds.verity.as_ref())?;
        self.choose(Choice { slot, tries: (tries > 0).then_some(tries) })?;
        if let Some(slot::Use { how, .. }) = self.released(slot.other(), PASSING) {
            tracing::warn!(slot = %slot.other(), %how, "the slot that was left is not written until it is let go");
        }
        Ok(())
    }

    fn confirm(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.choose(Choice { slot, tries: None })
    }

    /// [`Mount::at_start`] does.
    fn counts(&self) -> bool {
        true
    }

    fn root_hash(&self) -> Option<RootHash> {
        let seen = mounts::on(&mounts::table(), &self.point().ok()?).pop()?;
        volume::running_root(seen.device)
    }
}
