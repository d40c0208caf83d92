//! How long to wait before the next attempt: twice as long each time, and never for all nodes the same.

use std::time::Duration;

/// Doubles from its floor to its ceiling.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// Begins at `floor`, ends at `ceiling`.
    pub const fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling, failures: 0 }
    }

    /// The next wait: half to all of the present step, as `seed` picks, so that a fleet that lost its server at one
    /// moment does not come back at one moment.
    pub fn next(&mut self, seed: u64) -> Duration {
        let step = self.floor.saturating_mul(1 << self.failures.min(20)).min(self.ceiling);
        self.failures = self.failures.saturating_add(1);
        step / 2 + crate::schedule::splay(step / 2, seed)
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steps_double_up_to_the_ceiling_and_begin_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let waits: Vec<_> = (0..11).map(|_| backoff.next(u64::MAX).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(500));
    }

    proptest! {
        #[test]
        fn every_wait_keeps_its_bounds(seeds in proptest::collection::vec(any::<u64>(), 1..200)) {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
            for seed in seeds {
                let wait = backoff.next(seed);
                prop_assert!((Duration::from_millis(500)..=Duration::from_secs(300)).contains(&wait));
            }
        }
    }
}
