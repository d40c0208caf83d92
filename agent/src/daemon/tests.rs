//! The whole daemon against a server of a few lines.

use chrono::Datelike;
use goldsync_proto::refusal::close;
use goldsync_proto::release::Word;
use goldsync_proto::wire::{Answer, Hello, NodeSays, Outcome, Phase, Request, ServerSays, frame};
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};

use super::*;
use crate::config::Config;
use crate::link::testing::{Pki, read, request};
use crate::node::testing::node;

struct Stage {
    folder: tempfile::TempDir,
    pki: Pki,
    server: Endpoint,
    node: Node,
    stop: CancellationToken,
}

impl Stage {
    /// A node whose server is ours. It is enrolled with a certificate of these years.
    fn new(years: Option<(i32, i32)>) -> Self {
        let (folder, pki) = (tempfile::tempdir().unwrap(), Pki::new());
        let server = Endpoint::server(pki.server(), "127.0.0.1:0".parse().unwrap()).unwrap();
        let plain = node(folder.path());
        let address = server.local_addr().unwrap().to_string().parse().unwrap();
        let node = Node::new(Config { server: Some(address), ..(*plain.config).clone() }).unwrap();
        let stage = Self { folder, pki, server, node, stop: CancellationToken::new() };
        if let Some((from, until)) = years {
            stage.enrol(from, until);
        }
        stage
    }

    fn enrol(&self, from: i32, until: i32) {
        self.pki.identity("one", from, until).store(self.node.journal.state()).unwrap();
    }

    fn start(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(run(self.node.clone(), self.stop.clone()))
    }

    async fn accept(&self) -> Connection {
        self.server.accept().await.unwrap().await.unwrap()
    }

    /// Accepts a connection and welcomes its control stream.
    async fn greet(&self) -> (Connection, Hello, SendStream, RecvStream) {
        let connection = self.accept().await;
        let (asked, mut send, recv) = request(&connection).await;
        let Request::Control { hello } = asked else { panic!("{asked:?}") };
        send.write_all(&frame(&Answer::Welcome { version: "0".into() }).unwrap()).await.unwrap();
        (connection, hello, send, recv)
    }
}

#[tokio::test]
async fn an_order_is_answered_and_a_lost_connection_comes_back() {
    let stage = Stage::new(Some((2020, 4000)));
    let daemon = stage.start();
    let (connection, hello, mut send, mut recv) = stage.greet().await;
    assert!(hello.daemon && hello.channel.as_str() == "qa" && hello.report.phase == Phase::Idle);
    send.write_all(&frame(&ServerSays::Sync { order: 7, now: true }).unwrap()).await.unwrap();
    // The node has no signed metadata, so that every update fails: what matters here is that the order is answered.
    let answer = loop {
        match read::<NodeSays>(&mut recv).await {
            NodeSays::SyncDone { order, outcome } => break (order, outcome),
            NodeSays::Report { report } => assert_ne!(report.phase, Phase::Fetch),
            other => panic!("{other:?}"),
        }
    };
    let expected =
        |outcome: &Outcome| matches!(outcome, Outcome::Failed { error } if error.contains("no trusted root"));
    assert!(answer.0 == 7 && expected(&answer.1), "{answer:?}");
    connection.close(VarInt::from_u32(close::SHUTDOWN), b"restart");
    let (again, hello, _send, _recv) = stage.greet().await;
    assert_eq!(hello.report.phase, Phase::Failed);
    assert!(hello.report.error.is_some());
    stage.stop.cancel();
    daemon.await.unwrap();
    assert!(
        matches!(again.closed().await, quinn::ConnectionError::ApplicationClosed(closed) if closed.error_code == VarInt::from_u32(close::DONE))
    );
}

#[tokio::test]
async fn a_machine_that_is_enrolled_while_the_daemon_waits_connects_at_once() {
    let stage = Stage::new(None);
    let daemon = stage.start();
    // However long it has waited by now: without the identity it does not knock.
    tokio::task::yield_now().await;
    stage.enrol(2020, 4000);
    let (_connection, hello, _send, _recv) = stage.greet().await;
    assert!(hello.daemon);
    stage.stop.cancel();
    daemon.await.unwrap();
}

#[tokio::test]
async fn what_another_run_changed_is_reported() {
    let stage = Stage::new(Some((2020, 4000)));
    let daemon = stage.start();
    let (_connection, _, _send, mut recv) = stage.greet().await;
    let image = goldsync_proto::digest::ImageId::of(b"x");
    std::fs::write(stage.folder.path().join("a"), "x").unwrap();
    std::os::unix::fs::symlink(stage.folder.path().join("a"), stage.folder.path().join("current")).unwrap();
    stage.node.journal.set_proven(crate::slot::SlotName::A, image, &"web:1".parse().unwrap(), 1).unwrap();
    stage.node.journal.set_drift(image, 3).unwrap();
    loop {
        let NodeSays::Report { report } = read(&mut recv).await else { continue };
        if report.drifted == Some(3) {
            assert_eq!(report.active.unwrap().image, Some(image));
            break;
        }
    }
    stage.stop.cancel();
    daemon.await.unwrap();
}

#[tokio::test]
async fn an_ageing_certificate_is_renewed() {
    // Its last ten years: more than two thirds of its life are over.
    let stage = Stage::new(Some((1970, chrono::Utc::now().year() + 10)));
    let old = stage.node.identity().unwrap();
    let daemon = stage.start();
    let (connection, _, _send, _recv) = stage.greet().await;
    loop {
        let (asked, mut send, _recv) = request(&connection).await;
        let Request::Renew { csr } = asked else { continue };
        let name: Word = "one".parse().unwrap();
        let certificate = stage.pki.certificate(&csr, &name, 2020, 4000);
        send.write_all(&frame(&Answer::Renewed { certificate }).unwrap()).await.unwrap();
        send.finish().unwrap();
        break;
    }
    let fresh = loop {
        let now = stage.node.identity().unwrap();
        if now.certificate() != old.certificate() {
            break now;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(!fresh.renewal_due(chrono::Utc::now()));
    assert_eq!(fresh.node(), old.node());
    stage.stop.cancel();
    daemon.await.unwrap();
}

#[test]
fn who_is_not_wanted_tries_rarely() {
    let server = || "golden:7400".to_owned();
    let revoked = LinkError::Closed { server: server(), code: close::REVOKED.into(), reason: String::new() };
    let gone = LinkError::Closed { server: server(), code: close::SHUTDOWN.into(), reason: String::new() };
    assert!(SessionError::from(revoked).unwanted());
    assert!(!SessionError::from(gone).unwanted());
    assert!(SessionError::Node(NodeError::NoServer).unwanted());
}
