//! What goldsync is meant to be, held against what was measured: ratios within one run, pair by pair.
//!
//! Every aim is an upper bound, on each pair, on the geometric mean over all, or both. An aim whose peer or ruler did not run has
//! no value, and says so; one of two peers that is missing is named.

use serde::Serialize;

use super::fleet::{self, forecast};
use super::report::PairReport;
use super::row::Tool;

/// Aims of the engine's stages, which no whole update shows.
pub const ELSEWHERE: &str = "Two aims are stages of the engine, which `cargo bench -p goldsync-benches` measures: the aligned pass (`aligned: hash and \
     look up`, at least 0.6 in the last column: of BLAKE3 over the same bytes on as many threads), and the rolling scan where nothing \
     matches (at least 1 GB/s a core with AVX2, and 8 times fast_rsync).";

/// An aim, and how near it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Aim {
    /// What is measured.
    pub what: &'static str,
    /// Of what kind the values are; empty for plain ratios.
    pub unit: &'static str,
    /// At most this on every pair.
    pub each: Option<f64>,
    /// At most this on the geometric mean.
    pub mean: Option<f64>,
    /// What came.
    pub pairs: Vec<Value>,
    /// Of those, the geometric mean, where it is asked for.
    pub geometric_mean: Option<f64>,
    /// Whether all values keep to the bounds; `None` if there are none.
    pub met: Option<bool>,
    /// What is to be known of it.
    pub notes: Vec<String>,
    /// Digits behind the point.
    #[serde(skip)]
    pub digits: usize,
}

/// A pair's value.
#[derive(Clone, Debug, Serialize)]
pub struct Value {
    /// The pair.
    pub pair: String,
    /// The value; `None` if it was not measured, or the aim is not for that pair.
    pub value: Option<f64>,
}

impl Aim {
    fn new(what: &'static str, pairs: &[PairReport], value: impl Fn(&PairReport) -> Option<f64>) -> Self {
        let value =
            |pair: &PairReport| Value { pair: pair.name.clone(), value: value(pair).filter(|value| value.is_finite()) };
        Self { what, pairs: pairs.iter().map(value).collect(), digits: 2, ..Self::default() }
    }

    fn each(self, at_most: f64) -> Self {
        Self { each: Some(at_most), ..self }
    }

    fn on_average(self, at_most: f64) -> Self {
        let values: Vec<f64> = self.pairs.iter().filter_map(|pair| pair.value).collect();
        Self { mean: Some(at_most), geometric_mean: geometric_mean(&values), ..self }
    }

    fn in_unit(self, unit: &'static str, digits: usize) -> Self {
        Self { unit, digits, ..self }
    }

    fn note(mut self, note: Option<String>) -> Self {
        self.notes.extend(note);
        self
    }

    /// `≤ 0.62 on average, ≤ 0.75 each`
    pub fn bound(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        match (self.mean, self.each) {
            (Some(mean), Some(each)) => format!("≤ {mean}{unit} on average, ≤ {each}{unit} each"),
            (Some(bound), None) | (None, Some(bound)) => format!("≤ {bound}{unit}"),
            (None, None) => String::new(),
        }
    }

    /// Where it was missed, and by how much.
    fn missed(&self) -> Vec<String> {
        let mean = self.geometric_mean.map(|mean| ("the mean", mean, self.mean));
        let values = self.pairs.iter().filter_map(|pair| Some((pair.pair.as_str(), pair.value?, self.each)));
        let missed = mean.into_iter().chain(values).filter_map(|(what, value, bound)| {
            let bound = bound.filter(|bound| value > *bound)?;
            Some(format!("{what} by {:.0} %", 100.0 * (value / bound - 1.0)))
        });
        missed.collect()
    }

    /// With the judgement.
    fn judged(self) -> Self {
        let measured = self.pairs.iter().any(|pair| pair.value.is_some());
        Self { met: measured.then(|| self.missed().is_empty()), ..self }
    }

    /// Whether it was met, where not, and by how much, and what is to be known of it.
    pub fn verdict(&self) -> String {
        let verdict = match self.met {
            None => "not measured".to_owned(),
            Some(true) => "met".to_owned(),
            Some(false) => format!("**missed**: {}", self.missed().join(", ")),
        };
        [verdict].into_iter().chain(self.notes.iter().cloned()).collect::<Vec<_>>().join("; ")
    }
}

/// All aims.
pub fn of(pairs: &[PairReport]) -> Vec<Aim> {
    [wire(pairs), time(pairs), server(pairs)].into_iter().flatten().map(Aim::judged).collect()
}

fn wire(pairs: &[PairReport]) -> Vec<Aim> {
    let known = |what, row: &'static str, squashfs: bool| {
        let concerned = move |pair: &PairReport| pair.ours(row).is_some() && pair.is_squashfs() == squashfs;
        Aim::new(what, pairs, |pair| pair.part(row, pair.patches().0).filter(|_| concerned(pair)))
            .note(missing(pairs.iter().filter(|pair| concerned(pair)), |pair| pair.patches().1))
    };
    vec![
        known(
            "wire, known base, the node prefers bytes ÷ better of `xdelta3 -9` and `zstd -19 --long=31 --patch-from`; ext4 and erofs",
            fleet::FRUGAL,
            false,
        )
        .on_average(0.62)
        .each(0.75),
        known("the same, the node prefers time (as it comes)", fleet::KNOWN, false).on_average(0.62).each(0.75),
        known("the same, squashfs, the node prefers bytes", fleet::FRUGAL, true).each(1.0),
        known("the same, squashfs, the node prefers time", fleet::KNOWN, true).each(1.0),
        Aim::new("wire, unknown base ÷ better of rsync and zsync at their best block size", pairs, |pair| {
            pair.part(fleet::UNKNOWN, pair.searches().0)
        })
        .each(0.9)
        .note(missing(pairs.iter().filter(|pair| pair.ours(fleet::UNKNOWN).is_some()), |pair| pair.searches().1)),
        Aim::new("wire, 200 blocks drifted − wire, known base", pairs, |pair| {
            let [drifted, known] = [fleet::DRIFTED, fleet::KNOWN].map(|row| pair.ours(row));
            Some((drifted?.median.wire() as f64 - known?.median.wire() as f64) / 1024.0)
        })
        .each(400.0)
        .in_unit("KiB", 0),
        Aim::new("up to date: wire beyond the handshake", pairs, |pair| {
            let run = &pair.ours(fleet::NO_OP)?.median;
            Some(run.wire().checked_sub(run.handshake?)? as f64)
        })
        .each(2048.0)
        .in_unit("bytes", 0),
        // Measured by the delay of a slow line, which is no whole number of trips.
        Aim::new("up to date: round trips after connecting", pairs, |pair| {
            Some(pair.beside.round_trips?.max(0.0).round())
        })
        .each(1.0)
        .in_unit("", 0),
    ]
}

fn time(pairs: &[PairReport]) -> Vec<Aim> {
    let wall = |row: &'static str| {
        move |pair: &PairReport| Some(pair.ours(row)?.median.client.wall / pair.beside.floor.as_ref()?.wall())
    };
    let cpu = |row: &'static str| {
        move |pair: &PairReport| Some(pair.ours(row)?.median.client.cpu / pair.best(Tool::Rsync)?.median.cpu())
    };
    vec![
        Aim::new("agent wall, known base, standby empty ÷ `cp` + `b3sum` of the new image", pairs, wall(fleet::KNOWN))
            .each(1.5),
        Aim::new("the same, standby holds the release before", pairs, wall(fleet::STEADY)).each(1.5),
        Aim::new(
            "agent CPU, known base ÷ rsync's two sides (its setting with the fewest bytes)",
            pairs,
            cpu(fleet::KNOWN),
        )
        .each(0.1),
        Aim::new("the same, standby holds the release before", pairs, cpu(fleet::STEADY)).each(0.1),
        Aim::new("agent's anonymous memory, any situation", pairs, |pair| {
            let most = pair.of(Tool::Goldsync).map(|row| row.median.client.anonymous).max()?;
            Some(most as f64 / f64::from(1 << 20))
        })
        .each(64.0)
        .in_unit("MiB", 1),
    ]
}

fn server(pairs: &[PairReport]) -> Vec<Aim> {
    let making = |way: &'static str| {
        move |pair: &PairReport| {
            let gib = pair.size as f64 / f64::from(1 << 30);
            Some(pair.beside.forecast.as_ref()?.way(way)?.server_cpu? / gib)
        }
    };
    vec![
        Aim::new("server CPU for a node, plan made ÷ as many bytes by quinn alone", pairs, |pair| {
            let served = pair.beside.served.as_ref()?;
            Some(served.cpu / served.plain.cpu)
        })
        .each(1.3),
        Aim::new("making a quick plan, CPU for a GiB of image", pairs, making(forecast::QUICK))
            .each(15.0)
            .in_unit("s", 1),
        Aim::new("making a thorough plan, likewise", pairs, making(forecast::THOROUGH)).each(90.0).in_unit("s", 1),
    ]
}

/// Which peers are missing, and on which pairs.
fn missing<'a>(
    pairs: impl Iterator<Item = &'a PairReport>,
    of: impl Fn(&PairReport) -> Vec<&'static str>,
) -> Option<String> {
    let without = pairs.map(|pair| (&pair.name, of(pair))).filter(|(_, names)| !names.is_empty());
    let without: Vec<String> = without.map(|(pair, names)| format!("{pair} without {}", names.join(" and "))).collect();
    (!without.is_empty()).then(|| without.join(", "))
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (sum / values.len() as f64).exp())
}

impl PairReport {
    /// One of our rows' bytes as a part of `peers'`.
    fn part(&self, row: &str, peers: Option<u64>) -> Option<f64> {
        self.ours(row).map(|row| row.median.wire()).zip(peers).map(|(ours, peers)| ours as f64 / peers as f64)
    }

    fn is_squashfs(&self) -> bool {
        let forecast = self.beside.forecast.as_ref();
        forecast.is_some_and(|forecast| forecast.new.file_system.as_deref() == Some("squashfs"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::testing::pair;
    use super::*;

    #[test]
    fn an_aim_says_where_it_is_missed_and_by_how_much() {
        let value = |name: &str, value| Value { pair: name.into(), value };
        let aim = Aim {
            what: "bytes",
            pairs: vec![value("a", Some(0.5)), value("b", Some(0.9)), value("c", None)],
            ..Aim::default()
        };
        let aim = aim.on_average(0.62).each(0.75).judged();
        assert_eq!(aim.bound(), "≤ 0.62 on average, ≤ 0.75 each");
        assert_eq!(aim.verdict(), "**missed**: the mean by 8 %, b by 20 %");
        assert_eq!(Aim { mean: Some(0.7), each: None, ..aim.clone() }.judged().verdict(), "met");
        let none = Aim { pairs: vec![value("c", None)], geometric_mean: None, ..aim }.judged();
        assert_eq!(none.verdict(), "not measured");
    }

    #[test]
    fn the_better_of_the_peers_that_ran_is_the_measure_and_the_one_that_did_not_is_named() {
        let pairs = [pair(&[
            (Tool::Goldsync, fleet::FRUGAL, 600, 0.5),
            (Tool::Goldsync, fleet::UNKNOWN, 950, 0.5),
            (Tool::Rsync, "rsync, 1 KiB, in place", 1000, 1.0),
            (Tool::Zsync, "zsync, 4 KiB", 2000, 1.0),
            (Tool::Xdelta3, "xdelta3 -9", 1000, 0.5),
        ])];
        let aims = of(&pairs);
        let verdicts: Vec<String> = aims.iter().map(Aim::verdict).collect();
        assert_eq!(aims[0].geometric_mean, Some(0.6));
        assert_eq!(verdicts[0], "met; hotfix without zstd --patch-from -19 --long=31");
        assert_eq!(verdicts[1], "not measured");
        assert_eq!(verdicts[4], "**missed**: hotfix by 6 %");
    }

    #[test]
    fn the_mean_of_ratios_is_the_geometric_one() {
        assert_eq!(geometric_mean(&[]), None);
        assert!((geometric_mean(&[0.5, 2.0]).unwrap() - 1.0).abs() < 1e-9);
    }
}
