//! goldsync in every situation that a node can be in, on one pair of images.
//!
//! Two servers: one that knows both images, and one that knows the new one only, for which a node on the old image runs
//! something unknown. Before every run the node is put back as it was: state folder, link and slots. The server makes its plans
//! after publishing, in the background; that is measured by itself, and every row finds a server that has them and is idle.
//!
//! Beside the rows: what a server spends on a node among many and how often a node waits ([`watch`]), what `goldsync bench` foretold
//! ([`forecast`]), and what copying and hashing the image takes ([`floor`]).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use goldsync_tests::Node;
use serde::Serialize;

use super::floor::{self, Floor};
use super::loopback;
use super::pairs::{Pair, REPAIR};
use super::process::{self, Cost, Memory};
use super::row::{Knows, Row, Run, Tool};

pub mod forecast;
mod stage;
mod watch;

pub use forecast::Forecast;
use stage::{Before, Stage, place};
pub use watch::Served;

const CHANNEL: &str = "production";

/// Blocks overwritten in the rows that drift.
const DRIFTED_BLOCKS: u64 = 200;

/// A node that runs the old release; its standby slot is empty, and the server has the plan.
pub const KNOWN: &str = "known base, standby empty";
/// The same, of a node that would rather spare bytes than time.
pub const FRUGAL: &str = "known base, the node prefers bytes";
/// The row of a node that did an update before: the usual one.
pub const STEADY: &str = "known base, standby holds the release before";
/// The same, with [`DRIFTED_BLOCKS`] overwritten.
pub const DRIFTED: &str = "known base, 200 blocks drifted";
/// A node that has the old image, of which the server knows nothing.
pub const UNKNOWN: &str = "unknown base, standby empty";
/// A node that has no record of what it has, which is a release that the server knows, with [`DRIFTED_BLOCKS`] overwritten.
const NEAR: &str = "unknown base near a known release";
/// A node that has nothing.
pub const COLD: &str = "cold";
/// A node that runs the new release.
pub const NO_OP: &str = "nothing to do";

/// What a pair came to.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    /// A row a situation.
    #[serde(skip)]
    pub rows: Vec<Row>,
    /// Publishing the images.
    pub publishes: Vec<Publish>,
    /// What the old image's way to the new one costs, by `goldsync bench`.
    pub forecast: Option<Forecast>,
    /// Copying and hashing the new image: the ruler for a known base.
    pub floor: Option<Floor>,
    /// Many nodes with a known base, and as many bytes without goldsync.
    pub served: Option<Served>,
    /// How many times a node that is up to date waits for an answer, after it is connected.
    pub round_trips: Option<f64>,
}

/// What it took to publish an image.
#[derive(Clone, Debug, Serialize)]
pub struct Publish {
    /// Which.
    pub what: String,
    /// Bytes that the tool sent.
    pub sent: u64,
    /// Bytes by which the store grew.
    pub stored: u64,
    /// The tool.
    pub client: Cost,
    /// The server.
    pub server: Cost,
    /// What the server did afterwards, for nobody waits for it: the release's plans, quick and thorough. For releases that are
    /// updated to.
    pub plans: Option<Cost>,
}

/// An idle agent.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// Connected, and nothing to do.
    pub connected: Memory,
    /// After it did an update, and is idle again.
    pub after_update: Memory,
    /// Seconds of processor that it used in [`Idle::seconds`] of idleness.
    pub cpu: f64,
    /// Bytes that crossed the interface meanwhile, if they were counted.
    pub wire: Option<loopback::Crossed>,
    /// For so long it was watched.
    pub seconds: u64,
}

/// Every situation of the pair.
pub fn measure(pair: &Pair, scratch: &Path, repeat: usize) -> Result<Measured> {
    let folder = scratch.join("fleet");
    fs::create_dir_all(&folder)?;
    let measured = if pair.drifted { from_drift(pair, &folder, repeat) } else { from_release(pair, &folder, repeat) };
    fs::remove_dir_all(&folder)?;
    measured
}

fn repeated(what: &str, knows: Knows, repeat: usize, run: impl FnMut() -> Result<Run>) -> Result<Row> {
    let runs = std::iter::repeat_with(run).take(repeat).collect::<Result<Vec<_>>>().with_context(|| what.to_owned())?;
    let row = Row { knows, ..Row::of(Tool::Goldsync, what, &runs) };
    let (wire, path) = (row.median.wire(), row.median.path.as_deref().unwrap_or("nothing to do"));
    eprintln!("    {what}: {wire} bytes, by {path}, {:.2} s", row.median.client.wall);
    Ok(row)
}

fn from_release(pair: &Pair, folder: &Path, repeat: usize) -> Result<Measured> {
    let (mut rows, mut publishes) = (Vec::new(), Vec::new());
    let golden = super::golden(&pair.new)?;
    let forecast = Some(forecast::of(pair, folder)?);
    let floor = floor::measure(&pair.new, folder, repeat, &golden)?;
    let knows = folder.join("knows");
    fs::create_dir_all(&knows)?;
    let stage = Stage::new(&knows)?;
    publishes.push(stage.publish("the old image, to an empty server", &pair.old, ("image", "1"))?);
    let (first, both, drifts) = (stage.node("first")?, stage.node("both")?, stage.node("drifts")?);
    for node in [&first, &both, &drifts] {
        node.agent(["sync"])?.ok()?;
    }
    let (before_first, before_drift) = (Before::of(&first)?, Before::of(&drifts)?);
    drift(&drifts.slot(drifts.active()?.context("an active slot")?.as_str()))?;
    let (earlier, before_both) = steady(&stage, &both, pair, &knows)?;
    let publish = stage.publish("the new image", &pair.new, ("image", "2"))?;
    publishes.push(Publish { plans: Some(stage.prepared("image:2")?), ..publish });

    rows.push(repeated(KNOWN, Knows::Base, repeat, || {
        before_first.restore(None)?;
        stage.run(&first, "sync", &golden)
    })?);
    let served = Some(watch::served(&stage, &first, &before_first, &golden)?);
    let config = fs::read_to_string(first.config())?;
    fs::write(first.config(), format!("{config}\n[limits]\nprefer = \"bytes\"\n"))?;
    rows.push(repeated(FRUGAL, Knows::Base, repeat, || {
        before_first.restore(None)?;
        stage.run(&first, "sync", &golden)
    })?);
    rows.push(repeated(STEADY, Knows::Base, repeat, || {
        before_both.restore(Some(&earlier))?;
        stage.run(&both, "sync", &golden)
    })?);
    rows.push(repeated(DRIFTED, Knows::Base, repeat, || {
        before_drift.restore(None)?;
        stage.run(&drifts, "sync", &golden)
    })?);
    rows.push(no_op(&stage, &drifts, &golden, repeat)?);
    let round_trips = Some(watch::round_trips(&stage, &drifts, &golden, repeat)?);
    drop((first, both, drifts));
    rows.push(without_record(&stage, NEAR, pair, &golden, repeat, |node| drift(&node.slot("a")))?);
    rows.push(cold(&stage, &golden, repeat)?);
    drop(stage);
    fs::remove_dir_all(&knows)?;
    rows.push(unknown(pair, &folder.join("unknown"), &golden, repeat)?);
    Ok(Measured { rows, publishes, forecast, floor, served, round_trips })
}

fn from_drift(pair: &Pair, folder: &Path, repeat: usize) -> Result<Measured> {
    let mut rows = vec![unknown(pair, &folder.join("unknown"), &super::golden(&pair.new)?, repeat)?];
    let knows = folder.join("knows");
    fs::create_dir_all(&knows)?;
    let stage = Stage::new(&knows)?;
    let publishes = vec![stage.publish("the new image, to an empty server", &pair.new, ("image", "1"))?];
    let golden = super::golden(&pair.new)?;
    if pair.name == REPAIR {
        // The node believes that it runs the golden image, as it did before somebody changed it.
        let node = stage.node("drifts")?;
        node.agent(["sync"])?.ok()?;
        let before = Before::of(&node)?;
        place(&pair.old, &node.slot(node.active()?.context("an active slot")?.as_str()))?;
        rows.push(repeated("repair", Knows::Base, repeat, || {
            before.restore(None)?;
            stage.run(&node, "repair", &golden)
        })?);
        rows.push(no_op(&stage, &node, &golden, repeat)?);
    }
    rows.push(cold(&stage, &golden, repeat)?);
    Ok(Measured { rows, publishes, ..Measured::default() })
}

fn no_op(stage: &Stage<'_>, node: &Node, golden: &str, repeat: usize) -> Result<Row> {
    repeated(NO_OP, Knows::Base, repeat, || stage.run(node, "sync", golden))
}

/// A node with nothing. The first run makes the plan and does not count.
fn cold(stage: &Stage<'_>, golden: &str, repeat: usize) -> Result<Row> {
    let node = stage.node("cold")?;
    let before = Before::of(&node)?;
    stage.run(&node, "sync", golden)?;
    repeated(COLD, Knows::Whole, repeat, || {
        before.restore(None)?;
        stage.run(&node, "sync", golden)
    })
}

/// A node whose active slot holds what this server never saw, and that has no record of it either.
fn unknown(pair: &Pair, folder: &Path, golden: &str, repeat: usize) -> Result<Row> {
    fs::create_dir_all(folder)?;
    let stage = Stage::new(folder)?;
    stage.publish("the new image", &pair.new, ("image", "2"))?;
    let row = without_record(&stage, UNKNOWN, pair, golden, repeat, |_| Ok(()))?;
    drop(stage);
    fs::remove_dir_all(folder)?;
    Ok(row)
}

/// A node whose active slot holds the old image, or what `change` makes of it, and that has no record of it.
fn without_record(
    stage: &Stage<'_>,
    what: &str,
    pair: &Pair,
    golden: &str,
    repeat: usize,
    change: impl FnOnce(&Node) -> Result<()>,
) -> Result<Row> {
    let node = stage.node("unknown")?;
    place(&pair.old, &node.slot("a"))?;
    change(&node)?;
    symlink(node.slot("a"), node.folder().join("current"))?;
    let before = Before::of(&node)?;
    repeated(what, Knows::Nothing, repeat, || {
        before.restore(None)?;
        stage.run(&node, "sync", golden)
    })
}

/// A node that did an update before: the old image runs, and the standby slot holds the release before it, which is made up here,
/// for only the old image is given: every thousandth block of it is another.
fn steady(stage: &Stage<'_>, node: &Node, pair: &Pair, folder: &Path) -> Result<(PathBuf, Before)> {
    let earlier = folder.join("earlier");
    place(&pair.old, &earlier)?;
    let blocks = fs::metadata(&earlier)?.len() / 4096;
    flip(&earlier, &(0..blocks).step_by(1000).collect::<Vec<_>>())?;
    stage.publish("the release before", &earlier, ("earlier", "1"))?;
    node.agent(["sync"])?.ok()?;
    stage.server.promote("image:1", CHANNEL)?;
    node.agent(["sync"])?.ok()?;
    stage.idle()?;
    Ok((earlier, Before::of(node)?))
}

/// Overwrites blocks of a slot, spread evenly.
fn drift(slot: &Path) -> Result<()> {
    let blocks = fs::metadata(slot)?.len() / 4096;
    let count = DRIFTED_BLOCKS.min(blocks / 4).max(1);
    let at: Vec<u64> = (0..count).map(|index| (index * blocks + blocks / 3) / count % blocks).collect();
    flip(slot, &at)
}

/// Turns every bit of these blocks; twice is not at all.
fn flip(slot: &Path, blocks: &[u64]) -> Result<()> {
    let file = File::options().read(true).write(true).open(slot)?;
    for block in blocks {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, block * 4096)?;
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        file.write_all_at(&bytes, block * 4096)?;
    }
    Ok(file.sync_all()?)
}

/// A daemon that has nothing to do, before and after an update.
pub fn idle(pair: &Pair, scratch: &Path) -> Result<Idle> {
    const SECONDS: u64 = 10;
    let folder = scratch.join("idle");
    fs::create_dir_all(&folder)?;
    let stage = Stage::new(&folder)?;
    stage.publish("the new image", &pair.new, ("image", "1"))?;
    let mut node = stage.node("idle")?;
    node.agent(["sync"])?.ok()?;
    let connected = |node: &mut Node| -> Result<Memory> {
        node.start()?;
        let daemon = node.daemon().context("a daemon")?;
        let server = &stage.server;
        daemon.wait_until("connected", || Ok(server.goldsync(["status", "--json"])?.json()?["connected"] == 1))?;
        std::thread::sleep(std::time::Duration::from_secs(2));
        process::memory(daemon.pid()).context("the daemon's memory")
    };
    let at_rest = connected(&mut node)?;
    let pid = node.daemon().context("a daemon")?.pid();
    let (cpu, before) = (process::cpu(pid), loopback::crossed());
    std::thread::sleep(std::time::Duration::from_secs(SECONDS));
    let (cpu, wire) = (process::cpu(pid) - cpu, loopback::since(before));
    // The same daemon is told of another image and moves to it.
    stage.publish("the old image", &pair.old, ("image", "2"))?;
    let golden = super::golden(&pair.old)?;
    let run = || Ok(node_runs(&folder.join("idle"))?.as_deref() == Some(&*golden));
    node.daemon().context("a daemon")?.wait_until("updated", run)?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    let after_update = process::memory(pid).context("the daemon's memory")?;
    node.stop()?;
    drop(stage);
    fs::remove_dir_all(&folder)?;
    Ok(Idle { connected: at_rest, after_update, cpu, wire, seconds: SECONDS })
}

fn node_runs(folder: &Path) -> Result<Option<String>> {
    let link = folder.join("current");
    if link.exists() { super::golden(&link).map(Some) } else { Ok(None) }
}
