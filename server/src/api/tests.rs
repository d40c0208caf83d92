//! The API over real loopback HTTPS.

use std::collections::BTreeSet;

use axum::routing::MethodFilter;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::types::{Channel, Problem, Promotion, Release, Status};
use super::{document, routes};
use crate::testing::{Fleet, image};

#[tokio::test]
async fn nothing_but_the_document_is_shown_to_strangers() {
    let fleet = Fleet::start().await;
    for (method, path) in routes::all(fleet.server().hub()).listed {
        let method = if method == MethodFilter::GET {
            Method::GET
        } else if method == MethodFilter::PUT {
            Method::PUT
        } else {
            Method::POST
        };
        let path = path.replace(['{', '}'], "");
        let open = path == "/v1/openapi.json";
        for token in [None, Some(""), Some("wrong"), Some(&fleet.token[1..])] {
            let call = fleet.call(method.clone(), &path);
            let call = match token {
                Some(token) => call.bearer_auth(token),
                None => call,
            };
            let answer = call.send().await.unwrap();
            if open {
                assert_eq!(answer.status(), StatusCode::OK);
            } else {
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path} {token:?}");
                assert_eq!(answer.json::<Problem>().await.unwrap().code, "unauthorised");
            }
        }
    }
    let basic = fleet.call(Method::GET, "/v1/status").basic_auth("alice", Some(&fleet.token));
    assert_eq!(basic.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let status: Status = fleet.get("/v1/status").await;
    assert_eq!((status.releases, status.nodes, status.connected), (0, 0, 0));
}

#[tokio::test]
async fn the_document_tells_of_every_path_and_every_schema() {
    let fleet = Fleet::start().await;
    let listed: BTreeSet<String> =
        routes::all(fleet.server().hub()).listed.iter().map(|(method, path)| format!("{method:?} {path}")).collect();
    let document = serde_json::to_value(document()).unwrap();
    let filter = |method: &str| match method {
        "get" => MethodFilter::GET,
        "put" => MethodFilter::PUT,
        "post" => MethodFilter::POST,
        other => panic!("{other}"),
    };
    let told: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |m| format!("{:?} {path}", filter(m))))
        .collect();
    assert_eq!(told, listed);
    // No reference may lead nowhere.
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }
    assert_eq!(document["components"]["securitySchemes"]["operator"]["scheme"], "bearer");
    let served: Value = fleet.call(Method::GET, "/v1/openapi.json").send().await.unwrap().json().await.unwrap();
    assert_eq!(served, document);
}

#[tokio::test]
async fn errors_are_problems_with_a_remedy() {
    let fleet = Fleet::start().await;
    let cases = [
        (Method::GET, "/v1/nowhere", StatusCode::NOT_FOUND, "not_found"),
        (Method::DELETE, "/v1/status", StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (Method::GET, "/v1/releases/web/1", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/v1/releases/WEB/1", StatusCode::BAD_REQUEST, "bad_request"),
        (Method::GET, "/v1/channels/nightly/history", StatusCode::NOT_FOUND, "not_found"),
        (Method::GET, "/v1/nodes?selector=web", StatusCode::BAD_REQUEST, "bad_request"),
        (Method::GET, "/v1/audit?limit=x", StatusCode::BAD_REQUEST, "bad_request"),
        (Method::GET, "/v1/audit?limit=10001", StatusCode::BAD_REQUEST, "bad_request"),
        (Method::GET, "/v1/fleet/sync/7/events", StatusCode::NOT_FOUND, "not_found"),
        (Method::POST, "/v1/uploads", StatusCode::BAD_REQUEST, "bad_request"),
        (Method::POST, "/v1/uploads/zz/complete", StatusCode::BAD_REQUEST, "bad_request"),
    ];
    for (method, path, status, code) in cases {
        let answer = fleet.operator(method, path).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.json::<Problem>().await.unwrap().code, code, "{path}");
    }
    let (status, problem): (_, Problem) = fleet.post("/v1/tokens", &json!({ "valid_s": 0 })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(problem.message.contains("valid_s = 0"), "{problem:?}");
    let (status, problem): (_, Problem) = fleet.post("/v1/fleet/sync", &json!({ "channel": "nightly" })).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::NOT_FOUND, "not_found"));
    assert!(problem.remedy.unwrap().contains("production"));
    let frame = fleet.operator(Method::PUT, &format!("/v1/uploads/{}/frames/0", "0".repeat(64)));
    let answer = frame.body(vec![0; (1 << 20) + 10]).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_release_is_published_once_and_never_changes() {
    let fleet = Fleet::start().await;
    let (one, two) = (image(1, 40), image(2, 40));
    let manifest = fleet.manifest("web:1", &one).await;
    let request = fleet.signed_release(&manifest).await;
    let (status, release): (_, Release) = fleet.post("/v1/releases", &request).await;
    assert_eq!((status, release.published_by.as_str()), (StatusCode::CREATED, "alice"));
    assert!(release.added > 0);
    let (status, _): (_, Release) = fleet.post("/v1/releases", &request).await;
    assert_eq!(status, StatusCode::OK, "the same again changes nothing");
    let other = fleet.manifest("web:1", &two).await;
    let forged = super::types::ReleaseRequest { manifest: serde_json::to_string(&other).unwrap(), role: request.role };
    let (status, problem): (_, Problem) = fleet.post("/v1/releases", &forged).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::CONFLICT, "taken"));
    assert!(problem.message.contains("web:1") && problem.message.contains("never changes"), "{problem:?}");
    let published: Vec<_> = fleet.audit().await.into_iter().filter(|e| e.what == "release.publish").collect();
    assert_eq!(published.len(), 1);
    assert_eq!(published[0].who, "alice");
    assert!(published[0].from.starts_with("127.0.0.1:") && published[0].detail.contains("web:1"));
}

#[tokio::test]
async fn what_is_not_stored_or_not_signed_is_not_published() {
    let fleet = Fleet::start().await;
    let one = image(1, 40);
    let manifest = fleet.manifest("web:1", &one).await;
    let good = fleet.signed_release(&manifest).await;
    let mut absent = manifest.clone();
    absent.image = goldsync_proto::digest::ImageId::of(b"absent");
    let request =
        super::types::ReleaseRequest { manifest: serde_json::to_string(&absent).unwrap(), role: good.role.clone() };
    let (status, problem): (_, Problem) = fleet.post("/v1/releases", &request).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::CONFLICT, "conflict"), "{problem:?}");
    let mut role: Value = serde_json::from_str(&good.role).unwrap();
    role["signed"]["expires"] = "2099-01-01T00:00:00Z".into();
    let forged = super::types::ReleaseRequest { manifest: good.manifest.clone(), role: role.to_string() };
    let (status, problem): (_, Problem) = fleet.post("/v1/releases", &forged).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "not_trusted"), "{problem:?}");
    let releases: Vec<Release> = fleet.get("/v1/releases").await;
    assert!(releases.is_empty());
}

#[tokio::test]
async fn a_promotion_is_checked_recorded_and_told_once() {
    let fleet = Fleet::start().await;
    let (one, two) = (image(1, 40), image(2, 40));
    fleet.publish("web:1", &one).await;
    fleet.publish("web:2", &two).await;
    let channels: Vec<Channel> = fleet.get("/v1/channels").await;
    assert_eq!(channels.len(), 4);
    assert!(channels.iter().all(|channel| channel.pointer.is_none()));
    fleet.promote("web:1", &one, "dev").await;
    fleet.promote("web:2", &two, "dev").await;
    let back = fleet.promote("web:1", &one, "dev").await;
    assert_eq!(back.pointer.unwrap().release.to_string(), "web:1");
    let history: Vec<Promotion> = fleet.get("/v1/channels/dev/history").await;
    let seen: Vec<_> = history.iter().map(|p| (p.release.to_string(), p.by.as_str())).collect();
    assert_eq!(seen, [("web:1", "alice"), ("web:2", "alice"), ("web:1", "alice")].map(|(r, b)| (r.to_owned(), b)));
    let release: Release = fleet.get("/v1/releases/web/1").await;
    assert_eq!(release.channels.iter().map(|c| c.as_str()).collect::<Vec<_>>(), ["dev"]);

    let web1 = "web:1".parse().unwrap();
    let request = fleet.signed_pointer(&web1, goldsync_proto::digest::ImageId::of(&one), "qa").await;
    let (status, _): (_, Channel) = fleet.post("/v1/channels/qa", &request).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _): (_, Channel) = fleet.post("/v1/channels/qa", &request).await;
    assert_eq!(status, StatusCode::OK, "the same again changes nothing");
    let history: Vec<Promotion> = fleet.get("/v1/channels/qa/history").await;
    assert_eq!(history.len(), 1);
    let (status, problem): (_, Problem) = fleet.post("/v1/channels/staging", &request).await;
    assert_eq!((status, problem.code.as_str()), (StatusCode::BAD_REQUEST, "bad_request"), "{problem:?}");
    assert_eq!(fleet.audit().await.iter().filter(|e| e.what == "channel.promote").count(), 4);
}

#[tokio::test]
async fn a_catalog_that_is_behind_the_metadata_is_brought_up() {
    let mut fleet = Fleet::start().await;
    let one = image(1, 40);
    fleet.publish("web:1", &one).await;
    fleet.promote("web:1", &one, "dev").await;
    fleet.server.take().unwrap().shutdown().await;
    // As after a death between metadata and catalog: signed, and not in the catalog.
    let catalog = crate::catalog::Catalog::open(fleet.folder()).await.unwrap();
    catalog.forget_everything_signed().await.unwrap();
    catalog.close().await;
    fleet.restart().await;
    let release: Release = fleet.get("/v1/releases/web/1").await;
    assert_eq!(release.channels.len(), 1);
    assert!(release.added > 0);
    let whos: Vec<_> = fleet.audit().await.into_iter().take(2).map(|e| (e.who, e.what)).collect();
    let expected = [("server", "channel.promote"), ("server", "release.publish")];
    assert_eq!(whos, expected.map(|(who, what)| (who.to_owned(), what.to_owned())));
}

#[tokio::test]
async fn two_servers_do_not_share_a_folder() {
    let fleet = Fleet::start().await;
    let error = crate::daemon::Server::start(fleet.config.clone()).await.err().unwrap().to_string();
    assert!(error.contains("another goldsync serve"), "{error}");
    let nowhere = crate::config::Config { data: "/nonexistent/goldsync".into(), ..fleet.config.clone() };
    let error = crate::daemon::Server::start(nowhere).await.err().unwrap().to_string();
    assert!(error.contains("goldsync init"), "{error}");
}

/// Goal: a change of who may sign is in the audit log with its author, wherever the server dies.
#[tokio::test]
async fn a_death_within_a_submission_costs_no_line_of_the_audit_log() {
    let mut fleet = Fleet::start().await;
    let files: super::types::TrustFiles = fleet.get("/v1/trust").await;
    let text = fleet.signer.renew(&files.files, "releases", chrono::Utc::now()).await.unwrap();
    let act = || crate::catalog::Act::new("alice", "trust.submit", "", "192.0.2.1:7");
    let roles = std::collections::BTreeMap::from([("releases".to_owned(), super::trust::text_hash(&text))]);
    let submissions = async |fleet: &Fleet| {
        let audit = fleet.audit().await.into_iter().filter(|entry| entry.what == "trust.submit");
        audit.map(|entry| (entry.who, entry.from, entry.detail)).collect::<Vec<_>>()
    };
    // It died before the metadata changed: nothing was done.
    fleet.server().hub().catalog.intend(&act(), &roles).await.unwrap();
    fleet.restart().await;
    assert_eq!(submissions(&fleet).await, []);
    // It died after.
    let hub = fleet.server().hub().clone();
    hub.catalog.intend(&act(), &roles).await.unwrap();
    hub.trust.submit_roles(&[("releases".to_owned(), text)].into()).await.unwrap();
    drop(hub);
    for _ in 0..2 {
        fleet.restart().await;
        let told = submissions(&fleet).await;
        let [(who, from, detail)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((who.as_str(), from.as_str()), ("alice", "192.0.2.1:7"));
        assert!(detail.starts_with("releases version 2 until ") && detail.ends_with(", recovered"), "{detail}");
    }
    // One that is refused leaves nothing behind.
    let body = json!({ "roles": { "timestamp": "x" } });
    let (status, _): (_, Problem) = fleet.post("/v1/trust", &body).await;
    assert!(status.is_client_error());
    assert!(fleet.server().hub().catalog.intents().await.unwrap().is_empty());
}

#[tokio::test]
async fn roles_are_taken_by_their_signatures_and_recorded_once() {
    let fleet = Fleet::start().await;
    let files: super::types::TrustFiles = fleet.get("/v1/trust").await;
    let text = fleet.signer.renew(&files.files, "releases", chrono::Utc::now()).await.unwrap();
    for _ in 0..2 {
        let body = json!({ "roles": { "releases": text } });
        let (status, taken): (_, Vec<super::types::TrustRole>) = fleet.post("/v1/trust", &body).await;
        assert_eq!((status, taken[0].role.as_str(), taken[0].version), (StatusCode::OK, "releases", 2));
    }
    let acts: Vec<_> = fleet.audit().await.into_iter().filter(|entry| entry.what == "trust.submit").collect();
    assert_eq!(acts.len(), 1, "the same again changes nothing");
    // Two versions on, another's signature, nothing at all.
    let late = fleet.signer.renew(&files.files, "releases", chrono::Utc::now() + chrono::TimeDelta::days(1)).await;
    let forged = text.replace("\"version\":2", "\"version\":3");
    for (body, status, code) in [
        (json!({ "roles": { "releases": late.unwrap() } }), StatusCode::CONFLICT, "conflict"),
        (json!({ "roles": { "releases": forged } }), StatusCode::UNPROCESSABLE_ENTITY, "not_trusted"),
        (json!({ "roles": { "timestamp": text } }), StatusCode::UNPROCESSABLE_ENTITY, "not_trusted"),
        (json!({ "roles": {} }), StatusCode::BAD_REQUEST, "bad_request"),
        (json!({}), StatusCode::BAD_REQUEST, "bad_request"),
    ] {
        let (got, problem): (_, Problem) = fleet.post("/v1/trust", &body).await;
        assert_eq!((got, problem.code.as_str()), (status, code), "{problem:?}");
    }
    // Asked again, the same keys, and nothing uses them yet.
    let (_, one): (_, super::types::OnlineKeys) = fleet.post("/v1/trust/online", &json!({})).await;
    let (_, two): (_, super::types::OnlineKeys) = fleet.post("/v1/trust/online", &json!({})).await;
    assert_eq!((one.snapshot, one.timestamp), (two.snapshot, two.timestamp));
    assert_eq!(fleet.server().hub().trust.versions()["root"], 1);
}

/// Goal: a machine that opens connections and says nothing takes its own share; operators elsewhere notice nothing.
#[tokio::test]
async fn silent_connections_do_not_keep_operators_out() {
    let fleet = Fleet::start().await;
    let api = fleet.server().api_addr();
    let from = async |address: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        socket.connect(api).await.unwrap()
    };
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(from([127, 0, 0, 2]).await);
    }
    let mut hung_up = 0;
    for stream in &mut silent {
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(stream, &mut byte);
        // Whoever has a place is waited for.
        hung_up += usize::from(tokio::time::timeout(std::time::Duration::from_millis(20), read).await.is_ok());
    }
    assert_eq!(hung_up, 80 - 64);
    let _: super::types::Status = fleet.get("/v1/status").await;
    drop(silent);
}

/// Signs the list of releases without these, as the operator's tool does.
async fn removal(fleet: &Fleet, releases: &[&str]) -> Value {
    let files: super::types::TrustFiles = fleet.get("/v1/trust").await;
    let gone: Vec<_> = releases.iter().map(|release| release.parse().unwrap()).collect();
    let role = fleet.signer.sign_removal(&files.files, &gone, chrono::Utc::now()).await.unwrap();
    json!({ "releases": releases, "role": role })
}

#[tokio::test]
async fn a_release_is_pruned_once_nobody_needs_it_and_its_name_stays_taken() {
    let mut fleet = Fleet::start_with(|config| config.store.grace = crate::config::units::Span::seconds(1)).await;
    let (one, two, other) = (image(1, 40), image(2, 300), image(3, 40));
    fleet.publish("web:1", &one).await;
    fleet.publish("web:2", &two).await;
    fleet.publish("web:3", &other).await;
    fleet.promote("web:1", &one, "dev").await;
    let ask = async |body: Value| fleet.post::<Value>("/v1/releases/prune", &body).await;

    let (status, dry) = ask(json!({ "releases": ["web:1", "web:2"] })).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(dry["releases"][0]["needed_by"], json!(["channel dev points at it"]), "{dry}");
    assert_eq!(dry["releases"][1]["needed_by"], json!([]), "{dry}");
    assert!(dry["frees"].as_u64().unwrap() > 300 * 4096, "{dry}");
    let (status, problem) = ask(removal(&fleet, &["web:1", "web:2"]).await).await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    let (status, _) = ask(json!({ "releases": ["web:9"] })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // More or less than what was asked for is not taken.
    for (asked, signed) in [(vec!["web:2"], vec!["web:2", "web:3"]), (vec!["web:2", "web:3"], vec!["web:2"])] {
        let mut body = removal(&fleet, &signed).await;
        body["releases"] = json!(asked);
        let (status, problem) = ask(body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
    }
    let releases: Vec<Release> = fleet.get("/v1/releases").await;
    assert_eq!(releases.len(), 3);

    let stored = fleet.get::<Status>("/v1/status").await.stored;
    let (status, pruned) = ask(removal(&fleet, &["web:2"]).await).await;
    assert_eq!((status, &pruned["frees"]), (StatusCode::OK, &dry["frees"]));
    let releases: Vec<Release> = fleet.get("/v1/releases").await;
    assert_eq!(releases.len(), 2);
    assert!(fleet.audit().await.iter().any(|entry| entry.what == "release.prune" && entry.detail == "web:2"));
    let freed = async || {
        let now = fleet.get::<Status>("/v1/status").await.stored;
        now + dry["frees"].as_u64().unwrap() <= stored
    };
    while !freed().await {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // After a restart, too.
    fleet.restart().await;
    let manifest = fleet.manifest("web:2", &other).await;
    let request = fleet.signed_release(&manifest).await;
    let (status, problem): (_, Problem) = fleet.post("/v1/releases", &request).await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem:?}");
    assert!(problem.message.contains("web:2 is published already"), "{problem:?}");
    let back = fleet.publish("web:2", &two).await;
    assert!(back.added > 300 * 4096);
}

#[tokio::test]
async fn a_death_within_a_pruning_is_made_good() {
    let mut fleet = Fleet::start().await;
    fleet.publish("web:1", &image(1, 40)).await;
    fleet.publish("web:2", &image(2, 40)).await;
    let role = removal(&fleet, &["web:1"]).await["role"].as_str().unwrap().to_owned();
    let act = || crate::catalog::Act::new("alice", "release.prune", "", "192.0.2.1:7");
    let roles = std::collections::BTreeMap::from([("releases".to_owned(), super::trust::text_hash(&role))]);
    // It died before the metadata changed: nothing was done.
    fleet.server().hub().catalog.intend(&act(), &roles).await.unwrap();
    fleet.restart().await;
    assert_eq!(fleet.get::<Vec<Release>>("/v1/releases").await.len(), 2);
    // It died after.
    let hub = fleet.server().hub().clone();
    hub.catalog.intend(&act(), &roles).await.unwrap();
    hub.trust.submit_removal(&role, &["web:1".parse().unwrap()]).await.unwrap();
    drop(hub);
    for _ in 0..2 {
        fleet.restart().await;
        let releases: Vec<Release> = fleet.get("/v1/releases").await;
        assert_eq!(releases.iter().map(|one| one.manifest.release.to_string()).collect::<Vec<_>>(), ["web:2"]);
        let told = fleet.audit().await.into_iter().filter(|entry| entry.what == "release.prune");
        let told: Vec<_> = told.map(|entry| (entry.who, entry.from, entry.detail)).collect();
        assert_eq!(told, [("alice".into(), "192.0.2.1:7".into(), "web:1".into())]);
    }
}
