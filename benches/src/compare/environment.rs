//! What the figures were taken on: nobody can judge seconds without it.

use std::fs;

use serde::Serialize;

use super::{download, rsync};

/// The machine and the peers.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// The processor's name.
    pub processor: String,
    /// Threads that it runs at once.
    pub threads: usize,
    /// Memory, bytes.
    pub memory: u64,
    /// The kernel.
    pub kernel: String,
    /// How busy the machine was with other things when this began: runnable tasks, averaged over a minute.
    pub load: f64,
    /// Whether the packets were counted, in a network name space of our own.
    pub packets_counted: bool,
    /// Whether this program is an optimised one.
    pub optimised: bool,
    /// rsync's version.
    pub rsync: Option<String>,
    /// zstd's version.
    pub zstd: Option<String>,
}

/// Looks.
pub fn look(packets_counted: bool) -> Environment {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |path: &str, key: &str| -> String {
        let text = read(path);
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let number = |text: String| text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
    Environment {
        processor: field("/proc/cpuinfo", "model name"),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        memory: (number(field("/proc/meminfo", "MemTotal")) as u64) << 10,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load: number(read("/proc/loadavg")),
        packets_counted,
        optimised: !cfg!(debug_assertions),
        rsync: rsync::version(),
        zstd: download::version(),
    }
}
