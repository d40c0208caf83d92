//! Looks at disks that were found after power was lost ([`super::replay`]): what would start, and what is claimed.
//!
//! The state partition is recovered as a machine would (`e2fsck`, which carries out the file system's journal), and read
//! (`debugfs`); slots are hashed. What would start is what the initramfs would choose from `/slots`, now or when the tries are used up.
//! Each different slot and each different state partition is looked at once.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use goldsync_agent::journal::{Journal, SlotRecord};
use goldsync_agent::slot::SlotName;

use super::layout::{Layout, Part};
use super::replay::Found;
use crate::programs::Run;

/// The parts of a disk that are looked at, in the order of [`Found::changes`].
pub const PARTS: [Part; 3] = [Part::A, Part::B, Part::State];

/// What is called an image that the story itself has changed.
const DRIFTED: &str = "drifted";

/// What a state partition said.
#[derive(Clone, Debug)]
struct State {
    /// What starts next, and what starts when that came to nothing.
    starts: Vec<usize>,
    /// Each slot's record.
    records: [SlotRecord; 2],
}

/// Whoever looks.
#[derive(Debug)]
pub struct Judge {
    layout: Layout,
    size: u64,
    /// Whole images: their hashes and names.
    images: HashMap<String, String>,
    scratch: PathBuf,
    slots: HashMap<(usize, u64), String>,
    states: HashMap<u64, State>,
    /// Disks that were looked at.
    pub disks: u64,
    /// Different state partitions among them, recovered and read.
    pub recovered: u64,
}

impl Judge {
    /// For disks of a layout and images of a size, their hashes and names. `scratch` is a folder of its own.
    pub fn new(layout: Layout, size: u64, images: HashMap<String, String>, scratch: &Path) -> Result<Self> {
        fs::create_dir(scratch)?;
        let (slots, states) = Default::default();
        Ok(Self { layout, size, images, scratch: scratch.to_owned(), slots, states, disks: 0, recovered: 0 })
    }

    /// The story itself has changed a slot: from now on, what it holds may be there, whatever a record says.
    pub fn drifted(&mut self, found: &Found<'_>, slot: usize) -> Result<()> {
        let hash = self.hash(found, slot)?;
        self.images.insert(hash, DRIFTED.to_owned());
        Ok(())
    }

    /// Looks at a disk; what would start from it.
    pub fn look(&mut self, found: &Found<'_>) -> Result<String> {
        self.disks += 1;
        self.verdict(found)
            .with_context(|| format!("power lost behind {} writes and flushes, {:?}", found.event, found.fate))
    }

    fn verdict(&mut self, found: &Found<'_>) -> Result<String> {
        let number = found.changes.get(2).copied().context("the state partition's number")?;
        let state = match self.states.get(&number) {
            Some(state) => state.clone(),
            None => self.state(found, number)?,
        };
        for slot in [0, 1] {
            if let Some(proven) = state.records[slot].proven() {
                let holds = self.hash(found, slot)?;
                let ours = self.images.get(&holds).is_some_and(|name| name == DRIFTED);
                let whole = proven.size == self.size && proven.image.to_string() == holds;
                ensure!(whole || ours, "{} is called proven, and holds {holds}: {proven:?}", name(slot));
            }
        }
        let mut first = None;
        for slot in state.starts {
            let holds = self.hash(found, slot)?;
            let image = self.images.get(&holds);
            let image = image.with_context(|| format!("{} would start, and holds {holds}", name(slot)))?;
            first.get_or_insert_with(|| format!("{image} {}", name(slot)));
        }
        first.context("nothing would start")
    }

    fn hash(&mut self, found: &Found<'_>, slot: usize) -> Result<String> {
        let number = found.changes.get(slot).copied().context("a slot's number")?;
        if let Some(hash) = self.slots.get(&(slot, number)) {
            return Ok(hash.clone());
        }
        let bytes = self.bytes(found, slot)?.get(..self.size as usize).context("a slot")?;
        let hash = blake3::hash(bytes).to_hex().to_string();
        self.slots.insert((slot, number), hash.clone());
        Ok(hash)
    }

    fn bytes<'a>(&self, found: &Found<'a>, part: usize) -> Result<&'a [u8]> {
        let range = self.layout.range(PARTS[part]);
        found.disk.get(range.start as usize..range.end as usize).context("a partition")
    }

    /// Recovers and reads the state partition.
    fn state(&mut self, found: &Found<'_>, number: u64) -> Result<State> {
        self.recovered += 1;
        let file = self.scratch.join("state");
        write_sparse(&file, self.bytes(found, 2)?)?;
        let mut check = tool("e2fsck");
        check.arg("-fy").arg(&file);
        let ran = Run::of(check)?;
        // 1: it was recovered.
        ensure!(matches!(ran.code(), 0 | 1), "{} ended with {}:\n{}{}", ran.line, ran.code(), ran.stdout, ran.stderr);
        let tree = self.scratch.join("tree");
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        let journal = Journal::open(&tree)?;
        self.dump(&file, &tree)?;
        let records = [journal.slot(SlotName::A)?, journal.slot(SlotName::B)?];
        journal.trial()?;
        journal.held()?;
        let slots = fs::read_to_string(tree.join("slots.txt")).context("no file /slots")?;
        let state = State { starts: starts(&slots).with_context(|| format!("/slots is {slots:?}"))?, records };
        self.states.insert(number, state.clone());
        Ok(state)
    }

    /// Copies what is looked at out of the recovered file system. What is not there is not copied.
    fn dump(&self, file: &Path, tree: &Path) -> Result<()> {
        let mut script = format!("dump /slots {}/slots.txt\n", tree.display());
        for name in ["slots/a.json", "slots/b.json", "trial.json", "held.json"] {
            script.push_str(&format!("dump /goldsync/{name} {}/{name}\n", tree.display()));
        }
        let mut read = tool("debugfs");
        read.args(["-f", "-"]).arg(file).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = read.spawn().context("start debugfs")?;
        child.stdin.take().context("a pipe")?.write_all(script.as_bytes())?;
        ensure!(child.wait()?.success(), "debugfs cannot read the state partition");
        Ok(())
    }
}

fn name(slot: usize) -> &'static str {
    if slot == 0 { "a" } else { "b" }
}

/// What the initramfs starts by the file `slots` (see `tests/guest/initramfs`), and after so many tries.
fn starts(slots: &str) -> Option<Vec<usize>> {
    let slot = |name: &str| ["a", "b"].iter().position(|other| *other == name);
    let [good, trial, tries] = slots.lines().collect::<Vec<_>>().try_into().ok()?;
    let (good, tries) = (slot(good)?, tries.parse::<u8>().ok()?);
    Some(match (trial, tries) {
        ("-", _) | (_, 0) => vec![good],
        _ => vec![slot(trial)?, good],
    })
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", super::path()).stdin(Stdio::null());
    command
}

/// Writes a file, with holes where there is nothing.
pub fn write_sparse(path: &Path, bytes: &[u8]) -> Result<()> {
    const PAGE: usize = 64 << 10;
    static NOTHING: [u8; PAGE] = [0; PAGE];
    let file = File::create(path)?;
    file.set_len(bytes.len() as u64)?;
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        if *page != NOTHING[..page.len()] {
            file.write_all_at(page, (number * PAGE) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_starts_is_what_the_initramfs_starts() {
        for (slots, expected) in [
            ("a\n-\n0\n", Some(vec![0])),
            ("a\nb\n3\n", Some(vec![1, 0])),
            ("b\na\n0\n", Some(vec![1])),
            ("", None),
            ("c\n-\n0\n", None),
            ("a\nb\n", None),
            ("a\nb\nmany\n", None),
        ] {
            assert_eq!(starts(slots), expected, "{slots:?}");
        }
    }
}
