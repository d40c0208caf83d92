//! The byte vectors of `proto/vectors`, read in both directions: what is written there is what we write, and is read as
//! what we mean.
//!
//! Goal: a change of a format that a released agent or server would trip over cannot pass unseen. Method: every message
//! and every binary layout stands in a vector with its meaning beside it, in a form that people can check by hand:
//!
//! ```text
//! # comment                 to the end of the line
//! [name]                    begins a vector
//! 00100000                  bytes, hexadecimal
//! 'text'                    bytes, as they are
//! 41*4096  'ab'*2           the same, repeated
//! ```

#![allow(clippy::unwrap_used, reason = "the whole file is a test; its helpers fail it")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::grain::{ALL, GrainHash, PROBES, read_masks, write_masks};
use goldsync_proto::limits::BLOCK;
use goldsync_proto::pack::delta::{self, Piece};
use goldsync_proto::pack::{Codec, PackError, patch, read_frame, write_frame};
use goldsync_proto::plan::{Pack, Plan, Source, Step};
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::release::{Section, Word};
use goldsync_proto::signature::{Signature, read_subtrees};
use goldsync_proto::verity::{self, Derived, Salted, Tree};
use goldsync_proto::wire::{
    Account, Answer, FRAME_HEAD, Held, Hello, Near, NodeSays, Outcome, Phase, Prefer, Progress, Report, Request,
    ServerSays, SlotReport, TrialReport, TrustFile, Wait, WaitOn, frame, frame_len, unframe,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const D: ImageId = ImageId(Digest([0x11; 32]));
const E: ImageId = ImageId(Digest([0x22; 32]));

#[test]
fn requests_are_written_and_read_as_the_vectors_say() {
    let labels = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
    let report = Report { phase: Phase::Idle, ..Report::default() };
    let (channel, csr) = (word("production"), "-----BEGIN".to_owned());
    let hello = Hello { version: "0.1.0".into(), channel, labels: BTreeMap::new(), daemon: true, report };
    let have = BTreeMap::from([("root".to_owned(), 1), ("timestamp".to_owned(), 7)]);
    messages(
        "requests.hex",
        &[
            ("enrol", Request::Enrol { token: "s3cret".into(), csr: csr.clone(), name: word("node17"), labels }),
            ("renew", Request::Renew { csr }),
            ("control", Request::Control { hello }),
            ("trust", Request::Trust { have, want: vec!["channel_production.json".into()] }),
            ("object", Request::Object { name: D.0, offset: 1 << 20, length: 65536 }),
            ("plan", Request::Plan { base: Some(D), target: E, prefer: Prefer::Time }),
            ("plan-small", Request::Plan { base: Some(D), target: E, prefer: Prefer::Bytes }),
            ("plan-cold", Request::Plan { base: None, target: E, prefer: Prefer::Time }),
            ("blocks", Request::Blocks { image: E, runs: vec![(7, 3), (100, 1)] }),
            (
                "grain-hashes",
                Request::GrainHashes { image: E, seed: 7, width: 5, mask: ALL, runs: vec![(7, 3), (100, 1)] },
            ),
            ("grain-probes", Request::GrainHashes { image: E, seed: 7, width: 5, mask: PROBES, runs: vec![(7, 3)] }),
            ("grains", Request::Grains { image: E, runs: vec![(7, 3)], masks: 12 }),
            ("nearest", Request::Nearest { target: E, sketch: 4096 }),
            ("trees", Request::Trees { image: E }),
        ],
    );
}

#[test]
fn answers_are_written_and_read_as_the_vectors_say() {
    let pem = || "-----BEGIN".to_owned();
    let file = |name: &str, length| TrustFile { name: name.into(), length };
    let section = |length| Section { name: D.0, length };
    let near = Near { image: E, size: 8 << 20, subtrees: section(256), blocks: section(16384) };
    let tree = Tree { data: 0, blocks: 130, at: 131, salted: Salted::Before, salt: vec![0xc0, 0xff, 0xee] };
    let enrolled = Answer::Enrolled { node: word("node17"), certificate: pem(), authority: pem(), root: "{}".into() };
    messages(
        "answers.hex",
        &[
            ("enrolled", enrolled),
            ("renewed", Answer::Renewed { certificate: pem() }),
            ("welcome", Answer::Welcome { version: "0.1.0".into() }),
            ("trust", Answer::Trust { files: vec![file("timestamp.json", 900), file("8.snapshot.json", 1200)] }),
            ("object", Answer::Object { length: 65536 }),
            ("plan", Answer::Plan { name: D.0, length: 5000 }),
            ("making", Answer::Making { retry_ms: 1500 }),
            ("blocks", Answer::Blocks { blocks: 4 }),
            ("grain-hashes", Answer::GrainHashes { grains: 32 }),
            ("grains", Answer::Grains { grains: 10 }),
            ("nearest", Answer::Nearest { near: Some(near) }),
            ("nearest-none", Answer::Nearest { near: None }),
            ("trees", Answer::Trees { trees: vec![tree] }),
            ("refused", Answer::Refused { refusal: Refusal::new(Reason::BadToken, "expired 2026-11-21T09:00:00Z") }),
        ],
    );
}

#[test]
fn what_nodes_say_is_written_and_read_as_the_vectors_say() {
    let report = Report {
        active: Some(SlotReport { slot: word("a"), image: Some(D), release: Some("web:2026.11.20".parse().unwrap()) }),
        standby: Some(SlotReport { slot: word("b"), image: None, release: None }),
        phase: Phase::Fetch,
        progress: Some(Progress { done: 4096, total: 8192, received: 1000 }),
        error: None,
        drifted: Some(0),
        trial: None,
        wait: None,
        held: vec![],
    };
    let release = || "web:2026.11.28".parse().unwrap();
    let since = || "2026-11-28T02:00:00Z".to_owned();
    let trial = TrialReport { slot: word("b"), release: release(), since: since(), running: true, tries: Some(2) };
    let why = "the maintenance window (02:00-04:00, UTC) is closed".to_owned();
    let wait = Wait { on: WaitOn::Window, why, until: Some("2026-11-29T02:00:00Z".into()) };
    let held = Held { image: D, release: release(), since: since(), why: "nginx.service is not active".into() };
    let trying = Report { trial: Some(trial), phase: Phase::Trial, held: vec![held], ..Report::default() };
    let path = "pack".to_owned();
    let (received, sent, elapsed_ms) = (1000, 200, 35);
    let account = Account { path, received, sent, written: 1, skipped: 1, repaired: 0, derived: 0, elapsed_ms };
    let done = |outcome| NodeSays::SyncDone { order: 12, outcome };
    messages(
        "node-says.hex",
        &[
            ("report", NodeSays::Report { report }),
            ("report-trial", NodeSays::Report { report: trying }),
            ("sync-done-updated", done(Outcome::Updated { account: account.clone() })),
            ("sync-done-waits", done(Outcome::Waits { account, wait })),
            ("sync-done-up-to-date", done(Outcome::UpToDate)),
            ("sync-done-failed", done(Outcome::Failed { error: "the disk is full".into() })),
        ],
    );
}

#[test]
fn what_servers_say_is_written_and_read_as_the_vectors_say() {
    messages(
        "server-says.hex",
        &[
            ("moved", ServerSays::Moved { channel: word("production") }),
            ("sync", ServerSays::Sync { order: 12, now: true }),
            ("rollback", ServerSays::Rollback { order: 13, from: "web:2026.11.28".parse().unwrap() }),
        ],
    );
}

#[test]
fn literal_frames_are_read_as_the_vectors_say_and_bad_ones_refused() {
    let vectors = read("frame.hex");
    assert_eq!(read_frame(&vectors["raw"]).unwrap(), vectors["raw-bytes"]);
    assert_eq!(read_frame(&vectors["zstd"]).unwrap(), vectors["zstd-bytes"]);
    // How well a compressor does is its own affair, so of what we write only the head and the way back are fixed.
    let written = write_frame(&vectors["zstd-bytes"], 3);
    assert_eq!(written[4..9], vectors["zstd"][4..9]);
    assert_eq!(read_frame(&written).unwrap(), vectors["zstd-bytes"]);

    // Our own codecs have one encoding of given pieces, and every machine makes the same.
    assert_eq!(read_frame(&vectors["delta"]).unwrap(), vectors["delta-bytes"]);
    let pieces = [Piece { from: 0, copy: 0, fresh: 1 }, Piece { from: 0, copy: 4095, fresh: 0 }];
    assert_eq!(delta::encode(&vectors["delta-bytes"], b"", &pieces), vectors["delta"][9..]);
    assert_eq!(read_frame(&vectors["patch"]).unwrap(), vectors["delta-bytes"]);
    assert_eq!(patch::encode(&vectors["delta-bytes"], b"", &pieces).unwrap(), vectors["patch"][9..]);

    assert!(matches!(read_frame(&vectors["refused-codec"]), Err(PackError::Codec(_))));
    assert_eq!(read_frame(&vectors["refused-ragged"]), Err(PackError::Lengths { wire: 1, raw: 4097 }));
    assert_eq!(read_frame(&vectors["refused-grown"]), Err(PackError::Lengths { wire: 4097, raw: 4096 }));
    assert!(read_frame(&vectors["refused-trailing"]).unwrap_err().to_string().contains("1 bytes follow"));
}

#[test]
fn grains_are_hashed_and_masks_read_as_the_vectors_say() {
    let vectors = read("grain.hex");
    let hash = GrainHash::new(7, 5).unwrap();
    assert_eq!(hash.sign(&vectors["block"], ALL), vectors["hashes-seed-7-width-5"]);
    assert_eq!(read_masks(&vectors["masks-wire"], 3).unwrap(), vectors["masks"]);
    assert_eq!(read_masks(&write_masks(&vectors["masks"]), 3).unwrap(), vectors["masks"]);
    assert!(read_masks(&vectors["masks-refused-short"], 3).is_err());
}

#[test]
fn a_plan_is_written_and_read_as_the_vector_says() {
    let body = read("plan.hex").remove("plan").unwrap();
    let plan = Plan {
        base: Some(D),
        target: E,
        geometry: Geometry::new(16 * BLOCK).unwrap(),
        objects: vec![Digest([0x33; 32])],
        packs: vec![
            Pack {
                object: 0,
                offset: 0,
                wire_len: 100,
                raw_len: 8192,
                codec: Codec::Zstd,
                wire_hash: [0x44; 16],
                raw_hash: [0x55; 16],
                prefix: vec![(300, 16), (0, 1)],
            },
            Pack {
                object: 0,
                offset: 100,
                wire_len: 4096,
                raw_len: 4096,
                codec: Codec::Raw,
                wire_hash: [0x66; 16],
                raw_hash: [0x66; 16],
                prefix: vec![],
            },
        ],
        steps: vec![
            Step::Copy { source: Source::Active, from: 7, count: 2 },
            Step::Patch { pack: 0, from: 0, count: 1 },
            Step::Zero { count: 3 },
            Step::Patch { pack: 0, from: 1, count: 1 },
            Step::CopyBytes { source: Source::Active, from: 12345, count: 4 },
            Step::Patch { pack: 1, from: 0, count: 1 },
            Step::Zero { count: 3 },
            Step::Derive { count: 1 },
        ],
        trees: vec![Tree { data: 2, blocks: 9, at: 15, salted: Salted::Before, salt: b"salt".to_vec() }],
    };
    let mut wire = (body.len() as u32).to_le_bytes().to_vec();
    wire.extend_from_slice(&zstd::bulk::compress(&body, 3).unwrap());
    assert_eq!(Plan::decode(&wire).as_ref(), Ok(&plan));

    let written = plan.encode().unwrap();
    let (length, packed) = written.split_first_chunk::<4>().unwrap();
    let unpacked = zstd::bulk::decompress(packed, u32::from_le_bytes(*length) as usize).unwrap();
    assert_eq!(unpacked, body);
}

/// What `veritysetup` wrote, derived by us.
#[test]
fn hash_trees_are_found_and_derived_as_the_vectors_say() {
    let vectors = read("verity.hex");
    let data: Vec<u8> = (0..130).flat_map(|block| [block; BLOCK as usize]).collect();
    for (name, salted) in [("type-1", Salted::Before), ("type-0", Salted::Behind)] {
        let part = |what: &str| vectors[&format!("{name} {what}")].as_slice();
        let tree = Tree::read(130, part("superblock")).unwrap();
        assert_eq!((tree.blocks, tree.at, tree.salted), (130, 131, salted), "{name}");
        let image = [&data, part("superblock"), part("tree")].concat();
        assert_eq!(verity::find(&image), [Derived { tree, runs: vec![(131, 3)] }], "{name}");
    }
    let (tree, sealed) = verity::seal(&data, ImageId::of(&data)).unwrap();
    assert_eq!(tree[..BLOCK as usize], vectors["sealed superblock"]);
    assert_eq!(sealed.root_hash.0, vectors["sealed root-hash"][..]);
}

#[test]
fn a_signature_is_made_and_read_as_the_vectors_say() {
    let vectors = read("signature.hex");
    for name in ["one-block", "two-regions"] {
        let part = |what: &str| &vectors[&format!("{name} {what}")];
        let geometry = Geometry::new(part("image").len() as u64).unwrap();
        let signature = Signature::of(geometry, part("image")).unwrap();
        assert_eq!(signature.image.0.as_bytes().as_slice(), part("id"), "{name}");
        assert_eq!(&signature.subtrees, part("subtrees"), "{name}");
        assert_eq!(&signature.blocks, part("blocks"), "{name}");
        assert_eq!(&signature.rolling, part("rolling"), "{name}");
        let regions = read_subtrees(geometry, signature.image, part("subtrees")).unwrap();
        assert_eq!(regions.concat(), *part("subtrees"), "{name}");
    }
}

fn word(text: &str) -> Word {
    text.parse().unwrap()
}

/// Every vector of the file has a message and the other way round; each is written and read alike.
fn messages<T: Serialize + DeserializeOwned + PartialEq + Debug>(file: &str, expected: &[(&str, T)]) {
    let vectors = read(file);
    let mut names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    assert_eq!(vectors.keys().map(String::as_str).collect::<Vec<_>>(), names, "{file}");
    for (name, message) in expected {
        let bytes = &vectors[*name];
        let (head, json) = bytes.split_first_chunk::<FRAME_HEAD>().unwrap();
        assert_eq!(frame_len(*head).unwrap(), json.len(), "{file} [{name}]");
        assert_eq!(&unframe::<T>(json).unwrap(), message, "{file} [{name}]");
        let written = frame(message).unwrap();
        assert_eq!(written, *bytes, "{file} [{name}]: {}", String::from_utf8_lossy(&written));
    }
}

/// The vectors of a file, by name.
fn read(file: &str) -> BTreeMap<String, Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut vectors = BTreeMap::new();
    let mut current = None;
    for (line, number) in text.lines().zip(1..) {
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').unwrap_or_else(|| panic!("{file}, line {number}: no ']'"));
            assert!(vectors.insert(name.to_owned(), Vec::new()).is_none(), "{file}, line {number}: {name} again");
            current = Some(name.to_owned());
        } else {
            let bytes = line_bytes(line).unwrap_or_else(|| panic!("{file}, line {number}: {line}"));
            let vector = current.as_ref().and_then(|name| vectors.get_mut(name));
            assert!(vector.is_some() || bytes.is_empty(), "{file}, line {number}: bytes before the first name");
            vector.into_iter().for_each(|vector| vector.extend_from_slice(&bytes));
        }
    }
    vectors
}

/// One line's bytes; `None` if it is not in the form.
fn line_bytes(line: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (token, after) = match rest.strip_prefix('\'') {
            Some(text) => text.split_once('\'').map(|(text, after)| (text.as_bytes().to_vec(), after))?,
            None => {
                let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
                (hex(&rest[..end])?, &rest[end..])
            }
        };
        let (times, after) = match after.strip_prefix('*') {
            Some(count) => {
                let end = count.find(|c: char| !c.is_ascii_digit()).unwrap_or(count.len());
                (count[..end].parse().ok()?, &count[end..])
            }
            None => (1, after),
        };
        if token.is_empty() || !(after.is_empty() || after.starts_with(char::is_whitespace)) {
            return None;
        }
        bytes.extend(token.repeat(times));
        rest = after.trim_start();
    }
    Some(bytes)
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let (pairs, odd) = digits.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if odd.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// Seeds for the fuzzers: `cargo test -p goldsync-proto --test vectors -- --ignored` after a vector changed.
#[test]
#[ignore = "writes fuzz/corpus"]
fn write_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let targets = [
        ("requests.hex", "wire", FRAME_HEAD),
        ("answers.hex", "wire", FRAME_HEAD),
        ("node-says.hex", "wire", FRAME_HEAD),
        ("server-says.hex", "wire", FRAME_HEAD),
        ("frame.hex", "pack", 0),
        ("plan.hex", "plan", 0),
        ("verity.hex", "verity", 0),
    ];
    for (file, target, skip) in targets {
        std::fs::create_dir_all(corpus.join(target)).unwrap();
        for (name, bytes) in read(file) {
            std::fs::write(corpus.join(target).join(name.replace(' ', "-")), &bytes[skip..]).unwrap();
        }
    }
}
