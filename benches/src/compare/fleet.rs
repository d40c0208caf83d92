//! goldsync in every situation that a node can be in, on one pair of images.
//!
//! Two servers: one that knows both images, and one that knows the new one only, for which a node on the old image runs
//! something unknown. Before every run the node is put back as it was: state folder, link and slots. The server makes its plans
//! after publishing, in the background; that is measured by itself, and every row finds a server that has them and is idle.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use goldsync_proto::wire::Outcome;
use goldsync_tests::{Node, Programs, Server};
use serde::{Deserialize, Serialize};

use super::loopback;
use super::pairs::Pair;
use super::process::{self, Cost, Memory, Meter};
use super::row::{Knows, Row, Run, Tool};

const CHANNEL: &str = "production";

/// Blocks overwritten in the rows that drift.
const DRIFTED_BLOCKS: u64 = 200;

/// A node that runs the old release; its standby slot is empty, and the server has the plan.
pub const KNOWN: &str = "known base, standby empty";
/// The same, of a node that would rather spare bytes than time.
pub const FRUGAL: &str = "known base, the node prefers bytes";
/// The row of a node that did an update before: the usual one.
const STEADY: &str = "known base, standby holds the release before";
/// The same, with [`DRIFTED_BLOCKS`] overwritten.
pub const DRIFTED: &str = "known base, 200 blocks drifted";
/// A node that has the old image, of which the server knows nothing.
pub const UNKNOWN: &str = "unknown base, standby empty";
/// A node that has nothing.
pub const COLD: &str = "cold";

/// What a pair came to.
#[derive(Debug)]
pub struct Measured {
    /// A row a situation.
    pub rows: Vec<Row>,
    /// Publishing the images.
    pub publishes: Vec<Publish>,
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

/// A new image on the server, and its golden id.
struct Stage<'a> {
    server: Server,
    scratch: &'a Path,
    programs: Programs,
}

impl<'a> Stage<'a> {
    fn new(scratch: &'a Path) -> Result<Self> {
        let programs = Programs::this()?;
        Ok(Self { server: Server::start_in(&programs, scratch)?, scratch, programs })
    }

    /// Publishes `image` as `release`, a name and a version, and points the nodes' channel at it.
    fn publish(&self, what: &str, image: &Path, release: (&str, &str)) -> Result<Publish> {
        let (name, version) = release;
        let mut command = self.programs.command("goldsync");
        command.arg("--operator").arg(self.server.operator()).arg("publish").arg(image);
        command.args(["--name", name, "--version", version, "--quiet", "--json"]);
        let meter = Meter::start(self.server.pid()?);
        let finished = process::run(command, self.scratch)?;
        let server = meter.stop();
        let published: serde_json::Value = serde_json::from_str(&finished.stdout)?;
        let number = |key: &str| published[key].as_u64().with_context(|| format!("no {key} in {published}"));
        self.server.promote(&format!("{name}:{version}"), CHANNEL)?;
        let (sent, stored) = (number("bytes_sent")?, number("stored")?);
        Ok(Publish { what: what.to_owned(), sent, stored, client: finished.cost, server, plans: None })
    }

    /// Waits until the server has made all its plans for a release and is idle: what it does in the background is nobody's update.
    fn prepared(&self, release: &str) -> Result<Cost> {
        let meter = Meter::start(self.server.pid()?);
        loop {
            let shown = self.server.goldsync(["release", "show", release, "--json"])?.ok()?.json()?;
            let bases = shown["bases"].as_array().context("the likely bases")?;
            if bases.iter().all(|base| base["thorough"].is_u64() && base["under_way"] == false) {
                return Ok(meter.stop());
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }

    fn node(&self, name: &str) -> Result<Node> {
        let node = Node::prepare(&self.programs, self.scratch, name, CHANNEL)?;
        node.enrol(&self.server)?;
        Ok(node)
    }

    /// A verb of the agent, measured; the node must run `golden` afterwards.
    fn run(&self, node: &Node, verb: &str, golden: &str) -> Result<Run> {
        let mut command: Command = self.programs.command("goldsync-agent");
        command.arg("--config").arg(node.config()).args([verb, "--json"]);
        let (before, meter) = (loopback::crossed(), Meter::start(self.server.pid()?));
        let finished = process::run(command, self.scratch)?;
        let server = meter.stop();
        let interface = loopback::since(before);
        ensure!(node.runs()?.as_deref() == Some(golden), "{} does not run the golden image after {verb}", node.name());
        let said: Said = serde_json::from_str(&finished.stdout).with_context(|| finished.stdout.clone())?;
        let mut run = Run {
            received: said.wire.received,
            sent: said.wire.sent,
            interface,
            client: finished.cost,
            server,
            ..Run::default()
        };
        match said.outcome {
            Outcome::Updated { account } => {
                run.written = Some(account.written);
                run.skipped = Some(account.skipped);
                run.repaired = Some(account.repaired);
                run.path = Some(account.path);
            }
            Outcome::UpToDate => run.written = Some(0),
            other => anyhow::bail!("{verb} ended in {other:?}"),
        }
        Ok(run)
    }
}

/// What `sync --json` and `repair --json` print.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(flatten)]
    outcome: Outcome,
    /// Everything that the connection moved, to its end.
    wire: Wire,
}

#[derive(Debug, Deserialize)]
struct Wire {
    received: u64,
    sent: u64,
}

/// A node as it was, to put it back.
struct Before {
    node: PathBuf,
    kept: PathBuf,
    active: Option<PathBuf>,
}

impl Before {
    fn of(node: &Node) -> Result<Self> {
        let kept = node.folder().with_extension("kept");
        copy_folder(&node.folder().join("state"), &kept)?;
        let active = fs::read_link(node.folder().join("current")).ok();
        Ok(Self { node: node.folder().to_owned(), kept, active })
    }

    /// State and link as they were; slots that were not active are empty, or hold `standby`.
    fn restore(&self, standby: Option<&Path>) -> Result<()> {
        let (state, link) = (self.node.join("state"), self.node.join("current"));
        fs::remove_dir_all(&state)?;
        copy_folder(&self.kept, &state)?;
        let _ = fs::remove_file(&link);
        if let Some(active) = &self.active {
            symlink(active, &link)?;
        }
        for name in ["a.img", "b.img"] {
            let slot = self.node.join(name);
            if self.active.as_ref().and_then(|active| active.file_name()) == slot.file_name() {
                continue;
            }
            let _ = fs::remove_file(&slot);
            if let Some(image) = standby {
                place(image, &slot)?;
            }
        }
        Ok(())
    }
}

/// A copy that is on the disk, so that no run pays for its making.
fn place(image: &Path, slot: &Path) -> Result<()> {
    fs::copy(image, slot).with_context(|| format!("copy {} to {}", image.display(), slot.display()))?;
    Ok(File::open(slot)?.sync_all()?)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_folder(&entry.path(), &target)?
        } else if kind.is_symlink() {
            let _ = fs::remove_file(&target);
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?
        } else {
            fs::copy(entry.path(), target).map(drop)?
        }
    }
    Ok(())
}

/// Every situation of the pair.
pub fn measure(pair: &Pair, scratch: &Path, repeat: usize) -> Result<Measured> {
    let folder = scratch.join("fleet");
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
    let knows = folder.join("knows");
    fs::create_dir_all(&knows)?;
    let stage = Stage::new(&knows)?;
    publishes.push(stage.publish("the old image, to an empty server", &pair.old, ("image", "1"))?);
    let (first, both, drifts) = (stage.node("first")?, stage.node("both")?, stage.node("drifts")?);
    for node in [&first, &both, &drifts] {
        node.agent(["sync"])?.ok()?;
    }
    let (before_first, before_drift) = (Before::of(&first)?, Before::of(&drifts)?);
    drift(&drifts, fs::metadata(&pair.old)?.len() / 4096)?;
    let (earlier, before_both) = steady(&stage, &both, pair, &knows)?;
    let publish = stage.publish("the new image", &pair.new, ("image", "2"))?;
    publishes.push(Publish { plans: Some(stage.prepared("image:2")?), ..publish });

    rows.push(repeated(KNOWN, Knows::Base, repeat, || {
        before_first.restore(None)?;
        stage.run(&first, "sync", &golden)
    })?);
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
    drop((first, both, drifts));
    rows.push(cold(&stage, &golden, repeat)?);
    drop(stage);
    fs::remove_dir_all(&knows)?;
    rows.push(unknown(pair, &folder.join("unknown"), &golden, repeat)?);
    Ok(Measured { rows, publishes })
}

fn from_drift(pair: &Pair, folder: &Path, repeat: usize) -> Result<Measured> {
    let mut rows = vec![unknown(pair, &folder.join("unknown"), &super::golden(&pair.new)?, repeat)?];
    let knows = folder.join("knows");
    fs::create_dir_all(&knows)?;
    let stage = Stage::new(&knows)?;
    let publishes = vec![stage.publish("the new image, to an empty server", &pair.new, ("image", "1"))?];
    let golden = super::golden(&pair.new)?;
    if pair.name == "drift" {
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
    Ok(Measured { rows, publishes })
}

fn no_op(stage: &Stage<'_>, node: &Node, golden: &str, repeat: usize) -> Result<Row> {
    repeated("nothing to do", Knows::Base, repeat, || stage.run(node, "sync", golden))
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
    let node = stage.node("unknown")?;
    place(&pair.old, &node.slot("a"))?;
    symlink(node.slot("a"), node.folder().join("current"))?;
    let before = Before::of(&node)?;
    let row = repeated(UNKNOWN, Knows::Nothing, repeat, || {
        before.restore(None)?;
        stage.run(&node, "sync", golden)
    })?;
    drop(stage);
    fs::remove_dir_all(folder)?;
    Ok(row)
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
    Ok((earlier, Before::of(node)?))
}

/// Overwrites blocks of the active slot, spread evenly.
fn drift(node: &Node, blocks: u64) -> Result<()> {
    let count = DRIFTED_BLOCKS.min(blocks / 4).max(1);
    let at: Vec<u64> = (0..count).map(|index| (index * blocks + blocks / 3) / count % blocks).collect();
    flip(&node.slot(node.active()?.context("an active slot")?.as_str()), &at)
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
