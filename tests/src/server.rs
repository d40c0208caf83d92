//! A server of one's own, and the operator's tool beside it.

use std::ffi::OsStr;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::programs::{Daemon, Programs, Run};

/// A server on loopback.
#[derive(Debug)]
pub struct Server {
    programs: Programs,
    data: PathBuf,
    operator: PathBuf,
    address: String,
    daemon: Option<Daemon>,
}

impl Server {
    /// Prepares a server in `scratch/server`, with an operator's folder in `scratch/operator`, and starts it.
    pub fn start_in(programs: &Programs, scratch: &Path) -> Result<Self> {
        let (data, operator) = (scratch.join("server"), scratch.join("operator"));
        let (listen, api) = (free_udp()?, free_tcp()?);
        let address = format!("127.0.0.1:{listen}");
        let mut server = Self { programs: programs.clone(), data, operator, address, daemon: None };
        let data = server.data.clone();
        server
            .goldsync([
                OsStr::new("init"),
                OsStr::new("--data"),
                data.as_os_str(),
                OsStr::new("--listen"),
                OsStr::new(&server.address),
                OsStr::new("--api"),
                OsStr::new(&format!("127.0.0.1:{api}")),
                OsStr::new("--name"),
                OsStr::new("127.0.0.1"),
                OsStr::new("--name"),
                OsStr::new(crate::vm::HOST),
            ])?
            .ok()?;
        server.start()?;
        Ok(server)
    }

    /// Starts it again after [`Server::stop`] or [`Server::kill`].
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the server runs already");
        let mut command = self.programs.command("goldsync");
        command.arg("serve").arg("--data").arg(&self.data);
        let mut daemon = Daemon::start(command, &self.log())?;
        daemon.wait_until("answering", || Ok(self.goldsync(["status"])?.code() == 0))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Stops it cleanly.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.daemon.take().context("the server does not run")?.stop()?;
        ensure!(status.success(), "the server ended with {status}:\n{}", self.said());
        Ok(())
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("the server does not run")?.kill()
    }

    /// Runs a verb of the operator's tool.
    pub fn goldsync<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<Run> {
        let mut command = self.programs.command("goldsync");
        command.arg("--operator").arg(&self.operator).args(args);
        Run::of(command)
    }

    /// Publishes an image and returns its id.
    pub fn publish(&self, image: &Path, name: &str, version: &str) -> Result<serde_json::Value> {
        let image = image.to_str().context("an image's path that is text")?;
        self.goldsync(["publish", image, "--name", name, "--version", version, "--quiet", "--json"])?.ok()?.json()
    }

    /// Points a channel at a release.
    pub fn promote(&self, release: &str, channel: &str) -> Result<()> {
        self.goldsync(["promote", release, channel])?.ok().map(drop)
    }

    /// Makes a token for one node.
    pub fn token(&self, labels: &[&str]) -> Result<String> {
        let labels = labels.iter().flat_map(|label| ["--label", label]);
        let made = self.goldsync(["token", "create", "--json"].into_iter().chain(labels))?.ok()?.json()?;
        made["token"].as_str().map(str::to_owned).with_context(|| format!("no token in {made}"))
    }

    /// What nodes dial.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The operator's folder.
    pub fn operator(&self) -> &Path {
        &self.operator
    }

    /// Its process number, while it runs.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("the server does not run")?.pid())
    }

    fn log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// What it said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

// The programs cannot say which port the kernel chose for them before an operator's file must name it, so the kernel is
// asked first. It hands out ephemeral ports in turn: between here and the server's start nobody gets the same one.

fn free_udp() -> Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn free_tcp() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
