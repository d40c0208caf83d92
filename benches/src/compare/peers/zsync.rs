//! zsync: the publisher's file of checksums, a client that finds what it has and asks HTTP for the rest, uncompressed.
//!
//! Blocks of 1 KiB are left out: with them its search takes many minutes on an image of 160 MiB that has as many blocks of
//! zeros as a file system has.
//!
//! `zsyncmake -C`: without it the image would be offered compressed with gzip as well, which finds less than it saves on images.

use std::process::Command;

use anyhow::Result;

use super::{Bench, Peer, block};
use crate::compare::process::Cost;
use crate::compare::row::Run;

struct Zsync {
    block: u32,
}

pub(super) fn settings() -> Vec<Box<dyn Peer>> {
    [0, 2048, 4096].map(|block| Box::new(Zsync { block }) as Box<dyn Peer>).into()
}

impl Peer for Zsync {
    fn what(&self) -> String {
        format!("zsync, {}", block(self.block))
    }

    fn make(&self, bench: &Bench<'_>) -> Result<Option<Cost>> {
        std::os::unix::fs::symlink(bench.new_image(), bench.published.join("image"))?;
        let mut command = Command::new("zsyncmake");
        if self.block > 0 {
            command.args(["-b", &self.block.to_string()]);
        }
        command.args(["-C", "-f", "target.img", "-u", &bench.http.url("image"), "-o"]);
        command.arg(bench.published.join("image.zsync")).arg(bench.new_image());
        bench.run(command).map(Some)
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        bench.over_http(|| {
            let mut command = Command::new("zsync");
            command.args(["-q", "-i"]).arg(bench.old()).arg("-o").arg(bench.target());
            command.arg(bench.http.url("image.zsync"));
            bench.run(command)
        })
    }
}
