//! When to look for a new release without being told: a cron expression in a time zone, and a random delay.
//!
//! A pure function of the time and a seed. Where clocks change, a fixed time (`30 2 * * *`) comes exactly once a day: one
//! that the day skips comes when the gap ends, one that the day has twice comes the first time.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::config::Schedule;

/// The next time to look after `now`, or `None` for a node that looks only when told. `seed` picks the delay.
pub fn next(schedule: &Schedule, now: DateTime<Utc>, seed: u64) -> Option<DateTime<Utc>> {
    let cron = schedule.cron.as_ref()?;
    let occurrence = cron.find_next_occurrence(&now.with_timezone(&schedule.time_zone), false);
    // An expression like `0 0 30 2 *` parses and never comes.
    let occurrence = occurrence.inspect_err(|error| tracing::warn!(%error, "schedule.cron never comes")).ok()?;
    let delay = TimeDelta::from_std(splay(schedule.splay, seed)).unwrap_or_default();
    occurrence.with_timezone(&Utc).checked_add_signed(delay)
}

/// A delay of 0 to `limit`, both included, to the millisecond.
pub fn splay(limit: Duration, seed: u64) -> Duration {
    let span = limit.as_millis().min(u128::from(u64::MAX - 1)) as u64 + 1;
    // Multiply and shift spreads any seed evenly, where a remainder would favour small delays.
    Duration::from_millis(((u128::from(seed) * u128::from(span)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(cron: &str, zone: &str, splay: u64) -> Schedule {
        Schedule {
            cron: Some(cron.parse().unwrap()),
            splay: Duration::from_secs(splay),
            time_zone: zone.parse().unwrap(),
        }
    }

    fn next_text(cron: &str, zone: &str, now: &str) -> String {
        let now = now.parse().unwrap();
        next(&schedule(cron, zone, 0), now, 0).unwrap().to_rfc3339()
    }

    #[test]
    fn the_zone_decides_when_half_past_three_is() {
        assert_eq!(next_text("30 3 * * *", "UTC", "2026-01-01T00:00:00Z"), "2026-01-01T03:30:00+00:00");
        assert_eq!(next_text("30 3 * * *", "Europe/Vienna", "2026-01-01T00:00:00Z"), "2026-01-01T02:30:00+00:00");
        assert_eq!(next_text("30 3 * * *", "Europe/Vienna", "2026-07-01T00:00:00Z"), "2026-07-01T01:30:00+00:00");
        // Exactly on time counts as over: or the same occurrence would come for ever.
        assert_eq!(next_text("30 3 * * *", "UTC", "2026-01-01T03:30:00Z"), "2026-01-02T03:30:00+00:00");
    }

    #[test]
    fn a_time_that_the_day_skips_comes_when_the_gap_ends() {
        // In Vienna, 2026-03-29 goes from 02:00 to 03:00.
        assert_eq!(next_text("30 2 * * *", "Europe/Vienna", "2026-03-28T12:00:00Z"), "2026-03-29T01:00:00+00:00");
        assert_eq!(next_text("30 2 * * *", "Europe/Vienna", "2026-03-29T01:00:00Z"), "2026-03-30T00:30:00+00:00");
    }

    #[test]
    fn a_time_that_the_day_has_twice_comes_once() {
        // In Vienna, 2026-10-25 goes from 03:00 back to 02:00.
        let first = next_text("30 2 * * *", "Europe/Vienna", "2026-10-24T12:00:00Z");
        assert_eq!(first, "2026-10-25T00:30:00+00:00");
        assert_eq!(next_text("30 2 * * *", "Europe/Vienna", &first), "2026-10-26T01:30:00+00:00");
    }

    #[test]
    fn no_expression_and_one_that_never_comes_give_nothing() {
        let mut never = schedule("0 0 30 2 *", "UTC", 0);
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(next(&never, now, 0), None);
        never.cron = None;
        assert_eq!(next(&never, now, 0), None);
    }

    #[test]
    fn the_delay_reaches_from_nothing_to_its_limit() {
        let limit = Duration::from_secs(10);
        assert_eq!(splay(limit, 0), Duration::ZERO);
        assert_eq!(splay(limit, u64::MAX), limit);
        assert_eq!(splay(limit, u64::MAX / 2), Duration::from_secs(5));
        assert_eq!(splay(Duration::ZERO, u64::MAX), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn the_next_time_lies_ahead_and_within_its_splay(seconds in 0_i64..4_000_000_000, seed: u64, splay in 0_u64..7200) {
            let now = DateTime::from_timestamp(seconds, 0).unwrap();
            let due = next(&schedule("*/5 * * * *", "America/New_York", splay), now, seed).unwrap();
            let wait = due - now;
            prop_assert!(wait > TimeDelta::zero() && wait <= TimeDelta::seconds(300 + splay as i64));
        }
    }
}
