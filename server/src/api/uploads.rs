//! Uploads: an image on its way in. See `golden` for what happens to it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::{BLOCK, IMAGE_MAX, PACK_RAW_MAX};
use goldsync_proto::pack::FRAME_HEAD;
use goldsync_proto::signature::BLOCK_ENTRY;

use super::body::{JsonBody, parse, read};
use super::problem::ApiResult;
use super::types::{Missing, Problem, UploadRequest, UploadState, Uploaded};
use crate::hub::Hub;

/// The section `blocks` of the largest image. What fits the image at hand, `golden` knows.
const SECTION_MAX: u64 = IMAGE_MAX / BLOCK * BLOCK_ENTRY as u64;

/// Begin, or go on with, the upload of an image. Idempotent. An image that is stored is looked over: if something of it is
/// damaged, it is not `stored`, and the blocks that are lost can be uploaded again.
#[utoipa::path(post, path = "/v1/uploads", tag = "uploads", request_body = UploadRequest,
    responses((status = 200, body = UploadState), (status = 400, body = Problem), (status = 401, body = Problem)))]
pub async fn begin(
    State(hub): State<Arc<Hub>>,
    JsonBody(request): JsonBody<UploadRequest>,
) -> ApiResult<Json<UploadState>> {
    Ok(Json(hub.uploads.begin(request.image, request.size).await?))
}

/// Send the signature's section `blocks`; learn which blocks the server lacks.
#[utoipa::path(put, path = "/v1/uploads/{image}/blocks", tag = "uploads",
    params(("image" = String, Path, description = "The image's id")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "8 bytes for each block"),
    responses((status = 200, body = Missing), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 413, body = Problem)))]
pub async fn blocks(State(hub): State<Arc<Hub>>, Path(image): Path<String>, body: Body) -> ApiResult<Json<Missing>> {
    let image: ImageId = parse(&image)?;
    let section = read(body, SECTION_MAX).await?;
    Ok(Json(hub.uploads.index(image, section).await?))
}

/// Send one literal frame: the next missing blocks in order, from block `first` on. Harmless if sent again.
#[utoipa::path(put, path = "/v1/uploads/{image}/frames/{first}", tag = "uploads",
    params(("image" = String, Path, description = "The image's id"),
        ("first" = u32, Path, description = "The frame's first block")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "A literal frame, see WIRE.md"),
    responses((status = 204), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 413, body = Problem)))]
pub async fn frame(
    State(hub): State<Arc<Hub>>,
    Path((image, first)): Path<(String, String)>,
    body: Body,
) -> ApiResult<StatusCode> {
    let (image, first) = (parse(&image)?, parse(&first)?);
    let frame = read(body, (FRAME_HEAD + PACK_RAW_MAX) as u64).await?;
    hub.uploads.frame(image, first, frame).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Store the image, read it back whole, and prove it. Idempotent.
#[utoipa::path(post, path = "/v1/uploads/{image}/complete", tag = "uploads",
    params(("image" = String, Path, description = "The image's id")),
    responses((status = 200, body = Uploaded), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem)))]
pub async fn complete(State(hub): State<Arc<Hub>>, Path(image): Path<String>) -> ApiResult<Json<Uploaded>> {
    let image = parse(&image)?;
    let uploaded = hub.uploads.complete(image).await?;
    if uploaded.healed {
        hub.packs.forget_moved().await?;
    }
    Ok(Json(uploaded))
}
