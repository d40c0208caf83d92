//! A server with its nodes, and putting a node back to what it was.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use goldsync_proto::wire::Outcome;
use goldsync_tests::{Node, Programs, Server};
use serde::Deserialize;

use super::{CHANNEL, Publish};
use crate::compare::loopback;
use crate::compare::process::{self, Cost, Meter};
use crate::compare::row::Run;

/// A server, and where its nodes are.
pub struct Stage<'a> {
    /// The server.
    pub server: Server,
    /// Takes what programs print.
    pub scratch: &'a Path,
    /// All programs.
    pub programs: Programs,
}

impl<'a> Stage<'a> {
    /// An empty server.
    pub fn new(scratch: &'a Path) -> Result<Self> {
        let programs = Programs::this()?;
        Ok(Self { server: Server::start_in(&programs, scratch)?, scratch, programs })
    }

    /// Publishes `image` as `release`, a name and a version, and points the nodes' channel at it.
    pub fn publish(&self, what: &str, image: &Path, release: (&str, &str)) -> Result<Publish> {
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
    pub fn prepared(&self, release: &str) -> Result<Cost> {
        let meter = Meter::start(self.server.pid()?);
        loop {
            let shown = self.server.goldsync(["release", "show", release, "--json"])?.ok()?.json()?;
            let bases = shown["bases"].as_array().context("the likely bases")?;
            if bases.iter().all(|base| base["thorough"].is_u64() && base["under_way"] == false) {
                return Ok(meter.stop());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the server has nothing to do: plans for releases that only set the scene are none of what is measured next.
    pub fn idle(&self) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(500);
        let server = self.server.pid()?;
        loop {
            let before = process::cpu(server);
            std::thread::sleep(LOOK);
            if process::cpu(server) - before < LOOK.as_secs_f64() / 100.0 {
                return Ok(());
            }
        }
    }

    /// A node that has nothing.
    pub fn node(&self, name: &str) -> Result<Node> {
        let node = Node::prepare(&self.programs, self.scratch, name, CHANNEL)?;
        node.enrol(&self.server)?;
        Ok(node)
    }

    /// A verb of the agent, measured; the node must run `golden` afterwards.
    pub fn run(&self, node: &Node, verb: &str, golden: &str) -> Result<Run> {
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
            handshake: Some(said.handshake.received + said.handshake.sent),
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
    /// What of it the handshake took.
    handshake: Wire,
}

#[derive(Debug, Deserialize)]
struct Wire {
    received: u64,
    sent: u64,
}

/// A node as it was, to put it back.
pub struct Before {
    node: PathBuf,
    kept: PathBuf,
    active: Option<PathBuf>,
}

impl Before {
    /// As it is now.
    pub fn of(node: &Node) -> Result<Self> {
        let kept = node.folder().with_extension("kept");
        copy_folder(&node.folder().join("state"), &kept)?;
        let active = fs::read_link(node.folder().join("current")).ok();
        Ok(Self { node: node.folder().to_owned(), kept, active })
    }

    /// State and link as they were; slots that were not active are empty, or hold `standby`.
    pub fn restore(&self, standby: Option<&Path>) -> Result<()> {
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
pub fn place(image: &Path, slot: &Path) -> Result<()> {
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
