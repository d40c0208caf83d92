//! `goldsync-agent explain`: why has this node not updated?
//!
//! [`gather`] looks at everything that a decision hangs on, [`walk`] walks it in the order in which an update would, and knows no
//! clock, file or server. What it says is what the daemon would do now, nobody being at hand.

use std::sync::Arc;

use chrono::Utc;
use goldsync_proto::explain::{State, Walk};
use goldsync_proto::wire::{Held, Outcome, Wait, WaitOn};

use crate::boot::Effect;
use crate::budget::OverBudget;
use crate::config::How;
use crate::journal::Trial;
use crate::link::Link;
use crate::node::Node;
use crate::restart;
use crate::slot::{Kind, SlotName, Source, Standby};
use crate::trial::{self, Standing};
use crate::update::{self, Check, Context, Verdict};

/// What the decision hangs on. `Err` holds what could not be had, for people.
#[derive(Debug)]
pub struct Facts {
    /// The node's name, if it has one.
    pub identity: Result<String, String>,
    /// The server's name, if it could be reached.
    pub server: Result<String, String>,
    /// What the signed metadata wants, if that could be told.
    pub check: Result<Check, String>,
    /// What holds the wanted release back.
    pub held: Option<Held>,
    /// The trial that is on.
    pub trial: Option<(Trial, Standing)>,
    /// Whether the standby slot can take the image.
    pub standby: Result<String, String>,
    /// What is over the budget.
    pub over: Option<OverBudget>,
    /// What keeps the machine from being disturbed.
    pub gate: Option<Wait>,
    /// Whether what was activated needs a restart that is not the agent's.
    pub restart_by_others: bool,
    /// How the last update failed.
    pub failed: Option<String>,
    /// The process that is at work.
    pub working: Option<u32>,
}

/// Looks. `link` is the connection, or why there is none.
pub async fn gather(node: &Node, ctx: &mut Context, link: Result<Arc<Link>, String>) -> Facts {
    let server = link.as_ref().map(|link| link.server().to_owned()).map_err(Clone::clone);
    ctx.link = link.ok();
    ctx.asked = false;
    let check = match &server {
        Ok(_) => update::check(ctx).await.map_err(|error| error.to_string()),
        Err(_) => update::check_offline(ctx).await.map_err(|error| error.to_string()),
    };
    let target = check.as_ref().ok().map(|check| &check.target);
    let held = target.and_then(|target| node.journal.held_back(target.image).ok().flatten());
    let over = match (&check, &server) {
        (Ok(check), Ok(_)) => update::over_budget(ctx, check).await.unwrap_or(None),
        _ => None,
    };
    let effect = ctx.activation.takes_effect();
    let restart = node.config.restart.clone();
    let ours = restart.how != How::None;
    let gate = tokio::task::spawn_blocking(move || restart::gate(&restart, effect, Utc::now())).await;
    let failed = match node.journal.last().ok().flatten().map(|last| last.outcome) {
        Some(Outcome::Failed { error }) => Some(error),
        _ => None,
    };
    Facts {
        identity: node.identity().map(|identity| identity.node().to_string()).map_err(|error| error.to_string()),
        standby: standby(node, ctx, target.map(|target| target.size)),
        trial: trial::look(ctx).unwrap_or(None),
        gate: gate.unwrap_or(None),
        restart_by_others: effect == Effect::AtRestart && !ours,
        working: node.journal.holder(),
        server,
        check,
        held,
        over,
        failed,
    }
}

/// Whether the standby slot can be written and is large enough. What only writing finds out, the last error tells.
fn standby(node: &Node, ctx: &Context, size: Option<u64>) -> Result<String, String> {
    let open = |slot: SlotName| Source::open(slot, node.config.slots.path(slot)).ok();
    let active = ctx.activation.active().map_err(|error| error.to_string())?.and_then(open);
    let slot = ctx.standby().map_err(|error| error.to_string())?;
    let path = node.config.slots.path(slot);
    if let Some(obstacle) = Standby::obstacle(slot, path, active.as_ref()) {
        return Err(obstacle.to_string());
    }
    // A file grows.
    let room = open(slot).filter(|slot| slot.kind() == Kind::Device).map(|device| device.len());
    match room.zip(size) {
        Some((room, size)) if room < size => {
            Err(format!("slot {slot} ({}) has {room} bytes, the image {size}: give it a larger device", path.display()))
        }
        _ => Ok(format!("slot {slot}, {}", path.display())),
    }
}

/// Walks the decision.
pub fn walk(facts: &Facts) -> Walk {
    let mut walk = Walk::default();
    let pass = |fact: &Result<String, String>| match fact {
        Ok(says) => (State::Passes, says.clone()),
        Err(says) => (State::Stops, says.clone()),
    };
    let (state, says) = pass(&facts.identity);
    walk.step("enrolled", state, says);
    // An update under way answers everything.
    if let Some(process) = facts.working {
        walk.step("at work", State::Waits, format!("process {process} is at it now; `goldsync-agent status`"));
    }
    if let Some((Trial { release, slot, .. }, Standing::Running)) = &facts.trial {
        let says = format!("{release} in slot {slot} has to show itself good first; what comes next waits for that");
        walk.step("trial", State::Waits, says);
    }
    let (state, says) = match (&facts.server, &facts.check) {
        (Ok(says), _) => (State::Passes, says.clone()),
        // What is staged already needs no server.
        (Err(says), Ok(Check { verdict: Verdict::Staged | Verdict::Activated, .. })) => (State::Passes, says.clone()),
        (Err(says), _) => (State::Stops, says.clone()),
    };
    walk.step("server", state, says);
    match &facts.check {
        Err(error) => walk.step("release", State::Stops, error.clone()),
        Ok(check) => decide(&mut walk, facts, check),
    }
    walk
}

fn decide(walk: &mut Walk, facts: &Facts, check: &Check) {
    let release = &check.target.release;
    if check.verdict == Verdict::UpToDate {
        let slot = check.active.map_or("?", SlotName::as_str);
        return walk.step(
            "release",
            State::Done,
            format!("{release} is what the channel points at, and runs in slot {slot}"),
        );
    }
    walk.step("release", State::Passes, format!("the channel points at {release}, which is not what runs"));
    match &facts.held {
        Some(held) => {
            let says = format!("since {}: {}; `goldsync-agent sync` goes there again", held.since, held.why);
            walk.step("failed before", State::Stops, says);
        }
        None => walk.step("failed before", State::Passes, "not here"),
    }
    if check.verdict == Verdict::Update {
        match &facts.standby {
            Ok(says) => walk.step("disk", State::Passes, says.clone()),
            Err(says) => walk.step("disk", State::Stops, says.clone()),
        }
        match &facts.over {
            Some(over) => walk.step("budget", State::Stops, over.to_string()),
            None => walk.step("budget", State::Passes, "within it, or none is set"),
        }
        if let Some(error) = &facts.failed {
            walk.step("last try", State::Waits, format!("failed, and is tried again, ever more rarely: {error}"));
        }
        return;
    }
    match &facts.gate {
        Some(wait) => {
            let until = wait.until.as_deref().map(|until| format!(", until {until}")).unwrap_or_default();
            let says = format!("{}{until}; `goldsync-agent sync` does not wait", wait.why);
            let subject = match wait.on {
                WaitOn::Inhibitor => "inhibitors",
                WaitOn::Session => "people",
                _ => "window",
            };
            walk.step(subject, State::Waits, says);
        }
        None => walk.step("window", State::Passes, "open, and nobody is in the way"),
    }
    if check.verdict == Verdict::Activated && facts.restart_by_others {
        let says = "it is activated, and restart.how is \"none\": the next start of the machine runs it";
        walk.step("restart", State::Waits, says);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::ImageId;
    use goldsync_proto::release::{Manifest, Section, Sections};

    fn facts(verdict: Verdict) -> Facts {
        let section = Section { name: ImageId::of(b"section").0, length: 0 };
        let target = Manifest {
            format: 1,
            release: "web:2".parse().unwrap(),
            image: ImageId::of(b"x"),
            size: 4096,
            sections: Sections { subtrees: section, blocks: section, rolling: section },
            file_system: None,
            verity: None,
            minimum_agent: None,
            labels: Default::default(),
            published_at: String::new(),
        };
        let check = Check { target, active: Some(SlotName::A), running: None, verdict };
        Facts {
            identity: Ok("web-1".into()),
            server: Ok("golden.example.net:7400".into()),
            check: Ok(check),
            held: None,
            trial: None,
            standby: Ok("slot b".into()),
            over: None,
            gate: None,
            restart_by_others: false,
            failed: None,
            working: None,
        }
    }

    /// What the walk ends at.
    fn ends(facts: &Facts) -> Option<(&'static str, State)> {
        walk(facts).answer().map(|step| (step.subject, step.state))
    }

    #[test]
    fn each_reason_is_found_where_it_decides() {
        use State::{Done, Stops, Waits};
        assert_eq!(ends(&facts(Verdict::UpToDate)), Some(("release", Done)));
        assert_eq!(ends(&facts(Verdict::Update)), None);
        assert_eq!(ends(&facts(Verdict::Staged)), None);
        let held = Held {
            image: ImageId::of(b"x"),
            release: "web:2".parse().unwrap(),
            since: "2026-11-21T03:00:00Z".into(),
            why: "no database".into(),
        };
        let over = OverBudget { needed: 2, at_most: true, ceiling: 1, of: "x".into() };
        let wait = |on| Some(Wait { on, why: "w".into(), until: None });
        let cases: Vec<(Facts, (&str, State))> = vec![
            (Facts { identity: Err("not enrolled".into()), ..facts(Verdict::Update) }, ("enrolled", Stops)),
            (Facts { working: Some(7), ..facts(Verdict::Update) }, ("at work", Waits)),
            (Facts { server: Err("revoked".into()), ..facts(Verdict::Update) }, ("server", Stops)),
            (Facts { check: Err("expired".into()), ..facts(Verdict::Update) }, ("release", Stops)),
            (Facts { held: Some(held), ..facts(Verdict::Held) }, ("failed before", Stops)),
            (Facts { standby: Err("too small".into()), ..facts(Verdict::Update) }, ("disk", Stops)),
            (Facts { over: Some(over), ..facts(Verdict::Update) }, ("budget", Stops)),
            (Facts { failed: Some("lost".into()), ..facts(Verdict::Update) }, ("last try", Waits)),
            (Facts { gate: wait(WaitOn::Window), ..facts(Verdict::Staged) }, ("window", Waits)),
            (Facts { gate: wait(WaitOn::Session), ..facts(Verdict::Activated) }, ("people", Waits)),
            (Facts { gate: wait(WaitOn::Inhibitor), ..facts(Verdict::Staged) }, ("inhibitors", Waits)),
            (Facts { restart_by_others: true, ..facts(Verdict::Activated) }, ("restart", Waits)),
        ];
        for (facts, expected) in cases {
            assert_eq!(ends(&facts), Some(expected), "{facts:?}");
        }
        // A window is not asked about before there is something to activate.
        assert_eq!(ends(&Facts { gate: wait(WaitOn::Window), ..facts(Verdict::Update) }), None);
        // What is staged needs no server.
        assert_eq!(ends(&Facts { server: Err("down".into()), ..facts(Verdict::Staged) }), None);
    }
}
