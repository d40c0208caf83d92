//! A whole server on loopback for this crate's tests: real QUIC, HTTPS, certificates and signed metadata.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use chrono::Utc;
use goldsync_proto::digest::ImageId;
use goldsync_proto::pack::write_frame;
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef, Word};
use goldsync_proto::signature::sign_blocks;
use goldsync_proto::wire::{
    ALPN, ALPN_ENROL, Answer, FRAME_HEAD, Hello, NodeSays, Report, Request, ServerSays, frame, frame_len, unframe,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Method, StatusCode};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::types;
use crate::config::Config;
use crate::daemon::Server;
use crate::init::{self, InitOptions};
use crate::trust::Operator as Signing;

/// A server, and everything that an operator has.
pub struct Fleet {
    pub server: Option<Server>,
    pub config: Config,
    pub signer: Signing,
    pub token: String,
    roots: RootCertStore,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

/// A node's key and certificate.
pub struct Identity {
    pub node: Word,
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
}

/// A control stream.
pub struct Control {
    pub send: SendStream,
    pub recv: RecvStream,
}

pub fn word(text: &str) -> Word {
    text.parse().unwrap()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Fleet {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = InitOptions {
            data: dir.path().join("data"),
            listen: any,
            api: any,
            names: vec![],
            operator_dir: dir.path().join("operator"),
            operator_name: "alice".into(),
        };
        let report = init::create(options).await.unwrap();
        let mut config = Config::load(&report.data.join("server.toml")).unwrap();
        change(&mut config);
        let text = std::fs::read_to_string(report.operator_dir.join("operator.toml")).unwrap();
        let token = toml::from_str::<toml::Table>(&text).unwrap()["token"].as_str().unwrap().to_owned();
        let ca = CertificateDer::from_pem_file(report.operator_dir.join("ca.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca).unwrap();
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap();
        let server = Server::start(config.clone()).await.unwrap();
        let signer = Signing::open(&report.operator_dir).unwrap();
        Self { server: Some(server), config, signer, token, roots, http, _dir: dir }
    }

    pub async fn restart(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
        self.server = Some(Server::start(self.config.clone()).await.unwrap());
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub fn folder(&self) -> &Path {
        &self.config.data
    }

    // ---- operators' side ----

    pub fn call(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("https://{}{path}", self.server().api_addr());
        self.http.request(method, url)
    }

    pub fn operator(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.call(method, path).bearer_auth(&self.token)
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let answer = self.operator(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.unwrap()
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> (StatusCode, T) {
        let answer = self.operator(Method::POST, path).json(body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    pub async fn revoke(&self, node: &Word) -> StatusCode {
        self.operator(Method::POST, &format!("/v1/nodes/{node}/revoke")).send().await.unwrap().status()
    }

    pub async fn token(&self, request: types::TokenRequest) -> types::Token {
        let (status, token) = self.post("/v1/tokens", &request).await;
        assert_eq!(status, StatusCode::CREATED);
        token
    }

    /// Uploads an image the way the operator's tool does.
    pub async fn upload(&self, image: &[u8]) -> types::Uploaded {
        let id = ImageId::of(image);
        let request = types::UploadRequest { image: id, size: image.len() as u64 };
        let (_, state): (_, types::UploadState) = self.post("/v1/uploads", &request).await;
        if !state.stored {
            let put = self.operator(Method::PUT, &format!("/v1/uploads/{id}/blocks"));
            let missing: types::Missing = put.body(sign_blocks(image)).send().await.unwrap().json().await.unwrap();
            for (first, count) in missing.runs {
                let raw = &image[first as usize * 4096..(first + count) as usize * 4096];
                for (index, part) in raw.chunks(1 << 20).enumerate() {
                    let first = first as usize + index * 256;
                    let put = self.operator(Method::PUT, &format!("/v1/uploads/{id}/frames/{first}"));
                    let answer = put.body(write_frame(part, 3)).send().await.unwrap();
                    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
                }
            }
        }
        let (status, uploaded) = self.post(&format!("/v1/uploads/{id}/complete"), &()).await;
        assert_eq!(status, StatusCode::OK);
        uploaded
    }

    pub async fn manifest(&self, release: &str, image: &[u8]) -> Manifest {
        let uploaded = self.upload(image).await;
        Manifest {
            format: 1,
            release: release.parse().unwrap(),
            image: ImageId::of(image),
            size: image.len() as u64,
            sections: uploaded.sections,
            file_system: None,
            verity: None,
            minimum_agent: None,
            labels: BTreeMap::new(),
            published_at: "2026-11-21T00:00:00Z".into(),
        }
    }

    pub async fn signed_release(&self, manifest: &Manifest) -> types::ReleaseRequest {
        let text = serde_json::to_string(manifest).unwrap();
        let files: types::TrustFiles = self.get("/v1/trust").await;
        let role = self.signer.sign_release(&files.files, &text, Utc::now()).await.unwrap();
        types::ReleaseRequest { manifest: text, role }
    }

    pub async fn publish(&self, release: &str, image: &[u8]) -> types::Release {
        let request = self.signed_release(&self.manifest(release, image).await).await;
        let (status, release) = self.post("/v1/releases", &request).await;
        assert_eq!(status, StatusCode::CREATED);
        release
    }

    pub async fn signed_pointer(&self, release: &ReleaseRef, image: ImageId, channel: &str) -> types::PromoteRequest {
        let pointer = Pointer {
            format: 1,
            channel: word(channel),
            release: release.clone(),
            image,
            promoted_at: crate::catalog::now(),
            promoted_by: "alice".into(),
        };
        let text = serde_json::to_string(&pointer).unwrap();
        let files: types::TrustFiles = self.get("/v1/trust").await;
        let role = self.signer.sign_pointer(&files.files, &text, Utc::now()).await.unwrap();
        types::PromoteRequest { pointer: text, role }
    }

    pub async fn promote(&self, release: &str, image: &[u8], channel: &str) -> types::Channel {
        let request = self.signed_pointer(&release.parse().unwrap(), ImageId::of(image), channel).await;
        let (status, channel) = self.post(&format!("/v1/channels/{channel}"), &request).await;
        assert_eq!(status, StatusCode::OK);
        channel
    }

    pub async fn audit(&self) -> Vec<types::AuditEntry> {
        self.get("/v1/audit").await
    }

    // ---- nodes' side ----

    pub async fn dial(&self, alpn: &[u8], identity: Option<&Identity>) -> Connection {
        self.try_dial(alpn, identity).await.unwrap()
    }

    pub async fn try_dial(&self, alpn: &[u8], identity: Option<&Identity>) -> Result<Connection, String> {
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match identity {
            Some(one) => config.with_client_auth_cert(vec![one.certificate.clone()], one.key.clone_key()).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        endpoint
            .set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap())));
        let connecting = endpoint.connect(self.server().quic_addr(), "localhost").unwrap();
        connecting.await.map_err(|error| error.to_string())
    }

    pub async fn try_enrol(&self, secret: &str, name: &str) -> Result<Identity, Refusal> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let connection = self.dial(ALPN_ENROL, None).await;
        let labels = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
        let request = Request::Enrol { token: secret.into(), csr, name: word(name), labels };
        match ask(&connection, &request).await.0 {
            Answer::Enrolled { node, certificate, authority, root } => {
                assert!(authority.contains("BEGIN CERTIFICATE") && root.contains("signatures"));
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                Ok(Identity { node, certificate, key })
            }
            Answer::Refused { refusal } => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub async fn enrol(&self, name: &str) -> Identity {
        let request = types::TokenRequest { valid_s: None, uses: None, labels: BTreeMap::new() };
        let token = self.token(request).await;
        self.try_enrol(&token.secret, name).await.unwrap()
    }

    /// A node's connection, as its daemon keeps one.
    pub async fn connect(&self, identity: &Identity) -> Connection {
        self.dial(ALPN, Some(identity)).await
    }

    /// A daemon's connection with its control stream, welcomed.
    pub async fn join(&self, identity: &Identity, channel: &str) -> (Connection, Control) {
        let connection = self.connect(identity).await;
        let control = Control::open(&connection, hello(channel, true)).await.unwrap();
        (connection, control)
    }
}

pub fn hello(channel: &str, daemon: bool) -> Hello {
    let labels = BTreeMap::from([("role".to_owned(), "web".to_owned())]);
    Hello { version: "0.1.0".into(), channel: word(channel), labels, daemon, report: Report::default() }
}

impl Control {
    pub async fn open(connection: &Connection, hello: Hello) -> Result<Self, Refusal> {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&frame(&Request::Control { hello }).unwrap()).await.unwrap();
        match read::<Answer>(&mut recv).await.unwrap() {
            Answer::Welcome { .. } => Ok(Self { send, recv }),
            Answer::Refused { refusal } => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub async fn hear(&mut self) -> ServerSays {
        read(&mut self.recv).await.unwrap()
    }

    pub async fn say(&mut self, says: &NodeSays) {
        self.send.write_all(&frame(says).unwrap()).await.unwrap();
    }
}

/// One frame; `None` if the stream ends first.
pub async fn read<T: DeserializeOwned>(recv: &mut RecvStream) -> Option<T> {
    let mut head = [0; FRAME_HEAD];
    recv.read_exact(&mut head).await.ok()?;
    let mut json = vec![0; frame_len(head).unwrap()];
    recv.read_exact(&mut json).await.ok()?;
    Some(unframe(&json).unwrap())
}

/// A request, its answer, and the body behind it.
pub async fn ask(connection: &Connection, request: &Request) -> (Answer, Vec<u8>) {
    ask_raw(connection, &frame(request).unwrap()).await
}

pub async fn ask_raw(connection: &Connection, bytes: &[u8]) -> (Answer, Vec<u8>) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    let answer = read(&mut recv).await.unwrap();
    (answer, recv.read_to_end(64 << 20).await.unwrap())
}

/// The reason of a refusal.
pub fn reason(answer: &Answer) -> Reason {
    match answer {
        Answer::Refused { refusal } => refusal.reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// The code with which the server closed a connection.
pub async fn closed_with(connection: &Connection) -> u64 {
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}

/// Bytes that no two blocks share, the same for the same seed.
pub fn image(seed: u64, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * 4096];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut bytes);
    bytes
}
