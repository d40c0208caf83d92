//! Channels: where each points, who pointed it there, and pointing it elsewhere.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use goldsync_proto::release::{Pointer, Word, channel_role, channel_target};

use super::auth::Caller;
use super::body::{JsonBody, parse};
use super::problem::{ApiError, ApiResult};
use super::types::{Channel, Problem, PromoteRequest, Promotion};
use crate::channel;
use crate::hub::Hub;
use crate::likely;

/// Every channel.
#[utoipa::path(get, path = "/v1/channels", tag = "channels",
    responses((status = 200, body = Vec<Channel>), (status = 401, body = Problem)))]
pub async fn list(State(hub): State<Arc<Hub>>) -> ApiResult<Json<Vec<Channel>>> {
    Ok(Json(all(&hub).await?))
}

async fn all(hub: &Hub) -> ApiResult<Vec<Channel>> {
    Ok(channel::list(&hub.catalog, &hub.roster, hub.trust.channels()).await?)
}

/// A channel's promotions, newest first.
#[utoipa::path(get, path = "/v1/channels/{channel}/history", tag = "channels",
    params(("channel" = String, Path, description = "Which")),
    responses((status = 200, body = Vec<Promotion>), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn history(State(hub): State<Arc<Hub>>, Path(name): Path<String>) -> ApiResult<Json<Vec<Promotion>>> {
    let name = known(&hub, &name)?;
    Ok(Json(hub.catalog.history(&name).await?))
}

/// The channel of that name, if the signed metadata knows one.
pub fn known(hub: &Hub, name: &str) -> ApiResult<Word> {
    let name: Word = parse(name)?;
    let channels = hub.trust.channels();
    if channels.contains(&name) {
        return Ok(name);
    }
    let known = channels.iter().map(Word::as_str).collect::<Vec<_>>().join(", ");
    Err(ApiError::not_found(format!("there is no channel {name}")).remedy(format!("the channels are: {known}")))
}

/// Point a channel at a release, and tell its nodes. The same pointer again changes nothing.
#[utoipa::path(post, path = "/v1/channels/{channel}", tag = "channels", request_body = PromoteRequest,
    params(("channel" = String, Path, description = "Which")),
    responses((status = 200, body = Channel), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, description = "not signed as it must be", body = Problem)))]
pub async fn promote(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    JsonBody(request): JsonBody<PromoteRequest>,
) -> ApiResult<Json<Channel>> {
    // In a task of its own: an operator who hangs up must not leave metadata and catalog apart.
    let done = tokio::spawn(async move { point(&hub, &caller, &name, &request).await });
    done.await.map_err(ApiError::internal)?.map(Json)
}

async fn point(hub: &Arc<Hub>, caller: &Caller, name: &str, request: &PromoteRequest) -> ApiResult<Channel> {
    let name = known(hub, name)?;
    let pointer = read(&name, &request.pointer)?;
    let _alone = hub.publishing.lock().await;
    check_release(hub, &pointer).await?;
    hub.trust.submit(&channel_role(&name), &request.role, Some((&channel_target(&name), &request.pointer))).await?;
    if hub.catalog.pointers().await?.contains(&pointer) {
        tracing::debug!(channel = %name, "the same promotion again");
    } else {
        let act = caller.act("channel.promote", format!("{name} to {} image {}", pointer.release, pointer.image));
        hub.catalog.promote(&pointer, &request.pointer, act).await?;
    }
    channel::announce(&hub.roster, &name);
    // Nodes may have moved since it was published.
    if let Some(row) = hub.catalog.release(&pointer.release).await? {
        likely::prepare(hub, &row.manifest);
    }
    let found = all(hub).await?.into_iter().find(|channel| channel.channel == name);
    found.ok_or_else(|| ApiError::internal(format!("channel {name} is gone")))
}

fn read(name: &Word, text: &str) -> ApiResult<Pointer> {
    let bad = |message: String| ApiError::bad_request(message);
    let pointer: Pointer =
        serde_json::from_str(text).map_err(|error| bad(format!("the pointer cannot be read: {error}")))?;
    if pointer.format != 1 {
        return Err(bad(format!("pointer format {} is not known here, only 1", pointer.format)));
    }
    if pointer.channel != *name {
        return Err(bad(format!("the pointer is for channel {}, not {name}", pointer.channel)));
    }
    Ok(pointer)
}

async fn check_release(hub: &Hub, pointer: &Pointer) -> ApiResult<()> {
    let release = &pointer.release;
    match hub.catalog.image_of(release).await? {
        None => Err(ApiError::not_found(format!("there is no release {release}")).remedy("publish it first")),
        Some(image) if image != pointer.image => {
            let message = format!("the pointer says image {} for {release}, which has image {image}", pointer.image);
            Err(ApiError::conflict(message))
        }
        Some(_) => Ok(()),
    }
}
