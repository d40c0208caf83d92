//! The comparison with goldsync itself in it: every situation once, on small images of real data, with real processes. Bytes are
//! judged, seconds are not; that every figure is there is what keeps the comparison from rotting.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// Enough for the drift to be 200 blocks, and done in a minute.
const MEBIBYTES: u64 = 16;

/// Bytes of packets that a busy machine loses and sends again, and of a connection that the forecast takes to be smaller.
const SLACK: u64 = 12 << 10;

fn compare(folder: &Path) -> Result<(Value, String)> {
    let pair = goldsync_tests::images::from_toolchain(folder, MEBIBYTES)?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (old, new) = (name(&pair.old), name(&pair.new));
    let mut drifted = std::fs::read(&pair.new)?;
    drifted.iter_mut().step_by(40 * 4096).for_each(|byte| *byte = !*byte);
    std::fs::write(folder.join("node-drift"), drifted)?;
    std::fs::write(folder.join("pairs"), format!("toolchain {old} {new}\nrepair node-drift {new}\n"))?;
    let (json, markdown, plots) = (folder.join("all.json"), folder.join("all.md"), folder.join("plots"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsync-compare"));
    command.arg("--images").arg(folder).arg("--scratch").arg(folder);
    command.args(["--peers", "goldsync,xdelta3", "--repeat", "1", "--json"]).arg(&json);
    command.arg("--markdown").arg(&markdown).arg("--plots").arg(&plots);
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(plots.join("toolchain.svg").is_file() && plots.join("repair.svg").is_file());
    let report = std::fs::read_to_string(json).context("the JSON")?;
    Ok((serde_json::from_str(&report)?, std::fs::read_to_string(markdown)?))
}

fn all(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn one<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    all(list).find(|one| one[key] == name).unwrap_or_else(|| panic!("no {name} in {list:#}"))
}

#[test]
fn goldsync_is_measured_in_every_situation_and_held_against_its_aims() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (report, markdown) = compare(folder.path())?;
    let pair = one(&report["pairs"], "name", "toolchain");
    let wire = |what: &str| {
        let row = one(&pair["rows"], "what", what);
        row["received"].as_u64().unwrap() + row["sent"].as_u64().unwrap()
    };
    let known = wire("known base, standby empty");
    for what in ["known base, the node prefers bytes", "known base, standby holds the release before"] {
        assert!(wire(what) < known + SLACK, "{what}: {markdown}");
    }
    assert!(
        known < wire("unknown base, standby empty") && wire("unknown base, standby empty") < wire("cold"),
        "{markdown}"
    );
    let drifted = one(&pair["rows"], "what", "known base, 200 blocks drifted");
    assert!(drifted["repaired"].as_u64().unwrap() > 0, "{drifted:#}");
    assert!(wire("unknown base near a known release") < wire("cold"), "{markdown}");
    let repaired = one(&one(&report["pairs"], "name", "repair")["rows"], "what", "repair");
    assert!(repaired["received"].as_u64().unwrap() > 0, "{repaired:#}");

    let beside = &pair["beside"];
    assert_eq!(all(&beside["forecast"]["ways"]).count(), 5);
    let foretold = |way| one(&beside["forecast"]["ways"], "name", way)["wire_estimated"].as_u64().unwrap();
    let (quick, thorough) = (foretold("known base, quick pack"), foretold("known base, thorough pack"));
    assert!(thorough < quick, "{thorough} and {quick} bytes foretold");
    assert!(quick.abs_diff(known) < known / 10 + SLACK, "foretold {quick}, came {known}");
    // quinn alone was made to send what a node received.
    let (node, plain) = (&beside["served"]["received"], &beside["served"]["plain"]["received"]);
    let (node, plain) = (node.as_u64().unwrap(), plain.as_u64().unwrap());
    assert!(node.abs_diff(plain) < node / 20 + SLACK, "{node} and {plain} bytes");
    assert!(
        beside["served"]["cpu"].as_f64().unwrap() > 0.0 && beside["served"]["plain"]["cpu"].as_f64().unwrap() > 0.0
    );

    assert!(markdown.contains("\n## Aims\n"), "{markdown}");
    let aim = |what: &str| {
        let aims = all(&report["aims"]).filter(|aim| aim["what"].as_str().is_some_and(|name| name.starts_with(what)));
        let mut values = aims.flat_map(|aim| all(&aim["pairs"])).filter(|value| value["pair"] == "toolchain");
        values.find_map(|value| value["value"].as_f64())
    };
    for what in [
        "up to date: wire beyond",
        "server CPU for a node",
        "making a quick plan",
        "making a thorough plan",
        "agent's anonymous",
        "up to date: round",
    ] {
        assert!(aim(what).is_some(), "{what}: {markdown}");
    }
    let installed = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    assert_eq!(aim("agent wall").is_some(), installed("b3sum"), "{markdown}");
    assert_eq!(aim("wire, known base").is_some(), installed("xdelta3"), "{markdown}");
    assert_eq!(aim("wire, unknown base"), None, "neither rsync nor zsync took part");
    Ok(())
}
