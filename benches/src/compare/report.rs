//! The comparison as Markdown and as JSON.

use std::fmt::Write;
use std::fs;

use anyhow::Result;
use serde::Serialize;

use super::environment::Environment;
use super::fleet::{Idle, Publish};
use super::pairs::Pair;
use super::process::Cost;
use super::row::{Row, Tool};
use super::stream::Stream;

/// Everything.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
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
    /// What publishing took.
    pub publishes: Vec<Publish>,
    /// What `zstd -3` took to make the download, once.
    pub download_made: Option<Cost>,
    /// What could not be measured.
    pub skipped: Vec<String>,
}

impl PairReport {
    /// With nothing measured yet.
    pub fn new(pair: &Pair) -> Result<Self> {
        let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name: pair.name.clone(),
            old: name(&pair.old),
            new: name(&pair.new),
            size: fs::metadata(&pair.new)?.len(),
            rows: Vec::new(),
            publishes: Vec::new(),
            download_made: None,
            skipped: Vec::new(),
        })
    }

    fn of(&self, tool: Tool) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.tool == tool)
    }

    /// rsync's setting with the fewest bytes.
    fn rsync_best(&self) -> Option<&Row> {
        self.of(Tool::Rsync).min_by_key(|row| row.median.wire())
    }

    /// rsync's setting with the least processor time.
    fn rsync_quickest(&self) -> Option<&Row> {
        self.of(Tool::Rsync).min_by(|a, b| a.median.cpu().total_cmp(&b.median.cpu()))
    }

    /// The rows worth showing: all of ours, of rsync's the best, the quickest and what one gets without asking.
    fn shown(&self) -> Vec<(&Row, &'static str)> {
        let mut shown: Vec<(&Row, &'static str)> = self.of(Tool::Goldsync).map(|row| (row, "")).collect();
        let plain = self.of(Tool::Rsync).find(|row| row.what == "rsync, default block, new file");
        let picked =
            [(self.rsync_best(), "fewest bytes"), (self.rsync_quickest(), "least CPU"), (plain, "as it comes")];
        for (row, mark) in picked {
            let Some(row) = row else { continue };
            match shown.iter_mut().find(|(known, _)| known.what == row.what) {
                Some((_, known)) if mark == "least CPU" => *known = "fewest bytes and least CPU",
                Some(_) => {}
                None => shown.push((row, mark)),
            }
        }
        shown.extend(self.of(Tool::Download).map(|row| (row, "")));
        shown
    }

    fn markdown(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n### {}: {} to {}, {}\n", self.name, self.old, self.new, mib(self.size))?;
        writeln!(
            out,
            "| | wire, both ways | of image | rsync's best ÷ this | wall | CPU client | CPU server | rsync's CPU ÷ this \
             | anonymous | resident | written |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        )?;
        let best = self.rsync_best();
        for (row, mark) in self.shown() {
            let run = &row.median;
            let mark = if mark.is_empty() { String::new() } else { format!(" ({mark})") };
            let path = run.path.as_ref().map(|path| format!(" · {path}")).unwrap_or_default();
            let ratio = |of: fn(&Row) -> f64| match best {
                Some(best) if of(row) > 0.0 => format!("{:.2}", of(best) / of(row)),
                _ => String::new(),
            };
            let written = match (run.written, run.repaired) {
                (Some(written), Some(repaired)) if repaired > 0 => format!("{written} blocks, {repaired} repaired"),
                (Some(written), _) => format!("{written} blocks"),
                (None, _) => mib(run.client.dirtied),
            };
            writeln!(
                out,
                "| {}{path}{mark} | {} | {:.3} % | {} | {:.2} s | {:.2} s | {:.2} s | {} | {} | {} | {written} |",
                row.what,
                kib(run.wire()),
                100.0 * run.wire() as f64 / self.size as f64,
                ratio(|row| row.median.wire() as f64),
                run.client.wall,
                run.client.cpu,
                run.server.cpu,
                ratio(|row| row.median.cpu()),
                mib(run.client.anonymous),
                mib(run.client.resident),
            )?;
        }
        self.beneath(out)
    }

    /// What does not fit into the table.
    fn beneath(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        for publish in &self.publishes {
            writeln!(
                out,
                "- publishing {}: {} sent, {} stored, {:.2} s; CPU {:.2} s tool, {:.2} s server; server's anonymous memory {}",
                publish.what,
                mib(publish.sent),
                mib(publish.stored),
                publish.client.wall,
                publish.client.cpu,
                publish.server.cpu,
                mib(publish.server.anonymous)
            )?;
        }
        if let Some(made) = self.download_made {
            writeln!(out, "- `zstd -3` made the download in {:.2} s of CPU, once", made.cpu)?;
        }
        if let Some((worst, row)) = self.count_differs() {
            writeln!(
                out,
                "- cross-check: the interface counted {:+.2} % against the agent's own count at worst ({})",
                100.0 * worst,
                row.what
            )?;
        }
        self.skipped.iter().try_for_each(|skipped| writeln!(out, "- left out: {skipped}"))
    }

    /// Where the interface's count of datagrams differs most from the agent's, and by what part.
    fn count_differs(&self) -> Option<(f64, &Row)> {
        let differs = |row: &Row| {
            let wire = row.median.wire() as f64;
            Some(row.median.interface?.udp_payload() as f64 / wire - 1.0)
        };
        let all =
            self.of(Tool::Goldsync).filter(|row| row.median.wire() > 0).filter_map(|row| Some((differs(row)?, row)));
        all.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))
    }
}

impl Report {
    /// With nothing measured yet.
    pub fn new(environment: Environment) -> Self {
        Self { environment, pairs: Vec::new(), idle: None, stream: None }
    }

    /// All tables.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let at = &self.environment;
        writeln!(
            out,
            "{}, {} threads, {} of memory, Linux {}; load when it began {:.1}; rsync: {}; zstd: {}{}",
            if at.processor.is_empty() { "unnamed processor" } else { &at.processor },
            at.threads,
            mib(at.memory),
            at.kernel,
            at.load,
            at.rsync.as_deref().unwrap_or("not installed"),
            at.zstd.as_deref().unwrap_or("not installed"),
            if at.optimised { "" } else { "; NOT OPTIMISED: seconds mean nothing" },
        )?;
        self.pairs.iter().try_for_each(|pair| pair.markdown(out))?;
        self.rest(out)
    }

    fn rest(&self, out: &mut String) -> std::fmt::Result {
        if let Some(idle) = &self.idle {
            writeln!(
                out,
                "\nAn idle agent: {} anonymous ({} resident) when connected, {} ({}) after an update; {:.2} s of CPU in {} s{}.",
                mib(idle.connected.anonymous),
                mib(idle.connected.resident),
                mib(idle.after_update.anonymous),
                mib(idle.after_update.resident),
                idle.cpu,
                idle.seconds,
                idle.wire.map(|wire| format!(", {} bytes on the wire", wire.bytes)).unwrap_or_default()
            )?;
        }
        let Some(stream) = &self.stream else { return Ok(()) };
        writeln!(
            out,
            "\nOne raw QUIC stream: {:.0} MB/s ({} in {:.2} s of CPU at the receiver, {:.2} s at the sender). Cold fetches:\n",
            stream.rate / 1e6,
            mib(stream.bytes),
            stream.receiver.cpu,
            stream.sender_cpu
        )?;
        writeln!(out, "| pair | image | wire | image ÷ raw stream | wire ÷ raw stream |\n|---|--:|--:|--:|--:|")?;
        for pair in &self.pairs {
            let Some(cold) = pair.of(Tool::Goldsync).find(|row| row.what == "cold") else { continue };
            let rate = |bytes: u64| bytes as f64 / cold.median.client.wall;
            let (image, wire) = (rate(pair.size), rate(cold.median.wire()));
            writeln!(
                out,
                "| {} | {:.0} MB/s | {:.0} MB/s | {:.2} | {:.2} |",
                pair.name,
                image / 1e6,
                wire / 1e6,
                image / stream.rate,
                wire / stream.rate
            )?;
        }
        Ok(())
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::row::Run;

    fn row(tool: Tool, what: &str, received: u64, cpu: f64) -> Row {
        let client = Cost { cpu, wall: 1.0, ..Cost::default() };
        Row::of(tool, what, &[Run { received, client, ..Run::default() }])
    }

    #[test]
    fn ratios_are_to_rsync_s_best_and_each_setting_shows_once() {
        let pair = PairReport {
            name: "hotfix".into(),
            old: "old".into(),
            new: "new".into(),
            size: 1 << 20,
            rows: vec![
                row(Tool::Goldsync, "cold", 1000, 0.5),
                row(Tool::Rsync, "rsync, default block, new file", 9000, 1.0),
                row(Tool::Rsync, "rsync, 4 KiB, zstd, in place", 4000, 2.0),
                row(Tool::Rsync, "rsync, 1 KiB, in place", 8000, 3.0),
                row(Tool::Download, "whole image, zstd -3", 50_000, 0.1),
            ],
            publishes: vec![],
            download_made: None,
            skipped: vec!["nothing".into()],
        };
        let mut text = String::new();
        pair.markdown(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].contains("| 4.00 |") && lines[0].contains("cold"), "{text}");
        assert!(lines[1].contains("4 KiB, zstd, in place (fewest bytes)"), "{text}");
        assert!(lines[2].contains("default block, new file (least CPU)"), "{text}");
        assert!(text.contains("left out: nothing"));
    }
}
