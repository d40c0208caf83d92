//! Measuring goldsync: one workload per stage (`cargo bench`), then end to end beside the peers (`goldsync-compare`).
//!
//! * [`stage`]: a stopwatch, for `benches/stages.rs`.
//! * [`compare`]: real programs, real images, every byte, second and page counted the same way for all.
//!
//! What is measured, and how, and what came out: `docs/BENCHMARKS.md`.

pub mod compare;
pub mod stage;

/// Threads of an agent that is not told how many.
pub fn agent_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}
