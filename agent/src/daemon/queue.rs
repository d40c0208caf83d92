//! What is to be done next: a pure state machine, so that "a change is never lost" can be tested without waiting.
//!
//! ```text
//!  cue ──▶ waiting (due at the earliest cue's time) ──start──▶ running ──finish──▶ orders to answer
//!            ▲                                                    │
//!            └──────────── a cue that arrives meanwhile ──────────┘   waits; it is not folded into the running update,
//!                                                                     which may have looked at the channel before
//! ```
//! Cues are only "look again": they carry no release, so that any number of waiting ones are one. What differs is when,
//! which orders want an answer, and whether to go back from a release first.

use std::time::Instant;

use goldsync_proto::release::ReleaseRef;

/// Orders that may wait for one update. A server that sends more in that time is not served better by more answers.
const ORDERS_MAX: usize = 256;

/// What makes the daemon look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cue {
    /// When to begin.
    pub due: Instant,
    /// The operator's order behind it, to be answered.
    pub order: Option<u64>,
    /// The release to go back from before looking.
    pub back_from: Option<ReleaseRef>,
}

impl Cue {
    /// A look at the channel at that time, for nobody.
    pub fn look(due: Instant) -> Self {
        Self { due, order: None, back_from: None }
    }
}

/// What one update was for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Orders to answer when it is over.
    pub orders: Vec<u64>,
    /// The release to go back from: the last one that was said.
    pub back_from: Option<ReleaseRef>,
}

#[derive(Clone, Debug)]
struct Waiting {
    due: Instant,
    job: Job,
}

/// The updates to do: at most one running, at most one waiting.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    running: Option<Job>,
    waiting: Option<Waiting>,
}

impl Queue {
    /// Something happened.
    pub fn cue(&mut self, cue: Cue) {
        // A server repeats an open order to a node that comes back: the running update began after it was given.
        let repeated = |order| self.running.as_ref().is_some_and(|job| job.orders.contains(&order));
        if cue.order.is_some_and(repeated) {
            return;
        }
        let waiting = self.waiting.get_or_insert(Waiting { due: cue.due, job: Job::default() });
        waiting.due = waiting.due.min(cue.due);
        waiting.job.back_from = cue.back_from.or(waiting.job.back_from.take());
        if let Some(order) = cue.order
            && !waiting.job.orders.contains(&order)
            && waiting.job.orders.len() < ORDERS_MAX
        {
            waiting.job.orders.push(order);
        }
    }

    /// When the next update may begin; `None` while one runs or none waits.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.as_ref().filter(|_| self.running.is_none()).map(|waiting| waiting.due)
    }

    /// Begins the waiting update if its time has come.
    pub fn start(&mut self, now: Instant) -> Option<Job> {
        self.due().filter(|due| *due <= now)?;
        let job = self.waiting.take()?.job;
        self.running = Some(job.clone());
        Some(job)
    }

    /// The running update is over; its orders are to be answered.
    pub fn finish(&mut self) -> Job {
        self.running.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    fn at(start: Instant, seconds: u64, order: Option<u64>) -> Cue {
        Cue { order, ..Cue::look(start + Duration::from_secs(seconds)) }
    }

    #[test]
    fn cues_that_wait_together_are_one_update_at_the_earliest_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        assert_eq!((queue.due(), queue.start(now)), (None, None));
        queue.cue(at(now, 60, Some(1)));
        queue.cue(at(now, 5, None));
        queue.cue(at(now, 9, Some(2)));
        queue.cue(at(now, 9, Some(2)));
        assert_eq!(queue.due(), Some(now + Duration::from_secs(5)));
        assert_eq!(queue.start(now + Duration::from_secs(4)), None);
        assert_eq!(queue.start(now + Duration::from_secs(5)), Some(Job { orders: vec![1, 2], back_from: None }));
        assert_eq!(queue.finish(), Job { orders: vec![1, 2], back_from: None });
        assert_eq!(queue.due(), None);
    }

    #[test]
    fn a_cue_during_an_update_is_done_right_after_it() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.cue(at(now, 0, Some(1)));
        queue.start(now).unwrap();
        queue.cue(at(now, 0, Some(2)));
        queue.cue(at(now, 0, None));
        assert_eq!(queue.start(now), None, "one at a time");
        assert_eq!(queue.finish().orders, [1], "the second order was not looked at yet");
        assert_eq!(queue.start(now).unwrap().orders, [2]);
    }

    #[test]
    fn an_order_repeated_while_it_runs_is_not_done_twice() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.cue(at(now, 0, Some(1)));
        queue.start(now).unwrap();
        queue.cue(at(now, 0, Some(1)));
        queue.finish();
        assert_eq!(queue.due(), None);
        queue.cue(at(now, 0, Some(1)));
        assert!(queue.start(now).is_some(), "after it, it is a new order");
    }

    #[test]
    fn an_order_to_go_back_is_not_lost_among_looks() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let from: ReleaseRef = "web:2".parse().unwrap();
        queue.cue(Cue { order: Some(1), back_from: Some(from.clone()), ..Cue::look(now) });
        queue.cue(at(now, 0, None));
        assert_eq!(queue.start(now), Some(Job { orders: vec![1], back_from: Some(from) }));
    }

    #[test]
    fn a_flood_of_orders_is_bounded() {
        let now = Instant::now();
        let mut queue = Queue::default();
        (0..10_000).for_each(|order| queue.cue(at(now, 0, Some(order))));
        assert_eq!(queue.start(now).unwrap().orders.len(), ORDERS_MAX);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Cue(u64, bool),
        Tick(u64),
        Finish,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u64..20, any::<bool>()).prop_map(|(delay, ordered)| Step::Cue(delay, ordered)),
            (0_u64..5).prop_map(Step::Tick),
            Just(Step::Finish),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: after every cue an update *begins*, no earlier than asked for by all,
        /// and every order is answered exactly once.
        #[test]
        fn no_cue_is_ever_lost(steps in proptest::collection::vec(step(), 1..120)) {
            let start = Instant::now();
            let (mut queue, mut now) = (Queue::default(), 0_u64);
            let mut unserved: Vec<u64> = Vec::new();
            let (mut given, mut answered) = (BTreeSet::new(), Vec::new());
            let begin = |queue: &mut Queue, now: u64, unserved: &mut Vec<u64>| {
                let begun = queue.start(start + Duration::from_secs(now)).is_some();
                if begun {
                    let earliest = unserved.iter().min().copied();
                    assert!(earliest.is_some_and(|due| due <= now), "begun at {now} for {unserved:?}");
                    unserved.clear();
                }
            };
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Cue(delay, ordered) => {
                        let order = ordered.then_some(number as u64);
                        given.extend(order);
                        queue.cue(at(start, now + delay, order));
                        unserved.push(now + delay);
                    }
                    Step::Tick(seconds) => now += seconds,
                    Step::Finish => answered.extend(queue.finish().orders),
                }
                begin(&mut queue, now, &mut unserved);
            }
            answered.extend(queue.finish().orders);
            begin(&mut queue, now + 100, &mut unserved);
            prop_assert!(unserved.is_empty(), "never begun: {unserved:?}");
            answered.extend(queue.finish().orders);
            prop_assert_eq!(answered.len(), given.len());
            prop_assert_eq!(answered.into_iter().collect::<BTreeSet<_>>(), given);
        }
    }
}
