//! The API as functions, one for each call that the tool makes. Bodies are `api::types`; nothing else is agreed on.

use bytes::Bytes;
use goldsync_proto::digest::ImageId;
use goldsync_proto::release::{ReleaseRef, Word};
use reqwest::Method;

use super::client::{Call, Client, Lines, Refusal};
use super::fail::Outcome;
use crate::api::types;

impl Client {
    /// `GET /v1/status`
    pub async fn status(&self) -> Outcome<types::Status> {
        self.get(&Call::new(Method::GET, ["status"])).await
    }

    /// `GET /v1/releases`
    pub async fn releases(&self) -> Outcome<Vec<types::Release>> {
        self.get(&Call::new(Method::GET, ["releases"])).await
    }

    /// `GET /v1/releases/{name}/{version}`
    pub async fn release(&self, release: &ReleaseRef) -> Outcome<Option<types::Release>> {
        self.find(&Call::new(Method::GET, ["releases", release.name.as_str(), release.version.as_str()])).await
    }

    /// `POST /v1/releases`; what a refusal means is the caller's to say.
    pub async fn add_release(&self, request: &types::ReleaseRequest) -> Outcome<Result<(), Refusal>> {
        Ok(self.try_send(&Call::new(Method::POST, ["releases"]).json(request)?).await)
    }

    /// `POST /v1/releases/prune`; what a refusal means is the caller's to say.
    pub async fn prune(&self, request: &types::PruneRequest) -> Outcome<Result<types::Pruning, Refusal>> {
        let call = Call::new(Method::POST, ["releases", "prune"]);
        self.try_get(&call.patient().json(request)?).await
    }

    /// `GET /v1/channels`
    pub async fn channels(&self) -> Outcome<Vec<types::Channel>> {
        self.get(&Call::new(Method::GET, ["channels"])).await
    }

    /// `GET /v1/channels/{channel}/history`
    pub async fn history(&self, channel: &Word) -> Outcome<Vec<types::Promotion>> {
        self.get(&Call::new(Method::GET, ["channels", channel.as_str(), "history"])).await
    }

    /// `POST /v1/channels/{channel}`; what a refusal means is the caller's to say.
    pub async fn promote(&self, channel: &Word, request: &types::PromoteRequest) -> Outcome<Result<(), Refusal>> {
        Ok(self.try_send(&Call::new(Method::POST, ["channels", channel.as_str()]).json(request)?).await)
    }

    /// `GET /v1/trust`
    pub async fn trust(&self) -> Outcome<types::TrustFiles> {
        self.get(&Call::new(Method::GET, ["trust"])).await
    }

    /// `POST /v1/trust`; what a refusal means is the caller's to say.
    pub async fn submit_roles(&self, request: &types::TrustRequest) -> Outcome<Result<Vec<types::TrustRole>, Refusal>> {
        self.try_get(&Call::new(Method::POST, ["trust"]).idempotent().json(request)?).await
    }

    /// `POST /v1/trust/online`
    pub async fn online_keys(&self) -> Outcome<types::OnlineKeys> {
        self.get(&Call::new(Method::POST, ["trust", "online"]).idempotent()).await
    }

    /// `POST /v1/uploads`. Endless: of an image that is stored the server reads every byte.
    pub async fn begin_upload(&self, image: ImageId, size: u64) -> Outcome<types::UploadState> {
        let call = Call::new(Method::POST, ["uploads"]).idempotent().patient().endless();
        self.get(&call.json(&types::UploadRequest { image, size })?).await
    }

    /// `PUT /v1/uploads/{image}/blocks`. Endless: the server holds the list against everything that it stores.
    pub async fn missing(&self, image: ImageId, blocks: Bytes) -> Outcome<types::Missing> {
        let id = image.to_string();
        self.get(&Call::new(Method::PUT, ["uploads", &id, "blocks"]).octets(blocks).patient().endless()).await
    }

    /// `PUT /v1/uploads/{image}/frames/{first}`. Endless: a frame over a slow line takes as long as it takes. What a
    /// refusal means is the caller's to say.
    pub async fn frame(&self, image: ImageId, first: u32, frame: Bytes) -> Result<(), Refusal> {
        let (id, first) = (image.to_string(), first.to_string());
        self.try_send(&Call::new(Method::PUT, ["uploads", &id, "frames", &first]).octets(frame).patient().endless())
            .await
    }

    /// `POST /v1/uploads/{image}/complete`. Endless: the server reads the whole image back. What a
    /// refusal means is the caller's to say.
    pub async fn complete_upload(&self, image: ImageId) -> Outcome<Result<types::Uploaded, Refusal>> {
        let id = image.to_string();
        self.try_get(&Call::new(Method::POST, ["uploads", &id, "complete"]).idempotent().patient().endless()).await
    }

    /// `POST /v1/tokens`
    pub async fn create_token(&self, request: &types::TokenRequest) -> Outcome<types::Token> {
        self.get(&Call::new(Method::POST, ["tokens"]).json(request)?).await
    }

    /// `GET /v1/nodes`
    pub async fn nodes(&self, channel: Option<&Word>, selector: Option<String>) -> Outcome<Vec<types::Node>> {
        let call = Call::new(Method::GET, ["nodes"]).query("channel", channel.map(Word::to_string));
        self.get(&call.query("selector", selector)).await
    }

    /// `POST /v1/nodes/{node}/revoke`
    pub async fn revoke(&self, node: &Word) -> Outcome {
        self.send(&Call::new(Method::POST, ["nodes", node.as_str(), "revoke"]).idempotent()).await
    }

    /// `POST /v1/fleet/sync`
    pub async fn order_sync(&self, request: &types::SyncRequest) -> Outcome<types::SyncOrder> {
        self.get(&Call::new(Method::POST, ["fleet", "sync"]).json(request)?).await
    }

    /// `GET /v1/fleet/sync/{order}/events`; what a refusal means is the caller's to say.
    pub async fn sync_events(&self, order: u64) -> Outcome<Result<Lines, Refusal>> {
        let order = order.to_string();
        Ok(self.lines(&Call::new(Method::GET, ["fleet", "sync", &order, "events"]).patient().endless()).await)
    }

    /// `GET /v1/audit`
    pub async fn audit(&self, limit: u32) -> Outcome<Vec<types::AuditEntry>> {
        self.get(&Call::new(Method::GET, ["audit"]).query("limit", Some(limit.to_string()))).await
    }
}
