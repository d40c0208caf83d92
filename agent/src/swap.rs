//! The swap: the verbs `activate` and `rollback`, which need no server.
//!
//! ```text
//!  standby proven after the active slot  ──activate──▶  it becomes active
//!  standby proven before the active slot ──rollback──▶  it becomes active again, read back first;
//!                                                       the release that was left is held: see below
//! ```
//! Both are the same atomic step; the records' order tells which of the two words fits, so that neither does the other's
//! work by mistake. After a rollback the channel still points at the release that was left. [`Journal::hold`] keeps the
//! daemon from going there again by itself: until the channel moves on, or somebody says `activate`, `sync` or orders a
//! fleet sync. What is activated anew is on trial first: see [`crate::trial`].

use goldsync_proto::digest::ImageId;
use goldsync_proto::release::ReleaseRef;
use serde::Serialize;

use crate::boot::{Activation, ActivationError, Holds};
use crate::journal::{Journal, JournalError, Proven, RunLock, SlotRecord};
use crate::slot::SlotName;

/// Why the slots were not swapped. The active slot is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapError {
    /// The state folder.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The activation back-end.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The standby slot holds nothing that may be activated.
    #[error("standby slot {slot} {state}; nothing to activate: run `goldsync-agent download` first")]
    NotProven {
        /// Which slot.
        slot: SlotName,
        /// What it holds instead.
        state: &'static str,
    },
    /// The standby slot holds what ran before.
    #[error(
        "standby slot {slot} holds {release}, which was proven before the active slot's; to go back to it, run `goldsync-agent rollback`; for something newer, `goldsync-agent download`"
    )]
    Older {
        /// Which slot.
        slot: SlotName,
        /// What it holds.
        release: ReleaseRef,
    },
    /// The standby slot holds what has not run yet.
    #[error(
        "standby slot {slot} holds {release}, which is newer than what runs; nothing to go back to: to go on to it, run `goldsync-agent activate`"
    )]
    Newer {
        /// Which slot.
        slot: SlotName,
        /// What it holds.
        release: ReleaseRef,
    },
    /// Nothing ran before.
    #[error("no slot is active, so there is nothing to go back from")]
    NothingActive,
    /// The standby slot is not what the record says.
    #[error(
        "slot {slot} reads back as {got}, not as {expected}: it was changed or its disk is failing; it was not activated, and its record is cleared; run `goldsync-agent download` to make it anew"
    )]
    Unproven {
        /// Which slot.
        slot: SlotName,
        /// As read.
        got: ImageId,
        /// As recorded.
        expected: ImageId,
    },
}

/// What a swap did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Swapped {
    /// The slot that was active.
    pub from: Option<SlotName>,
    /// The slot that is active now.
    pub to: SlotName,
    /// What it holds.
    pub image: ImageId,
    /// Its release.
    pub release: ReleaseRef,
}

/// The records and the back-end that a swap needs. The caller holds the [`RunLock`].
pub struct Swap<'a> {
    /// What was proven.
    pub journal: &'a Journal,
    /// How a slot becomes active.
    pub activation: &'a dyn Activation,
    /// That nobody else is at it.
    pub lock: &'a RunLock,
}

impl Swap<'_> {
    /// What `activate` would make active: what was staged and proven since the last swap.
    pub fn next(&self) -> Result<Proven, SwapError> {
        let (active, slot, proven) = self.look()?;
        if self.journal.is_newer(&proven, active)? {
            Ok(proven)
        } else {
            Err(SwapError::Older { slot, release: proven.release })
        }
    }

    /// What `rollback` would go back to: what was active before.
    pub fn previous(&self) -> Result<Proven, SwapError> {
        self.before().map(|(_, _, proven)| proven)
    }

    /// Goes back to what was active before, and holds the release that is left. The caller has just proven the slot. No trial:
    /// it was kept once.
    pub fn back(&self) -> Result<Swapped, SwapError> {
        let (active, standby, proven) = self.before()?;
        if let Some(left) = active.map(|left| self.journal.slot(left)).transpose()?
            && let Some(left) = left.proven()
        {
            // Before the step: a crash in between costs one manual `sync`, the other order would undo the rollback.
            self.journal.hold(left.image, &left.release, "somebody went back from it by hand")?;
        }
        self.journal.disarm_trial()?;
        self.activation.activate(standby, &Holds::of(&proven), 0)?;
        self.journal.end_trial()?;
        Ok(Swapped { from: active, to: standby, image: proven.image, release: proven.release })
    }

    /// [`Swap::look`], where the standby slot holds what was active before.
    fn before(&self) -> Result<(Option<SlotName>, SlotName, Proven), SwapError> {
        let (active, slot, proven) = self.look()?;
        if active.is_none() {
            return Err(SwapError::NothingActive);
        }
        if self.journal.is_newer(&proven, active)? {
            return Err(SwapError::Newer { slot, release: proven.release });
        }
        Ok((active, slot, proven))
    }

    /// The active slot, the standby slot, and what the latter was proven to hold.
    pub fn look(&self) -> Result<(Option<SlotName>, SlotName, Proven), SwapError> {
        let active = self.activation.active()?;
        // With nothing active, either slot may be the one that was staged; the engine begins with a.
        let standby = match active {
            Some(active) => active.other(),
            None if self.journal.slot(SlotName::A)?.proven().is_some() => SlotName::A,
            None => SlotName::B,
        };
        match self.journal.slot(standby)? {
            SlotRecord::Proven(proven) => Ok((active, standby, proven)),
            SlotRecord::Staging(_) => Err(SwapError::NotProven { slot: standby, state: "is only half written" }),
            SlotRecord::Empty => Err(SwapError::NotProven { slot: standby, state: "holds nothing that was proven" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Symlink;
    use crate::config::Slots;
    use std::fs;

    struct Bench {
        _folder: tempfile::TempDir,
        slots: Slots,
        journal: Journal,
        activation: Symlink,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let slots = Slots { a: folder.path().join("a"), b: folder.path().join("b"), size: None };
            let journal = Journal::open(&folder.path().join("state")).unwrap();
            let activation = Symlink::new(folder.path().join("current"), &slots);
            Self { _folder: folder, slots, journal, activation }
        }

        /// Puts a proven image into a slot.
        fn stage(&self, slot: SlotName, release: &str) {
            let bytes = release.repeat(5000);
            fs::write(self.slots.path(slot), &bytes).unwrap();
            let image = ImageId::of(bytes.as_bytes());
            self.journal.set_proven(slot, image, &release.parse().unwrap(), bytes.len() as u64).unwrap();
            // Proofs are told apart by their times.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }

        fn swap<T>(&self, work: impl FnOnce(&Swap<'_>) -> T) -> T {
            let lock = self.journal.lock().unwrap();
            work(&Swap { journal: &self.journal, activation: &self.activation, lock: &lock })
        }

        fn activate(&self) -> Result<Swapped, SwapError> {
            self.swap(|swap| {
                swap.next()?;
                let (from, to, proven) = swap.look()?;
                swap.activation.activate(to, &Holds::of(&proven), 0)?;
                swap.journal.let_go(proven.image)?;
                Ok(Swapped { from, to, image: proven.image, release: proven.release })
            })
        }

        fn rollback(&self) -> Result<Swapped, SwapError> {
            self.swap(|swap| swap.back())
        }

        fn held(&self) -> Option<String> {
            self.journal.held().unwrap().first().map(|held| held.release.to_string())
        }
    }

    #[test]
    fn activate_goes_on_and_rollback_goes_back() {
        let bench = Bench::new();
        assert!(matches!(bench.activate(), Err(SwapError::NotProven { .. })));
        bench.stage(SlotName::A, "web:1");
        assert!(matches!(bench.rollback(), Err(SwapError::NothingActive)));
        let first = bench.activate().unwrap();
        assert_eq!((first.from, first.to), (None, SlotName::A));
        assert!(matches!(bench.activate(), Err(SwapError::NotProven { slot: SlotName::B, .. })));
        bench.stage(SlotName::B, "web:2");
        assert!(matches!(bench.rollback(), Err(SwapError::Newer { .. })));
        assert_eq!(bench.activate().unwrap().to, SlotName::B);
        assert_eq!(bench.held(), None);
        assert!(matches!(bench.activate(), Err(SwapError::Older { .. })));
        let back = bench.rollback().unwrap();
        assert_eq!((back.from, back.to, back.release.to_string()), (Some(SlotName::B), SlotName::A, "web:1".into()));
        assert_eq!(bench.held().as_deref(), Some("web:2"), "the release that was left is not tried again unasked");
        assert!(matches!(bench.rollback(), Err(SwapError::Newer { .. })));
        assert_eq!(bench.activate().unwrap().release.to_string(), "web:2");
        assert_eq!(bench.held(), None, "somebody said so");
    }

    #[test]
    fn a_machine_that_came_with_its_image_can_go_on() {
        let bench = Bench::new();
        fs::write(&bench.slots.a, "unknown").unwrap();
        std::os::unix::fs::symlink(&bench.slots.a, bench.slots.a.with_file_name("current")).unwrap();
        bench.stage(SlotName::B, "web:1");
        assert_eq!(bench.activate().unwrap().to, SlotName::B);
        assert!(matches!(bench.rollback(), Err(SwapError::NotProven { slot: SlotName::A, .. })));
    }
}
