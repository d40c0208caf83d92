//! A stopwatch for stages: how long one pass takes, as the median of many, beside rulers taken in the same run.

use std::time::{Duration, Instant};

/// Time spent on one stage, and passes at least.
const BUDGET: Duration = Duration::from_millis(700);
const PASSES: usize = 5;

/// How much image one pass stands for.
#[derive(Clone, Debug)]
pub struct Bytes {
    bytes: usize,
    note: String,
}

impl Bytes {
    /// As many as there are here.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len(), note: String::new() }
    }

    /// With a remark for the table.
    pub fn note(self, note: &str) -> Self {
        Self { note: note.to_owned(), ..self }
    }
}

#[derive(Debug)]
struct Line {
    name: String,
    rate: f64,
    spread: f64,
    note: String,
}

/// The stages measured so far.
#[derive(Debug, Default)]
pub struct Bench {
    filter: Option<String>,
    rulers: Vec<f64>,
    lines: Vec<Line>,
}

impl Bench {
    /// Only stages with `filter` in their name; rulers always.
    pub fn new(filter: Option<String>) -> Self {
        Self { filter, ..Self::default() }
    }

    /// Measures what the others are held against.
    pub fn ruler(&mut self, name: &str, bytes: Bytes, pass: impl FnMut()) {
        let line = measure(name, bytes, pass);
        self.rulers.push(line.rate);
        self.lines.push(line);
    }

    /// Measures a stage.
    pub fn stage(&mut self, name: &str, bytes: Bytes, pass: impl FnMut()) {
        if self.filter.as_ref().is_none_or(|word| name.contains(word.as_str())) {
            eprintln!("  {name}");
            self.lines.push(measure(name, bytes, pass));
        }
    }

    /// The table.
    pub fn print(&self) {
        let columns = ["/ copy", "/ blake3", "/ b3 all", "/ f_rsync"].map(|column| format!(" {column:>9}")).concat();
        println!("{:<50} {:>9} {:>8}{columns}", "stage", "GB/s", "spread");
        for Line { name, rate, spread, note } in &self.lines {
            let ratio = |at: usize| self.rulers.get(at).map_or(0.0, |ruler| rate / ruler);
            let spread = 100.0 * spread;
            let ratios = [0, 1, 2, 3].map(|at| format!(" {:>9.3}", ratio(at))).concat();
            println!("{name:<50} {rate:>9.3} {spread:>6.0} %{ratios}  {note}");
        }
    }
}

fn measure(name: &str, bytes: Bytes, mut pass: impl FnMut()) -> Line {
    pass(); // touches every page, fills the caches that will be full in real use
    let (begun, mut times) = (Instant::now(), Vec::new());
    while times.len() < PASSES || begun.elapsed() < BUDGET {
        let start = Instant::now();
        pass();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].max(1e-9);
    let (median, spread) = (at(0.5), (at(0.75) - at(0.25)) / at(0.5));
    Line { name: name.to_owned(), rate: bytes.bytes as f64 / median / 1e9, spread, note: bytes.note }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_the_filter_does_not_name_is_not_run() {
        let mut bench = Bench::new(Some("pack".into()));
        bench.stage("plan: make", Bytes::of(&[0; 8]), || panic!("not asked for"));
        let mut passes = 0;
        bench.stage("pack: compress", Bytes::of(&[0; 8]), || passes += 1);
        assert!(passes > PASSES && bench.lines.len() == 1 && bench.lines[0].rate > 0.0);
    }
}
