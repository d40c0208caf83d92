//! A node's certificate, from a real server: renewed in time by the daemon and by single verbs, and never at the cost of the
//! one that the node has.

use chrono::{DateTime, TimeDelta, Utc};
use goldsync_agent::identity::{Identity, NodeKey};
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::wire::{Answer, Request};
use goldsync_server::catalog::Act;
use goldsync_tests::{Fleet, Image, Liar, Machine, Say, eventually};

/// A fleet with an image to run, and a node whose certificate is so many days old.
async fn aged(days: i64) -> (Fleet, Machine, Image) {
    let fleet = Fleet::start().await;
    let image = Image::new(1, 1);
    fleet.ship(&image, "web:1").await;
    let node = fleet.node("n1").await;
    age(&fleet, &node, days).await;
    (fleet, node, image)
}

/// Gives the node a certificate that was signed so many days ago.
async fn age(fleet: &Fleet, node: &Machine, days: i64) {
    let hub = fleet.server().hub();
    let (name, key) = (node.name.parse().expect("a name"), NodeKey::create().expect("a key"));
    let then = Utc::now() - TimeDelta::days(days);
    let signed = hub.authority.sign_node(&key.request().expect("a request"), &name, then).expect("a certificate");
    let (fresh, act) =
        (blake3::Hash::from_bytes(signed.fingerprint.0), Act::new(&name, "node.renew", "an old one", "a test"));
    assert!(hub.catalog.renew(&name, fresh, fresh, act).await.expect("the catalog"));
    // An expired one would not pass our own check; the file is what counts.
    let text = [key.pem(), signed.pem, hub.authority.pem().to_owned()].concat();
    std::fs::write(node.state().join("identity.pem"), text).expect("identity.pem");
}

fn expires(node: &Machine) -> DateTime<Utc> {
    Identity::load(&node.state()).expect("an identity").expires()
}

fn is_fresh(node: &Machine) -> bool {
    expires(node) > Utc::now() + TimeDelta::days(89)
}

/// Renewals in the audit log that came from the node itself.
async fn renewals(fleet: &Fleet) -> usize {
    let own = |entry: &&serde_json::Value| entry["what"] == "node.renew" && entry["from"] != "a test";
    fleet.operator.audit().await.iter().filter(own).count()
}

/// Goal: the daemon renews when two thirds of the life are over, once, and goes on; the new certificate is good.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_renews_in_time() {
    let (fleet, node, image) = aged(61).await;
    let daemon = node.daemon();
    eventually("a fresh certificate", async || is_fresh(&node).then_some(())).await;
    eventually("the image", async || (node.link().exists() && node.running() == image.id()).then_some(())).await;
    daemon.stop().await;
    let fresh = expires(&node);
    assert_eq!(renewals(&fleet).await, 1);
    let daemon = node.daemon();
    let connected = async || fleet.operator.node("n1").await?["connected"].as_bool().filter(|connected| *connected);
    eventually("the daemon with its new certificate", connected).await;
    daemon.stop().await;
    assert_eq!((expires(&node), renewals(&fleet).await), (fresh, 1), "not due any more");
}

/// Goal: a certificate that is not due is left alone; one that is due is renewed by a verb, too, on a node without a daemon.
#[tokio::test(flavor = "multi_thread")]
async fn a_verb_renews_in_time() {
    let (fleet, node, image) = aged(59).await;
    node.agent(&["check"]).await.ok();
    assert!(!is_fresh(&node));
    age(&fleet, &node, 61).await;
    node.agent(&["check"]).await.ok();
    assert!(is_fresh(&node));
    assert_eq!(renewals(&fleet).await, 1);
    node.agent(&["sync"]).await.ok();
    node.runs(&image);
}

/// Goal: a renewal that is refused, or whose answer is nonsense, costs nothing but a line: the old certificate is kept and works.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_fails_leaves_the_old_certificate() {
    let (fleet, node, image) = aged(61).await;
    let stranger = fleet.node("n2").await;
    let foreign = certificate(&stranger);
    let before = std::fs::read(node.state().join("identity.pem")).expect("identity.pem");
    for say in [
        Answer::Refused { refusal: Refusal::new(Reason::Busy, "later") },
        Answer::Renewed { certificate: "nonsense".into() },
        Answer::Renewed { certificate: foreign },
        Answer::Welcome { version: "0".into() },
    ] {
        let answer = say.clone();
        let liar = Liar::between(&node, &fleet, move |request| match request {
            Request::Renew { .. } => Say::answer(&answer, &[]),
            _ => Say::Truth,
        });
        let ran = node.by(liar.address()).agent(&["check"]).await.ok();
        assert!(ran.err.contains("the certificate could not be renewed"), "{say:?}: {}", ran.err);
        assert_eq!(std::fs::read(node.state().join("identity.pem")).expect("identity.pem"), before, "{say:?}");
    }
    node.by(fleet.quic()).sync().await.updated();
    node.runs(&image);
}

/// The first certificate of an identity's file: the node's own.
fn certificate(node: &Machine) -> String {
    let text = std::fs::read_to_string(node.state().join("identity.pem")).expect("identity.pem");
    let begin = "-----BEGIN CERTIFICATE-----";
    format!("{begin}{}", text.split(begin).nth(1).expect("a certificate"))
}

/// Goal: what was lost on its way is asked for again, with the old certificate, which the server has not taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_whose_answer_is_lost() {
    let (fleet, node, _) = aged(61).await;
    // The server has signed, and the node never hears of it.
    let liar = Liar::between(&node, &fleet, |request| match request {
        Request::Renew { .. } => Say::Bent(Box::new(|_, _| {
            (Answer::Refused { refusal: Refusal::new(Reason::Internal, "the line went away") }, vec![])
        })),
        _ => Say::Truth,
    });
    node.by(liar.address()).agent(&["check"]).await.ok();
    assert_eq!((renewals(&fleet).await, is_fresh(&node)), (1, false));
    node.by(fleet.quic()).agent(&["check"]).await.ok();
    assert_eq!((renewals(&fleet).await, is_fresh(&node)), (2, true));
}

/// Goal: a node that was away for longer than its certificate's life is told what to do; a revoked one renews nothing.
#[tokio::test(flavor = "multi_thread")]
async fn too_late() {
    let (fleet, node, _) = aged(91).await;
    node.agent(&["check"]).await.fails(4, &["expired", "enrol the node again"]);
    age(&fleet, &node, 61).await;
    fleet.operator.json(["node", "revoke", "n1"]).await;
    node.agent(&["check"]).await.fails(4, &["revoked"]);
    assert!(!is_fresh(&node));
    assert_eq!(renewals(&fleet).await, 0);
}
