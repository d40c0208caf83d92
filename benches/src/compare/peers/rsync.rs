//! rsync, as one would use it for an image: its daemon on loopback, every block size that makes sense, with and without
//! compression, into the old file in place and into a new one.
//!
//! Bytes are those of rsync's own `--stats` (what it read and wrote on the socket, without TCP's heads). What is called
//! its best is the setting with the fewest bytes.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Bench, Peer, block};
use crate::compare::loopback;
use crate::compare::process::{Meter, Server};
use crate::compare::row::Run;

/// rsync as it comes, when it is told no more than that the file differs.
pub const PLAIN: &str = "rsync, default block, new file";

/// Block sizes asked for; 0 leaves the choice to rsync.
const BLOCK_SIZES: [u32; 5] = [0, 1024, 4096, 8192, 16384];

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
        let zstd = if self.zstd { ", zstd" } else { "" };
        format!("rsync, {}{zstd}, {}", block(self.block), if self.in_place { "in place" } else { "new file" })
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

pub(super) fn settings() -> Vec<Box<dyn Peer>> {
    Setting::all().map(|setting| Box::new(setting) as Box<dyn Peer>).collect()
}

impl Peer for Setting {
    fn what(&self) -> String {
        self.name()
    }

    fn update(&self, bench: &Bench<'_>) -> Result<Run> {
        // On the disk already, so that no run pays for its making.
        fs::copy(bench.old(), bench.target())?;
        fs::File::open(bench.target())?.sync_all()?;
        let image = bench.new_image();
        let daemon = Daemon::start(image.parent().context("an image in a folder")?, &bench.node)?;
        let name = image.file_name().and_then(|name| name.to_str()).context("an image's name that is text")?;
        let mut command = Command::new("rsync");
        command.args(self.args()).arg(format!("rsync://127.0.0.1:{}/images/{name}", daemon.port)).arg(bench.target());
        let (before, meter) = (loopback::crossed(), Meter::start(daemon.server.0.id()));
        let finished = bench.finish(command)?;
        let server = meter.stop();
        let interface = loopback::since(before);
        let stat = |key: &str| number(&finished.stdout, key);
        let (received, sent) = (stat("Total bytes received")?, stat("Total bytes sent")?);
        Ok(Run { received, sent, interface, client: finished.cost, server, ..Run::default() })
    }
}

struct Daemon {
    server: Server,
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
        // It refuses to start over a file that an earlier one left.
        let _ = fs::remove_file(folder.join("pid"));
        fs::write(&config, text)?;
        let child = Command::new("rsync")
            .args(["--daemon", "--no-detach", "--address=127.0.0.1"])
            .args([format!("--port={port}"), format!("--config={}", config.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start rsync --daemon")?;
        let daemon = Self { server: Server(child), port };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < until, "rsync's daemon does not answer on port {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }
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
    fn there_are_twenty_settings_and_the_one_that_comes_first_by_itself_is_among_them() {
        assert_eq!(Setting::all().count(), 20);
        assert!(Setting::all().any(|setting| setting.name() == PLAIN));
    }
}
