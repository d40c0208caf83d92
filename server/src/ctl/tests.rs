//! The verbs against a real server on loopback, as an operator runs them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::routing::{post, put};
use bytes::Bytes;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::pack::write_frame;
use goldsync_proto::signature::Signature;
use goldsync_proto::wire::{Account, NodeSays, Outcome as Ended, Phase, Report, ServerSays};
use serde_json::json;

use super::*;
use crate::api::types::Uploaded;
use crate::cli::{FleetOrder, Json, Label, NodeRevoke, Promote, Publish, Selector, TokenCreate, TrustRenew};
use crate::testing::{Control, Fleet, image, word};
use client::place::Place;
use fail::Code;
use image::Image;
use progress::Manner;

const TEXT: Json = Json { json: false };

/// The desk of the operator whom `init` made.
fn desk(fleet: &Fleet) -> Desk {
    let folder = fleet.folder().parent().unwrap().join("operator");
    let operator = Operator::open(&folder).unwrap();
    // The tests' server listens where there was room.
    let operator = Operator { api: format!("https://{}", fleet.server().api_addr()), ..operator };
    Desk { client: Client::new(&operator).unwrap(), operator, interrupted: Interrupted::default() }
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn publish_args(image: &Path, version: &str) -> Publish {
    Publish {
        image: image.to_owned(),
        name: word("web"),
        version: word(version),
        labels: vec![Label { key: "commit".into(), value: "4f1c".into() }],
        verity: false,
        minimum_agent: Some("0.1.0".into()),
        quiet: true,
        json: TEXT,
    }
}

async fn publish_bytes(desk: &Desk, bytes: &[u8], version: &str) -> Outcome<publish::Published> {
    publish::publish(desk, &publish_args(file(bytes).path(), version)).await
}

fn promote_args(release: &str, channel: &str) -> Promote {
    Promote { release: release.parse().unwrap(), channel: word(channel), json: TEXT }
}

#[tokio::test]
async fn an_image_is_published_once_and_its_successor_sends_only_what_is_new() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let mut bytes = image(1, 600);
    let first = publish_bytes(&desk, &bytes, "1").await.unwrap();
    assert_eq!((first.image, first.size, first.blocks_sent), (ImageId::of(&bytes), 600 * 4096, 600));
    assert!(!first.already_published && first.bytes_sent >= 600 * 4096 && first.stored >= 600 * 4096);
    let release = desk.client.release(&"web:1".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!((release.manifest.image, release.published_by.as_str()), (first.image, "alice"));
    assert_eq!(release.manifest.labels["commit"], "4f1c");
    assert_eq!(release.manifest.minimum_agent.as_deref(), Some("0.1.0"));

    let again = publish_bytes(&desk, &bytes, "1").await.unwrap();
    assert!(again.already_published && again.blocks_sent == 0);

    bytes[400 * 4096] ^= 1;
    let failure = publish_bytes(&desk, &bytes, "1").await.unwrap_err();
    assert_eq!(failure.code, Code::Failed);
    assert!(failure.message.contains("web:1 is published already, with other bytes"), "{failure}");
    let second = publish_bytes(&desk, &bytes, "2").await.unwrap();
    assert_eq!((second.blocks_sent, second.already_published), (1, false));
    assert!(second.stored < 64 << 10, "{}", second.stored);

    let acts: Vec<_> = fleet.audit().await.into_iter().filter(|entry| entry.what == "release.publish").collect();
    assert_eq!(acts.len(), 2, "{acts:?}");
}

#[tokio::test]
async fn the_same_image_under_another_name_sends_nothing() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    publish_bytes(&desk, &image(1, 300), "1").await.unwrap();
    let second = publish_bytes(&desk, &image(1, 300), "2").await.unwrap();
    assert_eq!((second.blocks_sent, second.already_published), (0, false));
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was_left() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let bytes = image(3, 600);
    let file = file(&bytes);
    let opened = Arc::new(Image::open(file.path()).unwrap());
    let signature = Signature::of(opened.geometry(), &bytes).unwrap();
    desk.client.begin_upload(signature.image, bytes.len() as u64).await.unwrap();
    desk.client.missing(signature.image, Bytes::copy_from_slice(&signature.blocks)).await.unwrap();
    let frame = write_frame(&bytes[..256 * 4096], 1);
    desk.client.frame(signature.image, 0, frame.into()).await.unwrap();
    let (sent, uploaded) = upload::run(&desk, Manner::Quiet, &opened, &signature).await.unwrap();
    assert_eq!(sent.blocks, 344);
    assert_eq!(uploaded.sections, signature.sections());
}

/// A server that loses the thread of an upload `times` times, once at a frame and then at the end in turn, and the
/// number of times that it was sent the list.
fn forgetful(signature: &Signature, times: u32) -> (axum::Router, Arc<AtomicU32>) {
    let (lists, lost) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let uploaded = Uploaded { sections: signature.sections(), added: 1, healed: false };
    let counted = lists.clone();
    let lose = move |at_frame: bool| {
        let before = lost.load(Ordering::SeqCst);
        let now = before < times && before.is_multiple_of(2) == at_frame;
        lost.fetch_add(now.into(), Ordering::SeqCst);
        let problem = json!({ "code": "conflict", "message": "send the section `blocks` again" });
        if now { Err((axum::http::StatusCode::CONFLICT, axum::Json(problem))) } else { Ok(()) }
    };
    let at_end = lose.clone();
    let router = axum::Router::new()
        .route("/v1/uploads", post(|| async { axum::Json(json!({ "stored": false })) }))
        .route(
            "/v1/uploads/{image}/blocks",
            put(move || {
                counted.fetch_add(1, Ordering::SeqCst);
                async { axum::Json(json!({ "runs": [[0, 2]] })) }
            }),
        )
        .route("/v1/uploads/{image}/frames/{first}", put(move || async move { lose(true) }))
        .route(
            "/v1/uploads/{image}/complete",
            post(move || async move { at_end(false).map(|()| axum::Json(uploaded)) }),
        );
    (router, lists)
}

#[tokio::test]
async fn a_server_that_loses_the_thread_is_sent_the_list_again_but_not_for_ever() {
    let bytes = image(5, 2);
    let file = file(&bytes);
    let opened = Arc::new(Image::open(file.path()).unwrap());
    let signature = Signature::of(opened.geometry(), &bytes).unwrap();
    for (times, expected, lists) in [(0, Some(2), 1), (1, Some(2), 2), (2, Some(4), 3), (9, None, 4)] {
        let (router, counted) = forgetful(&signature, times);
        let place = Place::serve(router);
        let client = place.client();
        let operator = Operator::open(place.folder.path()).unwrap();
        let desk = Desk { operator, client, interrupted: Interrupted::default() };
        let ended = upload::run(&desk, Manner::Quiet, &opened, &signature).await;
        assert_eq!(ended.as_ref().ok().map(|(sent, _)| sent.blocks), expected, "{times}: {ended:?}");
        assert_eq!(counted.load(Ordering::SeqCst), lists, "{times}");
        if let Err(failure) = ended {
            assert_eq!((failure.code, failure.message.as_str()), (Code::Failed, "send the section `blocks` again"));
        }
    }
}

#[tokio::test]
async fn an_image_that_changes_under_way_is_not_published() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let bytes = image(4, 300);
    let file = file(&bytes);
    let opened = Arc::new(Image::open(file.path()).unwrap());
    let mut signed = bytes.clone();
    signed[7 * 4096] ^= 1;
    let signature = Signature::of(opened.geometry(), &signed).unwrap();
    let failure = upload::run(&desk, Manner::Quiet, &opened, &signature).await.unwrap_err();
    assert!(failure.message.contains("block 7 does not hash"), "{failure}");
    assert_eq!(desk.client.releases().await.unwrap().len(), 0);
}

#[tokio::test]
async fn an_operator_without_the_key_or_the_credential_is_stopped_before_any_work() {
    let fleet = Fleet::start().await;
    let mut desk = desk(&fleet);
    std::fs::remove_file(desk.operator.folder.join("keys/releases.pem")).unwrap();
    let failure = publish_bytes(&desk, &image(1, 10), "1").await.unwrap_err();
    assert_eq!(failure.code, Code::Usage);
    assert!(failure.message.contains("releases"), "{failure}");

    desk.operator.token = "wrong".into();
    desk.client = Client::new(&desk.operator).unwrap();
    let failure = desk.client.status().await.unwrap_err();
    assert_eq!(failure.code, Code::Server);
    assert!(failure.remedy.unwrap().contains("operator.toml"));
}

#[tokio::test]
async fn a_channel_is_promoted_and_taken_back() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let failure = channel::promote(&desk, &promote_args("web:1", "staging")).await.unwrap_err();
    assert_eq!(failure.message, "there is no release web:1");
    publish_bytes(&desk, &image(1, 10), "1").await.unwrap();
    publish_bytes(&desk, &image(2, 10), "2").await.unwrap();
    let failure = channel::promote(&desk, &promote_args("web:1", "stagging")).await.unwrap_err();
    assert_eq!(failure.message, "there is no channel stagging");
    assert!(failure.remedy.unwrap().contains("staging"));
    for release in ["web:1", "web:2", "web:1"] {
        channel::promote(&desk, &promote_args(release, "staging")).await.unwrap();
    }
    let history = desk.client.history(&word("staging")).await.unwrap();
    let releases: Vec<String> = history.iter().map(|promotion| promotion.release.to_string()).collect();
    assert_eq!(releases, ["web:1", "web:2", "web:1"]);
    let release = desk.client.release(&"web:1".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(release.channels, [word("staging")]);
}

#[tokio::test]
async fn two_operators_who_sign_at_once_both_get_through() {
    let fleet = Fleet::start().await;
    let (one, other) = (desk(&fleet), desk(&fleet));
    let (bytes, others) = (image(1, 10), image(2, 10));
    let (a, b) = tokio::join!(publish_bytes(&one, &bytes, "1"), publish_bytes(&other, &others, "2"));
    assert!(!a.unwrap().already_published && !b.unwrap().already_published);
    assert_eq!(one.client.releases().await.unwrap().len(), 2);
}

fn token_args(uses: Option<u32>) -> TokenCreate {
    TokenCreate { valid: None, uses, labels: vec![], server: Some("gold:7400".into()), json: TEXT }
}

#[tokio::test]
async fn a_token_s_parts_are_what_a_new_node_needs() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let made = token::make(&desk, &token_args(None)).await.unwrap();
    assert_eq!(made.command, format!("goldsync-agent enroll --server gold:7400 --token {}", made.token));
    let parts: Vec<&str> = made.token.split('.').collect();
    let [gs1, secret, authority, root] = parts[..] else { panic!("{}", made.token) };
    assert_eq!(gs1, "gs1");
    assert_eq!(authority, Digest::of(&desk.operator.authority().unwrap()).to_string());
    let trust = desk.client.trust().await.unwrap();
    assert_eq!(root, Digest::of(trust.files["1.root.json"].as_bytes()).to_string());
    fleet.try_enrol(secret, "n1").await.unwrap();
    assert!(fleet.try_enrol(secret, "n2").await.is_err(), "good for one node");
    let nodes = desk.client.nodes(None, Some("role=web".into())).await.unwrap();
    assert_eq!(nodes.len(), 1);
}

#[tokio::test]
async fn a_revoked_node_is_listed_as_such() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let identity = fleet.enrol("n1").await;
    node::revoke(&desk, &NodeRevoke { node: identity.node.clone(), json: TEXT }).await.unwrap();
    assert!(desk.client.nodes(None, None).await.unwrap()[0].revoked);
    let failure = node::revoke(&desk, &NodeRevoke { node: word("n9"), json: TEXT }).await.unwrap_err();
    assert_eq!(failure.code, Code::Failed);
    assert!(failure.message.contains("n9"), "{failure}");
}

const NOW: What = What::Sync { now: true };

fn sync_args(allow_absent: bool) -> FleetOrder {
    FleetOrder {
        channel: word("staging"),
        selector: Selector { labels: vec![Label { key: "role".into(), value: "web".into() }] },
        allow_absent,
        timeout: None,
        quiet: true,
        json: TEXT,
    }
}

/// A node that does as it is told and ends so.
async fn obey(mut control: Control, outcome: Ended) {
    let order = loop {
        if let ServerSays::Sync { order, now } = control.hear().await {
            assert!(now);
            break order;
        }
    };
    let report = Report { phase: Phase::Fetch, ..Report::default() };
    control.say(&NodeSays::Report { report }).await;
    control.say(&NodeSays::SyncDone { order, outcome }).await;
    // The connection stays up until the server has read it all.
    let _ = control.recv.received_reset().await;
}

#[tokio::test]
async fn a_fleet_sync_is_watched_to_its_end() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(fleet.enrol(name).await);
    }
    let (_link_a, a) = fleet.join(&nodes[0], "staging").await;
    let (_link_b, b) = fleet.join(&nodes[1], "staging").await;
    let account = Account { path: "pack".into(), received: 4096, written: 3, ..Account::default() };
    tokio::spawn(obey(a, Ended::Updated { account: account.clone() }));
    tokio::spawn(obey(b, Ended::UpToDate));
    let (watch, followed) = sync::order(&desk, &sync_args(false), &NOW).await.unwrap();
    followed.unwrap();
    assert_eq!(watch.nodes[&word("a")].outcome, Some(Ended::Updated { account }));
    let tally = watch.tally();
    assert_eq!((tally.updated, tally.up_to_date, tally.failed), (1, 1, 0));
    sync::verdict(&sync_args(false), tally).unwrap();
}

#[tokio::test]
async fn one_failed_node_is_a_failed_sync() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let node = fleet.enrol("a").await;
    let (_link, control) = fleet.join(&node, "staging").await;
    tokio::spawn(obey(control, Ended::Failed { error: "slot b: no space".into() }));
    let failure = sync::run(&desk, &sync_args(false), &NOW).await.unwrap_err();
    assert_eq!((failure.code, failure.message.as_str()), (Code::Failed, "the fleet is not as asked: 1 node failed"));
}

#[tokio::test]
async fn a_sync_that_takes_too_long_names_the_unfinished() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let node = fleet.enrol("a").await;
    let (_link, _silent) = fleet.join(&node, "staging").await;
    let args = FleetOrder { timeout: Some(std::time::Duration::from_millis(300)), ..sync_args(false) };
    let failure = sync::run(&desk, &args, &NOW).await.unwrap_err();
    assert_eq!(failure.message, "the fleet is not as asked: 1 node not done when the time ran out");
}

#[tokio::test]
async fn an_order_that_the_server_forgot_is_said_to_be_forgotten() {
    let mut fleet = Fleet::start_with(|_| {}).await;
    // A second server must come back at the same address for the tool to find it.
    fleet.config.api = fleet.server().api_addr();
    let desk = desk(&fleet);
    let node = fleet.enrol("a").await;
    let (_link, mut control) = fleet.join(&node, "staging").await;
    let args = sync_args(false);
    let ((), ended) = tokio::join!(
        async {
            while !matches!(control.hear().await, ServerSays::Sync { .. }) {}
            fleet.restart().await;
        },
        sync::order(&desk, &args, &NOW)
    );
    let failure = ended.unwrap().1.unwrap_err();
    assert_eq!(failure.code, Code::Server);
    assert!(failure.message.contains("no longer knows order"), "{failure}");
}

#[tokio::test]
async fn nobody_to_sync_is_a_failure() {
    let fleet = Fleet::start().await;
    let failure = sync::run(&desk(&fleet), &sync_args(true), &NOW).await.unwrap_err();
    assert!(failure.message.starts_with("no node follows channel staging"), "{failure}");
}

/// Goal: rotation and renewal end to end, over HTTPS. Method: the verbs, and a node's view of what the server hands out.
#[tokio::test]
async fn roles_are_renewed_and_keys_replaced_and_channels_made() {
    let mut fleet = Fleet::start().await;
    let desk = desk(&fleet);
    publish_bytes(&desk, &image(1, 40), "1").await.unwrap();
    channel::promote(&desk, &promote_args("web:1", "dev")).await.unwrap();
    let held = |fleet: &Fleet| fleet.server().hub().trust.versions();

    let args = TrustRenew { roles: vec![], json: TEXT };
    trust::renew(&desk, &args).await.unwrap();
    let versions = held(&fleet);
    assert_eq!((versions["root"], versions["targets"], versions["releases"], versions["channel-dev"]), (2, 2, 3, 3));

    for role in ["releases", "channel-dev", "targets", "root", "online"] {
        let rotated = trust::rotate_one(&desk, role).await.unwrap();
        assert_eq!(rotated.old_key.is_some(), role != "online", "{role}");
        assert!(!rotated.signed.is_empty());
    }
    let made = trust::introduce(&desk, &word("canary")).await.unwrap();
    assert_eq!(made.old_key, None);
    let again = trust::introduce(&desk, &word("canary")).await.unwrap_err();
    assert!(again.remedy.unwrap().contains("trust rotate channel-canary"));
    // Every new key is in its place and does its work.
    publish_bytes(&desk, &image(2, 40), "2").await.unwrap();
    for channel in ["dev", "canary"] {
        channel::promote(&desk, &promote_args("web:2", channel)).await.unwrap();
    }
    trust::renew(&desk, &args).await.unwrap();
    trust::status(&desk, TEXT).await.unwrap();
    let keys = fleet.folder().join("trust/keys");
    assert!(keys.join("snapshot.old.pem").exists() && !keys.join("snapshot.next.pem").exists());
    let before = held(&fleet);
    fleet.restart().await;
    assert_eq!(held(&fleet), before);
    let acts = fleet.audit().await.into_iter().filter(|entry| entry.what == "trust.submit").collect::<Vec<_>>();
    assert!(acts.iter().all(|entry| entry.who == "alice"));
    assert!(acts.last().unwrap().detail.starts_with("root version 2 until "), "{acts:?}");
}

#[tokio::test]
async fn a_rotation_that_was_cut_short_is_ended_by_the_same_command() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    // The server took it and the answer was lost: named, and not installed.
    let mut signer = crate::trust::Operator::open(&desk.operator.folder).unwrap();
    let next = signer.keys_mut().successor("root").unwrap().id();
    let files = desk.client.trust().await.unwrap().files;
    let new = crate::trust::NewRoot { root: signer.keys().pending("root"), ..Default::default() };
    let roles = signer.next_root(&files, &new, chrono::Utc::now()).await.unwrap();
    desk.client.submit_roles(&crate::api::types::TrustRequest { roles }).await.unwrap().unwrap();

    let ended = trust::rotate_one(&desk, "root").await.unwrap();
    assert!(ended.signed.is_empty() && ended.old_key.is_some());
    let signer = crate::trust::Operator::open(&desk.operator.folder).unwrap();
    assert_eq!(signer.keys().get("root").unwrap().id(), next);
    trust::renew(&desk, &TrustRenew { roles: vec!["root".into()], json: TEXT }).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_signed_here_is_refused_before_anything_is_sent() {
    let fleet = Fleet::start().await;
    let desk = desk(&fleet);
    let keys = desk.operator.folder.join("keys");
    for role in ["root", "targets"] {
        std::fs::remove_file(keys.join(format!("{role}.pem"))).unwrap();
    }
    for role in ["releases", "channel-dev", "targets", "root", "online"] {
        let failure = trust::rotate_one(&desk, role).await.unwrap_err();
        assert_eq!(failure.code, Code::Usage, "{role}: {failure}");
    }
    assert!(!keys.join("releases.next.pem").exists());
    let roles = vec!["releases".to_owned(), "root".to_owned()];
    let failure = trust::renew(&desk, &TrustRenew { roles, json: TEXT }).await.unwrap_err();
    assert!(failure.message.contains("the key of role root is not in"), "{failure}");
    assert_eq!(fleet.server().hub().trust.versions()["releases"], 1);
    let failure = trust::rotate_one(&desk, "channel-nightly").await.unwrap_err();
    assert!(failure.message.contains("there is no role channel-nightly"), "{failure}");
    // Of the rest, what is here is renewed.
    trust::renew(&desk, &TrustRenew { roles: vec![], json: TEXT }).await.unwrap();
    assert_eq!(fleet.server().hub().trust.versions()["releases"], 2);
}
