//! What a virtual machine prints: bytes into lines, and the lines that are meant for the test.
//!
//! Firmware, loaders, the kernel and programs all write to one serial line, with colours and cursor movements. A line for the
//! test carries a *mark*: `[[up web:2 b]]`, anywhere in it, because a kernel message may have come between.

/// The longest line that is kept: a loader that redraws its screen without end must not fill the memory.
const LONGEST: usize = 4096;

/// Bytes on their way to becoming lines.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes what came, and returns the lines that are complete now, plain.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            if *byte == b'\n' || self.rest.len() == LONGEST {
                lines.push(plain(&self.rest));
                self.rest.clear();
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.rest.push(*byte);
            }
        }
        lines.retain(|line| !line.is_empty());
        lines
    }

    /// What came after the last line's end: a prompt, or what was being said when the power went.
    pub fn rest(&self) -> String {
        plain(&self.rest)
    }
}

/// A line without control sequences.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            // ESC [ parameters letter, or ESC and one letter.
            if letters.next() == Some('[') {
                letters.by_ref().find(|letter| ('@'..='~').contains(letter));
            }
        } else if !letter.is_control() {
            out.push(letter);
        }
    }
    out.trim().to_owned()
}

/// The mark in a line.
pub fn mark(line: &str) -> Option<&str> {
    let (_, after) = line.split_once("[[")?;
    after.split_once("]]").map(|(mark, _)| mark)
}

/// What follows the mark `name`: `up web:2 b` with the name `up` gives `web:2 b`.
pub fn marked<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let after = mark(line)?.strip_prefix(name)?;
    if after.is_empty() { Some("") } else { after.strip_prefix(' ') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_the_bytes_came() {
        let text = b"one\r\n\r\n\x1b[2J\x1b[01;01Htwo \x1b[0mthree\nfo";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut found = lines.push(&text[..cut]);
            found.extend(lines.push(&text[cut..]));
            assert_eq!(found, ["one", "two three"], "cut at {cut}");
            assert_eq!(lines.rest(), "fo");
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Lines::default();
        let found = lines.push(&[b'x'; 3 * LONGEST]);
        assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [LONGEST, LONGEST]);
    }

    #[test]
    fn odd_bytes_do_no_harm() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"\xff\x1b[\n\x1b\n\x1b[31\n"), ["\u{fffd}"]);
    }

    #[test]
    fn marks_are_found_anywhere_and_by_whole_words() {
        assert_eq!(mark("[    4.2] x [[up web:2 b]] y"), Some("up web:2 b"));
        assert_eq!(mark("[[torn"), None);
        for (line, name, expected) in [
            ("[[up web:2 b]]", "up", Some("web:2 b")),
            ("[[upper]]", "up", None),
            ("[[synced]]", "synced", Some("")),
            ("up web:2", "up", None),
        ] {
            assert_eq!(marked(line, name), expected, "{line} {name}");
        }
    }
}
