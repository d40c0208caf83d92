//! The API's description, made from the handlers and the bodies themselves.

use axum::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{channels, fleet, nodes, releases, schema, status, trust, types, uploads};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "goldsync",
        description = "The operators' API of a goldsync server. Times are RFC 3339 in UTC. Unknown fields are ignored. \
            Every error is a Problem."
    ),
    paths(
        status::status, status::audit, show,
        trust::show, trust::submit, trust::online,
        uploads::begin, uploads::blocks, uploads::frame, uploads::complete,
        releases::list, releases::publish, releases::show, releases::prune,
        channels::list, channels::promote, channels::history,
        nodes::create_token, nodes::list, nodes::revoke,
        fleet::sync, fleet::events,
    ),
    components(schemas(
        types::Problem, types::Status, types::UploadRequest, types::UploadState, types::Missing, types::Uploaded,
        types::ReleaseRequest, types::Release, types::LikelyBase,
         types::PruneRequest, types::Pruning, types::PruningRelease,
        types::PromoteRequest, types::Channel, types::Promotion,
        types::TokenRequest, types::Token, types::Node, types::SyncRequest, types::SyncOrder, types::SyncEvent,
        types::AuditEntry, types::TrustFiles, types::TrustRequest, types::TrustRole, types::OnlineKeys,
        schema::Manifest, schema::Sealed, schema::Sections, schema::Section, schema::Pointer, schema::Report, schema::SlotReport,
        schema::TrialReport, schema::Wait, schema::Held, schema::Progress, schema::Outcome, schema::Account,
    )),
    security(("operator" = [])),
    modifiers(&Bearer),
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The `token` of operator.toml"));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("operator", SecurityScheme::Http(scheme.build()));
    }
}

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "server", security(()),
    responses((status = 200, description = "OpenAPI, JSON")))]
pub async fn show() -> Json<utoipa::openapi::OpenApi> {
    Json(document())
}
