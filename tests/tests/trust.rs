//! Trust from end to end: the operator signs, the server hands out, the node believes; and a machine becomes a node
//! over a real QUIC handshake. No part is replaced: these are the server's and the agent's own configurations.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use goldsync_agent::identity::{Identity, NodeKey, Token};
use goldsync_agent::trust::{Trust as NodeTrust, TrustError as NodeError};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef, Section, Sections, Word};
use goldsync_proto::wire::{ALPN, ALPN_ENROL};
use goldsync_server::authority::{Authority, common_name, fingerprint};
use goldsync_server::trust::{Delegate, Lifetimes, NewRoot, Online, Operator, Trust};
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

fn channels() -> Vec<Word> {
    ["dev", "qa", "staging", "production"].map(|name| name.parse().unwrap()).to_vec()
}

fn production() -> Word {
    "production".parse().unwrap()
}

fn manifest(release: &ReleaseRef) -> String {
    let image = ImageId::of(release.to_string().as_bytes());
    let section = |length| Section { name: image.0, length };
    let manifest = Manifest {
        format: 1,
        release: release.clone(),
        image,
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

/// An operator and a server that trust each other's keys.
struct Fleet {
    dir: TempDir,
    operator: Operator,
    trust: Trust,
}

impl Fleet {
    async fn new() -> Self {
        Self::with(Lifetimes::default()).await
    }

    async fn with(lifetimes: Lifetimes) -> Self {
        let dir = TempDir::new().unwrap();
        let operator = Operator::create(&dir.path().join("operator"), &channels()).unwrap().with_lifetimes(lifetimes);
        let server = dir.path().join("server");
        let online = Online::create(&server).unwrap();
        let files = operator.found(&online.public(), &channels(), Utc::now()).unwrap();
        let trust = Trust::create_at(&server, &files, lifetimes, Utc::now()).await.unwrap();
        Self { dir, operator, trust }
    }

    async fn publish(&self, release: &str) {
        let release: ReleaseRef = release.parse().unwrap();
        let text = manifest(&release);
        let role = self.operator.sign_release(&self.trust.files(), &text, Utc::now()).await.unwrap();
        self.trust.submit("releases", &role, Some((&release.target(), &text))).await.unwrap();
    }

    async fn promote(&self, channel: &str, release: &str) {
        let release: ReleaseRef = release.parse().unwrap();
        let pointer = Pointer {
            format: 1,
            channel: channel.parse().unwrap(),
            image: ImageId::of(release.to_string().as_bytes()),
            release,
            promoted_at: "2026-11-21T00:00:00Z".into(),
            promoted_by: "test".into(),
        };
        let text = serde_json::to_string(&pointer).unwrap();
        let role = self.operator.sign_pointer(&self.trust.files(), &text, Utc::now()).await.unwrap();
        let name = format!("channel_{channel}.json");
        self.trust.submit(&format!("channel-{channel}"), &role, Some((&name, &text))).await.unwrap();
    }

    fn node(&self, name: &str) -> NodeTrust {
        NodeTrust::init(&self.dir.path().join(name), &self.trust.first_root()).unwrap()
    }
}

/// One round of what an agent does at `check`; returns the bytes that the server sent.
async fn check_at(trust: &Trust, node: &mut NodeTrust, channel: &Word, now: DateTime<Utc>) -> Result<usize, NodeError> {
    let mut bytes = 0;
    let mut want = Vec::new();
    loop {
        let files = trust.newer(&node.have(), &want).unwrap();
        let files: Vec<_> = files.into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect();
        bytes += files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        node.absorb_at(files, now).await?;
        want = node.wanted(channel).await?;
        if want.is_empty() {
            return Ok(bytes);
        }
    }
}

async fn check(trust: &Trust, node: &mut NodeTrust, channel: &Word) -> Result<usize, NodeError> {
    check_at(trust, node, channel, Utc::now()).await
}

async fn desired(node: &NodeTrust, channel: &Word) -> Option<String> {
    node.desired(channel).await.unwrap().map(|(_, manifest)| manifest.release.to_string())
}

#[tokio::test]
async fn what_the_operator_signs_reaches_the_node_and_nothing_new_costs_nothing() {
    let fleet = Fleet::new().await;
    let mut node = fleet.node("node");
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(desired(&node, &production()).await, None);

    fleet.publish("web:1").await;
    fleet.publish("web:1.1+rc").await;
    fleet.promote("dev", "web:1.1+rc").await;
    fleet.promote("production", "web:1").await;
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:1"));
    assert_eq!(desired(&node, &"dev".parse().unwrap()).await.as_deref(), Some("web:1.1+rc"));
    assert_eq!(node.have(), fleet.trust.versions());
    assert_eq!(check(&fleet.trust, &mut node, &production()).await.unwrap(), 0);

    // The server's daily renewal is one small file.
    assert!(fleet.trust.refresh_at(Utc::now() + TimeDelta::days(4)).await.unwrap());
    let renewal = check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert!((1..600).contains(&renewal), "{renewal} bytes");

    // Back to an older release is a promotion like any other; a node that joins late sees only the last.
    fleet.promote("production", "web:1.1+rc").await;
    fleet.promote("production", "web:1").await;
    let mut late = fleet.node("late");
    for node in [&mut node, &mut late] {
        check(&fleet.trust, node, &production()).await.unwrap();
        assert_eq!(desired(node, &production()).await.as_deref(), Some("web:1"));
    }
}

#[tokio::test]
async fn a_stolen_server_cannot_take_a_release_back() {
    let fleet = Fleet::new().await;
    fleet.publish("web:1").await;
    fleet.promote("production", "web:1").await;
    // The thief keeps a copy of the server's folder, online keys and all.
    let stolen = fleet.dir.path().join("stolen");
    copy_dir(&fleet.dir.path().join("server"), &stolen);
    fleet.publish("web:2").await;
    fleet.promote("production", "web:2").await;
    let mut node = fleet.node("node");
    check(&fleet.trust, &mut node, &production()).await.unwrap();

    // He signs snapshots and timestamps until their versions are the newest, around the old list of releases.
    let thief = Trust::open(&stolen).await.unwrap();
    let error = check(&thief, &mut node, &production()).await.unwrap_err();
    assert!(matches!(&error, NodeError::RolledBack { role, .. } if role == "timestamp"), "{error}");
    let mut later = Utc::now();
    while thief.versions()["snapshot"] <= node.have()["snapshot"] {
        later += TimeDelta::days(16);
        thief.refresh_at(later).await.unwrap();
    }
    let error = check(&thief, &mut node, &production()).await.unwrap_err();
    let NodeError::RolledBack { role, held, got } = &error else { panic!("{error}") };
    assert!(got < held && (role == "releases" || role == "channel-production"), "{error}");
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:2"));
    // Nor will the operator sign on top of the old list.
    let text = manifest(&"web:3".parse().unwrap());
    fleet.operator.renew(&fleet.trust.files(), "releases", Utc::now()).await.unwrap();
    let error = fleet.operator.sign_release(&thief.files(), &text, Utc::now()).await.unwrap_err();
    assert!(error.to_string().contains("was seen before"), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_noticed_when_the_timestamp_expires() {
    let lifetimes = Lifetimes { timestamp: TimeDelta::hours(1), ..Lifetimes::default() };
    let fleet = Fleet::with(lifetimes).await;
    fleet.publish("web:1").await;
    fleet.promote("production", "web:1").await;
    let mut node = fleet.node("node");
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    let later = Utc::now() + TimeDelta::hours(2);
    let error = check_at(&fleet.trust, &mut node, &production(), later).await.unwrap_err();
    assert!(matches!(&error, NodeError::Expired { role, .. } if role == "timestamp"), "{error}");
    fleet.trust.refresh_at(later).await.unwrap();
    check_at(&fleet.trust, &mut node, &production(), later).await.unwrap();
}

#[tokio::test]
async fn a_node_follows_two_new_roots_at_once() {
    let fleet = Fleet::new().await;
    let mut node = fleet.node("node");
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    for _ in 0..2 {
        let files = fleet.trust.files();
        let roles = fleet.operator.next_root(&files, &NewRoot::default(), Utc::now()).await.unwrap();
        fleet.trust.submit_roles(&roles).await.unwrap();
    }
    fleet.publish("web:1").await;
    fleet.promote("production", "web:1").await;
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(node.have()["root"], 3);
    let mut late = fleet.node("late");
    check(&fleet.trust, &mut late, &production()).await.unwrap();
    assert_eq!(late.have(), node.have());
}

/// A node that holds metadata of before follows every renewal and every new key, and so does one that comes late.
#[tokio::test]
async fn a_node_follows_renewed_roles_and_new_keys() {
    let mut fleet = Fleet::new().await;
    fleet.publish("web:1").await;
    fleet.promote("production", "web:1").await;
    let mut node = fleet.node("node");
    check(&fleet.trust, &mut node, &production()).await.unwrap();

    for role in ["targets", "releases", "channel-production"] {
        let text = fleet.operator.renew(&fleet.trust.files(), role, Utc::now()).await.unwrap();
        fleet.trust.submit_roles(&BTreeMap::from([(role.to_owned(), text)])).await.unwrap();
    }
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(node.have(), fleet.trust.versions());

    let canary: Word = "canary".parse().unwrap();
    for delegate in [Delegate::Releases, Delegate::Channel(production()), Delegate::Channel(canary.clone())] {
        let role = delegate.role();
        fleet.operator.keys_mut().successor(&role).unwrap();
        let key = fleet.operator.keys().pending(&role).unwrap();
        let roles = fleet.operator.delegate(&fleet.trust.files(), &delegate, key, Utc::now()).await.unwrap();
        fleet.trust.submit_roles(&roles).await.unwrap();
        fleet.operator.keys_mut().install(&role).unwrap();
    }
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:1"));

    for role in ["root", "targets"] {
        fleet.operator.keys_mut().successor(role).unwrap();
    }
    let online = fleet.trust.next_online().await.unwrap();
    let keys = fleet.operator.keys();
    let new = NewRoot { root: keys.pending("root"), targets: keys.pending("targets"), online: Some(&online) };
    let roles = fleet.operator.next_root(&fleet.trust.files(), &new, Utc::now()).await.unwrap();
    fleet.trust.submit_roles(&roles).await.unwrap();
    for role in ["root", "targets"] {
        fleet.operator.keys_mut().install(role).unwrap();
    }
    fleet.publish("web:2").await;
    fleet.promote("production", "web:2").await;
    fleet.promote("canary", "web:1").await;
    let mut late = fleet.node("late");
    for node in [&mut node, &mut late] {
        check(&fleet.trust, node, &production()).await.unwrap();
        assert_eq!(desired(node, &production()).await.as_deref(), Some("web:2"));
        check(&fleet.trust, node, &canary).await.unwrap();
        assert_eq!(desired(node, &canary).await.as_deref(), Some("web:1"));
    }
    assert_eq!(late.have(), node.have());
}

/// A fleet whose server was restored from a backup that lacks `web:2`, and a node that runs `web:2`.
async fn restored() -> (Fleet, NodeTrust) {
    let fleet = Fleet::new().await;
    fleet.publish("web:1").await;
    fleet.promote("production", "web:1").await;
    let backup = fleet.dir.path().join("backup");
    copy_dir(&fleet.dir.path().join("server"), &backup);
    fleet.publish("web:2").await;
    fleet.promote("production", "web:2").await;
    let mut node = fleet.node("node");
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    fleet.operator.renew(&fleet.trust.files(), "releases", Utc::now()).await.unwrap();

    let fleet = Fleet { trust: Trust::open(&backup).await.unwrap(), ..fleet };
    assert!(matches!(check(&fleet.trust, &mut node, &production()).await, Err(NodeError::RolledBack { .. })));
    // The operator's tool refuses too, and says which file to remove if this is meant.
    let error = fleet.operator.renew(&fleet.trust.files(), "releases", Utc::now()).await.unwrap_err();
    assert!(error.to_string().contains("seen.json"), "{error}");
    std::fs::remove_file(fleet.dir.path().join("operator/trust/seen.json")).unwrap();
    (fleet, node)
}

/// As `docs/OPERATING.md` has it. The releases' version comes to be one that the node has seen with other contents:
/// it notices, and is whole again at its next check.
#[tokio::test]
async fn a_restored_server_is_followed_again_when_its_versions_have_caught_up() {
    let (fleet, mut node) = restored().await;
    fleet.publish("web:3").await;
    assert_eq!(fleet.trust.versions()["releases"], node.have()["releases"]);
    for _ in 0..2 {
        fleet.promote("production", "web:3").await;
    }
    let error = check(&fleet.trust, &mut node, &production()).await.unwrap_err();
    assert!(matches!(error, NodeError::Damaged(_)), "{error}");
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:2"));
    // The doubt outlives the process that had it.
    let mut node = NodeTrust::open(&fleet.dir.path().join("node")).unwrap();
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:3"));
    assert_eq!(node.have(), fleet.trust.versions());
    assert_eq!(check(&fleet.trust, &mut node, &production()).await.unwrap(), 0);
}

/// The other way: a new root names new online keys, and versions may begin anew.
#[tokio::test]
async fn a_restored_server_is_followed_at_once_after_a_new_root_with_new_online_keys() {
    let (fleet, mut node) = restored().await;
    let backup = fleet.dir.path().join("backup");
    std::fs::rename(backup.join("keys"), backup.join("old-keys")).unwrap();
    let online = Online::create(&backup).unwrap().public();
    let new = NewRoot { online: Some(&online), ..NewRoot::default() };
    let roles = fleet.operator.next_root(&fleet.trust.files(), &new, Utc::now()).await.unwrap();
    fleet.trust.submit_roles(&roles).await.unwrap();
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:1"));
}

#[tokio::test]
async fn a_node_follows_a_new_key_of_its_channel_and_no_longer_the_old_one() {
    let mut fleet = Fleet::new().await;
    fleet.publish("web:1").await;
    fleet.promote("production", "web:1").await;
    let mut node = fleet.node("node");
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    let delegate = Delegate::Channel(production());
    fleet.operator.keys_mut().successor("channel-production").unwrap();
    let key = fleet.operator.keys().get("channel-production.next").unwrap();
    let roles = fleet.operator.delegate(&fleet.trust.files(), &delegate, key, Utc::now()).await.unwrap();
    fleet.trust.submit_roles(&roles).await.unwrap();
    fleet.operator.keys_mut().install("channel-production").unwrap();
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:1"));
    fleet.publish("web:2").await;
    fleet.promote("production", "web:2").await;
    check(&fleet.trust, &mut node, &production()).await.unwrap();
    assert_eq!(desired(&node, &production()).await.as_deref(), Some("web:2"));
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What the server saw of a connection: the ALPN, and the node that the certificate names.
type Seen = (Vec<u8>, Option<(Word, Digest)>);

/// A server with a CA of its own, on loopback, that says what it sees of each connection.
struct Listener {
    _dir: TempDir,
    authority: Authority,
    endpoint: quinn::Endpoint,
    address: SocketAddr,
}

impl Listener {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Authority::create(dir.path(), Utc::now()).unwrap();
        let names = ["127.0.0.1".to_owned(), "golden.example".to_owned()];
        let config = authority.server(&names, Utc::now()).unwrap().quic_config().unwrap();
        let endpoint = quinn::Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = endpoint.local_addr().unwrap();
        Self { _dir: dir, authority, endpoint, address }
    }

    /// Takes one connection.
    async fn accept(&self) -> Result<Seen, quinn::ConnectionError> {
        let connection = self.endpoint.accept().await.unwrap().await?;
        let data = connection.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
        let chain = connection.peer_identity().map(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().unwrap());
        let node = chain.map(|chain| (common_name(&chain[0]).unwrap(), fingerprint(&chain[0])));
        // The client ends it, when it has seen its handshake through.
        if let Ok(mut stream) = connection.accept_uni().await {
            let _ = stream.read_to_end(8).await;
        }
        connection.closed().await;
        Ok((data.protocol.unwrap(), node))
    }

    fn token(&self) -> Token {
        Token { secret: "secret".into(), authority: self.authority.hash(), root: Digest::of(b"root") }
    }

    fn enrol(&self, name: &str, now: DateTime<Utc>) -> Identity {
        let key = NodeKey::create().unwrap();
        let signed = self.authority.sign_node(&key.request().unwrap(), &name.parse().unwrap(), now).unwrap();
        Identity::new(key, &signed.pem, self.authority.pem()).unwrap()
    }

    /// Connects and lets go at once; returns what each side made of it.
    async fn meet(&self, client: quinn::ClientConfig, name: &str) -> (Result<(), String>, Result<Seen, String>) {
        let endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let connect = async {
            let connection =
                endpoint.connect_with(client, self.address, name).unwrap().await.map_err(|error| error.to_string())?;
            // A server that refuses the client's certificate says so only after the client's side is complete.
            let refused = tokio::select! {
                error = connection.closed() => Err(error.to_string()),
                opened = async {
                    let mut stream = connection.open_uni().await.map_err(|error| error.to_string())?;
                    stream.write_all(b"x").await.map_err(|error| error.to_string())?;
                    stream.finish().map_err(|error| error.to_string())?;
                    stream.stopped().await.map(|_| ()).map_err(|error| error.to_string())
                } => opened,
            };
            connection.close(0_u32.into(), b"done");
            refused
        };
        let (client, server) = tokio::join!(connect, self.accept());
        endpoint.wait_idle().await;
        (client, server.map_err(|error| error.to_string()))
    }
}

#[tokio::test]
async fn a_machine_enrols_and_comes_back_as_the_node_that_it_is() {
    let server = Listener::new();
    let (client, seen) = server.meet(server.token().quic_config().unwrap(), "127.0.0.1").await;
    client.unwrap();
    assert_eq!(seen.unwrap(), (ALPN_ENROL.to_vec(), None));

    let identity = server.enrol("web-1", Utc::now());
    server.token().check_authority(server.authority.pem()).unwrap();
    let dir = TempDir::new().unwrap();
    identity.store(dir.path()).unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    for name in ["127.0.0.1", "golden.example"] {
        let (client, seen) = server.meet(identity.quic_config().unwrap(), name).await;
        client.unwrap();
        let expected = ("web-1".parse().unwrap(), fingerprint(identity.certificate()));
        assert_eq!(seen.unwrap(), (ALPN.to_vec(), Some(expected)));
    }
    assert!(!identity.renewal_due(Utc::now() + TimeDelta::days(59)));
    assert!(identity.renewal_due(Utc::now() + TimeDelta::days(61)));
}

#[tokio::test]
async fn a_server_with_another_ca_is_refused_by_machine_and_node() {
    let (server, other) = (Listener::new(), Listener::new());
    let (client, seen) = server.meet(other.token().quic_config().unwrap(), "127.0.0.1").await;
    let error = client.unwrap_err();
    assert!(error.contains(&other.authority.hash().to_string()), "{error}");
    assert!(error.contains(&server.authority.hash().to_string()), "{error}");
    assert!(seen.is_err());
    let (client, seen) = server.meet(other.enrol("web-1", Utc::now()).quic_config().unwrap(), "127.0.0.1").await;
    assert!(client.unwrap_err().contains("certificate"));
    assert!(seen.is_err());
    // The right CA, but not a name that this server has.
    let (client, seen) = server.meet(server.token().quic_config().unwrap(), "elsewhere.example").await;
    assert!(client.unwrap_err().contains("elsewhere.example"));
    assert!(seen.is_err());
}

#[tokio::test]
async fn a_certificate_of_another_fleet_or_an_expired_one_ends_the_handshake() {
    let (server, other) = (Listener::new(), Listener::new());
    // A node of the other fleet that was told to trust this server's CA: its own certificate is still foreign.
    let key = NodeKey::create().unwrap();
    let signed = other.authority.sign_node(&key.request().unwrap(), &"web-1".parse().unwrap(), Utc::now()).unwrap();
    let dir = TempDir::new().unwrap();
    Identity::new(key, &signed.pem, other.authority.pem()).unwrap().store(dir.path()).unwrap();
    swap_authority(dir.path(), other.authority.pem(), server.authority.pem());
    let foreign = Identity::load(dir.path()).unwrap();
    let (client, seen) = server.meet(foreign.quic_config().unwrap(), "127.0.0.1").await;
    assert!(client.is_err() && seen.is_err());

    let key = NodeKey::create().unwrap();
    let name: Word = "web-1".parse().unwrap();
    let long_ago = Utc::now() - TimeDelta::days(91);
    let signed = server.authority.sign_node(&key.request().unwrap(), &name, long_ago).unwrap();
    let error = Identity::new(key, &signed.pem, server.authority.pem()).unwrap_err();
    assert!(error.to_string().contains("clock"), "{error}");
    let key = NodeKey::create().unwrap();
    let request = key.request().unwrap();
    let good = server.authority.sign_node(&request, &name, Utc::now()).unwrap();
    Identity::new(key, &good.pem, server.authority.pem()).unwrap().store(dir.path()).unwrap();
    let expired = server.authority.sign_node(&request, &name, long_ago).unwrap();
    swap_authority(dir.path(), &good.pem, &expired.pem);
    let identity = Identity::load(dir.path()).unwrap();
    assert!(identity.expires() < Utc::now());
    let (client, seen) = server.meet(identity.quic_config().unwrap(), "127.0.0.1").await;
    assert!(client.is_err() && seen.is_err());
}

/// Puts another certificate into a stored identity.
fn swap_authority(dir: &Path, old: &str, new: &str) {
    let path = dir.join("identity.pem");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(old.trim()));
    std::fs::write(path, text.replace(old.trim(), new.trim())).unwrap();
}

/// A machine without a certificate may knock on `goldsync/1`; the server sees that it has none.
#[tokio::test]
async fn no_certificate_on_the_nodes_protocol_is_visible_as_none() {
    let server = Listener::new();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.authority.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for (alpn, good) in [(ALPN, true), (b"goldsync/0".as_slice(), false), (b"h3".as_slice(), false)] {
        config.alpn_protocols = vec![alpn.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config.clone()).unwrap();
        let (client, seen) = server.meet(quinn::ClientConfig::new(std::sync::Arc::new(crypto)), "127.0.0.1").await;
        assert_eq!((client.is_ok(), seen.ok()), (good, good.then(|| (alpn.to_vec(), None))), "{alpn:?}");
    }
}
