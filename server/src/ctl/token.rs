//! `goldsync token create`: what a machine needs to become a node, in one word and one command.
//!
//! The two hashes in a token come from the operator's own folder and never from the server: a new node trusts what the
//! operator trusts, whatever the server says at that moment.

use serde::Serialize;

use super::fail::Outcome;
use super::operator::join_token;
use super::{Desk, screen, show};
use crate::api::types::TokenRequest;
use crate::cli::{TokenCreate, label_map};
use crate::trust::Operator as Signer;

/// What was made.
#[derive(Debug, Serialize)]
pub struct Created {
    /// For the audit log; no secret.
    pub id: String,
    /// What was asked for; a secret.
    pub token: String,
    /// When it ends.
    pub expires_at: String,
    /// For how many nodes it is good.
    pub uses: u32,
    /// What the node dials.
    pub server: String,
    /// To be run on the new node.
    pub command: String,
}

/// `goldsync token create`
pub async fn create(desk: &Desk, args: &TokenCreate) -> Outcome {
    let created = make(desk, args).await?;
    if args.json.json { screen::print_json(&created) } else { screen::print(&text(&created)) }
}

/// Makes a token, and the command that uses it.
pub async fn make(desk: &Desk, args: &TokenCreate) -> Outcome<Created> {
    let (authority, root) = (desk.operator.authority()?, Signer::open(&desk.operator.folder)?.root()?);
    let server = match &args.server {
        Some(server) => server.clone(),
        None => desk.operator.nodes_dial()?,
    };
    let request = TokenRequest {
        valid_s: args.valid.map(|valid| valid.as_secs()),
        uses: args.uses,
        labels: label_map(&args.labels)?,
    };
    desk.interrupted.leaves("a token may have been made that nobody knows; it expires by itself");
    let made = desk.client.create_token(&request).await?;
    let token = join_token(&made.secret, &authority, root.as_bytes());
    let command = format!("goldsync-agent enroll --server {server} --token {token}");
    Ok(Created { id: made.id, token, expires_at: made.expires_at, uses: args.uses.unwrap_or(1), server, command })
}

fn text(created: &Created) -> String {
    let good_for =
        if created.uses == 1 { "one node".into() } else { show::count(created.uses.into(), "node", "nodes") };
    format!(
        "{}\n\ngood for {good_for} until {} UTC; it is not shown again. On the new node:\n  {}",
        created.token,
        show::time(&created.expires_at),
        created.command
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::Digest;
    use rustls::pki_types::CertificateDer;

    #[test]
    fn a_token_joins_the_secret_and_what_the_operator_trusts() {
        let token = join_token("s3cret", &CertificateDer::from(b"certificate".to_vec()), b"root");
        assert_eq!(token, format!("gs1.s3cret.{}.{}", Digest::of(b"certificate"), Digest::of(b"root")));
        assert_eq!(token.split('.').count(), 4);
    }

    #[test]
    fn the_token_stands_alone_on_the_first_line() {
        let created = Created {
            id: "t1".into(),
            token: "gs1.x".into(),
            expires_at: "2026-11-21T10:00:00Z".into(),
            uses: 20,
            server: "gold:7400".into(),
            command: "goldsync-agent enroll --server gold:7400 --token gs1.x".into(),
        };
        let text = text(&created);
        assert_eq!(text.lines().next(), Some("gs1.x"));
        assert!(text.contains("good for 20 nodes until 2026-11-21 10:00:00 UTC"), "{text}");
        assert!(text.ends_with(&created.command), "{text}");
    }
}
