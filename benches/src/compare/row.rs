//! One line of the comparison: a tool, in a situation, on a pair; the medians of some runs.

use clap::ValueEnum;
use serde::Serialize;

use super::loopback::Crossed;
use super::process::Cost;

/// Whose line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// Ours.
    Goldsync,
    /// rsync's daemon and client.
    Rsync,
    /// zsync over HTTP.
    Zsync,
    /// casync over HTTP.
    Casync,
    /// bita over HTTP.
    Bita,
    /// zchunk over HTTP.
    Zchunk,
    /// librsync's rdiff.
    Rdiff,
    /// A patch by xdelta3.
    Xdelta3,
    /// A patch by zstd.
    ZstdPatch,
    /// The whole image, compressed with zstd.
    Zstd,
}

/// What the publisher must know of the node for a row to be possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knows {
    /// The very image that the node has.
    Base,
    /// Nothing: the node finds out what it has.
    Nothing,
    /// Nothing, and the node's own image is of no use.
    Whole,
}

impl Tool {
    /// All, in the order of the tables.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// What every row of it begins with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Goldsync => "goldsync",
            Self::Rsync => "rsync",
            Self::Zsync => "zsync",
            Self::Casync => "casync",
            Self::Bita => "bita",
            Self::Zchunk => "zchunk",
            Self::Rdiff => "rdiff",
            Self::Xdelta3 => "xdelta3",
            Self::ZstdPatch => "zstd --patch-from",
            Self::Zstd => "zstd",
        }
    }

    /// What its rows' bytes on the wire are.
    pub fn measured(self) -> &'static str {
        match self {
            Self::Goldsync => {
                "UDP payload of the whole connection, both ways, as quinn counts it: TLS, handshake and metadata included"
            }
            Self::Rsync => "what the client read and wrote on its socket (--stats): no TCP heads, no encryption",
            Self::Zsync | Self::Casync | Self::Bita | Self::Zchunk => {
                "all bytes of all HTTP connections, both ways, heads and index included: no TCP heads, no encryption"
            }
            Self::Rdiff => "the signature's file up and the delta's down: no protocol at all",
            Self::Xdelta3 | Self::ZstdPatch => "the patch file's size: no protocol at all",
            Self::Zstd => "the compressed file's size: no protocol at all",
        }
    }

    /// What its publisher must know; goldsync's depends on the row.
    pub fn knows(self) -> Knows {
        match self {
            Self::Xdelta3 | Self::ZstdPatch => Knows::Base,
            Self::Zstd => Knows::Whole,
            _ => Knows::Nothing,
        }
    }
}

/// What one run took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Run {
    /// Bytes that the client received, by the tool's own count.
    pub received: u64,
    /// Bytes that the client sent.
    pub sent: u64,
    /// Of both, what the handshake took.
    pub handshake: Option<u64>,
    /// What crossed the interface.
    pub interface: Option<Crossed>,
    /// The client, here the agent.
    pub client: Cost,
    /// The server, while it served this run.
    pub server: Cost,
    /// Blocks written to the slot, as the agent counts them.
    pub written: Option<u64>,
    /// Blocks that were right already.
    pub skipped: Option<u64>,
    /// Drifted blocks fetched.
    pub repaired: Option<u64>,
    /// The way that the agent took.
    pub path: Option<String>,
}

impl Run {
    /// Bytes both ways.
    pub fn wire(&self) -> u64 {
        self.received + self.sent
    }

    /// Seconds of processor, both sides.
    pub fn cpu(&self) -> f64 {
        self.client.cpu + self.server.cpu
    }
}

/// A line.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Whose.
    pub tool: Tool,
    /// The situation, or the settings.
    pub what: String,
    /// Its version.
    pub version: Option<String>,
    /// What its bytes on the wire are.
    pub measured: &'static str,
    /// What the publisher must know of the node.
    pub knows: Knows,
    /// What making the published files took, once, if there are any beside the image.
    pub made: Option<Cost>,
    /// How many runs.
    pub runs: usize,
    /// Their medians, value by value.
    #[serde(flatten)]
    pub median: Run,
}

impl Row {
    /// The medians of `runs`, which is not empty; nothing was made.
    pub fn of(tool: Tool, what: impl Into<String>, runs: &[Run]) -> Self {
        let whole = |pick: &dyn Fn(&Run) -> u64| middle(runs.iter().map(pick).collect(), u64::cmp);
        let real = |pick: &dyn Fn(&Run) -> f64| middle(runs.iter().map(pick).collect(), f64::total_cmp);
        let cost = |side: &dyn Fn(&Run) -> Cost| Cost {
            wall: real(&|run| side(run).wall),
            cpu: real(&|run| side(run).cpu),
            resident: whole(&|run| side(run).resident),
            anonymous: whole(&|run| side(run).anonymous),
            dirtied: whole(&|run| side(run).dirtied),
        };
        let optional = |pick: &dyn Fn(&Run) -> Option<u64>| {
            runs.iter().all(|run| pick(run).is_some()).then(|| whole(&|run| pick(run).unwrap_or(0)))
        };
        let interface = runs.iter().all(|run| run.interface.is_some()).then(|| Crossed {
            bytes: whole(&|run| run.interface.unwrap_or_default().bytes),
            packets: whole(&|run| run.interface.unwrap_or_default().packets),
        });
        let median = Run {
            received: whole(&|run| run.received),
            sent: whole(&|run| run.sent),
            handshake: optional(&|run| run.handshake),
            interface,
            client: cost(&|run| run.client),
            server: cost(&|run| run.server),
            written: optional(&|run| run.written),
            skipped: optional(&|run| run.skipped),
            repaired: optional(&|run| run.repaired),
            path: runs.first().and_then(|run| run.path.clone()),
        };
        Self {
            tool,
            what: what.into(),
            version: None,
            measured: tool.measured(),
            knows: tool.knows(),
            made: None,
            runs: runs.len(),
            median,
        }
    }
}

fn middle<T: Copy + Default>(mut values: Vec<T>, order: impl Fn(&T, &T) -> std::cmp::Ordering) -> T {
    values.sort_by(order);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_value_by_value() {
        let run = |received, wall, written| Run {
            received,
            client: Cost { wall, ..Cost::default() },
            written,
            interface: Some(Crossed { bytes: received, packets: 1 }),
            ..Run::default()
        };
        let runs = [run(5, 0.1, Some(1)), run(3, 0.9, None), run(4, 0.5, Some(2))];
        let row = Row::of(Tool::Goldsync, "x", &runs);
        assert_eq!((row.runs, row.median.received, row.median.client.wall), (3, 4, 0.5));
        assert_eq!((row.median.written, row.median.interface.map(|crossed| crossed.bytes)), (None, Some(4)));
    }
}
