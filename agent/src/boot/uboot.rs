//! Activation by U-Boot, through its environment: kept twice, so that one copy is always whole.
//!
//! ```text
//! goldsync_slot=b  goldsync_good=a  upgrade_available=1  bootcount=0  bootlimit=3       activate(b, 3)
//! goldsync_slot=b  goldsync_good=b  upgrade_available=0  bootcount=0                    confirm(b)
//! ```
//! `upgrade_available`, `bootcount` and `bootlimit` are U-Boot's own: with CONFIG_BOOTCOUNT_ENV it counts starts while the first is 1, and
//! runs `altbootcmd` when they are more than the limit. The scripts in `packaging/uboot` start `goldsync_slot`, and in `altbootcmd`
//! go back to `goldsync_good`, which then is counted itself (good=`-`); if that fails too, they say so and wait before each try.
//!
//! **Power.** The copy that does not count is written, with a flag that makes it count, by one write and one sync. Cut anywhere, its
//! checksum is wrong and the other copy holds, or it is whole. A single copy has no such thing: it is refused unless the
//! configuration says `single = true`.
//!
//! What can go wrong: raw flash must be erased before it is written, which is not done here; see [`Place::open`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::formats::uboot_env::{Copy, SIZE_MAX, Variables, newer};
use super::{Activation, ActivationError, Booted, Holds, Look};
use crate::slot::SlotName;

const BACKEND: &str = "uboot";

const SLOT: &str = "goldsync_slot";
const GOOD: &str = "goldsync_good";
const COUNTED: &str = "upgrade_available";
const COUNT: &str = "bootcount";
const LIMIT: &str = "bootlimit";

/// U-Boot's environment and what runs.
#[derive(Debug)]
pub struct Uboot {
    config: PathBuf,
    single: bool,
    booted: Booted,
}

/// Where a copy lies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    /// From the start, or, below zero, from the end.
    offset: i64,
    size: usize,
}

impl Place {
    /// A line of fw_env.config: `DEVICE OFFSET SIZE`, then things about flash, which are not needed here.
    fn read(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(path), Some(offset), Some(size)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("has {line:?}; DEVICE OFFSET SIZE are expected"));
        };
        let number = |text: &str| {
            let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
            let hex = digits.strip_prefix("0x").or(digits.strip_prefix("0X"));
            let value = hex.map_or_else(|| digits.parse(), |hex| i64::from_str_radix(hex, 16));
            value.ok().map(|value| sign * value).ok_or_else(|| format!("has {text:?}, which is no number"))
        };
        let (path, offset, size) = (PathBuf::from(path), number(offset)?, number(size)?);
        let size = usize::try_from(size).ok().filter(|size| (16..=SIZE_MAX).contains(size));
        let size = size.ok_or_else(|| format!("has {line:?}; a copy has 16 to {SIZE_MAX} bytes"))?;
        if !path.is_absolute() {
            return Err(format!("has {}; an absolute path is needed", path.display()));
        }
        Ok(Self { path, offset, size })
    }

    /// Opens it, and says where in it the copy begins.
    fn open(&self, write: bool) -> io::Result<(File, u64)> {
        let mut file = OpenOptions::new().read(true).write(write).open(&self.path)?;
        if file.metadata()?.file_type().is_char_device() {
            let why = "is raw flash, which must be erased to be written; use backend = \"command\" with a program that calls fw_setenv";
            return Err(io::Error::other(why));
        }
        let length = file.seek(SeekFrom::End(0))?;
        let start =
            if self.offset < 0 { length.checked_sub(self.offset.unsigned_abs()) } else { Some(self.offset as u64) };
        match start.filter(|start| start.checked_add(self.size as u64).is_some_and(|end| end <= length)) {
            Some(start) => Ok((file, start)),
            None => Err(io::Error::other(format!(
                "has {length} bytes, no {} at {}; correct fw_env.config",
                self.size, self.offset
            ))),
        }
    }

    fn load(&self) -> Result<Vec<u8>, ActivationError> {
        let load = || {
            let (mut file, start) = self.open(false)?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(self.size as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        load().map_err(failed("reading", &self.path))
    }

    fn store(&self, bytes: &[u8]) -> Result<(), ActivationError> {
        let store = || {
            let (file, start) = self.open(true)?;
            file.write_all_at(bytes, start)?;
            file.sync_all()
        };
        store().map_err(failed("writing", &self.path))
    }

    fn sync(&self) -> Result<(), ActivationError> {
        let sync = || self.open(true)?.0.sync_all();
        sync().map_err(failed("syncing", &self.path))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let below = |a: &Self, b: &Self| a.offset.saturating_add(a.size as i64) <= b.offset;
        self.path == other.path && !below(self, other) && !below(other, self)
    }
}

/// What U-Boot goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    slot: Option<SlotName>,
    good: Option<SlotName>,
    /// Starts that are left, if they are counted.
    left: Option<u8>,
}

impl State {
    fn read(variables: &Variables) -> Self {
        let text = |name| variables.get(name).and_then(|value| std::str::from_utf8(value).ok());
        let number = |name| text(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let counted = !matches!(text(COUNTED), None | Some("" | "0"));
        let left = number(LIMIT).saturating_sub(number(COUNT)).min(255) as u8;
        let slot = |name| text(name).and_then(|text| text.parse().ok());
        Self { slot: slot(SLOT), good: slot(GOOD), left: counted.then_some(left) }
    }

    fn put(self, variables: &mut Variables) {
        let shown = |slot: Option<SlotName>| slot.map_or("-", SlotName::as_str);
        variables.set(SLOT, shown(self.slot));
        variables.set(GOOD, shown(self.good));
        variables.set(COUNTED, if self.left.is_some() { "1" } else { "0" });
        variables.set(COUNT, "0");
        if let Some(left) = self.left {
            variables.set(LIMIT, &left.to_string());
        }
    }

    /// What the next start takes, and how many more it may take.
    fn next(self) -> (Option<SlotName>, Option<u8>) {
        match (self.left, self.good) {
            (Some(0), Some(good)) => (Some(good), None),
            (left, _) => (self.slot, left.filter(|_| self.slot.is_some())),
        }
    }

    fn settled(slot: Option<SlotName>) -> Self {
        Self { slot, good: slot, left: None }
    }
}

impl Uboot {
    /// By the copies that `config` names, as fw_printenv reads it. `single`: one copy must do.
    pub fn new(config: PathBuf, single: bool, booted: Booted) -> Self {
        Self { config, single, booted }
    }

    fn places(&self) -> Result<Vec<Place>, ActivationError> {
        let text = fs::read_to_string(&self.config).map_err(failed("reading", &self.config))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let places: Result<Vec<Place>, String> = lines.map(Place::read).collect();
        let places = places.map_err(|problem| self.content(problem))?;
        let problem = match places.as_slice() {
            [_] if self.single => None,
            [_] => Some("names one copy of the environment, and a power cut while it is written leaves none; configure U-Boot with two (CONFIG_SYS_REDUNDAND_ENVIRONMENT), or accept that with activation.single = true".to_owned()),
            [first, second] if first.overlaps(second) => Some("names two copies that overlap; correct their offsets".to_owned()),
            [first, second] if first.size != second.size => Some(format!(
                "names copies of {} and {} bytes; U-Boot has two of the same size",
                first.size, second.size
            )),
            [_, _] => None,
            other => Some(format!("names {} copies of the environment; one or two are expected", other.len())),
        };
        problem.map_or(Ok(places), |problem| Err(self.content(problem)))
    }

    /// The copy that counts, and its number.
    fn current(&self, places: &[Place]) -> Result<(usize, Copy), ActivationError> {
        let mut whole = Vec::new();
        let mut torn = Vec::new();
        for (at, place) in places.iter().enumerate() {
            match Copy::read(&place.load()?, places.len() == 2) {
                Ok(copy) => whole.push((at, copy)),
                Err(error) => torn.push(format!("{} {error}", place.path.display())),
            }
        }
        let at = match whole.as_slice() {
            [(_, first), (_, second)] => newer(first.flag.unwrap_or(0), second.flag.unwrap_or(0)),
            _ => 0,
        };
        whole.into_iter().nth(at).ok_or_else(|| {
            let torn = torn.join("; ");
            self.content(format!(
                "names no copy that is whole ({torn}); run `saveenv` in U-Boot, or make one with mkenvimage"
            ))
        })
    }

    fn state(&self) -> Result<State, ActivationError> {
        Ok(State::read(&self.current(&self.places()?)?.1.variables))
    }

    fn change(&self, change: impl FnOnce(State) -> State) -> Result<(), ActivationError> {
        let places = self.places()?;
        let (at, mut copy) = self.current(&places)?;
        let before = copy.variables.clone();
        change(State::read(&before)).put(&mut copy.variables);
        // The copy that counts must last before the other is written: it may be the work of a run that was killed before it synced,
        // and of two copies that power tears, none is left.
        places[at].sync()?;
        if copy.variables == before {
            return Ok(());
        }
        let to = if places.len() == 2 { 1 - at } else { at };
        copy.flag = copy.flag.map(|flag| flag.wrapping_add(1));
        let bytes = copy.write(places[to].size).map_err(|error| self.content(error.to_string()))?;
        places[to].store(&bytes)
    }

    fn content(&self, problem: String) -> ActivationError {
        ActivationError::Content { backend: BACKEND, path: self.config.clone(), problem }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActivationError {
    super::failed(BACKEND, what, path)
}

impl Activation for Uboot {
    fn look(&self) -> Result<Look, ActivationError> {
        let (next, tries) = self.state()?.next();
        Ok(Look { active: self.booted.slot()?, next, tries })
    }

    fn retire(&self, slot: SlotName) -> Result<(), ActivationError> {
        let active = self.booted.slot()?;
        self.change(|state| match active {
            Some(active) => State::settled(Some(active)),
            None => State::settled(state.slot.or(state.good).filter(|next| *next != slot)),
        })
    }

    fn activate(&self, slot: SlotName, _holds: &Holds, tries: u8) -> Result<(), ActivationError> {
        let active = self.booted.slot()?;
        self.change(|state| {
            let good = [active, state.good].into_iter().flatten().find(|good| *good != slot);
            match tries {
                0 => State::settled(Some(slot)),
                tries => State { slot: Some(slot), good, left: Some(tries) },
            }
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
    const SIZE: usize = 512;

    struct Bench {
        machine: Machine,
        uboot: Uboot,
    }

    impl Bench {
        /// Two copies in one device: at 1 KiB, and at its end. The first is newer.
        fn new(slot: Option<SlotName>) -> Self {
            let machine = Machine::new(slot);
            let device = machine.path("mmc").display().to_string();
            fs::write(
                machine.path("config"),
                format!("# copies\n{device} 0x400 0x200\n\n{device} -0x200 512 0x200 1\n"),
            )
            .unwrap();
            fs::write(machine.path("mmc"), vec![0xee; 4096]).unwrap();
            let uboot = Uboot::new(machine.path("config"), false, machine.booted());
            let bench = Self { machine, uboot };
            let mut variables = Variables::default();
            variables.set("bootcmd", "run goldsync");
            for (at, flag) in [(0, 255), (1, 254)] {
                bench.put(at, &Copy { flag: Some(flag), variables: variables.clone() });
            }
            bench
        }

        fn put(&self, at: usize, copy: &Copy) {
            self.uboot.places().unwrap()[at].store(&copy.write(SIZE).unwrap()).unwrap();
        }

        fn current(&self) -> (usize, Copy) {
            self.uboot.current(&self.uboot.places().unwrap()).unwrap()
        }

        /// `SLOT GOOD upgrade_available bootcount bootlimit`.
        fn shown(&self) -> String {
            let variables = self.current().1.variables;
            assert_eq!(variables.get("bootcmd"), Some(&b"run goldsync"[..]), "what is not ours stays");
            let value = |name| String::from_utf8(variables.get(name).unwrap_or(b"?").to_vec()).unwrap();
            [SLOT, GOOD, COUNTED, COUNT, LIMIT].map(value).join(" ")
        }

        fn look(&self) -> (Option<SlotName>, Option<SlotName>, Option<u8>) {
            let Look { active, next, tries } = self.uboot.look().unwrap();
            (active, next, tries)
        }

        /// What U-Boot and its scripts do at a start; `None` is the wait after both failed.
        fn start(&self) -> Option<SlotName> {
            let (at, mut copy) = self.current();
            let number = |copy: &Copy, name| -> u32 {
                let value = copy.variables.get(name).map(|value| String::from_utf8(value.to_vec()).unwrap());
                value.map_or(0, |value| value.parse().unwrap())
            };
            let mut state = State::read(&copy.variables);
            let mut failed = false;
            if state.left.is_some() {
                let count = number(&copy, COUNT) + 1;
                copy.variables.set(COUNT, &count.to_string());
                if count > number(&copy, LIMIT) {
                    failed = state.good.is_none();
                    if let Some(good) = state.good {
                        state = State { slot: Some(good), good: None, left: state.left };
                        copy.variables.set(SLOT, good.as_str());
                        copy.variables.set(GOOD, "-");
                        copy.variables.set(COUNT, "0");
                    }
                }
                copy.flag = copy.flag.map(|flag| flag.wrapping_add(1));
                self.put(1 - at, &copy);
            }
            if let Some(slot) = state.slot {
                self.machine.boot(slot);
            }
            state.slot.filter(|_| !failed)
        }
    }

    #[test]
    fn a_good_update_is_counted_and_confirmed() {
        let bench = Bench::new(Some(A));
        assert_eq!(bench.look(), (Some(A), None, None));
        bench.uboot.retire(B).unwrap();
        assert_eq!((bench.shown().as_str(), bench.current().0), ("a a 0 0 ?", 1));
        assert_eq!(bench.current().1.flag, Some(0), "255 is followed by 0");
        for _ in 0..2 {
            bench.uboot.activate(B, &holds(), 3).unwrap();
            assert_eq!((bench.shown().as_str(), bench.look()), ("b a 1 0 3", (Some(A), Some(B), Some(3))));
            assert_eq!(bench.current().0, 0, "the second time changes nothing");
        }
        assert_eq!(bench.start(), Some(B));
        assert_eq!(bench.look(), (Some(B), Some(B), Some(2)));
        bench.uboot.confirm(B).unwrap();
        assert_eq!((bench.shown().as_str(), bench.look()), ("b b 0 0 3", (Some(B), Some(B), None)));
        bench.uboot.activate(A, &holds(), 0).unwrap();
        assert_eq!(bench.look(), (Some(B), Some(A), None));
    }

    #[test]
    fn a_slot_that_never_reaches_us_is_left_and_two_bad_ones_end_in_a_wait() {
        let bench = Bench::new(Some(A));
        bench.uboot.activate(B, &holds(), 2).unwrap();
        let starts: Vec<_> = (0..6).map(|_| bench.start()).collect();
        assert_eq!(starts, [Some(B), Some(B), Some(A), Some(A), Some(A), None]);
        assert_eq!(bench.look(), (Some(A), Some(A), Some(0)));
        bench.uboot.confirm(A).unwrap();
        assert_eq!(bench.look(), (Some(A), Some(A), None));
    }

    #[test]
    fn a_torn_copy_leaves_the_other_and_is_written_next() {
        let bench = Bench::new(Some(A));
        bench.uboot.confirm(A).unwrap();
        let places = bench.uboot.places().unwrap();
        for torn in [bench.current().0, bench.current().0] {
            bench.uboot.activate(B, &holds(), 3).unwrap();
            let (at, _) = bench.current();
            let mut bytes = places[at].load().unwrap();
            bytes[300..].fill(0xff);
            places[at].store(&bytes).unwrap();
            assert_eq!((bench.look(), bench.current().0), ((Some(A), Some(A), None), torn));
        }
        for place in &places {
            place.store(&[0; SIZE]).unwrap();
        }
        let error = bench.uboot.look().unwrap_err().to_string();
        assert!(error.contains("no copy that is whole") && error.contains("saveenv"), "{error}");
    }

    #[test]
    fn nothing_starts_from_a_retired_slot() {
        let bench = Bench::new(Some(A));
        bench.uboot.activate(B, &holds(), 3).unwrap();
        bench.uboot.retire(B).unwrap();
        assert_eq!((bench.shown().as_str(), bench.look()), ("a a 0 0 3", (Some(A), Some(A), None)));
        let outside = Bench::new(None);
        outside.uboot.activate(A, &holds(), 3).unwrap();
        assert_eq!(outside.shown(), "a - 1 0 3");
        outside.uboot.retire(A).unwrap();
        assert_eq!((outside.shown().as_str(), outside.look()), ("- - 0 0 3", (None, None, None)));
    }

    #[test]
    fn the_packaged_environment_starts_slot_a() {
        let bench = Bench::new(Some(A));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/uboot/goldsync.txt");
        let (made, script) = (bench.machine.path("env").display().to_string(), script.display().to_string());
        let made_by =
            std::process::Command::new("mkenvimage").args(["-r", "-s", "0x4000", "-o", &made, &script]).output();
        let Ok(done) = made_by else {
            eprintln!("skipped: mkenvimage is not installed (package u-boot-tools)");
            return;
        };
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::write(bench.machine.path("config"), format!("{made} 0 0x2000\n{made} 0x2000 0x2000")).unwrap();
        let bytes = fs::read(&made).unwrap();
        let copy = Copy::read(&bytes, true).unwrap();
        assert_eq!(State::read(&copy.variables), State::settled(Some(A)));
        // Both copies, of half the size each.
        let half = copy.write(0x2000).unwrap();
        fs::write(&made, [half.clone(), half].concat()).unwrap();
        bench.uboot.activate(B, &holds(), 3).unwrap();
        assert_eq!(bench.look(), (Some(A), Some(B), Some(3)));
    }

    #[test]
    fn a_single_copy_must_be_asked_for() {
        let machine = Machine::new(Some(A));
        let file = machine.path("uboot.env");
        let copy = Copy { flag: None, variables: Variables::default() };
        fs::write(&file, copy.write(SIZE).unwrap()).unwrap();
        fs::write(machine.path("config"), format!("{} 0 0x200", file.display())).unwrap();
        let error = Uboot::new(machine.path("config"), false, machine.booted()).look().unwrap_err().to_string();
        assert!(error.contains("names one copy") && error.contains("activation.single = true"), "{error}");
        let uboot = Uboot::new(machine.path("config"), true, machine.booted());
        uboot.activate(B, &holds(), 3).unwrap();
        assert_eq!(uboot.look().unwrap().next, Some(B));
    }

    #[test]
    fn what_fw_env_config_says_is_checked() {
        let bench = Bench::new(Some(A));
        let device = bench.machine.path("mmc").display().to_string();
        for (text, expected) in [
            (String::new(), "names 0 copies"),
            ("/dev/x 0".into(), "DEVICE OFFSET SIZE"),
            ("mmc 0 0x200\n".into(), "absolute path"),
            ("/x y 0x200\n".into(), "\"y\", which is no number"),
            ("/x 0 8\n".into(), "16 to"),
            (format!("{device} 0 0x200\n{device} 0x1ff 0x200"), "overlap"),
            (format!("{device} 0 0x200\n{device} 0x200 0x400"), "512 and 1024 bytes"),
            (format!("{device} 0 0x200\n{device} 0xf00 0x200"), "has 4096 bytes, no 512 at 3840"),
            ("/dev/null 0 0x200\n/dev/null 0x200 0x200".into(), "raw flash"),
        ] {
            fs::write(bench.machine.path("config"), &text).unwrap();
            let error = bench.uboot.look().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
