//! The control stream: the node says how it is, the server says that there is work.

use std::sync::Arc;

use goldsync_proto::refusal::Refusal;
use goldsync_proto::wire::{Answer, NodeSays, ServerSays, frame, unframe};

use super::{Body, LinkError, Peer, broken, write};

/// An open control stream.
#[derive(Debug)]
pub struct Control {
    mouth: Mouth,
    ear: Ear,
    version: String,
}

/// The half that speaks.
#[derive(Debug)]
pub struct Mouth {
    send: quinn::SendStream,
    peer: Arc<Peer>,
}

/// The half that hears.
#[derive(Debug)]
pub struct Ear {
    body: Body,
}

impl Control {
    pub(super) async fn begin(send: quinn::SendStream, mut body: Body, peer: Arc<Peer>) -> Result<Self, LinkError> {
        let version = match body.frame("the welcome").await? {
            Answer::Welcome { version } => version,
            Answer::Refused { refusal } => return Err(refused(&peer, refusal)),
            other => {
                let why = format!("it answers a hello with {other:?}");
                return Err(LinkError::Protocol { server: peer.server(), why });
            }
        };
        Ok(Self { mouth: Mouth { send, peer }, ear: Ear { body }, version })
    }

    /// The server's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Two halves, for two tasks.
    pub fn split(self) -> (Mouth, Ear) {
        (self.mouth, self.ear)
    }
}

fn refused(peer: &Peer, refusal: Refusal) -> LinkError {
    LinkError::Refused { server: peer.server(), refusal }
}

impl Mouth {
    /// Says it.
    pub async fn say(&mut self, message: &NodeSays) -> Result<(), LinkError> {
        let bytes = frame(message).map_err(|error| broken(&self.peer.name, &error))?;
        write(&mut self.send, &bytes, &self.peer).await
    }
}

impl Ear {
    /// What the server says next, whenever that is; `None` when it has no more to say. Not to be given up half-way
    /// (a `select!` would lose the part of a frame that was read): a task of its own hears and hands on.
    pub async fn hear(&mut self) -> Result<Option<ServerSays>, LinkError> {
        while let Some(json) = self.body.next_frame().await? {
            match unframe(&json) {
                Ok(message) => return Ok(Some(message)),
                // A newer server may say things that this agent does not know; they are for newer agents.
                Err(error) => tracing::warn!(%error, "the server says something that is not understood here"),
            }
        }
        Ok(None)
    }
}
