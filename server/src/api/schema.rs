//! The shapes of `proto`'s words in the OpenAPI document. `proto` is pure and knows no OpenAPI, so they are told again
//! here; a test holds each of them against what is really sent.

// These types are read by a derive macro only.
#![allow(dead_code)]

use std::collections::BTreeMap;

use utoipa::ToSchema;

/// What a publisher signs for one release.
#[derive(ToSchema)]
pub struct Manifest {
    /// Version of this form: 1.
    format: u32,
    /// `NAME:VERSION`
    #[schema(example = "web:2026.11.21")]
    release: String,
    /// BLAKE3 of the image, as `b3sum` prints it.
    image: String,
    /// Bytes in the image.
    size: u64,
    sections: Sections,
    /// What was recognised in the image's first bytes; for people.
    file_system: Option<String>,
    verity: Option<Sealed>,
    /// The oldest agent that can install it.
    minimum_agent: Option<String>,
    /// Free-form labels.
    labels: BTreeMap<String, String>,
    /// When it was published, RFC 3339; for people.
    published_at: String,
}

/// The hash tree that an image carries over all of its data, for dm-verity.
#[derive(ToSchema)]
pub struct Sealed {
    /// Hash type: 1, salt before the block; 0, behind it.
    version: u32,
    /// `sha256`
    algorithm: String,
    /// Bytes in a block of data: 4096.
    data_block_size: u32,
    /// Bytes in a block of the tree: 4096.
    hash_block_size: u32,
    /// Blocks of data, from the image's first on.
    data_blocks: u64,
    /// The image's byte at which the superblock begins.
    hash_offset: u64,
    /// Hexadecimal.
    salt: String,
    /// Hexadecimal.
    root_hash: String,
}

/// The three sections of a signature.
#[derive(ToSchema)]
pub struct Sections {
    subtrees: Section,
    blocks: Section,
    rolling: Section,
}

/// An immutable object.
#[derive(ToSchema)]
pub struct Section {
    /// BLAKE3 of the bytes.
    name: String,
    /// Bytes.
    length: u64,
}

/// Where a channel points, as signed.
#[derive(ToSchema)]
pub struct Pointer {
    /// Version of this form: 1.
    format: u32,
    channel: String,
    /// `NAME:VERSION`
    release: String,
    /// That release's image.
    image: String,
    /// When, RFC 3339; for people.
    promoted_at: String,
    /// By whom; for people.
    promoted_by: String,
}

/// How a node is.
#[derive(ToSchema)]
pub struct Report {
    active: Option<SlotReport>,
    standby: Option<SlotReport>,
    /// `idle`, `check`, `plan`, `fetch`, `verify`, `staged`, `swap`, `trial`, `repair`, `failed`
    phase: String,
    progress: Option<Progress>,
    /// What went wrong last, if nothing went right since.
    error: Option<String>,
    /// Drifted blocks in the active slot, as far as known.
    drifted: Option<u64>,
    /// What was activated and has not shown itself good yet.
    trial: Option<TrialReport>,
    /// What the node waits for before it goes on.
    wait: Option<Wait>,
    /// Releases that the node does not go to unasked: they failed there, or somebody went back from them.
    held: Vec<Held>,
}

/// A slot on trial.
#[derive(ToSchema)]
pub struct TrialReport {
    slot: String,
    /// What it holds.
    release: String,
    /// When it was activated, RFC 3339.
    since: String,
    /// Whether it runs; if not, it will after the next restart.
    running: bool,
    /// How many more starts the boot loader allows it, where it counts them.
    tries: Option<u8>,
}

/// What a node waits for.
#[derive(ToSchema)]
pub struct Wait {
    /// `window`, `inhibitor`, `session`, `restart`
    on: String,
    /// For people.
    why: String,
    /// Until when at most, RFC 3339, if that can be told.
    until: Option<String>,
}

/// A release that a node does not go to unasked.
#[derive(ToSchema)]
pub struct Held {
    /// Its image.
    image: String,
    /// Its name.
    release: String,
    /// Since when, RFC 3339.
    since: String,
    /// Why: what failed, or who went back.
    why: String,
}

/// What a slot holds, by the node's own proof.
#[derive(ToSchema)]
pub struct SlotReport {
    slot: String,
    /// The image it was proven to hold.
    image: Option<String>,
    /// The release it was installed as.
    release: Option<String>,
}

/// How far a phase is.
#[derive(ToSchema)]
pub struct Progress {
    /// Bytes of the image that are done.
    done: u64,
    /// Bytes of the image.
    total: u64,
    /// Bytes received so far in this update.
    received: u64,
}

/// How one update ended.
#[derive(ToSchema)]
pub struct Outcome {
    /// `up_to_date`, `updated` (with `account`), `waits` (with `account` and `wait`), `failed` (with `error`)
    outcome: String,
    account: Option<Account>,
    wait: Option<Wait>,
    error: Option<String>,
}

/// What one update cost.
#[derive(ToSchema)]
pub struct Account {
    /// Which way: `pack`, `signature`, `cold`, `repair`.
    path: String,
    /// UDP payload bytes received, handshake and all.
    received: u64,
    /// UDP payload bytes sent.
    sent: u64,
    /// Blocks written to the standby slot.
    written: u64,
    /// Blocks that were right already and were not written.
    skipped: u64,
    /// Drifted blocks found on the way and fetched.
    repaired: u64,
    /// Blocks of hash trees that were made on the node from others; of those written or skipped.
    derived: u64,
    /// Milliseconds from the first request to the swap.
    elapsed_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::ImageId;
    use goldsync_proto::{release, wire};
    use serde::Serialize;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn told<T: ToSchema + utoipa::PartialSchema>() -> BTreeSet<String> {
        let schema = serde_json::to_value(T::schema()).unwrap();
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    }

    fn sent(value: impl Serialize) -> BTreeSet<String> {
        match serde_json::to_value(value).unwrap() {
            Value::Object(fields) => fields.keys().cloned().collect(),
            other => panic!("{other}"),
        }
    }

    /// Goal: the document tells of each field that is sent, and of no other. Method: values with nothing left out.
    #[test]
    fn what_is_told_is_what_is_sent() {
        let image = ImageId::of(b"x");
        let mut manifest = crate::catalog::release_tests::manifest("web:1", b"x");
        manifest.file_system = Some("ext4".into());
        manifest.verity = goldsync_proto::verity::seal(&[0; 8192], image).ok().map(|(_, sealed)| sealed);
        manifest.minimum_agent = Some("0.1.0".into());
        manifest.labels.insert("role".into(), "web".into());
        let slot = wire::SlotReport { slot: "a".parse().unwrap(), image: Some(image), release: "web:1".parse().ok() };
        let pointer = release::Pointer {
            format: 1,
            channel: "dev".parse().unwrap(),
            release: "web:1".parse().unwrap(),
            image,
            promoted_at: String::new(),
            promoted_by: String::new(),
        };
        let release: release::ReleaseRef = "web:1".parse().unwrap();
        let trial = wire::TrialReport {
            slot: "b".parse().unwrap(),
            release: release.clone(),
            since: String::new(),
            running: false,
            tries: Some(3),
        };
        let wait = wire::Wait { on: wire::WaitOn::Window, why: String::new(), until: Some(String::new()) };
        let held = wire::Held { image, release, since: String::new(), why: String::new() };
        let report = wire::Report {
            active: Some(slot.clone()),
            standby: Some(slot.clone()),
            phase: wire::Phase::Idle,
            progress: Some(wire::Progress::default()),
            error: Some("x".into()),
            drifted: Some(0),
            trial: Some(trial.clone()),
            wait: Some(wait.clone()),
            held: vec![held.clone()],
        };
        assert_eq!(told::<Sections>(), sent(manifest.sections));
        assert_eq!(told::<Section>(), sent(manifest.sections.blocks));
        assert_eq!(told::<Sealed>(), sent(manifest.verity.clone()));
        assert_eq!(told::<Manifest>(), sent(manifest));
        assert_eq!(told::<Pointer>(), sent(pointer));
        assert_eq!(told::<SlotReport>(), sent(slot));
        assert_eq!(told::<Report>(), sent(report));
        assert_eq!(told::<TrialReport>(), sent(trial));
        assert_eq!(told::<Wait>(), sent(&wait));
        assert_eq!(told::<Held>(), sent(held));
        assert_eq!(told::<Progress>(), sent(wire::Progress::default()));
        assert_eq!(told::<Account>(), sent(wire::Account::default()));
        let updated = wire::Outcome::Updated { account: wire::Account::default() };
        let failed = wire::Outcome::Failed { error: String::new() };
        let waits = wire::Outcome::Waits { account: wire::Account::default(), wait };
        assert_eq!(told::<Outcome>(), &(&sent(updated) | &sent(waits)) | &sent(failed));
    }
}
