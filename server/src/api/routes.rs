//! Every path of the API, once.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, on};

use super::problem::ApiError;
use super::{auth, channels, fleet, nodes, openapi, releases, status, trust, uploads};
use crate::hub::Hub;

/// A router that knows its own paths.
pub struct Routes {
    /// For axum.
    pub router: Router<Arc<Hub>>,
    /// For the test that holds them against the document.
    pub listed: Vec<(MethodFilter, &'static str)>,
}

impl Routes {
    fn new() -> Self {
        Self { router: Router::new(), listed: Vec::new() }
    }

    fn on<H, T>(mut self, method: MethodFilter, path: &'static str, handler: H) -> Self
    where
        H: Handler<T, Arc<Hub>>,
        T: 'static,
    {
        self.listed.push((method, path));
        self.router = self.router.route(path, on(method, handler));
        self
    }
}

/// Every path.
pub fn all(hub: &Arc<Hub>) -> Routes {
    const GET: MethodFilter = MethodFilter::GET;
    const POST: MethodFilter = MethodFilter::POST;
    const PUT: MethodFilter = MethodFilter::PUT;
    let mut routes = Routes::new()
        .on(GET, "/v1/status", status::status)
        .on(GET, "/v1/audit", status::audit)
        .on(GET, "/v1/trust", trust::show)
        .on(POST, "/v1/trust", trust::submit)
        .on(POST, "/v1/trust/online", trust::online)
        .on(POST, "/v1/uploads", uploads::begin)
        .on(PUT, "/v1/uploads/{image}/blocks", uploads::blocks)
        .on(PUT, "/v1/uploads/{image}/frames/{first}", uploads::frame)
        .on(POST, "/v1/uploads/{image}/complete", uploads::complete)
        .on(GET, "/v1/releases", releases::list)
        .on(POST, "/v1/releases", releases::publish)
        .on(GET, "/v1/releases/{name}/{version}", releases::show)
        .on(POST, "/v1/releases/prune", releases::prune)
        .on(GET, "/v1/channels", channels::list)
        .on(POST, "/v1/channels/{channel}", channels::promote)
        .on(GET, "/v1/channels/{channel}/history", channels::history)
        .on(POST, "/v1/tokens", nodes::create_token)
        .on(GET, "/v1/nodes", nodes::list)
        .on(POST, "/v1/nodes/{node}/revoke", nodes::revoke)
        .on(POST, "/v1/fleet/sync", fleet::sync)
        .on(GET, "/v1/fleet/sync/{order}/events", fleet::events);
    routes.router = routes
        .router
        .fallback(async || {
            ApiError::not_found("there is no such path").remedy("GET /v1/openapi.json lists what there is")
        })
        .method_not_allowed_fallback(async || ApiError::method())
        .layer(from_fn_with_state(hub.clone(), auth::require));
    // After the layer: it stands before the paths that were there when it was laid.
    routes = routes.on(GET, "/v1/openapi.json", openapi::show);
    // Bodies are bounded where they are read; see `body`.
    routes.router = routes.router.layer(DefaultBodyLimit::disable());
    routes
}
