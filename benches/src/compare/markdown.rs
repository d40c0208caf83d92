//! The comparison as Markdown.

use std::fmt::Write;

use super::fleet;
use super::report::{PairReport, Report};
use super::row::{Row, Tool};

impl PairReport {
    fn markdown(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n### {}: {} to {}, {}\n", self.name, self.old, self.new, mib(self.size))?;
        writeln!(
            out,
            "| | wire, both ways | of image | rsync's best ÷ this | wall | CPU client | CPU server | rsync's CPU ÷ this \
             | CPU to make, once | anonymous | resident | written |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        )?;
        let best = self.best(Tool::Rsync);
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
                "| {}{path}{mark} | {} | {:.3} % | {} | {:.2} s | {:.2} s | {:.2} s | {} | {} | {} | {} | {written} |",
                titled(row),
                kib(run.wire()),
                100.0 * run.wire() as f64 / self.size as f64,
                ratio(|row| row.median.wire() as f64),
                run.client.wall,
                run.client.cpu,
                run.server.cpu,
                ratio(|row| row.median.cpu()),
                row.made.map(|made| format!("{:.2} s", made.cpu)).unwrap_or_default(),
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
            if let Some(plans) = &publish.plans {
                writeln!(
                    out,
                    "- its plans, quick and thorough, made once for all nodes of the old release: {:.2} s of the server's CPU; its anonymous memory {}",
                    plans.cpu,
                    mib(plans.anonymous)
                )?;
            }
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
            "{}, {} threads, {} of memory, Linux {}; load when it began {:.1}{}",
            if at.processor.is_empty() { "unnamed processor" } else { &at.processor },
            at.threads,
            mib(at.memory),
            at.kernel,
            at.load,
            if at.optimised { "" } else { "; NOT OPTIMISED: seconds mean nothing" },
        )?;
        self.tools(out)?;
        self.against_the_best(out)?;
        self.pairs.iter().try_for_each(|pair| pair.markdown(out))?;
        self.rest(out)
    }

    /// Which tools, in which versions, and what counts as their bytes.
    fn tools(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n| tool | version | wire is |\n|---|---|---|")?;
        for installed in &self.environment.tools {
            let version = installed.version.as_deref().unwrap_or("**not installed: left out**");
            writeln!(out, "| {} | {version} | {} |", installed.tool.name(), installed.tool.measured())?;
        }
        Ok(())
    }

    /// The two ratios by which goldsync is judged.
    fn against_the_best(&self, out: &mut String) -> std::fmt::Result {
        let all: Vec<_> = self.pairs.iter().map(|pair| (pair.name.as_str(), pair.against_the_best())).collect();
        if all.iter().all(|(_, ratios)| ratios.iter().all(Option::is_none)) {
            return Ok(());
        }
        let cell = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        writeln!(
            out,
            "\n| bytes on the wire, as a part of the best peer's that ran | known base ÷ better of `xdelta3 -9` and `zstd -19 \
             --long=31 --patch-from` | the same, the node prefers bytes | unknown base ÷ better of rsync and zsync \
             |\n|---|--:|--:|--:|"
        )?;
        for (name, ratios) in &all {
            writeln!(out, "| {name} | {} |", ratios.map(cell).join(" | "))?;
        }
        let mean = |pick: usize| geometric_mean(&all.iter().filter_map(|(_, ratios)| ratios[pick]).collect::<Vec<_>>());
        writeln!(out, "| geometric mean | {} |", [0, 1, 2].map(|pick| cell(mean(pick))).join(" | "))
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
            let Some(cold) = pair.ours(fleet::COLD) else { continue };
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

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (sum / values.len() as f64).exp())
}

/// Our rows are situations, which say by themselves not whose they are.
fn titled(row: &Row) -> String {
    if row.tool == Tool::Goldsync { format!("**goldsync**, {}", row.what) } else { row.what.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::report::testing::pair;
    use super::*;

    #[test]
    fn ratios_are_to_rsync_s_best() {
        let pair = pair(&[
            (Tool::Goldsync, fleet::COLD, 1000, 0.5),
            (Tool::Rsync, "rsync, 4 KiB, zstd, in place", 4000, 2.0),
            (Tool::Rsync, "rsync, 1 KiB, in place", 8000, 1.0),
        ]);
        let mut text = String::new();
        pair.markdown(&mut text).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("| 4.00 |") && lines[0].contains("goldsync**, cold"), "{text}");
        assert!(lines[1].contains("4 KiB, zstd, in place (fewest bytes)"), "{text}");
        assert!(text.contains("left out: nothing"));
    }

    #[test]
    fn the_mean_of_ratios_is_the_geometric_one() {
        assert_eq!(geometric_mean(&[]), None);
        assert!((geometric_mean(&[0.5, 2.0]).unwrap() - 1.0).abs() < 1e-9);
    }
}
