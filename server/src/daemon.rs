//! The running server: opens everything, listens, keeps the metadata fresh, and stops cleanly.
//!
//! ```text
//! config checked ─▶ folder locked ─▶ catalog, trust, authority, store opened ─▶ both ports bound ─▶ READY
//! SIGTERM, Ctrl-C ─▶ STOPPING ─▶ no new connections ─▶ what is under way ends (`nodes.drain`) ─▶ reports written
//! ```
//! Nothing is answered before everything is open: a server that cannot work says so and exits, and systemd sees it.
//! A task that ends on its own is a fault and stops the server. Killing it at any point loses reports, never data.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use chrono::Utc;
use rustix::fs::{FlockOperation, flock};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::authority::{Authority, AuthorityError, ServerCertificate};
use crate::catalog::{Catalog, CatalogError};
use crate::collector;
use crate::config::{Config, ConfigError};
use crate::golden::Uploads;
use crate::hub::Hub;
use crate::init::{CONFIG_FILE, certificate_names, place};
use crate::likely;
use crate::near::Sketches;
use crate::orders::Orders;
use crate::packs::{Packs, PacksOptions};
use crate::recover::{RecoverError, recover};
use crate::roster::Roster;
use crate::session::{self, ListenError};
use crate::store::{Store, StoreError, StoreOptions};
use crate::trust::{Trust, TrustError};

/// How often short-lived metadata is looked at, and the catalog held against it. It lives for days.
const REFRESH_EVERY: Duration = Duration::from_secs(3600);

/// The same after a failure.
const REFRESH_AGAIN: Duration = Duration::from_secs(60);

/// How often orders are looked through for nodes that will not answer.
const GIVE_UP_EVERY: Duration = Duration::from_secs(5);

/// A catalog that does not answer for so long means that the server hangs.
const CATALOG_WITHIN: Duration = Duration::from_secs(20);

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no server in that folder.
    #[error("{} holds no server: there is no {CONFIG_FILE} in it; run `goldsync init` first, or name the right folder", .0.display())]
    NoServer(PathBuf),
    /// Another server has that folder.
    #[error("another goldsync serve runs on {}; stop it first", .0.display())]
    Running(PathBuf),
    /// A file or folder.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The signed metadata.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Catalog and metadata.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The CA or the server's certificate.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The nodes' port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The operators' port.
    #[error("cannot listen on {address} (TCP): {error}; change `api`, or stop what listens there")]
    Api {
        /// As configured.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// A task that should run for ever did not.
    #[error("the server's task {0} ended on its own; its log says why")]
    Ended(&'static str),
}

/// A running server.
pub struct Server {
    hub: Arc<Hub>,
    quic: SocketAddr,
    api: SocketAddr,
    quit: CancellationToken,
    http: Handle<SocketAddr>,
    tasks: JoinSet<&'static str>,
    /// Held for as long as the server runs.
    _lock: File,
}

/// Runs a server until SIGTERM or Ctrl-C.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let io = |error| DaemonError::Io { path: "signal handlers".into(), error };
    let (mut term, mut int) =
        (signal(SignalKind::terminate()).map_err(io)?, signal(SignalKind::interrupt()).map_err(io)?);
    let mut server = Server::start(config).await?;
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        ended = server.ended() => Some(ended),
    };
    tracing::info!("stopping");
    notify(&[NotifyState::Stopping]);
    server.shutdown().await;
    ended.map_or(Ok(()), |task| Err(DaemonError::Ended(task)))
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

impl Server {
    /// Opens everything, binds both ports, and answers from then on. Ports of 0 take any free ones.
    pub async fn start(config: Config) -> Result<Self, DaemonError> {
        config.check()?;
        let lock = lock(&config.data)?;
        let (hub, certificate) = open(config).await?;
        let endpoint = session::listen(&hub.config, &certificate)?;
        let (listener, tls) = (listen_api(hub.config.api)?, Arc::new(certificate.https_config()?));
        let address = |error| DaemonError::Api { address: hub.config.api, error };
        let quic = endpoint.local_addr().map_err(address)?;
        let api = listener.local_addr().map_err(address)?;
        tracing::info!(nodes = %quic, operators = %api, data = %hub.config.data.display(), "listening");

        let (quit, http, mut tasks) = (CancellationToken::new(), Handle::new(), JoinSet::new());
        tasks.spawn(named("session", session::serve(hub.clone(), endpoint, quit.clone())));
        tasks.spawn(named("roster", hub.roster.clone().keep_writing(quit.clone())));
        tasks.spawn(named("refresh", keep_fresh(hub.clone(), certificate.clone(), quit.clone())));
        tasks.spawn(named("orders", give_up(hub.clone(), quit.clone())));
        tasks.spawn(named("collector", collector::keep_collecting(hub.clone(), quit.clone())));
        tasks.spawn(named("watchdog", watchdog(hub.clone(), quit.clone())));
        let serve = api::serve(hub.clone(), listener, tls, http.clone());
        tasks.spawn(named("api", async move {
            if let Err(error) = serve.await {
                tracing::error!(%error, "the operators' API ended");
            }
        }));
        Ok(Self { hub, quic, api, quit, http, tasks, _lock: lock })
    }

    /// Where nodes come.
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic
    }

    /// Where operators come.
    pub fn api_addr(&self) -> SocketAddr {
        self.api
    }

    /// What it works with.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Waits until one of its tasks ends on its own, which none should.
    pub async fn ended(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(error)) => {
                tracing::error!(%error, "a task of the server failed");
                "(failed)"
            }
            None => "(none)",
        }
    }

    /// Lets what is under way end, writes down what nodes said, and closes everything.
    pub async fn shutdown(mut self) {
        self.quit.cancel();
        let drain = self.hub.config.nodes.drain.0;
        self.http.graceful_shutdown(Some(drain));
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(drain + Duration::from_secs(5), all).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        self.tasks.shutdown().await;
        if let Err(error) = self.hub.roster.write_down().await {
            tracing::warn!(%error, "the last reports of nodes are lost");
        }
        self.hub.catalog.close().await;
    }
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// One server to a data folder: two would each believe that nobody else writes.
fn lock(data: &Path) -> Result<File, DaemonError> {
    if !data.join(place::AUTHORITY).is_dir() {
        return Err(DaemonError::NoServer(data.to_owned()));
    }
    let path = data.join("lock");
    let io = |error| DaemonError::Io { path: path.clone(), error };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DaemonError::Running(data.to_owned())),
        Err(error) => Err(io(error.into())),
    }
}

async fn open(config: Config) -> Result<(Arc<Hub>, ServerCertificate), DaemonError> {
    let data = &config.data;
    let authority = Authority::load(&data.join(place::AUTHORITY))?;
    let certificate = authority.server(&certificate_names(&config), Utc::now())?;
    let trust = Arc::new(Trust::open(&data.join(place::TRUST)).await?);
    let catalog = Arc::new(Catalog::open(data).await?);
    let (grace, rewrite_above) = (config.store.grace.0, config.store.rewrite_above);
    let options = StoreOptions { grace, rewrite_above, ..StoreOptions::default() };
    let store = Store::open(data, options).await?;
    let mut options = PacksOptions::default();
    if !config.plans.thorough {
        options.better = &[];
    }
    let packs = Packs::open(store.clone(), options).await?;
    let uploads = Uploads::open(store.clone()).await?;
    let roster = Roster::new(catalog.clone(), config.nodes.connections_per_node as usize);
    let hub = Arc::new(Hub {
        config,
        catalog,
        trust,
        authority,
        store,
        uploads,
        packs,
        roster,
        near: Sketches::default(),
        orders: Orders::new(),
        unneeded: tokio::sync::Notify::new(),
        publishing: tokio::sync::Mutex::default(),
    });
    // Before anybody is answered: expired metadata would be refused by every node, and a catalog that is behind
    // would show operators less than nodes see.
    hub.trust.refresh().await?;
    recover(&hub).await?;
    likely::prepare_promoted(&hub).await?;
    Ok((hub, certificate))
}

/// `[::]` takes IPv4 too, and falls back to `0.0.0.0` where the machine has no IPv6.
fn listen_api(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    let bound = match TcpListener::bind(address) {
        Err(error) if session::no_ipv6(address, &error) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())),
        bound => bound,
    };
    let ready = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    ready.map_err(|error| DaemonError::Api { address, error })
}

/// Signs short-lived metadata anew before it expires.
async fn keep_fresh(hub: Arc<Hub>, certificate: ServerCertificate, quit: CancellationToken) {
    let mut wait = REFRESH_EVERY;
    while timeout(wait, quit.cancelled()).await.is_err() {
        wait = REFRESH_EVERY;
        match hub.trust.refresh().await {
            Ok(true) => tracing::info!("signed fresh metadata"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "metadata could not be signed anew; nodes will refuse it when it expires");
                wait = REFRESH_AGAIN;
            }
        }
        if let Err(error) = recover(&hub).await {
            tracing::error!(%error, "the catalog could not be held against the signed metadata");
            wait = REFRESH_AGAIN;
        }
        warn_of_expiry(&hub.trust);
        if let Err(error) = renew_certificate(&hub, &certificate) {
            tracing::error!(%error, "the server's certificate could not be looked after; peers refuse it when it expires");
        }
    }
}

/// Makes the server's certificate anew when it is due, and shows it from the next handshake on.
fn renew_certificate(hub: &Hub, certificate: &ServerCertificate) -> Result<(), AuthorityError> {
    let due = hub.authority.server(&certificate_names(&hub.config), Utc::now())?;
    if certificate.replace(&due) {
        tracing::info!("the server's certificate was due and is a new one now");
    }
    Ok(())
}

/// What the server cannot sign itself needs an operator in time.
fn warn_of_expiry(trust: &Trust) {
    let soon = Utc::now() + chrono::TimeDelta::days(30);
    for (role, expires) in trust.expiries() {
        if expires < soon && !["snapshot", "timestamp"].contains(&role.as_str()) {
            tracing::warn!(role, %expires, "signed metadata expires soon; an operator must sign it anew");
        }
    }
}

async fn give_up(hub: Arc<Hub>, quit: CancellationToken) {
    let mut ticks = interval(GIVE_UP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (away_max, lifetime) = (hub.config.orders.away_max.0, hub.config.orders.lifetime.0);
    loop {
        tokio::select! {
            () = quit.cancelled() => return,
            _ = ticks.tick() => hub.orders.give_up(&hub.roster, away_max, lifetime),
        }
    }
}

/// Tells systemd that the server is alive, if it is: the runtime turns and the catalog answers.
async fn watchdog(hub: Arc<Hub>, quit: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return quit.cancelled().await };
    while timeout(limit / 3, quit.cancelled()).await.is_err() {
        match timeout(CATALOG_WITHIN.min(limit), hub.catalog.count_releases()).await {
            Ok(Ok(_)) => notify(&[NotifyState::Watchdog]),
            Ok(Err(error)) => {
                tracing::error!(%error, "the catalog does not work; systemd is not told that all is well")
            }
            Err(_) => tracing::error!("the catalog does not answer; systemd is not told that all is well"),
        }
    }
}
