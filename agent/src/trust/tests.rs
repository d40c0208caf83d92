//! What a node believes, and each way in which a stolen server might try to make it believe something else.
//!
//! A [`Mint`] holds every key of a fleet and makes whatever metadata a test wants, honest or not.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::num::NonZeroU64;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::Ed25519KeyPair;
use chrono::{SecondsFormat, TimeDelta};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::release::{Section, Sections};
use proptest::prelude::*;
use tempfile::TempDir;
use tough::TargetName;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{
    DelegatedRole, Delegations, Hashes, Metafile, PathPattern, PathSet, Role, RoleKeys, RoleType, Signature, Snapshot,
    Target as Entry, Targets, Timestamp,
};
use tough::sign::Sign;

use super::*;

const CUT_OFF: &str = "cut off from the real server";
const CHANNELS: [&str; 2] = ["dev", "production"];

fn now() -> DateTime<Utc> {
    Utc::now()
}

fn in_days(days: i64) -> DateTime<Utc> {
    now() + TimeDelta::days(days)
}

fn version(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

fn moment<T: serde::de::DeserializeOwned>(at: DateTime<Utc>) -> T {
    serde_json::from_value(at.to_rfc3339_opts(SecondsFormat::Secs, true).into()).unwrap()
}

fn hashes(bytes: &[u8]) -> Hashes {
    Hashes { sha256: digest(&SHA256, bytes).as_ref().to_vec().into(), _extra: HashMap::new() }
}

fn metafile(number: u64, text: &str) -> Metafile {
    let hashes = Some(hashes(text.as_bytes()));
    Metafile { length: Some(text.len() as u64), hashes, version: version(number), _extra: HashMap::new() }
}

fn id(key: &Ed25519KeyPair) -> Decoded<Hex> {
    key.tuf_key().key_id().unwrap()
}

fn sign<T: Role>(role: T, keys: &[&Ed25519KeyPair]) -> String {
    let message = role.canonical_form().unwrap();
    // Spelt out: the trait `Sign` has a method of the same name.
    let sign = |key: &&Ed25519KeyPair| Signature {
        keyid: id(key),
        sig: Ed25519KeyPair::sign(key, &message).as_ref().to_vec().into(),
    };
    let signatures = keys.iter().map(sign).collect();
    // By way of a value, whose keys are sorted: the same state is the same text.
    serde_json::to_value(Signed { signed: role, signatures }).unwrap().to_string()
}

fn manifest(release: &str, image: &str) -> String {
    let section = |length| Section { name: Digest::of(image.as_bytes()), length };
    let manifest = Manifest {
        format: 1,
        release: release.parse().unwrap(),
        image: ImageId::of(image.as_bytes()),
        size: 4096,
        sections: Sections { subtrees: section(32), blocks: section(8), rolling: section(8) },
        file_system: None,
        verity: None,
        minimum_agent: None,
        labels: BTreeMap::new(),
        published_at: "2026-11-21T00:00:00Z".into(),
    };
    serde_json::to_string(&manifest).unwrap()
}

fn pointer(channel: &str, release: &str, image: &str) -> String {
    let pointer = Pointer {
        format: 1,
        channel: channel.parse().unwrap(),
        release: release.parse().unwrap(),
        image: ImageId::of(image.as_bytes()),
        promoted_at: "2026-11-21T00:00:00Z".into(),
        promoted_by: "test".into(),
    };
    serde_json::to_string(&pointer).unwrap()
}

/// A fleet's keys and the state that it signs. Fields are changed at will between two [`Mint::files`].
struct Mint {
    keys: HashMap<&'static str, Ed25519KeyPair>,
    versions: BTreeMap<&'static str, u64>,
    expires: BTreeMap<&'static str, DateTime<Utc>>,
    /// Role to target file's name and text.
    lists: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Another role's key to sign a role with.
    signer: BTreeMap<&'static str, &'static str>,
}

const ROLES: [&str; 7] = ["root", "targets", "snapshot", "timestamp", "releases", "channel-dev", "channel-production"];

impl Mint {
    fn new() -> Self {
        let mut keys: HashMap<_, _> = ROLES.map(|role| (role, Ed25519KeyPair::generate().unwrap())).into();
        keys.insert("other", Ed25519KeyPair::generate().unwrap());
        Self {
            keys,
            versions: ROLES.map(|role| (role, 1)).into(),
            expires: ROLES.map(|role| (role, in_days(30))).into(),
            lists: BTreeMap::new(),
            signer: ROLES.map(|role| (role, role)).into(),
        }
    }

    /// `web:1` published, `production` pointing at it.
    fn with_release() -> Self {
        let mut mint = Self::new();
        mint.list("releases", "release_web_1.json", manifest("web:1", "one"));
        mint.list("channel-production", "channel_production.json", pointer("production", "web:1", "one"));
        mint
    }

    fn list(&mut self, role: &'static str, name: &str, text: String) {
        self.lists.entry(role).or_default().insert(name.to_owned(), text);
    }

    /// Each role's next version.
    fn bump(&mut self, roles: &[&'static str]) {
        for role in roles {
            *self.versions.get_mut(role).unwrap() += 1;
        }
    }

    fn key(&self, role: &str) -> &Ed25519KeyPair {
        &self.keys[self.signer[role]]
    }

    fn root(&self) -> String {
        let mut root = Root {
            spec_version: "1.0.0".into(),
            consistent_snapshot: true,
            version: version(self.versions["root"]),
            expires: moment(self.expires["root"]),
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: HashMap::new(),
        };
        let types = [RoleType::Root, RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp];
        for (name, kind) in ROLES.into_iter().zip(types) {
            root.keys.insert(id(&self.keys[name]), self.keys[name].tuf_key());
            let keyids = vec![id(&self.keys[name])];
            root.roles.insert(kind, RoleKeys { keyids, threshold: version(1), _extra: HashMap::new() });
        }
        sign(root, &[self.key("root")])
    }

    fn targets(&self, role: &'static str) -> String {
        let mut targets = Targets::new("1.0.0".into(), version(self.versions[role]), moment(self.expires[role]));
        targets.delegations = None;
        for (name, text) in self.lists.get(role).into_iter().flatten() {
            let entry = Entry {
                length: text.len() as u64,
                hashes: hashes(text.as_bytes()),
                custom: HashMap::new(),
                _extra: HashMap::new(),
            };
            targets.add_target(TargetName::new(name).unwrap(), entry);
        }
        if role == "targets" {
            targets.delegations = Some(self.delegations());
        }
        sign(targets, &[self.key(role)])
    }

    fn delegations(&self) -> Delegations {
        let mut all = Delegations::new();
        let channels = CHANNELS.map(|name| (format!("channel-{name}"), format!("channel_{name}.json")));
        for (name, pattern) in [("releases".to_owned(), "release_*".to_owned())].into_iter().chain(channels) {
            let key = &self.keys[name.as_str()];
            all.keys.insert(id(key), key.tuf_key());
            let paths = PathSet::Paths(vec![PathPattern::new(pattern).unwrap()]);
            let (keyids, threshold) = (vec![id(key)], version(1));
            all.roles.push(DelegatedRole { name, keyids, threshold, paths, terminating: true, targets: None });
        }
        all
    }

    /// Everything, signed, but for the root.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = BTreeMap::new();
        let mut snapshot =
            Snapshot::new("1.0.0".into(), version(self.versions["snapshot"]), moment(self.expires["snapshot"]));
        for role in ["targets", "releases", "channel-dev", "channel-production"] {
            let text = self.targets(role);
            snapshot.meta.insert(format!("{role}.json"), metafile(self.versions[role], &text));
            files.insert(format!("{}.{role}.json", self.versions[role]), text);
        }
        let snapshot = sign(snapshot, &[self.key("snapshot")]);
        let mut timestamp =
            Timestamp::new("1.0.0".into(), version(self.versions["timestamp"]), moment(self.expires["timestamp"]));
        timestamp.meta.insert("snapshot.json".into(), metafile(self.versions["snapshot"], &snapshot));
        files.insert(format!("{}.snapshot.json", self.versions["snapshot"]), snapshot);
        files.insert("timestamp.json".into(), sign(timestamp, &[self.key("timestamp")]));
        for (name, text) in self.lists.values().flatten() {
            files.insert(name.clone(), text.clone());
        }
        files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
    }
}

fn production() -> Word {
    "production".parse().unwrap()
}

/// A node that holds what `mint` signed.
async fn node(mint: &Mint) -> (TempDir, Trust) {
    let dir = TempDir::new().unwrap();
    let mut trust = Trust::init(dir.path(), &mint.root()).unwrap();
    assert!(trust.absorb(mint.files()).await.unwrap());
    (dir, trust)
}

#[tokio::test]
async fn what_is_properly_signed_is_believed_and_kept() {
    let mint = Mint::with_release();
    let (dir, mut trust) = node(&mint).await;
    let (pointer, manifest) = trust.desired(&production()).await.unwrap().unwrap();
    assert_eq!((pointer.image, manifest.image), (ImageId::of(b"one"), ImageId::of(b"one")));
    assert_eq!(trust.have(), ROLES.map(|role| (role.to_owned(), 1)).into());
    assert_eq!(trust.desired(&"dev".parse().unwrap()).await.unwrap(), None);
    let error = trust.pointer(&"moon".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no channel moon; the channels are dev, production");
    let error = trust.manifest(&"web:9".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, TrustError::UnknownRelease { .. }), "{error}");

    // Nothing new, said in two ways, writes nothing.
    let link = fs::read_link(dir.path().join("current")).unwrap();
    assert!(!trust.absorb(Vec::new()).await.unwrap());
    assert!(!trust.absorb(mint.files()).await.unwrap());
    assert_eq!(fs::read_link(dir.path().join("current")).unwrap(), link);

    let again = Trust::open(dir.path()).unwrap();
    assert_eq!(again.have(), trust.have());
    assert_eq!(again.desired(&production()).await.unwrap().unwrap().1, manifest);
}

#[tokio::test]
async fn target_files_are_wanted_one_after_the_other_and_only_if_missing_or_changed() {
    let mut mint = Mint::with_release();
    let only = |files: Vec<(String, Vec<u8>)>, wanted: &[String]| -> Vec<_> {
        files
            .into_iter()
            .filter(|(name, _)| wanted.contains(name) || name.parse::<goldsync_proto::trust::Target>().is_err())
            .collect()
    };
    let dir = TempDir::new().unwrap();
    let mut trust = Trust::init(dir.path(), &mint.root()).unwrap();
    for expected in ["channel_production.json", "release_web_1.json"] {
        let wanted = trust.wanted(&production()).await;
        let wanted = if expected.starts_with("channel") {
            assert!(matches!(wanted, Err(TrustError::Nothing)));
            trust.absorb(only(mint.files(), &[])).await.unwrap();
            trust.wanted(&production()).await.unwrap()
        } else {
            wanted.unwrap()
        };
        assert_eq!(wanted, [expected]);
        assert!(matches!(trust.desired(&production()).await, Err(TrustError::Missing { .. })));
        assert!(trust.absorb(only(mint.files(), &wanted)).await.unwrap());
    }
    assert!(trust.wanted(&production()).await.unwrap().is_empty());
    assert!(trust.wanted(&"dev".parse().unwrap()).await.unwrap().is_empty());

    mint.list("releases", "release_web_2.json", manifest("web:2", "two"));
    mint.list("channel-production", "channel_production.json", pointer("production", "web:2", "two"));
    mint.bump(&["releases", "channel-production", "snapshot", "timestamp"]);
    trust.absorb(only(mint.files(), &[])).await.unwrap();
    // The old pointer is not believed any more.
    assert_eq!(trust.wanted(&production()).await.unwrap(), ["channel_production.json"]);
    trust.absorb(mint.files()).await.unwrap();
    assert_eq!(trust.desired(&production()).await.unwrap().unwrap().1.release.to_string(), "web:2");
}

#[tokio::test]
async fn a_rotten_file_is_only_lost_wherever_it_rots() {
    let mint = Mint::with_release();
    let (dir, _) = node(&mint).await;
    for name in ["timestamp.json", "1.snapshot.json", "1.root.json"] {
        let path = dir.path().join("current").join(name);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut rotten = good.clone();
            rotten[at] ^= 1;
            fs::write(&path, &rotten).unwrap();
            let mut trust = Trust::open(dir.path()).unwrap_or_else(|error| panic!("{name}, byte {at}: {error}"));
            if at % 37 == 0 {
                let taken = trust.absorb(mint.files()).await;
                assert!(taken.is_ok() && trust.desired(&production()).await.is_ok(), "{name}, byte {at}: {taken:?}");
            }
        }
        fs::write(dir.path().join("current").join(name), &good).unwrap();
    }
}

/// What a test does to a mint before it signs once more, and to the files that it then sends.
type Harm = fn(&mut Mint);
type Tamper = fn(&Mint, &mut Vec<(String, Vec<u8>)>);

const UNTOUCHED: Tamper = |_, _| {};

/// A node that holds version 5 of everything below the root is sent what comes out of it; it must refuse, say why,
/// and stay as it was.
async fn is_refused(what: &str, harm: Harm, tamper: Tamper, expected: &str) {
    let mut mint = Mint::with_release();
    let root = mint.root();
    for role in &ROLES[1..] {
        mint.versions.insert(role, 5);
    }
    let dir = TempDir::new().unwrap();
    let mut trust = Trust::init(dir.path(), &root).unwrap();
    trust.absorb(mint.files()).await.unwrap();
    let (before, link) = (trust.versions.clone(), fs::read_link(dir.path().join("current")).unwrap());

    harm(&mut mint);
    let mut files = mint.files();
    tamper(&mint, &mut files);
    let Err(error) = trust.absorb(files).await else { panic!("{what} was believed") };
    assert!(error.to_string().contains(expected), "{what}: {error}");
    let link_now = fs::read_link(dir.path().join("current")).unwrap();
    assert_eq!((&trust.versions, link_now), (&before, link), "{what}");
    assert_eq!(Trust::open(dir.path()).unwrap().versions, before, "{what}");
    let desired = trust.desired(&production()).await.unwrap().unwrap();
    assert_eq!(desired.1.image, ImageId::of(b"one"), "{what}");
}

impl Mint {
    /// Says that `role` is signed with `key`, in the next version.
    fn next_signed_by(&mut self, role: &'static str, key: &'static str) {
        self.bump(&["timestamp", "snapshot"]);
        if !["timestamp", "snapshot"].contains(&role) {
            self.bump(&[role]);
        }
        self.signer.insert(role, key);
    }

    /// Lets `role` have expired yesterday, in the next version.
    fn next_expired(&mut self, role: &'static str) {
        self.next_signed_by(role, role);
        self.expires.insert(role, in_days(-1));
    }

    /// Sets a version, below newer online roles.
    fn back(&mut self, role: &'static str, version: u64) {
        self.bump(&["timestamp", "snapshot"]);
        self.versions.insert(role, version);
    }
}

#[tokio::test]
async fn nothing_is_rolled_back() {
    let rolled: [(&str, Harm, &str); 3] = [
        ("timestamp", |mint| mint.back("timestamp", 2), "version 5 is known here, version 2"),
        ("snapshot", |mint| mint.back("snapshot", 4), "version 5 is known here, version 4"),
        ("releases", |mint| mint.back("releases", 4), "version 5 is known here, version 4"),
    ];
    for (role, harm, expected) in rolled {
        is_refused(role, harm, UNTOUCHED, &format!("role {role} was rolled back: {expected}")).await;
    }
}

#[tokio::test]
async fn nothing_is_believed_from_another_key() {
    let forged: [(&str, Harm, &str); 6] = [
        ("a foreign timestamp", |mint| mint.next_signed_by("timestamp", "other"), "timestamp"),
        ("a foreign snapshot", |mint| mint.next_signed_by("snapshot", "other"), "snapshot"),
        ("a foreign list of targets", |mint| mint.next_signed_by("targets", "other"), "targets"),
        ("a release by the server's key", |mint| mint.next_signed_by("releases", "snapshot"), "targets"),
        ("production by dev's key", |mint| mint.next_signed_by("channel-production", "channel-dev"), "targets"),
        ("a root by a channel's key", |mint| mint.next_signed_by("root", "channel-dev"), "root"),
    ];
    let with_root: Tamper = |mint, files| {
        if mint.versions["root"] > 1 {
            files.push(("2.root.json".into(), mint.root().into_bytes()));
        }
    };
    for (what, harm, role) in forged {
        is_refused(what, harm, with_root, &format!("role {role} is not signed by its keys")).await;
    }
}

#[tokio::test]
async fn a_channels_key_lists_nothing_but_its_channel() {
    let harm: Harm = |mint| {
        mint.bump(&["timestamp", "snapshot", "channel-dev", "channel-production"]);
        mint.lists.remove("channel-production");
        mint.list("channel-dev", "channel_production.json", pointer("production", "web:1", "x"));
    };
    is_refused("dev lists production", harm, UNTOUCHED, "does not hold together").await;
}

#[tokio::test]
async fn what_has_expired_is_not_taken() {
    let expired: [(&str, Harm, &str); 3] = [
        ("timestamp", |mint| mint.next_expired("timestamp"), CUT_OFF),
        ("snapshot", |mint| mint.next_expired("snapshot"), CUT_OFF),
        ("targets", |mint| mint.next_expired("targets"), "an operator must sign it again"),
    ];
    for (role, harm, remedy) in expired {
        is_refused(role, harm, UNTOUCHED, &format!("role {role} expired on")).await;
        is_refused(role, harm, UNTOUCHED, remedy).await;
    }
}

#[tokio::test]
async fn a_file_that_is_missing_or_another_than_was_named_is_noticed() {
    let newer: Harm = |mint| mint.bump(&["timestamp", "snapshot", "releases"]);
    let drop: Tamper = |_, files| files.retain(|(name, _)| name != "6.releases.json");
    is_refused("a missing role", newer, drop, "6.releases.json is missing").await;
    let change: Tamper = |_, files| {
        for (_, bytes) in files.iter_mut().filter(|(name, _)| name == "6.releases.json") {
            *bytes = String::from_utf8(bytes.clone()).unwrap().replace("web_1", "web_2").into_bytes();
        }
    };
    is_refused("a changed role", newer, change, "a file is not what was signed").await;
}

#[tokio::test]
async fn a_restarted_node_remembers_what_it_saw() {
    let mut mint = Mint::with_release();
    let old = mint.files();
    mint.bump(&["timestamp", "snapshot", "releases"]);
    let (dir, trust) = node(&mint).await;
    drop(trust);
    let mut trust = Trust::open(dir.path()).unwrap();
    let error = trust.absorb(old.clone()).await.unwrap_err();
    assert!(matches!(&error, TrustError::RolledBack { role, held: 2, got: 1 } if role == "timestamp"), "{error}");
    // Enrolling again with the same fleet is no way round.
    let mut trust = Trust::init(dir.path(), &mint.root()).unwrap();
    assert!(matches!(trust.absorb(old.clone()).await, Err(TrustError::RolledBack { .. })));
    // Another fleet begins anew.
    let other = Mint::with_release();
    let mut trust = Trust::init(dir.path(), &other.root()).unwrap();
    assert_eq!(trust.have(), BTreeMap::from([("root".to_owned(), 1)]));
    assert!(matches!(trust.absorb(old).await, Err(TrustError::Signature { .. })));
    trust.absorb(other.files()).await.unwrap();
}

#[tokio::test]
async fn metadata_expires_where_it_matters_and_nowhere_else() {
    let mut mint = Mint::with_release();
    mint.expires.insert("timestamp", in_days(7));
    mint.expires.insert("channel-dev", in_days(-1));
    let (_dir, mut trust) = node(&mint).await;
    // Nobody promotes to dev any more: that is dev's nodes' trouble only.
    trust.desired(&production()).await.unwrap().unwrap();
    let error = trust.pointer(&"dev".parse().unwrap()).await.unwrap_err();
    assert!(matches!(&error, TrustError::Expired { role, .. } if role == "channel-dev"), "{error}");
    // A node that hears nothing says so in time.
    trust.check_now().await.unwrap();
    trust.check_at(in_days(6)).await.unwrap();
    let error = trust.check_at(in_days(8)).await.unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
    assert!(trust.absorb_at(Vec::new(), in_days(8)).await.is_err());
    assert!(trust.desired_at(&production(), in_days(8)).await.is_err());
    // It recovers as soon as it is told something fresh.
    mint.bump(&["timestamp"]);
    mint.expires.insert("timestamp", in_days(20));
    assert!(trust.absorb_at(mint.files(), in_days(8)).await.unwrap());
    trust.desired_at(&production(), in_days(8)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_target_that_is_not_what_it_says_is_refused() {
    let foreign: [(&str, &str, String, &str); 5] = [
        (
            "channel-production",
            "channel_production.json",
            pointer("dev", "web:1", "one"),
            "is the pointer of channel dev",
        ),
        ("channel-production", "channel_production.json", pointer("production", "web:1", "two"), "points at image"),
        (
            "channel-production",
            "channel_production.json",
            pointer("production", "web:9", "one"),
            "web:9 is not among the signed releases",
        ),
        ("releases", "release_web_1.json", manifest("web:2", "one"), "is the manifest of web:2"),
        ("releases", "release_web_1.json", manifest("web:1", "one").replace("4096", "0"), "0 bytes"),
    ];
    for (role, name, text, expected) in foreign {
        let mut mint = Mint::with_release();
        mint.list(role, name, text);
        let (_dir, trust) = node(&mint).await;
        let error = trust.desired(&production()).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // Other bytes under a listed name are not kept: the node still wants them.
    let mint = Mint::with_release();
    let dir = TempDir::new().unwrap();
    let mut trust = Trust::init(dir.path(), &mint.root()).unwrap();
    let mut files = mint.files();
    for (name, bytes) in &mut files {
        if name == "channel_production.json" {
            bytes.push(b' ');
        }
    }
    trust.absorb(files).await.unwrap();
    assert_eq!(trust.wanted(&production()).await.unwrap(), ["channel_production.json"]);
    // Neither are they believed if somebody changes them on the disk.
    trust.absorb(mint.files()).await.unwrap();
    fs::write(dir.path().join("current/channel_production.json"), pointer("production", "web:1", "two")).unwrap();
    assert_eq!(trust.wanted(&production()).await.unwrap(), ["channel_production.json"]);
    assert!(matches!(trust.desired(&production()).await, Err(TrustError::Damaged(_))));
}

#[tokio::test]
async fn bad_names_and_too_many_bytes_are_refused_before_anything_is_read() {
    let mint = Mint::with_release();
    let (_dir, mut trust) = node(&mint).await;
    let big = |len: usize| vec![b' '; len];
    let sent: [(Vec<_>, &str); 7] = [
        (vec![("../../etc/passwd".into(), big(1))], "is not the name of a file"),
        (vec![("root.json".into(), big(1))], "is not the name of a file"),
        (vec![("latest_known_time.json".into(), big(1))], "is not the name of a file"),
        (vec![("timestamp.json".into(), big(1)), ("timestamp.json".into(), big(1))], "came twice"),
        (vec![("timestamp.json".into(), big((4 << 20) + 1))], "4194305, at most 4194304"),
        ((2..=4).map(|i| (format!("{i}.releases.json"), big(4 << 20))).collect(), "at most 12582912"),
        ((2..=1026).map(|i| (format!("{i}.root.json"), big(1))).collect(), "1025, at most 1024"),
    ];
    for (files, expected) in sent {
        let error = trust.absorb(files).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    trust.desired(&production()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_chain_of_roots_is_climbed_and_stolen_online_keys_are_left_behind() {
    let mut mint = Mint::with_release();
    let (dir, mut trust) = node(&mint).await;
    // Somebody stole the online keys and drove the versions up, so that nothing honest would be newer.
    for role in ["timestamp", "snapshot"] {
        mint.versions.insert(role, 1000);
    }
    trust.absorb(mint.files()).await.unwrap();
    // The next root names new online keys; versions may begin anew.
    let old_root = mint.keys.remove("root").unwrap();
    for role in ["root", "timestamp", "snapshot"] {
        mint.keys.insert(role, Ed25519KeyPair::generate().unwrap());
        mint.versions.insert(role, 2);
    }
    let root: Signed<Root> = serde_json::from_str(&mint.root()).unwrap();
    let root = sign(root.signed, &[&old_root, &mint.keys["root"]]);
    let mut files = mint.files();
    // A root that skips one, and one that only the new key signed, lead nowhere.
    let mut alone = files.clone();
    alone.push(("2.root.json".into(), mint.root().into_bytes()));
    assert!(matches!(trust.absorb(alone).await, Err(TrustError::Signature { .. })));
    let mut skipping = files.clone();
    skipping.push(("3.root.json".into(), root.clone().into_bytes()));
    assert!(trust.absorb(skipping).await.is_err());

    files.push(("2.root.json".into(), root.into_bytes()));
    assert!(trust.absorb(files).await.unwrap());
    assert_eq!((trust.have()["root"], trust.have()["timestamp"]), (2, 2));
    // From the new root on, rolling back is impossible again, after a restart too.
    mint.bump(&["timestamp"]);
    let mut trust = Trust::open(dir.path()).unwrap();
    trust.absorb(mint.files()).await.unwrap();
    mint.versions.insert("timestamp", 2);
    assert!(matches!(trust.absorb(mint.files()).await, Err(TrustError::RolledBack { .. })));
    trust.desired(&production()).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_crash_leaves_behind_is_the_old_copy_or_the_new_one() {
    let mut mint = Mint::with_release();
    let (dir, trust) = node(&mint).await;
    let before = trust.have();
    let current = fs::read_link(dir.path().join("current")).unwrap();
    // Power was lost while the next copy was being made, and while a reader was at work.
    fs::create_dir(dir.path().join("copy-99")).unwrap();
    let number: u64 = current.to_str().unwrap().strip_prefix("copy-").unwrap().parse().unwrap();
    let half = dir.path().join(format!("copy-{}", number + 1));
    fs::create_dir(&half).unwrap();
    fs::write(half.join("timestamp.json"), "{\"sig").unwrap();
    fs::write(half.join("9.root.json"), "").unwrap();
    std::os::unix::fs::symlink("copy-99", dir.path().join(".current.new")).unwrap();
    fs::create_dir(dir.path().join("scratch-1-0")).unwrap();

    let mut trust = Trust::open(dir.path()).unwrap();
    assert_eq!(trust.have(), before);
    trust.desired(&production()).await.unwrap().unwrap();
    mint.bump(&["timestamp"]);
    assert!(trust.absorb(mint.files()).await.unwrap());
    assert_eq!(Trust::open(dir.path()).unwrap().have(), trust.have());
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        [format!("copy-{}", number + 1), "current".into(), "first.root.json".into(), "scratch-1-0".into()]
    );
}

#[tokio::test]
async fn a_clock_that_went_back_is_noticed() {
    let mint = Mint::with_release();
    let (dir, trust) = node(&mint).await;
    let clock = dir.path().join("current").join(copy::CLOCK);
    let later = in_days(2).to_rfc3339_opts(SecondsFormat::Secs, true);
    fs::write(&clock, format!("{later:?}")).unwrap();
    let error = trust.check_now().await.unwrap_err();
    assert!(error.to_string().contains("set the clock"), "{error}");
    assert!(error.to_string().contains(clock.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn without_a_root_nothing_begins() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(Trust::open(dir.path()), Err(TrustError::NoRoot)));
    let mint = Mint::new();
    for bad in ["", "{}", &mint.root().replace("\"sig\":\"", "\"sig\":\"00")] {
        assert!(Trust::init(dir.path(), bad).is_err(), "{bad}");
    }
    assert!(matches!(Trust::open(dir.path()), Err(TrustError::NoRoot)));
    let trust = Trust::init(dir.path(), &mint.root()).unwrap();
    assert!(matches!(trust.check_now().await, Err(TrustError::Nothing)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any byte of any file changed ends in an error, or changes nothing that is believed.
    #[test]
    fn a_flipped_bit_anywhere_never_changes_what_is_believed(file in 0_usize..7, at: prop::sample::Index, bit in 0_u8..8) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mint = Mint::with_release();
            let dir = TempDir::new().unwrap();
            let mut trust = Trust::init(dir.path(), &mint.root()).unwrap();
            let mut files = mint.files();
            let bytes = &mut files[file].1;
            let place = at.index(bytes.len());
            bytes[place] ^= 1 << bit;
            if trust.absorb(files).await.is_ok() && let Ok(Some((pointer, manifest))) = trust.desired(&production()).await {
                assert_eq!((pointer.image, manifest.image), (ImageId::of(b"one"), ImageId::of(b"one")));
            }
        });
    }
}
