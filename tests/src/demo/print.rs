//! How the demo's figures look.

use std::time::Instant;

/// A step of the story: a headline now, a line of time at its end.
pub struct Step {
    began: Instant,
}

impl Step {
    pub fn begin(what: &str) -> Self {
        println!("\n{what}");
        Self { began: Instant::now() }
    }

    pub fn note(&self, text: &str) {
        println!("    {text}");
    }

    pub fn end(self) {
        println!("    done in {:.2} s", self.began.elapsed().as_secs_f64());
    }
}

/// What a program printed, four spaces in.
pub fn indented(text: &str) {
    text.lines().for_each(|line| println!("    {line}"));
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
pub fn blocks(count: u64) -> String {
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

/// `4.1 %`
pub fn part(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// A hash, or the want of one.
pub fn hash(hash: Option<&str>) -> &str {
    hash.unwrap_or("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!((bytes(0), bytes(1023)), ("0 B".into(), "1023 B".into()));
        assert_eq!((bytes(1536), bytes(3 << 30)), ("1.5 KiB".into(), "3.0 GiB".into()));
        assert_eq!((blocks(7), blocks(999), blocks(1_234_567)), ("7".into(), "999".into(), "1,234,567".into()));
        assert_eq!((part(1, 8), part(1, 0)), ("12.5 %".into(), "100.0 %".into()));
    }
}
