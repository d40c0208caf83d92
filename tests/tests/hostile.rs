//! A server that lies, and peers that mean harm: each gets one clear error or no effect at all, within bounds, and nothing is
//! lost. The liar has the fleet's CA and the server's key; what it lacks is an operator's key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use goldsync_agent::identity::Identity;
use goldsync_agent::journal::SlotRecord;
use goldsync_agent::slot::SlotName;
use goldsync_proto::block::Geometry;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::grain::write_masks;
use goldsync_proto::limits::{MESSAGE_MAX, TRUST_FILE_MAX};
use goldsync_proto::pack::{frame_head, write_frame};
use goldsync_proto::plan::{Plan, Source, Step};
use goldsync_proto::refusal::{Reason, Refusal, close};
use goldsync_proto::release::Section;
use goldsync_proto::wire::{Answer, Near, Prefer, Request, TrustFile};
use goldsync_server::config::units::Span;
use goldsync_tests::liar::framed;
use goldsync_tests::seed::Seed;
use goldsync_tests::{Fleet, Image, Liar, Machine, Say};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A node that runs `old`; its channel has moved on to `new`.
struct Scene {
    fleet: Fleet,
    node: Machine,
    old: Image,
    new: Image,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        Self::with(seed, |_| {}).await
    }

    async fn with(seed: u64, change: impl FnOnce(&mut goldsync_server::config::Config)) -> Self {
        let fleet = Fleet::start_with(change).await;
        let old = Image::new(seed, 3);
        let new = old.edited(seed + 1000, 30);
        fleet.ship(&old, "web:1").await;
        let node = fleet.node("n1").await;
        node.sync().await.updated();
        fleet.ship(&new, "web:2").await;
        Self { fleet, node, old, new }
    }

    /// The node, as it would talk to somebody who decides so.
    fn lied_to(&self, decide: impl Fn(&Request) -> Say + Send + Sync + 'static) -> (Liar, Machine) {
        let liar = Liar::between(&self.node, &self.fleet, decide);
        let node = self.node.by(liar.address());
        (liar, node)
    }

    /// Nothing was lost, and the truth still helps.
    async fn unharmed(&self) {
        self.node.runs(&self.old);
        self.node.tells_no_lie();
        self.node.by(self.fleet.quic()).sync().await.updated();
        self.node.runs(&self.new);
        self.node.agent(&["rollback"]).await.ok();
        self.node.runs(&self.old);
    }
}

fn flip_middle(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x20;
    }
    bytes
}

/// Answers requests for an object of these bytes, and only those.
fn serve(object: &[u8], request: &Request) -> Option<Say> {
    match request {
        Request::Object { name, offset, length } if *name == Digest::of(object) => {
            let part = object[*offset as usize..].get(..*length as usize)?;
            Some(Say::answer(&Answer::Object { length: *length }, part))
        }
        _ => None,
    }
}

/// Offers a plan of the liar's own, and tells the truth otherwise.
fn offering(plan: Vec<u8>) -> impl Fn(&Request) -> Say + Send + Sync + 'static {
    move |request| match request {
        Request::Plan { base: Some(_), .. } => {
            Say::answer(&Answer::Plan { name: Digest::of(&plan), length: plan.len() as u64 }, &[])
        }
        request => serve(&plan, request).unwrap_or(Say::Truth),
    }
}

fn id(image: &Image) -> ImageId {
    ImageId::of(&image.bytes)
}

fn plan(base: &Image, target: &Image, steps: Vec<Step>) -> Plan {
    let geometry = Geometry::new(target.len()).expect("a size");
    Plan { base: Some(id(base)), target: id(target), geometry, steps, objects: vec![], packs: vec![], trees: vec![] }
}

/// Goal: a plan that is none, or not ours, costs bytes and not the update: the node makes its own.
#[tokio::test(flavor = "multi_thread")]
async fn plans_that_are_no_good() {
    let scene = Scene::new(1).await;
    let blocks = (scene.new.len() / 4096) as u32;
    let all_zero = |target: &Image, count| plan(&scene.old, target, vec![Step::Zero { count }]);
    let honest = all_zero(&scene.new, blocks).encode().expect("a plan");
    // The geometry's size stands behind magic, version, base and target: one block more than the steps make.
    let mut uncovered = zstd::bulk::decompress(&honest[4..], 1 << 20).expect("a plan's body");
    uncovered[70..78].copy_from_slice(&(scene.new.len() + 4096).to_le_bytes());
    let uncovered =
        [(uncovered.len() as u32).to_le_bytes().to_vec(), zstd::bulk::compress(&uncovered, 3).expect("zstd")].concat();
    let bomb =
        [&(16_u32 << 20).to_le_bytes()[..], &zstd::bulk::compress(&vec![0; 16 << 20], 3).expect("zstd")].concat();
    let bad = [
        ("random bytes", Seed::new(1).noise(5000)),
        ("nothing", vec![]),
        ("a truncated plan", honest[..honest.len() - 3].to_vec()),
        ("a plan for another target", all_zero(&scene.old, blocks).encode().expect("a plan")),
        ("a plan for another size", uncovered),
        ("16 MiB of zeros", bomb),
    ];
    for (what, bytes) in bad {
        let (_liar, node) = scene.lied_to(offering(bytes));
        let told = node.sync().await;
        let account = told.result.map(|outcome| format!("{outcome:?}"));
        assert!(account.as_ref().is_ok_and(|text| text.contains("\"signature\"")), "{what}: {account:?}");
        node.runs(&scene.new);
        node.agent(&["rollback"]).await.ok();
        let standby = SlotName::B;
        std::fs::remove_file(node.slot(standby)).expect("slot b");
        node.node().journal.set_empty(standby).expect("slot b's record");
    }
}

/// Goal: a plan that is well made and builds the wrong image is mended by the proof: it fetches what came out wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_builds_another_image() {
    let scene = Scene::new(2).await;
    let blocks = (scene.new.len() / 4096) as u32;
    for (what, step) in [
        ("zeros", Step::Zero { count: blocks }),
        ("the old image", Step::Copy { source: Source::Active, from: 0, count: blocks }),
    ] {
        let wrong = plan(&scene.old, &scene.new, vec![step]).encode().expect("a plan");
        let (_liar, node) = scene.lied_to(offering(wrong));
        let account = node.sync().await.updated();
        node.runs(&scene.new);
        assert!(account.repaired > 0, "{what}: {account:?}");
        node.agent(&["rollback"]).await.ok();
        node.runs(&scene.old);
        node.node().journal.set_empty(SlotName::B).expect("slot b's record");
    }
}

/// Goal: a plan that points outside what the node has is refused with the numbers, before anything is activated.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_points_outside() {
    let scene = Scene::new(3).await;
    let blocks = (scene.new.len() / 4096) as u32;
    let outside = plan(&scene.old, &scene.new, vec![Step::Copy { source: Source::Active, from: 10, count: blocks }]);
    let (_liar, node) = scene.lied_to(offering(outside.encode().expect("a plan")));
    let (error, _) = node.sync().await.failed();
    let end = scene.old.len().to_string();
    assert!(error.contains("plan") && error.contains("active slot") && error.contains(&end), "{error}");
    scene.unharmed().await;
}

/// Goal: packs that are not the bytes that the plan names are found out before they are decoded, and their blocks fetched
/// in another way.
#[tokio::test(flavor = "multi_thread")]
async fn packs_of_other_bytes() {
    let scene = Scene::new(4).await;
    let plans = Arc::new(std::sync::Mutex::new(Vec::new()));
    let link = scene.node.node().connect().await.expect("a connection");
    let plan_request = Request::Plan { base: Some(id(&scene.old)), target: id(&scene.new), prefer: Prefer::Time };
    goldsync_tests::eventually("the plan", async || match link.ask(&plan_request).await {
        Ok((Answer::Plan { name, .. }, _)) => {
            plans.lock().expect("names").push(name);
            Some(())
        }
        _ => None,
    })
    .await;
    link.close().await;
    let (_liar, node) = scene.lied_to(move |request| match request {
        Request::Object { name, .. } if !plans.lock().expect("names").contains(name) => Say::body(flip_middle),
        _ => Say::Truth,
    });
    let account = node.sync().await.updated();
    node.runs(&scene.new);
    assert_eq!(account.path, "pack");
}

/// Goal: an image whose plans no node could hold still comes: from what is there, or by its blocks.
#[tokio::test(flavor = "multi_thread")]
async fn plans_that_would_be_too_large() {
    let scene = Scene::new(41).await;
    let refused = |request: &Request| match request {
        Request::Plan { .. } => {
            let refusal = Refusal::new(Reason::PlanTooLarge, "70000 packs, at most 65536 allowed");
            Say::answer(&Answer::Refused { refusal }, &[])
        }
        _ => Say::Truth,
    };
    let (_liar, node) = scene.lied_to(refused);
    assert_eq!(node.sync().await.updated().path, "signature");
    node.runs(&scene.new);
    let empty = scene.fleet.node("n2").await;
    let liar = Liar::between(&empty, &scene.fleet, refused);
    assert_eq!(empty.by(liar.address()).sync().await.updated().path, "blocks");
    empty.runs(&scene.new);
}

/// Goal: a server that sends other bytes than were signed, whatever it is asked, is stopped by the proof: exit code 7, the
/// active slot as it was, the standby slot called unproven.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_other_bytes() {
    let scene = Scene::new(5).await;
    let (_liar, node) = scene.lied_to(|request| match request {
        Request::Plan { .. } => Say::Bent(Box::new(|_, _| {
            let refusal = Refusal::new(Reason::UnknownBase, "no");
            (Answer::Refused { refusal }, vec![])
        })),
        Request::Blocks { .. } | Request::Grains { .. } => Say::body(noise_of_the_same_length),
        _ => Say::Truth,
    });
    let ran = node.agent(&["sync"]).await.fails(7, &[&scene.new.id(), "the active slot is untouched"]);
    assert!(ran.err.contains("server"), "who may be to blame: {}", ran.err);
    assert!(matches!(node.record(SlotName::B), SlotRecord::Staging(_)), "{:?}", node.record(SlotName::B));
    scene.unharmed().await;
}

/// Literal frames of other bytes, each as long as the true one.
fn noise_of_the_same_length(frames: Vec<u8>) -> Vec<u8> {
    let mut rest = &frames[..];
    let mut noise = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk() {
        let head = frame_head(*head).expect("a true frame");
        noise.extend(write_frame(&Seed::new(head.raw_len as u64).noise(head.raw_len), 1));
        rest = &tail[head.wire_len..];
    }
    noise
}

/// Goal: hashes of grains that lie cost bytes, not the update: what is put together wrongly is fetched whole.
#[tokio::test(flavor = "multi_thread")]
async fn hashes_of_other_grains() {
    let scene = Scene::new(16).await;
    let (_liar, node) = scene.lied_to(|request| match request {
        Request::Plan { .. } => Say::Bent(Box::new(|_, _| {
            let refusal = goldsync_proto::refusal::Refusal::new(goldsync_proto::refusal::Reason::UnknownBase, "no");
            (Answer::Refused { refusal }, vec![])
        })),
        // Every grain of a block is said to be like its neighbour.
        Request::GrainHashes { width, .. } => {
            let two = 2 * usize::from(*width);
            Say::body(move |hashes| hashes.chunks(two).flat_map(|pair| [&pair[pair.len() / 2..]; 2].concat()).collect())
        }
        _ => Say::Truth,
    });
    let account = node.sync().await.updated();
    node.runs(&scene.new);
    assert_eq!(account.path, "signature");
}

/// Goal: lies about where an image came from cost what the truth would have saved, not the update.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_is_not_near() {
    let scene = Scene::new(17).await;
    let shown = |release: &'static str| async { scene.fleet.operator.json(["release", "show", release]).await };
    let near = |shown: serde_json::Value| -> Near {
        let sections = &shown["manifest"]["sections"];
        let (image, size) = (&shown["manifest"]["image"], &shown["manifest"]["size"]);
        let near = serde_json::json!({
            "image": image, "size": size, "subtrees": sections["subtrees"], "blocks": sections["blocks"],
        });
        serde_json::from_value(near).expect("what a server says of a release")
    };
    let (old, new) = (near(shown("web:1").await), near(shown("web:2").await));
    let absent = Section { name: Digest::of(b"absent"), length: 96 };
    let lies = [
        ("the golden image itself", new),
        ("no whole blocks", Near { size: old.size + 1, ..old }),
        ("larger than the slot", Near { size: 1 << 40, ..old }),
        ("sections that nobody has", Near { subtrees: absent, blocks: absent, ..old }),
        ("a section without end", Near { subtrees: Section { length: u64::MAX, ..old.subtrees }, ..old }),
        ("another image's sections", Near { image: old.image, ..new }),
        ("blocks of another image", Near { blocks: new.subtrees, ..old }),
    ];
    for (what, lie) in lies {
        let (_liar, node) = scene.lied_to(move |request| match request {
            Request::Nearest { .. } => Say::answer(&Answer::Nearest { near: Some(lie) }, &[]),
            _ => Say::Truth,
        });
        node.preload(&scene.old.edited(18, 9));
        node.node().journal.set_empty(SlotName::A).expect("slot a's record");
        let account = node.sync().await.updated();
        node.runs(&scene.new);
        assert_eq!(account.path, "signature", "{what}: {account:?}");
        std::fs::remove_file(node.slot(SlotName::B)).expect("slot b");
        node.node().journal.set_empty(SlotName::B).expect("slot b's record");
    }
}

/// Goal: a section that does not hash to its name is refused by that name.
#[tokio::test(flavor = "multi_thread")]
async fn sections_of_other_bytes() {
    let scene = Scene::new(6).await;
    let release = scene.fleet.operator.json(["release", "show", "web:2"]).await;
    let subtrees = release["manifest"]["sections"]["subtrees"]["name"].as_str().expect("a name").to_owned();
    let blocks = release["manifest"]["sections"]["blocks"]["name"].as_str().expect("a name").to_owned();
    for section in [subtrees, blocks] {
        let target: Digest = section.parse().expect("a name");
        let (_liar, node) = scene.lied_to(move |request| match request {
            Request::Plan { .. } => Say::Close(close::PROTOCOL, "no plan"),
            Request::Object { name, .. } if *name == target => Say::body(flip_middle),
            _ => Say::Truth,
        });
        // Without a plan of the server's the update ends; a base that nobody knows is planned by the sections.
        let preloaded = scene.old.edited(60, 7);
        node.preload(&preloaded);
        node.node().journal.set_empty(SlotName::A).expect("slot a's record");
        let (error, code) = node.sync().await.failed();
        assert_eq!((code, error.contains(&section[..16]) || error.contains("plan")), (code, true), "{error}");
    }
}

/// An answer of the wrong kind, length or form: what it is, what is said to which request, the exit code, and what the error
/// must say.
type Crooked = (&'static str, fn(&Request) -> Say, u8, &'static [&'static str]);

fn to_trust(request: &Request, say: impl FnOnce() -> Say) -> Say {
    if matches!(request, Request::Trust { .. }) { say() } else { Say::Truth }
}

fn to_object(request: &Request, say: impl FnOnce(u64) -> Say) -> Say {
    if let Request::Object { length, .. } = request { say(*length) } else { Say::Truth }
}

fn one_file(name: &str, length: u64) -> Answer {
    Answer::Trust { files: vec![TrustFile { name: name.into(), length }] }
}

fn whole_object(length: u64, times: f64) -> Say {
    let length = (length as f64 * times) as u64;
    Say::answer(&Answer::Object { length }, &vec![0; length as usize])
}

const UNKNOWN: &[u8] = b"\x11\0\0\0{\"answer\":\"what\"}";

const CROOKED_FRAMES: &[Crooked] = &[
    ("no answer", |r| to_trust(r, || Say::Bytes(vec![])), 4, &["ends after 0"]),
    ("half a head", |r| to_trust(r, || Say::Bytes(vec![9, 0])), 4, &["ends after 2"]),
    ("half a frame", |r| to_trust(r, || Say::Bytes(vec![9, 0, 0, 0, b'{'])), 4, &["ends after 1 of 9"]),
    ("a huge frame", |r| to_trust(r, || Say::Bytes(vec![0xff; 64])), 4, &["4294967295", "65536"]),
    (
        "a frame over the limit",
        |r| to_trust(r, || Say::Bytes((MESSAGE_MAX as u32 + 1).to_le_bytes().to_vec())),
        4,
        &["65537", "65536"],
    ),
    (
        "a frame of noise",
        |r| to_trust(r, || Say::Bytes([&40_u32.to_le_bytes()[..], &[0x80; 40]].concat())),
        4,
        &["could not be read"],
    ),
    ("other JSON", |r| to_trust(r, || Say::Bytes(b"\x02\0\0\0[]".to_vec())), 4, &["could not be read"]),
    ("an unknown answer", |r| to_trust(r, || Say::Bytes(UNKNOWN.to_vec())), 4, &["could not be read", "what"]),
    (
        "another answer",
        |r| to_trust(r, || Say::answer(&Answer::Making { retry_ms: 1 }, &[])),
        1,
        &["signed metadata", "versions"],
    ),
    ("the door", |r| to_trust(r, || Say::Close(close::PROTOCOL, "go away")), 4, &["closed the connection", "go away"]),
    ("a revocation", |r| to_trust(r, || Say::Close(close::REVOKED, "")), 4, &["revoked"]),
];

const CROOKED_BODIES: &[Crooked] = &[
    (
        "metadata without end",
        |r| to_trust(r, || Say::Endless(framed(&one_file("timestamp.json", TRUST_FILE_MAX + 1)))),
        4,
        &["4194305", "4194304"],
    ),
    (
        "metadata of an impossible length",
        |r| to_trust(r, || Say::Bytes(framed(&one_file("timestamp.json", u64::MAX)))),
        1,
        &["18446744073709551615"],
    ),
    (
        "a file with a path for a name",
        |r| to_trust(r, || Say::answer(&one_file("../../identity.pem", 3), b"abc")),
        3,
        &["identity.pem"],
    ),
    (
        "bytes behind the end",
        |r| to_trust(r, || Say::Endless(framed(&Answer::Trust { files: vec![] }))),
        4,
        &["bytes follow the end"],
    ),
    ("half an object", |r| to_object(r, |length| whole_object(length, 0.5)), 1, &["offered", "expected"]),
    ("two objects", |r| to_object(r, |length| whole_object(length, 2.0)), 1, &["offered", "expected"]),
    (
        "an object that breaks off",
        |r| to_object(r, |length| Say::answer(&Answer::Object { length }, &[7])),
        4,
        &["ends after 1 of"],
    ),
];

/// Goal: whatever the answer is, the error names what is wrong with it, the exit code is the documented one, and the node is
/// as before.
#[tokio::test(flavor = "multi_thread")]
async fn crooked_answers() {
    let scene = Scene::new(7).await;
    for (what, decide, code, words) in CROOKED_FRAMES.iter().chain(CROOKED_BODIES).copied() {
        let (liar, node) = scene.lied_to(decide);
        let (error, got) = node.sync().await.failed();
        assert_eq!(got, code, "{what}: {error}");
        for word in words {
            assert!(error.contains(word), "{what}: {word:?} is not in: {error}");
        }
        assert!(liar.asked() > 0, "{what}");
        scene.node.runs(&scene.old);
    }
    scene.unharmed().await;
}

/// Goal: a server that stops talking in the middle of an answer is given up after a while that the error names.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent() {
    let scene = Scene::new(8).await;
    let (_liar, node) = scene.lied_to(|request| match request {
        Request::Object { length, .. } => Say::Stuck(framed(&Answer::Object { length: *length })),
        _ => Say::Truth,
    });
    let (error, code) = node.sync().await.failed();
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("nothing arrived for 30 s"), "{error}");
    scene.unharmed().await;
}

/// All the signed metadata that the server has for this node's channel, as it has it now.
async fn metadata(node: &Machine) -> (Answer, Vec<u8>) {
    let link = node.node().connect().await.expect("a connection");
    let want = vec!["channel_production.json".to_owned(), "release_web_1.json".to_owned()];
    let (answer, mut body) = link.ask(&Request::Trust { have: BTreeMap::new(), want }).await.expect("metadata");
    let Answer::Trust { files } = &answer else { panic!("{answer:?}") };
    let length = files.iter().map(|file| file.length).sum();
    let bytes = body.bytes(length, length, "metadata").await.expect("metadata");
    link.close().await;
    (answer, bytes)
}

/// Goal: metadata that is older than what the node has seen is a rollback, and refused as one.
#[tokio::test(flavor = "multi_thread")]
async fn rolled_back_metadata() {
    let fleet = Fleet::start().await;
    let (old, new) = (Image::new(9, 1), Image::new(90, 1));
    fleet.ship(&old, "web:1").await;
    let node = fleet.node("n1").await;
    let (answer, bytes) = metadata(&node).await;
    node.sync().await.updated();
    fleet.ship(&new, "web:2").await;
    node.sync().await.updated();
    node.runs(&new);
    let before = node.stamps();
    let liar = Liar::between(&node, &fleet, move |request| match request {
        Request::Trust { .. } => Say::answer(&answer, &bytes),
        _ => Say::Truth,
    });
    node.by(liar.address()).agent(&["sync"]).await.fails(3, &["rolled back", "backup"]);
    node.runs(&new);
    // Only how the run ended was noted.
    let changed = node.stamps().differing(&before);
    assert_eq!(changed, [node.state().join("last.json")]);
    node.by(fleet.quic()).agent(&["sync"]).await.ok();
}

/// Goal: one bit of signed metadata changed is never believed, whichever file it is in.
#[tokio::test(flavor = "multi_thread")]
async fn forged_metadata() {
    let scene = Scene::new(10).await;
    let files = Arc::new(AtomicBool::new(false));
    for at in [0.1, 0.3, 0.5, 0.7, 0.9] {
        let seen = files.clone();
        let (_liar, node) = scene.lied_to(move |request| match request {
            Request::Trust { .. } => {
                let seen = seen.clone();
                Say::body(move |mut bytes| {
                    let place = (bytes.len() as f64 * at) as usize;
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte ^= 1;
                        seen.store(true, Ordering::SeqCst);
                    }
                    bytes
                })
            }
            _ => Say::Truth,
        });
        let (error, code) = node.check().await.failed();
        assert_eq!(code, 3, "at {at}: {error}");
        assert!(files.swap(false, Ordering::SeqCst));
    }
    scene.unharmed().await;
}

/// Goal: a server that withholds what is new can only delay: the node goes on with what it has, and says nothing wrong.
#[tokio::test(flavor = "multi_thread")]
async fn withheld_metadata() {
    let scene = Scene::new(11).await;
    let (_liar, node) = scene.lied_to(|request| match request {
        Request::Trust { .. } => Say::answer(&Answer::Trust { files: vec![] }, &[]),
        _ => Say::Truth,
    });
    node.agent(&["sync"]).await.ok();
    scene.unharmed().await;
}

/// Goal: a server of another protocol version is named as such.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_protocol() {
    let scene = Scene::new(12).await;
    let liar = Liar::speaking(b"goldsync/9", &scene.node, &scene.fleet, |_| Say::Truth);
    scene.node.by(liar.address()).agent(&["sync"]).await.fails(4, &["protocol version", "update"]);
    scene.unharmed().await;
}

/// TLS of a node, for another protocol.
fn client_config(node: &Machine, alpn: &[u8]) -> quinn::ClientConfig {
    let text = std::fs::read(node.state().join("identity.pem")).expect("identity.pem");
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&text).map(|one| one.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_slice(&text).expect("a key");
    let [certificate, authority] = certificates.as_slice() else { panic!("two certificates") };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.clone()).expect("the CA");
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.clone()], key)
            .expect("a certificate and its key");
    config.alpn_protocols = vec![alpn.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).expect("TLS for QUIC")))
}

async fn dial(fleet: &Fleet, config: quinn::ClientConfig) -> Result<quinn::Connection, quinn::ConnectionError> {
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a QUIC endpoint");
    endpoint.connect_with(config, fleet.quic(), "127.0.0.1").expect("a connection").await
}

/// Goal: a client of another protocol gets no connection, with the alert that says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_another_protocol() {
    let scene = Scene::new(13).await;
    let error = dial(&scene.fleet, client_config(&scene.node, b"goldsync/9")).await.expect_err("a refusal");
    // QUIC carries TLS's alert 120: no application protocol.
    assert!(
        matches!(&error, quinn::ConnectionError::ConnectionClosed(closed) if u64::from(closed.error_code) == 0x178),
        "{error:?}"
    );
    scene.unharmed().await;
}

/// Goal: peers that send a little and then nothing, or ask and never read, cost the server a stream for a while, and nobody
/// else anything.
#[tokio::test(flavor = "multi_thread")]
async fn slow_and_deaf_peers() {
    let scene = Scene::with(14, |config| config.nodes.request_timeout = Span::seconds(1)).await;
    let identity = Identity::load(&scene.node.state()).expect("an identity");
    let connection = dial(&scene.fleet, identity.quic_config().expect("TLS")).await.expect("a connection");
    // Half a head; half a frame; a request whose answer nobody reads.
    let mut kept = Vec::new();
    for bytes in [&[1, 0][..], &[200, 0, 0, 0, b'{']] {
        let (mut send, recv) = connection.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("a few bytes");
        kept.push((send, recv));
    }
    let deaf = Request::Blocks { image: id(&scene.new), runs: vec![(0, (scene.new.len() / 4096) as u32)] };
    let (mut send, recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&goldsync_proto::wire::frame(&deaf).expect("a frame")).await.expect("a request");
    kept.push((send, recv));
    scene.unharmed().await;
    // The slow ones were told so, or cut off.
    for (_, recv) in kept.iter_mut().take(2) {
        let answer = tokio::time::timeout(Duration::from_secs(60), recv.read_to_end(1 << 16)).await.expect("an end");
        let answer = answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        assert!(answer.is_empty() || answer.contains("bad_request"), "{answer}");
    }
}

/// Goal: requests that ask for the impossible are refused one by one; the connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn impossible_requests() {
    let scene = Scene::new(15).await;
    let link = scene.node.node().connect().await.expect("a connection");
    let blocks = (scene.new.len() / 4096) as u32;
    let image = id(&scene.new);
    let nowhere = ImageId::of(b"nothing of ours");
    let ask = |runs: Vec<(u32, u32)>| Request::Blocks { image, runs };
    let cases = [
        ("a block too many", ask(vec![(0, blocks + 1)]), "outside"),
        ("behind the end", ask(vec![(u32::MAX, 1)]), "outside"),
        ("a sum that overflows", ask(vec![(u32::MAX, u32::MAX)]), "outside"),
        ("no block", ask(vec![(3, 0)]), "range"),
        ("backwards", ask(vec![(5, 1), (2, 1)]), "range"),
        ("twice", ask(vec![(5, 3), (6, 1)]), "range"),
        ("blocks of nothing", Request::Blocks { image: nowhere, runs: vec![(0, 1)] }, "nothing is stored"),
        ("an object of nothing", Request::Object { name: nowhere.0, offset: 0, length: 1 }, "nothing is stored"),
        ("too long a range", Request::Object { name: nowhere.0, offset: 0, length: u64::MAX }, "16777216"),
        ("a plan to nothing", Request::Plan { base: None, target: nowhere, prefer: Prefer::Time }, "nothing is stored"),
        (
            "a plan from nothing",
            Request::Plan { base: Some(nowhere), target: image, prefer: Prefer::Time },
            "does not know that base",
        ),
        (
            "a file that is none",
            Request::Trust { have: BTreeMap::new(), want: vec!["../server.toml".into()] },
            "server.toml",
        ),
        (
            "a target that is none",
            Request::Trust { have: BTreeMap::new(), want: vec!["release_web_9.json".into()] },
            "release_web_9",
        ),
    ];
    for (what, request, words) in cases {
        let error = link.ask(&request).await.map(|(answer, _)| answer).expect_err(what).to_string();
        assert!(error.contains("refused") && error.contains(words), "{what}: {error}");
    }
    let hashes = |width| Request::GrainHashes { image, seed: 1, width, mask: 255, runs: vec![(0, 1)] };
    for width in [0, 3, 9, 255] {
        let error = link.ask(&hashes(width)).await.map(|(answer, _)| answer).expect_err("a width").to_string();
        assert!(error.contains("refused") && error.contains(&format!("{width} is not")), "{width}: {error}");
    }
    let nothing = Request::GrainHashes { image, seed: 1, width: 5, mask: 0, runs: vec![(0, 1)] };
    let error = link.ask(&nothing).await.map(|(answer, _)| answer).expect_err("no grain").to_string();
    assert!(error.contains("refused") && error.contains("names no grain"), "{error}");
    let sketch = |target, sketch| Request::Nearest { target, sketch };
    for (what, request, body, words) in [
        ("a sketch too short", sketch(image, 8), vec![0; 8], "no sketch for an image"),
        ("a sketch of no samples", sketch(image, 3), vec![0; 3], "no sketch for an image"),
        ("a sketch for an image that is not there", sketch(ImageId::of(b"none"), 4), vec![0; 4], "publish it first"),
        ("a sketch without end", sketch(image, u64::MAX), vec![], "at most"),
    ] {
        let error = link.ask_with(&request, &body).await.map(|(answer, _)| answer).expect_err(what).to_string();
        assert!(error.contains("refused") && error.contains(words), "{what}: {error}");
    }
    let two = |masks: &[u8]| (Request::Grains { image, runs: vec![(0, 2)], masks: masks.len() as u64 }, masks.to_vec());
    let endless = Request::Grains { image, runs: vec![(0, 2)], masks: u64::MAX };
    for (what, (request, body), words) in [
        ("a mask too few", two(&write_masks(&[1])), "one for each block"),
        ("a mask too many", two(&write_masks(&[1, 2, 4])), "one for each block"),
        ("a mask of nothing", two(&write_masks(&[1, 0])), "each mask a grain"),
        ("masks that are none", two(b"not a zstd frame"), "one for each block"),
        ("no masks", two(&[]), "one for each block"),
        ("masks without end", (endless, vec![]), "at most"),
    ] {
        let error = link.ask_with(&request, &body).await.map(|(answer, _)| answer).expect_err(what).to_string();
        assert!(error.contains("refused") && error.contains(words), "{what}: {error}");
    }
    let (answer, _) = link.ask(&ask(vec![(0, 1)])).await.expect("an honest request on the same connection");
    assert!(matches!(answer, Answer::Blocks { blocks: 1 }), "{answer:?}");
    link.close().await;
    scene.unharmed().await;
}

/// Goal: a server of another fleet is not trusted, whatever verb meets it, and nothing changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_fleet() {
    let scene = Scene::new(42).await;
    let other = Fleet::start().await;
    let node = scene.node.by(other.quic());
    for verb in ["check", "sync", "download"] {
        node.agent(&[verb]).await.fails(3, &["is not trusted", "of another fleet"]);
    }
    scene.unharmed().await;
}

/// Goal: a token is good for one machine, of one fleet, and unaltered.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_no_good() {
    let (fleet, other) = (Fleet::start().await, Fleet::start().await);
    let token = fleet.operator.token().await;
    let mut altered = token.clone();
    altered.replace_range(4..5, if &token[4..5] == "0" { "1" } else { "0" });
    let foreign = other.operator.token().await;
    let used = fleet.operator.token().await;
    fleet.machine("n0").agent(&["enroll", "--token", &used]).await.ok();
    let machine = fleet.machine("n1");
    for (what, token, code, words) in [
        ("no token", "gs1.abc", 2, &["is not a token", "goldsync token create"][..]),
        ("another secret", &altered, 4, &["token is unknown, used up or expired"]),
        ("used", &used, 4, &["token is unknown, used up or expired"]),
        ("another fleet's", &foreign, 3, &["CA", "of another fleet"]),
    ] {
        let ran = machine.agent(&["enroll", "--token", token]).await;
        assert_eq!(ran.code, Some(code), "{what}: {}", ran.err);
        for word in words {
            assert!(ran.err.contains(word), "{what}: {word:?} is not in: {}", ran.err);
        }
        assert!(!ran.err.contains(&token[4..]), "{what}: the secret was repeated: {}", ran.err);
        machine.agent(&["check"]).await.fails(2, &["enroll"]);
    }
    machine.agent(&["enroll", "--token", &token]).await.ok();
    machine.agent(&["enroll", "--token", &token]).await.fails(2, &["already", "--force"]);
}
