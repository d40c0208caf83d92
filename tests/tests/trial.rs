//! What was activated has to show itself good. What does not is left again, by the node itself, and not tried again unasked.
//!
//! Two kinds of machine: one whose slots are in use at once (a link), and one with a boot loader (a program that keeps the
//! slot to start and its tries in a file, and a file that stands for the kernel's command line: the story starts the machine
//! by writing it). The real boot loaders have stories of their own, in virtual machines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use goldsync_agent::slot::SlotName;
use goldsync_proto::wire::Outcome;
use goldsync_tests::wait::eventually;
use goldsync_tests::{Fleet, Image, Machine};

/// A file that says whether the machine is healthy, and the section that looks at it.
fn health(node: &mut Machine) -> PathBuf {
    let file = node.folder.join("sick");
    node.more = format!(
        "[health]\ncommands = [[\"/bin/sh\", \"-c\", \"test ! -e {0} || {{ cat {0} >&2; exit 1; }}\"]]\n\
         every = \"20 ms\"\ndeadline = \"2 s\"\n",
        file.display()
    );
    node.write_config();
    file
}

/// Goal: a release that is not healthy is left again within the same verb, with its reason, and only somebody's word brings
/// the node back to it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_healthy_is_left_again() {
    let fleet = Fleet::start().await;
    let (old, new) = (Image::noise(1, 1), Image::noise(2, 1));
    fleet.ship(&old, "web:1").await;
    let mut node = fleet.node("n1").await;
    let sick = health(&mut node);
    node.sync().await.updated();
    node.runs(&old);
    fleet.ship(&new, "web:2").await;
    fs::write(&sick, "no database").unwrap();
    let (error, code) = node.sync().await.failed();
    assert_eq!(code, 8, "{error}");
    for expected in ["web:2 was not kept", "no database", "went back to web:1"] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    node.runs(&old);
    let status = node.agent(&["status"]).await.ok().out;
    assert!(status.contains("held     web:2") && status.contains("no database"), "{status}");
    // Nobody asked: it is left alone, and nothing is wrong.
    fs::remove_file(&sick).unwrap();
    let daemon = node.daemon();
    let told = async || fleet.operator.node("n1").await?["report"]["held"][0]["release"].as_str().map(str::to_owned);
    assert_eq!(eventually("the held release is told", told).await, "web:2");
    daemon.stop().await;
    node.runs(&old);
    // Somebody asks.
    node.sync().await.updated();
    node.runs(&new);
    assert!(node.node().journal.held().unwrap().is_empty());
}

/// Goal: a trial that was cut off is taken up again by whoever comes first, and decided once.
#[tokio::test(flavor = "multi_thread")]
async fn a_trial_that_was_cut_off_is_taken_up() {
    let fleet = Fleet::start().await;
    let (old, new) = (Image::noise(1, 1), Image::noise(2, 1));
    fleet.ship(&old, "web:1").await;
    let mut node = fleet.node("n1").await;
    let sick = health(&mut node);
    node.sync().await.updated();
    fleet.ship(&new, "web:2").await;
    fs::write(&sick, "still starting").unwrap();
    node.more = node.more.replace("2 s", "1 hour");
    node.write_config();
    let mut run = node.spawn(&["sync"]);
    while node.node().journal.trial().unwrap().is_none_or(|trial| !trial.armed) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The way back is not written while the trial is on, whoever asks.
    let ran = node.agent(&["install", "web:1"]).await;
    assert!(node.record(SlotName::A).proven().is_some(), "{}{}", ran.out, ran.err);
    run.kill().await.unwrap();
    node.runs(&new);
    fs::remove_file(&sick).unwrap();
    let ran = node.agent(&["confirm"]).await.ok();
    assert!(ran.out.contains("web:2: confirmed"), "{}", ran.out);
    assert_eq!(node.node().journal.trial().unwrap(), None);
    assert!(node.agent(&["confirm"]).await.ok().out.contains("nothing on trial"));
    node.runs(&new);
}

/// A machine with a boot loader: the program `loader`, its state, and the kernel's command line.
struct Loader {
    node: Machine,
}

impl Loader {
    async fn on(fleet: &Fleet) -> Self {
        let mut node = fleet.node("n1").await;
        let folder = node.folder.display().to_string();
        let script = format!(
            r#"#!/bin/sh
set -eu
cd '{folder}'
put() {{ echo "$2" > "$1.new"; mv "$1.new" "$1"; }}
active=$(sed -n 's/.*goldsync.slot=//p' cmdline)
case "$1" in
  query) echo "${{active:-none}} $(cat next 2>/dev/null || echo ${{active:-none}}) $(cat tries 2>/dev/null || true)" ;;
  activate) if [ "$GOLDSYNC_TRIES" -gt 0 ]; then put tries "$GOLDSYNC_TRIES"; else rm -f tries; fi; put next "$2" ;;
  retire) if [ "$(cat next 2>/dev/null)" = "$2" ]; then put next "$active"; rm -f tries; fi ;;
  confirm) put next "$2"; rm -f tries ;;
esac
"#
        );
        let program = node.folder.join("loader");
        fs::write(&program, script).expect("the loader's files");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the loader's files");
        fs::write(node.folder.join("cmdline"), "quiet").expect("the loader's files");
        node.activation = format!(
            "backend = \"command\"\ncommand = [\"{folder}/loader\"]\ntakes_effect = \"at-restart\"\ncmdline = \"{folder}/cmdline\"\n"
        );
        node.write_config();
        Self { node }
    }

    fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.node.folder.join(name)).ok().map(|text| text.trim().to_owned())
    }

    /// Starts the machine: the loader takes what it was told to, counting; a slot that does not come up is tried until its tries
    /// are used up.
    fn start(&self, number: u32, comes_up: impl Fn(SlotName) -> bool) -> SlotName {
        let next = self.file("next").expect("something to start").parse::<SlotName>().expect("the loader's files");
        let mut tries: Option<u32> = self.file("tries").map(|tries| tries.parse().expect("the loader's files"));
        let slot = loop {
            match tries.as_mut() {
                Some(0) => break next.other(),
                Some(tries) => *tries -= 1,
                None => {}
            }
            if comes_up(next) {
                break next;
            }
            assert!(tries.is_some(), "slot {next} does not come up, and nobody counts: the machine is lost");
        };
        if let Some(tries) = tries {
            fs::write(self.node.folder.join("tries"), tries.to_string()).expect("the loader's files");
        }
        assert!(self.node.record(slot).proven().is_some(), "slot {slot} was started and is not proven");
        fs::write(self.node.folder.join("cmdline"), format!("run={number} goldsync.slot={slot}"))
            .expect("the loader's files");
        slot
    }

    #[track_caller]
    fn waits(outcome: Outcome) {
        assert!(matches!(&outcome, Outcome::Waits { wait, .. } if wait.why.contains("next start")), "{outcome:?}");
    }
}

/// Goal: update, restart, healthy: kept. Update, restart, does not come up: the old one again, and the reason is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_a_boot_loader() {
    let fleet = Fleet::start().await;
    let images = [Image::noise(1, 1), Image::noise(2, 1), Image::noise(3, 1), Image::noise(4, 1)];
    fleet.ship(&images[0], "web:1").await;
    let machine = Loader::on(&fleet).await;
    let node = &machine.node;
    Loader::waits(node.sync().await.ok());
    assert_eq!(machine.start(1, |_| true), SlotName::A);
    assert!(node.agent(&["confirm"]).await.ok().out.contains("web:1: confirmed"));
    assert_eq!((machine.file("next").as_deref(), machine.file("tries")), (Some("a"), None));

    fleet.ship(&images[1], "web:2").await;
    Loader::waits(node.sync().await.ok());
    assert_eq!((machine.file("next").as_deref(), machine.file("tries").as_deref()), (Some("b"), Some("3")));
    // Before the restart nothing has changed, and asking again does nothing new.
    assert_eq!(node.active(), Some(SlotName::A));
    Loader::waits(node.sync().await.ok());
    let checked = node.agent(&["check"]).await.ok().out;
    assert!(checked.contains("the next start of the machine runs it"), "{checked}");
    // A newer release takes its place: the loader is told first to leave the slot alone.
    fleet.ship(&images[2], "web:3").await;
    Loader::waits(node.sync().await.ok());
    // It does not come up: three tries, then the old one.
    assert_eq!(machine.start(2, |slot| slot == SlotName::A), SlotName::A);
    let (error, code) = node.sync().await.failed();
    assert!(code == 8 && error.contains("web:3 was not kept") && error.contains("all 3 starts"), "{code} {error}");
    assert_eq!((machine.file("next").as_deref(), machine.file("tries")), (Some("a"), None));
    assert!(node.node().journal.held_back(images[2].id().parse().unwrap()).unwrap().is_some());
    // The next release is good; afterwards somebody goes back by hand, and it is for good: nobody counts.
    fleet.ship(&images[3], "web:4").await;
    Loader::waits(node.sync().await.ok());
    assert_eq!(machine.start(3, |_| true), SlotName::B);
    assert!(node.agent(&["confirm"]).await.ok().out.contains("web:4: confirmed"));
    let ran = node.agent(&["rollback"]).await.ok();
    assert!(ran.out.contains("web:1 is activated; the next start"), "{}", ran.out);
    assert_eq!((machine.file("next").as_deref(), machine.file("tries")), (Some("a"), None));
    assert_eq!(machine.start(4, |_| true), SlotName::A);
    node.tells_no_lie();
}

/// Goal: one that comes up and is not healthy goes back by itself; one that was called off is never started.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_comes_up_sick() {
    let fleet = Fleet::start().await;
    let (old, new) = (Image::noise(1, 1), Image::noise(2, 1));
    fleet.ship(&old, "web:1").await;
    let mut machine = Loader::on(&fleet).await;
    let sick = health(&mut machine.node);
    let node = &machine.node;
    Loader::waits(node.sync().await.ok());
    machine.start(1, |_| true);
    node.agent(&["confirm"]).await.ok();
    fleet.ship(&new, "web:2").await;
    Loader::waits(node.sync().await.ok());
    // Called off.
    let ran = node.agent(&["rollback"]).await.ok();
    assert!(ran.out.contains("web:1"), "{}", ran.out);
    assert_eq!(machine.start(2, |_| true), SlotName::A);
    // Asked for again, and sick.
    Loader::waits(node.sync().await.ok());
    fs::write(&sick, "no network").unwrap();
    assert_eq!(machine.start(3, |_| true), SlotName::B);
    let ran = node.agent(&["confirm"]).await.fails(8, &["no network", "went back to web:1"]);
    drop(ran);
    assert_eq!((machine.file("next").as_deref(), machine.file("tries")), (Some("a"), None));
    fs::remove_file(&sick).unwrap();
    assert_eq!(machine.start(4, |_| true), SlotName::A);
    assert!(node.agent(&["confirm"]).await.ok().out.contains("nothing on trial"));
    node.tells_no_lie();
}

/// Goal: outside of its window a daemon stages and waits, and says until when; a person is not made to wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_window_is_waited_for_and_told() {
    let (old, new) = (Image::noise(1, 1), Image::noise(2, 1));
    let (fleet, mut node) = Fleet::with_node(&old).await;
    // Open for one minute, a while ago.
    let then = chrono::Utc::now() - chrono::TimeDelta::hours(2);
    let window = format!("{}-{}", then.format("%H:%M"), (then + chrono::TimeDelta::minutes(1)).format("%H:%M"));
    node.more = format!("[restart]\nwindows = [\"{window}\"]\n");
    node.write_config();
    let daemon = node.daemon();
    fleet.ship(&new, "web:2").await;
    let waiting =
        async || Some(fleet.operator.node("n1").await?["report"].clone()).filter(|report| report["wait"].is_object());
    let report = eventually("the wait is told", waiting).await;
    let wait = &report["wait"];
    assert!(wait["why"].as_str().unwrap().contains(&window) && wait["until"].is_string(), "{wait}");
    assert_eq!(report["standby"]["release"], "web:2", "staged and proven");
    node.runs(&old);
    daemon.stop().await;
    node.sync().await.updated();
    node.runs(&new);
}

/// Goal: more bytes than the budget: nothing is fetched, and the node says what it would take and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_over_the_budget_is_refused_before_it_is_fetched() {
    let (old, new) = (Image::noise(1, 4), Image::noise(2, 4));
    let (fleet, mut node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    node.more = "[budget]\nupdate = \"1 GiB\"\n[[budget.link]]\nclass = \"dear\"\ninterfaces = [\"lo\"]\nupdate = \"256 KiB\"\n".into();
    node.write_config();
    let told = node.sync().await;
    let received = told.wire.received;
    let (error, code) = told.failed();
    assert_eq!(code, 9, "{error}");
    for expected in ["256 KiB", "\"dear\"", "--any-size"] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(received < 64 << 10, "{received} bytes were received all the same");
    node.runs(&old);
    node.agent(&["sync", "--any-size"]).await.ok();
    node.runs(&new);
}

/// Goal: an operator orders a fleet back from a release: nodes that run it go back and stay there, the others do nothing, and
/// `explain` says why on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_orders_the_fleet_back() {
    let (old, new) = (Image::noise(1, 1), Image::noise(2, 1));
    let (fleet, node) = Fleet::with_node(&old).await;
    fleet.ship(&new, "web:2").await;
    node.sync().await.updated();
    let daemon = node.daemon();
    let online = async || fleet.operator.node("n1").await?["connected"].as_bool().filter(|connected| *connected);
    eventually("n1 is connected", online).await;
    let back = async |from: &str| {
        let ordered = fleet.operator.json(["fleet", "rollback", "--channel", "production", "--from", from]).await;
        ordered["tally"].clone()
    };
    assert_eq!(back("web:9").await["up_to_date"], 1, "it does not run that");
    node.runs(&new);
    assert_eq!(back("web:2").await["updated"], 1);
    node.runs(&old);
    assert_eq!(back("web:2").await["up_to_date"], 1, "twice is as good as once");
    node.runs(&old);
    let walk = fleet.operator.json(["fleet", "explain", "n1"]).await;
    let last = walk["steps"].as_array().and_then(|steps| steps.last()).expect("a step").clone();
    assert_eq!((&last["subject"], &last["state"]), (&"failed before".into(), &"stops".into()), "{walk}");
    daemon.stop().await;
    let explained = node.agent(&["explain"]).await.ok().out;
    assert!(explained.contains("STOPS  failed before") && explained.contains("by hand"), "{explained}");
    node.sync().await.updated();
    assert!(node.agent(&["explain"]).await.ok().out.contains("nothing to update"));
}
