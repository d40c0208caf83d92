//! Health: what a release must show before it is kept.
//!
//! ```text
//! look ─▶ all well? ─▶ for `steady`? ─▶ healthy
//!   ▲        │ no          │ not yet
//!   └─ every ┴─────────────┘          `deadline` over: not healthy, and what was wrong at the last look
//! ```
//! A check is a site's program, a unit or target of systemd's, or a connection to the server. Nothing asked for: healthy at once.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Health;
use crate::node::Node;
use crate::program::Program;
use crate::restart::found;

/// How long systemd may take to say how a unit is.
const PATIENCE: Duration = Duration::from_secs(30);

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All was well, for as long as it had to be.
    Healthy,
    /// The deadline is over: what was wrong at the last look.
    Unhealthy(String),
    /// Somebody wants us to stop; nothing is decided.
    Stopped,
}

/// Looks until the node is healthy, the deadline is over, or `stop`.
pub async fn watch(node: &Node, stop: &CancellationToken) -> Verdict {
    let health = &node.config.health;
    let deadline = Instant::now() + health.deadline;
    let (mut well_since, mut wrong_last) = (None, None::<String>);
    loop {
        let looked = tokio::select! {
            looked = look(node) => looked,
            () = stop.cancelled() => return Verdict::Stopped,
            // A check that hangs is not well.
            () = tokio::time::sleep_until(deadline) => Err(wrong_last.take().unwrap_or_else(|| "a check did not end".into())),
        };
        let now = Instant::now();
        match looked {
            Ok(()) => {
                let since = *well_since.get_or_insert(now);
                if now.duration_since(since) >= health.steady {
                    return Verdict::Healthy;
                }
            }
            Err(wrong) => {
                well_since = None;
                // Once for each reason: it looks every few seconds, for minutes.
                if wrong_last.as_ref() != Some(&wrong) {
                    tracing::info!(wrong, "not healthy yet");
                }
                if now + health.every >= deadline {
                    return Verdict::Unhealthy(over(health, &wrong));
                }
                wrong_last = Some(wrong);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(health.every) => {}
            () = stop.cancelled() => return Verdict::Stopped,
        }
    }
}

fn over(health: &Health, wrong: &str) -> String {
    format!("not healthy within {:?} (health.deadline): {wrong}", health.deadline)
}

/// One look at everything: the first thing that is wrong.
async fn look(node: &Node) -> Result<(), String> {
    let health = node.config.health.clone();
    let local = tokio::task::spawn_blocking(move || here(&health)).await;
    local.unwrap_or_else(|error| Err(format!("a check ended early: {error}")))?;
    if !node.config.health.server {
        return Ok(());
    }
    let link = node.connect().await.map_err(|error| error.to_string())?;
    link.close().await;
    Ok(())
}

/// What can be told without the network.
fn here(health: &Health) -> Result<(), String> {
    let target = health.boot_complete.then_some("boot-complete.target");
    for unit in target.into_iter().chain(health.units.iter().map(String::as_str)) {
        let systemctl = found("systemctl").ok_or("health.units needs systemctl, which is not there")?;
        let state = Program { command: vec![systemctl, "is-active".into(), unit.into()], limit: PATIENCE };
        state.call(&[], &[]).map_err(|_| format!("{unit} is not active; `systemctl status {unit}` says why"))?;
    }
    health.commands.iter().try_for_each(|program| program.call(&[], &[]).map(drop).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::{node, node_with};
    use std::fs;

    #[tokio::test]
    async fn nothing_asked_for_is_healthy_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(watch(&node(folder.path()), &CancellationToken::new()).await, Verdict::Healthy);
    }

    fn asking(folder: &std::path::Path, script: &str, more: &str) -> Node {
        node_with(
            folder,
            &format!("[health]\ncommands = [[\"/bin/sh\", \"-c\", \"{script}\"]]\nevery = \"20 ms\"\n{more}"),
        )
    }

    #[tokio::test]
    async fn what_becomes_well_in_time_is_healthy() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let script = format!("echo x >> {0}; test $(wc -l < {0}) -ge 4", count.display());
        let node = asking(folder.path(), &script, "deadline = \"60 s\"\nsteady = \"50 ms\"\n");
        assert_eq!(watch(&node, &CancellationToken::new()).await, Verdict::Healthy);
        let looks = fs::read_to_string(&count).unwrap().lines().count();
        assert!(looks >= 5, "{looks} looks: well once is not yet steady");
    }

    #[tokio::test]
    async fn what_does_not_is_told_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let node = asking(folder.path(), "echo no database >&2; exit 1", "deadline = \"100 ms\"\n");
        let Verdict::Unhealthy(why) = watch(&node, &CancellationToken::new()).await else { panic!("healthy") };
        assert!(why.contains("no database") && why.contains("health.deadline"), "{why}");
        let hanging = asking(folder.path(), "sleep 1000", "deadline = \"100 ms\"\ntime_limit = \"1 s\"\n");
        let Verdict::Unhealthy(why) = watch(&hanging, &CancellationToken::new()).await else { panic!("healthy") };
        assert!(why.contains("a check did not end"), "{why}");
    }

    #[tokio::test]
    async fn a_wish_to_stop_decides_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let node = asking(folder.path(), "exit 1", "");
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(watch(&node, &stop).await, Verdict::Stopped);
    }
}
