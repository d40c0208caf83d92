//! Nodes: the tokens by which machines become nodes, the list of them, and turning one away.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use chrono::{TimeDelta, Utc};
use goldsync_proto::release::{Word, check_labels};
use rand::RngCore;
use serde::Deserialize;

use super::auth::Caller;
use super::body::{JsonBody, parse};
use super::problem::{ApiError, ApiResult};
use super::types::{Node, Problem, Token, TokenRequest};
use crate::catalog::{NewToken, stamp};
use crate::channel;
use crate::hub::Hub;

const VALID_DEFAULT_S: u64 = 3600;
const VALID_MAX_S: u64 = 365 * 86_400;
const USES_MAX: u32 = 100_000;

/// Random bytes in a secret: nobody guesses 160 bits.
const SECRET_BYTES: usize = 20;

/// Make an enrolment token. Its secret is shown once.
#[utoipa::path(post, path = "/v1/tokens", tag = "nodes", request_body = TokenRequest,
    responses((status = 201, body = Token), (status = 400, body = Problem), (status = 401, body = Problem)))]
pub async fn create_token(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<TokenRequest>,
) -> ApiResult<(StatusCode, Json<Token>)> {
    check_labels(&request.labels).map_err(ApiError::bad_request)?;
    let valid_s = between("valid_s", request.valid_s.unwrap_or(VALID_DEFAULT_S), VALID_MAX_S)?;
    let uses = between("uses", request.uses.unwrap_or(1).into(), USES_MAX.into())?;
    let secret = random_hex::<SECRET_BYTES>();
    let id = random_hex::<4>();
    let expires_at = stamp(Utc::now() + TimeDelta::seconds(valid_s.cast_signed()));
    let token = NewToken {
        id: id.clone(),
        secret_hash: blake3::hash(secret.as_bytes()),
        labels: request.labels,
        uses: u32::try_from(uses).unwrap_or(USES_MAX),
        expires_at: expires_at.clone(),
    };
    let act = caller.act("token.create", format!("{id}, {uses} uses, until {expires_at}, labels {:?}", token.labels));
    hub.catalog.add_token(&token, act).await?;
    Ok((StatusCode::CREATED, Json(Token { id, secret, expires_at })))
}

fn between(key: &str, got: u64, max: u64) -> ApiResult<u64> {
    let good = (1..=max).contains(&got);
    good.then_some(got).ok_or_else(|| ApiError::bad_request(format!("{key} = {got} is outside 1 to {max}")))
}

/// Random bytes, as hexadecimal digits.
pub fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `GET /v1/nodes` takes.
#[derive(Debug, Deserialize)]
pub struct NodesQuery {
    channel: Option<String>,
    selector: Option<String>,
}

/// The nodes that follow a channel and carry all labels of a selector; all nodes if neither is given. By name.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes",
    params(("channel" = Option<String>, Query, description = "Only nodes that follow this channel"),
        ("selector" = Option<String>, Query, description = "Only nodes with all of these labels: `role=web,site=north`")),
    responses((status = 200, body = Vec<Node>), (status = 400, body = Problem), (status = 401, body = Problem)))]
pub async fn list(
    State(hub): State<Arc<Hub>>,
    query: Result<Query<NodesQuery>, QueryRejection>,
) -> ApiResult<Json<Vec<Node>>> {
    let Query(query) = query.map_err(ApiError::bad_request)?;
    let channel: Option<Word> = query.channel.as_deref().map(parse).transpose()?;
    let selector = selector(query.selector.as_deref().unwrap_or_default())?;
    let mut nodes = channel::nodes(&hub.catalog, &hub.roster).await?;
    nodes.retain(|node| {
        channel.as_ref().is_none_or(|channel| node.channel.as_ref() == Some(channel))
            && channel::matches(&selector, &node.labels)
    });
    Ok(Json(nodes))
}

/// `role=web,site=north`
fn selector(text: &str) -> ApiResult<BTreeMap<String, String>> {
    let labels = text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
        let (key, value) = part.split_once('=').ok_or_else(|| {
            ApiError::bad_request(format!("selector {part:?} is not KEY=VALUE"))
                .remedy("write selector=role=web,site=north")
        })?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    });
    let labels = labels.collect::<ApiResult<BTreeMap<_, _>>>()?;
    check_labels(&labels).map_err(ApiError::bad_request)?;
    Ok(labels)
}

/// Turn a node away for good: its open connections are closed at once. Again: nothing changes.
#[utoipa::path(post, path = "/v1/nodes/{node}/revoke", tag = "nodes",
    params(("node" = String, Path, description = "Which")),
    responses((status = 204), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn revoke(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(node): Path<String>,
) -> ApiResult<StatusCode> {
    let node: Word = parse(&node)?;
    let changed = hub.revoke(&node, caller.act("node.revoke", &node)).await?;
    changed.ok_or_else(|| ApiError::not_found(format!("there is no node {node}")))?;
    tracing::warn!(%node, "revoked");
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_read_or_refused_with_the_part_that_is_wrong() {
        let labels = selector("role=web, site=north").unwrap();
        assert_eq!(labels, BTreeMap::from([("role".into(), "web".into()), ("site".into(), "north".into())]));
        assert!(selector("").unwrap().is_empty());
        for bad in ["web", "role=", "=web"] {
            assert!(selector(bad).is_err(), "{bad}");
        }
    }
}
