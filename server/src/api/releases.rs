//! Releases: what was published, and publishing.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use goldsync_proto::release::{Manifest, RELEASES_ROLE, ReleaseRef};

use super::auth::Caller;
use super::body::{JsonBody, parse};
use super::problem::{ApiError, ApiResult};
use super::types::{LikelyBase, Problem, PruneRequest, Pruning, Release, ReleaseRequest};
use crate::catalog::{NewRelease, ReleaseRow, Taken};
use crate::hub::Hub;
use crate::likely;
use crate::packs::Progress;
use crate::prune::{self, PRUNE};

/// Every release, newest first.
#[utoipa::path(get, path = "/v1/releases", tag = "releases",
    responses((status = 200, body = Vec<Release>), (status = 401, body = Problem)))]
pub async fn list(State(hub): State<Arc<Hub>>) -> ApiResult<Json<Vec<Release>>> {
    let pointers = hub.catalog.pointers().await?;
    let rows = hub.catalog.releases().await?;
    let shown = |row: ReleaseRow| {
        let points = pointers.iter().filter(|pointer| pointer.release == row.manifest.release);
        let channels = points.map(|pointer| pointer.channel.clone()).collect();
        let ReleaseRow { manifest, published_by, published_at, added } = row;
        Release { manifest, published_by, published_at, added, channels, bases: vec![] }
    };
    Ok(Json(rows.into_iter().map(shown).collect()))
}

/// One release.
#[utoipa::path(get, path = "/v1/releases/{name}/{version}", tag = "releases",
    params(("name" = String, Path, description = "What the image is for"),
        ("version" = String, Path, description = "Which one it is")),
    responses((status = 200, body = Release), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub async fn show(
    State(hub): State<Arc<Hub>>,
    Path((name, version)): Path<(String, String)>,
) -> ApiResult<Json<Release>> {
    let release = ReleaseRef { name: parse(&name)?, version: parse(&version)? };
    Ok(Json(find(&hub, &release).await?))
}

async fn find(hub: &Hub, release: &ReleaseRef) -> ApiResult<Release> {
    let row = hub.catalog.release(release).await?;
    let row = row.ok_or_else(|| ApiError::not_found(format!("there is no release {release}")))?;
    let pointers = hub.catalog.pointers().await?;
    let channels = pointers.into_iter().filter(|p| p.release == *release).map(|p| p.channel).collect();
    let ReleaseRow { manifest, published_by, published_at, added } = row;
    let bases = likely::bases(hub, &manifest).await?.into_iter().map(|base| shown(hub, base, &manifest)).collect();
    Ok(Release { manifest, published_by, published_at, added, channels, bases })
}

fn shown(hub: &Hub, base: likely::Base, manifest: &Manifest) -> LikelyBase {
    let likely::Base { image, releases, nodes } = base;
    let Progress { quick, thorough, smallest, under_way } = hub.packs.progress(Some(image), manifest.image);
    LikelyBase { image, releases, nodes, quick, thorough, smallest, under_way }
}

/// Make a release visible. The image must be stored, whole and proven. The same release again changes nothing.
#[utoipa::path(post, path = "/v1/releases", tag = "releases", request_body = ReleaseRequest,
    responses((status = 201, description = "published", body = Release),
        (status = 200, description = "published before; nothing changed", body = Release),
        (status = 400, body = Problem), (status = 401, body = Problem), (status = 409, body = Problem),
        (status = 422, description = "not signed as it must be", body = Problem)))]
pub async fn publish(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<ReleaseRequest>,
) -> ApiResult<(StatusCode, Json<Release>)> {
    // In a task of its own: a publisher that hangs up must not leave metadata and catalog apart.
    let done = tokio::spawn(async move { take(&hub, &caller, &request).await });
    done.await.map_err(ApiError::internal)?
}

/// Take releases out for good, or say what would come of it. One that a channel points at, or that a node runs or holds in
/// its standby slot, stays, and then all stay. Their names and versions are never given to other bytes.
#[utoipa::path(post, path = "/v1/releases/prune", tag = "releases", request_body = PruneRequest,
    responses((status = 200, body = Pruning), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, description = "one of them is needed", body = Problem),
        (status = 422, description = "not signed as it must be", body = Problem)))]
pub async fn prune(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<PruneRequest>,
) -> ApiResult<Json<Pruning>> {
    // In a task of its own: an operator who hangs up must not leave metadata and catalog apart.
    let done = tokio::spawn(async move { prune::prune(&hub, &request, caller.act(PRUNE, "")).await });
    done.await.map_err(ApiError::internal)?.map(Json)
}

async fn take(hub: &Arc<Hub>, caller: &Caller, request: &ReleaseRequest) -> ApiResult<(StatusCode, Json<Release>)> {
    let manifest: Manifest = serde_json::from_str(&request.manifest)
        .map_err(|error| ApiError::bad_request(format!("the manifest cannot be read: {error}")))?;
    manifest.check().map_err(ApiError::bad_request)?;
    let release = &manifest.release;
    let _alone = hub.publishing.lock().await;
    if hub.catalog.check_release(&manifest).await? == Taken::Already {
        return Ok((StatusCode::OK, Json(find(hub, release).await?)));
    }
    let added = stored(hub, &manifest)?;
    // Metadata first: what is in the catalog is signed. If we die in between, `recover` finishes the work.
    hub.trust.submit(RELEASES_ROLE, &request.role, Some((&release.target(), &request.manifest))).await?;
    let act = caller
        .act("release.publish", format!("{release} image {} ({} bytes, {added} added)", manifest.image, manifest.size));
    hub.catalog.add_release(NewRelease { manifest: &manifest, text: &request.manifest, added }, act).await?;
    tracing::info!(%release, image = %manifest.image, "published");
    likely::prepare(hub, &manifest);
    Ok((StatusCode::CREATED, Json(find(hub, release).await?)))
}

/// The image must be in the store, and be what the manifest says. Returns the bytes that it added.
fn stored(hub: &Hub, manifest: &Manifest) -> ApiResult<u64> {
    let image = manifest.image;
    let record = hub.store.image(image).ok_or_else(|| {
        ApiError::conflict(format!("image {image} is not stored here"))
            .remedy("upload it first: `goldsync publish` does")
    })?;
    if record.size != manifest.size || record.sections != manifest.sections {
        let message = format!("the manifest's size or sections are not those of image {image} as it is stored here");
        return Err(ApiError::bad_request(message).remedy("sign what `POST /v1/uploads/{image}/complete` answered"));
    }
    Ok(record.added)
}
