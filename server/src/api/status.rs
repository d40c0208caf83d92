//! How the server is, and what was done on it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::problem::{ApiError, ApiResult};
use super::types::{AuditEntry, Problem, Status};
use crate::hub::Hub;

/// The server in a few figures.
#[utoipa::path(get, path = "/v1/status", tag = "server",
    responses((status = 200, body = Status), (status = 401, body = Problem)))]
pub async fn status(State(hub): State<Arc<Hub>>) -> ApiResult<Json<Status>> {
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        releases: hub.catalog.count_releases().await?,
        nodes: hub.catalog.count_nodes().await?,
        connected: hub.roster.connected() as u64,
        stored: hub.store.stored(),
    }))
}

/// What `GET /v1/audit` takes.
#[derive(Debug, Deserialize)]
pub struct AuditQuery {
    limit: Option<u32>,
}

const AUDIT_DEFAULT: u32 = 100;
const AUDIT_MAX: u32 = 10_000;

/// Who did what, when, and from where; newest first.
#[utoipa::path(get, path = "/v1/audit", tag = "server",
    params(("limit" = Option<u32>, Query, description = "At most so many entries; default 100, at most 10000")),
    responses((status = 200, body = Vec<AuditEntry>), (status = 400, body = Problem), (status = 401, body = Problem)))]
pub async fn audit(
    State(hub): State<Arc<Hub>>,
    query: Result<Query<AuditQuery>, axum::extract::rejection::QueryRejection>,
) -> ApiResult<Json<Vec<AuditEntry>>> {
    let Query(query) = query.map_err(ApiError::bad_request)?;
    let limit = query.limit.unwrap_or(AUDIT_DEFAULT);
    if limit > AUDIT_MAX {
        return Err(ApiError::bad_request(format!("limit = {limit} is more than {AUDIT_MAX}")));
    }
    Ok(Json(hub.catalog.audit(limit).await?))
}
