//! What no single update shows: a server's processor time for a node among many, and how often a node waits for an answer.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use goldsync_tests::{Node, Proxy};
use serde::Serialize;

use super::stage::{Before, Stage};
use crate::compare::process;
use crate::compare::stream::{self, Plain};

/// Updates that a server's time is spread over.
const UPDATES: u32 = 12;

/// How much later a packet arrives on the slower line, each way.
const LATER: Duration = Duration::from_millis(50);

/// Nodes with a known base, served one after the other by a server that has the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Served {
    /// How many.
    pub updates: u32,
    /// Bytes of UDP payload that each received.
    pub received: u64,
    /// Seconds of the server's processor for each.
    pub cpu: f64,
    /// As many bytes by quinn alone.
    pub plain: Plain,
}

/// Updates many times, and sends as many bytes without goldsync.
pub fn served(stage: &Stage<'_>, node: &Node, before: &Before, golden: &str) -> Result<Served> {
    let server = stage.server.pid()?;
    let (mut cpu, mut received) = (0.0, 0);
    for _ in 0..UPDATES {
        before.restore(None)?;
        let begun = process::cpu(server);
        received += stage.run(node, "sync", golden)?.received;
        cpu += process::cpu(server) - begun;
    }
    let received = received / u64::from(UPDATES);
    let plain = stream::plain(received, UPDATES, stage.scratch).context("as many bytes by quinn alone")?;
    let served = Served { updates: UPDATES, received, cpu: cpu / f64::from(UPDATES), plain };
    let milliseconds = |seconds| 1000.0 * seconds;
    eprintln!(
        "    {UPDATES} nodes: {:.2} ms of the server's CPU each, {:.2} ms by quinn alone",
        milliseconds(served.cpu),
        milliseconds(served.plain.cpu)
    );
    Ok(served)
}

/// How many times a node that is up to date waits for an answer, after it is connected: how much later it is done on a line that
/// is slower, in round trips of that line, but for the one of the handshake.
pub fn round_trips(stage: &Stage<'_>, node: &Node, golden: &str, repeat: usize) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let proxy = runtime.block_on(Proxy::to(stage.server.address().parse()?));
    let config = fs::read_to_string(node.config())?;
    fs::write(node.config(), format!("server = \"{}\"\n{config}", proxy.address()))?;
    let median = |delay| -> Result<f64> {
        proxy.delay(delay);
        let runs = (0..repeat.max(3)).map(|_| Ok(stage.run(node, "sync", golden)?.client.wall));
        let mut walls = runs.collect::<Result<Vec<f64>>>()?;
        walls.sort_by(f64::total_cmp);
        Ok(walls[walls.len() / 2])
    };
    let later = median(LATER)? - median(Duration::ZERO)?;
    fs::write(node.config(), config)?;
    let round_trips = later / (2.0 * LATER.as_secs_f64()) - 1.0;
    eprintln!("    nothing to do: {round_trips:.2} round trips after the handshake");
    Ok(round_trips)
}
