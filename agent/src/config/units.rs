//! Sizes and times as people write them: `"4 GiB"`, `"90 s"`. Whole numbers only; no unit is guessed.

use std::time::Duration;

use serde::Deserialize;

const SIZES: &[(&str, u64)] = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const TIMES: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A number of bytes, or a text with a unit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

impl Size {
    /// In bytes, or what is wrong with it.
    pub(super) fn bytes(&self) -> Result<u64, String> {
        match self {
            Self::Bytes(bytes) => Ok(*bytes),
            Self::Text(text) => scaled(text, SIZES)
                .ok_or_else(|| format!("is {text:?}; write bytes, or a size like \"512 MiB\" or \"4 GiB\"")),
        }
    }
}

/// A span of time, or what is wrong with it.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("is {text:?}; write a time like \"500 ms\", \"90 s\", \"30 min\" or \"2 h\"");
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    scaled(text, TIMES).map(Duration::from_millis).ok_or_else(refuse)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_times_are_read_exactly() {
        let size = |text: &str| Size::Text(text.into()).bytes();
        assert_eq!(size("4 GiB"), Ok(4 << 30));
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(Size::Bytes(4096).bytes(), Ok(4096));
        for bad in ["", "4", "4 GB", "GiB", "-1 GiB", "1.5 GiB", "99999999999 TiB", "4 gib"] {
            assert!(size(bad).unwrap_err().contains("4 GiB"), "{bad}");
        }
        assert_eq!(duration("90 s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30min"), Ok(Duration::from_secs(1800)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for bad in ["", "90", "s", "1 m", "1 week", "-1 s"] {
            assert!(duration(bad).unwrap_err().contains("90 s"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends_in_a_value_or_an_error(text: String) {
            let _ = Size::Text(text.clone()).bytes();
            let _ = duration(&text);
        }
    }
}
