//! What the figures were taken on: nobody can judge seconds without it.

use std::fs;

use serde::Serialize;

use super::peers;
use super::row::Tool;

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
    /// The tools that were asked for.
    pub tools: Vec<Installed>,
}

/// A tool on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Installed {
    /// Which.
    pub tool: Tool,
    /// Its version, or `None` if it is not there.
    pub version: Option<String>,
}

/// Looks at the machine, and for `tools`.
pub fn look(packets_counted: bool, tools: &[Tool]) -> Environment {
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
        tools: tools.iter().map(|tool| Installed { tool: *tool, version: peers::version(*tool) }).collect(),
    }
}

impl Environment {
    /// The tools that are not there.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.tools.iter().filter(|tool| tool.version.is_none()).map(|tool| tool.tool.name())
    }
}
