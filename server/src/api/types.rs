//! The bodies of the HTTPS API, shared by the server that answers and the operator's tool that asks.
//!
//! JSON, snake case, times in RFC 3339 (UTC). Unknown fields are ignored by both sides. Every error has the body
//! [`Problem`] with a status of 4xx (the request's fault) or 5xx (the server's).

use std::collections::BTreeMap;

use goldsync_proto::block::Run;
use goldsync_proto::digest::ImageId;
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef, Sections, Word};
use goldsync_proto::wire::{Outcome, Report};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::schema;

/// What went wrong, and what to do about it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable word for programs: `not_found`, `conflict`, `taken`, `needed`, `unauthorised`, `bad_request`, `internal`, ...
    pub code: String,
    /// The values, for people.
    pub message: String,
    /// The remedy, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The server's version.
    pub version: String,
    /// Releases, nodes, and nodes connected now.
    pub releases: u64,
    /// Nodes enrolled and not revoked.
    pub nodes: u64,
    /// Nodes with an open control stream.
    pub connected: u64,
    /// Bytes in the object store.
    pub stored: u64,
}

/// `POST /v1/uploads`: begin, or go on with, the upload of an image. Idempotent.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UploadRequest {
    /// The image's id.
    #[schema(value_type = String)]
    pub image: ImageId,
    /// Bytes.
    pub size: u64,
}

/// Answer to [`UploadRequest`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UploadState {
    /// The image is stored already, whole and proven: nothing to upload.
    pub stored: bool,
}

/// Answer to `PUT /v1/uploads/{image}/blocks` (body: the signature's `blocks` section, octets):
/// the runs of target blocks whose bytes the server lacks. Equal blocks are asked for once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Missing {
    /// `(first, count)`, ascending.
    #[schema(value_type = Vec<(u32, u32)>)]
    pub runs: Vec<Run>,
}

// `PUT /v1/uploads/{image}/frames/{first}` carries one literal frame (octets, see proto::pack) whose raw bytes are the
// next missing blocks in order, beginning with target block `first`. Answer: 204. Sending a frame again is harmless.

/// Answer to `POST /v1/uploads/{image}/complete`: the server has read the image back from its store, whole.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Uploaded {
    /// The sections as the server made them; the publisher compares before it signs.
    #[schema(value_type = schema::Sections)]
    pub sections: Sections,
    /// Bytes that this image added to the store.
    pub added: u64,
    /// It was stored before, and something of it was damaged or missing; it is whole again.
    #[serde(default)]
    pub healed: bool,
}

/// `POST /v1/releases`: make a release visible. Atomic.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReleaseRequest {
    /// The manifest, exactly as signed (text of the TUF target file).
    pub manifest: String,
    /// The signed `releases` role, text.
    pub role: String,
}

/// A release as the API shows it. `GET /v1/releases` (list), `GET /v1/releases/{name}/{version}`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// What was signed.
    #[schema(value_type = schema::Manifest)]
    pub manifest: Manifest,
    /// Who published it.
    pub published_by: String,
    /// When the server took it.
    pub published_at: String,
    /// Bytes that it added to the store.
    pub added: u64,
    /// The channels that point at it.
    #[schema(value_type = Vec<String>)]
    pub channels: Vec<Word>,
    /// The images that nodes will mostly come from, and how far the plans from there are. In a list of releases: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<LikelyBase>,
}

/// An image that nodes will come from to a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LikelyBase {
    /// Its id.
    #[schema(value_type = String)]
    pub image: ImageId,
    /// The releases that it was published as.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub releases: Vec<ReleaseRef>,
    /// Nodes that run it.
    pub nodes: u64,
    /// What the quick plan costs a node, if there is one: itself and all that it fetches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quick: Option<u64>,
    /// The same of the thorough plan, which nodes get once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thorough: Option<u64>,
    /// The same of the smallest plan, which nodes get that would rather spare bytes than time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smallest: Option<u64>,
    /// Whether one of them is being made or waits for its turn.
    pub under_way: bool,
}

/// `POST /v1/releases/prune`: take releases out for good: all of them or none.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PruneRequest {
    /// Which, `NAME:VERSION` each.
    #[schema(value_type = Vec<String>)]
    pub releases: Vec<ReleaseRef>,
    /// The signed `releases` role without them, text. Left out: nothing is changed, only said what would be.
    #[serde(default)]
    pub role: Option<String>,
}

/// Answer to [`PruneRequest`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Pruning {
    /// The releases that were asked for.
    pub releases: Vec<PruningRelease>,
    /// Bytes of images that no other release needs: they are given back within the server's `store.grace`.
    pub frees: u64,
    /// Bytes, about, that come back besides once segments of which most is dead then were written anew.
    pub rewriting: u64,
}

/// A release that shall be pruned.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PruningRelease {
    /// Which.
    #[schema(value_type = String)]
    pub release: ReleaseRef,
    /// Its image.
    #[schema(value_type = String)]
    pub image: ImageId,
    /// Why it must stay, for people; empty if it can go.
    pub needed_by: Vec<String>,
}

/// `POST /v1/channels/{channel}`: point a channel at a release.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PromoteRequest {
    /// The pointer, exactly as signed (text of the TUF target file).
    pub pointer: String,
    /// The signed `channel-…` role, text.
    pub role: String,
}

/// A channel. `GET /v1/channels` (list).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Channel {
    /// Its name.
    #[schema(value_type = String)]
    pub channel: Word,
    /// Where it points; `None` before the first promotion.
    #[schema(value_type = Option<schema::Pointer>)]
    pub pointer: Option<Pointer>,
    /// Nodes that follow it.
    pub nodes: u64,
}

// `GET /v1/channels/{channel}/history` answers `Vec<Promotion>`, newest first.

/// One promotion.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Promotion {
    /// Where the channel pointed from then on.
    #[schema(value_type = String)]
    pub release: ReleaseRef,
    /// Its image.
    #[schema(value_type = String)]
    pub image: ImageId,
    /// The operator.
    pub by: String,
    /// When.
    pub at: String,
}

/// `POST /v1/tokens`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenRequest {
    /// Seconds until it expires; the server's default is one hour.
    #[serde(default)]
    pub valid_s: Option<u64>,
    /// How many nodes may enrol with it; default 1.
    #[serde(default)]
    pub uses: Option<u32>,
    /// Labels that a node enrolled with it gets, over its own.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Answer to [`TokenRequest`]. The tool joins `secret`, the CA's hash and the TUF root's hash into the printed token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// For the audit log and for `token list`; no secret.
    pub id: String,
    /// Shown once, stored hashed.
    pub secret: String,
    /// When it expires.
    pub expires_at: String,
}

/// A node in the roster. `GET /v1/nodes?channel=&selector=k=v,k=v` (list).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    #[schema(value_type = String)]
    pub node: Word,
    /// The channel that it follows, as it last said.
    #[schema(value_type = Option<String>)]
    pub channel: Option<Word>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its control stream is open now.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen: Option<String>,
    /// Its agent's version.
    pub version: Option<String>,
    /// How it said it was.
    #[schema(value_type = Option<schema::Report>)]
    pub report: Option<Report>,
    /// Whether its active image is the one that its channel points at; `None` if not known.
    pub current: Option<bool>,
    /// Revoked nodes stay listed.
    pub revoked: bool,
    /// When it enrolled.
    pub enrolled_at: String,
}

// `POST /v1/nodes/{node}/revoke`: empty body, answer 204.

/// `POST /v1/fleet/sync`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SyncRequest {
    /// Nodes that follow this channel.
    #[schema(value_type = String)]
    pub channel: Word,
    /// Only nodes with all these labels.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// At once, without the nodes' splay.
    #[serde(default)]
    pub now: bool,
    /// Not to sync: to go back from this release to what ran before, on nodes that run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub back_from: Option<ReleaseRef>,
}

/// Answer to [`SyncRequest`].
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SyncOrder {
    /// The order's number.
    pub order: u64,
    /// The nodes that it reached.
    #[schema(value_type = Vec<String>)]
    pub nodes: Vec<Word>,
    /// Nodes that match but are not connected; they will see the channel when they are.
    #[schema(value_type = Vec<String>)]
    pub absent: Vec<Word>,
}

/// `GET /v1/fleet/sync/{order}/events`: one JSON object a line (application/x-ndjson) until every node is done.
/// The first lines are the present state of each node, so that a late reader misses nothing that matters.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SyncEvent {
    /// Which node.
    #[schema(value_type = String)]
    pub node: Word,
    /// How it is, while it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Report>)]
    pub report: Option<Report>,
    /// How it ended; the last event of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::Outcome>)]
    pub outcome: Option<Outcome>,
}

/// An entry of the audit log. `GET /v1/audit?limit=` (list, newest first).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// When.
    pub at: String,
    /// The operator or node.
    pub who: String,
    /// `release.publish`, `channel.promote`, `trust.submit`, `token.create`, `node.enrol`, `node.revoke`, `fleet.sync`, ...
    pub what: String,
    /// On what, with its values.
    pub detail: String,
    /// The peer's address.
    pub from: String,
}

/// `GET /v1/trust`: the signed metadata that the server holds, so that the tool can make the next version of a role.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TrustFiles {
    /// File name (`1.root.json`, `timestamp.json`, `3.releases.json`, ...) to text.
    pub files: BTreeMap<String, String>,
}

/// `POST /v1/trust`: the next versions of roles that list no new target file: the same for longer, new keys, a new
/// channel. All of them or none. Sending the same again changes nothing.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TrustRequest {
    /// Role (`root`, `targets`, `releases`, `channel-…`) to its signed text.
    pub roles: BTreeMap<String, String>,
}

/// A role of the signed metadata. Answer to [`TrustRequest`]: those that were sent, as the server holds them now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrustRole {
    /// Its name.
    pub role: String,
    /// Its version.
    pub version: u64,
    /// When it expires.
    pub expires: String,
}

/// Answer to `POST /v1/trust/online` (empty body): the public halves of the keys that shall follow the server's own.
/// They are made at the first call and used once a root names them. Each is a TUF key object, JSON text.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OnlineKeys {
    /// Of `snapshot`.
    pub snapshot: String,
    /// Of `timestamp`.
    pub timestamp: String,
}
