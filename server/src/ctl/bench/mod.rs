//! `goldsync bench OLD NEW`: what an update from one image to the other will cost, and why; no server needed.
//!
//! ```text
//! OLD, NEW ─▶ hash ─┬─▶ known:   the server's own plans and packs, carried out as a node does ┐
//!                   ├─▶ unknown: the node's own search, by the same scans                    ─┼─▶ ways ─┐
//!                   └─▶ cold:    the whole image, in the store's frames                      ─┘         ├─▶ text, JSON
//!                                known's bytes, block by block ─▶ costs ─▶ files (ext4), uses, causes ──┘
//! ```
//! Bytes are those that the engine makes, not guesses; what the transport adds, and how long it takes at a given rate, is
//! estimated and said to be. Both images are mapped and only read.

mod causes;
mod costs;
pub mod ext4;
mod holds;
mod text;
mod uses;
mod ways;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};

use goldsync_proto::digest::ImageId;
use goldsync_proto::make::{self, Effort};
use goldsync_proto::signature::{BlockHashes, Signature};
use goldsync_proto::verity::{self, Derived};
use memmap2::Mmap;
use serde::Serialize;

use super::fail::{Code, Failure, Outcome};
use super::image::Image;
use super::progress::{Manner, Stage, Waiting};
use super::screen;
use crate::cli;
use causes::Cause;
use costs::Costs;
use ext4::Map;
use uses::{FileCost, Region, Use};
use ways::Way;

/// `goldsync bench`
pub async fn run(args: cli::Bench) -> Outcome {
    let json = args.json.json;
    let forecast = tokio::task::spawn_blocking(move || forecast(&args)).await;
    let forecast = forecast.map_err(|error| Failure::new(Code::Failed, format!("the work broke off: {error}")))??;
    if json { screen::print_json(&forecast) } else { screen::print(&text::of(&forecast, screen::width())) }
}

/// What an update will cost, and why.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// What nodes have.
    pub old: Described,
    /// What they shall have.
    pub new: Described,
    /// Megabits a second, at which transfers are estimated.
    pub rate_mbit: f64,
    /// Each way by which a node may come to it.
    pub ways: Vec<Way>,
    /// How NEW's blocks are found in OLD.
    pub blocks: ways::Blocks,
    /// Bytes of the known base's packs, by what the blocks are used for.
    pub uses: Vec<Use>,
    /// The files that cost the most. Empty for file systems that are not looked into.
    pub files: Vec<FileCost>,
    /// The regions of NEW that cost the most.
    pub regions: Vec<Region>,
    /// The whole of NEW in equal parts: bytes of packs for each.
    pub profile: Vec<u64>,
    /// What makes the update dearer than it must be, the dearest first.
    pub causes: Vec<Cause>,
    /// What could not be looked at, and why.
    pub notes: Vec<String>,
}

/// An image.
#[derive(Debug, Serialize)]
pub struct Described {
    /// Where it is.
    pub path: PathBuf,
    /// Its id.
    pub image: ImageId,
    /// Its bytes.
    pub size: u64,
    /// What it looks like.
    pub file_system: Option<&'static str>,
}

/// An image, hashed and mapped.
struct Subject {
    image: Image,
    path: PathBuf,
    bytes: Mmap,
    signature: Signature,
    file_system: Option<&'static str>,
    map: Option<Map>,
    derived: Vec<Derived>,
}

impl Subject {
    fn open(path: &Path, manner: Manner, name: &'static str, notes: &mut Vec<String>) -> Outcome<Self> {
        let image = Image::open(path)?;
        let file_system = image.file_system()?;
        let stage = Stage::begin(manner, name, image.geometry().size());
        let signature = image.sign(&stage)?;
        stage.end();
        let bytes = map(path, image.geometry().size())?;
        let map = match file_system {
            Some("ext2" | "ext3" | "ext4") => Map::read(&bytes)
                .map_err(|error| notes.push(format!("{} is not looked into: {error}", path.display())))
                .ok(),
            _ => None,
        };
        let derived = verity::find(&bytes);
        Ok(Self { image, path: path.to_owned(), bytes, signature, file_system, map, derived })
    }

    fn engine(&self) -> make::Image<'_> {
        make::Image {
            id: self.signature.image,
            geometry: self.image.geometry(),
            bytes: &self.bytes,
            hashes: BlockHashes::new(&self.signature.blocks),
            derived: &self.derived,
        }
    }

    fn described(&self) -> Described {
        let (image, size) = (self.signature.image, self.image.geometry().size());
        Described { path: self.path.clone(), image, size, file_system: self.file_system }
    }
}

/// Maps a file or a block device, which has no length of its own.
#[allow(unsafe_code, reason = "two images that do not fit into memory are compared by their bytes")]
fn map(path: &Path, size: u64) -> Outcome<Mmap> {
    let failed = |error: std::io::Error| Failure::io("cannot map the image", path, &error);
    let file = File::open(path).map_err(failed)?;
    let length =
        usize::try_from(size).map_err(|_| Failure::new(Code::Failed, "the image is too large for this machine"))?;
    // SAFETY: nothing may write to the image meanwhile, as for publishing; if something cuts it, the process dies of it.
    unsafe { memmap2::MmapOptions::new().len(length).map(&file) }.map_err(failed)
}

/// Looks at both images, goes every way, and finds out why. Blocks this thread.
fn forecast(args: &cli::Bench) -> Outcome<Forecast> {
    let manner = Manner::fitting(args.quiet);
    let mut notes = Vec::new();
    let old = Subject::open(&args.old, manner, "hash OLD", &mut notes)?;
    let new = Subject::open(&args.new, manner, "hash NEW", &mut notes)?;
    let known = {
        let _shown = Waiting::begin(manner, "making the plan and the packs from OLD to NEW");
        ways::known(old.engine(), new.engine(), Effort::QUICK)?
    };
    let efforts: &[Effort] = if args.no_thorough { &[] } else { &[Effort::THOROUGH, Effort::SMALLEST] };
    let better = efforts.iter().map(|effort| {
        let _shown = Waiting::begin(manner, "making them again, thoroughly");
        ways::known(old.engine(), new.engine(), *effort)
    });
    let better: Vec<ways::Known> = better.collect::<Outcome<_>>()?;
    let unknown = {
        let _shown = Waiting::begin(manner, "searching OLD for NEW's bytes, as a node of an unknown base does");
        ways::unknown::go(&old.bytes, &old.signature, &new.bytes, &new.signature, &new.derived)
    };
    let cold = ways::cold(&new.image, new.engine(), manner)?;
    let costs = {
        let _shown = Waiting::begin(manner, "finding out what the bytes are for");
        Costs::of(&known, &old.bytes, &new.bytes)
    };
    // What changed while it was read would be explained wrongly.
    old.image.unchanged()?;
    new.image.unchanged()?;
    let blocks = ways::Blocks::of(&known.plan, &unknown);
    let sides = uses::Sides { old: &old.bytes, new: &new.bytes, old_map: old.map.as_ref(), new_map: new.map.as_ref() };
    let files = uses::files(&sides, &costs);
    Ok(Forecast {
        rate_mbit: args.rate,
        causes: causes::find(&causes::Evidence {
            sides: &sides,
            costs: &costs,
            files: &files,
            blocks: &blocks,
            plan_bytes: known.plan_bytes,
            file_system: new.file_system,
        }),
        uses: uses::of(new.map.as_ref(), &costs),
        files: files.into_iter().take(args.top).collect(),
        regions: uses::regions(&costs, args.top),
        profile: uses::profile(&costs),
        ways: ways::all(&known, &better, &unknown, &cold, args.rate),
        old: old.described(),
        new: new.described(),
        blocks,
        notes,
    })
}
