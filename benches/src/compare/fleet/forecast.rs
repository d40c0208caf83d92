//! What `goldsync bench` says of a pair: bytes to hold against those that were measured, and what making the plans costs.

use std::path::Path;

use anyhow::{Context, Result};
use goldsync_tests::Programs;
use serde::{Deserialize, Serialize};

use crate::compare::pairs::Pair;
use crate::compare::process::{self, Cost};

/// A forecast, as far as it is of use here.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Forecast {
    /// The new image.
    pub new: Described,
    /// Each way to it.
    pub ways: Vec<Way>,
    /// What the forecast itself took.
    #[serde(skip_deserializing)]
    pub cost: Cost,
}

/// An image.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Described {
    /// What it looks like.
    pub file_system: Option<String>,
}

/// A way.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Way {
    /// Its name.
    pub name: String,
    /// Bytes on the wire, as foretold.
    pub wire_estimated: u64,
    /// Seconds that the server takes, once for all nodes.
    pub server_once: Option<f64>,
    /// Seconds of processor for the way's plan and packs.
    pub server_cpu: Option<f64>,
    /// Seconds that a node takes.
    pub node: Option<f64>,
}

impl Forecast {
    /// A way, by its name.
    pub fn way(&self, name: &str) -> Option<&Way> {
        self.ways.iter().find(|way| way.name == name)
    }
}

/// The plan that nodes get which wait for it.
pub const QUICK: &str = "known base, quick pack";
/// The plan that is made in the background.
pub const THOROUGH: &str = "known base, thorough pack";
/// The way of a node that finds out by itself.
pub const UNKNOWN: &str = "unknown base";
/// The way of a node that has nothing.
pub const COLD: &str = "nothing there";

/// Asks for it.
pub fn of(pair: &Pair, scratch: &Path) -> Result<Forecast> {
    let mut command = Programs::this()?.command("goldsync");
    command.arg("bench").args([&pair.old, &pair.new]).args(["--quiet", "--json"]);
    let finished = process::run(command, scratch)?;
    let forecast: Forecast = serde_json::from_str(&finished.stdout).context("what goldsync bench says")?;
    eprintln!("    goldsync bench: {:.2} s of CPU", finished.cost.cpu);
    Ok(Forecast { cost: finished.cost, ..forecast })
}
