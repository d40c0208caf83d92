//! Whatever is interrupted, and wherever: the active image is untouched, no record tells a lie, and the next run goes on from
//! what is there instead of beginning again.
//!
//! A proxy between node and server makes the moments: it cuts the line after a number of bytes and says when it has. In that
//! silence the run is ended, one way or another; then the line is healed and the next run must come through.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use goldsync_agent::journal::SlotRecord;
use goldsync_agent::slot::SlotName;
use goldsync_proto::wire::Outcome;
use goldsync_server::config::Config;
use goldsync_server::config::units::Span;
use goldsync_tests::image::{MIB, b3sum};
use goldsync_tests::{Fleet, Image, Machine, Proxy, damage};
use tokio_util::sync::CancellationToken;

/// What two runs may fetch twice: two requests are under way at a time, each in the middle of a pack of at most 1 MiB, and
/// up to four packs that have arrived and are being unpacked; besides, each run fetches metadata and its plan.
const IN_FLIGHT: u64 = 6 * MIB as u64 + 256 * 1024;

/// A node that runs `old`, behind a proxy, and a channel that has moved on to `new`: 12 MiB of it are new noise.
struct Scene {
    fleet: Fleet,
    proxy: Proxy,
    node: Machine,
    old: Image,
    new: Image,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        Self::on(Fleet::start().await, seed).await
    }

    /// The same with a server that takes three seconds of silence for a peer's end, and tells its nodes to do likewise.
    async fn impatient(seed: u64) -> Self {
        let change = |config: &mut Config| {
            (config.nodes.keep_alive, config.nodes.idle_timeout) = (Span::seconds(1), Span::seconds(3));
        };
        Self::on(Fleet::start_with(change).await, seed).await
    }

    async fn on(fleet: Fleet, seed: u64) -> Self {
        let old = Image::noise(seed, 4);
        let new = Image {
            bytes: [&old.bytes[..2 * MIB], &Image::noise(seed + 1000, 12).bytes, &old.bytes[2 * MIB..]].concat(),
        };
        fleet.ship(&old, "web:1").await;
        let node = fleet.node("n1").await;
        node.sync().await.updated();
        fleet.ship(&new, "web:2").await;
        let proxy = Proxy::to(fleet.quic()).await;
        let node = node.by(proxy.address());
        Self { fleet, proxy, node, old, new }
    }

    /// Forgets what was staged: the node is as before its update.
    fn unstage(&self) {
        let standby = self.node.active().expect("an active slot").other();
        let _ = fs::remove_file(self.node.slot(standby));
        self.node.node().journal.set_empty(standby).expect("the record");
    }

    /// What must be true after every interruption.
    #[track_caller]
    fn untouched(&self) {
        self.node.runs(&self.old);
        self.node.tells_no_lie();
    }

    /// Lets the next run come through; what it received.
    async fn go_on(&self) -> u64 {
        self.proxy.heal();
        let before = self.proxy.received();
        self.node.sync().await.updated();
        self.node.runs(&self.new);
        self.node.tells_no_lie();
        self.proxy.received() - before
    }
}

/// The points at which the line is cut: while metadata, plan, the first packs and later ones are under way.
const POINTS: [u64; 7] = [500, 6_000, 40_000, 700_000, 3_000_000, 6_000_000, 10_000_000];

/// Goal: a killed process costs what was in flight. SIGKILL leaves no time for anything, as a power cut does.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_many_points() {
    let scene = Scene::new(1).await;
    let whole = scene.new.len() - scene.old.len();
    for at in POINTS {
        scene.proxy.cut_after(at);
        let mut run = scene.node.spawn(&["sync"]);
        scene.proxy.is_cut().await;
        // What has arrived may be written; the line is silent, so that this adds nothing but that.
        tokio::time::sleep(Duration::from_millis(100)).await;
        run.kill().await.expect("SIGKILL");
        scene.untouched();
        let received = scene.go_on().await;
        assert!(received <= whole + IN_FLIGHT - at, "cut at {at}: {received} bytes were fetched afterwards");
        // Back to the beginning for the next point.
        scene.node.agent(&["rollback"]).await.ok();
        scene.unstage();
    }
}

/// Goal: the same when the operator stops it (a token in the library, SIGINT on the command line), which says what it left.
#[tokio::test(flavor = "multi_thread")]
async fn stopped_at_many_points() {
    let scene = Scene::new(2).await;
    let whole = scene.new.len() - scene.old.len();
    for (number, at) in POINTS.into_iter().enumerate().skip(1) {
        scene.proxy.cut_after(at);
        if number % 2 == 0 {
            let stop = CancellationToken::new();
            let (told, ()) = tokio::join!(scene.node.sync_until(stop.clone()), async {
                scene.proxy.is_cut().await;
                stop.cancel();
            });
            let (error, code) = told.failed();
            assert_eq!(code, 130, "{error}");
            assert!(error.contains("the active slot is untouched"), "{error}");
        } else {
            let run = scene.node.spawn(&["sync"]);
            scene.proxy.is_cut().await;
            let id = run.id().expect("a process").to_string();
            let kill = tokio::process::Command::new("kill").args(["-INT", &id]).status().await;
            assert!(kill.expect("kill").success());
            let ran = scene.node.finish(run).await.fails(130, &["interrupted", "untouched"]);
            if at > 700_000 {
                assert!(ran.err.contains("web:2") && ran.err.contains("goes on from it"), "{}", ran.err);
            }
        }
        scene.untouched();
        let received = scene.go_on().await;
        assert!(received <= whole + IN_FLIGHT - at, "cut at {at}: {received} bytes were fetched afterwards");
        scene.node.agent(&["rollback"]).await.ok();
        scene.unstage();
    }
}

/// Goal: a future that is dropped where it stands (a library's user, a panic elsewhere) is no different.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_in_the_middle() {
    let scene = Scene::new(3).await;
    scene.proxy.cut_after(5_000_000);
    let node = scene.node.clone();
    let run = tokio::spawn(async move { node.sync().await });
    scene.proxy.is_cut().await;
    run.abort();
    let _ = run.await;
    scene.untouched();
    scene.go_on().await;
}

/// Goal: interrupted again and again, it gets there, and all runs together fetch little more than one would.
#[tokio::test(flavor = "multi_thread")]
async fn many_short_runs_add_up() {
    let scene = Scene::new(4).await;
    let before = scene.proxy.received();
    let mut runs = 0;
    loop {
        runs += 1;
        assert!(runs < 12, "it does not get on");
        scene.proxy.cut_after(5 * MIB as u64);
        let mut run = scene.node.spawn(&["sync"]);
        let done = tokio::select! {
            () = scene.proxy.is_cut() => false,
            status = run.wait() => { assert!(status.expect("a run").success()); true }
        };
        if done {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        run.kill().await.expect("SIGKILL");
        scene.untouched();
        scene.proxy.heal();
    }
    scene.node.runs(&scene.new);
    let received = scene.proxy.received() - before;
    let most = 12 * MIB as u64 + (runs - 1) * IN_FLIGHT;
    assert!(received <= most, "{received} bytes in {runs} runs, {most} at most");
}

/// Goal: a server that is stopped in the middle of a download lets what was asked for end, and then says goodbye; the node
/// says what happened, and goes on when it is back. Three requests make this download, two of them are under way at the cut.
#[tokio::test(flavor = "multi_thread")]
async fn server_restart_in_the_middle() {
    let mut scene = Scene::new(5).await;
    scene.proxy.cut_after(5_000_000);
    let node = scene.node.clone();
    let run = tokio::spawn(async move { node.sync().await });
    scene.proxy.is_cut().await;
    scene.proxy.heal();
    scene.fleet.down().await;
    let (error, code) = run.await.expect("a run").failed();
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("shutting down"), "{error}");
    scene.untouched();
    scene.fleet.up().await;
    let received = scene.go_on().await;
    assert!(received < 12 * MIB as u64 - 5_000_000 + IN_FLIGHT, "{received}");
}

/// Goal: the same when the server dies: its silence is an error, and what has arrived is kept.
#[tokio::test(flavor = "multi_thread")]
async fn server_crash_in_the_middle() {
    let mut scene = Scene::impatient(19).await;
    scene.proxy.cut_after(5_000_000);
    let node = scene.node.clone();
    let run = tokio::spawn(async move { node.sync().await });
    scene.proxy.is_cut().await;
    scene.fleet.crash().await;
    scene.proxy.heal();
    scene.fleet.up().await;
    let (error, code) = run.await.expect("a run").failed();
    assert_eq!(code, 4, "{error}");
    scene.untouched();
    let received = scene.go_on().await;
    assert!(received < 12 * MIB as u64 - 5_000_000 + IN_FLIGHT, "{received}");
}

/// Goal: a line that went silent is given up, with an error that says so, instead of waiting for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_line_is_given_up() {
    let scene = Scene::impatient(6).await;
    scene.proxy.cut_after(1_000_000);
    let (error, code) = scene.node.sync().await.failed();
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("the connection was lost"), "{error}");
    scene.untouched();
    scene.go_on().await;
}

/// Goal: no server at all is an error of its own, and costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers() {
    let scene = Scene::new(7).await;
    let before = scene.node.stamps();
    scene.proxy.cut();
    let server = scene.proxy.address().to_string();
    scene.node.agent(&["check"]).await.fails(4, &[&server, "cannot be reached", "goldsync serve"]);
    assert_eq!(scene.node.stamps().differing(&before), Vec::<std::path::PathBuf>::new());
}

/// Goal: a bad line makes it slow and nothing else: packets lost, late, and out of order.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_loses_and_delays() {
    let scene = Scene::new(8).await;
    scene.proxy.lose(0.02, 8);
    scene.proxy.delay(Duration::from_millis(2));
    scene.go_on().await;
}

/// Goal: two runs never meet in one slot: the second one says who is at it, and leaves.
#[tokio::test(flavor = "multi_thread")]
async fn one_run_at_a_time() {
    let scene = Scene::new(9).await;
    scene.proxy.cut_after(1_000_000);
    let mut first = scene.node.spawn(&["sync"]);
    scene.proxy.is_cut().await;
    let holder = format!("process {}", first.id().expect("a process"));
    // The first run has read its configuration; the others go past the silent proxy.
    let node = scene.node.by(scene.fleet.quic());
    for verb in ["sync", "download", "activate", "rollback", "repair"] {
        node.agent(&[verb]).await.fails(75, &["at work", &holder]);
    }
    // Looking is allowed to everybody.
    let status = scene.node.agent(&["status", "--json"]).await.ok().json();
    assert_eq!(status["working"], first.id().expect("a process"), "{status}");
    first.kill().await.expect("SIGKILL");
    scene.untouched();
    scene.node.write_config();
    scene.go_on().await;
}

/// Goal: what lies in a half-written slot is believed only as far as it is right, whatever happened to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_slot_that_rots() {
    let scene = Scene::new(10).await;
    scene.proxy.cut_after(6_000_000);
    let mut run = scene.node.spawn(&["sync"]);
    scene.proxy.is_cut().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    run.kill().await.expect("SIGKILL");
    let standby = SlotName::B;
    assert!(matches!(scene.node.record(standby), SlotRecord::Staging(_)), "{:?}", scene.node.record(standby));
    damage::scribble(scene.node.slot(standby), 100, 3 * MIB as u64 + 123, 2 * MIB);
    damage::tear(scene.node.slot(standby), 0.7);
    scene.untouched();
    scene.go_on().await;
}

/// Goal: a standby slot that was proven and rotted since is found out before it is activated.
#[tokio::test(flavor = "multi_thread")]
async fn a_proven_slot_that_rots() {
    let scene = Scene::new(11).await;
    scene.node.download().await.ok();
    damage::flip(scene.node.slot(SlotName::B), 110, 3);
    scene.node.agent(&["activate"]).await.fails(7, &["slot b", &scene.new.id()]);
    scene.untouched();
    scene.node.agent(&["activate"]).await.fails(1, &["slot b"]);
    // `sync` mends it: three blocks and what belongs to a look.
    let before = scene.proxy.received();
    scene.node.sync().await.updated();
    scene.node.runs(&scene.new);
    let received = scene.proxy.received() - before;
    assert!(received < 4 * MIB as u64, "{received} bytes for three blocks");
}

/// Goal: the same, when `sync` itself finds it staged.
#[tokio::test(flavor = "multi_thread")]
async fn a_staged_slot_that_rots_is_staged_anew() {
    let scene = Scene::new(12).await;
    scene.node.download().await.ok();
    damage::scribble(scene.node.slot(SlotName::B), 120, MIB as u64, 8192);
    scene.node.sync().await.updated();
    scene.node.runs(&scene.new);
}

/// Goal: the same for a slot's file that somebody removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_staged_slot_that_is_removed_is_staged_anew() {
    let scene = Scene::new(20).await;
    scene.node.download().await.ok();
    fs::remove_file(scene.node.slot(SlotName::B)).expect("the staged slot");
    scene.node.sync().await.updated();
    scene.node.runs(&scene.new);
}

/// Goal: files of the state folder that were torn or zeroed by a power cut cost a proof at most, never an image.
#[tokio::test(flavor = "multi_thread")]
async fn torn_state_files() {
    let scene = Scene::new(13).await;
    let state = scene.node.state();
    scene.node.agent(&["verify"]).await.ok();
    let files = ["slots/a.json", "slots/a.blocks", "last.json", "drift.json"];
    for (number, file) in files.iter().cycle().take(3 * files.len()).enumerate() {
        let path = state.join(file);
        if !path.exists() {
            continue;
        }
        match number / files.len() {
            0 => damage::tear(&path, 0.5),
            1 => damage::zero(&path),
            _ => fs::remove_file(&path).expect(file),
        }
        scene.node.tells_no_lie();
        scene.node.agent(&["status"]).await.ok();
        let told = scene.node.sync().await;
        assert!(told.result.is_ok(), "{file}: {:?}", told.result);
        scene.node.runs(&scene.new);
        scene.node.tells_no_lie();
        // Back, so that there is something to do each time. What was proven may have been forgotten: no rollback.
        scene.fleet.operator.promote("web:1", "production").await;
        scene.node.sync().await.updated();
        scene.node.runs(&scene.old);
        scene.fleet.operator.promote("web:2", "production").await;
        scene.node.agent(&["verify"]).await.ok();
    }
}

/// Goal: an identity that cannot be read is said to be so, and how to get a new one; nothing else is touched.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_identity() {
    let scene = Scene::new(14).await;
    damage::tear(&scene.node.state().join("identity.pem"), 0.6);
    let before = scene.node.stamps();
    scene.node.agent(&["check"]).await.fails(2, &["identity.pem", "enrol again"]);
    assert_eq!(scene.node.stamps().differing(&before), Vec::<std::path::PathBuf>::new());
    scene.untouched();
}

/// Goal: signed metadata that was damaged on this disk is not believed, and fetched again, in the same run.
#[tokio::test(flavor = "multi_thread")]
async fn torn_metadata() {
    let scene = Scene::new(15).await;
    let current = scene.node.state().join("trust/current");
    let files = || -> Vec<_> {
        let entries = fs::read_dir(&current).expect("the copy").map(|entry| entry.expect("entry").path());
        // A clock that was wrong is an error of its own: whether it was, only a person can tell.
        let clock = |path: &Path| path.ends_with("latest_known_time.json");
        entries.filter(|path| path.extension().is_some_and(|kind| kind == "json") && !clock(path)).collect()
    };
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 4] = [
        ("torn", |path| damage::tear(path, 0.5)),
        ("zeroed", damage::zero),
        ("flipped", |path| _ = damage::flip_byte(path, 0.6)),
        ("gone", |path| fs::remove_file(path).expect("a file")),
    ];
    for (what, harm) in harms {
        for number in 0..files().len() {
            let mut all = files();
            all.sort();
            let Some(path) = all.get(number) else { continue };
            let name = path.display().to_string();
            harm(path);
            let told = scene.node.check().await;
            assert!(told.result.is_ok(), "{what} {name}: {:?}", told.result.map(|_| ()));
        }
    }
    scene.untouched();
    scene.go_on().await;
    // Nothing of it lingers: the next look is as small as ever.
    let told = scene.node.check().await;
    assert!(told.wire.received + told.wire.sent < 2048, "{:?}", told.wire);
}

/// Goal: a trust folder that was lost whole is said to be, and enrolling again makes it anew; slots and records stay.
#[tokio::test(flavor = "multi_thread")]
async fn lost_metadata() {
    let scene = Scene::new(18).await;
    for lost in ["trust/current", "trust"] {
        let path = scene.node.state().join(lost);
        if fs::symlink_metadata(&path).expect(lost).is_dir() {
            fs::remove_dir_all(&path).expect(lost);
        } else {
            fs::remove_file(&path).expect(lost);
        }
        scene.node.agent(&["check"]).await.fails(3, &["no trusted root", "goldsync-agent enroll"]);
        scene.untouched();
        let token = scene.fleet.operator.token().await;
        scene.node.agent(&["enroll", "--force", "--token", &token]).await.ok();
        scene.node.agent(&["check"]).await.ok();
        scene.untouched();
    }
    scene.go_on().await;
}

/// Goal: a crash between making the new link and renaming it leaves the old one, and does not stop the next swap.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_within_the_swap() {
    let scene = Scene::new(16).await;
    symlink(scene.node.slot(SlotName::B), scene.node.folder.join(".current.goldsync")).expect("a link left behind");
    scene.untouched();
    scene.go_on().await;
}

/// Goal: a crash after the swap, before anything was noted of it, leaves a node that knows what it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_after_the_swap() {
    let scene = Scene::new(17).await;
    scene.node.download().await.ok();
    // The swap's one step, by hand: nothing else of it happened.
    let next = scene.node.folder.join("next");
    symlink(scene.node.slot(SlotName::B), &next).expect("a link");
    fs::rename(&next, scene.node.link()).expect("the swap");
    scene.node.runs(&scene.new);
    assert!(matches!(scene.node.sync().await.ok(), Outcome::UpToDate));
    scene.node.agent(&["rollback"]).await.ok();
    assert_eq!(b3sum(&scene.node.link()), scene.old.id());
}

/// Goal: an enrolment whose answer is lost costs no token: the second try is the same node. Nobody else is.
#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_whose_answer_is_lost() {
    let fleet = Fleet::start().await;
    let proxy = Proxy::to(fleet.quic()).await;
    fleet.machine("n1").by(proxy.address()).enrol(&fleet.operator).await;
    // Handshake and answer; the answer's end, the first signed root, alone has more than this.
    proxy.cut_after(proxy.received() - 2000);
    let (machine, token) = (fleet.machine("n2").by(proxy.address()), fleet.operator.token().await);
    let tried = {
        let (machine, token) = (machine.clone(), token.clone());
        tokio::spawn(async move { machine.try_enrol(&token).await })
    };
    proxy.is_cut().await;
    tried.abort();
    assert!(tried.await.is_err_and(|ended| ended.is_cancelled()), "it never had the whole answer");
    assert!(fleet.operator.node("n2").await.is_some(), "the server has made it a node");

    let thief = fleet.machine("n3").try_enrol(&token).await.unwrap_err();
    assert!(thief.contains("unknown, used up or expired"), "{thief}");
    let machine = machine.by(fleet.quic());
    assert_eq!(machine.try_enrol(&token).await.as_deref(), Ok("n2"));
    assert!(!machine.state().join("enrol.key").exists());
    let image = Image::new(7, 1);
    fleet.ship(&image, "web:1").await;
    machine.sync().await.updated();
    machine.runs(&image);
    assert!(fleet.operator.node("n2-2").await.is_none());
}
