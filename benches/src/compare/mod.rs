//! `goldsync-compare`: an update end to end, by goldsync, by rsync and by a plain download, on the same images in one run.
//!
//! ```text
//! pairs ─▶ fleet (goldsync in every situation) ─┐
//!       ─▶ rsync (every setting)               ─┼─▶ rows ─▶ report: Markdown, JSON
//!       ─▶ download (zstd)                     ─┘
//! stream: one raw QUIC stream, the ruler for a cold fetch
//! ```
//! Every program is a process of its own; [`process`] counts seconds and memory, [`loopback`] packets, the same way for all. A
//! result that is not the golden image, byte for byte, is an error, not a row.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;

mod download;
mod environment;
mod fleet;
mod loopback;
mod pairs;
mod process;
mod report;
mod row;
mod rsync;
pub mod stream;

use report::{PairReport, Report};

pub use loopback::enter;

/// Bytes of the raw stream.
const STREAM_BYTES: u64 = 512 << 20;

/// An update end to end, by goldsync, by rsync and by a plain download, side by side.
///
/// Takes the images that scripts/make-images made (or any folder with a file `pairs`: NAME OLD NEW a line). Every result is
/// checked to be the new image. Runs in a network name space of its own if it may, to count every packet. What is not
/// installed is named, and left out.
#[derive(Debug, Parser)]
#[command(name = "goldsync-compare", version, max_term_width = 110)]
pub struct Options {
    /// The folder of images.
    #[arg(long, value_name = "DIR", default_value_os_t = images_default())]
    pub images: PathBuf,
    /// Only these pairs.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub pairs: Vec<String>,
    /// Runs of each row; the median counts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    pub repeat: u16,
    /// Runs of each rsync setting, of which there are twenty.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=99))]
    pub repeat_rsync: u16,
    /// Without rsync, the download and the raw stream.
    #[arg(long)]
    pub alone: bool,
    /// Write everything that was measured here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the tables here too, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Where the scratch folder is made. Needs about eight times an image.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub scratch: PathBuf,
}

fn images_default() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let images = set("GOLDSYNC_IMAGES").or_else(|| {
        let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("goldsync-images"))
    });
    images.unwrap_or_default().join("small")
}

/// Compares.
pub fn run(options: &Options) -> Result<()> {
    let pairs = pairs::find(&fs::canonicalize(&options.images).unwrap_or(options.images.clone()), &options.pairs)?;
    let scratch = tempfile::Builder::new().prefix("goldsync-compare.").tempdir_in(&options.scratch);
    let scratch = scratch.with_context(|| format!("make a folder in {}", options.scratch.display()))?;
    let mut report = Report::new(environment::look(loopback::crossed().is_some()));
    for pair in &pairs {
        eprintln!("{}: {} to {}", pair.name, pair.old.display(), pair.new.display());
        report.pairs.push(one(pair, options, scratch.path())?);
        // A long comparison that breaks off later has left what it had.
        write(options, &report)?;
    }
    report.idle = Some(fleet::idle(&pairs[0], scratch.path())?);
    if !options.alone {
        report.stream = Some(stream::measure(STREAM_BYTES, scratch.path(), options.repeat.into())?);
    }
    print!("{}", report.markdown());
    write(options, &report)
}

fn one(pair: &pairs::Pair, options: &Options, scratch: &Path) -> Result<PairReport> {
    let mut report = PairReport::new(pair)?;
    let measured = fleet::measure(pair, scratch, options.repeat.into())?;
    report.rows.extend(measured.rows);
    report.publishes = measured.publishes;
    if options.alone {
        return Ok(report);
    }
    match rsync::version() {
        Some(_) => report.rows.extend(rsync::rows(pair, scratch, options.repeat_rsync.into())?),
        None => report.skipped.push("rsync is not installed".into()),
    }
    match download::version() {
        Some(_) => {
            let (row, made) = download::row(pair, scratch, options.repeat.into())?;
            report.rows.push(row);
            report.download_made = Some(made);
        }
        None => report.skipped.push("zstd is not installed: no row for the plain download".into()),
    }
    Ok(report)
}

fn write(options: &Options, report: &Report) -> Result<()> {
    let into =
        |path: &PathBuf, text: String| fs::write(path, text).with_context(|| format!("write {}", path.display()));
    options.markdown.as_ref().map_or(Ok(()), |path| into(path, report.markdown()))?;
    options.json.as_ref().map_or(Ok(()), |path| into(path, serde_json::to_string_pretty(report)? + "\n"))
}

/// What `b3sum` prints of a file; found without goldsync.
fn golden(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    hasher.update_reader(file).with_context(|| format!("read {}", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}
