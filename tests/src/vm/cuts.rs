//! Power cuts: the emulator is killed at a moment that a seed chose, again and again, on one disk.
//!
//! ```text
//! power on ─▶ starts ─▶ finishes what was cut ─▶ gets the next release ──╳ at a random moment of that, or of the start
//!    ▲          │                                         │              into it and its confirmation
//!    └──────────┴── what starts must be a whole release: the slots were hashed while the power was off
//! ```
//! Three releases take turns, so that the slot that is written never holds the one that comes. In three rounds of four what
//! was got is not started, and is written over while it waits: that is where most of the moments are that matter.
//!
//! A killed emulator loses what the guest held in its own memory, and what it had not yet handed to the disk; the host keeps
//! what it did hand over, in its order. So this finds a missing sync, a step in the wrong order, a start from something half
//! written. It does not find a sync that is missing only where a disk reorders or drops what it was given: that is the
//! simulated disk's task.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Disk, Firmware, Flaw, Part, Rig, Vm};
use crate::node;
use crate::scene::{CHANNEL, NAME};
use crate::seed::Seed;

/// Releases that take turns.
const VERSIONS: [&str; 3] = ["1", "2", "3"];

/// How often what was got is started, and not only got.
const RESTARTS: f64 = 0.25;

/// What the machine is ordered: to get what is wanted, to start it if the last word was so, and to wait for the next word.
const ORDERS: &str = r#"
line=stay
while :; do
  do_or_say node sync --json
  if grep -q '"outcome":"up_to_date"' /tmp/done; then say "done golden $release"
  elif [ "$line" = restart ]; then again
  else say "done staged $release"
  fi
  read -r line
done
"#;

/// How the cuts went.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many.
    pub cuts: u64,
    /// The last mark before a cut, and how often it was that.
    pub after: BTreeMap<String, u64>,
    /// How often the machine came back with which release.
    pub came_back: BTreeMap<&'static str, u64>,
}

/// What a machine has, as far as is known outside: numbers of releases.
#[derive(Clone, Copy, Debug)]
struct Has {
    runs: usize,
    waits: Option<usize>,
}

/// A machine, and what its releases must be like.
struct Bench<'a> {
    rig: &'a Rig,
    disk: &'a Disk,
    firmware: &'a Firmware,
    golden: Vec<String>,
    size: u64,
    orders: String,
}

impl<'a> Bench<'a> {
    fn new(rig: &'a Rig, disk: &'a Disk, firmware: &'a Firmware) -> Result<Self> {
        let mut images = Vec::new();
        for version in VERSIONS {
            let image = rig.image(version, Flaw::None)?;
            rig.scene.server.publish(&image, NAME, version)?;
            images.push(image);
        }
        let golden = images.iter().map(|image| node::hash(image)).collect::<Result<_>>()?;
        Ok(Self { rig, disk, firmware, golden, size: std::fs::metadata(&images[0])?.len(), orders: rig.orders(ORDERS) })
    }

    fn promote(&self, version: usize) -> Result<()> {
        self.rig.scene.server.promote(&name(version), CHANNEL)
    }

    fn switch_on(&self) -> Result<Vm> {
        Vm::start(self.firmware, &self.disk.path, &self.orders)
    }

    /// Which release each slot holds, byte for byte.
    fn slots(&self) -> Result<[Option<usize>; 2]> {
        let holds = |part| -> Result<_> {
            let hash = self.disk.hash(part, self.size)?;
            Ok(self.golden.iter().position(|golden| *golden == hash))
        };
        Ok([holds(Part::A)?, holds(Part::B)?])
    }

    /// Waits until it has nothing to do, which must be because it has `wanted`.
    fn settle(&self, vm: &mut Vm, runs: usize, wanted: usize) -> Result<Has> {
        let done = vm.wait("done")?;
        let (what, release) = done.split_once(' ').with_context(|| format!("it ended with {done:?}"))?;
        let has = match what {
            "golden" => Has { runs: wanted, waits: None },
            _ => Has { runs, waits: Some(wanted) },
        };
        ensure!(release == name(has.runs), "it runs {release}, and was done with {has:?}");
        let slots = self.slots()?;
        ensure!(slots.contains(&Some(wanted)), "no slot holds {}: {slots:?}; {:?}", VERSIONS[wanted], vm.marks());
        Ok(has)
    }

    /// What starts after a cut: a whole release that may be there.
    fn starts(&self, vm: &mut Vm, held: [Option<usize>; 2], may: &[Option<usize>]) -> Result<usize> {
        let up = vm.wait("up")?;
        let release = up.split_once(' ').and_then(|(release, slot)| Some((release.rsplit(':').next()?, slot)));
        let (version, slot) = release.with_context(|| format!("it came up as {up:?}"))?;
        let runs = VERSIONS.iter().position(|other| *other == version);
        ensure!(runs.is_some() && may.contains(&runs), "{may:?} were possible, and it runs {up}");
        ensure!(held[usize::from(slot == "b")] == runs, "{up} started, and the slots hold {held:?}");
        runs.context("a release")
    }
}

/// The release with that number.
fn name(version: usize) -> String {
    format!("{NAME}:{}", VERSIONS[version])
}

/// Cuts the power so many times, or as often as it can be done in `limit`. The machine runs version 1 from slot a, and is no node
/// yet.
pub fn cut(rig: &Rig, disk: &Disk, firmware: &Firmware, count: u64, seed: u64, limit: Duration) -> Result<Tally> {
    let until = Instant::now() + limit;
    let (mut seed, mut tally) = (Seed::new(seed), Tally::default());
    let bench = Bench::new(rig, disk, firmware)?;

    // Once without a cut: how long it takes to get a release, and to get one and start it.
    bench.promote(0)?;
    let mut vm = bench.switch_on()?;
    let mut has = bench.settle(&mut vm, 0, 0)?;
    let spans = [(1, "stay"), (2, "restart")].map(|(next, word)| -> Result<Duration> {
        bench.promote(next)?;
        let began = Instant::now();
        vm.type_line(word)?;
        has = bench.settle(&mut vm, has.runs, next)?;
        Ok(began.elapsed())
    });
    let [stay, restart] = spans;
    let mut spans = [stay?, restart?];

    while tally.cuts < count && Instant::now() < until {
        let next = (0..VERSIONS.len()).find(|next| *next != has.runs && Some(*next) != has.waits);
        let next = next.context("a release that is not there")?;
        let [stay, restart] = &mut spans;
        let (word, span) = if seed.happens(RESTARTS) { ("restart", restart) } else { ("stay", stay) };
        bench.promote(next)?;
        let before = vm.marks().len();
        vm.type_line(word)?;
        // A little longer than it takes, so that the end is met too.
        let moment = span.mul_f64(seed.below(1100) as f64 / 1000.0);
        ensure!(!vm.run_for(moment)?, "the machine switched itself off:\n{}", vm.said());
        let last = vm.marks().get(before..).and_then(|marks| marks.last().copied()).unwrap_or("the word").to_owned();
        vm.cut()?;
        tally.cuts += 1;
        // How fast a guest is depends on who else is at work on the host. Most cuts shall come before all is done.
        *span = span.mul_f64(if last.starts_with("done") { 0.8 } else { 1.05 });

        let held = bench.slots()?;
        vm = bench.switch_on()?;
        let number = tally.cuts;
        let cut = || format!("cut {number}, after {moment:?} of {word:?}; it had {has:?}, was getting {next}");
        let runs = bench.starts(&mut vm, held, &[Some(has.runs), has.waits, Some(next)]).with_context(cut)?;
        let what = match runs {
            runs if runs == has.runs => "what it had",
            runs if runs == next => "what it was getting",
            _ => "what waited for a start",
        };
        has = bench.settle(&mut vm, runs, next).with_context(cut)?;
        eprintln!(
            "cut {number} of {count}, {moment:.1?} into {word:?}, after {last:?}: came back with {what}, then {has:?}"
        );
        *tally.after.entry(last.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
        *tally.came_back.entry(what).or_default() += 1;
    }
    vm.cut()?;
    Ok(tally)
}

/// The number in an environment variable.
pub fn asked(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable} is {text:?}, which is no number")),
        Err(_) => Ok(default),
    }
}
