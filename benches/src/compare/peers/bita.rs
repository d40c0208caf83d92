//! bita: chunks cut by content in one archive, compressed with brotli (level 6, its own choice); the client seeds itself from
//! the old image and asks for ranges.

use std::process::Command;

use anyhow::Result;

use super::{Bench, Peer};
use crate::compare::process::Cost;
use crate::compare::row::Run;

struct Bita {
    /// Average, least and largest chunk, KiB; the first is bita's own choice.
    chunk: [u32; 3],
}

pub(super) fn settings() -> Vec<Box<dyn Peer>> {
    [[64, 16, 16 << 10], [16, 4, 1024], [8, 2, 256]].map(|chunk| Box::new(Bita { chunk }) as Box<dyn Peer>).into()
}

impl Peer for Bita {
    fn what(&self) -> String {
        format!("bita, {} KiB chunks, brotli", self.chunk[0])
    }

    fn make(&self, bench: &Bench<'_>) -> Result<Option<Cost>> {
        let [average, least, largest] = self.chunk;
        let mut command = Command::new("bita");
        command.args(["compress", "--force-create", "-i"]).arg(bench.new_image());
        command.arg(format!("--avg-chunk-size={average}KiB")).arg(format!("--min-chunk-size={least}KiB"));
        command.arg(format!("--max-chunk-size={largest}KiB")).arg(bench.published.join("image.cba"));
        bench.run(command).map(Some)
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        let mut command = Command::new("bita");
        command.arg("clone").arg("--seed").arg(bench.old());
        command.arg(bench.http.url("image.cba")).arg(bench.target());
        bench.over_http(|| bench.run(command))
    }
}
