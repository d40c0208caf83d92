//! What people see: a bar on a terminal, plain lines elsewhere, JSON for programs.
//!
//! Results go to standard output, all else to standard error. A reader that has gone away (`| head`) is no error.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use goldsync_proto::limits::BLOCK;
use goldsync_proto::wire::{Account, Phase, Progress};
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::args::Global;
use crate::status;
use crate::update::{Event, Events};

/// How to talk.
#[derive(Clone, Debug)]
pub struct Ui {
    json: bool,
    shown: Shown,
}

#[derive(Clone, Debug)]
enum Shown {
    Nothing,
    Lines,
    Bar(ProgressBar),
}

impl Ui {
    /// As the command line says, and the terminal allows.
    pub fn new(global: &Global) -> Self {
        let shown = if global.quiet || global.json {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            Shown::Bar(bar())
        } else {
            Shown::Lines
        };
        Self { json: global.json, shown }
    }

    /// Takes the engine's events.
    pub fn events(&self) -> Events {
        let (ui, tenth) = (self.clone(), AtomicU64::new(0));
        std::sync::Arc::new(move |event| match event {
            Event::Phase(phase) => {
                tenth.store(0, Ordering::Relaxed);
                ui.phase(phase);
            }
            Event::Progress(progress) => ui.progress(progress, &tenth),
            Event::Note(note) => ui.note(&note),
        })
    }

    /// One result: as JSON, or as the text that `text` makes.
    pub fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        self.clear();
        let line = if self.json {
            serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
        } else {
            text()
        };
        let _ = writeln!(io::stdout().lock(), "{line}");
    }

    /// An error, with the exit code that follows.
    pub fn failure(&self, message: &str, code: u8) {
        self.clear();
        if self.json {
            let value = serde_json::json!({ "error": message, "exit_code": code });
            let _ = writeln!(io::stdout().lock(), "{value}");
        }
        let _ = writeln!(io::stderr().lock(), "goldsync-agent: {message}");
    }

    /// A line for people.
    pub fn note(&self, text: &str) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Lines => drop(writeln!(io::stderr().lock(), "{text}")),
            Shown::Bar(bar) => bar.suspend(|| drop(writeln!(io::stderr().lock(), "{text}"))),
        }
    }

    fn phase(&self, phase: Phase) {
        let Some(words) = status::words(phase) else { return self.clear() };
        match &self.shown {
            Shown::Nothing => {}
            Shown::Lines => self.note(words),
            Shown::Bar(bar) => {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
                bar.set_length(0);
                bar.set_prefix(words);
                bar.set_message("");
                bar.enable_steady_tick(Duration::from_millis(250));
            }
        }
    }

    fn progress(&self, progress: Progress, tenth: &AtomicU64) {
        let Progress { done, total, received } = progress;
        match &self.shown {
            Shown::Nothing => {}
            Shown::Lines => {
                let now = (u128::from(done) * 10 / u128::from(total.max(1))) as u64;
                if now > tenth.swap(now, Ordering::Relaxed) {
                    let (done, total, received) = (BinaryBytes(done), BinaryBytes(total), BinaryBytes(received));
                    self.note(&format!("  {:>3} %  {done} of {total}, {received} received", now * 10));
                }
            }
            Shown::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
                bar.set_message(format!("{} received", BinaryBytes(received)));
            }
        }
    }

    fn clear(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.disable_steady_tick();
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let template = "{prefix:<22} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {msg}";
    // The template is a constant; were it wrong, the plain bar would do.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Bytes to standard output.
pub fn print(bytes: &[u8]) {
    let _ = io::stdout().lock().write_all(bytes);
}

/// An account as a few lines.
pub fn account(account: &Account, size: Option<u64>) -> String {
    let share = size.filter(|size| *size > 0).map(|size| {
        let percent = (account.received + account.sent) as f64 * 100.0 / size as f64;
        format!(", {percent:.2} % of the image's {}", BinaryBytes(size))
    });
    let repaired =
        if account.repaired > 0 { format!(", {} drifted ones fetched", account.repaired) } else { String::new() };
    let derived =
        if account.derived > 0 { format!(", {} of hash trees made here", account.derived) } else { String::new() };
    format!(
        "  by        {}\n  wire      {} received, {} sent{}\n  blocks    {} written, {} skipped{derived}{repaired} ({BLOCK} bytes each)\n  time      {:.1} s",
        account.path,
        BinaryBytes(account.received),
        BinaryBytes(account.sent),
        share.unwrap_or_default(),
        account.written,
        account.skipped,
        account.elapsed_ms as f64 / 1000.0,
    )
}
