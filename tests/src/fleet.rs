//! A fleet: one server in this process, made by the code of `goldsync init` and started as `goldsync serve` starts it.
//!
//! The ports are the system's choice at the first start and stay the same afterwards, so that nodes find a server that
//! was stopped and started again.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use goldsync_server::config::Config;
use goldsync_server::daemon::Server;
use goldsync_server::init::{InitOptions, create};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::image::Image;
use crate::machine::Machine;
use crate::operator::Operator;
use crate::wait::eventually;

/// A server, its operator, and a scratch folder.
pub struct Fleet {
    /// With threads of its own, so that it can be taken away whole.
    server: Option<(Server, Runtime)>,
    config: Config,
    /// The first operator.
    pub operator: Operator,
    scratch: Scratch,
}

/// The folder of one fleet.
struct Scratch(Option<TempDir>);

impl Scratch {
    fn path(&self) -> &Path {
        self.0.as_ref().expect("a scratch folder").path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("GOLDSYNC_TESTS_KEEP").is_some()
            && let Some(folder) = self.0.take()
        {
            eprintln!("kept: {}", folder.keep().display());
        }
    }
}

impl Fleet {
    /// Makes and starts one.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same, with something of the configuration changed.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::begin(&[], change).await
    }

    /// One that has an image as `web:1`, and a node `n1` that runs it.
    pub async fn with_node(image: &Image) -> (Self, Machine) {
        let fleet = Self::start().await;
        fleet.ship(image, "web:1").await;
        let node = fleet.node("n1").await;
        node.sync().await.updated();
        (fleet, node)
    }

    /// One whose nodes come to another address than loopback's.
    pub async fn start_on(address: IpAddr, change: impl FnOnce(&mut Config)) -> Self {
        let listen = |config: &mut Config| {
            config.listen = (address, 0).into();
            change(config);
        };
        Self::begin(&[address], listen).await
    }

    async fn begin(addresses: &[IpAddr], change: impl FnOnce(&mut Config)) -> Self {
        log();
        let scratch = tempfile::Builder::new().prefix("goldsync-").tempdir().expect("a scratch folder");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let report = create(InitOptions {
            data: scratch.path().join("server"),
            listen: any,
            api: any,
            names: addresses.iter().map(ToString::to_string).chain(["127.0.0.1".into()]).collect(),
            operator_dir: scratch.path().join("operator"),
            operator_name: "ann".into(),
        })
        .await
        .unwrap_or_else(|error| panic!("goldsync init: {error}"));
        let mut config = Config::load(&report.data.join("server.toml")).expect("server.toml");
        change(&mut config);
        let operator = Operator { folder: report.operator_dir };
        let mut fleet = Self { server: None, config, operator, scratch: Scratch(Some(scratch)) };
        fleet.up().await;
        fleet
    }

    /// Changes the configuration of a server that is down.
    pub fn reconfigure(&mut self, change: impl FnOnce(&mut Config)) {
        assert!(self.server.is_none(), "the server is up");
        change(&mut self.config);
    }

    /// Starts the server again. The first time, notes the ports that it got.
    pub async fn up(&mut self) {
        assert!(self.server.is_none(), "the server is up already");
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        let runtime = threads.worker_threads(2).thread_name("server").enable_all().build().expect("threads");
        let started = runtime.spawn(Server::start(self.config.clone())).await.expect("goldsync serve");
        let server = started.unwrap_or_else(|error| panic!("goldsync serve: {error}"));
        (self.config.listen, self.config.api) = (server.quic_addr(), server.api_addr());
        self.operator.set("api", &format!("https://{}", server.api_addr()));
        self.operator.set("server", &server.quic_addr().to_string());
        self.server = Some((server, runtime));
    }

    /// Stops the server in good order.
    pub async fn down(&mut self) {
        let (server, runtime) = self.server.take().expect("a running server");
        runtime.spawn(server.shutdown()).await.expect("the end of goldsync serve");
        runtime.shutdown_background();
        self.ports_are_free().await;
    }

    /// Takes the server away as a crash does: nothing is written down, nobody is told.
    pub async fn crash(&mut self) {
        let (server, runtime) = self.server.take().expect("a running server");
        runtime.shutdown_background();
        drop(server);
        self.ports_are_free().await;
    }

    /// The kernel takes a port back when its last owner is gone, which is a moment after it was told to go.
    async fn ports_are_free(&self) {
        let (listen, api) = (self.config.listen, self.config.api);
        eventually("the server's ports are free", async || {
            let udp = std::net::UdpSocket::bind(listen);
            udp.and_then(|_| std::net::TcpListener::bind(api)).ok().map(drop)
        })
        .await;
    }

    /// The running server.
    pub fn server(&self) -> &Server {
        &self.server.as_ref().expect("a running server").0
    }

    /// Where nodes come.
    pub fn quic(&self) -> SocketAddr {
        self.config.listen
    }

    /// Where operators come.
    pub fn api(&self) -> SocketAddr {
        self.config.api
    }

    /// The server's data folder.
    pub fn data(&self) -> &Path {
        &self.config.data
    }

    /// A path in the scratch folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Publishes an image from the scratch folder as `NAME:VERSION`.
    pub async fn publish(&self, image: &Image, release: &str) {
        let path = image.write(&self.path("image-to-publish"));
        self.operator.publish(&path, release).await;
        std::fs::remove_file(path).expect("the published image's file");
    }

    /// Publishes an image and points `production` at it.
    pub async fn ship(&self, image: &Image, release: &str) {
        self.publish(image, release).await;
        self.operator.promote(release, "production").await;
    }

    /// A machine that is no node yet; its folder is in the scratch folder, and it would dial the server directly.
    pub fn machine(&self, name: &str) -> Machine {
        Machine::new(name, &self.path(name), self.quic())
    }

    /// A machine, enrolled.
    pub async fn node(&self, name: &str) -> Machine {
        let machine = self.machine(name);
        machine.enrol(&self.operator).await;
        machine
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some((server, runtime)) = self.server.take() {
            runtime.shutdown_background();
            drop(server);
        }
    }
}

/// Lets the rooms' logs be seen: `RUST_LOG=goldsync_server=debug cargo nextest run … --no-capture`.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "off".into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
