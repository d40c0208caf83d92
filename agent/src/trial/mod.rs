//! The trial of what was activated: it has to show itself good, or the node goes back by itself.
//!
//! ```text
//!            activate                 restart, or at once               health
//! proven ──────────────▶ [waits] ───────────────────────▶ [running] ─────────────▶ confirmed
//!          trial.json       │                                 │ not healthy by its deadline
//!                           │ the machine runs the other slot ├─────────────────▶ back, and the release is held
//!                           └─────────── fell back ───────────┘
//! ```
//! The order of writes, so that a cut between any two of them is harmless:
//!
//! ```text
//! begin:      trial.json (armed: no)              the back-end's activate   trial.json (armed: yes)
//! confirm:                                        the back-end's confirm    trial.json goes
//! back:       held.json, trial.json (armed: no)   the back-end's activate   trial.json goes
//! fell back:  held.json                           the back-end's confirm    trial.json goes
//! called off: trial.json (armed: no)              the back-end's retire     trial.json goes
//! ```
//! As long as a slot runs on trial, the other one is what there is to go back to, and is not written.
//!
//! [`standing`] decides, and knows no clock and no file; [`settle()`] does what it decided.

use crate::boot::{Effect, Look};
use crate::journal::Trial;

mod settle;

pub use settle::{Settled, begin, call_off, confirm, look, settle};

/// How a trial stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The slot was never activated, or no longer: the machine stopped in between, or somebody chose otherwise since.
    NotTaken,
    /// It is what the next start takes.
    Waits,
    /// It runs, and has to show itself good.
    Running,
    /// The machine started again, and runs another slot: the boot loader has given it up.
    FellBack,
}

/// How `trial` stands, seen what the back-end says and in which run of the machine this is.
pub fn standing(trial: &Trial, look: &Look, run: &str, effect: Effect) -> Standing {
    if look.active == Some(trial.slot) {
        return Standing::Running;
    }
    match effect {
        // A volume whose starts are counted is given up like a boot loader's slot.
        Effect::AtOnce if trial.tries > 0 && trial.armed && trial.run != run => Standing::FellBack,
        // It would be active. Whoever swapped since has not been asked about health.
        Effect::AtOnce => Standing::NotTaken,
        // Tries that are used up are not there to be waited for.
        Effect::AtRestart if look.next == Some(trial.slot) && look.tries != Some(0) => Standing::Waits,
        Effect::AtRestart if trial.armed && trial.run != run => Standing::FellBack,
        Effect::AtRestart => Standing::NotTaken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::SlotName::{self, A, B};
    use goldsync_proto::digest::ImageId;

    fn trial(armed: bool) -> Trial {
        Trial {
            slot: B,
            image: ImageId::of(b"x"),
            release: "web:2".parse().unwrap(),
            from: Some(A),
            since: chrono::Utc::now(),
            run: "one".into(),
            tries: 3,
            armed,
        }
    }

    fn look(active: SlotName, next: SlotName, tries: Option<u8>) -> Look {
        Look { active: Some(active), next: Some(next), tries }
    }

    #[test]
    fn what_a_boot_loader_did_with_a_slot_is_told_from_what_runs() {
        use Standing::{FellBack, NotTaken, Running, Waits};
        for (armed, seen, run, expected) in [
            (true, look(A, B, Some(3)), "one", Waits),
            // Started by hand from the other entry: the tries are still there.
            (true, look(A, B, Some(2)), "two", Waits),
            (true, look(B, B, Some(2)), "two", Running),
            // Blessed by systemd already; our own health has still to say so.
            (true, look(B, B, None), "two", Running),
            (true, look(A, A, None), "two", FellBack),
            (true, look(A, B, Some(0)), "two", FellBack),
            // Cut between the record and the boot loader: nothing was tried.
            (false, look(A, A, None), "two", NotTaken),
            (false, look(A, A, None), "one", NotTaken),
            // Cut between the boot loader and the record.
            (false, look(A, B, Some(3)), "two", Waits),
            (false, look(B, B, Some(2)), "two", Running),
            // Cut while it was called off.
            (false, look(A, B, Some(1)), "two", Waits),
            // Undone by hand before the restart.
            (true, look(A, A, None), "one", NotTaken),
        ] {
            assert_eq!(standing(&trial(armed), &seen, run, Effect::AtRestart), expected, "{armed} {seen:?} {run}");
        }
    }

    #[test]
    fn what_is_in_use_at_once_runs_or_was_never_taken() {
        let uncounted = Trial { tries: 0, ..trial(true) };
        for (active, expected) in [(B, Standing::Running), (A, Standing::NotTaken)] {
            assert_eq!(standing(&uncounted, &look(active, active, None), "two", Effect::AtOnce), expected);
        }
        let counted = |run, armed| standing(&trial(armed), &look(A, A, None), run, Effect::AtOnce);
        assert_eq!(counted("two", true), Standing::FellBack, "starts came to nothing");
        assert_eq!((counted("one", true), counted("two", false)), (Standing::NotTaken, Standing::NotTaken));
        assert_eq!(standing(&trial(true), &Look::default(), "one", Effect::AtOnce), Standing::NotTaken);
    }
}
