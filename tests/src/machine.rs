//! A node: a folder with a configuration, two slots and a state folder.
//!
//! ```text
//! NAME/agent.toml   NAME/a.img   NAME/b.img   NAME/current ─▶ the active slot   NAME/state/
//! ```
//! Its verbs can be called three ways: through the library in this process ([`Machine::sync`] and the like, which count
//! what went over the wire), as the command line in a process of its own ([`Machine::agent`]), or as the daemon
//! ([`Machine::daemon`]).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use goldsync_agent::config::Where;
use goldsync_agent::drift::{self, DriftReport};
use goldsync_agent::journal::SlotRecord;
use goldsync_agent::link::Wire;
use goldsync_agent::node::Node;
use goldsync_agent::slot::SlotName;
use goldsync_agent::trial::Settled;
use goldsync_agent::update::{self, Context, Event, UpdateError};
use goldsync_agent::{daemon, enrol};
use goldsync_proto::wire::{Account, Outcome};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::image::{Image, b3sum};
use crate::operator::Operator;
use crate::stamp::Stamps;
use crate::tools::{self, AGENT, Ran};

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// What it dials.
    pub server: SocketAddr,
    /// The slots' paths.
    pub slots: [PathBuf; 2],
    /// The channel that it follows.
    pub channel: String,
    /// The section `[activation]` of its configuration.
    pub activation: String,
    /// The section `[schedule]` of its configuration.
    pub schedule: String,
    /// More lines for its configuration.
    pub more: String,
}

/// What a verb came to, and what it cost.
#[derive(Debug)]
pub struct Told<T> {
    /// What the verb returned.
    pub result: Result<T, UpdateError>,
    /// UDP payload bytes after the handshake.
    pub wire: Wire,
    /// What the verb told while it worked.
    pub events: Vec<Event>,
}

impl<T> Told<T> {
    /// It must have succeeded.
    #[track_caller]
    pub fn ok(self) -> T {
        self.result.unwrap_or_else(|error| panic!("{error}"))
    }

    /// It must have failed: the error's text and exit code.
    #[track_caller]
    pub fn failed(self) -> (String, u8) {
        match self.result {
            Ok(_) => panic!("it succeeded"),
            Err(error) => (error.to_string(), error.exit_code()),
        }
    }
}

impl Told<Outcome> {
    /// It must have changed the node: what it cost.
    #[track_caller]
    pub fn updated(self) -> Account {
        match self.ok() {
            Outcome::Updated { account } => account,
            other => panic!("not updated: {other:?}"),
        }
    }
}

/// A daemon at work.
pub struct Daemon {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Daemon {
    /// Stops it as SIGTERM does.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the daemon's task");
    }

    /// Ends it where it stands.
    pub fn kill(self) {
        self.task.abort();
    }
}

impl Machine {
    /// A machine with empty slots that follows `production`.
    pub fn new(name: &str, folder: &Path, server: SocketAddr) -> Self {
        fs::create_dir_all(folder).expect("a machine's folder");
        let slots = ["a.img", "b.img"].map(|file| folder.join(file));
        let (name, folder, channel) = (name.to_owned(), folder.to_owned(), "production".into());
        let activation = format!("backend = \"symlink\"\nlink = \"{}\"\n", folder.join("current").display());
        let (schedule, more) = ("splay = \"0\"\n".into(), String::new());
        let machine = Self { name, folder, server, slots, channel, activation, schedule, more };
        machine.write_config();
        machine
    }

    /// Writes `agent.toml` as the fields say.
    pub fn write_config(&self) {
        let [a, b] = self.slots.each_ref().map(|path| path.display());
        let text = format!(
            "server = \"{}\"\nchannel = \"{}\"\nstate = \"{}\"\n\
             [slots]\na = \"{a}\"\nb = \"{b}\"\n\
             [activation]\n{}\n\
             [schedule]\n{}\n\
             [limits]\nthreads = 2\n{}",
            self.server,
            self.channel,
            self.state().display(),
            self.activation,
            self.schedule,
            self.more,
        );
        fs::write(self.config(), text).expect("agent.toml");
    }

    /// The same machine, dialling elsewhere: a proxy, say.
    pub fn by(&self, server: SocketAddr) -> Self {
        let machine = Self { server, ..self.clone() };
        machine.write_config();
        machine
    }

    /// The configuration's path.
    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The link that points at the active slot.
    pub fn link(&self) -> PathBuf {
        self.folder.join("current")
    }

    /// A slot's path.
    pub fn slot(&self, name: SlotName) -> &Path {
        match name {
            SlotName::A => &self.slots[0],
            SlotName::B => &self.slots[1],
        }
    }

    /// What a slot holds, by the node's own record.
    pub fn record(&self, name: SlotName) -> SlotRecord {
        self.node().journal.slot(name).expect("a slot's record")
    }

    /// Which slot is active.
    pub fn active(&self) -> Option<SlotName> {
        goldsync_agent::boot::open(&self.node().config).active().expect("the active slot")
    }

    /// The BLAKE3 of what the link leads to.
    pub fn running(&self) -> String {
        b3sum(&self.link())
    }

    /// Puts an image into slot a and makes it active, without telling the node: how machines come before goldsync.
    pub fn preload(&self, image: &Image) {
        image.write(&self.slots[0]);
        let _ = fs::remove_file(self.link());
        std::os::unix::fs::symlink(&self.slots[0], self.link()).expect("the link");
    }

    /// Slots, link and state, for [`Stamps::differing`]. The lock names the run that holds it and is no state.
    pub fn stamps(&self) -> Stamps {
        let (state, link) = (self.state(), self.link());
        let paths = [self.slots[0].as_path(), self.slots[1].as_path(), link.as_path(), state.as_path()];
        Stamps::of(paths, |path| path.file_name().is_some_and(|name| name == "lock"))
    }

    /// The node, opened as every verb opens it.
    pub fn node(&self) -> Node {
        Node::open(&Where::File(self.config())).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Becomes a node.
    pub async fn enrol(&self, operator: &Operator) {
        let token = operator.token().await;
        self.try_enrol(&token).await.unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Tries to become a node by this token: its name then, or why not.
    pub async fn try_enrol(&self, token: &str) -> Result<String, String> {
        let node = self.node();
        let server = node.server().expect("a server");
        let name = self.name.parse().expect("a node's name");
        let enrolled = enrol::enrol(&node, &server, token, Some(name), false).await;
        enrolled.map(|name| name.to_string()).map_err(|error| error.to_string())
    }

    /// What the library's verbs work with, connected. Events go into the list.
    pub async fn context(&self, stop: CancellationToken) -> (Context, Arc<Mutex<Vec<Event>>>) {
        let node = self.node();
        let link = node.connect().await.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = events.clone();
        let take = Arc::new(move |event| sink.lock().unwrap_or_else(PoisonError::into_inner).push(event));
        (node.context(Some(Arc::new(link)), take, stop).expect("a context"), events)
    }

    async fn verb<T>(
        &self,
        stop: CancellationToken,
        verb: impl AsyncFnOnce(&mut Context) -> Result<T, UpdateError>,
    ) -> Told<T> {
        let (mut context, events) = self.context(stop).await;
        let result = verb(&mut context).await;
        let link = context.link.take().expect("a link");
        let wire = link.wire().since(link.handshake());
        link.close().await;
        let events = std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner));
        Told { result, wire, events }
    }

    /// `goldsync-agent sync`, over a connection of its own.
    pub async fn sync(&self) -> Told<Outcome> {
        self.sync_until(CancellationToken::new()).await
    }

    /// The same, stopped by a token.
    pub async fn sync_until(&self, stop: CancellationToken) -> Told<Outcome> {
        self.verb(stop, async |context| update::sync(context).await).await
    }

    /// `goldsync-agent download`.
    pub async fn download(&self) -> Told<Option<Account>> {
        self.verb(CancellationToken::new(), async |context| Ok(update::download(context).await?.1)).await
    }

    /// `goldsync-agent check`.
    pub async fn check(&self) -> Told<update::Check> {
        self.verb(CancellationToken::new(), async |context| update::check(context).await).await
    }

    /// `goldsync-agent verify`.
    pub async fn verify(&self) -> Told<DriftReport> {
        self.verb(CancellationToken::new(), async |context| drift::verify(context).await).await
    }

    /// `goldsync-agent repair`.
    pub async fn repair(&self) -> Told<Outcome> {
        self.verb(CancellationToken::new(), async |context| drift::repair(context).await).await
    }

    /// `goldsync-agent activate`.
    pub async fn activate(&self) -> Told<Outcome> {
        self.verb(CancellationToken::new(), async |context| Ok(update::activate(context).await?.1)).await
    }

    /// `goldsync-agent rollback`.
    pub async fn rollback(&self) -> Told<Outcome> {
        self.verb(CancellationToken::new(), async |context| Ok(update::rollback(context).await?.1)).await
    }

    /// `goldsync-agent confirm`, which the daemon does when it starts: what is on trial is brought to its end.
    pub async fn confirm(&self) -> Told<Settled> {
        self.verb(CancellationToken::new(), async |context| update::settled(context).await).await
    }

    /// The command line, in a process of its own.
    pub async fn agent(&self, args: &[&str]) -> Ran {
        self.finish(self.spawn(args)).await
    }

    /// The same, begun and not waited for.
    pub fn spawn(&self, args: &[&str]) -> tokio::process::Child {
        let config = self.config();
        let args = ["--config".as_ref(), config.as_os_str()].into_iter().chain(args.iter().map(|arg| arg.as_ref()));
        tools::command(AGENT, args).spawn().expect("goldsync-agent")
    }

    /// Waits for what [`Machine::spawn`] began.
    pub async fn finish(&self, child: tokio::process::Child) -> Ran {
        tools::finish(child, format!("goldsync-agent on {}", self.name)).await
    }

    /// `goldsync-agent run`, in this process.
    pub fn daemon(&self) -> Daemon {
        let (node, stop) = (self.node(), CancellationToken::new());
        let until = stop.clone();
        Daemon { stop, task: tokio::spawn(async move { daemon::run(node, until).await }) }
    }

    /// Asserts that the active slot is this image, byte for byte, and that the node says so.
    #[track_caller]
    pub fn runs(&self, image: &Image) {
        assert_eq!(self.running(), image.id(), "{} does not run the image", self.name);
        let active = self.active().expect("an active slot");
        let record = self.record(active);
        let proven = record.proven().unwrap_or_else(|| panic!("{}: slot {active} is not proven", self.name));
        assert_eq!(proven.image.to_string(), image.id(), "{}: the record names another image", self.name);
    }

    /// Asserts that no record claims a proof that its slot does not bear out.
    #[track_caller]
    pub fn tells_no_lie(&self) {
        for name in SlotName::ALL {
            if let SlotRecord::Proven(proven) = self.record(name) {
                let bytes = fs::read(self.slot(name)).unwrap_or_else(|error| panic!("slot {name}: {error}"));
                let got = blake3::hash(bytes.get(..proven.size as usize).unwrap_or_default()).to_hex().to_string();
                assert_eq!(got, proven.image.to_string(), "{}: slot {name} is called proven and is not", self.name);
            }
        }
    }
}
