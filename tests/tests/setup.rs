//! Setting a machine up, as its owner types it: `init` proposes, `doctor` says what is still amiss, until nothing is.

use std::fs;

use goldsync_agent::slot::SlotName;
use goldsync_tests::{Fleet, Image, damage};
use serde_json::Value;

/// The findings of one check that are not fine.
fn amiss<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().filter(|it| it["check"] == check && it["verdict"] != "fine").collect()
}

/// Goal: from a bare machine to a node that runs its release, by what the two verbs say, and back: each thing that is broken
/// is found, named, and has a cure; what would stop an update is exit code 1, and warnings are not.
#[tokio::test(flavor = "multi_thread")]
async fn from_a_bare_machine_to_a_healthy_node() {
    let mut fleet = Fleet::start().await;
    let (old, new) = (Image::new(1, 2), Image::new(1, 2).edited(10, 5));
    fleet.ship(&old, "web:1").await;
    let node = fleet.machine("n1");
    let ran = node.agent(&["doctor"]).await;
    assert!(ran.code == Some(1) && ran.out.contains("STOPS    identity"), "{}", ran.out);
    assert!(ran.out.contains("goldsync-agent enroll"), "{}", ran.out);
    node.enrol(&fleet.operator).await;
    let report = node.agent(&["doctor", "--json"]).await.ok().json();
    assert_eq!((&report["stops"], amiss(&report, "activation").len()), (&0.into(), 1), "{report}");
    node.sync().await.updated();
    fleet.ship(&new, "web:2").await;
    node.sync().await.updated();
    let ran = node.agent(&["doctor"]).await.ok();
    assert!(ran.out.ends_with("nothing would stop an update here\n"), "{}", ran.out);
    assert!(ran.out.contains("the channel is at web:2, which runs"), "{}", ran.out);

    // What would stop it.
    let standby = node.slot(SlotName::A);
    fs::remove_file(standby).expect("slot a");
    fs::create_dir(standby).expect("a folder in its place");
    let ran = node.agent(&["doctor", "--offline"]).await;
    assert!(ran.code == Some(1) && ran.out.contains("is a folder"), "{}{}", ran.out, ran.err);
    fs::remove_dir(standby).expect("the folder");
    fleet.down().await;
    let report = node.agent(&["doctor", "--json"]).await;
    assert_eq!((report.code, amiss(&report.json(), "server").len()), (Some(1), 1), "{}", report.out);
    node.agent(&["doctor", "--offline"]).await.ok();
    fleet.up().await;

    // What somebody should know.
    damage::flip(&node.link(), 5, 3);
    node.agent(&["verify"]).await.fails(6, &[]);
    let report = node.agent(&["doctor", "--json"]).await.ok().json();
    assert!(amiss(&report, "drift")[0]["says"].as_str().expect("words").contains("3 blocks"), "{report}");
    assert_eq!(amiss(&report, "drift")[0]["verdict"], "warning", "{report}");
}

/// Goal: what `init` proposes for this machine can be used as it is: it is written once, never over what is there, and the agent
/// reads it.
#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_is_a_configuration() {
    let fleet = Fleet::start().await;
    let node = fleet.machine("n1");
    fs::remove_file(node.config()).expect("no configuration yet");
    let printed = node.agent(&["init", "--channel", "qa", "--server", "gold.example.net"]).await.ok();
    assert!(
        printed.out.contains("channel = \"qa\"") && printed.out.contains("# Before it is used:"),
        "{}",
        printed.out
    );
    assert!(!node.config().exists(), "printing writes nothing");
    let found = node.agent(&["init", "--write", "--json"]).await.ok().json();
    assert_eq!(found["written"], node.config().to_str().expect("a path"), "{found}");
    assert_eq!(found["proposal"]["text"], fs::read_to_string(node.config()).expect("agent.toml"), "{found}");
    node.agent(&["init", "--write"]).await.fails(1, &["is there already", "--force"]);
    node.agent(&["init", "--write", "--force", "--channel", "staging"]).await.ok();
    let read = goldsync_agent::config::Config::load(&goldsync_agent::config::Where::File(node.config()));
    assert_eq!(read.expect("a configuration").channel.as_str(), "staging");
    // Another machine's file systems.
    let root = node.folder.join("root");
    for (file, text) in [
        ("sys/class/block/sda1/partition", "1"),
        ("sys/class/block/sda1/size", "2048"),
        ("sys/class/block/sda1/uevent", "PARTNAME=slot-a\n"),
        ("sys/class/block/sda2/partition", "2"),
        ("sys/class/block/sda2/size", "2048"),
        ("sys/class/block/sda2/uevent", "PARTNAME=slot-b\n"),
    ] {
        fs::create_dir_all(root.join(file).parent().expect("a folder")).expect("folders");
        fs::write(root.join(file), text).expect(file);
    }
    let found = node.agent(&["init", "--root", root.to_str().expect("a path"), "--json"]).await.ok().json();
    assert_eq!(found["proposal"]["slots"], serde_json::json!(["/dev/sda1", "/dev/sda2"]), "{found}");
}
