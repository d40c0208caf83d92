//! xdelta3: a patch for one pair of images, its source window as large as the old one (at most 2 GiB, which it allows).

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{Bench, Peer};
use crate::compare::process::Cost;
use crate::compare::row::Run;

const WINDOW_MAX: u64 = 1 << 31;

struct Xdelta3 {
    level: u8,
}

pub(super) fn settings() -> Vec<Box<dyn Peer>> {
    [1, 9].map(|level| Box::new(Xdelta3 { level }) as Box<dyn Peer>).into()
}

impl Xdelta3 {
    fn command(&self, bench: &Bench<'_>, way: &str) -> Result<Command> {
        let window = fs::metadata(bench.old())?.len().next_power_of_two().clamp(64 << 20, WINDOW_MAX);
        let mut command = Command::new("xdelta3");
        command.args(["-f", "-q", &format!("-{}", self.level), "-B", &window.to_string(), way, "-s"]).arg(bench.old());
        Ok(command)
    }
}

impl Peer for Xdelta3 {
    fn what(&self) -> String {
        format!("xdelta3 -{}", self.level)
    }

    fn make(&self, bench: &Bench<'_>) -> Result<Option<Cost>> {
        let mut command = self.command(bench, "-e")?;
        command.arg(bench.new_image()).arg(bench.published.join("patch"));
        bench.run(command).map(Some)
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        let patch = bench.published.join("patch");
        let mut command = self.command(bench, "-d")?;
        command.arg(&patch).arg(bench.target());
        bench.of_file(&patch, command)
    }
}
