//! The ruler for a known base: copying the new image and hashing the copy, which is the least that putting it into a slot and
//! proving it could cost.
//!
//! The machine's own `cp` and `b3sum`, as processes, from and to the page cache; neither waits for the disk, which the agent does.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::peers::program_version;
use super::process::{self, Cost};
use crate::agent_threads;

/// What it took.
#[derive(Clone, Debug, Serialize)]
pub struct Floor {
    /// `cp` to a new file.
    pub copy: Cost,
    /// `b3sum` of that file.
    pub hash: Cost,
    /// Its threads: as many as the agent's.
    pub threads: usize,
    /// Its version.
    pub version: String,
}

impl Floor {
    /// Seconds of both, one after the other.
    pub fn wall(&self) -> f64 {
        self.copy.wall + self.hash.wall
    }
}

/// The median of `repeat` runs; `None` if `b3sum` is not installed.
pub fn measure(image: &Path, scratch: &Path, repeat: usize, golden: &str) -> Result<Option<Floor>> {
    let Some(version) = program_version("b3sum", "--version") else { return Ok(None) };
    let threads = agent_threads();
    let copy = scratch.join("copy");
    let once = || -> Result<Floor> {
        let mut cp = Command::new("cp");
        cp.arg(image).arg(&copy);
        let copied = process::run(cp, scratch)?;
        let mut b3sum = Command::new("b3sum");
        b3sum.args(["--num-threads", &threads.to_string()]).arg(&copy);
        let hashed = process::run(b3sum, scratch)?;
        ensure!(hashed.stdout.starts_with(golden), "b3sum says {:?}, and the image is {golden}", hashed.stdout);
        // Nobody else shall pay for what is still to be written.
        File::open(&copy)?.sync_all()?;
        fs::remove_file(&copy)?;
        Ok(Floor { copy: copied.cost, hash: hashed.cost, threads, version: version.clone() })
    };
    let mut runs = (0..repeat.max(1)).map(|_| once()).collect::<Result<Vec<_>>>().context("cp and b3sum")?;
    runs.sort_by(|a, b| a.wall().total_cmp(&b.wall()));
    let middle = runs.swap_remove(runs.len() / 2);
    eprintln!("    cp and b3sum: {:.2} s", middle.wall());
    Ok(Some(middle))
}
