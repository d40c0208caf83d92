//! Who this node is, what it believes, and whether the server is there.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use super::Finding;
use crate::config::Config;
use crate::identity::IdentityError;
use crate::node::Node;
use crate::trust::{Trust, TrustError};
use crate::update::{self, UpdateError, Verdict};

/// Signed metadata that expires within this should have been renewed.
const SOON: TimeDelta = TimeDelta::days(2);

const ENROL: &str =
    "`goldsync token create` on the operator's machine, `goldsync-agent enroll --server HOST --token …` here";

/// A machine without a state folder.
pub(super) fn not_enrolled() -> Finding {
    Finding::stops("identity", "this machine is no node yet", ENROL)
}

/// The certificate, and by it the clock.
pub(super) fn identity(node: &Node, now: DateTime<Utc>) -> Finding {
    let identity = match node.identity() {
        Ok(identity) => identity,
        Err(IdentityError::NotEnrolled { .. }) => return not_enrolled(),
        Err(error) => return Finding::error("identity", &error, ENROL),
    };
    let until = identity.expires().format("%Y-%m-%d %H:%M UTC");
    let written = std::fs::metadata(node.journal.state().join("identity.pem")).and_then(|meta| meta.modified());
    if let Ok(written) = written
        && now + TimeDelta::hours(1) < DateTime::<Utc>::from(written)
    {
        let says =
            format!("the clock says {}, and the certificate was written after that", now.format("%Y-%m-%d %H:%M UTC"));
        return Finding::stops("identity", says, "set the clock");
    }
    if identity.expires() <= now {
        let says = format!("the certificate of {} expired at {until}", identity.node());
        return Finding::stops(
            "identity",
            says,
            "look at the clock; if it is right, enrol the node again, with a new token and --force",
        );
    }
    if identity.renewal_due(now) {
        let says =
            format!("the certificate of {} is good until {until}, and should have been renewed", identity.node());
        return Finding::warning(
            "identity",
            says,
            "it is at the next connection: see to it that the server can be reached",
        );
    }
    Finding::fine("identity", format!("{}, until {until}", identity.node()))
}

/// The local copy of signed metadata. An update asks for newer first, so that what is too old here alone stops nothing.
pub(super) async fn metadata(node: &Node, now: DateTime<Utc>) -> Finding {
    let trust = match Trust::open(&node.trust_dir()) {
        Ok(trust) => trust,
        Err(TrustError::NoRoot) => return Finding::stops("metadata", "there is no root of trust", ENROL),
        Err(error) => return Finding::error("metadata", &error, "enrol the node again"),
    };
    let cure = "an update asks the server for newer: `goldsync-agent check`";
    match (trust.check_at(now).await, trust.check_at(now + SOON).await) {
        (Ok(()), Ok(())) => Finding::fine("metadata", "signed, and not expired"),
        (Ok(()), Err(error)) => {
            let says = format!("in two days this will be so: {error}");
            Finding::warning("metadata", says, "see to it that the server runs, and can be reached")
        }
        (Err(TrustError::Nothing), _) => Finding::warning("metadata", "nothing but the root is here yet", cure),
        (Err(error @ TrustError::Expired { .. }), _) => Finding::error("metadata", &error, cure).softened(),
        (Err(error), _) => Finding::error("metadata", &error, cure),
    }
}

/// Asks for news, as an update begins.
pub(super) async fn server(config: Config, stop: CancellationToken) -> Finding {
    let asked = async {
        let node = Node::new(config)?;
        let link = Arc::new(node.connect().await?);
        let mut ctx = node.context(Some(link.clone()), Arc::new(|_| {}), stop)?;
        let check = update::check(&mut ctx).await;
        link.close().await;
        Ok::<_, Failed>(check?)
    };
    match asked.await {
        Ok(check) => {
            let release = check.target.release;
            Finding::fine(
                "server",
                match check.verdict {
                    Verdict::UpToDate => format!("the channel is at {release}, which runs"),
                    Verdict::Staged => format!("the channel is at {release}, which is staged"),
                    Verdict::Activated => format!("the channel is at {release}, which the next start runs"),
                    Verdict::Update => format!("the channel is at {release}, which an update would go to"),
                    Verdict::Held => format!("the channel is at {release}, which is held back here"),
                },
            )
        }
        Err(Failed::Update(UpdateError::NoRelease { channel })) => {
            let says = format!("channel {channel} has no release yet");
            Finding::warning(
                "server",
                says,
                format!("`goldsync promote NAME:VERSION {channel}` on the operator's machine"),
            )
        }
        Err(error) => Finding::error("server", &error, "see what it names; `goldsync-agent check` asks again"),
    }
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Node(#[from] crate::node::NodeError),
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    #[error(transparent)]
    Update(#[from] UpdateError),
}

#[cfg(test)]
mod tests {
    use super::super::Verdict as How;
    use super::*;
    use crate::link::testing::Pki;
    use crate::node::testing::node;

    fn at(year: i32) -> DateTime<Utc> {
        format!("{year}-06-01T00:00:00Z").parse().unwrap()
    }

    #[test]
    fn an_identity_is_held_against_the_clock() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        assert_eq!(identity(&node, Utc::now()), not_enrolled());
        Pki::new().identity("n1", 2020, 2100).store(node.journal.state()).unwrap();
        let found = identity(&node, Utc::now());
        assert!(found.verdict == How::Fine && found.says.contains("n1"), "{found:?}");
        assert_eq!(identity(&node, at(2090)).verdict, How::Warning);
        assert!(identity(&node, at(2101)).says.contains("expired"));
        assert_eq!(identity(&node, at(2101)).verdict, How::Stops);
        let behind = identity(&node, at(2021));
        assert!(
            behind.says.contains("the clock says 2021") && behind.cure.as_deref() == Some("set the clock"),
            "{behind:?}"
        );
        std::fs::write(node.journal.state().join("identity.pem"), "torn").unwrap();
        assert_eq!(identity(&node, Utc::now()).verdict, How::Stops);
    }

    #[tokio::test]
    async fn a_node_without_a_root_believes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let found = metadata(&node(folder.path()), Utc::now()).await;
        assert!(found.verdict == How::Stops && found.cure.unwrap().contains("enroll"));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_stops() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        Pki::new().identity("n1", 2020, 2100).store(node.journal.state()).unwrap();
        let found = server((*node.config).clone(), CancellationToken::new()).await;
        assert_eq!((found.check, found.verdict), ("server", How::Stops), "{found:?}");
    }
}
