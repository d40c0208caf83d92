//! Power cuts: the emulator is killed at a moment that a seed chose, again and again, on one disk.
//!
//! ```text
//! power on ─▶ starts ─▶ finishes what was cut ─▶ restarts ─▶ confirms ── "golden" ─▶ the next release ──╳ at a random moment
//!    ▲          │ what it starts must be a whole release: the slot was hashed while the power was off     │
//!    └──────────┴─────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! Three releases take turns, so that the standby slot never holds the one that comes next and must be written.
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

/// What the machine is ordered: to be golden, and to wait for a word when it is.
pub const ORDERS: &str = r#"
while :; do
  do_or_say node sync --json
  if ! grep -q '"outcome":"up_to_date"' /tmp/done; then say "synced"; umount /state; exit 0; fi
  say "golden $release"
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
    /// How often the machine came back with the release that it had, or with the one that it was getting.
    pub came_back: BTreeMap<&'static str, u64>,
}

/// Cuts the power so many times, or as often as it can be done in `limit`. The machine runs version 1 from slot a, and is no node
/// yet.
pub fn cut(rig: &Rig, disk: &Disk, firmware: &Firmware, count: u64, seed: u64, limit: Duration) -> Result<Tally> {
    let until = Instant::now() + limit;
    let mut seed = Seed::new(seed);
    let mut tally = Tally::default();
    let images = VERSIONS.map(|version| rig.image(version, Flaw::None));
    let images = images.into_iter().collect::<Result<Vec<_>>>()?;
    let golden = images.iter().map(|image| node::hash(image)).collect::<Result<Vec<_>>>()?;
    let size = std::fs::metadata(&images[0])?.len();
    let hashes = || -> Result<[String; 2]> { Ok([disk.hash(Part::A, size)?, disk.hash(Part::B, size)?]) };
    for (version, image) in VERSIONS.iter().zip(&images) {
        rig.scene.server.publish(image, NAME, version)?;
    }
    let orders = rig.orders(ORDERS);
    let switch_on = || Vm::start(firmware, &disk.path, &orders);
    let go_on = |vm: &mut Vm, version: &str| {
        rig.scene.server.promote(&format!("{NAME}:{version}"), CHANNEL)?;
        vm.type_line("go on")
    };

    // Once without a cut: how long it takes from a release to the next.
    rig.scene.server.promote(&format!("{NAME}:{}", VERSIONS[0]), CHANNEL)?;
    let mut vm = switch_on()?;
    vm.wait("golden")?;
    let (mut at, began) = (1, Instant::now());
    go_on(&mut vm, VERSIONS[at])?;
    vm.wait("golden")?;
    let whole = began.elapsed();

    while tally.cuts < count && Instant::now() < until {
        let (had, next) = (at, (at + 1) % VERSIONS.len());
        go_on(&mut vm, VERSIONS[next])?;
        let before = vm.marks().len();
        // A little longer than it takes, so that the end is met too.
        let moment = whole.mul_f64(seed.below(1100) as f64 / 1000.0);
        ensure!(!vm.run_for(moment)?, "the machine switched itself off:\n{}", vm.said());
        let marks = vm.marks();
        let last = marks.get(before..).and_then(|marks| marks.last()?.split(' ').next()).unwrap_or("go on").to_owned();
        *tally.after.entry(last.clone()).or_default() += 1;
        vm.cut()?;
        tally.cuts += 1;

        let held = hashes()?;
        vm = switch_on()?;
        let up = vm.wait("up")?;
        let (release, slot) = up.split_once(' ').with_context(|| format!("it came up as {up:?}"))?;
        let version =
            release.rsplit(':').next().and_then(|version| VERSIONS.iter().position(|other| *other == version));
        let version = version.with_context(|| format!("it came up as {up:?}"))?;
        ensure!(version == had || version == next, "cut {}: it had {had}, was getting {next}, runs {up}", tally.cuts);
        let lies = &held[usize::from(slot == "b")];
        ensure!(*lies == golden[version], "cut {}: {up} started, and its slot holds {lies}", tally.cuts);
        *tally
            .came_back
            .entry(if version == had { "with what it had" } else { "with what it was getting" })
            .or_default() += 1;
        let end = vm.wait("golden").with_context(|| format!("after cut {}", tally.cuts))?;
        ensure!(end.ends_with(VERSIONS[next]), "cut {}: the next run ended with {end}", tally.cuts);
        eprintln!("cut {} of {count}, after {last:?}: came back with {up}, then {end}", tally.cuts);
        at = next;
    }
    vm.cut()?;
    let slots = hashes()?;
    ensure!(slots.contains(&golden[at]), "neither slot holds what runs: {slots:?}");
    Ok(tally)
}

/// The number in an environment variable.
pub fn asked(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable} is {text:?}, which is no number")),
        Err(_) => Ok(default),
    }
}
