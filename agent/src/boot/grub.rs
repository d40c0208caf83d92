//! Activation by GRUB, which counts a new slot's starts and goes back by itself.
//!
//! ```text
//! grubenv        goldsync_slot=b  goldsync_tries=3  goldsync_good=a        written here, and by GRUB at every counted start
//! goldsync.env   goldsync_good=a                                            beside it; written here only
//!
//! activate(b, 3)          GRUB: b, tries=2      b, tries=1      b, tries=0      a, because b's tries are over
//! confirm(b)              slot=b tries=- good=b
//! ```
//! | `goldsync_slot` | `goldsync_tries` | GRUB starts                                                              |
//! |-----------------|------------------|--------------------------------------------------------------------------|
//! | b               | `-`              | b                                                                        |
//! | b               | 9 to 1           | b, and counts one down first; if that cannot be saved, `goldsync_good`   |
//! | b               | 0, or no number  | `goldsync_good`, which then is counted itself: good=`-`                  |
//! | b               | 0, good=`-`      | both failed: says so, shows a menu, and starts b after five minutes      |
//! | neither a nor b |                  | the good slot of `goldsync.env`                                          |
//!
//! The other half of this is `packaging/grub/goldsync.cfg`; the two agree on the table above.
//!
//! **Power.** GRUB finds the bytes of both files by their blocks and knows no file system's journal. So nothing is renamed here:
//! both are overwritten where they lie, by one write of 1024 bytes and one sync. A disk writes 512 bytes or none of them, and
//!
//! 1. all that is ours comes first, in the first sector, and always takes the same number of bytes, a `-` where there is no value.
//!    A write that was cut between the sectors leaves our old state or our new one; the second sector has not changed.
//! 2. `goldsync.env` is synced before `grubenv` is begun, and says a slot that may be started before and after: whatever
//!    is left of a sector that was torn after all, the other file is whole, and GRUB does not believe what is not a slot's name.
//! 3. Our first write ever into a `grubenv` with others' variables in it moves those; cut there, theirs may be torn.
//!
//! What can go wrong besides: GRUB cannot write on Btrfs, ZFS or Linux RAID, where a file's blocks are not the disk's. Then it does
//! not start what it cannot count, and no update ever comes to be; [`Activation::activate`] refuses what it can tell.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::formats::grubenv::{Block, GrubenvError, SIZE};
use super::{Activation, ActivationError, Booted, Holds, Look, overwrite};
use crate::slot::SlotName;

const BACKEND: &str = "grub";

/// The other file's name, beside `grubenv`.
const GOOD_FILE: &str = "goldsync.env";

const SLOT: &str = "goldsync_slot";
const TRIES: &str = "goldsync_tries";
const GOOD: &str = "goldsync_good";

/// File systems on which a file's blocks are not where GRUB would write, by the numbers that statfs(2) tells.
const MOVING: &[(u32, &str)] = &[(0x9123_683e, "Btrfs"), (0x2fc1_2fc1, "ZFS"), (0xca45_1a4e, "bcachefs")];

/// GRUB's environment and what runs.
#[derive(Debug)]
pub struct Grub {
    grubenv: PathBuf,
    good_file: PathBuf,
    booted: Booted,
}

/// What GRUB goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    slot: Option<SlotName>,
    tries: Tries,
    good: Option<SlotName>,
}

/// Starts that are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tries {
    /// They are not counted.
    #[default]
    Uncounted,
    /// So many. What is no number counts as 0.
    Left(u8),
}

impl State {
    fn read(block: &Block) -> Self {
        let tries = match block.get(TRIES).as_deref() {
            None | Some(b"-") => Tries::Uncounted,
            Some([digit @ b'0'..=b'9']) => Tries::Left(digit - b'0'),
            Some(_) => Tries::Left(0),
        };
        Self { slot: slot(block, SLOT), tries, good: slot(block, GOOD) }
    }

    /// All three, one byte each.
    fn put(self, block: &mut Block) {
        let tries = match self.tries {
            Tries::Uncounted => "-".to_owned(),
            Tries::Left(left) => left.min(9).to_string(),
        };
        block.set_first(&[(SLOT, shown(self.slot)), (TRIES, &tries), (GOOD, shown(self.good))]);
    }

    /// What the next start takes, and how many more it may take; `kept` is the other file's good slot.
    fn next(self, kept: Option<SlotName>) -> (Option<SlotName>, Option<u8>) {
        match (self.slot, self.tries, self.good) {
            (None, _, _) => (kept, None),
            (_, Tries::Left(0), Some(good)) => (Some(good), None),
            (slot, Tries::Left(left), _) => (slot, Some(left)),
            (slot, Tries::Uncounted, _) => (slot, None),
        }
    }

    /// For good.
    fn settled(slot: Option<SlotName>) -> Self {
        Self { slot, tries: Tries::Uncounted, good: slot }
    }
}

fn slot(block: &Block, name: &str) -> Option<SlotName> {
    std::str::from_utf8(&block.get(name)?).ok()?.parse().ok()
}

fn shown(slot: Option<SlotName>) -> &'static str {
    slot.map_or("-", SlotName::as_str)
}

impl Grub {
    /// By the environment block `grubenv`.
    pub fn new(grubenv: PathBuf, booted: Booted) -> Self {
        let good_file = grubenv.with_file_name(GOOD_FILE);
        Self { grubenv, good_file, booted }
    }

    /// A block, or `None` if there is none that GRUB could read.
    fn load(path: &Path) -> Result<Option<Block>, ActivationError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Block::read(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", path)(error)),
        }
    }

    fn kept(&self) -> Result<Option<SlotName>, ActivationError> {
        Ok(Self::load(&self.good_file)?.and_then(|block| slot(&block, GOOD)))
    }

    /// Changes both files, the one that only we write first. What is there already is synced all the same: who wrote it may have
    /// died before that.
    fn change(&self, change: impl FnOnce(State) -> State) -> Result<(), ActivationError> {
        let length = match fs::metadata(&self.grubenv) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let problem = format!("does not exist; make it: grub-editenv {} create", self.grubenv.display());
                return Err(self.content(problem));
            }
            Err(error) => return Err(failed("reading", &self.grubenv)(error)),
        };
        // A block that was destroyed is made anew in its place, but a file of another length has other blocks.
        if length != SIZE as u64 {
            return Err(self.content(GrubenvError::Size { found: length }.to_string()));
        }
        let mut block = Self::load(&self.grubenv)?.unwrap_or_default();
        let state = change(State::read(&block));
        state.put(&mut block);
        let bytes = block.write().map_err(|error| self.content(error.to_string()))?;
        let mut good = Self::load(&self.good_file)?.unwrap_or_default();
        good.set_first(&[(GOOD, shown(state.good))]);
        let good = good.write().map_err(|error| self.content(error.to_string()))?;
        self.write_good(&good)?;
        overwrite(&self.grubenv, 0, &bytes).map_err(failed("writing", &self.grubenv))
    }

    fn write_good(&self, bytes: &[u8]) -> Result<(), ActivationError> {
        match overwrite(&self.good_file, 0, bytes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = crate::disk::write_new(&self.good_file, bytes);
                let folder = self.good_file.parent().unwrap_or(Path::new("/"));
                let made = made.and_then(|()| crate::disk::sync_dir(folder));
                made.map_err(|error| failed("making", &error.path)(error.source))
            }
            done => done.map_err(failed("writing", &self.good_file)),
        }
    }

    /// GRUB must be able to write where the block lies, or a new slot is never started.
    fn check_place(&self) -> Result<(), ActivationError> {
        let file = File::open(&self.grubenv).map_err(failed("opening", &self.grubenv))?;
        let system = rustix::fs::fstatfs(&file).map_err(|error| failed("looking at", &self.grubenv)(error.into()))?;
        let number = system.f_type as u32;
        match MOVING.iter().find(|(magic, _)| *magic == number) {
            None => Ok(()),
            Some((_, name)) => Err(self.content(format!(
                "lies on {name}, where GRUB cannot save what it counts; put it on ext4, XFS or FAT, for example on the EFI system partition"
            ))),
        }
    }

    fn content(&self, problem: String) -> ActivationError {
        ActivationError::Content { backend: BACKEND, path: self.grubenv.clone(), problem }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActivationError {
    super::failed(BACKEND, what, path)
}

impl Activation for Grub {
    fn look(&self) -> Result<Look, ActivationError> {
        let state = Self::load(&self.grubenv)?.map(|block| State::read(&block)).unwrap_or_default();
        let (next, tries) = state.next(self.kept()?);
        Ok(Look { active: self.booted.slot()?, next, tries })
    }

    /// Settles on the other slot, if that is what runs; on a machine where none runs, only forgets this one.
    fn retire(&self, slot: SlotName) -> Result<(), ActivationError> {
        let active = self.booted.slot()?;
        self.change(|state| match active {
            Some(active) => State::settled(Some(active)),
            None => State::settled(state.slot.or(state.good).filter(|next| *next != slot)),
        })
    }

    fn activate(&self, slot: SlotName, _holds: &Holds, tries: u8) -> Result<(), ActivationError> {
        if tries == 0 {
            return self.change(|_| State::settled(Some(slot)));
        }
        self.check_place()?;
        let active = self.booted.slot()?;
        self.change(|state| {
            let good = active.or(state.good).filter(|good| *good != slot).or(state.good.filter(|good| *good != slot));
            State { slot: Some(slot), tries: Tries::Left(tries), good }
        })
    }

    fn confirm(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.change(|_| State::settled(Some(slot)))
    }

    fn booted(&self) -> Option<&Booted> {
        Some(&self.booted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Machine, holds};
    use super::*;

    const A: SlotName = SlotName::A;
    const B: SlotName = SlotName::B;

    struct Bench {
        machine: Machine,
        grub: Grub,
    }

    impl Bench {
        /// A machine that runs from `slot`, with a block as `grub-editenv create` makes it, and somebody's variable in it.
        fn new(slot: Option<SlotName>) -> Self {
            let machine = Machine::new(slot);
            let grubenv = machine.path("grubenv");
            let mut block = Block::default();
            block.set_first(&[("saved_entry", "2")]);
            fs::write(&grubenv, block.write().unwrap()).unwrap();
            let grub = Grub::new(grubenv, machine.booted());
            Self { machine, grub }
        }

        /// `grubenv`, as `SLOT TRIES GOOD`, and the good slot of the other file.
        fn shown(&self) -> String {
            let block = Grub::load(&self.grub.grubenv).unwrap().unwrap();
            assert_eq!(block.get("saved_entry").unwrap(), b"2", "what is not ours stays");
            let value = |name| String::from_utf8(block.get(name).unwrap()).unwrap();
            let kept = shown(self.grub.kept().unwrap());
            format!("{} {} {} | {kept}", value(SLOT), value(TRIES), value(GOOD))
        }

        fn look(&self) -> (Option<SlotName>, Option<SlotName>, Option<u8>) {
            let Look { active, next, tries } = self.grub.look().unwrap();
            (active, next, tries)
        }

        /// What `goldsync.cfg` does at a start: which slot it takes, or `None` for the menu.
        fn start(&self) -> Option<SlotName> {
            let mut block = Grub::load(&self.grub.grubenv).unwrap().unwrap();
            let state = State::read(&block);
            let (state, taken) = match (state.slot, state.tries, state.good) {
                (None, ..) => (state, self.grub.kept().unwrap()),
                (_, Tries::Left(0), None) => (state, None),
                (_, Tries::Left(0), Some(good)) => {
                    (State { slot: Some(good), tries: Tries::Left(3), good: None }, Some(good))
                }
                (slot, Tries::Left(left), _) => (State { tries: Tries::Left(left - 1), ..state }, slot),
                (slot, Tries::Uncounted, _) => (state, slot),
            };
            state.put(&mut block);
            fs::write(&self.grub.grubenv, block.write().unwrap()).unwrap();
            if let Some(slot) = taken {
                self.machine.boot(slot);
            }
            taken
        }
    }

    #[test]
    fn a_good_update_is_counted_and_confirmed() {
        let bench = Bench::new(Some(A));
        assert_eq!(bench.look(), (Some(A), None, None), "nothing was ever said to this loader");
        bench.grub.retire(B).unwrap();
        assert_eq!(bench.shown(), "a - a | a");
        for _ in 0..2 {
            bench.grub.activate(B, &holds(), 3).unwrap();
            assert_eq!((bench.shown().as_str(), bench.look()), ("b 3 a | a", (Some(A), Some(B), Some(3))));
        }
        assert_eq!(bench.start(), Some(B));
        assert_eq!(bench.look(), (Some(B), Some(B), Some(2)));
        for _ in 0..2 {
            bench.grub.confirm(B).unwrap();
            assert_eq!((bench.shown().as_str(), bench.look()), ("b - b | b", (Some(B), Some(B), None)));
        }
        assert_eq!(bench.start(), Some(B));
        bench.grub.activate(A, &holds(), 0).unwrap();
        assert_eq!((bench.shown().as_str(), bench.look()), ("a - a | a", (Some(B), Some(A), None)));
    }

    #[test]
    fn a_slot_that_never_reaches_us_is_left_after_its_tries() {
        let bench = Bench::new(Some(A));
        bench.grub.activate(B, &holds(), 2).unwrap();
        assert_eq!([bench.start(), bench.start(), bench.start()], [Some(B), Some(B), Some(A)]);
        assert_eq!(bench.look(), (Some(A), Some(A), Some(3)));
        bench.grub.confirm(A).unwrap();
        assert_eq!((bench.shown().as_str(), bench.look()), ("a - a | a", (Some(A), Some(A), None)));
    }

    #[test]
    fn two_bad_slots_end_in_the_menu() {
        let bench = Bench::new(Some(A));
        bench.grub.activate(B, &holds(), 1).unwrap();
        let starts: Vec<_> = (0..6).map(|_| bench.start()).collect();
        assert_eq!(starts, [Some(B), Some(A), Some(A), Some(A), Some(A), None]);
        assert_eq!(bench.look(), (Some(A), Some(A), Some(0)));
    }

    #[test]
    fn nothing_starts_from_a_retired_slot() {
        let bench = Bench::new(Some(A));
        bench.grub.activate(B, &holds(), 3).unwrap();
        for _ in 0..2 {
            bench.grub.retire(B).unwrap();
            assert_eq!((bench.shown().as_str(), bench.look()), ("a - a | a", (Some(A), Some(A), None)));
        }
        // A machine that is about to be installed from outside runs from neither.
        let outside = Bench::new(None);
        outside.grub.retire(A).unwrap();
        assert_eq!((outside.shown().as_str(), outside.look()), ("- - - | -", (None, None, None)));
        outside.grub.activate(A, &holds(), 3).unwrap();
        assert_eq!(outside.shown(), "a 3 - | -");
        outside.grub.retire(A).unwrap();
        assert_eq!(outside.shown(), "- - - | -");
    }

    #[test]
    fn a_destroyed_block_leaves_the_good_slot_and_is_made_anew() {
        let bench = Bench::new(Some(A));
        bench.grub.confirm(A).unwrap();
        fs::write(&bench.grub.grubenv, [0; SIZE]).unwrap();
        assert_eq!(bench.look(), (Some(A), Some(A), None), "goldsync.env says so");
        bench.grub.activate(B, &holds(), 3).unwrap();
        assert_eq!(bench.look(), (Some(A), Some(B), Some(3)));
    }

    #[test]
    fn garbage_in_our_variables_is_no_slot_and_no_tries() {
        for (variables, expected) in [
            ([(SLOT, "c"), (TRIES, "2"), (GOOD, "a")], (Some(B), None)),
            ([(SLOT, "b"), (TRIES, "x"), (GOOD, "a")], (Some(A), None)),
            ([(SLOT, "b"), (TRIES, "12"), (GOOD, "a")], (Some(A), None)),
            ([(SLOT, "b"), (TRIES, "0"), (GOOD, "-")], (Some(B), Some(0))),
            ([(SLOT, ""), (TRIES, ""), (GOOD, "")], (Some(B), None)),
        ] {
            let mut block = Block::default();
            block.set_first(&variables);
            assert_eq!(State::read(&block).next(Some(B)), expected, "{variables:?}");
        }
    }

    #[test]
    fn the_packaged_script_is_one_and_knows_our_variables() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/grub/goldsync.cfg");
        let text = fs::read_to_string(&script).unwrap();
        let loaded = format!("load_env --skip-sig --file $goldsync_env {SLOT} {TRIES} {GOOD}\n");
        assert!(text.contains(&loaded) && text.contains(&format!("$prefix/{GOOD_FILE}")));
        let Ok(checked) = std::process::Command::new("grub-script-check").arg(&script).output() else {
            eprintln!("skipped: grub-script-check is not installed (package grub-common)");
            return;
        };
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }

    #[test]
    fn what_changes_lies_in_the_first_sector() {
        let bench = Bench::new(Some(A));
        bench.grub.retire(B).unwrap();
        let mut last = fs::read(&bench.grub.grubenv).unwrap();
        let mut step = |done: Result<(), ActivationError>| {
            done.unwrap();
            let now = fs::read(&bench.grub.grubenv).unwrap();
            assert_eq!((now.len(), &now[80..]), (SIZE, &last[80..]));
            last = now;
        };
        step(bench.grub.activate(B, &holds(), 3));
        step(bench.grub.confirm(B));
        step(bench.grub.activate(A, &holds(), 0));
        step(bench.grub.activate(A, &holds(), 9));
    }

    #[test]
    fn a_missing_or_strange_block_is_refused_with_its_cure() {
        let bench = Bench::new(Some(A));
        fs::write(&bench.grub.grubenv, "short").unwrap();
        let error = bench.grub.activate(B, &holds(), 3).unwrap_err().to_string();
        assert!(error.contains("has 5 bytes") && error.contains("grub-editenv FILE create"), "{error}");
        fs::remove_file(&bench.grub.grubenv).unwrap();
        for done in [bench.grub.retire(B), bench.grub.confirm(A)] {
            let error = done.unwrap_err().to_string();
            assert!(error.contains("does not exist; make it: grub-editenv /"), "{error}");
        }
        let mut full = Block::default();
        full.set_first(&[("x", &"y".repeat(980))]);
        fs::write(&bench.grub.grubenv, full.write().unwrap()).unwrap();
        let error = bench.grub.retire(B).unwrap_err().to_string();
        assert!(error.contains("of 1024") && error.contains("unset"), "{error}");
    }
}
