//! A node of one's own: two slots that are files, and a link that is the activation.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::programs::{Daemon, Programs, Run};
use crate::server::Server;

/// A machine that is, or can become, a node.
#[derive(Debug)]
pub struct Node {
    programs: Programs,
    name: String,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

impl Node {
    /// Prepares a machine in `scratch/NAME` that follows `channel`.
    pub fn prepare(programs: &Programs, scratch: &Path, name: &str, channel: &str) -> Result<Self> {
        let node = Self { programs: programs.clone(), name: name.to_owned(), folder: scratch.join(name), daemon: None };
        fs::create_dir_all(&node.folder)?;
        node.configure(channel, "6 h")?;
        Ok(node)
    }

    /// Writes its configuration: the channel that it follows, and the longest time it waits of its own accord when it is
    /// told that its channel moved.
    pub fn configure(&self, channel: &str, splay: &str) -> Result<()> {
        let folder = self.folder.display();
        let text = format!(
            "channel = \"{channel}\"\nstate = \"{folder}/state\"\n\n[slots]\na = \"{folder}/a.img\"\nb = \"{folder}/b.img\"\n\n\
             [activation]\nbackend = \"symlink\"\nlink = \"{folder}/current\"\n\n[schedule]\nsplay = \"{splay}\"\n"
        );
        fs::write(self.config(), text).context("write agent.toml")
    }

    /// Makes it a node of that server's fleet.
    pub fn enrol(&self, server: &Server) -> Result<()> {
        let token = server.token(&[])?;
        self.agent(["enroll", "--server", server.address(), "--token", &token, "--name", &self.name])?.ok().map(drop)
    }

    /// Runs a verb of the agent.
    pub fn agent<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Run> {
        let mut command = self.programs.command("goldsync-agent");
        command.arg("--config").arg(self.config()).args(args);
        Run::of(command)
    }

    /// Starts the daemon.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "{} runs already", self.name);
        let mut command = self.programs.command("goldsync-agent");
        command.arg("--config").arg(self.config()).arg("run");
        self.daemon = Some(Daemon::start(command, &self.folder.join("run.log"))?);
        Ok(())
    }

    /// The daemon, if it was started.
    pub fn daemon(&mut self) -> Option<&mut Daemon> {
        self.daemon.as_mut()
    }

    /// Stops the daemon cleanly.
    pub fn stop(&mut self) -> Result<()> {
        let daemon = self.daemon.take().with_context(|| format!("{} does not run", self.name))?;
        let status = daemon.stop()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.said());
        Ok(())
    }

    /// Ends the daemon as a power cut would.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().with_context(|| format!("{} does not run", self.name))?.kill()
    }

    /// What the daemon said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.join("run.log")).unwrap_or_default()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// Slot `a` or `b`.
    pub fn slot(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.img"))
    }

    /// The active slot: `a` or `b`, or `None` before the first activation.
    pub fn active(&self) -> Result<Option<String>> {
        let target = match fs::read_link(self.folder.join("current")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            target => target?,
        };
        Ok(target.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
    }

    /// The BLAKE3 of what a slot holds; `None` if there is nothing.
    pub fn hash(&self, slot: &str) -> Result<Option<String>> {
        let path = self.slot(slot);
        if !path.exists() {
            return Ok(None);
        }
        hash(&path).map(Some)
    }

    /// The BLAKE3 of what the node runs.
    pub fn runs(&self) -> Result<Option<String>> {
        match self.active()? {
            Some(slot) => self.hash(&slot),
            None => Ok(None),
        }
    }

    /// Lets the active slot drift: other bytes in these blocks, behind the agent's back.
    pub fn drift(&self, blocks: &[u64]) -> Result<()> {
        let slot = self.active()?.context("nothing is active")?;
        let file = File::options().read(true).write(true).open(self.slot(&slot))?;
        for block in blocks {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, block * 4096)?;
            bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
            file.write_all_at(&bytes, block * 4096)?;
        }
        file.sync_all().context("sync the drifted slot")
    }
}

/// What `b3sum` would print.
pub fn hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?).with_context(|| format!("read {}", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}
