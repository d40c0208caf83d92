//! A link against a server of a few lines, on loopback.

use std::future::Future;

use goldsync_proto::digest::Digest;
use goldsync_proto::refusal::Reason;
use goldsync_proto::release::Word;
use goldsync_proto::wire::{NodeSays, Report, ServerSays};

use super::testing::{Pki, read, request};
use super::*;

/// Serves one connection with `handle` and gives the link to it.
async fn linked<F, R>(handle: F) -> Link
where
    F: FnOnce(Connection) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    linked_with(Patience::default(), handle).await
}

/// The same, for a node of less patience.
async fn linked_with<F, R>(patience: Patience, handle: F) -> Link
where
    F: FnOnce(Connection) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let pki = Pki::new();
    let server = Endpoint::server(pki.server(), "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = Address { host: "127.0.0.1".into(), port: server.local_addr().unwrap().port() };
    tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        handle(connection.clone()).await;
        connection.closed().await;
        server.wait_idle().await;
    });
    Link::connect(&address, pki.client(), patience).await.unwrap()
}

fn object() -> Request {
    Request::Object { name: Digest::of(b"x"), offset: 0, length: 5 }
}

#[tokio::test]
async fn an_answer_comes_with_its_body_and_bytes_are_counted() {
    let link = linked(|connection| async move {
        let (asked, mut send, _recv) = request(&connection).await;
        assert_eq!(asked, object());
        send.write_all(&frame(&Answer::Object { length: 5 }).unwrap()).await.unwrap();
        send.write_all(b"hello").await.unwrap();
        send.finish().unwrap();
    })
    .await;
    let before = link.handshake();
    assert!(before.received > 0 && before.sent >= 1200, "{before:?}");
    assert!(!link.was_asked());
    let (answer, mut body) = link.ask(&object()).await.unwrap();
    assert_eq!(answer, Answer::Object { length: 5 });
    assert_eq!(body.bytes(5, 5, "an object").await.unwrap(), b"hello");
    body.end("an object").await.unwrap();
    assert!(link.was_asked());
    let after = link.wire().since(before);
    assert!(after.received > 5 && after.sent > 32, "{after:?}");
    link.close().await;
}

#[tokio::test]
async fn a_refusal_is_an_error_with_its_reason() {
    let link = linked(|connection| async move {
        let (_, mut send, _recv) = request(&connection).await;
        let refusal = Refusal::new(Reason::NotFound, "object 1234");
        send.write_all(&frame(&Answer::Refused { refusal }).unwrap()).await.unwrap();
        send.finish().unwrap();
    })
    .await;
    let error = link.ask(&object()).await.unwrap_err();
    assert!(error.to_string().contains("nothing is stored under that name: object 1234"), "{error}");
    assert!(!error.revoked());
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_named() {
    let too_long = ((64 << 10) + 1_u32).to_le_bytes().to_vec();
    let cut = [&9_u32.to_le_bytes()[..], b"{\"a"].concat();
    let no_json = [&3_u32.to_le_bytes()[..], b"???"].concat();
    for (bytes, expected) in [(too_long, "65537"), (cut, "ends after 3 of 9 bytes"), (no_json, "could not be read")] {
        let link = linked(move |connection| async move {
            let (_, mut send, _recv) = request(&connection).await;
            send.write_all(&bytes).await.unwrap();
            send.finish().unwrap();
        })
        .await;
        let error = link.ask(&object()).await.unwrap_err();
        assert!(matches!(error, LinkError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_body_is_held_to_its_length() {
    let link = linked(|connection| async move {
        for _ in 0..3 {
            let (_, mut send, _recv) = request(&connection).await;
            send.write_all(&frame(&Answer::Object { length: 5 }).unwrap()).await.unwrap();
            send.write_all(b"hello").await.unwrap();
            send.finish().unwrap();
        }
    })
    .await;
    let (_, mut body) = link.ask(&object()).await.unwrap();
    let error = body.bytes(6, 6, "an object").await.unwrap_err().to_string();
    assert!(error.contains("an object ends after 5 of 6 bytes"), "{error}");
    let (_, mut body) = link.ask(&object()).await.unwrap();
    let error = body.bytes(6, 5, "an object").await.unwrap_err().to_string();
    assert!(error.contains("6 bytes, at most 5 allowed"), "{error}");
    let (_, mut body) = link.ask(&object()).await.unwrap();
    body.bytes(4, 5, "an object").await.unwrap();
    assert!(body.end("an object").await.unwrap_err().to_string().contains("bytes follow the end"));
}

/// A second of silence, or a kilobyte in a second.
fn hasty() -> Patience {
    let second = Duration::from_secs(1);
    Patience { silence: second, slowest: Rate { bytes: 1024, over: second } }
}

#[tokio::test]
async fn bytes_that_trickle_are_given_up() {
    // A byte comes often enough to defeat any limit on silence: in a frame, then in a body.
    let trickle = |whole: usize| {
        move |connection: Connection| async move {
            let (_, mut send, _recv) = request(&connection).await;
            let answer = frame(&Answer::Object { length: 5000 }).unwrap();
            let (first, rest) = answer.split_at(whole.min(answer.len()));
            send.write_all(first).await.unwrap();
            for byte in rest.iter().chain(std::iter::repeat(&7)) {
                if send.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
        }
    };
    let link = linked_with(hasty(), trickle(1)).await;
    let error = link.ask(&object()).await.unwrap_err();
    assert!(matches!(error, LinkError::Slow { what: "the answer", .. }) && error.exit_code() == 4, "{error}");
    let link = linked_with(hasty(), trickle(usize::MAX)).await;
    let (_, mut body) = link.ask(&object()).await.unwrap();
    let error = body.bytes(5000, 5000, "an object").await.unwrap_err().to_string();
    for word in [
        "slow retrieval",
        "B/s arrived while an object was due",
        "`limits.slowest` is 1 KiB/s over 1 s",
        "lower the limit",
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[tokio::test]
async fn silence_is_given_up_and_a_server_that_thinks_is_not_called_slow() {
    let link = linked_with(hasty(), |connection| async move {
        for think in [700, 700, 700] {
            let (_, mut send, _recv) = request(&connection).await;
            tokio::time::sleep(Duration::from_millis(think)).await;
            send.write_all(&frame(&Answer::Object { length: 5 }).unwrap()).await.unwrap();
            send.write_all(b"hello").await.unwrap();
            send.finish().unwrap();
        }
        let (_, mut send, _recv) = request(&connection).await;
        send.write_all(&frame(&Answer::Object { length: 5 }).unwrap()).await.unwrap();
        connection.closed().await;
    })
    .await;
    for _ in 0..3 {
        let (_, mut body) = link.ask(&object()).await.unwrap();
        assert_eq!(body.bytes(5, 5, "an object").await.unwrap(), b"hello");
    }
    let (_, mut body) = link.ask(&object()).await.unwrap();
    let error = body.bytes(5, 5, "an object").await.unwrap_err();
    // The second of silence is also a count that brought too little: whichever is full first.
    assert!(matches!(error, LinkError::Stalled { .. } | LinkError::Slow { .. }), "{error}");
}

#[tokio::test]
async fn the_control_stream_speaks_both_ways_and_skips_what_it_does_not_know() {
    let channel: Word = "qa".parse().unwrap();
    let moved = ServerSays::Moved { channel: channel.clone() };
    let link = linked({
        let moved = moved.clone();
        |connection| async move {
            let (asked, mut send, mut recv) = request(&connection).await;
            assert!(matches!(asked, Request::Control { hello } if hello.daemon));
            send.write_all(&frame(&Answer::Welcome { version: "9.9".into() }).unwrap()).await.unwrap();
            send.write_all(&frame(&serde_json::json!({"say": "sing", "tune": 3})).unwrap()).await.unwrap();
            send.write_all(&frame(&moved).unwrap()).await.unwrap();
            let said: NodeSays = read(&mut recv).await;
            assert!(matches!(said, NodeSays::Report { .. }));
            send.finish().unwrap();
        }
    })
    .await;
    let report = Report::default();
    let hello =
        Hello { version: "1".into(), channel, labels: Default::default(), daemon: true, report: report.clone() };
    let control = link.control(hello).await.unwrap();
    assert_eq!(control.version(), "9.9");
    let (mut mouth, mut ear) = control.split();
    assert_eq!(ear.hear().await.unwrap(), Some(moved));
    mouth.say(&NodeSays::Report { report }).await.unwrap();
    assert_eq!(ear.hear().await.unwrap(), None);
}

#[tokio::test]
async fn a_revoked_node_is_told_so() {
    let link = linked(|connection| async move {
        let _ = request(&connection).await;
        connection.close(VarInt::from_u32(close::REVOKED), b"by the operator");
    })
    .await;
    let error = link.ask(&object()).await.unwrap_err();
    assert!(error.revoked(), "{error}");
    assert!(error.to_string().contains("this node was revoked") && error.to_string().contains("by the operator"));
    assert!(link.closed().await.revoked());
}

#[tokio::test]
async fn a_server_of_another_fleet_is_refused() {
    let server = Endpoint::server(Pki::new().server(), "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = Address { host: "localhost".into(), port: server.local_addr().unwrap().port() };
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let _ = incoming.await;
        }
    });
    let error =
        Link::connect(&Address { host: "127.0.0.1".into(), ..address }, Pki::new().client(), Patience::default())
            .await
            .unwrap_err();
    assert!(matches!(error, LinkError::Untrusted { .. }) && error.exit_code() == 3, "{error}");
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_named() {
    let address = Address { host: "no-such-host.invalid".into(), port: 7400 };
    let error = Link::connect(&address, Pki::new().client(), Patience::default()).await.unwrap_err();
    assert!(
        matches!(error, LinkError::Resolve { .. }) && error.to_string().contains("no-such-host.invalid"),
        "{error}"
    );
}
