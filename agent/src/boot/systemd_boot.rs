//! Activation by systemd-boot, or any loader that keeps the Boot Loader Specification: entries with tries counted in their names.
//!
//! ```text
//! ESP/loader/entries/goldsync-a-6.conf           started from now on
//!                    goldsync-b-7+3.conf         on trial: newer, so that it comes first, with three tries
//!                    goldsync-b-7+0-3.conf       tries are over: the loader puts it last, and a is first again
//! ```
//! * `activate(b, 3)` writes a new entry with the next number, which is also its `version`; the newest entry with tries left comes
//!   first. Then b's older entries go. That is also the way back: `activate(a, 0)` makes a's entry the newest.
//! * `confirm(b)` writes the entry without a counter and removes the one with it. systemd-bless-boot does the same by renaming, and
//!   whoever comes first is respected.
//! * `retire(b)` removes b's entries, then the kernels that nobody names any more.
//! * If the slot that runs has no entry, because the machine was started by another one so far, `activate` writes it one first: a
//!   pattern `default goldsync-*` that found only the failed slot's entry would start that for ever.
//!
//! **Power.** FAT has no journal, and a rename over a file may leave neither. So every entry has a name that was never used; it is
//! written under a name that loaders pass over (a dot first, not `.conf` last), synced, renamed, synced again with its folder, and
//! only then is anything removed. Cut anywhere, the other slot's entry has not been touched, and an entry without bytes has no
//! `linux` line, so that loaders pass over it. Kernels come before the entry that names them, and go after it.
//!
//! What can go wrong: the loader prefers another entry, by `default` in loader.conf or by `bootctl set-default`. [`SystemdBoot`] orders
//! all entries as the loader does and refuses, before anything is changed, to activate what would not be started.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::formats::entry::{self, Name, Text};
use super::formats::load_option;
use super::inside::OpenInSlot;
use super::kernel::{Kernels, remove};
use super::options::{Template, Values};
use super::{Activation, ActivationError, Booted, Holds, Look, inside};
use crate::config::{Slots, SystemdBoot as Settings};
use crate::slot::SlotName;

pub(super) const BACKEND: &str = "systemd-boot";

/// The loader's own default, where `bootctl set-default` has put it.
const DEFAULT_VARIABLE: &str = "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// An ESP with entries.
#[derive(Debug)]
pub struct SystemdBoot {
    esp: PathBuf,
    efivars: PathBuf,
    options: Template,
    kernels: Kernels,
    slots: Slots,
    booted: Booted,
}

/// An entry as it lies there.
#[derive(Clone, Debug)]
struct Entry {
    path: PathBuf,
    name: Name,
    body: String,
    text: Text,
    /// Whose, and with which number; `None`: not ours.
    ours: Option<(SlotName, u64)>,
    /// The loader passes over what it cannot start.
    starts: bool,
}

impl Entry {
    fn of(&self, slot: SlotName) -> bool {
        self.ours.is_some_and(|(owner, _)| owner == slot)
    }

    fn number(&self) -> u64 {
        self.ours.map_or(0, |(_, number)| number)
    }

    fn left(&self) -> Option<u32> {
        self.name.tries.map(|(left, _)| left)
    }
}

/// Whose entry `goldsync-b-7` is, and its number. One without a number was written by somebody else, for us.
fn owner(stem: &str) -> Option<(SlotName, u64)> {
    let stem = stem.to_ascii_lowercase();
    let rest = stem.strip_prefix("goldsync-")?;
    let (slot, number) = rest.split_once('-').unwrap_or((rest, "0"));
    Some((slot.parse().ok()?, number.parse().ok()?))
}

/// What the loader starts: the first entry that its default pattern means, else the first of all. With `@saved` that is the last one
/// that was started, which only the loader knows.
fn chosen<'a>(entries: &'a [Entry], pattern: Option<&str>) -> Option<&'a Entry> {
    if pattern.is_some_and(|pattern| pattern.starts_with('@')) {
        return None;
    }
    let mut sorted: Vec<&Entry> = entries.iter().filter(|entry| entry.starts).collect();
    sorted.sort_by(|a, b| entry::order((&a.name, &a.text), (&b.name, &b.text)));
    let meant = |entry: &&&Entry| pattern.is_some_and(|pattern| entry::matches(pattern, &entry.name.id()));
    sorted.iter().find(meant).or(sorted.first()).copied()
}

impl SystemdBoot {
    /// By the settings of a configuration.
    pub fn new(settings: &Settings, slots: &Slots, booted: Booted) -> Self {
        Self::reading(settings, slots, booted, inside::open)
    }

    /// The same, with another way to the files of an image.
    fn reading(settings: &Settings, slots: &Slots, booted: Booted, open: OpenInSlot) -> Self {
        Self {
            esp: settings.esp.clone(),
            efivars: settings.efivars.clone(),
            options: settings.options.clone(),
            kernels: Kernels::new(settings.esp.clone(), settings.kernel.clone(), open),
            slots: slots.clone(),
            booted,
        }
    }

    fn folder(&self) -> PathBuf {
        self.esp.join("loader/entries")
    }

    /// Every entry that a loader would read.
    fn entries(&self) -> Result<Vec<Entry>, ActivationError> {
        let folder = self.folder();
        let found = match fs::read_dir(&folder) {
            Ok(found) => found,
            // An empty mount point must not pass for an ESP without entries.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.esp.join("EFI").is_dir() => {
                return Ok(Vec::new());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let problem = "holds neither loader/entries nor EFI: mount the EFI system partition there, or correct `activation.esp`";
                return Err(content(&self.esp, problem.to_owned()));
            }
            Err(error) => return Err(failed("reading", &folder)(error)),
        };
        let mut entries = Vec::new();
        for file in found {
            let file = file.map_err(failed("reading", &folder))?;
            if let Some(name) = file.file_name().to_str().and_then(Name::read) {
                entries.push(self.entry(file.path(), name)?);
            }
        }
        Ok(entries)
    }

    /// The same before anything is changed. They last: an entry that is there may have been written by a run that was killed before
    /// it synced, and a change that lasts relies on it.
    fn settled(&self) -> Result<Vec<Entry>, ActivationError> {
        let entries = self.entries()?;
        for entry in entries.iter().filter(|entry| entry.ours.is_some()) {
            File::open(&entry.path).and_then(|file| file.sync_all()).map_err(failed("syncing", &entry.path))?;
        }
        self.sync()?;
        Ok(entries)
    }

    fn entry(&self, path: PathBuf, name: Name) -> Result<Entry, ActivationError> {
        let body = read(&path).map_err(failed("reading", &path))?;
        let text = Text::read(&body);
        let loaded = text.loaded.as_ref().map(|loaded| loaded.replace('\\', "/"));
        let starts = loaded.is_some_and(|loaded| self.esp.join(loaded.trim_start_matches('/')).is_file());
        let ours = owner(&name.stem);
        Ok(Entry { path, name, body, text, ours, starts })
    }

    /// The pattern of the loader's default, by `bootctl set-default` or by loader.conf.
    fn pattern(&self) -> Result<Option<String>, ActivationError> {
        let variable = self.efivars.join(DEFAULT_VARIABLE);
        let told = fs::read(variable).ok().map(|bytes| load_option::text(bytes.get(4..).unwrap_or_default()));
        if let Some(told) = told.filter(|told| !told.is_empty()) {
            return Ok(Some(told));
        }
        let path = self.esp.join("loader/loader.conf");
        match read(&path) {
            Ok(text) => {
                let values = text.lines().filter_map(|line| line.trim().strip_prefix("default"));
                let mut values = values.filter(|value| value.starts_with([' ', '\t']));
                Ok(values.next_back().map(|value| value.trim().to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// The next number, which is above all versions that any of our entries has.
    fn next_number(entries: &[Entry]) -> u64 {
        let leading = |version: &String| {
            let digits = version.len() - version.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            version[..digits].parse().unwrap_or(0)
        };
        let version = |entry: &Entry| entry.text.version.as_ref().map_or(0, leading).max(entry.number());
        let ours = entries.iter().filter(|entry| entry.ours.is_some());
        // Where numbers end, the new entry does not come first, and that is found out before it is written.
        ours.map(version).max().unwrap_or(0).saturating_add(1)
    }

    /// An entry that is not there yet; its kernel is still to be named.
    fn planned(&self, slot: SlotName, number: u64, tries: u8, head: &str) -> Entry {
        let tries = (tries > 0).then_some((u32::from(tries), 0));
        let name = Name { stem: format!("goldsync-{slot}-{number}"), tries };
        let body = format!("{head}sort-key goldsync\nversion  {number}\n");
        let path = self.folder().join(name.file());
        Entry { path, text: Text::read(&body), name, body, ours: Some((slot, number)), starts: true }
    }

    /// Title and command line of `slot`; `holds` is `None` for a slot of which nothing is known but that it runs.
    fn head(&self, slot: SlotName, holds: Option<&Holds>) -> Result<String, ActivationError> {
        let values = Values {
            slot,
            path: self.slots.path(slot),
            image: holds.map(|holds| holds.image.to_string()),
            sealed: holds.and_then(|holds| holds.verity.as_ref()),
        };
        let options = self.options.fill(&values).map_err(|problem| {
            let problem = format!("`activation.options` {problem}");
            content(&self.folder(), problem)
        })?;
        let release = holds.map(|holds| format!(" {}", holds.release)).unwrap_or_default();
        Ok(format!("title    goldsync{release} (slot {slot})\noptions  {options}\n"))
    }

    /// Writes an entry under a name that was never used.
    fn write(&self, entry: &Entry) -> Result<(), ActivationError> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(failed("making", &folder))?;
        let beside = folder.join(format!(".{}.new", entry.name.stem));
        let written = crate::disk::write_new(&beside, entry.body.as_bytes());
        written.map_err(|error| failed("writing", &error.path)(error.source))?;
        // Only a rename that was cut leaves one: without bytes, or with others'.
        remove(&entry.path)?;
        fs::rename(&beside, &entry.path).map_err(failed("naming", &entry.path))?;
        // On FAT, where a file lies is written with the file and not with its folder.
        File::open(&entry.path).and_then(|file| file.sync_all()).map_err(failed("syncing", &entry.path))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), ActivationError> {
        let folder = self.folder();
        match File::open(&folder).and_then(|folder| folder.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("syncing", &folder)(error)),
            _ => Ok(()),
        }
    }

    /// Removes entries, durably.
    fn remove(&self, entries: &[Entry], go: impl Fn(&Entry) -> bool) -> Result<(), ActivationError> {
        for entry in entries.iter().filter(|entry| go(entry)) {
            remove(&entry.path)?;
        }
        self.sync()
    }

    /// Removes the kernels that no entry names.
    fn sweep(&self) -> Result<(), ActivationError> {
        let entries = self.entries()?;
        let texts = entries.iter().map(|entry| &entry.text);
        self.kernels.sweep(texts.flat_map(|text| text.loaded.iter().chain(&text.initrds)).map(String::as_str))
    }

    /// What is to be written so that `slot` comes next: its entry, and before it one for the slot that runs, if that has none.
    fn plan(&self, entries: &[Entry], slot: SlotName, holds: &Holds, tries: u8) -> Result<Vec<Entry>, ActivationError> {
        let number = Self::next_number(entries);
        let mut plan = Vec::new();
        let other = self.booted.slot()?.filter(|active| tries > 0 && *active != slot);
        let falls_back = |other: SlotName| entries.iter().any(|e| e.of(other) && e.starts && e.left() != Some(0));
        if let Some(other) = other.filter(|other| !falls_back(*other)) {
            plan.push(self.planned(other, number, 0, &self.head(other, None)?));
        }
        let number = number.saturating_add(plan.len() as u64);
        plan.push(self.planned(slot, number, tries, &self.head(slot, Some(holds))?));
        Ok(plan)
    }

    /// The loader must take it, or nothing is changed.
    fn check_first(&self, entries: &[Entry], plan: &[Entry]) -> Result<(), ActivationError> {
        let all: Vec<Entry> = entries.iter().chain(plan).cloned().collect();
        let pattern = self.pattern()?;
        let (first, wanted) = (chosen(&all, pattern.as_deref()), plan.last());
        if first.map(|first| &first.path) == wanted.map(|wanted| &wanted.path) {
            return Ok(());
        }
        let config = self.esp.join("loader/loader.conf");
        let slot = wanted.and_then(|wanted| wanted.ours).map_or("?", |(slot, _)| slot.as_str());
        let (path, what) = match first {
            Some(first) => (first.path.as_path(), "would be started".to_owned()),
            None => (config.as_path(), format!("says default {}", pattern.unwrap_or_default())),
        };
        let problem = format!(
            "{what}, and not slot {slot}; write `default goldsync-*` into {} (`bootctl set-default ''` if another was set), and leave entries called goldsync-* to the agent",
            config.display()
        );
        Err(content(path, problem))
    }
}

/// A loader's text, up to where no loader's text is any more.
fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(entry::TEXT_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn content(path: &Path, problem: String) -> ActivationError {
    ActivationError::Content { backend: BACKEND, path: path.to_owned(), problem }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ActivationError {
    super::failed(BACKEND, what, path)
}

impl Activation for SystemdBoot {
    fn look(&self) -> Result<Look, ActivationError> {
        let (entries, pattern) = (self.entries()?, self.pattern()?);
        let first = chosen(&entries, pattern.as_deref());
        let next = first.and_then(|first| first.ours).map(|(slot, _)| slot);
        let tries = first.filter(|first| first.ours.is_some()).and_then(Entry::left);
        Ok(Look { active: self.booted.slot()?, next, tries: tries.map(|left| left.min(255) as u8) })
    }

    fn retire(&self, slot: SlotName) -> Result<(), ActivationError> {
        self.remove(&self.settled()?, |entry| entry.of(slot))?;
        self.sweep()
    }

    fn activate(&self, slot: SlotName, holds: &Holds, tries: u8) -> Result<(), ActivationError> {
        let entries = self.settled()?;
        let plan = self.plan(&entries, slot, holds, tries)?;
        self.check_first(&entries, &plan)?;
        for mut entry in plan {
            let owner = entry.ours.map_or(slot, |(owner, _)| owner);
            for (key, path) in self.kernels.bring(self.slots.path(owner))? {
                entry.body.push_str(&format!("{key:<8} {path}\n"));
            }
            self.write(&entry)?;
        }
        self.remove(&entries, |entry| entry.of(slot))?;
        self.sweep()
    }

    fn confirm(&self, slot: SlotName) -> Result<(), ActivationError> {
        let entries = self.settled()?;
        let of_slot = entries.iter().filter(|entry| entry.of(slot) && entry.starts);
        let Some(newest) = of_slot.max_by_key(|entry| (entry.number(), entry.name.tries.is_none())) else {
            let problem = format!("has no entry for slot {slot}; run `goldsync-agent activate`");
            return Err(content(&self.folder(), problem));
        };
        let mut kept = newest.clone();
        kept.name.tries = None;
        kept.path = self.folder().join(kept.name.file());
        if newest.name.tries.is_some() {
            self.write(&kept)?;
        }
        self.remove(&entries, |entry| entry.of(slot) && entry.path != kept.path)
    }

    fn knows(&self, slot: SlotName) -> Result<bool, ActivationError> {
        Ok(self.entries()?.iter().any(|entry| entry.of(slot) && entry.starts))
    }

    fn booted(&self) -> Option<&Booted> {
        Some(&self.booted)
    }
}

#[cfg(test)]
mod tests;
