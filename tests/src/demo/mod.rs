//! The demo's story. Every figure it prints comes from the programs themselves, every BLAKE3 from reading the slot.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use goldsync_proto::wire::{Account, Outcome};

use crate::images::{self, Pair};
use crate::node::{self, Node};
use crate::programs::{Programs, Run};
use crate::scene::outcome;
use crate::server::Server;

mod print;

use print::{Step, blocks, bytes, hash, part};

/// A whole fleet on this machine: a server, three nodes, two images.
///
/// Starts the real programs on loopback, in a scratch folder that is removed at the end, and tells what each step cost.
/// Without --old and --new it makes two images from the Rust toolchain's own files.
#[derive(Debug, Parser)]
#[command(name = "goldsync-demo", version, max_term_width = 110)]
pub struct Options {
    /// The first image: a file, a multiple of 4096 bytes long.
    #[arg(long, value_name = "FILE", requires = "new")]
    pub old: Option<PathBuf>,
    /// The second image, a release later.
    #[arg(long, value_name = "FILE", requires = "old")]
    pub new: Option<PathBuf>,
    /// MiB of files for the images that the demo makes itself.
    #[arg(long, value_name = "MIB", default_value_t = 96, value_parser = clap::value_parser!(u64).range(4..=4096), conflicts_with = "old")]
    pub size: u64,
    /// Where the scratch folder is made. Needs about ten times an image.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub scratch: PathBuf,
    /// Leave the scratch folder as it is at the end, to look around.
    #[arg(long)]
    pub keep: bool,
}

const CHANNEL: &str = "production";

/// Tells the story.
pub fn run(options: &Options) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("goldsync-demo.").tempdir_in(&options.scratch);
    let scratch = scratch.with_context(|| format!("make a folder in {}", options.scratch.display()))?;
    let told = tell(options, scratch.path());
    if options.keep {
        println!("\nThe scratch folder is kept: {}", scratch.keep().display());
    }
    told
}

fn tell(options: &Options, scratch: &Path) -> Result<()> {
    println!("goldsync demo: a server and three nodes on loopback, in {}", scratch.display());
    let began = Instant::now();
    let pair = pair(options, scratch)?;
    let golden = Golden::of(&pair)?;
    golden.show(&pair);

    let fleet = Fleet::found(scratch, golden)?;
    fleet.publish_first(&pair.old)?;
    let mut fleet = fleet.come_up_cold()?;
    fleet.update_by_pack(&pair.new)?;
    fleet.stay_up_to_date()?;
    fleet.drift_and_repair()?;
    fleet.roll_back()?;
    fleet.sum_up()?;
    println!("\nAll of it took {:.1} s.", began.elapsed().as_secs_f64());
    Ok(())
}

fn pair(options: &Options, scratch: &Path) -> Result<Pair> {
    match (&options.old, &options.new) {
        (Some(old), Some(new)) => Ok(Pair { old: old.clone(), new: new.clone(), what: "your own images".into() }),
        _ => images::from_toolchain(scratch, options.size),
    }
}

/// What the slots shall hold, found out without goldsync's help.
struct Golden {
    old: String,
    new: String,
    new_size: u64,
    old_size: u64,
}

impl Golden {
    fn of(pair: &Pair) -> Result<Self> {
        let size = |path: &Path| fs::metadata(path).map(|meta| meta.len()).with_context(|| path.display().to_string());
        Ok(Self {
            old: node::hash(&pair.old)?,
            new: node::hash(&pair.new)?,
            new_size: size(&pair.new)?,
            old_size: size(&pair.old)?,
        })
    }

    fn show(&self, pair: &Pair) {
        println!("\nTwo images: {}", pair.what);
        println!("  demo:1  {:>10}  BLAKE3 {}", bytes(self.old_size), self.old);
        println!("  demo:2  {:>10}  BLAKE3 {}", bytes(self.new_size), self.new);
    }

    /// `golden demo:1`, `golden demo:2`, or a complaint.
    fn name(&self, hash: Option<&str>) -> &'static str {
        match hash {
            Some(hash) if hash == self.old => "= demo:1",
            Some(hash) if hash == self.new => "= demo:2",
            Some(_) => "NOT GOLDEN",
            None => "empty",
        }
    }
}

/// The server and its nodes.
struct Fleet {
    golden: Golden,
    server: Server,
    nodes: Vec<Node>,
    sums: Vec<(String, Account)>,
}

impl Fleet {
    fn found(scratch: &Path, golden: Golden) -> Result<Self> {
        let step = Step::begin("A server: data folder, SQLite catalog, certificate authority, signing keys");
        let programs = Programs::this()?;
        let server = Server::start_in(&programs, scratch)?;
        let nodes = ["anna", "bert", "cleo"].map(|name| Node::prepare(&programs, scratch, name, CHANNEL));
        let nodes = nodes.into_iter().collect::<Result<_>>()?;
        step.note(&format!("nodes dial {} (QUIC, mutual TLS 1.3), operators use HTTPS", server.address()));
        step.end();
        Ok(Self { golden, server, nodes, sums: Vec::new() })
    }

    fn publish(&self, image: &Path, version: &str) -> Result<()> {
        let step = Step::begin(&format!("Publish demo:{version}, sign it, and point channel {CHANNEL} at it"));
        let published = self.server.publish(image, "demo", version)?;
        let number = |key: &str| published[key].as_u64().unwrap_or_default();
        step.note(&format!(
            "hashed {}; sent the {} blocks that the server lacked as {}; the store grew by {}",
            bytes(number("size")),
            blocks(number("blocks_sent")),
            bytes(number("bytes_sent")),
            bytes(number("stored"))
        ));
        self.server.promote(&format!("demo:{version}"), CHANNEL)?;
        step.end();
        Ok(())
    }

    fn publish_first(&self, image: &Path) -> Result<()> {
        self.publish(image, "1")
    }

    /// Three machines with nothing become nodes, and fetch the image from nothing.
    fn come_up_cold(mut self) -> Result<Self> {
        let step = Step::begin("Enrol three machines with one-time tokens, and bring them up from nothing");
        for at in 0..self.nodes.len() {
            self.nodes[at].enrol(&self.server)?;
            let run = self.nodes[at].agent(["sync", "--json"])?.ok()?;
            self.account("cold", at, &run, &self.golden.old.clone())?;
        }
        step.end();
        Ok(self)
    }

    /// The daemons run, are told of the new release, and move.
    fn update_by_pack(&mut self, image: &Path) -> Result<()> {
        for node in &mut self.nodes {
            node.start()?;
        }
        self.wait_for_daemons()?;
        self.publish(image, "2")?;
        let step = Step::begin("Force a sync of the whole fleet (`goldsync fleet sync --now`)");
        let run = self.server.goldsync(["fleet", "sync", "--channel", CHANNEL, "--now", "--quiet"])?.ok()?;
        print::indented(&run.stdout);
        for node in &self.nodes {
            self.must_run(node, &self.golden.new)?;
        }
        step.end();
        Ok(())
    }

    fn wait_for_daemons(&mut self) -> Result<()> {
        let (server, count) = (&self.server, self.nodes.len() as u64);
        let all = || Ok(server.goldsync(["status", "--json"])?.ok()?.json()?["connected"].as_u64() == Some(count));
        let first = self.nodes.first_mut().and_then(Node::daemon).context("a daemon")?;
        first.wait_until("connected with all others", all)
    }

    /// Doing it again does nothing.
    fn stay_up_to_date(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.stop()?;
        }
        let step = Step::begin("Sync again, with nothing to do");
        let run = self.nodes[0].agent(["sync", "--json"])?.ok()?;
        ensure!(matches!(outcome(&run)?, Outcome::UpToDate), "{} did something: {}", run.line, run.stdout);
        step.note("nothing fetched but a look at the signed metadata, nothing written");
        step.end();
        Ok(())
    }

    /// A disk, or a hand, changes blocks of what runs; that is found, and only those blocks are fetched.
    fn drift_and_repair(&mut self) -> Result<()> {
        let last = self.golden.new_size / 4096;
        let drifted = [1, last / 3, last / 2, last / 2 + 1];
        let step = Step::begin("Overwrite four blocks of what bert runs, find them, and repair them");
        self.nodes[1].drift(&drifted)?;
        let found = self.nodes[1].agent(["verify"])?.expect(6)?;
        print::indented(&found.stdout);
        let run = self.nodes[1].agent(["repair", "--json"])?.ok()?;
        self.account("repair", 1, &run, &self.golden.new.clone())?;
        self.nodes[1].agent(["verify"])?.ok()?;
        step.end();
        Ok(())
    }

    fn roll_back(&mut self) -> Result<()> {
        let step = Step::begin("Roll cleo back");
        self.nodes[2].agent(["rollback"])?.ok()?;
        self.must_run(&self.nodes[2], &self.golden.old)?;
        step.note("one rename; the slot was proven when it was staged");
        step.end();
        Ok(())
    }

    fn account(&mut self, what: &str, at: usize, run: &Run, golden: &str) -> Result<()> {
        let Outcome::Updated { account } = outcome(run)? else {
            anyhow::bail!("{} did not update anything: {}", run.line, run.stdout);
        };
        self.must_run(&self.nodes[at], golden)?;
        println!(
            "    {:<5} {:<9} received {:>10} ({:>5} of the image), sent {:>9}, wrote {:>7} blocks, skipped {:>7}, {:>6.2} s",
            self.nodes[at].name(),
            account.path,
            bytes(account.received),
            part(account.received, self.golden.new_size),
            bytes(account.sent),
            blocks(account.written),
            blocks(account.skipped),
            account.elapsed_ms as f64 / 1000.0
        );
        self.sums.push((what.to_owned(), account));
        Ok(())
    }

    fn must_run(&self, node: &Node, golden: &str) -> Result<()> {
        let runs = node.runs()?;
        ensure!(runs.as_deref() == Some(golden), "{} runs {runs:?}, not the golden image {golden}", node.name());
        Ok(())
    }

    /// Every slot, read by `b3sum`'s own code, beside the golden ids.
    fn sum_up(&self) -> Result<()> {
        println!("\nEvery slot, hashed from the disk:");
        for node in &self.nodes {
            let active = node.active()?;
            for slot in ["a", "b"] {
                let found = node.hash(slot)?;
                let role = if active.as_deref() == Some(slot) { "active" } else { "standby" };
                println!(
                    "  {:<5} {slot} {role:<8} {:<64}  {}",
                    node.name(),
                    hash(found.as_deref()),
                    self.golden.name(found.as_deref())
                );
            }
        }
        let status = self.server.goldsync(["fleet", "status"])?.ok()?;
        println!("\nThe operator's view (`goldsync fleet status`):");
        print::indented(&status.stdout);
        Ok(())
    }
}
