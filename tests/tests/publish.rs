//! Publishing: nothing half-way is ever visible, nothing is sent or stored twice, nobody without the credential changes
//! anything, and every change is in the audit log.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use goldsync_tests::image::MIB;
use goldsync_tests::{Fleet, Image, eventually};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

/// Bytes of files below a folder.
fn weight(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let one = |path: &Path| if path.is_dir() { weight(path) } else { fs::metadata(path).map_or(0, |data| data.len()) };
    entries.map(|entry| one(&entry.path())).sum()
}

fn number(value: &serde_json::Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {value}"))
}

/// Goal: a publish that dies half-way leaves nothing visible, and the next one goes on from what has arrived.
#[tokio::test(flavor = "multi_thread")]
async fn death_half_way() {
    let fleet = Fleet::start().await;
    let image = Image::noise(1, 24);
    let path = image.write(&fleet.path("image"));
    let empty = weight(fleet.data());
    let operator = fleet.operator.clone();
    let text = path.to_str().expect("a path").to_owned();
    let publishing = {
        let text = text.clone();
        tokio::spawn(async move { operator.run(["publish", &text, "--name", "web", "--version", "1"]).await })
    };
    // Once a third of it is on the server: the process is killed when its future is dropped.
    eventually("the first frames", async || (weight(fleet.data()) > empty + 8 * MIB as u64).then_some(())).await;
    publishing.abort();
    let _ = publishing.await;
    let releases = fleet.operator.json(["release", "list"]).await;
    assert_eq!(releases, serde_json::json!([]), "nothing is visible");
    fleet.operator.run(["promote", "web:1", "production"]).await.fails(1, &["no release web:1"]);

    let published = fleet.operator.publish(&path, "web:1").await;
    assert_eq!(published["image"], image.id().as_str(), "{published}");
    assert!(number(&published, "blocks_sent") < image.len() / 4096, "it began again: {published}");
    fleet.operator.promote("web:1", "production").await;
    let node = fleet.node("n1").await;
    node.sync().await.updated();
    node.runs(&image);
}

/// Goal: a server that restarts under an upload costs a pause, not the upload.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_restart_under_an_upload() {
    let mut fleet = Fleet::start().await;
    let image = Image::noise(2, 16);
    let path = image.write(&fleet.path("image"));
    let empty = weight(fleet.data());
    let operator = fleet.operator.clone();
    let publishing = tokio::spawn(async move { operator.try_publish(&path, "web:1").await });
    eventually("the first frames", async || (weight(fleet.data()) > empty + 3 * MIB as u64).then_some(())).await;
    fleet.crash().await;
    fleet.up().await;
    let published = publishing.await.expect("publish").ok().json();
    assert_eq!(published["image"], image.id().as_str(), "{published}");
    let node = fleet.node("n1").await;
    fleet.operator.promote("web:1", "production").await;
    node.sync().await.updated();
    node.runs(&image);
}

/// Goal: the same bytes again are no change at all; other bytes under the same name are refused, with both ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_what_it_is() {
    let fleet = Fleet::start().await;
    let (image, other) = (Image::new(3, 2), Image::new(30, 2));
    let (path, other_path) = (image.write(&fleet.path("image")), other.write(&fleet.path("other")));
    let first = fleet.operator.publish(&path, "web:1").await;
    assert_eq!(first["already_published"], false, "{first}");
    let audit = fleet.operator.audit().await;
    let again = fleet.operator.publish(&path, "web:1").await;
    assert_eq!((&again["already_published"], number(&again, "blocks_sent")), (&true.into(), 0), "{again}");
    assert_eq!(fleet.operator.audit().await, audit, "nothing happened, so nothing is in the log");
    let refused = fleet.operator.try_publish(&other_path, "web:1").await;
    refused.fails(1, &["web:1", &image.id(), &other.id(), "another version"]);
    // Under another name the same bytes are a release of their own, and cost nothing.
    let twin = fleet.operator.publish(&path, "db:1").await;
    assert_eq!((&twin["already_published"], number(&twin, "blocks_sent")), (&false.into(), 0), "{twin}");
}

/// Goal: a release stores and sends only what no earlier one has, wherever in the image it lies.
#[tokio::test(flavor = "multi_thread")]
async fn releases_share_their_blocks() {
    let fleet = Fleet::start().await;
    let first = Image::noise(4, 8);
    let path = fleet.path("image");
    let published = fleet.operator.publish(&first.write(&path), "web:1").await;
    assert_eq!(number(&published, "blocks_sent"), first.len() / 4096);
    let objects = fleet.data().join("objects");
    let one = weight(&objects);
    let mut image = first.clone();
    for version in 2..=6 {
        image = image.edited(40 + version, 10);
        let published = fleet.operator.publish(&image.write(&path), &format!("web:{version}")).await;
        assert!(number(&published, "blocks_sent") <= 10, "{published}");
        assert!(number(&published, "stored") < 10 * 4096 + 64 * 1024, "{published}");
    }
    // Moved by whole blocks, everything is there already.
    let mut moved = first.bytes.clone();
    moved.rotate_left(3 * MIB + 4096 * 7);
    let published = fleet.operator.publish(&Image { bytes: moved }.write(&path), "web:7").await;
    assert_eq!(number(&published, "blocks_sent"), 0, "{published}");
    let all = weight(&objects);
    assert!(all < one + one / 4, "seven releases take {all} bytes, one takes {one}");
    // And each of them can still be had.
    let node = fleet.node("n1").await;
    for (version, image) in [("web:6", &image), ("web:1", &first)] {
        fleet.operator.promote(version, "production").await;
        node.sync().await.updated();
        node.runs(image);
    }
}

/// One HTTPS request as anybody could make it who trusts the fleet's CA; the whole answer.
fn https(fleet: &Fleet, request: &str) -> String {
    let authority = CertificateDer::from_pem_file(fleet.operator.folder.join("ca.pem")).expect("ca.pem");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).expect("the CA");
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a TLS client");
    let mut socket = TcpStream::connect(fleet.api()).expect("the API");
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = Vec::new();
    // A server that closes without TLS's farewell has still answered.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Goal: without the operator's credential, or with another, nothing can be seen or changed.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_takes_nobody_without_its_token() {
    let fleet = Fleet::start().await;
    fleet.publish(&Image::new(5, 1), "web:1").await;
    let audit = fleet.operator.audit().await;
    let requests = [
        ("GET", "status"),
        ("GET", "releases"),
        ("GET", "channels"),
        ("GET", "nodes"),
        ("GET", "audit"),
        ("GET", "trust"),
        ("POST", "tokens"),
        ("POST", "releases"),
        ("POST", "channels/production"),
        ("POST", "nodes/n1/revoke"),
        ("POST", "fleet/sync"),
        ("POST", "uploads"),
    ];
    let good = fleet.operator.get("token");
    let wrong = good.chars().rev().collect::<String>();
    for (method, path) in requests {
        for credential in [
            "",
            "Authorization: Bearer \r\n",
            &format!("Authorization: Bearer {wrong}\r\n"),
            "Authorization: Basic YTpi\r\n",
        ] {
            let request = format!(
                "{method} /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{credential}Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            );
            let answer = tokio::task::block_in_place(|| https(&fleet, &request));
            let status = answer.lines().next().unwrap_or_default().to_owned();
            assert!(status.contains(" 401 "), "{method} {path} {credential:?}: {answer}");
            assert!(answer.contains("unauthorised") || answer.contains("unauthorized"), "{answer}");
        }
    }
    assert_eq!(fleet.operator.audit().await, audit);
    // The tool says which file holds the credential.
    fleet.operator.set("token", &wrong);
    fleet.operator.run(["release", "list"]).await.fails(4, &["operator.toml"]);
    fleet.operator.set("token", &good);
    fleet.operator.run(["release", "list"]).await.ok();
}

/// Goal: a server of another fleet is not talked to at all: the token never leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_fleet() {
    let (fleet, other) = (Fleet::start().await, Fleet::start().await);
    fleet.operator.set("api", &format!("https://{}", other.api()));
    fleet.operator.run(["release", "list"]).await.fails(3, &["not this fleet's server", "ca.pem"]);
}

/// Goal: every change says who did it, what, to what, and from where.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_in_the_audit_log() {
    let image = Image::new(6, 1);
    let (fleet, _node) = Fleet::with_node(&image).await;
    fleet.operator.run(["fleet", "sync", "--channel", "production", "--allow-absent"]).await;
    fleet.operator.json(["node", "revoke", "n1"]).await;
    let audit = fleet.operator.audit().await;
    let mut actions: Vec<_> = audit.iter().map(|entry| entry["what"].as_str().expect("an act").to_owned()).collect();
    actions.reverse();
    let expected = [
        "operator.add",
        "release.publish",
        "channel.promote",
        "token.create",
        "node.enrol",
        "fleet.sync",
        "node.revoke",
    ];
    let mut rest = actions.iter();
    for action in expected {
        assert!(rest.any(|one| one == action), "{action} is not (in that order) among {actions:?}");
    }
    for entry in &audit {
        for key in ["at", "who", "what", "detail", "from"] {
            assert!(entry[key].as_str().is_some_and(|text| !text.is_empty()), "{key} is missing in {entry}");
        }
    }
    let promoted = audit.iter().find(|entry| entry["what"] == "channel.promote").expect("the promotion").to_string();
    assert!(
        promoted.contains("ann")
            && promoted.contains("web:1")
            && promoted.contains("production")
            && promoted.contains("127.0.0.1"),
        "{promoted}"
    );
}

/// Goal: an object that the server's disk lost comes back by publishing the same image again, and nodes get all of it.
#[tokio::test(flavor = "multi_thread")]
async fn publishing_again_heals_a_damaged_store() {
    let mut fleet = Fleet::start().await;
    let image = Image::noise(5, 6);
    let path = image.write(&fleet.path("image"));
    fleet.ship(&image, "web:1").await;
    fleet.down().await;
    // The largest object is the image's one segment; whole images would stand in for it.
    let shelves = fs::read_dir(fleet.data().join("objects")).expect("objects").flatten();
    let objects = shelves.flat_map(|shelf| fs::read_dir(shelf.path()).expect("a shelf").flatten());
    let largest = objects.max_by_key(|object| object.metadata().map_or(0, |data| data.len())).expect("an object");
    goldsync_tests::damage::flip_byte(&largest.path(), 0.5);
    fs::remove_dir_all(fleet.data().join("cache")).expect("the cache");
    fleet.up().await;

    let again = fleet.operator.publish(&path, "web:1").await;
    assert_eq!((&again["already_published"], &again["healed"]), (&true.into(), &true.into()), "{again}");
    assert_eq!(number(&again, "blocks_sent"), 256, "{again}");
    let node = fleet.node("n1").await;
    node.sync().await.updated();
    node.runs(&image);
    let again = fleet.operator.publish(&path, "web:1").await;
    assert_eq!((&again["healed"], number(&again, "blocks_sent")), (&false.into(), 0), "{again}");
}
