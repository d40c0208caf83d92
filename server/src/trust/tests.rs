//! The life of a fleet's metadata from founding to rotation, and each way in which somebody might cheat.

use std::collections::BTreeMap;
use std::fs;

use chrono::{DateTime, TimeDelta, Utc};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::release::{Manifest, Pointer, Section, Sections, Word};
use tempfile::TempDir;

use super::*;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn days(count: i64) -> TimeDelta {
    TimeDelta::days(count)
}

fn channels() -> Vec<Word> {
    ["dev", "production"].map(|name| name.parse().unwrap()).to_vec()
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

fn target(release: &str) -> String {
    release.parse::<goldsync_proto::release::ReleaseRef>().unwrap().target()
}

/// An operator's folder and a server's, with nothing published.
struct Fleet {
    dir: TempDir,
    operator: Operator,
    trust: Trust,
}

impl Fleet {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let operator = Operator::create(&dir.path().join("operator"), &channels()).unwrap();
        let server = dir.path().join("server");
        let online = Online::create(&server).unwrap();
        let files = operator.found(&online.public(), &channels(), now()).unwrap();
        let trust = Trust::create_at(&server, &files, Lifetimes::default(), now()).await.unwrap();
        Self { dir, operator, trust }
    }

    /// A fleet with `web:1` (image `one`) published and `dev` pointing at it.
    async fn with_release() -> Self {
        let fleet = Self::new().await;
        fleet.publish("web:1", "one").await.unwrap();
        fleet.promote("dev", "web:1", "one").await.unwrap();
        fleet
    }

    async fn publish(&self, release: &str, image: &str) -> Result<(), TrustError> {
        let text = manifest(release, image);
        let role = self.operator.sign_release(&self.trust.files(), &text, now()).await?;
        self.trust.submit_at("releases", &role, Some((&target(release), &text)), now()).await
    }

    async fn promote(&self, channel: &str, release: &str, image: &str) -> Result<(), TrustError> {
        let text = pointer(channel, release, image);
        let role = self.operator.sign_pointer(&self.trust.files(), &text, now()).await?;
        let name = format!("channel_{channel}.json");
        self.trust.submit_at(&format!("channel-{channel}"), &role, Some((&name, &text)), now()).await
    }

    fn server(&self) -> std::path::PathBuf {
        self.dir.path().join("server")
    }

    fn online(&self) -> Online {
        Online::load(&self.server()).unwrap()
    }

    /// Signs whatever list one likes with whichever of the operator's keys.
    fn forge(&self, role: &str, key: &str, change: impl FnOnce(&mut tough::schema::Targets)) -> String {
        let files = self.trust.files();
        let version = self.trust.versions()[role];
        let mut list =
            role::read::<tough::schema::Targets>(role, files[&format!("{version}.{role}.json")].as_bytes()).unwrap();
        list.signed.version = role::next(list.signed.version);
        change(&mut list.signed);
        role::sign(list.signed, &[self.operator.keys().get(key).unwrap()]).unwrap()
    }
}

fn versions(trust: &Trust) -> Vec<(String, u64)> {
    trust.versions().into_iter().collect()
}

fn names(files: &[(String, bytes::Bytes)]) -> Vec<&str> {
    files.iter().map(|(name, _)| name.as_str()).collect()
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_release_and_a_promotion_become_visible_and_survive_a_restart() {
    let fleet = Fleet::with_release().await;
    let expected = [
        ("channel-dev", 2),
        ("channel-production", 1),
        ("releases", 2),
        ("root", 1),
        ("snapshot", 3),
        ("targets", 1),
        ("timestamp", 3),
    ]
    .map(|(role, version)| (role.to_owned(), version));
    assert_eq!(versions(&fleet.trust), expected);
    let dev: Word = "dev".parse().unwrap();
    assert_eq!(fleet.trust.pointer(&dev).unwrap().release.to_string(), "web:1");
    let again = Trust::open(&fleet.server()).await.unwrap();
    assert_eq!(versions(&again), expected);
    assert_eq!(again.files(), fleet.trust.files());
    assert_eq!(again.pointer(&dev), fleet.trust.pointer(&dev));
    assert_eq!(again.manifest(&"web:1".parse().unwrap()).unwrap().image, ImageId::of(b"one"));
    assert_eq!(again.channels(), channels());
}

#[tokio::test]
async fn keys_are_for_their_owner_alone_and_are_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let fleet = Fleet::new().await;
    for path in ["operator/keys/root.pem", "operator/keys/channel-dev.pem", "server/keys/timestamp.pem"] {
        let path = fleet.dir.path().join(path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        assert!(fs::read_to_string(&path).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    }
    let error = Operator::create(&fleet.dir.path().join("operator"), &channels()).unwrap_err();
    assert!(matches!(&error, TrustError::Exists { path } if path.ends_with("root.pem")), "{error}");
    assert!(matches!(Online::create(&fleet.server()), Err(TrustError::Exists { .. })));
}

#[tokio::test]
async fn a_node_that_lacks_nothing_is_sent_nothing_and_one_that_lacks_something_only_that() {
    let fleet = Fleet::with_release().await;
    let mut have = fleet.trust.versions();
    assert!(fleet.trust.newer(&have, &[]).unwrap().is_empty());
    fleet.trust.refresh_at(now() + days(4)).await.unwrap();
    assert_eq!(names(&fleet.trust.newer(&have, &[]).unwrap()), ["timestamp.json"]);

    have = fleet.trust.versions();
    fleet.publish("web:2", "two").await.unwrap();
    fleet.promote("dev", "web:2", "two").await.unwrap();
    let sent = fleet.trust.newer(&have, &[]).unwrap();
    let expected = [
        "timestamp.json",
        "5.snapshot.json",
        "3.channel-dev.json",
        "3.releases.json",
        "channel_dev.json",
        "release_web_2.json",
    ];
    assert_eq!(names(&sent), expected);

    have = fleet.trust.versions();
    let want = ["release_web_1.json".to_owned()];
    assert_eq!(names(&fleet.trust.newer(&have, &want).unwrap()), ["release_web_1.json"]);
    let error = fleet.trust.newer(&have, &["release_web_9.json".to_owned()]).unwrap_err();
    assert_eq!(error.fault(), Fault::NotFound);
    // A node that has seen more than we have is shown what we have, so that it can say so.
    have.insert("timestamp".into(), 99);
    assert_eq!(names(&fleet.trust.newer(&have, &[]).unwrap()), ["timestamp.json"]);
}

#[tokio::test]
async fn submitting_the_same_again_changes_nothing_and_an_older_base_is_a_conflict() {
    let fleet = Fleet::with_release().await;
    let files = fleet.trust.files();
    let first = manifest("web:2", "two");
    let role = fleet.operator.sign_release(&files, &first, now()).await.unwrap();
    let other = manifest("web:3", "three");
    let rival = fleet.operator.sign_release(&files, &other, now()).await.unwrap();
    fleet.trust.submit_at("releases", &role, Some((&target("web:2"), &first)), now()).await.unwrap();
    let after = fleet.trust.versions();
    fleet.trust.submit_at("releases", &role, Some((&target("web:2"), &first)), now()).await.unwrap();
    assert_eq!(fleet.trust.versions(), after);
    let error = fleet.trust.submit_at("releases", &rival, Some((&target("web:3"), &other)), now()).await.unwrap_err();
    assert!(matches!(error, TrustError::Version { held: 3, got: 3, .. }), "{error}");
    assert_eq!(error.fault(), Fault::Conflict);
}

/// What is submitted: role, its text, a target file, and the error that it must end in.
type Submission<'a> = (&'a str, String, Option<(&'a str, &'a str)>, &'a str);

async fn each_is_refused(fleet: &Fleet, submissions: Vec<Submission<'_>>) {
    let before = fleet.trust.versions();
    for (role, role_text, sent, expected) in submissions {
        let Err(error) = fleet.trust.submit_at(role, &role_text, sent, now()).await else {
            panic!("taken, where {expected:?} was expected")
        };
        assert!(error.to_string().contains(expected), "{error}, where {expected:?} was expected");
        assert_eq!(fleet.trust.versions(), before, "{expected}");
    }
    assert_eq!(versions(&Trust::open(&fleet.server()).await.unwrap()), versions(&fleet.trust));
}

/// Adds a target to a list.
fn listing(name: &str, text: &str) -> impl FnOnce(&mut tough::schema::Targets) {
    move |list| list.add_target(role::target_name(name).unwrap(), role::target(text))
}

#[tokio::test]
async fn what_is_not_signed_by_the_right_key_or_not_the_next_version_is_refused() {
    let fleet = Fleet::with_release().await;
    let (name, text) = (target("web:2"), manifest("web:2", "two"));
    let sent = Some((name.as_str(), text.as_str()));
    let (production, dev) = ("channel-production", "channel-dev");
    let skip = |list: &mut tough::schema::Targets| list.version = role::next(list.version);
    let expire = |list: &mut tough::schema::Targets| list.expires = role::moment(now()).unwrap();
    let submissions: Vec<Submission<'_>> = vec![
        (production, fleet.forge(production, dev, |_| {}), None, "role channel-production is not signed by its keys"),
        (
            "releases",
            fleet.forge("releases", dev, listing(&name, &text)),
            sent,
            "role releases is not signed by its keys",
        ),
        ("releases", fleet.forge("releases", "releases", skip), None, "version 3 is next; version 4"),
        ("releases", fleet.forge("releases", "releases", expire), None, "expired on 2027-01-15"),
        ("releases", "{".to_owned(), None, "cannot be read"),
        ("releases", " ".repeat((4 << 20) + 1), None, "4194305 bytes, at most 4194304"),
        ("channel-moon", fleet.forge("releases", "releases", |_| {}), None, "channel-dev, channel-production"),
    ];
    each_is_refused(&fleet, submissions).await;
}

#[tokio::test]
async fn a_list_of_what_it_may_not_list_or_of_what_was_not_sent_is_refused() {
    let fleet = Fleet::with_release().await;
    let (web1, web2) = (target("web:1"), target("web:2"));
    let (text, dev) = (manifest("web:2", "two"), pointer("dev", "web:1", "one"));
    let (held, sent) = (Some((web1.as_str(), text.as_str())), Some((web2.as_str(), text.as_str())));
    let removed = |list: &mut tough::schema::Targets| drop(list.remove_target(&role::target_name(&web1).unwrap()));
    let releases = |change: &dyn Fn(&mut tough::schema::Targets)| fleet.forge("releases", "releases", change);
    let lists = |name: &'static str| fleet.forge("releases", "releases", listing(name, &dev));
    let foreign = fleet.forge("channel-dev", "channel-dev", listing("channel_production.json", &dev));
    let add = |list: &mut tough::schema::Targets| listing(&web2, &text)(list);
    let change = |list: &mut tough::schema::Targets| listing(&web1, &text)(list);
    let submissions: Vec<Submission<'_>> = vec![
        ("releases", releases(&add), Some((&web2, &dev)), "were signed"),
        ("releases", releases(&add), None, "its text was not sent"),
        ("releases", releases(&|_| {}), sent, "does not list it"),
        ("releases", releases(&removed), None, "no longer lists release_web_1.json"),
        ("releases", releases(&change), held, "changes release_web_1.json"),
        ("releases", lists("channel_dev.json"), Some(("channel_dev.json", &dev)), "may not sign channel_dev.json"),
        ("releases", lists("release_/../../x"), None, "is not the name of a file"),
        ("channel-dev", foreign, None, "may not sign channel_production.json"),
    ];
    each_is_refused(&fleet, submissions).await;
}

#[tokio::test]
async fn a_pointer_must_name_a_signed_release_and_its_image() {
    let fleet = Fleet::with_release().await;
    let error = fleet.promote("production", "web:9", "one").await.unwrap_err();
    assert!(matches!(error, TrustError::UnknownTarget { .. }), "{error}");
    let error = fleet.promote("production", "web:1", "two").await.unwrap_err();
    assert!(error.to_string().contains("points at image"), "{error}");
    fleet.promote("production", "web:1", "one").await.unwrap();
}

#[tokio::test]
async fn an_operator_without_a_channels_key_cannot_promote_to_it() {
    let fleet = Fleet::with_release().await;
    fs::remove_file(fleet.dir.path().join("operator/keys/channel-production.pem")).unwrap();
    let operator = Operator::open(&fleet.dir.path().join("operator")).unwrap();
    let text = pointer("production", "web:1", "one");
    let error = operator.sign_pointer(&fleet.trust.files(), &text, now()).await.unwrap_err();
    assert!(matches!(&error, TrustError::NoKey { role, .. } if role == "channel-production"), "{error}");
}

#[tokio::test]
async fn a_release_is_signed_once() {
    let fleet = Fleet::with_release().await;
    let error = fleet.publish("web:1", "two").await.unwrap_err();
    assert!(matches!(error, TrustError::ReleaseExists { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Conflict);
}

#[tokio::test]
async fn an_operator_signs_nothing_on_top_of_a_rolled_back_or_foreign_state() {
    let fleet = Fleet::with_release().await;
    let (old, text) = (fleet.trust.files(), manifest("web:3", "three"));
    fleet.publish("web:2", "two").await.unwrap();
    // Another operator's view, or a later run's, of the newest state; from then on the old one is refused.
    fleet.operator.renew(&fleet.trust.files(), "releases", now()).await.unwrap();
    let error = fleet.operator.sign_release(&old, &text, now()).await.unwrap_err();
    assert!(matches!(&error, TrustError::RolledBack { role, seen: 3, got: 2, .. } if role == "releases"), "{error}");
    assert_eq!(error.fault(), Fault::Distrust);

    let foreign = Fleet::with_release().await;
    let error = fleet.operator.sign_release(&foreign.trust.files(), &text, now()).await.unwrap_err();
    assert!(matches!(error, TrustError::Unverified(_)), "{error}");
    assert!(matches!(fleet.operator.pin(&foreign.trust.first_root()), Err(TrustError::Exists { .. })));
    fleet.operator.pin(&fleet.trust.first_root()).unwrap();

    let mut torn = fleet.trust.files();
    torn.remove("3.releases.json");
    assert!(fleet.operator.sign_release(&torn, &text, now()).await.is_err());
}

/// Goal: a crash between any two writes leaves the old state or the new one. Method: take one change's files, and
/// for each count of them, open a folder in which only that many had been written.
#[tokio::test]
async fn a_crash_between_any_two_writes_leaves_the_old_state_or_the_new_one() {
    let fleet = Fleet::with_release().await;
    let base = fleet.dir.path().join("base");
    copy_dir(&fleet.server(), &base);
    let old = versions(&fleet.trust);
    fleet.publish("web:2", "two").await.unwrap();
    let new = versions(&fleet.trust);
    let release = fs::read_dir(fleet.server().join("targets")).unwrap().map(|entry| entry.unwrap().file_name());
    let release = release.map(|name| name.into_string().unwrap()).find(|name| name.ends_with("release_web_2.json"));
    let written = [
        format!("targets/{}", release.unwrap()),
        "metadata/3.releases.json".into(),
        "metadata/4.snapshot.json".into(),
        "metadata/timestamp.json".into(),
    ];
    for count in 0..=written.len() {
        let torn = fleet.dir.path().join(format!("torn{count}"));
        copy_dir(&base, &torn);
        for name in &written[..count] {
            fs::copy(fleet.server().join(name), torn.join(name)).unwrap();
        }
        // And the next file, half written beside its place.
        if let Some((dir, name)) = written.get(count).and_then(|name| name.split_once('/')) {
            let bytes = fs::read(fleet.server().join(dir).join(name)).unwrap();
            fs::write(torn.join(dir).join(format!(".{name}.new")), &bytes[..bytes.len() / 2]).unwrap();
        }
        let trust = Trust::open(&torn).await.unwrap();
        assert_eq!(versions(&trust), if count == written.len() { new.clone() } else { old.clone() }, "{count} files");
        // What was left over does not stand in the way of the same change, made again.
        let operator = Fleet {
            dir: TempDir::new().unwrap(),
            operator: Operator::open(&fleet.dir.path().join("operator")).unwrap(),
            trust,
        };
        if count < written.len() {
            fs::remove_file(fleet.dir.path().join("operator/trust/seen.json")).unwrap();
            operator.publish("web:2", "two").await.unwrap();
        }
        assert_eq!(versions(&Trust::open(&torn).await.unwrap()), new, "{count} files");
    }
}

/// What is done to a file.
type Harm = fn(&std::path::Path);

#[tokio::test]
async fn a_damaged_folder_is_not_served() {
    let damage: [(&str, Harm); 4] = [
        ("3.snapshot.json", |path| fs::write(path, "{}").unwrap()),
        ("2.releases.json", |path| fs::remove_file(path).unwrap()),
        ("1.root.json", |path| fs::remove_file(path).unwrap()),
        ("timestamp.json", |path| fs::write(path, "").unwrap()),
    ];
    for (name, harm) in damage {
        let fleet = Fleet::with_release().await;
        harm(&fleet.server().join("metadata").join(name));
        assert!(Trust::open(&fleet.server()).await.is_err(), "{name}");
    }
    let fleet = Fleet::with_release().await;
    let dir = fleet.server().join("targets");
    for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
        fs::write(entry.path(), "{}").unwrap();
    }
    let error = Trust::open(&fleet.server()).await.unwrap_err();
    assert!(error.to_string().contains("2 bytes, but"), "{error}");
}

#[tokio::test]
async fn the_server_renews_its_two_roles_in_time_and_no_more() {
    let fleet = Fleet::with_release().await;
    let at = |role: &str| fleet.trust.expiries()[role] - now();
    assert_eq!((at("timestamp"), at("snapshot"), at("releases")), (days(7), days(30), days(365)));
    assert!(!fleet.trust.refresh_at(now() + days(3)).await.unwrap());
    assert!(fleet.trust.refresh_at(now() + days(4)).await.unwrap());
    assert_eq!((at("timestamp"), at("snapshot")), (days(11), days(30)));
    assert!(fleet.trust.refresh_at(now() + days(16)).await.unwrap());
    assert_eq!((at("timestamp"), at("snapshot")), (days(23), days(46)));
    assert_eq!(versions(&Trust::open(&fleet.server()).await.unwrap()), versions(&fleet.trust));
}

#[tokio::test]
async fn an_operator_renews_a_role_that_says_the_same_for_longer() {
    let fleet = Fleet::with_release().await;
    let later = now() + days(300);
    for role in ["releases", "channel-production", "targets"] {
        let text = fleet.operator.renew(&fleet.trust.files(), role, later).await.unwrap();
        fleet.trust.submit_at(role, &text, None, later).await.unwrap();
        assert_eq!(fleet.trust.expiries()[role], later + days(365), "{role}");
    }
    assert!(fleet.trust.manifest(&"web:1".parse().unwrap()).is_ok());
}

#[tokio::test]
async fn the_root_is_rotated_by_its_old_key_and_the_online_keys_with_it() {
    let fleet = Fleet::with_release().await;
    let (root, targets) = (Key::create().unwrap(), Key::create().unwrap());
    // New online keys, put into place beside the old ones.
    fs::rename(fleet.server().join("keys"), fleet.server().join("old-keys")).unwrap();
    let online = Online::create(&fleet.server()).unwrap();
    let new = NewRoot { root: Some(&root), targets: Some(&targets), online: Some(&online.public()) };
    let roles = fleet.operator.next_root(&fleet.trust.files(), &new, now()).await.unwrap();

    // By the new key alone it is no root, and neither is one that names other online keys.
    let signed: tough::schema::Signed<tough::schema::Root> = role::read("root", roles["root"].as_bytes()).unwrap();
    let mut forged = roles.clone();
    forged.insert("root".into(), role::sign(signed.signed, &[&root]).unwrap());
    let error = fleet.trust.submit_roles_at(&forged, now()).await.unwrap_err();
    assert!(matches!(error, TrustError::Signature { .. }), "{error}");
    let foreign = OnlinePublic { snapshot: root.public(), timestamp: online.timestamp.public() };
    let new = NewRoot { online: Some(&foreign), ..NewRoot::default() };
    let wrong = fleet.operator.next_root(&fleet.trust.files(), &new, now()).await.unwrap();
    let error = fleet.trust.submit_roles_at(&wrong, now()).await.unwrap_err();
    assert!(matches!(error, TrustError::OnlineKey { role: "snapshot", .. }), "{error}");
    // A new targets key and no list of targets signed with it.
    let half = roles.iter().filter(|(role, _)| *role == "root").map(|(role, text)| (role.clone(), text.clone()));
    assert!(fleet.trust.submit_roles_at(&half.collect(), now()).await.is_err());
    assert_eq!(fleet.trust.versions()["root"], 1);

    fleet.trust.submit_roles_at(&roles, now()).await.unwrap();
    fleet.trust.submit_roles_at(&roles, now()).await.unwrap();
    let held = fleet.trust.versions();
    assert_eq!((held["root"], held["targets"]), (2, 2));
    assert_eq!(fleet.online().snapshot.id(), online.snapshot.id());
    fleet.trust.refresh_at(now() + days(20)).await.unwrap();
    fleet.publish("web:2", "two").await.unwrap();
    assert_eq!(
        names(&fleet.trust.newer(&BTreeMap::from([("root".to_owned(), 1)]), &[]).unwrap())[..2],
        ["2.root.json", "timestamp.json"]
    );
    assert_eq!(versions(&Trust::open(&fleet.server()).await.unwrap()), versions(&fleet.trust));
    // The operator's old root key no longer signs roots.
    let error = fleet.operator.next_root(&fleet.trust.files(), &NewRoot::default(), now()).await.unwrap_err();
    assert!(matches!(error, TrustError::ForeignKey { .. }), "{error}");
}

#[tokio::test]
async fn many_releases_stay_within_the_limit_of_one_file() {
    let mut list = role::empty_targets(now()).unwrap();
    for version in 0..4000 {
        let name = format!("release_a-rather-long-name-of-an-image_2026.11.21.{version}.json");
        list.add_target(role::target_name(&name).unwrap(), role::target(&name));
    }
    let text = role::sign(list, &[&Key::create().unwrap()]).unwrap();
    role::check_size("releases", text.len()).unwrap();
}

#[tokio::test]
async fn a_stolen_key_is_replaced_and_a_channel_is_added() {
    let mut fleet = Fleet::with_release().await;
    let dev: Word = "dev".parse().unwrap();
    let stolen = fleet.forge("channel-dev", "channel-dev", |list| list.version = role::next(list.version));
    fleet.operator.keys_mut().successor("channel-dev").unwrap();
    let first = fleet.operator.keys().get("channel-dev.next").unwrap().id();
    assert_eq!(fleet.operator.keys_mut().successor("channel-dev").unwrap().id(), first);
    let operator = Operator::open(&fleet.dir.path().join("operator")).unwrap();
    let key = operator.keys().get("channel-dev.next").unwrap();
    let delegate = Delegate::Channel(dev.clone());
    let roles = operator.delegate(&fleet.trust.files(), &delegate, key, now()).await.unwrap();
    assert_eq!(roles.keys().collect::<Vec<_>>(), ["channel-dev", "targets"]);
    // One without the other does not hold together.
    for one in roles.clone() {
        assert!(fleet.trust.submit_roles_at(&BTreeMap::from([one]), now()).await.is_err());
    }
    fleet.trust.submit_roles_at(&roles, now()).await.unwrap();
    assert_eq!(fleet.trust.pointer(&dev).unwrap().release.to_string(), "web:1");
    let error = fleet.trust.submit_at("channel-dev", &stolen, None, now()).await.unwrap_err();
    assert!(matches!(error, TrustError::Signature { .. }), "{error}");
    fleet.publish("web:2", "two").await.unwrap();
    let error = fleet.promote("dev", "web:2", "two").await.unwrap_err();
    assert!(matches!(error, TrustError::ForeignKey { .. }), "{error}");
    fleet.operator.keys_mut().install("channel-dev").unwrap();
    fleet.promote("dev", "web:2", "two").await.unwrap();
    let keys = Keys::load(&fleet.dir.path().join("operator/keys")).unwrap();
    assert_eq!(keys.get("channel-dev").unwrap().id(), first);
    assert!(keys.get("channel-dev.next").is_err() && keys.get("channel-dev.old").is_ok());
    assert_eq!(keys.roles().collect::<Vec<_>>(), ["channel-dev", "channel-production", "releases", "root", "targets"]);

    let canary = Delegate::Channel("canary".parse().unwrap());
    fleet.operator.keys_mut().successor("channel-canary").unwrap();
    fleet.operator.keys_mut().install("channel-canary").unwrap();
    let key = fleet.operator.keys().get("channel-canary").unwrap();
    let roles = fleet.operator.delegate(&fleet.trust.files(), &canary, key, now()).await.unwrap();
    fleet.trust.submit_roles_at(&roles, now()).await.unwrap();
    assert_eq!(fleet.trust.pointer(&"canary".parse().unwrap()), None);
    fleet.promote("canary", "web:1", "one").await.unwrap();
    assert_eq!(versions(&Trust::open(&fleet.server()).await.unwrap()), versions(&fleet.trust));
}

/// A crash between the root that names new online keys and their installation, at each step.
#[tokio::test]
async fn online_keys_that_a_root_names_are_put_into_place_at_the_next_start() {
    let fleet = Fleet::with_release().await;
    let next = fleet.trust.next_online().await.unwrap();
    assert_eq!(fleet.trust.next_online().await.unwrap(), next);
    let keys = fleet.server().join("keys");
    let before = fleet.dir.path().join("keys-before");
    copy_dir(&keys, &before);
    let new = NewRoot { online: Some(&next), ..NewRoot::default() };
    let roles = fleet.operator.next_root(&fleet.trust.files(), &new, now()).await.unwrap();
    fleet.trust.submit_roles_at(&roles, now()).await.unwrap();
    assert_eq!(fleet.online().public(), next);
    // As a crash left them: nothing installed, then one of the two without its last step.
    for (installed, day) in [(&[][..], 20), (&["snapshot"], 40)] {
        fs::remove_dir_all(&keys).unwrap();
        copy_dir(&before, &keys);
        for role in installed {
            fs::copy(keys.join(format!("{role}.next.pem")), keys.join(format!("{role}.pem"))).unwrap();
        }
        let trust = Trust::open(&fleet.server()).await.unwrap();
        assert_eq!(fleet.online().public(), next);
        assert!(!keys.join("snapshot.next.pem").exists() && !keys.join("timestamp.next.pem").exists());
        // Signed with them, and verified.
        assert!(trust.refresh_at(now() + days(day)).await.unwrap());
    }
}
