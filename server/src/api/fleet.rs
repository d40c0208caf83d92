//! Orders to the fleet, and what comes of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::stream;
use goldsync_proto::release::check_labels;
use tokio::time::timeout;

use super::auth::Caller;
use super::body::{JsonBody, parse};
use super::channels::known;
use super::problem::{ApiError, ApiResult};
use super::types::{Problem, SyncEvent, SyncOrder, SyncRequest};
use crate::hub::Hub;
use crate::orders::Events;

/// A reader that hears nothing for so long gets an empty line, so that it can tell a quiet fleet from a dead server.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Order all connected nodes of a channel to sync.
#[utoipa::path(post, path = "/v1/fleet/sync", tag = "fleet", request_body = SyncRequest,
    responses((status = 200, body = SyncOrder), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem)))]
pub async fn sync(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<SyncRequest>,
) -> ApiResult<Json<SyncOrder>> {
    known(&hub, request.channel.as_str())?;
    check_labels(&request.selector).map_err(ApiError::bad_request)?;
    let order = hub.orders.give(&hub.catalog, &hub.roster, &request, caller.act("fleet.sync", "")).await?;
    Ok(Json(order))
}

/// How an order goes: one JSON object a line, until every node is done. First the present state of each node; an empty line is a sign of life.
#[utoipa::path(get, path = "/v1/fleet/sync/{order}/events", tag = "fleet",
    params(("order" = u64, Path, description = "The order's number")),
    responses((status = 200, content_type = "application/x-ndjson", body = SyncEvent, description = "One a line"),
        (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn events(State(hub): State<Arc<Hub>>, Path(order): Path<String>) -> ApiResult<Response> {
    let order: u64 = parse(&order)?;
    let events = hub.orders.events(order).ok_or_else(|| {
        ApiError::not_found(format!("order {order} is not known here; orders are forgotten when the server restarts"))
    })?;
    let lines = stream::unfold(events, |mut events: Events| async move {
        let line = match timeout(SIGN_OF_LIFE, events.next()).await {
            Ok(batch) => lines(&batch?),
            Err(_) => Ok(Bytes::from_static(b"\n")),
        };
        Some((line, events))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn lines(events: &[SyncEvent]) -> Result<Bytes, serde_json::Error> {
    let mut text = Vec::new();
    for event in events {
        serde_json::to_writer(&mut text, event)?;
        text.push(b'\n');
    }
    Ok(text.into())
}
