//! Values with units, as people write them in `server.toml` and `agent.toml`: `"7 days"`, `"64 MiB"`.
//!
//! A bare number is refused: nobody remembers whether it meant seconds. Only `"0"` is the same in every unit. One number and
//! one unit, no sums.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a [`Span`] or a [`Size`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a span.
    #[error(
        "{text:?} is not a span of time: write a whole number and a unit, for example \"90 s\", \"15 min\", \"1 hour\" or \"7 days\""
    )]
    Span {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Not a size.
    #[error(
        "{text:?} is not a size: write a whole number and a unit, for example \"512 KiB\", \"64 MiB\" or \"2 GiB\""
    )]
    Size {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Not a rate.
    #[error(
        "{text:?} is not a rate: write bytes in a second and the span that they are counted over, for example \"256 B/s over 2 min\""
    )]
    Rate {
        /// What was given, cut to 80 characters.
        text: String,
    },
}

/// A span of time: `"45 s"`, `"7 days"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

const SPANS: [(&str, u64); 16] = [
    ("ms", 1),
    ("s", 1000),
    ("sec", 1000),
    ("second", 1000),
    ("seconds", 1000),
    ("min", 60_000),
    ("minute", 60_000),
    ("minutes", 60_000),
    ("h", 3_600_000),
    ("hour", 3_600_000),
    ("hours", 3_600_000),
    ("d", 86_400_000),
    ("day", 86_400_000),
    ("days", 86_400_000),
    ("week", 7 * 86_400_000),
    ("weeks", 7 * 86_400_000),
];

const SIZES: [(&str, u64); 6] =
    [("B", 1), ("bytes", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Splits `"7 days"` and multiplies; `None` for anything else.
fn measure(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if text == "0" {
        return Some(0);
    }
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let ms = measure(text, &SPANS).ok_or_else(|| UnitError::Span { text: short(text) })?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units =
            [(86_400_000, "day", "days"), (3_600_000, "hour", "hours"), (60_000, "min", "min"), (1000, "s", "s")];
        match units.iter().find(|(unit, _, _)| ms > 0 && ms.is_multiple_of(*unit)) {
            Some((unit, one, _)) if ms == *unit => write!(f, "1 {one}"),
            Some((unit, _, many)) => write!(f, "{} {many}", ms / unit),
            None => write!(f, "{ms} ms"),
        }
    }
}

/// A number of bytes: `"64 MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        measure(text, &SIZES).map(Self).ok_or_else(|| UnitError::Size { text: short(text) })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = SIZES.iter().rev().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit) && *unit > 1);
        match found {
            Some((name, unit)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Bytes in a second, counted over a span: `"256 B/s over 2 min"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes in a second.
    pub bytes: u64,
    /// What they are counted over.
    pub over: Duration,
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parts = || {
            let (rate, over) = text.split_once(" over ")?;
            let bytes = measure(rate.trim().strip_suffix("/s")?, &SIZES)?;
            Some(Self { bytes, over: over.parse::<Span>().ok()?.0 })
        };
        parts().ok_or_else(|| UnitError::Rate { text: short(text) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s over {}", Size(self.bytes), Span(self.over))
    }
}

macro_rules! as_text {
    ($type:ty, $what:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
    };
}

as_text!(Span, "a text with a unit, for example \"7 days\"");
as_text!(Size, "a text with a unit, for example \"64 MiB\"");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_and_sizes_are_read_with_their_units() {
        for (text, ms) in [
            ("45 s", 45_000),
            ("90s", 90_000),
            ("7 days", 604_800_000),
            (" 1 hour ", 3_600_000),
            ("250 ms", 250),
            ("6 h", 21_600_000),
            ("6 hours", 21_600_000),
            ("30min", 1_800_000),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<Span>().unwrap().0.as_millis(), ms, "{text}");
        }
        for (text, bytes) in [("0", 0), ("64 MiB", 64 << 20), ("1 B", 1), ("512KiB", 512 << 10)] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(bytes), "{text}");
        }
    }

    #[test]
    fn what_has_no_unit_or_does_not_fit_is_refused_with_the_cure() {
        for bad in
            ["", "7", "days", "-1 s", "1.5 h", "7 fortnights", "99999999999999999999 s", "18446744073709551615 d"]
        {
            let error = bad.parse::<Span>().unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("7 days"), "{error}");
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_a_size_and_a_span() {
        let rate = Rate { bytes: 256, over: Duration::from_secs(120) };
        for text in ["256 B/s over 2 min", "256B/s over 120 s", " 256 bytes/s over 2 minutes "] {
            assert_eq!(text.parse(), Ok(rate), "{text}");
        }
        for bad in ["", "256", "256 B over 2 min", "256 B/s", "256 B/s over", "2 min over 256 B/s", "1 kB/s over 2 min"]
        {
            let error = bad.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("256 B/s over 2 min"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends_in_a_value_or_an_error(text: String) {
            let _ = (text.parse::<Span>(), text.parse::<Size>(), text.parse::<Rate>());
        }

        #[test]
        fn what_is_printed_reads_back(number in 0_u64..1 << 40) {
            let span = Span(Duration::from_millis(number));
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
            prop_assert_eq!(Size(number).to_string().parse::<Size>(), Ok(Size(number)));
            let rate = Rate { bytes: number, over: span.0 };
            prop_assert_eq!(rate.to_string().parse::<Rate>(), Ok(rate));
        }
    }
}
