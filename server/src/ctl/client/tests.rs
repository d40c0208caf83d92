//! The client against small HTTPS servers of its own, each as wrong as its test needs.

use std::sync::atomic::{AtomicU32, Ordering};

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::place::Place;
use super::*;

fn status() -> Call {
    Call::new(Method::GET, ["status"])
}

fn problem(status: u16, code: &str, remedy: Option<&str>) -> Response {
    let body = Problem { code: code.into(), message: format!("it is {code}"), remedy: remedy.map(Into::into) };
    (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
}

#[tokio::test]
async fn the_token_goes_along_and_the_answer_comes_back() {
    let router = axum::Router::new().route(
        "/v1/nodes",
        get(|headers: HeaderMap, uri: axum::http::Uri| async move {
            Json(json!([headers["authorization"].to_str().unwrap(), uri.query().unwrap_or_default()]))
        }),
    );
    let place = Place::serve(router);
    let call = Call::new(Method::GET, ["nodes"]).query("selector", Some("role=a&b".into())).query("channel", None);
    let answer: Vec<String> = place.client().get(&call).await.unwrap();
    assert_eq!(answer, ["Bearer t0ken", "selector=role%3Da%26b"]);
}

#[tokio::test]
async fn a_problem_becomes_an_exit_code_a_sentence_and_a_remedy() {
    for (number, word, code, remedy) in [
        (400, "bad_request", Code::Failed, None),
        (401, "unauthorised", Code::Server, Some("`token` in operator.toml")),
        (403, "forbidden", Code::Server, Some("`token` in operator.toml")),
        (404, "not_found", Code::Failed, None),
        (409, "conflict", Code::Failed, None),
        (422, "not_trusted", Code::NotTrusted, None),
        (500, "internal", Code::Server, Some("log")),
    ] {
        let router = axum::Router::new().route("/v1/status", get(move || async move { problem(number, word, None) }));
        let failure = Place::serve(router).client().get::<Value>(&status()).await.unwrap_err();
        assert_eq!((failure.code, failure.message), (code, format!("it is {word}")));
        match (remedy, failure.remedy) {
            (None, None) => {}
            (Some(words), Some(said)) => assert!(said.contains(words), "{said}"),
            (expected, got) => panic!("{number}: {expected:?} expected, {got:?} got"),
        }
    }
    let router = axum::Router::new().route("/v1/status", get(|| async { problem(409, "conflict", Some("wait")) }));
    let failure = Place::serve(router).client().get::<Value>(&status()).await.unwrap_err();
    assert_eq!(failure.remedy.as_deref(), Some("wait"));
}

#[tokio::test]
async fn not_found_is_an_answer_where_it_may_be_one() {
    let place =
        Place::serve(axum::Router::new().route("/v1/status", get(|| async { problem(404, "not_found", None) })));
    assert_eq!(place.client().find::<Value>(&status()).await, Ok(None));
}

#[tokio::test]
async fn an_answer_that_is_not_goldsync_s_is_shown_as_it_is() {
    let router = axum::Router::new()
        .route("/v1/status", get(|| async { (StatusCode::IM_A_TEAPOT, "<h1>proxy\n says</h1>") }))
        .route("/v1/audit", get(|| async { "[{]" }));
    let place = Place::serve(router);
    let failure = place.client().get::<Value>(&status()).await.unwrap_err();
    assert_eq!(failure.message, "the server answered 418 I'm a teapot: <h1>proxy says</h1>");
    let failure = place.client().get::<Value>(&Call::new(Method::GET, ["audit"])).await.unwrap_err();
    assert!(failure.message.starts_with("the server's answer to GET /v1/audit cannot be read"), "{failure}");
}

/// A route that answers 503 so many times before it answers 200, and the count of calls.
fn moody(busy: u32) -> (axum::Router, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let answer = move || {
        let before = counted.fetch_add(1, Ordering::SeqCst);
        async move { if before < busy { problem(503, "busy", None) } else { Json(json!(7)).into_response() } }
    };
    (axum::Router::new().route("/v1/status", get(answer.clone()).post(answer)), calls)
}

#[tokio::test]
async fn a_busy_server_is_asked_again_but_not_for_ever() {
    let (router, calls) = moody(2);
    assert_eq!(Place::serve(router).client().get::<u32>(&status()).await, Ok(7));
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let (router, calls) = moody(u32::MAX);
    let failure = Place::serve(router).client().get::<u32>(&status()).await.unwrap_err();
    assert_eq!((failure.code, calls.load(Ordering::SeqCst)), (Code::Server, 4));
}

#[tokio::test]
async fn a_broken_call_is_made_again_only_if_that_is_harmless() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let answer = move || {
        let before = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            // The connection ends with the task that served it: the request was read, the answer never comes.
            assert!(!before.is_multiple_of(2), "meant to end the connection");
            Json(json!(7))
        }
    };
    let place = Place::serve(axum::Router::new().route("/v1/status", get(answer.clone()).post(answer)));
    assert_eq!(place.client().get::<u32>(&status()).await, Ok(7));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    let post = Call::new(Method::POST, ["status"]);
    let failure = place.client().get::<u32>(&post).await.unwrap_err();
    assert_eq!((failure.code, calls.load(Ordering::SeqCst)), (Code::Server, 3));
    assert!(failure.message.starts_with("cannot reach the server at https://127.0.0.1:"), "{failure}");
    assert_eq!(place.client().get::<u32>(&post).await, Ok(7));
    assert_eq!(place.client().get::<u32>(&post.idempotent()).await, Ok(7));
    assert_eq!(calls.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let place = Place::serve(axum::Router::new());
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = place.client_at(&format!("https://{gone}"), place.folder.path());
    let failure = client.get::<Value>(&status()).await.unwrap_err();
    assert_eq!(failure.code, Code::Server);
    assert!(failure.message.contains(&format!("https://{gone}")), "{failure}");
    assert!(failure.message.to_lowercase().contains("refused"), "{failure}");
    assert!(!failure.message.contains("t0ken"));
}

#[tokio::test]
async fn another_fleet_s_server_is_a_stranger() {
    let (ours, theirs) = (Place::serve(axum::Router::new()), Place::serve(axum::Router::new()));
    let client = ours.client_at(&format!("https://{}", theirs.address), ours.folder.path());
    let failure = client.get::<Value>(&status()).await.unwrap_err();
    assert_eq!(failure.code, Code::NotTrusted, "{failure}");
    assert!(failure.message.contains("is not this fleet's server"), "{failure}");
    // The right CA, but a name that is not in the certificate.
    let client = ours.client_at(&format!("https://localhost.localdomain:{}", ours.address.port()), ours.folder.path());
    if tokio::net::lookup_host(("localhost.localdomain", 1)).await.is_ok() {
        assert_eq!(client.get::<Value>(&status()).await.unwrap_err().code, Code::NotTrusted);
    }
}

#[tokio::test]
async fn lines_may_come_in_any_pieces() {
    let router = axum::Router::new().route(
        "/v1/status",
        post(|| async {
            let pieces = ["{\"a\":1}\n{\"a\"", ":2}", "\n\n \n{\"a\":3}\n{\"a\":"];
            Body::from_stream(futures::stream::iter(pieces.map(Ok::<_, std::io::Error>)))
        }),
    );
    let place = Place::serve(router);
    let mut lines = place.client().lines(&Call::new(Method::POST, ["status"])).await.unwrap();
    let mut seen = Vec::new();
    while let Some(value) = lines.next::<Value>().await.unwrap() {
        seen.push(value["a"].as_u64().unwrap());
    }
    // The last line was cut off: it does not count.
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test]
async fn a_line_that_is_no_event_is_an_error() {
    let router = axum::Router::new().route("/v1/status", get(|| async { "what?\n" }));
    let place = Place::serve(router);
    let mut lines = place.client().lines(&status()).await.unwrap();
    assert_eq!(lines.next::<Value>().await.unwrap_err().code, Code::Server);
}

#[test]
fn pauses_grow_and_stay_bounded() {
    for before in 0..40 {
        let longest = Duration::from_millis(250).saturating_mul(1 << before.min(5));
        assert!(pause(before) >= longest / 2 && pause(before) <= longest, "{before}");
    }
}
