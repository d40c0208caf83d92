//! A node as its verbs and its daemon find it: configuration, state folder, identity, and the way to its server.
//!
//! ```text
//! STATE/identity.pem     key, certificate, CA        (identity)
//! STATE/trust/           signed metadata             (trust)
//! STATE/server.json      the server enrolled with    (here)
//! STATE/slots/ ...       what was proven             (journal)
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use goldsync_proto::wire::{Answer, Request};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::boot;
use crate::config::{Address, Config, ConfigError, Where};
use crate::identity::{Identity, IdentityError, NodeKey};
use crate::journal::{Journal, JournalError, Proven, read_json, write_json};
use crate::link::{Link, LinkError};
use crate::slot::SlotName;
use crate::trust::Trust;
use crate::update::{Context, Events, UpdateError};

/// A node, opened.
#[derive(Clone, Debug)]
pub struct Node {
    /// What the operator wrote.
    pub config: Arc<Config>,
    /// What the node remembers.
    pub journal: Journal,
}

/// Why a node cannot be opened or connected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The server.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No server is named anywhere.
    #[error(
        "no server is known: the configuration has no `server`, and this node was not enrolled; run `goldsync-agent enroll`"
    )]
    NoServer,
}

/// What enrolment remembers of the server.
#[derive(Debug, Serialize, Deserialize)]
struct Server {
    address: String,
}

impl Node {
    /// Reads the configuration and opens the state folder.
    pub fn open(place: &Where) -> Result<Self, NodeError> {
        Ok(Self::new(Config::load(place)?)?)
    }

    /// Opens the state folder of a configuration.
    pub fn new(config: Config) -> Result<Self, JournalError> {
        let journal = Journal::open(&config.state)?;
        Ok(Self { config: Arc::new(config), journal })
    }

    /// Who this node is.
    pub fn identity(&self) -> Result<Identity, IdentityError> {
        Identity::load(self.journal.state())
    }

    /// Where signed metadata is kept.
    pub fn trust_dir(&self) -> PathBuf {
        self.journal.state().join("trust")
    }

    /// The server: the configuration's, or the one that the node was enrolled with.
    pub fn server(&self) -> Result<Address, NodeError> {
        if let Some(server) = &self.config.server {
            return Ok(server.clone());
        }
        let stored: Option<Server> = read_json(&self.server_file())?;
        stored.and_then(|server| server.address.parse().ok()).ok_or(NodeError::NoServer)
    }

    /// Remembers the server that the node was enrolled with.
    pub(crate) fn set_server(&self, server: &Address) -> Result<(), JournalError> {
        write_json(&self.server_file(), &Server { address: server.to_string() })
    }

    /// Connects with the certificate that is in the state folder now.
    pub async fn connect(&self) -> Result<Link, NodeError> {
        let identity = self.identity()?;
        Ok(Link::connect(&self.server()?, identity.quic_config()?, self.config.limits.patience).await?)
    }

    /// What the engine's verbs work with. `link` may be missing for those that need no server. Somebody asked, unless the
    /// caller says otherwise.
    pub fn context(
        &self,
        link: Option<Arc<Link>>,
        events: Events,
        stop: CancellationToken,
    ) -> Result<Context, UpdateError> {
        Ok(Context {
            config: self.config.clone(),
            journal: self.journal.clone(),
            activation: boot::open(&self.config),
            trust: Trust::open(&self.trust_dir())?,
            link,
            events,
            stop,
            asked: true,
            unattended: false,
            any_size: false,
        })
    }

    /// What the active slot was proven to hold, if that can be told.
    pub fn running(&self) -> Option<Proven> {
        let active = boot::open(&self.config).active().ok()??;
        self.journal.slot(active).ok()?.proven().cloned()
    }

    /// What the standby slot was proven to hold, if that can be told.
    pub fn standing_by(&self) -> Option<Proven> {
        let standby = boot::open(&self.config).active().ok()?.map_or(SlotName::A, SlotName::other);
        self.journal.slot(standby).ok()?.proven().cloned()
    }

    /// Gets a fresh certificate if two thirds of this one's life are over; says whether it did. The new one is in use
    /// from the next connection on.
    pub async fn renew_if_due(&self, link: &Link) -> Result<bool, NodeError> {
        let identity = self.identity()?;
        if !identity.renewal_due(chrono::Utc::now()) {
            return Ok(false);
        }
        let key = NodeKey::create()?;
        let (answer, _) = link.ask(&Request::Renew { csr: key.request()? }).await?;
        let Answer::Renewed { certificate } = answer else {
            let why = "it answers a renewal with something else".to_owned();
            return Err(LinkError::Protocol { server: link.server().to_owned(), why }.into());
        };
        identity.renewed(key, &certificate)?.store(self.journal.state())?;
        Ok(true)
    }

    fn server_file(&self) -> PathBuf {
        self.journal.state().join("server.json")
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::path::Path;

    /// A node with two file slots and a link, all in `folder`. Nothing is there yet but its state folder.
    pub(crate) fn node(folder: &Path) -> Node {
        node_with(folder, "")
    }

    /// The same, with more lines in its configuration.
    pub(crate) fn node_with(folder: &Path, more: &str) -> Node {
        let folder = folder.display();
        let text = format!(
            "channel = \"qa\"\nstate = \"{folder}/state\"\n[slots]\na = \"{folder}/a\"\nb = \"{folder}/b\"\n\
             [activation]\nbackend = \"symlink\"\nlink = \"{folder}/current\"\n[schedule]\nsplay = \"0\"\n{more}"
        );
        Node::new(Config::parse(Path::new("agent.toml"), &text).unwrap()).unwrap()
    }
}
