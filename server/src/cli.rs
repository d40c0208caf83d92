//! The command line of `goldsync`, as data: verbs, options, help texts. Nothing here touches a file or a socket.
//!
//! The doc comments *are* the help, the man pages and the completions. A verb says what it changes; one that says
//! nothing changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use goldsync_proto::limits::LABEL_LEN_MAX;
use goldsync_proto::release::{RELEASES_ROLE, ReleaseRef, Word};
use goldsync_proto::trust::{ROOT, SNAPSHOT, TARGETS, TIMESTAMP};

use crate::config::DATA_DEFAULT;
use crate::trust::is_reserved;

const AFTER_HELP: &str = "\
Examples:
  goldsync init --name gold.example.org           prepare a server on this machine
  goldsync serve                                  run it
  goldsync bench web-old.ext4 web.ext4            what an update will cost, and why
  goldsync publish web.ext4 --name web --version 2026.11.21
  goldsync promote web:2026.11.21 staging         nodes on `staging` move to it
  goldsync token create --valid 1h                let a machine become a node
  goldsync fleet sync --channel staging --now     move now, and watch
  goldsync fleet status                           every node, on one line each
  goldsync trust status                           what must be signed anew, and until when

Exit codes:
  0   done
  1   failed; or the fleet is not as asked (`fleet sync`)
  2   wrong usage, or a configuration that cannot be used
  3   not trusted: a signature, an expiry date or a certificate
  4   server unreachable, or it refused us
  5   an image, a disk or a folder: missing, unreadable, full
  75  another run is in progress
  130 interrupted (Ctrl-C)

Units: sizes are in binary units (1 KiB = 1024 bytes, 1 MiB = 1024 KiB), durations are written 90s, 15m, 1h, 7d or \
1h30m, times are UTC. Results go to standard output, progress and errors to standard error. `--json` prints one JSON \
document instead of a table.

Files:
  ~/.config/goldsync/operator.toml   who you are to the server (--operator, GOLDSYNC_OPERATOR)
  ~/.config/goldsync/keys/           the keys that sign; keep those of root off-line
  /var/lib/goldsync-server/          the server's data, opened by `init` and `serve` only";

/// Keeps a fleet of machines binary-identical to a golden image.
///
/// One binary: the server (`goldsync serve`) and the operator's tool (all other verbs, which reach the server over its
/// HTTPS API and nothing else). What runs on a node is `goldsync-agent`.
#[derive(Debug, Parser)]
#[command(name = "goldsync", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// The operator's folder: server address, credential and signing keys [default: ~/.config/goldsync].
    #[arg(long, global = true, env = "GOLDSYNC_OPERATOR", value_name = "DIR", value_hint = ValueHint::DirPath)]
    #[arg(hide_env_values = true, display_order = 900)]
    pub operator: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Prepare a server on this machine: data folder, fleet authority, signing keys, your credential.
    Init(Init),
    /// Run the server in the foreground.
    Serve(Serve),
    /// Publish an image as a release: hash it, send what the server lacks, sign it, make it visible.
    Publish(Publish),
    /// Say what an update from one image to another will cost, and why; needs no server.
    Bench(Bench),
    /// Point a channel at a release; signed. Its nodes are told at once.
    Promote(Promote),
    /// Channels: where each one points, who pointed it there, and making a new one.
    #[command(subcommand)]
    Channel(Channel),
    /// Releases: what was published.
    #[command(subcommand)]
    Release(Release),
    /// Tokens, by which machines become nodes.
    #[command(subcommand)]
    Token(Token),
    /// Nodes: list them, or turn one away for good.
    #[command(subcommand)]
    Node(Node),
    /// The signed metadata: when each role expires; sign roles anew, replace their keys.
    #[command(subcommand)]
    Trust(Trust),
    /// The whole fleet: bring it to its channel's release now, or see how it is.
    #[command(subcommand)]
    Fleet(Fleet),
    /// Who did what, when, and from where.
    Audit(Audit),
    /// The server at a glance; also proves that you can reach it.
    Status(Status),
    /// Print the completion script of a shell.
    Completions(Completions),
    /// Print this tool's man page, or write all of them into a folder.
    Man(Man),
}

/// Results as JSON.
#[derive(Debug, Clone, Copy, Args)]
pub struct Json {
    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `goldsync init`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync init --name gold.example.org --name 192.0.2.7
  goldsync init --data ./srv --operator ./op --listen 127.0.0.1:7400 --api 127.0.0.1:7401

Changes: makes both folders. Refuses to touch a server that is there already.")]
pub struct Init {
    /// The server's data folder; made if missing.
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT, value_hint = ValueHint::DirPath)]
    pub data: PathBuf,
    /// Where nodes connect (QUIC, UDP).
    #[arg(long, value_name = "ADDR", default_value = "[::]:7400")]
    pub listen: SocketAddr,
    /// Where operators connect (HTTPS, TCP).
    #[arg(long, value_name = "ADDR", default_value = "[::]:7401")]
    pub api: SocketAddr,
    /// A DNS name or IP address by which nodes and operators reach this server; goes into its certificate. Repeatable;
    /// the first one is what `operator.toml` and new tokens say [default: the listening address, or this host's name].
    #[arg(long = "name", value_name = "HOST", value_hint = ValueHint::Hostname)]
    pub names: Vec<String>,
    /// Your name in the audit log.
    #[arg(long, value_name = "NAME", env = "USER", default_value = "operator", hide_env_values = true)]
    pub operator_name: String,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync serve`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync serve
  RUST_LOG=goldsync_server=debug goldsync serve --data ./srv

It logs to standard error; RUST_LOG chooses what. A server that was never initialised, a port that is taken, or a second \
server on the same folder end it at once with the reason.

Stop it with Ctrl-C or SIGTERM: connections are closed cleanly and running publishes can be continued.")]
pub struct Serve {
    /// The server's data folder, made by `goldsync init` [default: as --config says, else /var/lib/goldsync-server].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data: Option<PathBuf>,
    /// The configuration [default: server.toml in the data folder].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

/// `goldsync publish`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync publish web.ext4 --name web --version 2026.11.21
  goldsync publish /dev/vg0/golden --name web --version 2026.11.21 --label commit=4f1c2d --json

The image may be a file (sparse ones welcome) or a block device, any file system or a whole disk; its size must be a \
multiple of 4096 bytes. Its id is the BLAKE3 hash that `b3sum` prints. Only blocks that no release on the server holds \
are sent. Nothing is visible before the last step, which is atomic; after an interruption the same command goes on \
where it stopped. The same bytes again are \"already published\" (exit 0); other bytes under a name and version that \
exist are refused (exit 1).

An image that carries one dm-verity hash tree over all of its data (as `veritysetup format` appends it, SHA-256 and 4096 bytes) is \
signed with its root hash; --verity appends one, always the same for the same data (memory: 0.8 % of the image).

Memory: about 2 MiB for each processor core, plus 17 bytes for each 4 KiB of the image.")]
pub struct Publish {
    /// The image: a file or a block device that nothing writes to meanwhile.
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub image: PathBuf,
    /// What the image is for, for example `web`.
    #[arg(long, value_name = "NAME")]
    pub name: Word,
    /// Which one it is, for example `2026.11.21`. Never to be used again for other bytes.
    #[arg(long, value_name = "VERSION")]
    pub version: Word,
    /// A label, free-form; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// Append a dm-verity hash tree, unless the image carries one: the published image is that much longer, the file is not
    /// written.
    #[arg(long)]
    pub verity: bool,
    /// The oldest goldsync-agent that can install it, for example 0.2.0.
    #[arg(long, value_name = "VERSION", value_parser = version)]
    pub minimum_agent: Option<String>,
    /// Say nothing but the result.
    #[arg(long, short)]
    pub quiet: bool,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync bench`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync bench web-2026.11.14.ext4 web-2026.11.21.ext4
  goldsync bench old.erofs new.erofs --rate 20 --json

Makes the plans and packs that a server would make from OLD to NEW, the quick one, the thorough one and the smallest, searches OLD \
as a node of an unknown base would, and packs NEW whole: bytes are real. What the transport adds, and how long it takes at --rate, \
is estimated. ext2, ext3 and ext4 are looked into, so that files, times, the journal and garbage in free blocks are told apart; \
of others, regions are named.

The thorough and the smallest plan take a minute or more for each GiB of a large change, for they are made on one core, as on a \
server; --no-thorough leaves both out.

Changes nothing. Memory: the packs, 5 bytes for each 4 KiB of OLD while they are made, and up to 60 MiB for each processor \
core; the images are mapped.")]
pub struct Bench {
    /// What nodes have: a file or a block device that nothing writes to meanwhile.
    #[arg(value_name = "OLD", value_hint = ValueHint::FilePath)]
    pub old: PathBuf,
    /// What they shall have.
    #[arg(value_name = "NEW", value_hint = ValueHint::FilePath)]
    pub new: PathBuf,
    /// Estimate transfers at so many megabits a second.
    #[arg(long, value_name = "MBIT", default_value = "100", value_parser = rate)]
    pub rate: f64,
    /// Leave out the thorough and the smallest plan, which take longest to make.
    #[arg(long)]
    pub no_thorough: bool,
    /// Name so many files or regions.
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub top: usize,
    /// No progress, only the result.
    #[arg(long, short)]
    pub quiet: bool,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// Megabits a second.
fn rate(text: &str) -> Result<f64, String> {
    let good = text.parse().ok().filter(|rate| (0.001..=1e6).contains(rate));
    good.ok_or_else(|| "megabits a second, from 0.001 to 1000000".to_owned())
}

/// `goldsync promote`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync promote web:2026.11.21 staging
  goldsync promote web:2026.11.14 production    going back is the same act

Changes: moves the channel's pointer, not a byte. Needs the channel's own key in the operator's folder.")]
pub struct Promote {
    /// The release, NAME:VERSION.
    #[arg(value_name = "RELEASE")]
    pub release: ReleaseRef,
    /// The channel: dev, qa, staging or production.
    #[arg(value_name = "CHANNEL")]
    pub channel: Word,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync channel`
#[derive(Debug, Subcommand)]
pub enum Channel {
    /// Where each channel points.
    List(Json),
    /// What a channel pointed at, newest first, and who pointed it there.
    History(ChannelHistory),
    /// Make a channel, with a signing key of its own.
    Create(ChannelCreate),
}

/// `goldsync channel create`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync channel create canary
  goldsync promote web:2026.11.21 canary

Changes: makes keys/channel-NAME.pem in the operator's folder and has `targets` name it. Needs the key of `targets` in \
the folder, which belongs off-line: bring it back for this. Interrupted, the same command ends what was begun.")]
pub struct ChannelCreate {
    /// Its name, for example `canary`.
    #[arg(value_name = "NAME", value_parser = new_channel)]
    pub channel: Word,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync trust`
#[derive(Debug, Subcommand)]
pub enum Trust {
    /// Every role: its version, when it expires, and whether its key is in this operator's folder.
    #[command(after_help = TRUST_STATUS_HELP)]
    Status(Json),
    /// Sign roles anew: they say the same, for another year.
    Renew(TrustRenew),
    /// Give roles new keys: one was stolen, was lost, or has been used for long enough.
    Rotate(TrustRotate),
}

const TRUST_STATUS_HELP: &str = "\
Columns:
  DAYS LEFT  whole days until the role expires; after that, nodes take nothing new that depends on it
  KEY        here       in this folder
             unfinished in this folder; `goldsync trust rotate` was cut short: run it again
             replaced   this folder's key is not the one that the fleet knows; it can sign nothing any more
             elsewhere  not in this folder
             server     the server's own; it renews these roles by itself

A role with less than 30 days left is named on standard error. Exit 3 if one has expired.";

/// `goldsync trust renew`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync trust renew                     every role whose key is in this folder
  goldsync trust renew root targets        once a year, with the off-line keys brought back into keys/

Changes: the next version of each role, good for a year from now; nodes take it at their next check. Publishing renews \
`releases` and promoting renews the channel's role, so that only roles at rest need this.")]
pub struct TrustRenew {
    /// root, targets, releases or channel-NAME; repeatable [default: every role whose key is in this folder].
    #[arg(value_name = "ROLE", value_parser = operator_role)]
    pub roles: Vec<String>,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync trust rotate`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync trust rotate releases channel-production      a laptop was stolen
  goldsync trust rotate root targets                     new off-line keys
  goldsync trust rotate online                           the server was broken into, and is clean again

Changes: makes the new key in keys/, has the metadata name it, and puts it into the place of the old one, which is kept \
as ROLE.old.pem and signs nothing any more. Nodes take it at their next check and need nothing else. Needs \
in the folder: for releases and channels the key of `targets`, for targets and online that of `root`, for \
root the old one. Interrupted, the same command ends what was begun.

What the role said before is signed with the new key as it is. If the old key was stolen, look at `goldsync release \
list` and `goldsync channel history`, and promote what should run.")]
pub struct TrustRotate {
    /// root, targets, releases, channel-NAME, or `online` for the server's own two; repeatable.
    #[arg(value_name = "ROLE", required = true, value_parser = rotated_role)]
    pub roles: Vec<String>,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync channel history`
#[derive(Debug, Args)]
pub struct ChannelHistory {
    /// The channel.
    #[arg(value_name = "CHANNEL")]
    pub channel: Word,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync release`
#[derive(Debug, Subcommand)]
pub enum Release {
    /// All releases, newest first.
    List(ReleaseList),
    /// One release, with all that was signed.
    Show(ReleaseShow),
    /// Take releases out for good, and give back the space that only they need; signed. What is in use stays.
    Prune(ReleasePrune),
}

/// `goldsync release list`
#[derive(Debug, Args)]
pub struct ReleaseList {
    /// Only releases of this name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<Word>,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync release show`
#[derive(Debug, Args)]
pub struct ReleaseShow {
    /// The release, NAME:VERSION.
    #[arg(value_name = "RELEASE")]
    pub release: ReleaseRef,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync release prune`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync release prune --keep 10 --dry-run            what would go if each name kept its newest ten
  goldsync release prune --keep 10 --older-than 90d     of what is older than 90 days, all but each name's newest ten
  goldsync release prune web:2026.01.09                 this one

A release stays while a channel points at it, or a node that is not revoked last said that it runs it or holds it in its \
standby slot; named explicitly, it is an error and nothing is pruned. A release that was pruned cannot come back but with the \
same bytes. The server gives the space back soon afterwards.")]
pub struct ReleasePrune {
    /// These releases, NAME:VERSION.
    #[arg(value_name = "RELEASE", required_unless_present_any = ["keep", "older_than"], conflicts_with_all = ["keep", "older_than", "name"])]
    pub releases: Vec<ReleaseRef>,
    /// All but the newest N of each name.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// Only what was published longer ago than this.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// Only releases of this name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<Word>,
    /// Say what would go and what would stay, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync token`
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token and print the command to run on the new node. Shown once: the server keeps only its hash.
    Create(TokenCreate),
}

/// `goldsync token create`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync token create                                    one node, within an hour
  goldsync token create --valid 1d --uses 20 --label role=web

A token is gs1.SECRET.CA.ROOT: a secret that the server knows by its hash only, and the BLAKE3 hashes of the fleet's CA \
certificate and of its first signed root, by which the new node knows that it talks to your server and to no other.")]
pub struct TokenCreate {
    /// How long it can be used [default: the server's, one hour].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub valid: Option<Duration>,
    /// How many nodes may enrol with it [default: the server's, one].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// A label for every node that enrols with it, over the node's own; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// What the new node shall dial [default: as the server's `init` noted it in operator.toml].
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<String>,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync node`
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Every machine that ever enrolled.
    List(NodeList),
    /// Turn a node away for good: its certificate is refused from now on, its open connection is cut.
    Revoke(NodeRevoke),
}

/// `goldsync node list`
#[derive(Debug, Args)]
pub struct NodeList {
    /// Which nodes.
    #[command(flatten)]
    pub which: Which,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync node revoke`
#[derive(Debug, Args)]
#[command(after_help = "\
Changes: the node can fetch nothing more. What it runs is not touched. To take it back, enrol it with a new token.")]
pub struct NodeRevoke {
    /// The node's name, as `goldsync node list` prints it.
    #[arg(value_name = "NODE")]
    pub node: Word,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// Which nodes.
#[derive(Debug, Args)]
pub struct Which {
    /// Only nodes that follow this channel.
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<Word>,
    /// Which of them.
    #[command(flatten)]
    pub selector: Selector,
}

/// Which labels.
#[derive(Debug, Args)]
pub struct Selector {
    /// Only nodes that have all these labels, for example role=web,site=muc.
    #[arg(long = "selector", short = 'l', value_name = "KEY=VALUE,...", value_delimiter = ',')]
    pub labels: Vec<Label>,
}

/// `goldsync fleet`
#[derive(Debug, Subcommand)]
pub enum Fleet {
    /// Order every connected node of a channel to sync, and watch until all are done.
    Sync(FleetSync),
    /// Order every connected node of a channel that runs a release to go back to what it ran before, and watch.
    Rollback(FleetRollback),
    /// Why a node has not updated: the decision, as far as the server knows it.
    Explain(FleetExplain),
    /// Every node: its channel, what it runs and holds in standby, phase, last contact, drift.
    Status(FleetStatus),
}

/// `goldsync fleet sync`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync fleet sync --channel production --selector role=web
  goldsync fleet sync --channel staging --now --timeout 30m --json

Exit 0 promises that every node that matches runs what the channel points at. It is 1 if a node failed, if one waits for its \
maintenance window or a restart, if one is not connected (it will move when it next connects; --allow-absent forgives that), if \
the time ran out, or if no node matches. Ctrl-C stops the watching only: the nodes carry on.")]
pub struct FleetSync {
    /// To whom, and how it is watched.
    #[command(flatten)]
    pub order: FleetOrder,
    /// At once, without the random delay that each node would otherwise take.
    #[arg(long)]
    pub now: bool,
}

/// `goldsync fleet rollback`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync fleet rollback --channel production --from web:2026.11.28

A node that does not run that release does nothing. One that goes back proves its other slot first, does not wait for a \
maintenance window, and does not go to that release again unasked. Point the channel at a good release before, or nodes that \
come later go to the bad one: `goldsync promote`.")]
pub struct FleetRollback {
    /// To whom, and how it is watched.
    #[command(flatten)]
    pub order: FleetOrder,
    /// The release to go back from, NAME:VERSION.
    #[arg(long, value_name = "RELEASE")]
    pub from: ReleaseRef,
}

/// `goldsync fleet explain`
#[derive(Debug, Args)]
pub struct FleetExplain {
    /// The node's name.
    pub node: Word,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// To whom an order goes, and how it is watched.
#[derive(Debug, Args)]
pub struct FleetOrder {
    /// Nodes that follow this channel.
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Word,
    /// Which of them.
    #[command(flatten)]
    pub selector: Selector,
    /// Nodes that are not connected do not count as failures.
    #[arg(long)]
    pub allow_absent: bool,
    /// Stop watching after this long; nodes that are not done by then count as failures [default: never].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// No progress, only the table.
    #[arg(long, short)]
    pub quiet: bool,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync fleet status`
#[derive(Debug, Args)]
#[command(after_help = "\
Columns:
  RUNS     the release in the active slot, or the first digits of its image id; `+` current: it is what the channel points
           at, `!` not yet, `?` not known
  STANDBY  the same for the other slot: what a rollback would bring back
  PHASE    idle, check, plan, fetch, verify, staged, swap, trial, repair or failed; `offline` if the node is not connected
  DRIFT    blocks of the active slot that are not the golden image's, by the node's last look; `-` if it never looked")]
pub struct FleetStatus {
    /// Which nodes.
    #[command(flatten)]
    pub which: Which,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync audit`
#[derive(Debug, Args)]
pub struct Audit {
    /// At most so many entries, newest first.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync status`
#[derive(Debug, Args)]
pub struct Status {
    /// Text or JSON.
    #[command(flatten)]
    pub json: Json,
}

/// `goldsync completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync completions bash > /etc/bash_completion.d/goldsync
  goldsync completions zsh > ~/.zfunc/_goldsync")]
pub struct Completions {
    /// For which shell.
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `goldsync man`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  goldsync man | man -l -
  goldsync man /usr/local/share/man/man1")]
pub struct Man {
    /// Write one page for every verb into this folder; made if missing.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

/// What stands for the server's two roles where a role is asked for.
pub const ONLINE: &str = "online";

/// Why a text is not a role that an operator signs, or not the name of a new channel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// Not known.
    #[error(
        "{text:?} is not a role that an operator signs: write root, targets, releases or channel-NAME; `goldsync trust status` lists them"
    )]
    Unknown {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// The server's.
    #[error("the server renews {text} by itself; `goldsync trust rotate {ONLINE}` gives it new keys")]
    Server {
        /// Which.
        text: String,
    },
    /// The key's file would have a name that is taken.
    #[error("a channel's name cannot end in .next or .old, because key files are named so; choose another")]
    Reserved,
    /// Not a word.
    #[error(transparent)]
    Word(#[from] goldsync_proto::release::WordError),
}

/// `root`, `targets`, `releases` or `channel-NAME`.
pub fn operator_role(text: &str) -> Result<String, RoleError> {
    let channel = text.strip_prefix("channel-").is_some_and(|name| name.parse::<Word>().is_ok());
    match text {
        ROOT | TARGETS | RELEASES_ROLE => Ok(text.to_owned()),
        _ if channel && !is_reserved(text) => Ok(text.to_owned()),
        SNAPSHOT | TIMESTAMP | ONLINE => Err(RoleError::Server { text: text.to_owned() }),
        _ => Err(RoleError::Unknown { text: text.chars().take(80).collect() }),
    }
}

/// The same, or `online`.
pub fn rotated_role(text: &str) -> Result<String, RoleError> {
    if text == ONLINE { Ok(text.to_owned()) } else { operator_role(text) }
}

/// A channel's name that its key can be filed under.
pub fn new_channel(text: &str) -> Result<Word, RoleError> {
    let name: Word = text.parse()?;
    if is_reserved(text) { Err(RoleError::Reserved) } else { Ok(name) }
}

/// The whole definition, for man pages, completions and tests.
pub fn command() -> clap::Command {
    Cli::command()
}

/// `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Before the first `=`.
    pub key: String,
    /// After it.
    pub value: String,
}

/// Why a text is not a [`Label`], or labels contradict each other.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// No `=`, or nothing beside it.
    #[error("{text:?} is not a label: write KEY=VALUE, for example role=web")]
    Form {
        /// What was given, cut to 80 characters.
        text: String,
    },
    /// Too long.
    #[error("label {key:?} is too long: key and value may have {LABEL_LEN_MAX} bytes each")]
    Length {
        /// Its key, cut to 80 characters.
        key: String,
    },
    /// One key, two values.
    #[error("label {key:?} is given twice, as {one:?} and as {other:?}; keep one")]
    Twice {
        /// The key.
        key: String,
        /// The first value.
        one: String,
        /// The second one.
        other: String,
    },
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        match text.split_once('=') {
            Some((key, value)) if key.len() > LABEL_LEN_MAX || value.len() > LABEL_LEN_MAX => {
                Err(LabelError::Length { key: key.chars().take(80).collect() })
            }
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(LabelError::Form { text: text.chars().take(80).collect() }),
        }
    }
}

/// Labels as a map. The same label twice is harmless, the same key with two values is not.
pub fn label_map(labels: &[Label]) -> Result<BTreeMap<String, String>, LabelError> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for Label { key, value } in labels {
        if let Some(one) = map.insert(key.clone(), value.clone())
            && one != *value
        {
            return Err(LabelError::Twice { key: key.clone(), one, other: value.clone() });
        }
    }
    Ok(map)
}

/// Why a text is not a duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: write numbers with units, for example 90s, 15m, 1h, 7d or 1h30m; more than zero")]
pub struct DurationError {
    text: String,
}

/// `90s`, `15m`, `1h`, `7d`, `2w`, `1h30m`.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let refuse = || DurationError { text: text.chars().take(80).collect() };
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit = tail.chars().next().ok_or_else(refuse)?;
        let each = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return Err(refuse()),
        };
        let number: u64 = number.parse().map_err(|_| refuse())?;
        seconds = number.checked_mul(each).and_then(|part| part.checked_add(seconds)).ok_or_else(refuse)?;
        rest = tail.get(unit.len_utf8()..).unwrap_or_default();
    }
    // A century is a slip of the finger, and later sums with it would overflow a date.
    if seconds == 0 || seconds > 100 * 366 * 86_400 { Err(refuse()) } else { Ok(Duration::from_secs(seconds)) }
}

/// Why a text is not an agent's version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a version: write MAJOR.MINOR.PATCH, for example 0.2.0")]
pub struct VersionError {
    text: String,
}

/// `MAJOR.MINOR.PATCH`, checked here so that no release is signed that no agent can judge.
pub fn version(text: &str) -> Result<String, VersionError> {
    let parts: Vec<&str> = text.split('.').collect();
    let number = |part: &&str| {
        !part.is_empty()
            && part.len() <= 9
            && part.bytes().all(|b| b.is_ascii_digit())
            && (*part == "0" || !part.starts_with('0'))
    };
    if parts.len() == 3 && parts.iter().all(number) {
        Ok(text.to_owned())
    } else {
        Err(VersionError { text: text.chars().take(80).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn command_lines_become_verbs() {
        let check = |line: &str, test: &dyn Fn(&Cli) -> bool| {
            let cli = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert!(test(&cli), "{line}: {cli:?}");
        };
        check("goldsync init", &|cli| {
            matches!(&cli.verb, Verb::Init(i) if i.data.as_os_str() == DATA_DEFAULT
            && i.listen.port() == 7400 && i.api.port() == 7401 && i.names.is_empty())
        });
        check("goldsync init --data d --operator o --name a --name b", &|cli| {
            matches!(&cli.verb, Verb::Init(i) if i.names == ["a", "b"]) && cli.operator == Some("o".into())
        });
        check("goldsync serve --config c", &|cli| matches!(&cli.verb, Verb::Serve(s) if s.config == Some("c".into())));
        check(
            "goldsync publish i --name web --version 2026.11.21 --label k=v --minimum-agent 0.2.0 -q --json",
            &|cli| {
                matches!(&cli.verb, Verb::Publish(p) if p.name.as_str() == "web" && p.version.as_str() == "2026.11.21"
                && p.labels == [Label { key: "k".into(), value: "v".into() }] && p.quiet && p.json.json
                && p.minimum_agent.as_deref() == Some("0.2.0"))
            },
        );
        check(
            "goldsync promote web:1 staging",
            &|cli| matches!(&cli.verb, Verb::Promote(p) if p.release.to_string() == "web:1" && p.channel.as_str() == "staging"),
        );
        check(
            "goldsync bench a b --rate 2.5 --top 3 --no-thorough",
            &|cli| matches!(&cli.verb, Verb::Bench(b) if b.rate == 2.5 && b.top == 3 && b.no_thorough && b.old.as_os_str() == "a"),
        );
        check("goldsync channel list --json", &|cli| matches!(&cli.verb, Verb::Channel(Channel::List(j)) if j.json));
        check("goldsync channel history dev", &|cli| matches!(&cli.verb, Verb::Channel(Channel::History(_))));
        check("goldsync release show web:1", &|cli| matches!(&cli.verb, Verb::Release(Release::Show(_))));
        check("goldsync token create --valid 1h30m --uses 3 --label a=b=c", &|cli| {
            matches!(&cli.verb, Verb::Token(Token::Create(t)) if t.valid == Some(Duration::from_secs(5400))
                && t.uses == Some(3) && t.labels[0].value == "b=c")
        });
        check("goldsync node revoke web-1", &|cli| matches!(&cli.verb, Verb::Node(Node::Revoke(_))));
        check("goldsync fleet sync --channel production --selector role=web,site=muc --now --operator o", &|cli| {
            matches!(&cli.verb, Verb::Fleet(Fleet::Sync(s)) if s.order.selector.labels.len() == 2 && s.now && !s.order.allow_absent)
                && cli.operator == Some("o".into())
        });
        check(
            "goldsync fleet status -l role=web",
            &|cli| matches!(&cli.verb, Verb::Fleet(Fleet::Status(s)) if s.which.selector.labels.len() == 1),
        );
        check("goldsync audit --limit 5", &|cli| matches!(&cli.verb, Verb::Audit(a) if a.limit == 5));
        check("goldsync channel create canary", &|cli| matches!(&cli.verb, Verb::Channel(Channel::Create(_))));
        check("goldsync trust status --json", &|cli| matches!(&cli.verb, Verb::Trust(Trust::Status(j)) if j.json));
        check("goldsync trust renew", &|cli| matches!(&cli.verb, Verb::Trust(Trust::Renew(r)) if r.roles.is_empty()));
        check(
            "goldsync trust rotate root channel-dev online",
            &|cli| matches!(&cli.verb, Verb::Trust(Trust::Rotate(r)) if r.roles == ["root", "channel-dev", "online"]),
        );
        check("goldsync completions zsh", &|cli| matches!(&cli.verb, Verb::Completions(_)));
        check("goldsync man out", &|cli| matches!(&cli.verb, Verb::Man(m) if m.dir == Some("out".into())));
    }

    #[test]
    fn wrong_usage_says_what_would_be_right() {
        for (line, words) in [
            ("goldsync publish i --name Web --version 1", "lower-case letters"),
            ("goldsync publish i --name web --version 1 --label role", "KEY=VALUE"),
            ("goldsync publish i --name web --version 1 --minimum-agent new", "MAJOR.MINOR.PATCH"),
            ("goldsync publish i --name web", "--version"),
            ("goldsync bench a", "<NEW>"),
            ("goldsync bench a b --rate 0", "megabits"),
            ("goldsync bench a b --rate nan", "megabits"),
            ("goldsync promote web staging", "NAME:VERSION"),
            ("goldsync token create --valid 1y", "1h30m"),
            ("goldsync token create --uses 0", "--uses"),
            ("goldsync fleet sync", "--channel"),
            ("goldsync audit --limit 0", "--limit"),
            ("goldsync trust renew release", "channel-NAME"),
            ("goldsync trust renew channel-dev.old", "trust status"),
            ("goldsync trust renew timestamp", "rotate online"),
            ("goldsync trust rotate", "<ROLE>"),
            ("goldsync channel create dev.next", ".next"),
            ("goldsync channel create Dev", "lower-case"),
            ("goldsync init --listen gold", "--listen"),
            ("goldsync sing", "publish"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            let text = error.render().to_string();
            assert!(text.contains(words) || words == "publish", "{line}: {text}");
        }
    }

    #[test]
    fn every_verb_explains_itself() {
        fn walk(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {} has no help", argument.get_id());
            }
            for verb in command.get_subcommands() {
                walk(verb, &format!("{path} {}", verb.get_name()));
            }
        }
        walk(&command(), "goldsync");
        let about = |name: &str| {
            let command = command();
            let verb = command.find_subcommand(name).and_then(|verb| verb.get_about()).map(ToString::to_string);
            verb.unwrap_or_default()
        };
        // What an argument group says of itself must not take a verb's place.
        assert!(about("publish").starts_with("Publish an image"), "{}", about("publish"));
        assert!(about("status").starts_with("The server at a glance"), "{}", about("status"));
    }

    #[test]
    fn durations_have_units() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("7d", 604_800), ("2w", 1_209_600)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "1", "h", "1.5h", "-1h", "0s", "1y", "1h 30m", "99999999999999999999d", "5000w5000w", "1é"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_are_held_against_their_limits() {
        let long = "x".repeat(LABEL_LEN_MAX + 1);
        assert_eq!("role=web".parse(), Ok(Label { key: "role".into(), value: "web".into() }));
        assert!(matches!(format!("k={long}").parse::<Label>(), Err(LabelError::Length { .. })));
        for text in ["", "=", "a=", "=b", "ab"] {
            assert!(matches!(text.parse::<Label>(), Err(LabelError::Form { .. })), "{text}");
        }
        let twice = label_map(&["a=1".parse().unwrap(), "a=2".parse().unwrap()]).unwrap_err();
        assert!(twice.to_string().contains("keep one"));
    }

    #[test]
    fn versions_are_three_numbers() {
        assert_eq!(version("0.2.10"), Ok("0.2.10".into()));
        for text in ["", "1", "1.2", "1.2.3.4", "1.2.x", "01.2.3", "1..2", "1.2.9999999999"] {
            assert!(version(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,40}") {
            let _ = (duration(&text), text.parse::<Label>(), version(&text));
        }
    }
}
