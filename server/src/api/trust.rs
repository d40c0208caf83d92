//! The signed metadata that the server holds, and the next versions of its roles.
//!
//! Releases and pointers have paths of their own, because files come with them. Here comes what changes who may sign,
//! and for how long: the signatures decide, not the bearer token.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use tough::schema::key::Key;

use super::auth::Caller;
use super::body::JsonBody;
use super::problem::{ApiError, ApiResult};
use super::types::{OnlineKeys, Problem, TrustFiles, TrustRequest, TrustRole};
use crate::catalog::stamp;
use crate::hub::Hub;
use crate::trust::Trust;

/// The signed metadata, from which the next version of a role is made.
#[utoipa::path(get, path = "/v1/trust", tag = "server",
    responses((status = 200, body = TrustFiles), (status = 401, body = Problem)))]
pub async fn show(State(hub): State<Arc<Hub>>) -> Json<TrustFiles> {
    Json(TrustFiles { files: hub.trust.files() })
}

/// Take the next versions of roles: renewed, with other keys, or of a new channel.
#[utoipa::path(post, path = "/v1/trust", tag = "server", request_body = TrustRequest,
    responses((status = 200, body = Vec<TrustRole>), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 409, description = "another version is next", body = Problem),
        (status = 422, description = "not signed as it must be", body = Problem)))]
pub async fn submit(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<TrustRequest>,
) -> ApiResult<Json<Vec<TrustRole>>> {
    // In a task of its own: an operator who hangs up must not leave a change without its line in the audit log.
    let done = tokio::spawn(async move { take(&hub, &caller, &request).await });
    done.await.map_err(ApiError::internal)?.map(Json)
}

async fn take(hub: &Hub, caller: &Caller, request: &TrustRequest) -> ApiResult<Vec<TrustRole>> {
    if request.roles.is_empty() {
        return Err(ApiError::bad_request("`roles` is empty; send at least one signed role"));
    }
    // Only who holds this lock changes roles that operators sign, so that what changed below was changed here.
    let _alone = hub.publishing.lock().await;
    let mut fresh = request.roles.clone();
    fresh.retain(|role, text| hub.trust.text(role).is_none_or(|held| held != *text));
    if fresh.is_empty() {
        return Ok(standing(&hub.trust, request));
    }
    let act = caller.act("trust.submit", "");
    let hashes = fresh.iter().map(|(role, text)| (role.clone(), text_hash(text))).collect();
    let intent = hub.catalog.intend(&act, &hashes).await?;
    if let Err(error) = hub.trust.submit_roles(&request.roles).await {
        hub.catalog.settle(intent, None).await?;
        return Err(error.into());
    }
    hub.catalog.settle(intent, Some(act.on(told(&hub.trust, fresh.keys())))).await?;
    Ok(standing(&hub.trust, request))
}

/// How an intent names a role's text.
pub(crate) fn text_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// Roles as the audit log tells of them.
pub(crate) fn told<'a>(trust: &Trust, roles: impl Iterator<Item = &'a String>) -> String {
    let (versions, expiries) = (trust.versions(), trust.expiries());
    let one = |role: &String| {
        let version = versions.get(role).copied().unwrap_or(0);
        let until = expiries.iter().find(|(name, _)| *name == role).map(|(_, at)| stamp(*at)).unwrap_or_default();
        format!("{role} version {version} until {until}")
    };
    roles.map(one).collect::<Vec<_>>().join(", ")
}

/// The roles of a request, as they are held.
fn standing(trust: &Trust, request: &TrustRequest) -> Vec<TrustRole> {
    let versions = trust.versions();
    let held = trust.expiries().into_iter().filter(|(role, _)| request.roles.contains_key(role));
    held.map(|(role, expires)| TrustRole {
        version: versions.get(&role).copied().unwrap_or(0),
        expires: stamp(expires),
        role,
    })
    .collect()
}

/// Make the keys that shall follow the server's own two, or show those that were made. Used once a root names them.
#[utoipa::path(post, path = "/v1/trust/online", tag = "server",
    responses((status = 200, body = OnlineKeys), (status = 401, body = Problem)))]
pub async fn online(State(hub): State<Arc<Hub>>) -> ApiResult<Json<OnlineKeys>> {
    let keys = hub.trust.next_online().await?;
    let text = |key: &Key| serde_json::to_string(key).map_err(ApiError::internal);
    Ok(Json(OnlineKeys { snapshot: text(&keys.snapshot)?, timestamp: text(&keys.timestamp)? }))
}
