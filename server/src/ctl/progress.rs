//! Progress for whoever watches: a bar on a terminal, now and then a line off one, nothing if asked to be quiet.
//!
//! All of it goes to standard error. A line off a terminal says the same as the bar, so that a CI log is readable.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::screen;
use super::show;

/// Between two lines off a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A moving bar.
    Bar,
    /// Plain lines.
    Lines,
    /// Nothing.
    Quiet,
}

impl Manner {
    /// What fits this run.
    pub fn fitting(quiet: bool) -> Self {
        match (quiet, screen::watched()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bar,
            (false, false) => Self::Lines,
        }
    }

    /// Says a sentence between two bars.
    pub fn note(self, text: &str) {
        if self != Self::Quiet {
            screen::note(text);
        }
    }
}

/// The progress of one stage, in bytes. May be fed from any thread.
#[derive(Debug)]
pub struct Stage {
    name: &'static str,
    total: u64,
    done: AtomicU64,
    began: Instant,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines { last: Mutex<Instant> },
    Nothing,
}

impl Stage {
    /// A stage of `total` bytes.
    pub fn begin(manner: Manner, name: &'static str, total: u64) -> Self {
        let shown = match manner {
            Manner::Bar => Shown::Bar(bar(name, total)),
            Manner::Lines => Shown::Lines { last: Mutex::new(Instant::now()) },
            Manner::Quiet => Shown::Nothing,
        };
        Self { name, total, done: AtomicU64::new(0), began: Instant::now(), shown }
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.shown {
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Lines { last } => {
                // Whoever finds the lock taken need not wait: somebody else is writing that line.
                if let Ok(mut last) = last.try_lock()
                    && last.elapsed() >= LINE_EVERY
                {
                    *last = Instant::now();
                    screen::note(&line(self.name, done, self.total, self.began.elapsed()));
                }
            }
            Shown::Nothing => {}
        }
    }

    /// The stage is over: its bar goes, a line says what it came to.
    pub fn end(&self) {
        let done = self.done.load(Ordering::Relaxed);
        self.clear();
        if matches!(self.shown, Shown::Nothing) {
            return;
        }
        screen::note(&summary(self.name, done, self.began.elapsed()));
    }
}

impl Stage {
    /// Takes the bar away: after an error or Ctrl-C the last thing on the screen is the reason, not half a bar.
    pub fn clear(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A stage that cannot be measured: the server is at work.
#[derive(Debug)]
pub struct Waiting(Option<ProgressBar>);

impl Waiting {
    /// Says what is waited for.
    pub fn begin(manner: Manner, what: &'static str) -> Self {
        match manner {
            Manner::Bar => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(style("  {msg} {elapsed} {spinner}"));
                bar.set_message(what);
                bar.enable_steady_tick(Duration::from_millis(200));
                Self(Some(bar))
            }
            Manner::Lines => {
                screen::note(&format!("  {what} ..."));
                Self(None)
            }
            Manner::Quiet => Self(None),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn bar(name: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(
        style("  {prefix:8} [{bar:24}] {done:>9} / {total:9} {rate:>11}  {left} left")
            .with_key("done", |state: &ProgressState, w: &mut dyn std::fmt::Write| put(w, show::bytes(state.pos())))
            .with_key("total", |state: &ProgressState, w: &mut dyn std::fmt::Write| {
                put(w, show::bytes(state.len().unwrap_or(0)));
            })
            .with_key("rate", |state: &ProgressState, w: &mut dyn std::fmt::Write| {
                put(w, format!("{}/s", show::bytes(state.per_sec() as u64)));
            })
            .with_key("left", |state: &ProgressState, w: &mut dyn std::fmt::Write| {
                put(w, show::span(Duration::from_secs(state.eta().as_secs())));
            }),
    );
    bar.set_prefix(name);
    bar
}

fn put(w: &mut dyn std::fmt::Write, text: String) {
    let _ = w.write_str(&text);
}

/// A style from a template of ours; one that does not parse (a slip, caught by the test below) is the default bar.
pub fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
        .tick_chars("|/-\\ ")
}

fn line(name: &str, done: u64, total: u64, spent: Duration) -> String {
    let rate = done as f64 / spent.as_secs_f64().max(0.001);
    let left = Duration::from_secs_f64((total.saturating_sub(done) as f64 / rate.max(1.0)).min(1e9));
    let percent = (done as f64 / total.max(1) as f64 * 100.0).floor();
    format!(
        "  {name:8} {percent:>3.0} %  {} / {}  {}/s  {} left",
        show::bytes(done),
        show::bytes(total),
        show::bytes(rate as u64),
        show::span(Duration::from_secs(left.as_secs()))
    )
}

fn summary(name: &str, done: u64, spent: Duration) -> String {
    let rate = done as f64 / spent.as_secs_f64().max(0.001);
    format!("  {name:8} {} in {} ({}/s)", show::bytes(done), show::span(spent), show::bytes(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_parse() {
        for template in
            ["  {msg} {elapsed} {spinner}", "  {prefix:8} [{bar:24}] {done:>9} / {total:9} {rate:>11}  {left} left"]
        {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn a_line_says_what_the_bar_says() {
        let text = line("hash", 40 << 20, 160 << 20, Duration::from_secs(4));
        assert_eq!(text, "  hash      25 %  40 MiB / 160 MiB  10 MiB/s  12 s left");
        assert_eq!(line("hash", 0, 0, Duration::ZERO), "  hash       0 %  0 B / 0 B  0 B/s  0 ms left");
        assert_eq!(summary("send", 1 << 20, Duration::from_millis(500)), "  send     1 MiB in 500 ms (2 MiB/s)");
    }

    #[test]
    fn a_stage_counts_from_any_thread_and_may_be_quiet() {
        let stage = Stage::begin(Manner::Quiet, "hash", 100);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| stage.advance(25));
            }
        });
        assert_eq!(stage.done.load(Ordering::Relaxed), 100);
        stage.end();
    }
}
