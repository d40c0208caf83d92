//! Numbers and times as people read them. One form for each, used by every verb.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// `0 B`, `812 B`, `1.5 KiB`, `160 MiB`: binary units, three digits at most before the unit changes.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // 1023.95 would print as "1024.0": it is one of the next unit already.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("EiB");
    // `.0` says nothing.
    let text = format!("{value:.1}");
    format!("{} {name}", text.strip_suffix(".0").unwrap_or(&text))
}

/// `850 ms`, `3.4 s`, `2 min 05 s`, `3 h 07 min`, `12 d 4 h`.
pub fn span(time: Duration) -> String {
    let (ms, s) = (time.as_millis(), time.as_secs());
    match s {
        0 => format!("{ms} ms"),
        1..10 => format!("{:.1} s", time.as_secs_f64().min(9.9)),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// `1 node`, `3 nodes`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {many}") }
}

/// A time of the API as tables show it: `2026-11-21 09:22:05`, UTC. What cannot be read is shown as it came.
pub fn time(text: &str) -> String {
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => time.with_timezone(&Utc).format("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// How long ago a time of the API was: `now`, `12 s`, `3 min`, `5 h`, `4 d`. One unit is enough to judge by.
pub fn ago(text: &str, now: DateTime<Utc>) -> String {
    let Ok(time) = DateTime::parse_from_rfc3339(text) else { return text.to_owned() };
    match (now - time.with_timezone(&Utc)).num_seconds() {
        // Clocks of two machines differ a little.
        ..2 => "now".to_owned(),
        s @ 2..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// This moment, in the form of the API.
pub fn rfc3339(now: DateTime<Utc>) -> String {
    now.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_binary_units() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (167_772_160, "160 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (20 << 30, "20 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        for (ms, text) in [
            (0, "0 ms"),
            (850, "850 ms"),
            (3_400, "3.4 s"),
            (9_990, "9.9 s"),
            (12_000, "12 s"),
            (125_000, "2 min 05 s"),
            (11_220_000, "3 h 07 min"),
            (1_051_200_000, "12 d 4 h"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn times_are_utc_and_ages_have_one_unit() {
        assert_eq!(time("2026-11-21T10:22:05+01:00"), "2026-11-21 09:22:05");
        assert_eq!(time("yesterday"), "yesterday");
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        for (at, text) in [
            ("2026-11-21T12:00:03Z", "now"),
            ("2026-11-21T11:59:48Z", "12 s"),
            ("2026-11-21T11:57:00Z", "3 min"),
            ("2026-11-21T07:00:00Z", "5 h"),
            ("2026-11-17T12:00:00Z", "4 d"),
            ("never", "never"),
        ] {
            assert_eq!(ago(at, now), text);
        }
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!((count(1, "node", "nodes"), count(0, "node", "nodes")), ("1 node".into(), "0 nodes".into()));
    }
}
