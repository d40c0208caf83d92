//! zstd: a patch for one pair of images (`--patch-from`), and the whole new image, compressed once and fetched by every node.
//!
//! The bytes are the file's size. The client is `zstd -d` reading that file from the page cache and writing the image: there is
//! no network and no server in its time, so that this is the least that it can cost.

use std::process::Command;

use anyhow::Result;

use super::{Bench, Peer};
use crate::compare::process::Cost;
use crate::compare::row::Run;

struct Zstd {
    level: u8,
    patch: bool,
}

pub(super) fn patches() -> Vec<Box<dyn Peer>> {
    [3, 19].map(|level| Box::new(Zstd { level, patch: true }) as Box<dyn Peer>).into()
}

pub(super) fn whole() -> Vec<Box<dyn Peer>> {
    vec![Box::new(Zstd { level: 3, patch: false })]
}

impl Zstd {
    fn command(&self, bench: &Bench<'_>) -> Command {
        let mut command = Command::new("zstd");
        command.args(["-q", "-f"]);
        if self.patch {
            command.args(["--long=31", "--memory=2048MB"]).arg(format!("--patch-from={}", bench.old().display()));
        }
        command
    }
}

impl Peer for Zstd {
    fn what(&self) -> String {
        let level = self.level;
        if self.patch { format!("zstd --patch-from -{level} --long=31") } else { format!("zstd -{level}, whole image") }
    }

    fn make(&self, bench: &Bench<'_>) -> Result<Option<Cost>> {
        let mut command = self.command(bench);
        command.args(["-T1", &format!("-{}", self.level), "-o"]).arg(bench.published.join("packed"));
        command.arg(bench.new_image());
        bench.run(command).map(Some)
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        let packed = bench.published.join("packed");
        let mut command = self.command(bench);
        command.args(["-d", "-o"]).arg(bench.target()).arg(&packed);
        bench.of_file(&packed, command)
    }
}
