//! The control stream: what the server has to say, and how the node is.
//!
//! Reader and writer are two loops that do not wait for each other; either one's end is the stream's end. The writer
//! takes from an outbox that nobody waits for (see `roster`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use goldsync_proto::refusal::{Reason, Refusal, close};
use goldsync_proto::release::check_labels;
use goldsync_proto::wire::{Answer, Hello, NodeSays, ServerSays, unframe};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;

use super::Session;
use super::frame::{self, StreamError};
use super::identify::{Node, Peer};
use crate::roster::Joined;

/// A node's reports are taken at this pace; what comes faster waits in the node, by QUIC's flow control.
const REPORT_EVERY: Duration = Duration::from_millis(10);

impl Session {
    pub(super) async fn control(self: Arc<Self>, hello: Hello, mut send: SendStream, mut recv: RecvStream) {
        let Peer::Node(node) = &self.peer else {
            let refusal = Refusal::new(Reason::NotEnrolled, "only a node has a control stream");
            return self.refuse(&mut send, refusal).await;
        };
        let daemon = hello.daemon;
        let mut inbox = match self.join(node, hello) {
            Ok(inbox) => inbox,
            Err(refusal) => return self.refuse(&mut send, refusal).await,
        };
        let ended = tokio::select! {
            ended = self.write_all(node, daemon, &mut inbox, &mut send) => ended,
            ended = self.read_all(node, &mut recv) => ended,
            () = self.quit.cancelled() => Ok(()),
        };
        node.admitted.leave();
        match ended {
            Ok(()) => {
                let _ = send.finish();
            }
            Err(StreamError::Gone) => {}
            Err(error) => {
                tracing::info!(node = %node.name(), %error, "control stream given up");
                self.connection.close(close::PROTOCOL.into(), error.to_string().as_bytes());
            }
        }
    }

    fn join(&self, node: &Node, hello: Hello) -> Result<mpsc::Receiver<ServerSays>, Refusal> {
        node.check_time()?;
        let bad = |detail: String| Refusal::new(Reason::BadRequest, detail);
        let mut labels = hello.labels;
        labels.extend(node.fixed_labels.clone());
        check_labels(&labels).map_err(|error| bad(error.to_string()))?;
        let joined = Joined {
            channel: hello.channel,
            labels,
            version: hello.version.chars().take(64).collect(),
            daemon: hello.daemon,
            report: hello.report.clone(),
        };
        let inbox = node.admitted.join(joined);
        let inbox = inbox.ok_or_else(|| bad("this connection has a control stream already, or was given up".into()))?;
        self.hub.orders.heard(node.name(), &hello.report);
        tracing::info!(node = %node.name(), daemon = hello.daemon, from = self.from(), "connected");
        Ok(inbox)
    }

    /// Ends when the roster lets go of this stream: replaced, revoked, or not read.
    async fn write_all(
        &self,
        node: &Node,
        daemon: bool,
        inbox: &mut mpsc::Receiver<ServerSays>,
        send: &mut SendStream,
    ) -> Result<(), StreamError> {
        let patience = self.patience();
        let welcome = Answer::Welcome { version: env!("CARGO_PKG_VERSION").to_owned() };
        frame::write_frame(send, &welcome, patience).await?;
        // Asked for after the outbox is in the roster: an order given in between comes twice and is told once.
        let mut told = HashSet::new();
        let open = if daemon { self.hub.orders.open_for(node.name()) } else { Vec::new() };
        for say in open {
            told.extend(say.order());
            frame::write_frame(send, &say, patience).await?;
        }
        while let Some(say) = inbox.recv().await {
            if say.order().is_some_and(|order| !told.insert(order)) {
                continue;
            }
            frame::write_frame(send, &say, patience).await?;
        }
        Ok(())
    }

    async fn read_all(&self, node: &Node, recv: &mut RecvStream) -> Result<(), StreamError> {
        while let Some(json) = frame::next_frame(recv, self.patience()).await? {
            match unframe::<NodeSays>(&json) {
                Ok(NodeSays::Report { report }) => {
                    self.hub.orders.heard(node.name(), &report);
                    node.admitted.report(report);
                }
                Ok(NodeSays::SyncDone { order, outcome }) => self.hub.orders.done(node.name(), order, outcome),
                Ok(_) => {}
                // A newer agent may say what this server does not know yet; anything else is no message at all.
                Err(error) => say_is_unknown(&json).then_some(()).ok_or(error)?,
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
        Ok(())
    }
}

/// Whether this is a message whose kind is not known here.
fn say_is_unknown(json: &[u8]) -> bool {
    let known = ["report", "sync_done"];
    let say = serde_json::from_slice::<serde_json::Value>(json)
        .ok()
        .and_then(|value| value.get("say")?.as_str().map(str::to_owned));
    say.is_some_and(|say| !known.contains(&say.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_agents_words_are_told_from_noise() {
        for (json, unknown) in [
            (r#"{"say":"mood","value":7}"#, true),
            (r#"{"say":"report","report":7}"#, false),
            (r#"{"mood":7}"#, false),
            (r#"{"say":7}"#, false),
            ("noise", false),
        ] {
            assert_eq!(say_is_unknown(json.as_bytes()), unknown, "{json}");
        }
    }
}
