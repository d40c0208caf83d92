//! The operators' API: HTTPS and JSON, for the tool, for dashboards and for curl.
//!
//! ```text
//! [limit] ─▶ TLS ─▶ [auth] bearer token ─▶ handler ─▶ catalog, trust, store, orders ─▶ JSON, or a Problem
//! ```
//! [`routes::all`] is the only place where a path is bound to a handler; the OpenAPI document is made from the handlers'
//! own descriptions, and a test holds the two against each other. Every change is in the audit log, written in the
//! same transaction as the change.
//!
//! Everything needs an operator's token but `GET /v1/openapi.json`, which says nothing that is not public.

mod auth;
mod body;
mod channels;
mod fleet;
mod limit;
mod nodes;
mod openapi;
pub(crate) mod problem;
mod releases;
mod routes;
mod schema;
mod status;
#[cfg(test)]
mod tests;
pub(crate) mod trust;
pub mod types;
mod uploads;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;

use crate::hub::Hub;

pub(crate) use nodes::random_hex;
pub use openapi::document;
pub use problem::ApiError;

/// A client must end its handshake within this time.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// A client must send a request's head within this time, and one that sent none so far is hung up on after it.
const HEAD_WITHIN: Duration = Duration::from_secs(15);

/// The whole API.
pub fn router(hub: Arc<Hub>) -> Router {
    routes::all(&hub).router.with_state(hub)
}

/// Answers operators until `handle` says to stop.
pub async fn serve(
    hub: Arc<Hub>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    handle: Handle<SocketAddr>,
) -> std::io::Result<()> {
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(tls)).handshake_timeout(HANDSHAKE_WITHIN);
    let acceptor = acceptor.acceptor(limit::Limit::default());
    let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor).handle(handle);
    server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    server.serve(router(hub).into_make_service_with_connect_info::<SocketAddr>()).await
}
