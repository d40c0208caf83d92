//! The others: every tool that moves an image by what changed, run as its makers mean it, on the same files.
//!
//! ```text
//! Tool ─▶ settings ─▶ Peer ──make──▶ what is published, once      its cost stands apart
//!                         └─update─▶ the node's target file ─▶ hashed: the new image, or an error
//! ```
//! A file a tool. A tool says which settings are worth trying and how to run them; the [`Bench`] gives it two images, a folder
//! that is published over HTTP, and a node's folder; measuring, repeating and checking are done here, once for all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::golden;
use super::loopback;
use super::pairs::Pair;
use super::process::{self, Cost, Meter, TooLong};
use super::row::{Row, Run, Tool};

mod bita;
mod casync;
pub mod http;
mod rdiff;
mod rsync;
mod xdelta3;
mod zchunk;
mod zstd;
mod zsync;

use http::Http;

pub use rsync::PLAIN as RSYNC_PLAIN;

/// A tool with its settings.
pub trait Peer {
    /// Its name and settings, as a row shows them.
    fn what(&self) -> String;

    /// Makes what is published, where the tool has such a thing; its cost, paid once for an image or a pair.
    fn make(&self, _bench: &Bench<'_>) -> Result<Option<Cost>> {
        Ok(None)
    }

    /// What a node prepares long before: not measured.
    fn prepare(&self, _bench: &Bench<'_>) -> Result<()> {
        Ok(())
    }

    /// Makes [`Bench::target`], and says what that took.
    fn update(&self, bench: &Bench<'_>) -> Result<Run>;
}

/// The settings of `tool` that are worth trying; none for goldsync, which is no peer.
fn settings(tool: Tool) -> Vec<Box<dyn Peer>> {
    match tool {
        Tool::Goldsync => Vec::new(),
        Tool::Rsync => rsync::settings(),
        Tool::Zsync => zsync::settings(),
        Tool::Casync => casync::settings(),
        Tool::Bita => bita::settings(),
        Tool::Zchunk => zchunk::settings(),
        Tool::Rdiff => rdiff::settings(),
        Tool::Xdelta3 => xdelta3::settings(),
        Tool::ZstdPatch => zstd::patches(),
        Tool::Zstd => zstd::whole(),
    }
}

/// A tool's version, or `None` if it is not installed.
pub fn version(tool: Tool) -> Option<String> {
    let (program, argument) = match tool {
        Tool::Goldsync => return Some(env!("CARGO_PKG_VERSION").to_owned()),
        Tool::Rsync => ("rsync", "--version"),
        Tool::Zsync => ("zsync", "-V"),
        Tool::Casync => ("casync", "--version"),
        Tool::Bita => ("bita", "--version"),
        Tool::Zchunk => ("zckdl", "--version"),
        Tool::Rdiff => ("rdiff", "--version"),
        Tool::Xdelta3 => ("xdelta3", "-V"),
        Tool::ZstdPatch | Tool::Zstd => ("zstd", "--version"),
    };
    program_version(program, argument)
}

/// What a program says of its version, or `None` if it is not installed.
pub fn program_version(program: &str, argument: &str) -> Option<String> {
    // Some print it to standard error, and some call that a failure: what counts is that they are there.
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(first_line(&String::from_utf8_lossy(&text)).unwrap_or_else(|| "of unknown version".into()))
}

/// `*** Zstandard CLI (64-bit) v1.5.4, by Yann Collet ***`: without the stars and the name.
fn first_line(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    let line = line.split(',').next().unwrap_or(line).trim_matches(['*', ' ']);
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// How peers are run.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Runs of each setting.
    pub repeat: usize,
    /// A program that takes longer is stopped, and its row left out.
    pub limit: Duration,
}

/// All rows of a tool that is installed, and which of its settings took too long.
pub fn rows(tool: Tool, pair: &Pair, scratch: &Path, manner: Manner) -> Result<(Vec<Row>, Vec<String>)> {
    let bench = Bench::new(pair, &scratch.join("peers"), manner.limit)?;
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for peer in settings(tool) {
        match row(tool, peer.as_ref(), &bench, manner.repeat) {
            Ok(row) => rows.push(row),
            Err(error) => match error.downcast_ref::<TooLong>() {
                Some(stopped) => skipped.push(format!("{}: {stopped}", peer.what())),
                None => return Err(error),
            },
        }
    }
    fs::remove_dir_all(&bench.folder)?;
    Ok((rows, skipped))
}

fn row(tool: Tool, peer: &dyn Peer, bench: &Bench<'_>, repeat: usize) -> Result<Row> {
    let what = peer.what();
    let measured = || -> Result<Row> {
        bench.clean()?;
        let made = peer.make(bench)?;
        peer.prepare(bench)?;
        let runs = (0..repeat).map(|_| bench.checked(peer)).collect::<Result<Vec<_>>>()?;
        Ok(Row { made, ..Row::of(tool, what.clone(), &runs) })
    };
    let row = measured().with_context(|| what.clone());
    match &row {
        Ok(row) => eprintln!("    {what}: {} bytes, {:.2} s of CPU", row.median.wire(), row.median.cpu()),
        Err(error) => eprintln!("    {error:#}"),
    }
    row
}

/// Where a peer works.
#[derive(Debug)]
pub struct Bench<'a> {
    pair: &'a Pair,
    want: String,
    folder: PathBuf,
    limit: Duration,
    /// What is published; [`Bench::http`] serves it.
    pub published: PathBuf,
    /// The node's own.
    pub node: PathBuf,
    /// Serves `published`.
    pub http: Http,
}

impl<'a> Bench<'a> {
    fn new(pair: &'a Pair, folder: &Path, limit: Duration) -> Result<Self> {
        let (published, node) = (folder.join("published"), folder.join("node"));
        fs::create_dir_all(&published)?;
        let http = Http::start(&published)?;
        Ok(Self { pair, want: golden(&pair.new)?, folder: folder.to_owned(), published, node, http, limit })
    }

    /// What the node has.
    pub fn old(&self) -> &Path {
        &self.pair.old
    }

    /// What it shall have.
    pub fn new_image(&self) -> &Path {
        &self.pair.new
    }

    /// Where it shall have it.
    pub fn target(&self) -> PathBuf {
        self.node.join("target.img")
    }

    fn clean(&self) -> Result<()> {
        for folder in [&self.published, &self.node] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder)?;
        }
        Ok(())
    }

    fn checked(&self, peer: &dyn Peer) -> Result<Run> {
        let run = peer.update(self)?;
        ensure!(golden(&self.target())? == self.want, "made another image than {}", self.pair.new.display());
        fs::remove_file(self.target())?;
        Ok(run)
    }

    /// Runs a program in the node's folder, measured.
    pub fn run(&self, command: Command) -> Result<Cost> {
        Ok(self.finish(command)?.cost)
    }

    /// The same, with what it printed.
    pub fn finish(&self, mut command: Command) -> Result<process::Finished> {
        command.current_dir(&self.node).env("TMPDIR", &self.node);
        process::run_within(command, &self.folder, self.limit)
    }

    /// A client's work against the HTTP server: everything that crossed the connections counts.
    pub fn over_http(&self, work: impl FnOnce() -> Result<Cost>) -> Result<Run> {
        let before = self.http.counted()?;
        let (crossed, meter) = (loopback::crossed(), Meter::start(self.http.pid()));
        let client = work()?;
        let server = meter.stop();
        let interface = loopback::since(crossed);
        let after = self.http.counted()?;
        let (received, sent) = (after.sent - before.sent, after.received - before.received);
        Ok(Run { received, sent, interface, client, server, ..Run::default() })
    }

    /// A node that has got the file `patch`, by whatever way, and works on it: its bytes are what crossed.
    pub fn of_file(&self, patch: &Path, command: Command) -> Result<Run> {
        let received = fs::metadata(patch)?.len();
        Ok(Run { received, client: self.run(command)?, ..Run::default() })
    }
}

/// `4 KiB`; 0 is the tool's own choice.
fn block(size: u32) -> String {
    if size == 0 { "default block".into() } else { format!("{} KiB", size >> 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_cut_to_what_tells() {
        for (text, version) in [
            ("*** Zstandard CLI (64-bit) v1.5.4, by Yann Collet ***\n", "Zstandard CLI (64-bit) v1.5.4"),
            ("\nXdelta version 3.0.11, Copyright (C) 2007\n", "Xdelta version 3.0.11"),
            ("rsync  version 3.5.0  protocol version 32\nmore", "rsync version 3.5.0 protocol version 32"),
        ] {
            assert_eq!(first_line(text).as_deref(), Some(version));
        }
        assert_eq!(first_line(" \n"), None);
    }

    #[test]
    fn every_setting_has_a_name_of_its_own_that_begins_with_its_tool_s() {
        let mut names = std::collections::BTreeSet::new();
        for tool in Tool::all() {
            for peer in settings(tool) {
                assert!(peer.what().starts_with(tool.name()), "{}", peer.what());
                assert!(names.insert(peer.what()), "{} is there twice", peer.what());
            }
        }
        assert!(names.contains("rsync, 4 KiB, zstd, in place") && names.contains("zstd --patch-from -19 --long=31"));
    }
}
