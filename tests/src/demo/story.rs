//! The demo's story, step by step.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use goldsync_proto::wire::{Account, Outcome};

use super::Options;
use super::show::{Voice, bytes, count, part};
use super::summary::{Cost, Golden, Slot, Summary};
use crate::images::{self, Pair};
use crate::node::{self, Node};
use crate::programs::Programs;
use crate::server::Server;

const CHANNEL: &str = "production";
const NODES: [&str; 3] = ["anna", "bert", "cleo"];

/// The longest that a node waits of its own accord when it is told that its channel moved.
const SPLAY: &str = "5 s";

/// Blocks that drift in the story.
const DRIFTED: u64 = 4;

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(600);

/// Tells the story in `scratch`. Whether every slot is golden in the end.
pub fn tell(options: &Options, scratch: &Path) -> Result<bool> {
    let (voice, began) = (Voice { aside: options.json }, Instant::now());
    voice.say(&format!("goldsync demo: a server and three nodes on loopback, in {}", scratch.display()));
    let (pair, releases) = images(options, scratch, voice)?;
    let mut fleet = Fleet::found(scratch, releases, voice)?;
    fleet.publish(0, &pair.old)?;
    fleet.enrol()?;
    fleet.install_cold()?;
    fleet.publish(1, &pair.new)?;
    fleet.update_by_push()?;
    fleet.sync_again()?;
    fleet.drift_and_repair()?;
    fleet.roll_back()?;
    fleet.end()?;
    let slots = fleet.slots()?;
    let golden = slots.iter().all(Slot::good);
    let Fleet { releases, steps, .. } = fleet;
    let seconds = began.elapsed().as_secs_f64();
    let summary = Summary { images: pair.what, releases, steps, slots, golden, seconds };
    summary.print(voice);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    }
    Ok(golden)
}

/// The two images, and what their ids must be: found out without goldsync.
fn images(options: &Options, scratch: &Path, voice: Voice) -> Result<(Pair, Vec<Golden>)> {
    let step = voice.step("Two images");
    let pair = match (&options.old, &options.new) {
        (Some(old), Some(new)) => Pair { old: absolute(old)?, new: absolute(new)?, what: "your own images".into() },
        _ => images::from_toolchain(scratch, options.size)?,
    };
    let golden = |release: &str, path: &Path| -> Result<Golden> {
        let size = fs::metadata(path).with_context(|| path.display().to_string())?.len();
        Ok(Golden { release: release.into(), image: node::hash(path)?, size })
    };
    let releases = vec![golden("demo:1", &pair.old)?, golden("demo:2", &pair.new)?];
    ensure!(releases[0].image != releases[1].image, "both images are the same, byte for byte: nothing to show");
    step.note(&pair.what);
    for golden in &releases {
        step.note(&format!("{}  {:>10}  BLAKE3 {}", golden.release, bytes(golden.size), golden.image));
    }
    step.end();
    Ok((pair, releases))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| path.display().to_string())
}

/// The server and its nodes.
struct Fleet {
    voice: Voice,
    releases: Vec<Golden>,
    nodes: Vec<Node>,
    server: Server,
    steps: Vec<Cost>,
}

impl Fleet {
    fn found(scratch: &Path, releases: Vec<Golden>, voice: Voice) -> Result<Self> {
        let step = voice.step("A server: `goldsync init`, `goldsync serve`");
        let programs = Programs::this()?;
        let server = Server::start_in(&programs, scratch)?;
        let nodes = NODES.map(|name| {
            let node = Node::prepare(&programs, scratch, name, CHANNEL)?;
            node.configure(CHANNEL, SPLAY)?;
            Ok(node)
        });
        let nodes = nodes.into_iter().collect::<Result<_>>()?;
        step.note("data folder, SQLite catalog, object store, certificate authority, signing keys");
        step.note(&format!("nodes dial {} (QUIC, mutual TLS 1.3); operators use HTTPS", server.address()));
        step.end();
        Ok(Self { voice, releases, nodes, server, steps: Vec::new() })
    }

    fn publish(&self, at: usize, image: &Path) -> Result<()> {
        let release = &self.releases[at].release;
        let (name, version) = release.split_once(':').context("NAME:VERSION")?;
        let step = self.voice.step(&format!("Publish {release}: hash it, send what the server lacks, sign it"));
        let published = self.server.publish(image, name, version)?;
        ensure!(published["image"] == *self.releases[at].image, "the release is not what b3sum prints: {published}");
        let number = |key: &str| published[key].as_u64().unwrap_or_default();
        step.note(&format!(
            "{} hashed; {} blocks sent as {}; the store grew by {}",
            bytes(number("size")),
            count(number("blocks_sent")),
            bytes(number("bytes_sent")),
            bytes(number("stored"))
        ));
        step.end();
        Ok(())
    }

    fn promote(&self, at: usize) -> Result<()> {
        self.server.promote(&self.releases[at].release, CHANNEL)
    }

    /// Three machines become nodes, each with a token of its own, and connect.
    fn enrol(&mut self) -> Result<()> {
        let step = self.voice.step("Enrol three machines with one-time tokens, and start their daemons");
        for node in &mut self.nodes {
            node.enrol(&self.server)?;
            node.start()?;
        }
        let (server, all) = (&self.server, self.nodes.len() as u64);
        let connected = || Ok(server.goldsync(["status", "--json"])?.ok()?.json()?["connected"].as_u64() == Some(all));
        wait("all nodes are connected", &self.nodes, connected)?;
        step.end();
        Ok(())
    }

    /// From nothing, by the operator's order.
    fn install_cold(&mut self) -> Result<()> {
        let step = self.voice.step("Promote demo:1, and order the whole fleet to sync: `goldsync fleet sync --now`");
        self.promote(0)?;
        self.fleet_sync()?;
        self.expect_all("cold", 0)?;
        step.end();
        Ok(())
    }

    /// Nobody gives an order: the nodes are told over the connections that they hold.
    fn update_by_push(&mut self) -> Result<()> {
        let step = self.voice.step("Promote demo:2; the nodes are told, and move by themselves");
        let began = Instant::now();
        self.promote(1)?;
        let (golden, size) = (&self.releases[1].image, self.releases[1].size);
        let mut moved: Vec<Option<f64>> = vec![None; self.nodes.len()];
        let all_moved = || {
            for (node, moved) in self.nodes.iter().zip(&mut moved) {
                // The record is written after the swap, so that the account is complete when it says so.
                if moved.is_none() && last(node)?.is_some_and(|last| last["release"] == "demo:2") {
                    *moved = Some(began.elapsed().as_secs_f64());
                }
            }
            Ok(moved.iter().all(Option::is_some))
        };
        wait("all nodes have moved", &self.nodes, all_moved)?;
        for (node, moved) in self.nodes.iter().zip(moved) {
            ensure!(node.runs()?.as_ref() == Some(golden), "{} does not run demo:2", node.name());
            let account = account(node)?;
            step.note(&format!(
                "{} runs demo:2 {:.1} s after the promotion; by {}, {} received for {} ({})",
                node.name(),
                moved.unwrap_or_default(),
                account.path,
                bytes(account.received),
                bytes(size),
                part(account.received, size)
            ));
        }
        self.expect_all("update", 1)?;
        step.note(&format!(
            "each waited for as long as it chose itself, up to {SPLAY}, so that a fleet does not come at once"
        ));
        step.end();
        Ok(())
    }

    /// Doing it again does nothing.
    fn sync_again(&mut self) -> Result<()> {
        let step = self.voice.step("Order the fleet to sync again, with nothing to do");
        self.fleet_sync()?;
        let run = self.nodes[0].agent(["sync", "--json"])?.ok()?.json()?;
        ensure!(run["outcome"] == "up_to_date", "there was something to do: {run}");
        let moved = |of: &str, key: &str| run[of][key].as_u64().with_context(|| format!("no {of}.{key} in {run}"));
        let (received, sent) = (moved("wire", "received")?, moved("wire", "sent")?);
        let handshake = moved("handshake", "received")? + moved("handshake", "sent")?;
        step.note(&format!(
            "by hand on anna, over a connection of its own: {} for the handshake, certificates included, and {} for the question; \
             nothing written",
            bytes(handshake),
            bytes((received + sent).saturating_sub(handshake)),
        ));
        let account = Account { path: "none".into(), received, sent, ..Account::default() };
        self.steps.push(Cost { step: "again".into(), node: "anna".into(), size: self.releases[1].size, account });
        step.end();
        Ok(())
    }

    /// A disk, or a hand, changes blocks of what runs; that is found, and only those blocks are fetched.
    fn drift_and_repair(&mut self) -> Result<()> {
        let step =
            self.voice.step(&format!("Overwrite {DRIFTED} blocks of what bert runs; find them, and repair them"));
        let (golden, blocks) = (self.releases[1].clone(), self.releases[1].size / 4096);
        let mut drifted: Vec<u64> = (0..DRIFTED).map(|at| (at * blocks + blocks / 2) / DRIFTED).collect();
        drifted.dedup();
        let node = &self.nodes[1];
        node.drift(&drifted)?;
        let found = node.agent(["verify", "--json"])?.expect(6)?.json()?;
        let listed: Vec<u64> = serde_json::from_value::<Vec<(u64, u64)>>(found["runs"].clone())?
            .into_iter()
            .flat_map(|(first, count)| first..first + count)
            .collect();
        ensure!(listed == drifted, "verify lists blocks {listed:?}, overwritten were {drifted:?}");
        step.note(&format!("`goldsync-agent verify` lists blocks {listed:?}, and no others"));
        let run = node.agent(["repair", "--json"])?.ok()?.json()?;
        let Outcome::Updated { account } = serde_json::from_value(run.clone())? else {
            bail!("nothing was repaired: {run}");
        };
        ensure!(node.runs()?.as_ref() == Some(&golden.image), "bert does not run demo:2 after the repair");
        node.agent(["verify"])?.ok()?;
        step.note(&format!("`goldsync-agent repair` fetched {}; what runs is golden again", bytes(account.received)));
        self.steps.push(Cost { step: "repair".into(), node: "bert".into(), size: golden.size, account });
        step.end();
        Ok(())
    }

    fn roll_back(&mut self) -> Result<()> {
        let step = self.voice.step("Roll cleo back: `goldsync-agent rollback`");
        let node = &self.nodes[2];
        node.agent(["rollback"])?.ok()?;
        ensure!(node.runs()?.as_ref() == Some(&self.releases[0].image), "cleo does not run demo:1 after the rollback");
        step.note("the slot was read back, and the link replaced; nothing was fetched, nothing written");
        step.end();
        Ok(())
    }

    /// The operator's view, and a clean stop.
    fn end(&mut self) -> Result<()> {
        let step = self.voice.step("The operator's view: `goldsync fleet status`");
        let reported = || {
            let nodes = self.server.goldsync(["fleet", "status", "--json"])?.ok()?.json()?;
            let runs = |name: &str, release: &str| {
                nodes.as_array().is_some_and(|nodes| {
                    nodes.iter().any(|node| node["node"] == name && node["report"]["active"]["release"] == release)
                })
            };
            Ok(runs("bert", "demo:2") && runs("cleo", "demo:1"))
        };
        wait("the server knows of the rollback", &self.nodes, reported)?;
        step.note(&self.server.goldsync(["fleet", "status"])?.ok()?.stdout);
        for node in &mut self.nodes {
            node.stop()?;
        }
        self.server.stop()?;
        step.end();
        Ok(())
    }

    fn fleet_sync(&self) -> Result<()> {
        let run = self.server.goldsync(["fleet", "sync", "--channel", CHANNEL, "--now", "--quiet"])?.ok()?;
        self.voice.indented(&run.stdout);
        Ok(())
    }

    /// Every node must run this release, by the bytes in its slot. Notes what that cost.
    fn expect_all(&mut self, what: &str, at: usize) -> Result<()> {
        let golden = &self.releases[at];
        for node in &self.nodes {
            let runs = node.runs()?;
            ensure!(runs.as_ref() == Some(&golden.image), "{} runs {runs:?}, not {}", node.name(), golden.image);
            let cost = Cost { step: what.into(), node: node.name().into(), size: golden.size, account: account(node)? };
            self.steps.push(cost);
        }
        Ok(())
    }

    /// Every slot there is, hashed.
    fn slots(&self) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for node in &self.nodes {
            let active = node.active()?;
            for name in ["a", "b"] {
                let found = node.hash(name)?;
                let release = self.releases.iter().find(|golden| Some(&golden.image) == found.as_ref());
                let active = active.as_deref() == Some(name);
                let expected = match (node.name(), active) {
                    // What bert ran when it drifted: left as it was, and not to be gone back to.
                    ("bert", false) => None,
                    ("cleo", true) | ("anna", false) => Some("demo:1"),
                    _ => Some("demo:2"),
                };
                slots.push(Slot {
                    node: node.name().into(),
                    slot: name.into(),
                    active,
                    release: release.map(|golden| golden.release.clone()),
                    found,
                    expected: expected.map(str::to_owned),
                });
            }
        }
        Ok(slots)
    }
}

/// How a node's last update ended, by its own record.
fn last(node: &Node) -> Result<Option<serde_json::Value>> {
    let status = node.agent(["status", "--json"])?.ok()?.json()?;
    Ok(status.get("last").filter(|last| !last.is_null()).cloned())
}

fn account(node: &Node) -> Result<Account> {
    let last = last(node)?.with_context(|| format!("{} has no record of an update", node.name()))?;
    match serde_json::from_value(last["outcome"].clone()) {
        Ok(Outcome::Updated { account }) => Ok(account),
        _ => bail!("{} did not update: {last}", node.name()),
    }
}

/// Waits until `done`; what the nodes said is part of the complaint if it does not come about.
fn wait(what: &str, nodes: &[Node], mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > until {
            let said: String = nodes.iter().map(|node| format!("\n{}:\n{}", node.name(), node.said())).collect();
            bail!("not {what} after {} s{said}", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
