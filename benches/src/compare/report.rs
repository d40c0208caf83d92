//! What was measured, as data: it is the JSON, and what the tables and plots are made of.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::aims::{self, Aim};
use super::environment::Environment;
use super::fleet::{self, Idle, Measured};
use super::pairs::Pair;
use super::peers;
use super::plot::{Plot, Point};
use super::row::{Row, Tool};
use super::stream::Stream;

/// Patches for a pair, made as small as their tools can.
const PATCHES: [&str; 2] = ["xdelta3 -9", "zstd --patch-from -19 --long=31"];

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where, and with which versions.
    pub environment: Environment,
    /// What, pair by pair.
    pub pairs: Vec<PairReport>,
    /// An agent with nothing to do.
    pub idle: Option<Idle>,
    /// The ruler for a cold fetch.
    pub stream: Option<Stream>,
}

/// A pair.
#[derive(Debug, Serialize)]
pub struct PairReport {
    /// Its name.
    pub name: String,
    /// The old image's file name.
    pub old: String,
    /// The new image's.
    pub new: String,
    /// Bytes of the new image.
    pub size: u64,
    /// Every tool in every situation.
    pub rows: Vec<Row>,
    /// What goldsync's processes took beside the rows.
    pub beside: Measured,
    /// What could not be measured.
    pub skipped: Vec<String>,
}

/// The least of some rows' bytes, and the names of those that are missing.
fn fewest<const N: usize>(rows: [(&'static str, Option<&Row>); N]) -> (Option<u64>, Vec<&'static str>) {
    let bytes = rows.iter().filter_map(|(_, row)| Some(row.as_ref()?.median.wire())).filter(|bytes| *bytes > 0).min();
    (bytes, rows.iter().filter(|(_, row)| row.is_none()).map(|(name, _)| *name).collect())
}

impl Report {
    /// The JSON.
    pub fn json(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            aims: Vec<Aim>,
        }
        Ok(serde_json::to_string_pretty(&Whole { report: self, aims: aims::of(&self.pairs) })? + "\n")
    }

    /// With nothing measured yet.
    pub fn new(environment: Environment) -> Self {
        Self { environment, pairs: Vec::new(), idle: None, stream: None }
    }
}

impl PairReport {
    /// With nothing measured yet.
    pub fn new(pair: &Pair) -> Result<Self> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name: pair.name.clone(),
            old: name(&pair.old),
            new: name(&pair.new),
            size: fs::metadata(&pair.new)?.len(),
            rows: Vec::new(),
            beside: Measured::default(),
            skipped: Vec::new(),
        })
    }

    /// A tool's rows.
    pub fn of(&self, tool: Tool) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.tool == tool)
    }

    /// One of goldsync's situations.
    pub fn ours(&self, what: &str) -> Option<&Row> {
        self.of(Tool::Goldsync).find(|row| row.what == what)
    }

    /// A tool's setting with the fewest bytes.
    pub fn best(&self, tool: Tool) -> Option<&Row> {
        self.of(tool).min_by_key(|row| row.median.wire())
    }

    /// The rows worth showing, and why: all of ours and of most tools; of rsync's twenty the best, the quickest and what one
    /// gets without asking.
    pub fn shown(&self) -> Vec<(&Row, &'static str)> {
        Tool::all()
            .flat_map(|tool| if tool == Tool::Rsync { self.shown_of_rsync() } else { self.all_of(tool) })
            .collect()
    }

    fn all_of(&self, tool: Tool) -> Vec<(&Row, &'static str)> {
        self.of(tool).map(|row| (row, "")).collect()
    }

    fn shown_of_rsync(&self) -> Vec<(&Row, &'static str)> {
        let quickest = self.of(Tool::Rsync).min_by(|a, b| a.median.cpu().total_cmp(&b.median.cpu()));
        let plain = self.of(Tool::Rsync).find(|row| row.what == peers::RSYNC_PLAIN);
        let picked = [(self.best(Tool::Rsync), "fewest bytes"), (quickest, "least CPU"), (plain, "as it comes")];
        let mut shown: Vec<(&Row, &'static str)> = Vec::new();
        for (row, mark) in picked {
            let Some(row) = row else { continue };
            match shown.iter_mut().find(|(known, _)| known.what == row.what) {
                Some((_, known)) if mark == "least CPU" => *known = "fewest bytes and least CPU",
                Some(_) => {}
                None => shown.push((row, mark)),
            }
        }
        shown
    }

    /// The fewest bytes of the best patches for this very pair, and which of them are not there to be compared.
    pub fn patches(&self) -> (Option<u64>, Vec<&'static str>) {
        let patch = |what: &'static str| (what, self.rows.iter().find(|row| row.what == what));
        fewest(PATCHES.map(patch))
    }

    /// The fewest bytes of tools that need not know the node's image, and which of those are not there to be compared.
    pub fn searches(&self) -> (Option<u64>, Vec<&'static str>) {
        fewest([Tool::Rsync, Tool::Zsync].map(|tool| (tool.name(), self.best(tool))))
    }

    /// Bytes on the wire against seconds of processor: our situations, and each tool's setting with the fewest bytes.
    pub fn plot(&self) -> Plot {
        let ours = [
            (fleet::KNOWN, "goldsync, known base"),
            (fleet::FRUGAL, "goldsync, known base, bytes preferred"),
            (fleet::DRIFTED, "goldsync, known base that drifted"),
            (fleet::UNKNOWN, "goldsync, unknown base"),
            (fleet::COLD, "goldsync, nothing there"),
        ];
        let ours = ours.into_iter().filter_map(|(what, label)| Some((self.ours(what)?, label.to_owned())));
        let peers = Tool::all().filter(|tool| *tool != Tool::Goldsync).filter_map(|tool| self.best(tool));
        let points = ours.chain(peers.map(|row| (row, row.what.clone()))).map(|(row, label)| Point {
            // A tick of the clock is the least that is told apart.
            x: row.median.cpu().max(0.01),
            y: row.median.wire() as f64,
            label,
            ours: row.tool == Tool::Goldsync,
            knows: row.knows,
        });
        let mebibytes = self.size as f64 / f64::from(1 << 20);
        Plot {
            title: format!("{}: {} to {}, {mebibytes:.0} MiB", self.name, self.old, self.new),
            points: points.collect(),
        }
    }
}

#[cfg(test)]
pub mod testing {
    use super::*;
    use crate::compare::process::Cost;
    use crate::compare::row::Run;

    /// A pair of so many rows: tool, what, bytes, seconds of processor.
    pub fn pair(rows: &[(Tool, &str, u64, f64)]) -> PairReport {
        let row = |(tool, what, received, cpu): &(Tool, &str, u64, f64)| {
            let client = Cost { cpu: *cpu, wall: 1.0, ..Cost::default() };
            Row::of(*tool, *what, &[Run { received: *received, client, ..Run::default() }])
        };
        PairReport {
            name: "hotfix".into(),
            old: "old".into(),
            new: "new".into(),
            size: 1 << 20,
            rows: rows.iter().map(row).collect(),
            beside: Measured::default(),
            skipped: vec!["nothing".into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::pair;
    use super::*;

    #[test]
    fn each_of_rsync_s_settings_shows_once_and_the_rest_is_all_there() {
        let pair = pair(&[
            (Tool::Goldsync, fleet::COLD, 1000, 0.5),
            (Tool::Rsync, peers::RSYNC_PLAIN, 9000, 1.0),
            (Tool::Rsync, "rsync, 4 KiB, zstd, in place", 4000, 2.0),
            (Tool::Rsync, "rsync, 1 KiB, in place", 8000, 3.0),
            (Tool::Zstd, "zstd -3, whole image", 50_000, 0.1),
        ]);
        let shown: Vec<_> = pair.shown().into_iter().map(|(row, mark)| (row.what.as_str(), mark)).collect();
        assert_eq!(
            shown,
            [
                (fleet::COLD, ""),
                ("rsync, 4 KiB, zstd, in place", "fewest bytes"),
                (peers::RSYNC_PLAIN, "least CPU"),
                ("zstd -3, whole image", "")
            ]
        );
    }

    #[test]
    fn the_best_peers_are_the_measure() {
        let pair = pair(&[
            (Tool::Goldsync, fleet::KNOWN, 600, 0.5),
            (Tool::Goldsync, fleet::UNKNOWN, 900, 0.5),
            (Tool::Zsync, "zsync, 1 KiB", 1000, 0.5),
            (Tool::Xdelta3, "xdelta3 -1", 10, 0.5),
            (Tool::Xdelta3, "xdelta3 -9", 1000, 0.5),
        ]);
        assert_eq!(pair.patches(), (Some(1000), vec!["zstd --patch-from -19 --long=31"]));
        assert_eq!(pair.searches(), (Some(1000), vec!["rsync"]));
        assert_eq!(pair.plot().points.len(), 4);
    }
}
