//! The plain way: the whole new image, compressed with `zstd -3` once, fetched by every node.
//!
//! The bytes are the compressed file's size. The client is `zstd -d` reading that file from the page cache and writing
//! the image: there is no network and no server in its time, so that this is the least that a download can cost.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::golden;
use super::pairs::Pair;
use super::process::{self, Cost};
use super::row::{Row, Run, Tool};

/// zstd's version, or `None` if it is not installed.
pub fn version() -> Option<String> {
    let output = Command::new("zstd").arg("--version").output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().trim_matches('*').trim().to_owned())
}

/// The row, and what compressing it once cost.
pub fn row(pair: &Pair, scratch: &Path, repeat: usize) -> Result<(Row, Cost)> {
    let folder = scratch.join("download");
    fs::create_dir_all(&folder)?;
    let (packed, target) = (folder.join("image.zst"), folder.join("image"));
    let mut command = Command::new("zstd");
    command.args(["-3", "-T1", "-q", "-f", "-o"]).arg(&packed).arg(&pair.new);
    let made = process::run(command, &folder)?.cost;
    let want = golden(&pair.new)?;
    let run = || -> Result<Run> {
        let mut command = Command::new("zstd");
        command.args(["-d", "-q", "-f", "-o"]).arg(&target).arg(&packed);
        let client = process::run(command, &folder)?.cost;
        ensure!(golden(&target)? == want, "zstd made another image than {}", pair.new.display());
        Ok(Run { received: fs::metadata(&packed)?.len(), client, ..Run::default() })
    };
    let runs = (0..repeat).map(|_| run()).collect::<Result<Vec<_>>>()?;
    fs::remove_dir_all(&folder)?;
    Ok((Row::of(Tool::Download, "whole image, zstd -3", &runs), made))
}
