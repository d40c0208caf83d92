//! Maintenance windows: pure, in the operator's zone.
//!
//! `"Mon-Fri 02:00-04:00"`, `"Sat,Sun 22:00-06:00"`, `"23:30-00:30"`: days are those on which a window opens, every day if none is
//! named; one that ends no later than it begins ends on the next day. Where clocks change, a window opens and closes by
//! the wall clock: an hour that a day skips or has twice makes it shorter or longer by that.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeDelta, TimeZone, Timelike, Utc, Weekday};
use chrono_tz::Tz;

const MINUTES: u32 = 24 * 60;

/// A span of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// On which days it opens, Monday first.
    days: [bool; 7],
    /// Minute of the day at which it opens.
    opens: u32,
    /// How many minutes it is open, by the wall clock.
    length: u32,
}

/// Whether any of the windows is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    /// Yes.
    Open,
    /// Not until then.
    OpensAt(DateTime<Utc>),
}

/// Whether one of `windows` is open at `now`, or when the next one opens. Without windows it always is.
pub fn now(windows: &[Window], zone: Tz, now: DateTime<Utc>) -> Now {
    if windows.is_empty() || windows.iter().any(|window| window.open(now.with_timezone(&zone))) {
        return Now::Open;
    }
    let next = windows.iter().filter_map(|window| window.next(zone, now)).min();
    // A window opens within two weeks; this is only for the end of time.
    next.map_or(Now::Open, Now::OpensAt)
}

impl Window {
    fn open(&self, now: DateTime<Tz>) -> bool {
        let minute = now.hour() * 60 + now.minute();
        let on = |day: Weekday| self.days.get(day.num_days_from_monday() as usize) == Some(&true);
        let today = on(now.weekday()) && minute >= self.opens && minute < self.opens + self.length;
        // Opened yesterday, and goes on past midnight.
        let since = on(now.weekday().pred()) && minute + MINUTES < self.opens + self.length;
        today || since
    }

    fn next(&self, zone: Tz, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let today = now.with_timezone(&zone).date_naive();
        let opening = |day: NaiveDate| {
            let on = self.days.get(day.weekday().num_days_from_monday() as usize) == Some(&true);
            let opens = on.then(|| at(zone, day, self.opens)).flatten()?;
            // One that lies in an hour that is skipped does not open on that day.
            (opens > now && self.open(opens.with_timezone(&zone))).then_some(opens)
        };
        (0..=15).filter_map(|ahead| opening(today.checked_add_days(Days::new(ahead))?)).min()
    }
}

/// A wall clock's time as a moment: of a time that comes twice the first, of one that is skipped the end of the gap.
fn at(zone: Tz, day: NaiveDate, minute: u32) -> Option<DateTime<Utc>> {
    let time = day.and_time(NaiveTime::from_hms_opt(minute / 60, minute % 60, 0)?);
    let found = |skipped: i64| zone.from_local_datetime(&(time + TimeDelta::minutes(skipped))).earliest();
    (0..=180).step_by(15).find_map(found).map(|time| time.with_timezone(&Utc))
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            let cut: String = text.chars().take(80).collect();
            format!(
                "{cut:?}; write DAYS HH:MM-HH:MM, for example \"Mon-Fri 02:00-04:00\", \"Sat,Sun 22:00-06:00\" or \"03:00-05:00\""
            )
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let (days, span) = match words.as_slice() {
            [span] => ([true; 7], *span),
            [names, span] => (days(names).ok_or_else(refuse)?, *span),
            _ => return Err(refuse()),
        };
        let (from, to) = span.split_once('-').ok_or_else(refuse)?;
        let (opens, closes) = (minute(from).ok_or_else(refuse)?, minute(to).ok_or_else(refuse)?);
        if opens >= MINUTES {
            return Err(refuse());
        }
        let length = if closes > opens { closes - opens } else { closes + MINUTES - opens };
        Ok(Self { days, opens, length })
    }
}

fn days(names: &str) -> Option<[bool; 7]> {
    let mut days = [false; 7];
    let day = |name: &str| {
        let known = (name.len() == 3).then(|| name.parse::<Weekday>().ok()).flatten()?;
        Some(known.num_days_from_monday() as usize)
    };
    for part in names.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (day(first)?, day(last)?);
        // Sat-Mon goes over the week's end.
        let count = (last + 7 - first) % 7;
        (0..=count).for_each(|step| days[(first + step) % 7] = true);
    }
    Some(days)
}

/// `HH:MM`, up to `24:00`.
fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let total = hours * 60 + minutes;
    (minutes < 60 && total <= MINUTES).then_some(total)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
            let on: Vec<_> = names.iter().zip(self.days).filter(|(_, on)| *on).map(|(name, _)| *name).collect();
            write!(f, "{} ", on.join(","))?;
        }
        let closes = match (self.opens + self.length) % MINUTES {
            0 => MINUTES,
            minute => minute,
        };
        write!(f, "{:02}:{:02}-{:02}:{:02}", self.opens / 60, self.opens % 60, closes / 60, closes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(windows: &[&str], zone: &str, time: &str) -> String {
        let windows: Vec<Window> = windows.iter().map(|text| text.parse().unwrap()).collect();
        match now(&windows, zone.parse().unwrap(), time.parse().unwrap()) {
            Now::Open => "open".into(),
            Now::OpensAt(at) => at.to_rfc3339(),
        }
    }

    #[test]
    fn a_window_is_open_from_its_first_minute_to_before_its_last() {
        // 2026-11-21 is a Saturday.
        let cases = [
            ("02:00-04:00", "2026-11-21T01:59:59Z", "2026-11-21T02:00:00+00:00"),
            ("02:00-04:00", "2026-11-21T02:00:00Z", "open"),
            ("02:00-04:00", "2026-11-21T03:59:59Z", "open"),
            ("02:00-04:00", "2026-11-21T04:00:00Z", "2026-11-22T02:00:00+00:00"),
            ("Mon-Fri 02:00-04:00", "2026-11-21T03:00:00Z", "2026-11-23T02:00:00+00:00"),
            ("Sat 22:00-06:00", "2026-11-22T05:59:00Z", "open"),
            ("Sat 22:00-06:00", "2026-11-22T06:00:00Z", "2026-11-28T22:00:00+00:00"),
            ("Sun 22:00-06:00", "2026-11-22T05:59:00Z", "2026-11-22T22:00:00+00:00"),
            ("Fri-Sun 00:00-24:00", "2026-11-22T23:59:00Z", "open"),
            ("Fri-Sun 00:00-24:00", "2026-11-23T00:00:00Z", "2026-11-27T00:00:00+00:00"),
            ("Sat-Mon 00:00-24:00", "2026-11-23T12:00:00Z", "open"),
            ("00:00-00:00", "2026-11-23T12:00:00Z", "open"),
        ];
        for (window, time, expected) in cases {
            assert_eq!(state(&[window], "UTC", time), expected, "{window} {time}");
        }
        assert_eq!(state(&[], "UTC", "2026-11-23T12:00:00Z"), "open");
        assert_eq!(
            state(&["Mon 01:00-02:00", "Sun 20:00-21:00"], "UTC", "2026-11-22T12:00:00Z"),
            "2026-11-22T20:00:00+00:00"
        );
    }

    #[test]
    fn the_zone_and_its_changes_of_clocks_count() {
        assert_eq!(state(&["02:00-04:00"], "Europe/Vienna", "2026-11-21T01:30:00Z"), "open");
        assert_eq!(state(&["02:00-04:00"], "Europe/Vienna", "2026-11-21T00:30:00Z"), "2026-11-21T01:00:00+00:00");
        // On 2026-03-29 the hour from 02:00 to 03:00 is skipped there: the window opens when it is over.
        assert_eq!(state(&["02:00-04:00"], "Europe/Vienna", "2026-03-29T00:30:00Z"), "2026-03-29T01:00:00+00:00");
        assert_eq!(state(&["02:00-04:00"], "Europe/Vienna", "2026-03-29T01:00:00Z"), "open");
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "02:00",
            "2:00-4:00",
            "02:00-25:00",
            "02:60-03:00",
            "Mo 02:00-03:00",
            "Mon- 02:00-03:00",
            "24:00-02:00",
            "Monday 02:00-03:00",
            "Mon 02:00-03:00 x",
            "02:00-03:00 Mon",
            "-",
            "Mon,, 01:00-02:00",
        ] {
            let error = text.parse::<Window>().unwrap_err();
            assert!(error.contains("HH:MM"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_window_reads_back_as_it_prints_and_is_open_when_it_says(
            days in proptest::array::uniform7(any::<bool>()), opens in 0_u32..MINUTES, length in 1_u32..=MINUTES,
            seconds in 0_i64..4_000_000_000,
        ) {
            prop_assume!(days.contains(&true));
            let window = Window { days, opens, length };
            prop_assert_eq!(window.to_string().parse::<Window>().unwrap(), window);
            let time = DateTime::from_timestamp(seconds, 0).unwrap();
            for zone in ["UTC", "America/New_York"] {
                let zone: Tz = zone.parse().unwrap();
                if let Now::OpensAt(at) = now(&[window], zone, time) {
                    prop_assert!(at > time && at - time <= TimeDelta::days(15), "{at}");
                    prop_assert_eq!(now(&[window], zone, at), Now::Open);
                }
            }
        }

        #[test]
        fn no_text_brings_it_down(text in "\\PC{0,40}") {
            let _ = text.parse::<Window>();
        }
    }
}
