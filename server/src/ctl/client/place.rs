//! A stand-in for a server, as wrong as a test needs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum_server::tls_rustls::RustlsConfig;
use chrono::Utc;
use tempfile::TempDir;

use super::{Client, Operator};
use crate::authority::Authority;

/// A server on loopback, and the folder of an operator who trusts it.
pub struct Place {
    pub folder: TempDir,
    pub address: SocketAddr,
}

impl Place {
    pub fn serve(router: axum::Router) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("authority"), Utc::now()).unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let certificate = authority.server(&["127.0.0.1".into()], Utc::now()).unwrap();
        let config = RustlsConfig::from_config(Arc::new(certificate.https_config().unwrap()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let server = axum_server::from_tcp_rustls(listener, config).unwrap();
        tokio::spawn(server.serve(router.into_make_service()));
        Self { folder, address }
    }

    pub fn client_at(&self, api: &str, folder: &Path) -> Client {
        let text = format!("api = \"{api}\"\ntoken = \"t0ken\"\nauthority = \"ca.pem\"\nname = \"ann\"\n");
        std::fs::write(folder.join("operator.toml"), text).unwrap();
        Client::new(&Operator::open(folder).unwrap()).unwrap()
    }

    pub fn client(&self) -> Client {
        self.client_at(&format!("https://{}", self.address), self.folder.path())
    }
}
