//! zchunk: chunks cut by content in one file, compressed with zstd; the client reads ranges of the new file and takes the
//! rest from the old one, which it keeps beside its image (the old `.zck` is there before the clock starts).

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Bench, Peer};
use crate::compare::process::Cost;
use crate::compare::row::Run;

struct Zchunk;

pub(super) fn settings() -> Vec<Box<dyn Peer>> {
    vec![Box::new(Zchunk)]
}

fn zck(image: &Path, into: &Path) -> Command {
    let mut command = Command::new("zck");
    command.arg("-o").arg(into).arg(image);
    command
}

impl Peer for Zchunk {
    fn what(&self) -> String {
        "zchunk, zstd".into()
    }

    fn make(&self, bench: &Bench<'_>) -> Result<Option<Cost>> {
        bench.run(zck(bench.new_image(), &bench.published.join("target.img.zck"))).map(Some)
    }

    fn prepare(&self, bench: &Bench<'_>) -> Result<()> {
        bench.run(zck(bench.old(), &bench.node.join("old.zck"))).map(drop)
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        // zckdl would go on with what an earlier run left.
        let _ = fs::remove_file(bench.node.join("target.img.zck"));
        bench.over_http(|| {
            let mut fetch = Command::new("zckdl");
            fetch.args(["-q", "--fail-no-ranges", "-s", "old.zck", &bench.http.url("target.img.zck")]);
            let mut unpack = Command::new("unzck");
            unpack.arg("target.img.zck");
            Ok(bench.run(fetch)?.then(bench.run(unpack)?))
        })
    }
}
