//! `goldsync-compare`: an update end to end, by goldsync and by every peer that is installed, on the same images in one run.
//!
//! ```text
//! pairs ─▶ fleet (goldsync in every situation) ─┐
//!       ─▶ peers (rsync, zsync, casync, ...)   ─┼─▶ rows ─▶ aims ─▶ report: Markdown, JSON; plot: SVG
//! rulers: floor (cp and b3sum), stream (quinn) ─┘
//! ```
//! Every program is a process of its own; [`process`] counts seconds and memory, [`loopback`] packets, the same way for all. A
//! result that is not the golden image, byte for byte, is an error, not a row.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

mod aims;
mod environment;
mod fleet;
mod floor;
mod loopback;
mod markdown;
mod pairs;
mod peers;
mod plot;
mod process;
mod report;
mod row;
mod stream;

use report::{PairReport, Report};
use row::{Knows, Row, Tool};

pub use loopback::enter;

/// Bytes of the raw stream.
const STREAM_BYTES: u64 = 512 << 20;

/// An update end to end, by goldsync and by its peers, side by side.
///
/// Takes the images that scripts/make-images made (or any folder with a file `pairs`: NAME OLD NEW a line). Every result is
/// checked to be the new image. Runs in a network name space of its own if it may, to count every packet. What is not
/// installed is named, and left out; scripts/install-packages peers installs most of it.
#[derive(Debug, Parser)]
#[command(name = "goldsync-compare", version, max_term_width = 110)]
pub struct Options {
    /// The folder of images.
    #[arg(long, value_name = "DIR", default_value_os_t = images_default())]
    pub images: PathBuf,
    /// Only these pairs.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub pairs: Vec<String>,
    /// Only these tools [default: all].
    #[arg(long, value_name = "TOOL,...", value_delimiter = ',', value_enum, hide_default_value = true)]
    pub peers: Vec<Tool>,
    /// Runs of each of goldsync's rows; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    pub repeat: u16,
    /// Runs of each setting of a peer, of which there are about forty.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=99))]
    pub repeat_peers: u16,
    /// A peer's program that takes longer is stopped, and its row left out.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: u64,
    /// Write everything that was measured here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the tables here too, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Draw the wire against the processor here, an SVG a pair.
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// Where the scratch folder is made. Needs about eight times an image.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub scratch: PathBuf,
}

impl Options {
    fn tools(&self) -> Vec<Tool> {
        Tool::all().filter(|tool| self.peers.is_empty() || self.peers.contains(tool)).collect()
    }
}

fn images_default() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let images = set("GOLDSYNC_IMAGES").or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("goldsync-images"))
    });
    images.unwrap_or_default().join("small")
}

/// If this process was started as one of the comparison's own servers, be it.
pub fn be_one() -> Option<ExitCode> {
    stream::be_one().or_else(peers::http::be_one)
}

/// Compares.
pub fn run(options: &Options) -> Result<()> {
    let pairs = pairs::find(&fs::canonicalize(&options.images).unwrap_or(options.images.clone()), &options.pairs)?;
    let scratch = tempfile::Builder::new().prefix("goldsync-compare.").tempdir_in(&options.scratch);
    let scratch = scratch.with_context(|| format!("make a folder in {}", options.scratch.display()))?;
    let tools = options.tools();
    let mut report = Report::new(environment::look(loopback::crossed().is_some(), &tools));
    for name in report.environment.missing() {
        eprintln!("SKIPPED: {name} is not installed");
    }
    for pair in &pairs {
        eprintln!("{}: {} to {}", pair.name, pair.old.display(), pair.new.display());
        report.pairs.push(PairReport::new(pair)?);
        one(pair, options, &mut report, scratch.path())?;
        // A long comparison that breaks off later has left what it had.
        write(options, &report)?;
    }
    if tools.contains(&Tool::Goldsync) {
        report.idle = Some(fleet::idle(&pairs[0], scratch.path())?);
        report.stream = Some(stream::measure(STREAM_BYTES, scratch.path(), options.repeat.into())?);
    }
    print!("{}", report.markdown());
    write(options, &report)
}

/// Everything about one pair, into the last of the report's pairs.
fn one(pair: &pairs::Pair, options: &Options, report: &mut Report, scratch: &Path) -> Result<()> {
    let Some(into) = report.pairs.last_mut() else { return Ok(()) };
    for installed in &report.environment.tools {
        let (tool, Some(version)) = (installed.tool, &installed.version) else { continue };
        let rows = if tool == Tool::Goldsync {
            let mut measured = fleet::measure(pair, scratch, options.repeat.into())?;
            let rows = std::mem::take(&mut measured.rows);
            into.beside = measured;
            rows
        } else if pair.drifted && tool.knows() == Knows::Base {
            into.skipped.push(format!("{}: no publisher has what a drifted node holds", tool.name()));
            continue;
        } else {
            let manner =
                peers::Manner { repeat: options.repeat_peers.into(), limit: Duration::from_secs(options.limit) };
            let (rows, skipped) = peers::rows(tool, pair, scratch, manner)?;
            into.skipped.extend(skipped);
            rows
        };
        into.rows.extend(rows.into_iter().map(|row| Row { version: Some(version.clone()), ..row }));
    }
    Ok(())
}

fn write(options: &Options, report: &Report) -> Result<()> {
    let into = |path: &Path, text: String| fs::write(path, text).with_context(|| format!("write {}", path.display()));
    options.markdown.as_ref().map_or(Ok(()), |path| into(path, report.markdown()))?;
    if let Some(folder) = &options.plots {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        for pair in &report.pairs {
            into(&folder.join(format!("{}.svg", pair.name.replace('/', "-"))), pair.plot().svg())?;
        }
    }
    options.json.as_ref().map_or(Ok(()), |path| into(path, report.json()?))
}

/// What `b3sum` prints of a file; found without goldsync.
fn golden(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    hasher.update_reader(file).with_context(|| format!("read {}", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}
