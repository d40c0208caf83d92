//! How the demo's figures look.

use std::time::Instant;

/// Where the story goes.
#[derive(Clone, Copy, Debug)]
pub struct Voice {
    /// Standard output is for JSON.
    pub aside: bool,
}

impl Voice {
    /// A line of the story.
    pub fn say(self, line: &str) {
        if self.aside { eprintln!("{line}") } else { println!("{line}") }
    }

    /// What a program printed, or several lines, four spaces in.
    pub fn indented(self, text: &str) {
        text.lines().for_each(|line| self.say(&format!("    {line}")));
    }

    /// A step begins: a headline.
    pub fn step(self, what: &str) -> Step {
        self.say(&format!("\n{what}"));
        Step { voice: self, began: Instant::now() }
    }
}

/// A step of the story.
#[derive(Debug)]
pub struct Step {
    voice: Voice,
    began: Instant,
}

impl Step {
    /// Something worth knowing.
    pub fn note(&self, text: &str) {
        self.voice.indented(text);
    }

    /// How long it took.
    pub fn end(self) {
        self.voice.say(&format!("    [{:.2} s]", self.began.elapsed().as_secs_f64()));
    }
}

/// `41.2 MiB`
pub fn bytes(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

/// `25,900`
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `4.10 %`
pub fn part(part: u64, whole: u64) -> String {
    format!("{:.2} %", 100.0 * part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!((bytes(0), bytes(1023)), ("0 B".into(), "1023 B".into()));
        assert_eq!((bytes(1536), bytes(3 << 30)), ("1.5 KiB".into(), "3.0 GiB".into()));
        assert_eq!((count(7), count(999), count(1_234_567)), ("7".into(), "999".into(), "1,234,567".into()));
        assert_eq!((part(1, 8), part(1, 0)), ("12.50 %".into(), "100.00 %".into()));
    }
}
