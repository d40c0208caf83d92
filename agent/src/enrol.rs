//! Enrolment: a machine with a token becomes a node.
//!
//! ```text
//! token ─▶ connect (the CA must be the token's) ─▶ STATE/enrol.key, request ─▶ certificate, CA, root (held against the token)
//!       ─▶ STATE/trust ─▶ STATE/server.json ─▶ STATE/identity.pem     in this order: the identity comes last
//! ```
//! A crash before the last step, or an answer that is lost, leaves a machine that is no node yet. It asks again with the
//! same token and the same key, and the server gives it the node that it is.

use goldsync_proto::release::Word;
use goldsync_proto::wire::{Answer, Request};

use crate::config::Address;
use crate::identity::{Identity, IdentityError, Token, TokenError};
use crate::journal::JournalError;
use crate::link::{Link, LinkError};
use crate::node::{Node, NodeError};
use crate::trust::{Trust, TrustError};

mod key;

/// Why a machine did not become a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// It is one already.
    #[error("this machine is the node {node} already, until {expires}; --force gives it a new identity")]
    Already {
        /// Its name.
        node: Word,
        /// When its certificate expires.
        expires: String,
    },
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The key, the certificate or the server's answer.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The root of signed metadata.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The server.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The state folder.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The configuration.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Makes `node` a node of the fleet that `token` is of; returns its name. `force` replaces what it was before.
pub async fn enrol(
    node: &Node,
    server: &Address,
    token: &str,
    name: Option<Word>,
    force: bool,
) -> Result<Word, EnrolError> {
    let token: Token = token.parse()?;
    let _lock = node.journal.lock()?;
    match node.identity() {
        Ok(identity) if !force => {
            let expires = identity.expires().format("%Y-%m-%d %H:%M UTC").to_string();
            return Err(EnrolError::Already { node: identity.node().clone(), expires });
        }
        // Damaged or replaced on purpose: what it was does not matter any more.
        _ => {}
    }
    let link = Link::connect(server, token.quic_config()?, node.config.limits.patience).await?;
    let state = node.journal.state();
    let key = key::keep(state, &token)?;
    let request = Request::Enrol {
        token: token.secret.clone(),
        csr: key.request()?,
        name: name.unwrap_or_else(default_name),
        labels: node.config.labels.clone(),
    };
    let (answer, _) = link.ask(&request).await?;
    let Answer::Enrolled { node: given, certificate, authority, root } = answer else {
        let why = "it answers an enrolment with something else".to_owned();
        return Err(LinkError::Protocol { server: server.to_string(), why }.into());
    };
    link.close().await;
    token.check_authority(&authority)?;
    token.check_root(&root)?;
    let identity = Identity::new(key, &certificate, &authority)?;
    Trust::init(&node.trust_dir(), &root)?;
    node.set_server(server)?;
    identity.store(state)?;
    if let Err(error) = key::forget(state) {
        // Of no use without its token, and replaced with the next one.
        tracing::warn!("{error}");
    }
    if *identity.node() != given {
        tracing::warn!(%given, certified = %identity.node(), "the certificate's name counts");
    }
    Ok(identity.node().clone())
}

/// The host's name, as far as it is a name here.
fn default_name() -> Word {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name_of(&host)
}

fn name_of(host: &str) -> Word {
    let good = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' };
    let text: String = host.trim().to_ascii_lowercase().chars().map(good).take(60).collect();
    let text = text.trim_matches(['-', '.']);
    // Both texts are words; the second one always is.
    text.parse().or_else(|_| "node".parse()).unwrap_or_else(|_| unreachable!("node is a word"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_name_becomes_a_word() {
        for (host, expected) in [
            ("web-1\n", "web-1"),
            ("Web_1.example.NET", "web-1.example.net"),
            ("", "node"),
            ("(none)", "none"),
            ("---", "node"),
            ("ä", "node"),
        ] {
            assert_eq!(name_of(host).as_str(), expected, "{host}");
        }
        assert!(name_of(&"x".repeat(300)).as_str().len() <= 60);
    }
}
