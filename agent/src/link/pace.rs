//! How fast what is due arrives, over all streams of one connection.
//!
//! ```text
//! time counts while a stream waits ──▶ `over` is full ──▶ enough came: from the beginning
//!                                                     └─▶ too little: an error, and an update that failed
//! ```
//! A peer that sends a byte now and then defeats every limit on silence, and could keep a node from an update for ever: the
//! slow retrieval attack. So what arrives is counted, and held against what the configuration puts up with
//! (`limits.slowest`). Only bytes that were asked for count, whatever else crosses the wire; only time counts in which they
//! were waited for, so that a node that is busy with its disk does not blame the server. The streams count together:
//! they share one line. A server that thinks before it answers is not slow but silent, and `limits.silence` is for that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use goldsync_proto::units::Rate;

/// Below this rate a server, or whoever sits between, is called slow in the log, once for each connection.
const SLOW: u64 = 16 << 10;

/// What was found when a count was full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It goes on.
    Enough,
    /// It goes on, and somebody should know. Bytes in a second.
    Slow(u64),
    /// It is given up. Bytes in a second.
    TooSlow(u64),
}

/// One connection's count.
#[derive(Debug)]
pub(super) struct Pace {
    slowest: Rate,
    got: AtomicU64,
    time: Mutex<Time>,
}

/// The time that was waited, by however many streams at once.
#[derive(Debug, Default)]
struct Time {
    waiting: u32,
    since: Option<Instant>,
    waited: Duration,
    told: bool,
}

impl Time {
    /// Counts up to `now`; never backwards.
    fn settle(&mut self, now: Instant) {
        let since = self.since.unwrap_or(now);
        let now = now.max(since);
        self.waited += now - since;
        self.since = (self.waiting > 0).then_some(now);
    }
}

impl Pace {
    pub(super) fn new(slowest: Rate) -> Self {
        Self { slowest, got: AtomicU64::new(0), time: Mutex::default() }
    }

    pub(super) fn slowest(&self) -> Rate {
        self.slowest
    }

    /// Bytes that were due have come.
    pub(super) fn got(&self, bytes: u64) {
        self.got.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A stream begins to wait; it does until the guard is dropped.
    pub(super) fn wait(&self, now: Instant) -> Waiting<'_> {
        let mut time = self.time();
        time.waiting += 1;
        time.settle(now);
        Waiting(self)
    }

    /// How much longer may be waited before the count is full.
    pub(super) fn left(&self, now: Instant) -> Duration {
        let mut time = self.time();
        time.settle(now);
        self.slowest.over.saturating_sub(time.waited)
    }

    /// Looks at the count, and begins a new one if it is full.
    pub(super) fn judge(&self, now: Instant) -> Found {
        let mut time = self.time();
        time.settle(now);
        if time.waited < self.slowest.over {
            return Found::Enough;
        }
        let waited = std::mem::take(&mut time.waited);
        let rate = u128::from(self.got.swap(0, Ordering::Relaxed)) * 1000 / waited.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        match rate {
            _ if rate < self.slowest.bytes => Found::TooSlow(rate),
            _ if rate < SLOW && !std::mem::replace(&mut time.told, true) => Found::Slow(rate),
            _ => Found::Enough,
        }
    }

    fn time(&self) -> MutexGuard<'_, Time> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that waits.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Pace);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut time = self.0.time();
        time.waiting = time.waiting.saturating_sub(1);
        time.settle(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pace(bytes: u64, seconds: u64) -> Pace {
        Pace::new(Rate { bytes, over: Duration::from_secs(seconds) })
    }

    #[test]
    fn a_full_count_is_judged_and_begins_again() {
        let (pace, begun) = (pace(100, 10), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let _waiting = pace.wait(begun);
        assert_eq!((pace.left(at(4)), pace.judge(at(4))), (Duration::from_secs(6), Found::Enough));
        pace.got(1000);
        assert_eq!(pace.judge(at(10)), Found::Slow(100));
        pace.got(2000);
        assert_eq!(pace.judge(at(20)), Found::Enough, "said once");
        pace.got(999);
        assert_eq!(pace.judge(at(30)), Found::TooSlow(99));
        assert_eq!(pace.left(at(31)), Duration::from_secs(9), "who goes on all the same has a new count");
        pace.got(10 * SLOW);
        assert_eq!(pace.judge(at(40)), Found::Enough);
    }

    #[test]
    fn time_counts_once_and_only_while_somebody_waits() {
        let (pace, begun) = (pace(1, 10), Instant::now());
        let later = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(pace.judge(later(100)), Found::Enough, "nobody waits");
        let (first, second) = (pace.wait(later(100)), pace.wait(later(102)));
        assert_eq!(pace.left(later(104)), Duration::from_secs(6), "two that wait do not make time go faster");
        drop((first, second));
        assert_eq!(pace.left(later(1000)), Duration::from_secs(6), "busy with something else");
        let _third = pace.wait(later(1000));
        assert_eq!(pace.judge(later(1006)), Found::TooSlow(0));
    }

    proptest! {
        /// Whatever comes and whenever it is looked at: a count is never judged too slow that brought enough for its time, and
        /// never passes that did not.
        #[test]
        fn a_count_is_judged_by_what_came(steps in proptest::collection::vec((0_u64..3000, 0_u64..5000), 1..60)) {
            let (pace, mut now) = (pace(256, 2), Instant::now());
            let _waiting = pace.wait(now);
            let (mut got, mut waited) = (0, 0);
            for (ms, bytes) in steps {
                now += Duration::from_millis(ms);
                pace.got(bytes);
                (got, waited) = (got + bytes, waited + ms);
                let found = pace.judge(now);
                if waited < 2000 {
                    prop_assert_eq!(found, Found::Enough);
                    continue;
                }
                prop_assert_eq!(matches!(found, Found::TooSlow(_)), got * 1000 / waited < 256);
                (got, waited) = (0, 0);
            }
        }
    }
}
