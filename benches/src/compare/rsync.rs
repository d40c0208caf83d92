//! rsync, as one would use it for an image: its daemon on loopback, every block size that makes sense, with and without
//! compression, into the old file in place and into a new one.
//!
//! Bytes are those of rsync's own `--stats` (what it read and wrote on the socket, without TCP's heads). What is called
//! its best is the setting with the fewest bytes.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::pairs::Pair;
use super::process::{self, Meter};
use super::row::{Row, Run, Tool};
use super::{golden, loopback};

/// Block sizes asked for; 0 leaves the choice to rsync.
const BLOCK_SIZES: [u32; 5] = [0, 1024, 4096, 8192, 16384];

/// rsync's version, or `None` if it is not installed.
pub fn version() -> Option<String> {
    let output = Command::new("rsync").arg("--version").output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    block: u32,
    zstd: bool,
    in_place: bool,
}

impl Setting {
    fn all() -> impl Iterator<Item = Self> {
        BLOCK_SIZES.into_iter().flat_map(|block| {
            [(false, true), (true, true), (false, false), (true, false)].map(|(zstd, in_place)| Self {
                block,
                zstd,
                in_place,
            })
        })
    }

    fn name(self) -> String {
        let block = if self.block == 0 { "default block".into() } else { format!("{} KiB", self.block >> 10) };
        let zstd = if self.zstd { ", zstd" } else { "" };
        format!("rsync, {block}{zstd}, {}", if self.in_place { "in place" } else { "new file" })
    }

    fn args(self) -> Vec<String> {
        // -I: the times are equal or not by accident. --no-whole-file: the daemon is local only for us.
        let mut args: Vec<String> = ["-I", "--no-whole-file", "--stats"].map(str::to_owned).into();
        args.extend(self.in_place.then(|| "--inplace".to_owned()));
        args.extend((self.block > 0).then(|| format!("--block-size={}", self.block)));
        if self.zstd {
            args.extend(["-z", "--compress-choice=zstd", "--compress-level=3"].map(str::to_owned));
        }
        args
    }
}

/// Every setting on a pair.
pub fn rows(pair: &Pair, scratch: &Path, repeat: usize) -> Result<Vec<Row>> {
    let folder = scratch.join("rsync");
    fs::create_dir_all(&folder)?;
    let daemon = Daemon::start(pair.new.parent().context("an image in a folder")?, &folder)?;
    let want = golden(&pair.new)?;
    let rows = Setting::all()
        .map(|setting| {
            let runs = (0..repeat).map(|_| daemon.run(pair, setting, &folder, &want)).collect::<Result<Vec<_>>>()?;
            eprintln!("    {}: {} bytes", setting.name(), runs[0].wire());
            Ok(Row::of(Tool::Rsync, setting.name(), &runs))
        })
        .collect::<Result<Vec<_>>>();
    drop(daemon);
    fs::remove_dir_all(&folder)?;
    rows
}

struct Daemon {
    child: Child,
    port: u16,
}

impl Daemon {
    fn start(images: &Path, folder: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("rsyncd.conf");
        // A daemon that root starts becomes nobody, who may not read everyone's images.
        let user = "uid = root\ngid = root\n";
        let text = format!(
            "use chroot = no\n{user}log file = {0}/log\npid file = {0}/pid\n[images]\npath = {1}\nread only = yes\n",
            folder.display(),
            images.display()
        );
        fs::write(&config, text)?;
        let child = Command::new("rsync")
            .args(["--daemon", "--no-detach", "--address=127.0.0.1"])
            .args([format!("--port={port}"), format!("--config={}", config.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start rsync --daemon")?;
        let daemon = Self { child, port };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < until, "rsync's daemon does not answer on port {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    fn run(&self, pair: &Pair, setting: Setting, folder: &Path, want: &str) -> Result<Run> {
        let target = fresh(&pair.old, folder)?;
        let name = pair.new.file_name().and_then(|name| name.to_str()).context("an image's name that is text")?;
        let mut command = Command::new("rsync");
        command.args(setting.args()).arg(format!("rsync://127.0.0.1:{}/images/{name}", self.port)).arg(&target);
        let (before, meter) = (loopback::crossed(), Meter::start(self.child.id()));
        let finished = process::run(command, folder)?;
        let server = meter.stop();
        let interface = loopback::since(before);
        ensure!(golden(&target)? == want, "{} made another image than {}", setting.name(), pair.new.display());
        fs::remove_file(&target)?;
        let stat = |key: &str| number(&finished.stdout, key);
        let (received, sent) = (stat("Total bytes received")?, stat("Total bytes sent")?);
        Ok(Run { received, sent, interface, client: finished.cost, server, ..Run::default() })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy of the old image to update, on the disk already, so that no run pays for its making.
fn fresh(old: &Path, folder: &Path) -> Result<PathBuf> {
    let target = folder.join("target.img");
    fs::copy(old, &target)?;
    fs::File::open(&target)?.sync_all()?;
    Ok(target)
}

/// `Total bytes sent: 12,345`
fn number(stats: &str, key: &str) -> Result<u64> {
    let Some(line) = stats.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':')) else {
        bail!("rsync --stats does not say {key:?}:\n{stats}");
    };
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("{key}: {line:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_are_read() {
        let stats = "Number of files: 1\nTotal bytes sent: 327,712\nTotal bytes received: 5\n\nsent 1 bytes\n";
        assert_eq!(number(stats, "Total bytes sent").unwrap(), 327_712);
        assert!(number(stats, "Literal data").is_err());
    }

    #[test]
    fn settings_are_all_different_and_named() {
        let names: std::collections::BTreeSet<String> = Setting::all().map(Setting::name).collect();
        assert_eq!(names.len(), 20);
        assert!(names.contains("rsync, 4 KiB, zstd, in place") && names.contains("rsync, default block, new file"));
    }
}
