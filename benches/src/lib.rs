//! Measuring goldsync: one workload per stage (`cargo bench`), then end to end beside the peers (`goldsync-compare`).
//!
//! * [`stage`]: a stopwatch, for `benches/stages.rs`.
//! * [`compare`]: real programs, real images, every byte, second and page counted the same way for all.
//!
//! What is measured, and how, and what came out: `docs/BENCHMARKS.md`.

pub mod compare;
pub mod stage;
