//! casync: chunks cut by content, each a zstd file of its own; the client seeds itself from the old image.

use std::process::Command;

use anyhow::Result;

use super::{Bench, Peer};
use crate::compare::process::Cost;
use crate::compare::row::Run;

struct Casync {
    /// The average chunk; 64 KiB is casync's own choice.
    chunk: u32,
}

pub(super) fn settings() -> Vec<Box<dyn Peer>> {
    [64 << 10, 16 << 10, 4 << 10].map(|chunk| Box::new(Casync { chunk }) as Box<dyn Peer>).into()
}

impl Peer for Casync {
    fn what(&self) -> String {
        format!("casync, {} KiB chunks, zstd", self.chunk >> 10)
    }

    fn make(&self, bench: &Bench<'_>) -> Result<Option<Cost>> {
        let mut command = Command::new("casync");
        command.arg("make").arg(format!("--store={}", bench.published.join("store.castr").display()));
        command.arg(format!("--chunk-size={}", self.chunk)).arg("--compression=zstd");
        command.arg(bench.published.join("image.caibx")).arg(bench.new_image());
        bench.run(command).map(Some)
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        let mut command = Command::new("casync");
        command.arg("extract").arg(format!("--store={}", bench.http.url("store.castr")));
        command.arg(format!("--seed={}", bench.old().display()));
        command.arg(bench.http.url("image.caibx")).arg(bench.target());
        bench.over_http(|| bench.run(command))
    }
}
