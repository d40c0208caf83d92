//! The comparison as Markdown.

use std::fmt::Write;

use super::aims;
use super::fleet::{self, forecast};
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
                "| {}{path}{mark} | {} | {:.3} % | {} | {:.2} s | {:.2} s | {:.3} s | {} | {} | {} | {} | {written} |",
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
        for publish in &self.beside.publishes {
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
        self.forecast(out)?;
        if let Some(floor) = &self.beside.floor {
            writeln!(
                out,
                "- `cp` of the new image {:.2} s, `b3sum` of the copy on {} threads {:.2} s ({})",
                floor.copy.wall, floor.threads, floor.hash.wall, floor.version
            )?;
        }
        if let Some(served) = &self.beside.served {
            writeln!(
                out,
                "- {} nodes, one after the other, from the plan that was made: {:.2} ms of the server's CPU each, {} received; quinn \
                 alone, as many bytes and connections: {:.2} ms, {} received; a node with nothing to do: {:.2} ms of the server's",
                served.updates,
                1000.0 * served.cpu,
                kib(served.received),
                1000.0 * served.plain.cpu,
                kib(served.plain.received),
                1000.0 * self.ours(fleet::NO_OP).map_or(0.0, |row| row.median.server.cpu)
            )?;
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

    /// What `goldsync bench` says, beside what came.
    fn forecast(&self, out: &mut String) -> std::fmt::Result {
        let Some(forecast) = &self.beside.forecast else { return Ok(()) };
        let ways = [
            (forecast::QUICK, fleet::KNOWN),
            (forecast::THOROUGH, fleet::FRUGAL),
            (forecast::UNKNOWN, fleet::UNKNOWN),
            (forecast::COLD, fleet::COLD),
        ];
        let beside = ways.into_iter().filter_map(|(way, row)| {
            let (foretold, came) = (forecast.way(way)?.wire_estimated, self.ours(row)?.median.wire());
            Some(format!("{way} {} ({:+.1} %)", kib(foretold), 100.0 * (foretold as f64 / came as f64 - 1.0)))
        });
        let beside: Vec<String> = beside.collect();
        writeln!(
            out,
            "- `goldsync bench` foretold, against what came: {}; {:.2} s of CPU, {} anonymous",
            beside.join(", "),
            forecast.cost.cpu,
            mib(forecast.cost.anonymous)
        )
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
        self.aims(out)?;
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

    /// What goldsync is meant to be, pair by pair.
    fn aims(&self, out: &mut String) -> std::fmt::Result {
        let aims = aims::of(&self.pairs);
        if aims.iter().all(|aim| aim.pairs.iter().all(|pair| pair.value.is_none())) {
            return Ok(());
        }
        let names: String = self.pairs.iter().map(|pair| format!(" {} |", pair.name)).collect();
        let rule = "--:|".repeat(self.pairs.len() + 2);
        writeln!(out, "\n## Aims\n\n| what | aim |{names} geometric mean | |\n|---|---|{rule}---|")?;
        for aim in &aims {
            let cell =
                |value: Option<f64>| value.map(|value| format!(" {value:.*} |", aim.digits)).unwrap_or(" |".into());
            let cells: String = aim.pairs.iter().map(|pair| cell(pair.value)).collect();
            writeln!(out, "| {} | {} |{cells}{} {} |", aim.what, aim.bound(), cell(aim.geometric_mean), aim.verdict())?;
        }
        writeln!(out, "\n{}", aims::ELSEWHERE)
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
}
