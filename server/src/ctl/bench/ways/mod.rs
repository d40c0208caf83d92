//! The ways from one image to the other, each gone for real: bytes as the engine makes them, seconds of this machine.

pub mod unknown;

use std::num::NonZero;
use std::time::{Duration, Instant};

use goldsync_proto::block::{byte_of, runs_of};
use goldsync_proto::digest::ImageId;
use goldsync_proto::make::{self, Effort};
use goldsync_proto::plan::{Plan, PlanError, Step};
use goldsync_proto::signature::zero_hash;
use goldsync_proto::verity::runs_derived;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use self::unknown::Unknown;
use super::super::fail::{Code, Failure, Outcome};
use super::super::image::Image;
use super::super::progress::{Manner, Stage};
use crate::packs::prove;

/// Bytes of a connection that fetches nothing: handshake, certificates, signed metadata. Measured: docs/BENCHMARKS.md.
const CONNECTION: u64 = 4200;

/// What QUIC, TLS and the other direction's acknowledgements add to bytes. Measured: likewise.
const TRANSPORT: f64 = 1.03;

/// One way, and what it takes.
#[derive(Debug, Serialize)]
pub struct Way {
    /// Its name.
    pub name: &'static str,
    /// When a node goes it.
    pub when: &'static str,
    /// Bytes that the engine made for it.
    pub payload: u64,
    /// Bytes on the wire, both ways: the payload and an estimate of what the transport adds.
    pub wire_estimated: u64,
    /// The wire as a part of NEW.
    pub share: f64,
    /// Seconds of the server's work for it, on this machine's cores, once for all nodes; of what was measured.
    pub server_once: Option<f64>,
    /// Seconds of processor that those are, over all cores; of plans.
    pub server_cpu: Option<f64>,
    /// Seconds of a node's work, on this machine's cores, without writing to a disk; of what was measured.
    pub node: Option<f64>,
    /// Seconds that the wire takes at the rate that was asked for.
    pub transfer_estimated: f64,
}

/// The known base: a plan, and its packs.
#[derive(Debug)]
pub struct Known {
    /// The plan.
    pub plan: Plan,
    /// Its packs, one behind the other.
    pub packs: Vec<u8>,
    /// The plan's own bytes on the wire.
    pub plan_bytes: u64,
    made: Duration,
    made_cpu: Duration,
    applied: Duration,
}

/// Makes the plan and its packs as the server does, and carries it out, as the server's proof and every node does.
pub fn known(old: make::Image<'_>, new: make::Image<'_>, effort: Effort) -> Outcome<Known> {
    let (began, began_cpu, mut packs) = (Instant::now(), processor(), Vec::new());
    let plan = make::pair::<PlanError>(old, new, effort, |wire| {
        packs.extend_from_slice(wire);
        Ok(())
    });
    let failed =
        |error: PlanError| Failure::new(Code::Failed, format!("there can be no plan from OLD to NEW: {error}"));
    let plan = plan.map_err(failed)?;
    let plan_bytes = plan.encode().map_err(failed)?.len() as u64;
    let (made, made_cpu, began) = (began.elapsed(), processor().saturating_sub(began_cpu), Instant::now());
    let got = prove::carry_out(&plan, [old.bytes, new.bytes], &packs, usize::MAX);
    let applied = began.elapsed();
    match got {
        Ok(image) if image == new.id => Ok(Known { plan, packs, plan_bytes, made, made_cpu, applied }),
        other => Err(wrong(&other, new.id)),
    }
}

/// Processor time of this process so far. Nothing else of weight runs in it.
fn processor() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// A plan that does not give NEW is a fault of ours, or an image that changed: no figure of it may be believed.
fn wrong(got: &Result<ImageId, String>, want: ImageId) -> Failure {
    let got = got.as_ref().map_or_else(|why| format!("breaks: {why}"), |image| format!("gives image {image}"));
    Failure::new(Code::Failed, format!("the plan, carried out, {got}; NEW is {want}"))
        .remedy("if nothing wrote to the images meanwhile, this is a fault of goldsync: report it with both images")
}

/// The whole image, in the frames in which it is published, stored and fetched by who has nothing.
#[derive(Debug)]
pub struct Cold {
    bytes: u64,
    made: Duration,
}

/// Compresses what NEW holds, each content once and no zeros, as `goldsync publish` does, without what a node derives.
pub fn cold(image: &Image, new: make::Image<'_>, manner: Manner) -> Outcome<Cold> {
    let mut seen = std::collections::HashSet::new();
    let derived = runs_derived(new.derived);
    let derives = |block: u32| derived.iter().any(|(first, count)| (*first..first + count).contains(&block));
    let hashes = (0..).zip(new.hashes.iter()).filter(|(block, _)| !derives(*block));
    let fresh = hashes.filter(|(_, hash)| *hash != zero_hash() && seen.insert(*hash)).map(|(block, _)| block);
    let runs = runs_of(fresh);
    let total = runs.iter().map(|(_, count)| byte_of(*count)).sum();
    let (began, mut bytes) = (Instant::now(), 0);
    let stage = Stage::begin(manner, "pack NEW", total);
    for frame in image.frames(&runs) {
        let frame = frame?;
        bytes += frame.bytes.len() as u64;
        stage.advance(byte_of(frame.blocks));
    }
    stage.end();
    Ok(Cold { bytes, made: began.elapsed() })
}

/// All ways, a node's first one first. The better plans, the thorough one and the smallest, may have been left out.
pub fn all(known: &Known, better: &[Known], unknown: &Unknown, cold: &Cold, rate_mbit: f64) -> Vec<Way> {
    let size = known.plan.geometry.size();
    let way = |name, when, payload: u64, server: Option<Duration>, node: Option<Duration>| {
        let wire = CONNECTION + (payload as f64 * TRANSPORT) as u64;
        Way {
            name,
            when,
            payload,
            wire_estimated: wire,
            share: wire as f64 / size as f64,
            server_once: server.map(|time| time.as_secs_f64()),
            server_cpu: None,
            node: node.map(|time| time.as_secs_f64()),
            transfer_estimated: wire as f64 * 8.0 / (rate_mbit * 1e6),
        }
    };
    let by_plan = |name, when, known: &Known| Way {
        server_cpu: Some(known.made_cpu.as_secs_f64()),
        ..way(name, when, known.plan_bytes + known.packs.len() as u64, Some(known.made), Some(known.applied))
    };
    let quick = by_plan("known base, quick pack", "nodes run OLD, it was published, and they come at once", known);
    let names = [
        ("known base, thorough pack", "the same nodes, a few minutes later"),
        ("known base, smallest pack", "the same, if they prefer bytes"),
    ];
    let better = names.into_iter().zip(better).map(|((name, when), known)| by_plan(name, when, known));
    let others = [
        way(
            "unknown base",
            "nodes hold OLD, and the server never saw it",
            unknown.payload(),
            None,
            Some(unknown.searched),
        ),
        way("nothing there", "nodes hold nothing", cold.bytes, Some(cold.made), None),
        way("nothing to do", "nodes run NEW already", 0, None, None),
    ];
    [quick].into_iter().chain(better).chain(others).collect()
}

/// How NEW's blocks come about.
#[derive(Debug, Serialize)]
pub struct Blocks {
    /// All of them.
    pub all: u64,
    /// In OLD at the same offset: not even written, if the standby slot holds OLD.
    pub in_place: u64,
    /// In OLD at another offset of the grid: copied on the node.
    pub moved: u64,
    /// Copies of several blocks are one step: so many steps of moved blocks there are.
    pub moved_runs: u64,
    /// Of those, steps whose source lies before that of the step before.
    pub moved_backwards: u64,
    /// Zeros.
    pub zero: u64,
    /// Of a hash tree that dm-verity uses, and not in OLD: made on the node from the other blocks.
    pub derived: u64,
    /// Sent, in packs.
    pub sent: u64,
    /// Of those sent, so many lie in OLD as they are, but off the grid of 4 KiB: cheap in a pack, but not free.
    pub off_grid: u64,
}

impl Blocks {
    /// Counts.
    pub fn of(plan: &Plan, unknown: &Unknown) -> Self {
        let mut counts = Self {
            all: u64::from(plan.geometry.blocks()),
            in_place: 0,
            moved: 0,
            moved_runs: 0,
            moved_backwards: 0,
            zero: 0,
            derived: 0,
            sent: 0,
            off_grid: unknown.off_grid,
        };
        let mut last_source = 0;
        for (at, step) in plan.placed() {
            let count = u64::from(step.count());
            match step {
                Step::Copy { from, .. } if from == at => counts.in_place += count,
                Step::Copy { from, .. } => {
                    counts.moved += count;
                    counts.moved_runs += 1;
                    counts.moved_backwards += u64::from(from < last_source);
                }
                Step::Zero { .. } => counts.zero += count,
                Step::Derive { .. } => counts.derived += count,
                _ => counts.sent += count,
            }
            if let Step::Copy { from, .. } = step {
                last_source = from;
            }
        }
        counts
    }
}

/// `work` on each item, on all cores, in order.
pub fn on_threads<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).clamp(1, 16);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let one = || {
        let mut mine = Vec::new();
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(item) = items.get(at) else { return mine };
            mine.push((at, work(item)));
        }
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().flat_map(join).collect()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
