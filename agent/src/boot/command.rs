//! Activation by a site's own program; `docs/boot/command.md` is the contract as sites read it.
//!
//! ```text
//! PROGRAM [ARG...] query         prints `a`, `b` or `none`, the slot in use, and ends with 0
//! PROGRAM [ARG...] activate a|b  makes that slot the active one and ends with 0
//!
//! only with activation.takes_effect = "at-restart":
//! PROGRAM [ARG...] query         prints the slot in use, then, if the next start takes another or counts its tries, the slot
//!                                that it takes, then how many tries are left: `a b 3`
//! PROGRAM [ARG...] retire a|b    nothing starts from that slot any more: its first byte is about to be written
//! PROGRAM [ARG...] confirm a|b   that slot, which runs, is started from now on, uncounted
//! ```
//! * Environment, besides the agent's own: `GOLDSYNC_SLOT_A` and `GOLDSYNC_SLOT_B` (the slots' paths); for `activate`
//!   also `GOLDSYNC_SLOT_PATH` (the path of the slot to activate), `GOLDSYNC_IMAGE` (its BLAKE3, 64 digits),
//!   `GOLDSYNC_RELEASE` (`NAME:VERSION`) and `GOLDSYNC_TRIES` (starts to be counted before the boot loader goes back to the
//!   other slot by itself; 0: none, the slot was good before).
//! * Standard input is empty. What `activate` prints is ignored; standard error is shown when it fails.
//! * Exit code 0 means done and durable; any other code, or a signal, means that the old slot is still active.
//! * Atomicity is the program's duty: power lost at any moment leaves the old slot active or the new one. Each call may come
//!   again after it was done, and must succeed then.
//! * It has `activation.time_limit` (default 60 s); then it and the processes it started are killed, and `query` is
//!   asked at the next occasion how things stand.

use super::{Activation, ActivationError, Effect, Holds, Look};
use crate::config::Slots;
use crate::program::Program;
use crate::slot::SlotName;

/// A program that knows which slot is active.
#[derive(Debug)]
pub struct Command {
    program: Program,
    effect: Effect,
    slots: Slots,
}

impl Command {
    /// The program, when what it activates is in use, and the slots.
    pub fn new(program: Program, effect: Effect, slots: &Slots) -> Self {
        Self { program, effect, slots: slots.clone() }
    }

    fn call(&self, arguments: &[&str], environment: &[(&str, String)]) -> Result<String, ActivationError> {
        let slots = SlotName::ALL.map(|name| self.slots.path(name).display().to_string());
        let [a, b] = slots;
        let mut all = vec![("GOLDSYNC_SLOT_A", a), ("GOLDSYNC_SLOT_B", b)];
        all.extend(environment.iter().cloned());
        Ok(self.program.call(arguments, &all)?)
    }

    fn at_restart(&self, verb: &str, slot: SlotName) -> Result<(), ActivationError> {
        match self.effect {
            Effect::AtOnce => Ok(()),
            Effect::AtRestart => self.call(&[verb, slot.as_str()], &[]).map(drop),
        }
    }
}

/// Reads what `query` printed: `SLOT [SLOT [TRIES]]`.
fn answer(printed: &str, effect: Effect) -> Option<Look> {
    let slot = |word: &str| match word {
        "none" => Some(None),
        word => word.parse().ok().map(Some),
    };
    let words: Vec<&str> = printed.split_whitespace().collect();
    match (words.as_slice(), effect) {
        ([active], _) => slot(active).map(|active| Look { active, next: active, tries: None }),
        ([active, next], Effect::AtRestart) => Some(Look { active: slot(active)?, next: slot(next)?, tries: None }),
        ([active, next, tries], Effect::AtRestart) => {
            Some(Look { active: slot(active)?, next: slot(next)?, tries: Some(tries.parse().ok()?) })
        }
        _ => None,
    }
}

impl Activation for Command {
    fn look(&self) -> Result<Look, ActivationError> {
        let printed = self.call(&["query"], &[])?;
        answer(&printed, self.effect).ok_or_else(|| ActivationError::Answer {
            call: self.program.shown(&["query"]),
            printed: printed.chars().take(80).collect(),
        })
    }

    fn retire(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.at_restart("retire", slot)
    }

    fn activate(&self, slot: SlotName, holds: &Holds, tries: u8) -> Result<(), ActivationError> {
        let environment = [
            ("GOLDSYNC_SLOT_PATH", self.slots.path(slot).display().to_string()),
            ("GOLDSYNC_IMAGE", holds.image.to_string()),
            ("GOLDSYNC_RELEASE", holds.release.to_string()),
            ("GOLDSYNC_TRIES", tries.to_string()),
        ];
        self.call(&["activate", slot.as_str()], &environment).map(drop)
    }

    fn confirm(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.at_restart("confirm", slot)
    }

    fn takes_effect(&self) -> Effect {
        self.effect
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::holds;
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    fn script(folder: &Path, body: &str, effect: Effect) -> Command {
        let slots = Slots { a: "/slots/a".into(), b: "/slots/b".into(), size: None };
        let path = folder.join("program");
        fs::write(&path, body).unwrap();
        let command = vec!["/bin/sh".into(), path.display().to_string(), "extra".into()];
        Command::new(Program { command, limit: Duration::from_secs(60) }, effect, &slots)
    }

    /// A program that keeps its state in a file, and the environment of `activate` beside it.
    fn keeper(folder: &Path, effect: Effect) -> Command {
        let body = format!(
            r#"
            set -eu
            [ "$1" = extra ]
            case "$2" in
              query) cat '{0}' 2>/dev/null || echo none ;;
              activate) echo "$3" > '{0}.new'; mv '{0}.new' '{0}'
                for name in IMAGE RELEASE SLOT_A SLOT_B SLOT_PATH TRIES; do eval "echo GOLDSYNC_$name=\$GOLDSYNC_$name"; done > '{0}.env' ;;
              *) echo "$2 $3" >> '{0}.calls' ;;
            esac"#,
            folder.join("state").display()
        );
        script(folder, &body, effect)
    }

    #[test]
    fn the_contract_is_kept_from_query_to_activate() {
        let folder = tempfile::tempdir().unwrap();
        let command = keeper(folder.path(), Effect::AtOnce);
        assert_eq!(command.active().unwrap(), None);
        command.activate(SlotName::B, &holds(), 3).unwrap();
        assert_eq!(command.active().unwrap(), Some(SlotName::B));
        let environment = fs::read_to_string(folder.path().join("state.env")).unwrap();
        let image = holds().image;
        let expected = format!(
            "GOLDSYNC_IMAGE={image}\nGOLDSYNC_RELEASE=web:1\nGOLDSYNC_SLOT_A=/slots/a\nGOLDSYNC_SLOT_B=/slots/b\nGOLDSYNC_SLOT_PATH=/slots/b\nGOLDSYNC_TRIES=3\n"
        );
        assert_eq!(environment, expected);
    }

    #[test]
    fn only_a_boot_loader_is_told_of_slots_to_leave_alone_and_to_keep() {
        let folder = tempfile::tempdir().unwrap();
        let calls = || fs::read_to_string(folder.path().join("state.calls")).unwrap_or_default();
        let live = keeper(folder.path(), Effect::AtOnce);
        live.retire(SlotName::A).and(live.confirm(SlotName::B)).unwrap();
        assert_eq!(calls(), "");
        let loader = keeper(folder.path(), Effect::AtRestart);
        loader.retire(SlotName::A).and(loader.confirm(SlotName::B)).unwrap();
        assert_eq!(calls(), "retire a\nconfirm b\n");
    }

    #[test]
    fn a_failing_program_is_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let command = script(folder.path(), "echo 'no such entry' >&2; exit 3", Effect::AtOnce);
        let error = command.activate(SlotName::A, &holds(), 0).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such entry"), "{error}");
        assert!(error.contains("extra activate a"), "{error}");
    }

    #[test]
    fn answers_are_words_of_the_contract_or_refused() {
        let (a, b) = (Some(SlotName::A), Some(SlotName::B));
        for (printed, effect, expected) in [
            ("a", Effect::AtOnce, Some((a, a, None))),
            ("none", Effect::AtOnce, Some((None, None, None))),
            ("a", Effect::AtRestart, Some((a, a, None))),
            ("a b", Effect::AtRestart, Some((a, b, None))),
            (" a  b\n2 ", Effect::AtRestart, Some((a, b, Some(2)))),
            ("none b 3", Effect::AtRestart, Some((None, b, Some(3)))),
            ("a b", Effect::AtOnce, None),
            ("a b 300", Effect::AtRestart, None),
            ("a b -1", Effect::AtRestart, None),
            ("a b 1 x", Effect::AtRestart, None),
            ("c", Effect::AtOnce, None),
            ("", Effect::AtRestart, None),
            ("A", Effect::AtOnce, None),
        ] {
            let look = expected.map(|(active, next, tries)| Look { active, next, tries });
            assert_eq!(answer(printed, effect), look, "{printed:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let command = script(folder.path(), "echo perhaps", Effect::AtOnce);
        assert!(matches!(command.look(), Err(ActivationError::Answer { .. })));
    }
}
