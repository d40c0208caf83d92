//! rdiff: the node sends a signature of what it has, the server answers with a delta; plain, and with the delta in zstd -3.
//!
//! Two files stand for the wire: the signature up, the delta down. The server works for each node anew.

use std::fs;
use std::process::Command;

use anyhow::Result;

use super::{Bench, Peer, block};
use crate::compare::process::Cost;
use crate::compare::row::Run;

struct Rdiff {
    block: u32,
    zstd: bool,
}

pub(super) fn settings() -> Vec<Box<dyn Peer>> {
    [(0, false), (4096, false), (4096, true), (1024, true)]
        .map(|(block, zstd)| Box::new(Rdiff { block, zstd }) as Box<dyn Peer>)
        .into()
}

impl Peer for Rdiff {
    fn what(&self) -> String {
        format!("rdiff, {}{}", block(self.block), if self.zstd { ", zstd" } else { "" })
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        let at = |name: &str| bench.node.join(name);
        let rdiff = |verb: &str| {
            let mut command = Command::new("rdiff");
            command.args(["-f", "-b", &self.block.to_string(), "-S", self.strength(), verb]);
            command
        };
        let mut client = bench.run(with(rdiff("signature"), [bench.old(), &at("signature")]))?;
        let mut server = bench.run(with(rdiff("delta"), [&at("signature"), bench.new_image(), &at("delta")]))?;
        let mut travels = at("delta");
        if self.zstd {
            travels = at("delta.zst");
            server = server.then(bench.run(zstd(&["-3", "-T1"], [&at("delta"), &travels]))?);
            client = client.then(bench.run(zstd(&["-d"], [&travels, &at("delta")]))?);
        }
        let patched = bench.run(with(rdiff("patch"), [bench.old(), &at("delta"), &bench.target()]))?;
        Ok(Run {
            received: fs::metadata(travels)?.len(),
            sent: fs::metadata(at("signature"))?.len(),
            client: client.then(patched),
            server: Cost { wall: 0.0, ..server },
            ..Run::default()
        })
    }
}

impl Rdiff {
    /// Eight bytes of hash where the block is ours to choose, as goldsync has; rdiff's own least where it is not.
    fn strength(&self) -> &'static str {
        if self.block == 0 { "-1" } else { "8" }
    }
}

fn with<const N: usize>(mut command: Command, paths: [&std::path::Path; N]) -> Command {
    command.args(paths);
    command
}

fn zstd(options: &[&str], [from, to]: [&std::path::Path; 2]) -> Command {
    let mut command = Command::new("zstd");
    command.args(options).args(["-q", "-f"]).arg(from).arg("-o").arg(to);
    command
}
