//! A server of a few lines, for tests on loopback.

use std::sync::Arc;

use goldsync_proto::release::Word;
use goldsync_proto::wire::{ALPN, FRAME_HEAD, Request, frame_len, unframe};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa, KeyPair,
};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::identity::{Identity, NodeKey};

/// A CA of this test's own, and TLS settings for both sides.
pub(crate) struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { authority: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn server(&self) -> quinn::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
    }

    pub(crate) fn client(&self) -> quinn::ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }

    /// Signs a node's request: a certificate of these years' first days.
    pub(crate) fn certificate(&self, request: &str, node: &Word, from: i32, until: i32) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.distinguished_name.push(DnType::CommonName, node.as_str());
        request.params.not_before = rcgen::date_time_ymd(from, 1, 1);
        request.params.not_after = rcgen::date_time_ymd(until, 1, 1);
        request.params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        request.signed_by(&self.authority).unwrap().pem()
    }

    /// A node's identity, with a certificate of these years.
    pub(crate) fn identity(&self, node: &str, from: i32, until: i32) -> Identity {
        let key = NodeKey::create().unwrap();
        let certificate = self.certificate(&key.request().unwrap(), &node.parse().unwrap(), from, until);
        Identity::new(key, &certificate, &self.authority.pem()).unwrap()
    }
}

/// The next request, and its stream.
pub(crate) async fn request(connection: &Connection) -> (Request, SendStream, RecvStream) {
    let (send, mut recv) = connection.accept_bi().await.unwrap();
    let request = read(&mut recv).await;
    (request, send, recv)
}

/// The next frame.
pub(crate) async fn read<T: serde::de::DeserializeOwned>(recv: &mut RecvStream) -> T {
    let mut head = [0; FRAME_HEAD];
    recv.read_exact(&mut head).await.unwrap();
    let mut json = vec![0; frame_len(head).unwrap()];
    recv.read_exact(&mut json).await.unwrap();
    unframe(&json).unwrap()
}
