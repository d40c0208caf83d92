//! The stories of a fleet, told with the real programs on small images.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use goldsync_proto::wire::Outcome;
use goldsync_tests::images::Pair;
use goldsync_tests::node::hash;
use goldsync_tests::programs::Daemon;
use goldsync_tests::scene::{CHANNEL, NAME, Scene, outcome, runs, updated};
use goldsync_tests::{Node, Run};

fn scene() -> Result<Scene> {
    Scene::open(env!("CARGO_BIN_EXE_goldsync-demo"))
}

/// A server with the old image released, and a node that runs it.
fn settled() -> Result<(Scene, Pair, Node)> {
    let scene = scene()?;
    let pair = scene.images()?;
    scene.release(&pair.old, "1")?;
    let node = scene.node("node")?;
    node.agent(["sync"])?.ok()?;
    runs(&node, &pair.old)?;
    Ok((scene, pair, node))
}

/// The run must have failed with this code, and say each of these.
fn refused(run: Run, code: i32, says: &[&str]) -> Result<()> {
    let run = run.expect(code)?;
    let said = format!("{}{}", run.stdout, run.stderr);
    says.iter().try_for_each(|word| {
        ensure!(said.contains(word), "{}: {word:?} is not in: {said}", run.line);
        Ok(())
    })
}

#[test]
fn a_node_comes_up_cold_updates_by_pack_and_then_stays() -> Result<()> {
    let (scene, pair, node) = settled()?;
    scene.release(&pair.new, "2")?;
    let account = updated(&node.agent(["sync", "--json"])?.ok()?)?;
    runs(&node, &pair.new)?;
    ensure!(account.path == "pack" && account.written > 0, "{account:?}");

    let before = fs::metadata(node.slot("a"))?.modified()?;
    let again = node.agent(["sync", "--json"])?.ok()?;
    ensure!(outcome(&again)? == Outcome::UpToDate, "{}", again.stdout);
    ensure!(fs::metadata(node.slot("a"))?.modified()? == before, "a slot was written for nothing");
    Ok(())
}

#[test]
fn downloading_and_activating_are_two_steps() -> Result<()> {
    let (scene, pair, node) = settled()?;
    scene.release(&pair.new, "2")?;
    node.agent(["download"])?.ok()?;
    runs(&node, &pair.old)?;
    node.agent(["activate"])?.ok()?;
    runs(&node, &pair.new)?;
    node.agent(["rollback"])?.ok()?;
    runs(&node, &pair.old)
}

#[test]
fn a_channel_that_points_back_takes_its_nodes_back() -> Result<()> {
    let (scene, pair, node) = settled()?;
    scene.release(&pair.new, "2")?;
    node.agent(["sync"])?.ok()?;
    scene.server.promote(&format!("{NAME}:1"), CHANNEL)?;
    node.agent(["sync"])?.ok()?;
    runs(&node, &pair.old)?;
    let history = scene.server.goldsync(["channel", "history", CHANNEL, "--json"])?.ok()?.json()?;
    let releases: Vec<_> = history.as_array().context("a list")?.iter().map(|entry| entry["release"].clone()).collect();
    ensure!(releases == ["story:1", "story:2", "story:1"], "{releases:?}");
    Ok(())
}

#[test]
fn drift_is_found_and_only_what_drifted_is_fetched() -> Result<()> {
    let (_scene, pair, node) = settled()?;
    node.agent(["verify"])?.ok()?;
    node.drift(&[0, 17, 18])?;
    let found = node.agent(["verify"])?.expect(6)?;
    ensure!(found.stdout.contains("0+1, 17+2"), "{}", found.stdout);
    let drifted = node.active()?.context("an active slot")?;
    let account = updated(&node.agent(["repair", "--json"])?.ok()?)?;
    ensure!(account.path == "repair", "{account:?}");
    runs(&node, &pair.old)?;
    ensure!(node.active()? != Some(drifted.clone()), "the active slot was repaired in place");
    ensure!(hash(&node.slot(&drifted))? != hash(&pair.old)?, "the active slot was written");
    node.agent(["verify"])?.ok().map(drop)
}

/// Goal: no moment of death costs the image that runs. Method: kill the agent after ever longer, until it once comes
/// through; whatever it left, the active slot is whole, and a run that nobody disturbs ends well.
#[test]
fn a_killed_agent_leaves_the_active_image_and_goes_on() -> Result<()> {
    let (scene, pair, node) = settled()?;
    scene.release(&pair.new, "2")?;
    for pause in [0, 5, 10, 20, 40, 80, 160] {
        let mut command = scene.programs.command("goldsync-agent");
        command.arg("--config").arg(node.config()).arg("sync");
        let daemon = Daemon::start(command, &node.folder().join("sync.log"))?;
        std::thread::sleep(Duration::from_millis(pause));
        daemon.kill()?;
        let found = node.runs()?;
        let images = [hash(&pair.old)?, hash(&pair.new)?];
        ensure!(found.as_ref().is_some_and(|found| images.contains(found)), "after {pause} ms it runs {found:?}");
    }
    node.agent(["sync"])?.ok()?;
    runs(&node, &pair.new)
}

#[test]
fn a_killed_server_loses_nothing_that_was_acknowledged() -> Result<()> {
    let (mut scene, pair, node) = settled()?;
    scene.release(&pair.new, "2")?;
    scene.server.kill()?;
    refused(node.agent(["sync"])?, 4, &[scene.server.address()])?;
    runs(&node, &pair.old)?;
    scene.server.start()?;
    node.agent(["sync"])?.ok()?;
    runs(&node, &pair.new)
}

/// A publish whose server dies leaves nothing visible, and the next one succeeds.
#[test]
fn a_publish_that_dies_is_taken_up_again() -> Result<()> {
    let mut scene = scene()?;
    let pair = scene.images()?;
    for pause in [0, 20, 60, 150] {
        let mut command = scene.programs.command("goldsync");
        command.arg("--operator").arg(scene.server.operator());
        command.args(["publish", "--name", NAME, "--version", "1", "--quiet"]).arg(&pair.old);
        let publish = Daemon::start(command, &scene.folder().join("publish.log"))?;
        std::thread::sleep(Duration::from_millis(pause));
        publish.kill()?;
        scene.server.kill()?;
        scene.server.start()?;
    }
    scene.release(&pair.old, "1")?;
    let releases = scene.server.goldsync(["release", "list", "--json"])?.ok()?.json()?;
    ensure!(releases.as_array().map(Vec::len) == Some(1), "{releases}");
    let node = scene.node("node")?;
    node.agent(["sync"])?.ok()?;
    runs(&node, &pair.old)
}

#[test]
fn a_release_never_changes() -> Result<()> {
    let scene = scene()?;
    let pair = scene.images()?;
    scene.release(&pair.old, "1")?;
    let again = scene.server.publish(&pair.old, NAME, "1")?;
    ensure!(again["already_published"] == true, "{again}");
    let new = pair.new.to_str().context("a path")?;
    let other = scene.server.goldsync(["publish", new, "--name", NAME, "--version", "1", "--quiet"])?;
    refused(other, 1, &["story:1"])
}

#[test]
fn a_daemon_is_told_and_moves_by_itself() -> Result<()> {
    let (scene, pair, mut node) = settled()?;
    node.configure(CHANNEL, "0 s")?;
    node.start()?;
    wait_connected(&scene, &mut node)?;
    scene.release(&pair.new, "2")?;
    let golden = hash(&pair.new)?;
    let slots = node.folder().to_owned();
    let moved = || Ok(current(&slots)? == Some(golden.clone()));
    node.daemon().context("a daemon")?.wait_until("moved", moved)?;
    node.stop()
}

#[test]
fn a_fleet_sync_reaches_all_and_says_who_failed() -> Result<()> {
    let (scene, pair, mut well) = settled()?;
    let mut ill = scene.node("ill")?;
    ill.agent(["sync"])?.ok()?;
    for node in [&mut well, &mut ill] {
        node.start()?;
        wait_connected(&scene, node)?;
    }
    // A folder in the place of the standby slot cannot become an image.
    fs::create_dir(ill.slot("b"))?;
    scene.release(&pair.new, "2")?;
    let all = ["fleet", "sync", "--channel", CHANNEL, "--now", "--json"];
    let run = scene.server.goldsync(all)?.expect(1)?;
    let account = run.json()?;
    // It was told of the move too, and may have been quicker than the order.
    let well_done = &account["nodes"]["node"]["outcome"]["outcome"];
    ensure!(well_done == "updated" || well_done == "up_to_date", "{account}");
    ensure!(account["nodes"]["ill"]["outcome"]["outcome"] == "failed", "{account}");
    runs(&well, &pair.new)?;
    runs(&ill, &pair.old)?;

    fs::remove_dir(ill.slot("b"))?;
    scene.server.goldsync(all)?.ok()?;
    runs(&ill, &pair.new)
}

#[test]
fn a_revoked_node_is_cut_off_at_once() -> Result<()> {
    let (scene, pair, mut node) = settled()?;
    node.start()?;
    wait_connected(&scene, &mut node)?;
    scene.server.goldsync(["node", "revoke", "node"])?.ok()?;
    scene.release(&pair.new, "2")?;
    let status = scene.server.goldsync(["status", "--json"])?.ok()?.json()?;
    ensure!(status["connected"] == 0 && status["nodes"] == 0, "{status}");
    node.kill()?;
    refused(node.agent(["sync"])?, 4, &["revoked"])?;
    runs(&node, &pair.old)
}

#[test]
fn a_token_is_good_once_and_only_at_its_own_server() -> Result<()> {
    let (one, other) = (scene()?, scene()?);
    let token = one.server.token(&[])?;
    let enrol = |scene: &Scene, name: &str| -> Result<Run> {
        scene.machine(name)?.agent(["enroll", "--server", scene.server.address(), "--token", &token, "--name", name])
    };
    // Another fleet's server shows another CA: refused before the secret is sent, so that the token is still good.
    refused(enrol(&other, "first")?, 3, &["it is not the server that made the token"])?;
    enrol(&one, "second")?.ok()?;
    refused(enrol(&one, "third")?, 4, &["token"])?;
    refused(one.machine("fourth")?.agent(["sync"])?, 2, &["enroll"])
}

#[test]
fn a_bad_configuration_or_slot_is_one_clear_error() -> Result<()> {
    let (scene, pair, node) = settled()?;
    scene.release(&pair.new, "2")?;
    let good = fs::read_to_string(node.config())?;
    let with = |text: &str| fs::write(node.config(), text);

    with(&good.replace("backend", "backnd"))?;
    refused(node.agent(["sync"])?, 2, &["backnd", "backend"])?;
    with(&good.replace("b.img", "a.img"))?;
    refused(node.agent(["sync"])?, 2, &["a.img"])?;
    with(&good.replace("[slots]", "[slots]\nsize = \"1 MiB\""))?;
    refused(node.agent(["sync"])?, 5, &["1048576"])?;
    with(&good.replace("b.img", "missing/b.img"))?;
    refused(node.agent(["sync"])?, 5, &["missing/b.img"])?;
    runs(&node, &pair.old)?;
    with(&good)?;
    node.agent(["sync"])?.ok()?;
    runs(&node, &pair.new)
}

/// Goal: history that nobody needs can be given up, and nothing else. Method: a release at each place where one can be needed
/// (a channel, an active slot, a standby slot), then one place after the other let go.
#[test]
fn what_is_in_use_cannot_be_pruned_and_the_rest_gives_its_space_back() -> Result<()> {
    let (mut scene, pair, mut node) = settled()?;
    let drop_ins = scene.server.data().join("server.d");
    fs::create_dir_all(&drop_ins)?;
    // Plans made in the background would take space, and use images, while it is watched what is given back.
    fs::write(drop_ins.join("grace.toml"), "[store]\ngrace = \"1 s\"\n[plans]\nthorough = false\n")?;
    scene.server.stop()?;
    scene.server.start()?;
    node.configure(CHANNEL, "0 s")?;
    node.start()?;
    wait_connected(&scene, &mut node)?;
    scene.release(&pair.new, "2")?;
    wait_slots(&scene, &mut node, "story:2", "story:1")?;
    node.stop()?;
    let third = scene.folder().join("third");
    let mut bytes = fs::read(&pair.old)?;
    bytes[4096..8192].fill(3);
    fs::write(&third, &bytes)?;
    scene.release(&third, "3")?;

    let prune = |args: &[&str]| scene.server.goldsync([&["release", "prune"], args].concat());
    refused(prune(&["story:3"])?, 1, &["story:3 is needed", "channel dev points at it", "nothing was pruned"])?;
    refused(prune(&["story:2"])?, 1, &["story:2 is needed", "node node runs it"])?;
    refused(prune(&["story:1"])?, 1, &["story:1 is needed", "node node holds it in its standby slot"])?;
    let all = prune(&["--keep", "1", "--json"])?.ok()?.json()?;
    ensure!(all["pruned"] == serde_json::json!([]), "{all}");
    ensure!(all["needed"].as_array().map(Vec::len) == Some(2), "{all}");
    let releases = || scene.server.goldsync(["release", "list", "--json"])?.ok()?.json();
    ensure!(releases()?.as_array().map(Vec::len) == Some(3));

    // The node moves on: the first release is nobody's any more.
    node.start()?;
    wait_slots(&scene, &mut node, "story:3", "story:2")?;
    let stored = || -> Result<u64> {
        let status = scene.server.goldsync(["status", "--json"])?.ok()?.json()?;
        status["stored"].as_u64().context("stored")
    };
    let before = stored()?;
    let dry = prune(&["--keep", "1", "--dry-run", "--json"])?.ok()?.json()?;
    ensure!(dry["pruned"] == serde_json::json!(["story:1"]) && dry["needed"][0]["release"] == "story:2", "{dry}");
    ensure!(releases()?.as_array().map(Vec::len) == Some(3), "a dry run changes nothing");
    let done = prune(&["--keep", "1", "--json"])?.ok()?.json()?;
    ensure!(done["pruned"] == dry["pruned"] && done["frees"] == dry["frees"], "{done}");
    let frees = done["frees"].as_u64().context("frees")?;
    ensure!(frees > 0, "{done}");
    let freed = || Ok(stored()? + frees <= before);
    node.daemon().context("a daemon")?.wait_until("the space is given back", freed)?;
    node.stop()?;

    // Its name is taken for ever; what stays is whole, also when the server was killed meanwhile.
    let new = pair.new.to_str().context("a path")?;
    let other = scene.server.goldsync(["publish", new, "--name", NAME, "--version", "1", "--quiet"])?;
    refused(other, 1, &["story:1"])?;
    scene.server.kill()?;
    scene.server.start()?;
    runs(&node, &third)?;
    node.agent(["rollback"])?.ok()?;
    runs(&node, &pair.new)?;
    node.drift(&[3, 4, 900])?;
    node.agent(["repair"])?.ok()?;
    runs(&node, &pair.new)?;
    let fresh = scene.node("fresh")?;
    fresh.agent(["sync"])?.ok()?;
    runs(&fresh, &third)
}

/// Waits until the server was told what the node's slots hold.
fn wait_slots(scene: &Scene, node: &mut Node, active: &str, standby: &str) -> Result<()> {
    let name = node.name().to_owned();
    let told = || {
        let nodes = scene.server.goldsync(["node", "list", "--json"])?.ok()?.json()?;
        let node = nodes.as_array().context("a list of nodes")?.iter().find(|node| node["node"] == name.as_str());
        let report = node.map(|node| node["report"].clone()).unwrap_or_default();
        Ok(report["active"]["release"] == active && report["standby"]["release"] == standby)
    };
    node.daemon().context("a daemon")?.wait_until("told what its slots hold", told)
}

fn wait_connected(scene: &Scene, node: &mut Node) -> Result<()> {
    let name = node.name().to_owned();
    let connected = || {
        let nodes = scene.server.goldsync(["node", "list", "--json"])?.ok()?.json()?;
        let all = nodes.as_array().context("a list of nodes")?;
        Ok(all.iter().any(|node| node["node"] == name.as_str() && node["connected"] == true))
    };
    node.daemon().context("a daemon")?.wait_until("connected", connected)
}

/// The BLAKE3 of what the link leads to.
fn current(folder: &Path) -> Result<Option<String>> {
    let link = folder.join("current");
    if link.exists() { hash(&link).map(Some) } else { Ok(None) }
}
