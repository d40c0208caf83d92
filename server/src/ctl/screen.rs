//! Where text goes: results to standard output, progress and notes to standard error.
//!
//! A reader that goes away (`goldsync release list | head -1`) ends the tool quietly with exit 0; any other trouble
//! with standard output, a full disk behind a redirection say, is a failure, because the result is what was asked for.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::fail::{Code, Failure, Outcome};
use super::table::{Table, plain};

/// Writes a result; `text` ends in a newline or gets one.
pub fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    let written =
        out.write_all(text.as_bytes()).and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") });
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Disk, format!("cannot write the result to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a result as JSON.
pub fn print_json<T: Serialize + ?Sized>(value: &T) -> Outcome {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Code::Failed, format!("cannot write the result as JSON: {error}")))?;
    print(&text)
}

/// Writes a table, or `nothing` in its place.
pub fn print_table(table: &Table, nothing: &str) -> Outcome {
    if table.is_empty() { print(nothing) } else { print(&table.render(width())) }
}

/// Says something beside the result. Trouble with standard error is nobody's to hear of.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A failure as people see it.
pub fn failure(failure: &Failure) {
    note(&format!("goldsync: {}", lines(&failure.message)));
    if let Some(remedy) = &failure.remedy {
        note(&format!("          {}", lines(remedy)));
    }
}

/// Several lines may be meant; control characters never are.
fn lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n          ")
}

/// Whether somebody watches standard error.
pub fn watched() -> bool {
    io::stderr().is_terminal()
}

/// Characters in a line of standard output, if that is a terminal.
pub fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let told = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    Some(told.or_else(|| asked(libc::STDOUT_FILENO)).unwrap_or(80).max(40))
}

/// Lines of the terminal behind standard error.
pub fn height() -> usize {
    window(libc::STDERR_FILENO).map_or(24, |window| usize::from(window.ws_row)).max(8)
}

fn asked(fd: i32) -> Option<usize> {
    window(fd).map(|window| usize::from(window.ws_col)).filter(|columns| *columns > 0)
}

fn window(fd: i32) -> Option<libc::winsize> {
    let mut window = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` to the address given, and `window` lives until the call returns.
    let answer = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut window) };
    (answer == 0).then_some(window)
}
