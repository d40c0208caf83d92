//! Waiting for something to become true. The limit is for a test that hangs; no test says how fast a thing must be.

use std::time::{Duration, Instant};

/// When a wait is given up.
const LIMIT: Duration = Duration::from_secs(90);

/// Asks again and again until there is an answer; panics with `what` when it takes for ever.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < LIMIT, "waited {LIMIT:?} in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
