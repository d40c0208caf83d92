//! A stage for one story: a server in a scratch folder of its own, and as many nodes as the story needs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use goldsync_proto::wire::{Account, Outcome};

use crate::images::{self, Pair};
use crate::node::{Node, hash};
use crate::programs::{Programs, Run};
use crate::server::Server;

/// The channel that a story's nodes follow.
pub const CHANNEL: &str = "dev";

/// The name of a story's releases.
pub const NAME: &str = "story";

/// A server in a folder of its own, which goes when this does.
#[derive(Debug)]
pub struct Scene {
    /// The server. First, so that it is killed before its folder goes.
    pub server: Server,
    /// The two programs.
    pub programs: Programs,
    scratch: tempfile::TempDir,
}

impl Scene {
    /// Starts a server. `executable` begins with [`crate::programs::be_one`].
    pub fn open(executable: impl Into<PathBuf>) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let programs = Programs::at(executable);
        let server = Server::start_in(&programs, scratch.path())?;
        Ok(Self { server, programs, scratch })
    }

    /// The scratch folder.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Two small images of real data.
    pub fn images(&self) -> Result<Pair> {
        images::from_toolchain(self.folder(), 6)
    }

    /// Publishes an image as the next release and points the channel at it.
    pub fn release(&self, image: &Path, version: &str) -> Result<()> {
        let published = self.server.publish(image, NAME, version)?;
        ensure!(published["image"] == hash(image)?.as_str(), "the release is not what b3sum prints: {published}");
        self.server.promote(&format!("{NAME}:{version}"), CHANNEL)
    }

    /// A machine that is a node.
    pub fn node(&self, name: &str) -> Result<Node> {
        let node = self.machine(name)?;
        node.enrol(&self.server)?;
        Ok(node)
    }

    /// A machine that is not a node yet.
    pub fn machine(&self, name: &str) -> Result<Node> {
        Node::prepare(&self.programs, self.folder(), name, CHANNEL)
    }
}

/// The node must run this image, by the bytes in its slot.
pub fn runs(node: &Node, image: &Path) -> Result<()> {
    let (found, golden) = (node.runs()?, hash(image)?);
    ensure!(found.as_deref() == Some(&*golden), "{} runs {found:?}, not {golden}", node.name());
    Ok(())
}

/// How a `sync --json` or `repair --json` ended.
pub fn outcome(run: &Run) -> Result<Outcome> {
    serde_json::from_value(run.json()?).with_context(|| format!("{} printed {}", run.line, run.stdout))
}

/// It must have updated something; what it cost.
pub fn updated(run: &Run) -> Result<Account> {
    match outcome(run)? {
        Outcome::Updated { account } => Ok(account),
        other => anyhow::bail!("{} ended with {other:?}", run.line),
    }
}
