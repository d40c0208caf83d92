//! The session over real loopback QUIC.

use std::collections::BTreeMap;

use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::{MESSAGE_MAX, OBJECT_RANGE_MAX};
use goldsync_proto::plan::Plan;
use goldsync_proto::refusal::{Reason, close};
use goldsync_proto::wire::{
    ALPN, ALPN_ENROL, Account, Answer, NodeSays, Outcome, Phase, Prefer, Progress, Report, Request, ServerSays,
    SlotReport, frame,
};
use rcgen::{CertificateParams, KeyPair};
use reqwest::StatusCode;

use crate::api::types::{Node, SyncEvent, SyncOrder, SyncRequest, TokenRequest};
use crate::testing::{Control, Fleet, ask, ask_raw, closed_with, hello, image, reason, word};

fn token(uses: u32) -> TokenRequest {
    TokenRequest { valid_s: Some(60), uses: Some(uses), labels: BTreeMap::from([("site".into(), "north".into())]) }
}

#[tokio::test]
async fn a_machine_enrols_joins_and_hears_of_a_promotion() {
    let fleet = Fleet::start().await;
    let (old, new) = (image(1, 300), image(2, 300));
    fleet.publish("web:1", &old).await;
    fleet.publish("web:2", &new).await;
    let web = fleet.enrol("web").await;
    let dev = fleet.enrol("web").await;
    assert_eq!((web.node.as_str(), dev.node.as_str()), ("web", "web-2"));
    let (_line, mut production) = fleet.join(&web, "production").await;
    let (_other, mut development) = fleet.join(&dev, "dev").await;
    let channel = fleet.promote("web:1", &old, "production").await;
    assert_eq!((channel.nodes, channel.pointer.unwrap().release.to_string()), (1, "web:1".into()));
    assert_eq!(production.hear().await, ServerSays::Moved { channel: word("production") });
    fleet.promote("web:2", &new, "dev").await;
    assert_eq!(development.hear().await, ServerSays::Moved { channel: word("dev") });
    fleet.promote("web:2", &new, "production").await;
    assert_eq!(production.hear().await, ServerSays::Moved { channel: word("production") });
}

#[tokio::test]
async fn without_a_certificate_there_is_nothing() {
    let fleet = Fleet::start().await;
    let requests = [
        Request::Trust { have: BTreeMap::new(), want: vec![] },
        Request::Object { name: Digest::of(b"x"), offset: 0, length: 1 },
        Request::Control { hello: hello("dev", true) },
        Request::Renew { csr: String::new() },
    ];
    for request in &requests {
        let connection = fleet.dial(ALPN, None).await;
        assert_eq!(reason(&ask(&connection, request).await.0), Reason::NotEnrolled);
        assert_eq!(closed_with(&connection).await, u64::from(close::NOT_ENROLLED));
        let connection = fleet.dial(ALPN_ENROL, None).await;
        assert_eq!(reason(&ask(&connection, request).await.0), Reason::NotEnrolled, "{request:?}");
    }
    let error = fleet.try_dial(b"h3", None).await.unwrap_err();
    assert!(error.contains("protocol"), "{error}");
}

#[tokio::test]
async fn a_certificate_of_the_right_ca_that_the_catalog_does_not_know_is_refused() {
    let fleet = Fleet::start().await;
    let mut stolen = fleet.enrol("web").await;
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let forged = fleet.server().hub().authority.sign_node(&csr, &stolen.node, chrono::Utc::now()).unwrap();
    stolen.certificate = rustls::pki_types::pem::PemObject::from_pem_slice(forged.pem.as_bytes()).unwrap();
    stolen.key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let connection = fleet.connect(&stolen).await;
    let request = Request::Trust { have: BTreeMap::new(), want: vec![] };
    assert_eq!(reason(&ask(&connection, &request).await.0), Reason::NotEnrolled);
}

#[tokio::test]
async fn a_certificate_of_another_fleet_ends_the_handshake() {
    let (fleet, other) = tokio::join!(Fleet::start(), Fleet::start());
    let stranger = other.enrol("web").await;
    let request = Request::Trust { have: BTreeMap::new(), want: vec![] };
    // In TLS 1.3 the client may believe that it is connected before the server has looked at its certificate.
    if let Ok(connection) = fleet.try_dial(ALPN, Some(&stranger)).await {
        let closed = connection.closed().await.to_string();
        assert!(!closed.is_empty());
        assert!(connection.open_bi().await.is_err(), "{request:?}");
    }
}

#[tokio::test]
async fn a_bad_token_is_refused_and_a_good_one_counts_its_uses() {
    let fleet = Fleet::start().await;
    assert_eq!(fleet.try_enrol("guess", "web").await.err().unwrap().reason, Reason::BadToken);
    let good = fleet.token(token(1)).await;
    fleet.try_enrol(&good.secret, "web").await.unwrap();
    assert_eq!(fleet.try_enrol(&good.secret, "web").await.err().unwrap().reason, Reason::BadToken);
    let whats: Vec<_> = fleet.audit().await.into_iter().map(|e| (e.who, e.what)).collect();
    let expected = [("web", "node.enrol"), ("alice", "token.create"), ("init", "operator.add")];
    assert_eq!(whats, expected.map(|(who, what)| (who.to_owned(), what.to_owned())));
}

/// Goal: who did not get the answer asks again with the same key, and is the same node; nobody else is.
#[tokio::test]
async fn an_enrolment_asked_again_with_the_same_key_has_the_same_answer() {
    let fleet = Fleet::start().await;
    let good = fleet.token(token(1)).await;
    let request = |key: &KeyPair| Request::Enrol {
        token: good.secret.clone(),
        csr: CertificateParams::default().serialize_request(key).unwrap().pem().unwrap(),
        name: word("web"),
        labels: BTreeMap::new(),
    };
    let (mine, thine) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut certificates = Vec::new();
    for _ in 0..2 {
        let answer = ask(&fleet.dial(ALPN_ENROL, None).await, &request(&mine)).await.0;
        let Answer::Enrolled { node, certificate, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(node, word("web"));
        certificates.push(certificate);
    }
    let stolen = ask(&fleet.dial(ALPN_ENROL, None).await, &request(&thine)).await.0;
    assert_eq!(reason(&stolen), Reason::BadToken);
    let nodes: Vec<Node> = fleet.get("/v1/nodes").await;
    assert_eq!(nodes.len(), 1);
    for certificate in certificates {
        let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(mine.serialize_der()).unwrap();
        fleet.join(&crate::testing::Identity { node: word("web"), certificate, key }, "dev").await;
    }
}

#[tokio::test]
async fn a_bad_request_for_a_certificate_costs_no_token() {
    let fleet = Fleet::start().await;
    let good = fleet.token(token(1)).await;
    let connection = fleet.dial(ALPN_ENROL, None).await;
    let enrol = |csr: &str| Request::Enrol {
        token: good.secret.clone(),
        csr: csr.into(),
        name: word("web"),
        labels: BTreeMap::new(),
    };
    assert_eq!(reason(&ask(&connection, &enrol("nonsense")).await.0), Reason::BadRequest);
    fleet.try_enrol(&good.secret, "web").await.unwrap();
}

#[tokio::test]
async fn a_revoked_node_loses_its_open_connection_and_is_refused_after() {
    let mut fleet = Fleet::start().await;
    let (web, db) = (fleet.enrol("web").await, fleet.enrol("db").await);
    let (daemon, _control) = fleet.join(&web, "dev").await;
    let command = fleet.connect(&web).await;
    ask(&command, &Request::Trust { have: BTreeMap::new(), want: vec![] }).await;
    let (_untouched, mut still) = fleet.join(&db, "dev").await;
    assert_eq!(fleet.revoke(&web.node).await, StatusCode::NO_CONTENT);
    assert_eq!(closed_with(&daemon).await, u64::from(close::REVOKED));
    assert_eq!(closed_with(&command).await, u64::from(close::REVOKED));
    let trust = Request::Trust { have: BTreeMap::new(), want: vec![] };
    for _ in 0..2 {
        let again = fleet.connect(&web).await;
        assert_eq!(reason(&ask(&again, &trust).await.0), Reason::Revoked);
        assert_eq!(closed_with(&again).await, u64::from(close::REVOKED));
        if fleet.audit().await.iter().filter(|e| e.what == "node.revoke").count() == 1 {
            assert_eq!(fleet.revoke(&web.node).await, StatusCode::NO_CONTENT, "again: no-op");
        }
    }
    still.say(&NodeSays::Report { report: Report::default() }).await;
    assert_eq!(fleet.revoke(&word("nobody")).await, StatusCode::NOT_FOUND);
    fleet.restart().await;
    let after = fleet.connect(&web).await;
    assert_eq!(reason(&ask(&after, &trust).await.0), Reason::Revoked, "a restart forgets no revocation");
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_server_goes_on() {
    let fleet = Fleet::start_with(|config| {
        config.nodes.request_timeout = crate::config::units::Span::seconds(1);
    })
    .await;
    let web = fleet.enrol("web").await;
    let connection = fleet.connect(&web).await;
    let json = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("half a head", vec![1, 0]),
        ("cut short", json("{\"ask\":\"trust\"}")[..9].to_vec()),
        ("too long", (MESSAGE_MAX as u32 + 1).to_le_bytes().to_vec()),
        ("endless", u32::MAX.to_le_bytes().to_vec()),
        ("no JSON", json("\u{0}\u{1}\u{2}")),
        ("unknown ask", json("{\"ask\":\"mood\"}")),
        ("a field missing", json("{\"ask\":\"object\"}")),
        ("of the wrong kind", json("{\"ask\":\"plan\",\"target\":7}")),
        (
            "enrol here",
            frame(&Request::Enrol {
                token: String::new(),
                csr: String::new(),
                name: word("x"),
                labels: BTreeMap::new(),
            })
            .unwrap(),
        ),
    ];
    for (what, bytes) in bad {
        assert_eq!(reason(&ask_raw(&connection, &bytes).await.0), Reason::BadRequest, "{what}");
    }
    // A request that does not come to its end is refused in time, with the stream still open on our side.
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[9]).await.unwrap();
    let answer = crate::testing::read::<Answer>(&mut recv).await.unwrap();
    assert_eq!(reason(&answer), Reason::BadRequest);
    let (answer, _) = ask(&connection, &Request::Trust { have: BTreeMap::new(), want: vec![] }).await;
    assert!(matches!(answer, Answer::Trust { .. }), "{answer:?}");
}

#[tokio::test]
async fn noise_on_the_control_stream_ends_it_and_a_newer_agents_words_do_not() {
    let fleet = Fleet::start().await;
    let web = fleet.enrol("web").await;
    let (connection, mut control) = fleet.join(&web, "dev").await;
    let newer = br#"{"say":"mood","value":7}"#;
    control.send.write_all(&(newer.len() as u32).to_le_bytes()).await.unwrap();
    control.send.write_all(newer).await.unwrap();
    let failed = Report { phase: Phase::Failed, ..Report::default() };
    control.say(&NodeSays::Report { report: failed.clone() }).await;
    until(&fleet, |node| node.report.as_ref() == Some(&failed)).await;
    control.send.write_all(&[255; 64]).await.unwrap();
    assert_eq!(closed_with(&connection).await, u64::from(close::PROTOCOL));
    until(&fleet, |node| !node.connected).await;
}

/// Waits for the only node to be as `wanted`; the test's own limit ends a wait that is in vain.
async fn until(fleet: &Fleet, wanted: impl Fn(&Node) -> bool) -> Node {
    loop {
        let nodes: Vec<Node> = fleet.get("/v1/nodes").await;
        if let Some(node) = nodes.into_iter().find(&wanted) {
            return node;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_newer_daemon_replaces_the_older_and_a_command_does_not() {
    let fleet = Fleet::start().await;
    let web = fleet.enrol("web").await;
    let (older, _control) = fleet.join(&web, "dev").await;
    let command = fleet.connect(&web).await;
    let _said = Control::open(&command, hello("dev", false)).await.unwrap();
    assert!(older.close_reason().is_none());
    let (newer, _control) = fleet.join(&web, "dev").await;
    assert_eq!(closed_with(&older).await, u64::from(close::REPLACED));
    assert!(newer.close_reason().is_none() && command.close_reason().is_none());
    let refused = Control::open(&newer, hello("dev", true)).await.err().unwrap();
    assert_eq!(refused.reason, Reason::BadRequest);
}

#[tokio::test]
async fn metadata_comes_whole_then_only_what_is_newer() {
    let fleet = Fleet::start().await;
    let one = image(1, 8);
    fleet.publish("web:1", &one).await;
    fleet.promote("web:1", &one, "dev").await;
    let web = fleet.enrol("web").await;
    let connection = fleet.connect(&web).await;
    let want = vec!["channel_dev.json".to_owned(), "release_web_1.json".to_owned()];
    let (answer, body) = ask(&connection, &Request::Trust { have: BTreeMap::new(), want: want.clone() }).await;
    let Answer::Trust { files } = answer else { panic!("{answer:?}") };
    assert_eq!(files.iter().map(|file| file.length).sum::<u64>(), body.len() as u64);
    for name in ["timestamp.json", "channel_dev.json", "release_web_1.json"] {
        assert!(files.iter().any(|file| file.name.ends_with(name)), "{name} is not in {files:?}");
    }
    let have = fleet.server().hub().trust.versions();
    let (answer, body) = ask(&connection, &Request::Trust { have, want: vec![] }).await;
    assert_eq!((answer, body.len()), (Answer::Trust { files: vec![] }, 0));
    let odd = Request::Trust { have: BTreeMap::new(), want: vec!["../ca.key".into()] };
    let odd = reason(&ask(&connection, &odd).await.0);
    assert!([Reason::BadRequest, Reason::NotFound].contains(&odd), "{odd:?}");
}

#[tokio::test]
async fn objects_come_by_range_and_hash_to_their_name() {
    let fleet = Fleet::start().await;
    let one = image(1, 700);
    let release = fleet.publish("web:1", &one).await;
    let web = fleet.enrol("web").await;
    let connection = fleet.connect(&web).await;
    let section = release.manifest.sections.blocks;
    let object = |offset, length| Request::Object { name: section.name, offset, length };
    let (answer, whole) = ask(&connection, &object(0, section.length)).await;
    assert_eq!(answer, Answer::Object { length: section.length });
    assert_eq!(Digest::of(&whole), section.name);
    let (answer, tail) = ask(&connection, &object(section.length - 5, OBJECT_RANGE_MAX)).await;
    assert_eq!((answer, &tail[..]), (Answer::Object { length: 5 }, &whole[whole.len() - 5..]));
    let (answer, none) = ask(&connection, &object(section.length, 1)).await;
    assert_eq!((answer, none.len()), (Answer::Object { length: 0 }, 0));
    for (request, expected) in [
        (object(section.length + 1, 1), Reason::BadRange),
        (object(u64::MAX, u64::MAX), Reason::BadRange),
        (object(0, OBJECT_RANGE_MAX + 1), Reason::BadRange),
        (Request::Object { name: Digest::of(b"x"), offset: 0, length: 1 }, Reason::NotFound),
    ] {
        assert_eq!(reason(&ask(&connection, &request).await.0), expected, "{request:?}");
    }
}

#[tokio::test]
async fn plans_and_blocks_are_served() {
    let fleet = Fleet::start().await;
    let old = image(1, 600);
    let mut new = old.clone();
    new[4096 * 100..4096 * 130].copy_from_slice(&image(9, 30));
    fleet.publish("web:1", &old).await;
    fleet.publish("web:2", &new).await;
    let web = fleet.enrol("web").await;
    let connection = fleet.connect(&web).await;
    let (base, target) = (ImageId::of(&old), ImageId::of(&new));
    for base in [None, Some(base)] {
        let plan = plan(&connection, base, target).await;
        assert_eq!((plan.base, plan.target, plan.geometry.size()), (base, target, new.len() as u64));
    }
    let unknown = ImageId::of(b"unknown");
    for (request, expected) in [
        (Request::Plan { base: Some(unknown), target, prefer: Prefer::Time }, Reason::UnknownBase),
        (Request::Plan { base: None, target: unknown, prefer: Prefer::Time }, Reason::NotFound),
        (Request::Blocks { image: unknown, runs: vec![(0, 1)] }, Reason::NotFound),
        (Request::Blocks { image: target, runs: vec![(599, 2)] }, Reason::BadRange),
        (Request::Blocks { image: target, runs: vec![(5, 1), (4, 1)] }, Reason::BadRange),
        (Request::Blocks { image: target, runs: vec![(u32::MAX, u32::MAX)] }, Reason::BadRange),
    ] {
        assert_eq!(reason(&ask(&connection, &request).await.0), expected, "{request:?}");
    }
    let runs = vec![(100, 30), (599, 1)];
    let (answer, body) = ask(&connection, &Request::Blocks { image: target, runs }).await;
    assert_eq!(answer, Answer::Blocks { blocks: 31 });
    let expected = [&new[4096 * 100..4096 * 130], &new[4096 * 599..]].concat();
    assert_eq!(unpack(&body), expected);
}

async fn plan(connection: &quinn::Connection, base: Option<ImageId>, target: ImageId) -> Plan {
    loop {
        match ask(connection, &Request::Plan { base, target, prefer: Prefer::Time }).await.0 {
            Answer::Plan { name, length } => {
                let (_, bytes) = ask(connection, &Request::Object { name, offset: 0, length }).await;
                assert_eq!(Digest::of(&bytes), name);
                return Plan::decode(&bytes).unwrap();
            }
            Answer::Making { retry_ms } => tokio::time::sleep(std::time::Duration::from_millis(retry_ms)).await,
            other => panic!("{other:?}"),
        }
    }
}

fn unpack(mut frames: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    while let Some((head, rest)) = frames.split_first_chunk() {
        let head = goldsync_proto::pack::frame_head(*head).unwrap();
        let (wire, rest) = rest.split_at(head.wire_len as usize);
        raw.extend(goldsync_proto::pack::decompress(head.codec, wire, head.raw_len as usize, &[]).unwrap());
        frames = rest;
    }
    raw
}

#[tokio::test]
async fn a_certificate_is_renewed_and_the_old_one_stays_good() {
    let fleet = Fleet::start().await;
    let mut web = fleet.enrol("web").await;
    let connection = fleet.connect(&web).await;
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let (answer, _) = ask(&connection, &Request::Renew { csr }).await;
    let Answer::Renewed { certificate } = answer else { panic!("{answer:?}") };
    let trust = Request::Trust { have: BTreeMap::new(), want: vec![] };
    assert!(matches!(ask(&fleet.connect(&web).await, &trust).await.0, Answer::Trust { .. }));
    web.certificate = rustls::pki_types::pem::PemObject::from_pem_slice(certificate.as_bytes()).unwrap();
    web.key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    assert!(matches!(ask(&fleet.connect(&web).await, &trust).await.0, Answer::Trust { .. }));
    assert_eq!(reason(&ask(&connection, &Request::Renew { csr: "nonsense".into() }).await.0), Reason::BadRequest);
    assert_eq!(fleet.audit().await.iter().filter(|entry| entry.what == "node.renew").count(), 1);
}

#[tokio::test]
async fn an_order_reaches_the_nodes_that_match_and_tells_how_it_went() {
    let fleet = Fleet::start().await;
    let (a, b, c) = (fleet.enrol("a").await, fleet.enrol("b").await, fleet.enrol("c").await);
    let (_a, mut at_a) = fleet.join(&a, "production").await;
    let (b_line, at_b) = fleet.join(&b, "production").await;
    let (_c, _at_c) = fleet.join(&c, "dev").await;
    let selector = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
    let request = SyncRequest { channel: word("production"), selector, now: true, back_from: None };
    let (status, order): (_, SyncOrder) = fleet.post("/v1/fleet/sync", &request).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((order.nodes.clone(), order.absent.clone()), (vec![word("a"), word("b")], vec![]));
    assert_eq!(at_a.hear().await, ServerSays::Sync { order: order.order, now: true });
    let fetching = Report {
        phase: Phase::Fetch,
        progress: Some(Progress { done: 1, total: 2, received: 1 }),
        ..Report::default()
    };
    at_a.say(&NodeSays::Report { report: fetching.clone() }).await;
    let account = Account { path: "pack".into(), written: 7, ..Account::default() };
    at_a.say(&NodeSays::SyncDone { order: order.order, outcome: Outcome::Updated { account: account.clone() } }).await;
    // The other one loses its connection with the order unanswered, and is told again when it is back.
    b_line.close(0_u32.into(), b"");
    drop(at_b);
    let (_b, mut at_b) = fleet.join(&b, "production").await;
    assert_eq!(at_b.hear().await, ServerSays::Sync { order: order.order, now: true });
    at_b.say(&NodeSays::SyncDone { order: order.order, outcome: Outcome::UpToDate }).await;
    let path = format!("/v1/fleet/sync/{}/events", order.order);
    let text = fleet.operator(reqwest::Method::GET, &path).send().await.unwrap().text().await.unwrap();
    let mut outcomes = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let event: SyncEvent = serde_json::from_str(line).unwrap();
        if let Some(outcome) = event.outcome {
            outcomes.insert(event.node.to_string(), outcome);
        }
    }
    let expected = [("a", Outcome::Updated { account }), ("b", Outcome::UpToDate)];
    assert_eq!(outcomes, expected.map(|(node, outcome)| (node.to_owned(), outcome)).into());
    let none: (StatusCode, SyncOrder) = fleet
        .post(
            "/v1/fleet/sync",
            &SyncRequest { channel: word("qa"), selector: BTreeMap::new(), now: false, back_from: None },
        )
        .await;
    assert!(none.1.nodes.is_empty() && none.1.order > order.order);
}

#[tokio::test]
async fn what_a_node_said_outlives_the_server() {
    let mut fleet = Fleet::start().await;
    let one = image(1, 8);
    fleet.publish("web:1", &one).await;
    fleet.promote("web:1", &one, "dev").await;
    let web = fleet.enrol("web").await;
    let (connection, mut control) = fleet.join(&web, "dev").await;
    let slot = |image| SlotReport { slot: word("a"), image: Some(image), release: "web:1".parse().ok() };
    let report = Report { active: Some(slot(ImageId::of(&one))), ..Report::default() };
    control.say(&NodeSays::Report { report: report.clone() }).await;
    let node = until(&fleet, |node| node.report.as_ref() == Some(&report)).await;
    assert!(node.connected);
    assert_eq!((node.current, node.channel, node.version.as_deref()), (Some(true), Some(word("dev")), Some("0.1.0")));
    assert_eq!(node.labels, BTreeMap::from([("role".to_owned(), "web".to_owned())]));
    fleet.restart().await;
    assert_eq!(closed_with(&connection).await, u64::from(close::SHUTDOWN));
    let node = until(&fleet, |_| true).await;
    assert!(!node.connected);
    assert_eq!((node.report, node.current), (Some(report), Some(true)));
}

#[tokio::test]
async fn noise_never_ends_the_server() {
    let fleet = Fleet::start_with(|config| {
        config.nodes.request_timeout = crate::config::units::Span::seconds(1);
    })
    .await;
    let web = fleet.enrol("web").await;
    let connection = fleet.connect(&web).await;
    for seed in 0..200_u64 {
        let noise = image(seed, 1);
        let len = noise[0] as usize + 5;
        // Half of it with a true length in front, so that it gets past the frame's head.
        let bytes = match seed % 2 {
            0 => noise[..len].to_vec(),
            _ => [&(len as u32).to_le_bytes()[..], &noise[..len]].concat(),
        };
        assert_eq!(reason(&ask_raw(&connection, &bytes).await.0), Reason::BadRequest, "seed {seed}");
    }
    for alpn in [ALPN, ALPN_ENROL] {
        let stranger = fleet.dial(alpn, None).await;
        let (mut send, _recv) = stranger.open_bi().await.unwrap();
        let _ = send.write_all(&image(7, 4)).await;
        stranger.closed().await;
    }
    let (answer, _) = ask(&connection, &Request::Trust { have: BTreeMap::new(), want: vec![] }).await;
    assert!(matches!(answer, Answer::Trust { .. }), "{answer:?}");
}

#[tokio::test]
async fn one_node_gets_a_few_connections_and_a_fleet_a_few_more() {
    let fleet = Fleet::start_with(|config| config.nodes.connections_per_node = 2).await;
    let (web, db) = (fleet.enrol("web").await, fleet.enrol("db").await);
    let trust = Request::Trust { have: BTreeMap::new(), want: vec![] };
    let (one, two) = (fleet.connect(&web).await, fleet.connect(&web).await);
    for connection in [&one, &two] {
        assert!(matches!(ask(connection, &trust).await.0, Answer::Trust { .. }));
    }
    // One more: the oldest on which nothing is under way makes room; a busy server may not have noticed yet that it told all.
    let three = fleet.connect(&web).await;
    assert!(matches!(ask(&three, &trust).await.0, Answer::Trust { .. }));
    let (code, left) = tokio::select! {
        code = closed_with(&one) => (code, &two),
        code = closed_with(&two) => (code, &one),
    };
    assert_eq!(code, u64::from(close::REPLACED));
    assert!(matches!(ask(left, &trust).await.0, Answer::Trust { .. }));
    assert!(matches!(ask(&fleet.connect(&db).await, &trust).await.0, Answer::Trust { .. }), "others are not hurt");
}

#[tokio::test]
async fn too_many_labels_are_refused_before_the_token_is_used() {
    let fleet = Fleet::start().await;
    let labels = |prefix: &str, n: usize| (0..n).map(|i| (format!("{prefix}{i}"), "v".to_owned())).collect();
    let good = fleet.token(TokenRequest { valid_s: None, uses: Some(1), labels: labels("t", 64) }).await;
    // The token's 64 labels and the machine's own one are too many together.
    assert_eq!(fleet.try_enrol(&good.secret, "web").await.err().unwrap().reason, Reason::BadRequest);
    let connection = fleet.dial(ALPN_ENROL, None).await;
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let request = Request::Enrol { token: good.secret, csr, name: word("web"), labels: BTreeMap::new() };
    assert!(matches!(ask(&connection, &request).await.0, Answer::Enrolled { .. }));
}

#[tokio::test]
async fn an_answer_under_way_is_finished_before_the_server_stops() {
    let mut fleet = Fleet::start().await;
    let one = image(1, 4096);
    fleet.publish("web:1", &one).await;
    let web = fleet.enrol("web").await;
    let connection = fleet.connect(&web).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let request = Request::Blocks { image: ImageId::of(&one), runs: vec![(0, 2048)] };
    send.write_all(&frame(&request).unwrap()).await.unwrap();
    send.finish().unwrap();
    let answer = crate::testing::read::<Answer>(&mut recv).await.unwrap();
    assert_eq!(answer, Answer::Blocks { blocks: 2048 });
    let server = fleet.server.take().unwrap();
    let (body, ()) = tokio::join!(recv.read_to_end(64 << 20), server.shutdown());
    assert_eq!(unpack(&body.unwrap()), one[..2048 * 4096]);
    assert_eq!(closed_with(&connection).await, u64::from(close::SHUTDOWN));
}
