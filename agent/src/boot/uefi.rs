//! Activation by the firmware alone: `BootNext` for a new slot's one try, `BootOrder` for good.
//!
//! ```text
//! BootOrder 0001(a) 0003(network)     BootNext 0002(b)      the next start is b, and only that one
//! BootOrder 0002(b) 0003(network)                           confirm(b)
//! ```
//! * Each slot has a boot entry (a variable `Boot####`) that the operator made, found by its number or by its description. How it
//!   starts the slot is the entry's matter.
//! * The firmware deletes `BootNext` before it starts from it: one try, no more; whatever fails then, the next start takes `BootOrder`.
//! * Of our two entries only the good one is in `BootOrder`, at the place of the first of them. Others keep theirs.
//!
//! **Power.** A variable is replaced by the firmware in one step. `BootOrder` is set before `BootNext` is, or is deleted; between
//! the two, both lead to slots that may be started.
//!
//! What can go wrong: firmware that forgets or reorders `BootOrder` at will; which runs is then seen, and what starts next is set anew at
//! the next activation.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::formats::load_option::{LoadOption, SIZE_MAX, numbers};
use super::{Activation, ActivationError, Booted, Holds, Look};
use crate::slot::SlotName;

const BACKEND: &str = "uefi";

/// The namespace of the firmware's own variables.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Kept without power, and seen before and after the system has started.
const ATTRIBUTES: [u8; 4] = [7, 0, 0, 0];

/// The firmware's variables and what runs.
#[derive(Debug)]
pub struct Uefi {
    efivars: PathBuf,
    /// The entries of a and b: four hexadecimal digits, or a description.
    entries: [String; 2],
    booted: Booted,
}

/// The firmware's decisions that are ours to make.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Boot {
    /// Of a and b.
    entries: [Option<u16>; 2],
    next: Option<u16>,
    order: Vec<u16>,
}

impl Boot {
    fn entry(&self, slot: SlotName) -> Option<u16> {
        let [a, b] = self.entries;
        if slot == SlotName::A { a } else { b }
    }

    fn slot(&self, number: u16) -> Option<SlotName> {
        SlotName::ALL.into_iter().find(|slot| self.entry(*slot) == Some(number))
    }

    /// The order with `good` at the place of the first of ours, or first of all, and with none of ours besides.
    fn with(&self, good: Option<u16>) -> Vec<u16> {
        let ours = |number: &u16| self.slot(*number).is_some();
        let place = self.order.iter().position(ours).unwrap_or(0);
        let mut order: Vec<u16> = self.order.iter().copied().filter(|number| !ours(number)).collect();
        if let Some(good) = good {
            order.insert(place, good);
        }
        order
    }

    /// The slot that `BootOrder` would start, whatever others do before it.
    fn good(&self) -> Option<SlotName> {
        self.order.iter().find_map(|number| self.slot(*number))
    }
}

impl Uefi {
    /// By variables in `efivars`, and the entries of a and b.
    pub fn new(efivars: PathBuf, entries: [String; 2], booted: Booted) -> Self {
        Self { efivars, entries, booted }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.efivars.join(format!("{name}-{GLOBAL}"))
    }

    /// A variable's value, without its attributes.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ActivationError> {
        let path = self.path(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(SIZE_MAX as u64 + 4).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(bytes.get(4..).map(<[u8]>::to_vec)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Replaces a variable, unless it is so already: firmware wears out.
    fn set(&self, name: &str, numbers: &[u16]) -> Result<(), ActivationError> {
        let value: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        if self.get(name)?.as_ref() == Some(&value) {
            return Ok(());
        }
        let path = self.path(name);
        make_mutable(&path);
        // One write is one variable; it lasts when the call returns.
        let bytes = [&ATTRIBUTES[..], &value].concat();
        let written = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        written.and_then(|mut file| file.write_all(&bytes)).map_err(failed("writing", &path))
    }

    fn delete(&self, name: &str) -> Result<(), ActivationError> {
        let path = self.path(name);
        make_mutable(&path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &path)(error)),
            _ => Ok(()),
        }
    }

    fn boot(&self) -> Result<Boot, ActivationError> {
        if !self.efivars.is_dir() {
            let problem = "does not exist: the machine was not started by UEFI, or efivarfs is not mounted (`mount -t efivarfs efivarfs /sys/firmware/efi/efivars`)";
            return Err(self.content(problem.to_owned()));
        }
        let mut entries = [None, None];
        for (place, wanted) in entries.iter_mut().zip(&self.entries) {
            *place = self.find(wanted)?;
        }
        let next = self.get("BootNext")?.and_then(|value| numbers(&value).first().copied());
        let order = self.get("BootOrder")?.map(|value| numbers(&value)).unwrap_or_default();
        Ok(Boot { entries, next, order })
    }

    /// The number of an entry; of several with one description, the lowest.
    fn find(&self, wanted: &str) -> Result<Option<u16>, ActivationError> {
        let given = Some(wanted).filter(|wanted| wanted.len() == 4).and_then(hexadecimal);
        if let Some(number) = given {
            return Ok(self.get(&format!("Boot{number:04X}"))?.map(|_| number));
        }
        let found = fs::read_dir(&self.efivars).map_err(failed("reading", &self.efivars))?;
        let mut matching = Vec::new();
        for name in found.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let digits = name.strip_prefix("Boot").and_then(|rest| rest.strip_suffix(GLOBAL)?.strip_suffix('-'));
            let Some(number) = digits.filter(|digits| digits.len() == 4).and_then(hexadecimal) else { continue };
            let option = self.get(&format!("Boot{number:04X}"))?.and_then(|value| LoadOption::read(&value).ok());
            if option.is_some_and(|option| option.description == wanted) {
                matching.push(number);
            }
        }
        Ok(matching.into_iter().min())
    }

    /// An entry that the firmware may start, or the way to make one.
    fn startable(&self, boot: &Boot, slot: SlotName) -> Result<u16, ActivationError> {
        let wanted = &self.entries[usize::from(slot == SlotName::B)];
        let Some(number) = boot.entry(slot) else {
            let problem = format!(
                "has no boot entry {wanted:?} for slot {slot}; make one with `efibootmgr --create-only --label 'goldsync {slot}' --disk ... --part ... --loader ...`"
            );
            return Err(self.content(problem));
        };
        let option = self.get(&format!("Boot{number:04X}"))?.map(|value| LoadOption::read(&value));
        match option {
            Some(Ok(option)) if option.active() => Ok(number),
            Some(Ok(_)) => Err(self
                .content(format!("has Boot{number:04X} turned off; turn it on with `efibootmgr -b {number:04X} -a`"))),
            Some(Err(error)) => Err(self.content(format!("has a Boot{number:04X} that {error}; make it anew"))),
            None => Err(self.content(format!("has no Boot{number:04X} any more"))),
        }
    }

    fn settle(&self, slot: SlotName) -> Result<(), ActivationError> {
        let boot = self.boot()?;
        let number = self.startable(&boot, slot)?;
        self.set("BootOrder", &boot.with(Some(number)))?;
        self.forget(&boot, |_| true)
    }

    /// Deletes `BootNext` if it names one of ours that may not be started next.
    fn forget(&self, boot: &Boot, go: impl Fn(SlotName) -> bool) -> Result<(), ActivationError> {
        match boot.next.and_then(|next| boot.slot(next)) {
            Some(slot) if go(slot) => self.delete("BootNext"),
            _ => Ok(()),
        }
    }

    fn content(&self, problem: String) -> ActivationError {
        ActivationError::Content { backend: BACKEND, path: self.efivars.clone(), problem }
    }
}

fn hexadecimal(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

/// The kernel protects variables that it does not know from a careless `rm`; if this does not help, the next step says why.
fn make_mutable(path: &Path) {
    if let Ok(file) = File::open(path)
        && let Ok(flags) = ioctl_getflags(&file)
        && flags.contains(IFlags::IMMUTABLE)
    {
        let _ = ioctl_setflags(&file, flags - IFlags::IMMUTABLE);
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActivationError {
    super::failed(BACKEND, what, path)
}

impl Activation for Uefi {
    /// What runs is told by the system itself; if it cannot tell, by what the firmware started.
    fn look(&self) -> Result<Look, ActivationError> {
        let boot = self.boot()?;
        let current = self.get("BootCurrent")?.and_then(|value| numbers(&value).first().copied());
        let active = self.booted.slot()?.or(current.and_then(|current| boot.slot(current)));
        Ok(match boot.next {
            Some(next) => Look { active, next: boot.slot(next), tries: boot.slot(next).map(|_| 1) },
            None => Look { active, next: boot.good(), tries: None },
        })
    }

    fn retire(&self, slot: SlotName) -> Result<(), ActivationError> {
        let boot = self.boot()?;
        self.forget(&boot, |next| next == slot)?;
        let good = self.look()?.active.or(boot.good()).filter(|good| *good != slot);
        self.set("BootOrder", &boot.with(good.and_then(|good| boot.entry(good))))
    }

    fn activate(&self, slot: SlotName, _holds: &Holds, tries: u8) -> Result<(), ActivationError> {
        if tries == 0 {
            return self.settle(slot);
        }
        let boot = self.boot()?;
        let number = self.startable(&boot, slot)?;
        let good = [self.look()?.active, boot.good()].into_iter().flatten().find(|good| *good != slot);
        let good = good.map(|good| self.startable(&boot, good)).transpose()?;
        self.set("BootOrder", &boot.with(good))?;
        self.set("BootNext", &[number])
    }

    fn confirm(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.settle(slot)
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
        uefi: Uefi,
    }

    impl Bench {
        /// A firmware with a network entry 0003, ours as 0001 and 0002, and an order of 0003, 0001.
        fn new(slot: Option<SlotName>) -> Self {
            let machine = Machine::new(slot);
            let efivars = machine.path("efivars");
            fs::create_dir(&efivars).unwrap();
            let entries = ["goldsync a", "goldsync b"].map(str::to_owned);
            let bench = Self { uefi: Uefi::new(efivars, entries, machine.booted()), machine };
            for (number, description) in [(1, "goldsync a"), (2, "goldsync b"), (3, "network")] {
                bench.entry(number, 1, description);
            }
            bench.uefi.set("BootOrder", &[3, 1]).unwrap();
            bench
        }

        fn entry(&self, number: u16, attributes: u8, description: &str) {
            let text: Vec<u8> = description.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
            let bytes = [&ATTRIBUTES[..], &[attributes, 0, 0, 0, 0, 0], &text].concat();
            fs::write(self.uefi.path(&format!("Boot{number:04X}")), bytes).unwrap();
        }

        fn order(&self) -> (Vec<u16>, Option<u16>) {
            let boot = self.uefi.boot().unwrap();
            (boot.order, boot.next)
        }

        fn look(&self) -> (Option<SlotName>, Option<SlotName>, Option<u8>) {
            let Look { active, next, tries } = self.uefi.look().unwrap();
            (active, next, tries)
        }

        /// What the firmware does; the network has nothing to offer.
        fn start(&self) -> Option<SlotName> {
            let boot = self.uefi.boot().unwrap();
            self.uefi.delete("BootNext").unwrap();
            let slot = boot.next.map_or(boot.good(), |next| boot.slot(next))?;
            self.machine.boot(slot);
            self.uefi.set("BootCurrent", &[boot.entry(slot).unwrap()]).unwrap();
            Some(slot)
        }
    }

    #[test]
    fn a_good_update_is_tried_once_and_confirmed() {
        let bench = Bench::new(Some(A));
        assert_eq!(bench.look(), (Some(A), Some(A), None));
        for _ in 0..2 {
            bench.uefi.activate(B, &holds(), 3).unwrap();
            assert_eq!((bench.order(), bench.look()), ((vec![3, 1], Some(2)), (Some(A), Some(B), Some(1))));
        }
        assert_eq!(bench.start(), Some(B));
        assert_eq!(bench.look(), (Some(B), Some(A), None), "unconfirmed, the next start goes back");
        for _ in 0..2 {
            bench.uefi.confirm(B).unwrap();
            assert_eq!((bench.order(), bench.look()), ((vec![3, 2], None), (Some(B), Some(B), None)));
        }
        bench.uefi.activate(A, &holds(), 0).unwrap();
        assert_eq!((bench.order(), bench.look()), ((vec![3, 1], None), (Some(B), Some(A), None)));
    }

    #[test]
    fn a_slot_that_never_reaches_us_is_left_at_the_next_start() {
        let bench = Bench::new(Some(A));
        bench.uefi.activate(B, &holds(), 1).unwrap();
        assert_eq!([bench.start(), bench.start(), bench.start()], [Some(B), Some(A), Some(A)]);
    }

    #[test]
    fn nothing_starts_from_a_retired_slot() {
        let bench = Bench::new(Some(A));
        bench.uefi.set("BootOrder", &[2, 3, 1]).unwrap();
        bench.uefi.set("BootNext", &[2]).unwrap();
        for _ in 0..2 {
            bench.uefi.retire(B).unwrap();
            assert_eq!((bench.order(), bench.look()), ((vec![1, 3], None), (Some(A), Some(A), None)));
        }
        bench.uefi.set("BootNext", &[3]).unwrap();
        bench.uefi.retire(B).unwrap();
        assert_eq!(bench.order(), (vec![1, 3], Some(3)), "somebody else's");
        assert_eq!(bench.look(), (Some(A), None, None));
        let outside = Bench::new(None);
        outside.uefi.retire(A).unwrap();
        assert_eq!(outside.order(), (vec![3], None));
    }

    #[test]
    fn what_the_firmware_started_runs_if_nothing_else_tells() {
        let bench = Bench::new(None);
        assert_eq!(bench.look(), (None, Some(A), None));
        bench.uefi.set("BootCurrent", &[2]).unwrap();
        assert_eq!(bench.look(), (Some(B), Some(A), None));
        bench.machine.boot(A);
        assert_eq!(bench.look().0, Some(A));
    }

    #[test]
    fn entries_are_found_by_number_too_and_what_is_wrong_with_them_is_said() {
        let bench = Bench::new(Some(A));
        bench.entry(0xab, 1, "Linux");
        let uefi = Uefi::new(bench.uefi.efivars.clone(), ["00aB".into(), "goldsync b".into()], bench.machine.booted());
        assert_eq!(uefi.boot().unwrap().entries, [Some(0xab), Some(2)]);
        let refused = |expected: &str| {
            let error = bench.uefi.activate(B, &holds(), 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        bench.entry(2, 0, "goldsync b");
        refused("efibootmgr -b 0002 -a");
        bench.entry(2, 1, "something else");
        refused("no boot entry \"goldsync b\" for slot b; make one with `efibootmgr");
        assert_eq!(bench.order(), (vec![3, 1], None), "nothing was changed");
        fs::remove_dir_all(&bench.uefi.efivars).unwrap();
        refused("not started by UEFI");
    }
}
