//! Who this node is: its key, its certificate, and the fleet's CA; and the TLS that follows from them.
//!
//! ```text
//! enrolment   token ──▶ [token_config] ──▶ server shows its chain; the CA's hash must be the token's
//!             key, CSR ─────────────────▶ certificate, CA  ──▶ [Identity::new] ──▶ STATE/identity.pem
//! afterwards  [Identity::load] ──▶ [Identity::quic_config]: mutual TLS, the server verified against the CA
//! ```
//! `identity.pem` holds the private key, the node's certificate and the CA's, in this order, in one file (mode 0600)
//! that is replaced in one step: after a power cut the key and the certificate still belong together.
//! The key is made here and never leaves the node.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use goldsync_proto::digest::Digest;
use goldsync_proto::release::Word;
use goldsync_proto::wire::{ALPN, ALPN_ENROL};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::disk::{self, DiskError};

const FILE: &str = "identity.pem";
/// The longest secret that a token may carry.
const SECRET_MAX: usize = 128;

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The state folder.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is none.
    #[error("this machine is no node yet: {} is not there; run `goldsync-agent enroll` with a token", path.display())]
    NotEnrolled {
        /// Where it would be.
        path: PathBuf,
    },
    /// There is one that cannot be read.
    #[error("{}: {reason}; enrol again with a new token", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The server answered with a certificate that is not ours, or not the CA's.
    #[error("the server's answer is no certificate for this node: {0}")]
    Answer(String),
    /// The CA that the server sent is not the token's.
    #[error(
        "the server's CA has the hash {got}, but the token names {expected}: this is not the server that made the token, or somebody is in between"
    )]
    ForeignAuthority {
        /// As the token says.
        expected: Digest,
        /// As sent.
        got: Digest,
    },
    /// The root that the server sent is not the token's.
    #[error(
        "the signed root has the hash {got}, but the token names {expected}: this is not the server that made the token"
    )]
    ForeignRoot {
        /// As the token says.
        expected: Digest,
        /// As sent.
        got: Digest,
    },
    /// The crypto library refused.
    #[error("cannot make a key or a request: {0}")]
    Making(#[from] rcgen::Error),
    /// The TLS library refused.
    #[error("cannot configure TLS: {0}")]
    Tls(String),
}

/// Why a text is not a token. Its secret is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a token: {reason}; a token looks like gs1.SECRET.CA-HASH.ROOT-HASH and comes from `goldsync token create`"
)]
pub struct TokenError {
    reason: String,
}

fn tls(error: impl ToString) -> IdentityError {
    IdentityError::Tls(error.to_string())
}

/// What an operator gives to a machine that shall become a node.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Proves to the server that an operator asked for this node.
    pub secret: String,
    /// BLAKE3 of the CA certificate's DER: proves the server to the node.
    pub authority: Digest,
    /// BLAKE3 of the text of `1.root.json`: where the node's trust in releases begins.
    pub root: Digest,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(secret hidden, authority {}, root {})", self.authority, self.root)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gs1.{}.{}.{}", self.secret, self.authority, self.root)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let refuse = |reason: &str| TokenError { reason: reason.to_owned() };
        let parts: Vec<&str> = text.trim().split('.').collect();
        let &[form, secret, authority, root] = parts.as_slice() else {
            return Err(TokenError { reason: format!("it has {} parts, not 4", parts.len()) });
        };
        if form != "gs1" {
            return Err(refuse("it does not begin with gs1"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=SECRET_MAX).contains(&secret.len()) || !secret.bytes().all(plain) {
            return Err(refuse("its secret is not 1 to 128 letters, digits, '-' or '_'"));
        }
        let authority = authority.parse().map_err(|_| refuse("its CA hash is not 64 hexadecimal digits"))?;
        let root = root.parse().map_err(|_| refuse("its root hash is not 64 hexadecimal digits"))?;
        Ok(Self { secret: secret.to_owned(), authority, root })
    }
}

impl Token {
    /// TLS for enrolling: no certificate of our own; the server is who the token says, or the handshake ends.
    pub fn quic_config(&self) -> Result<quinn::ClientConfig, IdentityError> {
        let provider = quic_provider();
        let verifier = PinnedAuthority { hash: self.authority, provider: provider.clone() };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        quic(config, ALPN_ENROL)
    }

    /// Holds the root that the server sent against the token.
    pub fn check_root(&self, root_text: &str) -> Result<(), IdentityError> {
        let (expected, got) = (self.root, Digest::of(root_text.as_bytes()));
        if got == expected { Ok(()) } else { Err(IdentityError::ForeignRoot { expected, got }) }
    }

    /// Holds the CA that the server sent against the token.
    pub fn check_authority(&self, authority_pem: &str) -> Result<(), IdentityError> {
        let sent = Certificate::from_pem(authority_pem).map_err(IdentityError::Answer)?;
        let (expected, got) = (self.authority, Digest::of(&sent.der));
        if got == expected { Ok(()) } else { Err(IdentityError::ForeignAuthority { expected, got }) }
    }
}

/// A node's private key, before and after it has a certificate.
pub struct NodeKey {
    pair: KeyPair,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey")
    }
}

impl NodeKey {
    /// A new key: ECDSA P-256.
    pub fn create() -> Result<Self, IdentityError> {
        Ok(Self { pair: KeyPair::generate()? })
    }

    /// The key, PEM: what [`NodeKey::from_pem`] takes.
    pub fn pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// A key that was made before.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        Ok(Self { pair: KeyPair::from_pem(text)? })
    }

    /// A certificate signing request, PEM. It says nothing but the public key: the server names the node.
    pub fn request(&self) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.pair)?.pem()?)
    }
}

/// A node's identity.
pub struct Identity {
    node: Word,
    key: KeyPair,
    certificate: Certificate,
    authority: Certificate,
    begins: DateTime<Utc>,
    expires: DateTime<Utc>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, expires {})", self.node, self.expires)
    }
}

impl Identity {
    /// Takes the server's answer to an enrolment or a renewal: the certificate must be for `key`, and the CA must
    /// have signed it. (That the CA is the right one is [`Token::check_authority`]'s part, or the present
    /// identity's: see [`Identity::renewed`].)
    pub fn new(key: NodeKey, certificate_pem: &str, authority_pem: &str) -> Result<Self, IdentityError> {
        let certificate = Certificate::from_pem(certificate_pem).map_err(IdentityError::Answer)?;
        let authority = Certificate::from_pem(authority_pem).map_err(IdentityError::Answer)?;
        let identity = Self::assemble(key.pair, certificate, authority).map_err(IdentityError::Answer)?;
        identity.check_signed().map_err(IdentityError::Answer)?;
        Ok(identity)
    }

    /// The same node with a fresh key and certificate, under the same CA.
    pub fn renewed(&self, key: NodeKey, certificate_pem: &str) -> Result<Self, IdentityError> {
        let certificate = Certificate::from_pem(certificate_pem).map_err(IdentityError::Answer)?;
        let renewed = Self::assemble(key.pair, certificate, self.authority.clone()).map_err(IdentityError::Answer)?;
        renewed.check_signed().map_err(IdentityError::Answer)?;
        if renewed.node != self.node {
            return Err(IdentityError::Answer(format!("it names {}, but this node is {}", renewed.node, self.node)));
        }
        Ok(renewed)
    }

    fn assemble(key: KeyPair, certificate: Certificate, authority: Certificate) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(&certificate.der)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        if parsed.public_key().subject_public_key.data != key.public_key_raw() {
            return Err("the certificate is for another key".to_owned());
        }
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let node = name.ok_or("the certificate names no node (no CN)")?.parse().map_err(|error| format!("{error}"))?;
        let time = |time: x509_parser::time::ASN1Time| {
            DateTime::from_timestamp(time.timestamp(), 0).ok_or("the certificate's life cannot be read")
        };
        let (begins, expires) = (time(parsed.validity().not_before)?, time(parsed.validity().not_after)?);
        Ok(Self { node, key, certificate, authority, begins, expires })
    }

    fn check_signed(&self) -> Result<(), String> {
        let roots = roots(&self.authority.der).map_err(|error| error.to_string())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, quic_provider()).build();
        let verifier = verifier.map_err(|error| error.to_string())?;
        let checked = verifier.verify_client_cert(&self.certificate.der, &[], UnixTime::now());
        checked.map(|_| ()).map_err(|error| format!("{error}; if the times are the matter, check this machine's clock"))
    }

    /// Writes it to the state folder, in one step.
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        disk::make_dir(dir)?;
        let text = [&self.key.serialize_pem(), &self.certificate.pem, &self.authority.pem].map(String::as_str).concat();
        Ok(disk::replace(dir, FILE, text.as_bytes())?)
    }

    /// Reads it from the state folder. Expiry is not checked: an expired identity can still be named, and the
    /// server says so.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let path = dir.join(FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(IdentityError::NotEnrolled { path });
            }
            Err(error) => return Err(disk::failed("cannot read", &path)(error).into()),
        };
        parse_file(&text).map_err(|reason| IdentityError::Damaged { path, reason })
    }

    /// The node's name.
    pub fn node(&self) -> &Word {
        &self.node
    }

    /// The node's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate.der
    }

    /// When the certificate expires.
    pub fn expires(&self) -> DateTime<Utc> {
        self.expires
    }

    /// Whether two thirds of the certificate's life are over.
    pub fn renewal_due(&self, now: DateTime<Utc>) -> bool {
        now >= self.expires - (self.expires - self.begins) / 3
    }

    /// TLS for everything after enrolment: our certificate, and a server whose certificate the fleet's CA signed.
    pub fn quic_config(&self) -> Result<quinn::ClientConfig, IdentityError> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let config = ClientConfig::builder_with_provider(quic_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_root_certificates(roots(&self.authority.der)?)
            .with_client_auth_cert(vec![self.certificate.der.clone()], key.into())
            .map_err(tls)?;
        quic(config, ALPN)
    }
}

fn quic(mut config: ClientConfig, alpn: &[u8]) -> Result<quinn::ClientConfig, IdentityError> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(config).map_err(tls)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// What QUIC handshakes use: X25519 only, whose hello fits one datagram.
fn quic_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() })
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(tls)?;
    Ok(Arc::new(roots))
}

/// A PEM text that holds exactly one certificate, so that texts can be joined and told apart again.
#[derive(Clone)]
struct Certificate {
    pem: String,
    der: CertificateDer<'static>,
}

impl Certificate {
    fn from_pem(pem: &str) -> Result<Self, String> {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let all = all.map_err(|error| format!("no certificate in PEM form: {error}"))?;
        let count = all.len();
        let Ok([der]) = <[_; 1]>::try_from(all) else {
            return Err(format!("{count} certificates where one is expected"));
        };
        Ok(Self { pem: format!("{}\n", pem.trim()), der })
    }
}

fn parse_file(text: &[u8]) -> Result<Identity, String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let parts: Vec<&str> = text.split(BEGIN).collect();
    let &[key, certificate, authority] = parts.as_slice() else {
        let count = parts.len() - 1;
        return Err(format!("{count} certificates where the node's and the CA's are expected"));
    };
    let key = KeyPair::from_pem(key).map_err(|error| format!("no private key in PEM form: {error}"))?;
    let [certificate, authority] = [certificate, authority].map(|body| Certificate::from_pem(&[BEGIN, body].concat()));
    Identity::assemble(key, certificate?, authority?)
}

/// Accepts a server whose chain leads to the CA that a token names, and nobody else.
#[derive(Debug)]
struct PinnedAuthority {
    hash: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|shown| Digest::of(shown) == self.hash).ok_or_else(|| {
            let shown: Vec<String> = intermediates.iter().map(|shown| Digest::of(shown).to_string()).collect();
            let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
            let hash = self.hash;
            let why = format!(
                "the server shows no CA with the token's hash {hash} (shown: {shown}); it is not the server that made the token"
            );
            // A certificate's fault, so that it is told from a handshake that goes wrong in another way.
            let why: Box<dyn std::error::Error + Send + Sync> = why.into();
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::from(why))))
        })?;
        let roots =
            roots(&authority.clone().into_owned()).map_err(|error| rustls::Error::General(error.to_string()))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, self.provider.clone()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use chrono::TimeDelta;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateSigningRequestParams, DnType, IsCa, Issuer};
    use tempfile::TempDir;

    use super::*;

    /// A CA and what it signs, good from 30 days ago for 90 days.
    struct Fleet {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Fleet {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).unwrap().pem();
            Self { issuer: Issuer::new(params, key), pem }
        }

        fn sign(&self, request: &str, node: &str) -> String {
            let request = CertificateSigningRequestParams::from_pem(request).unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, node);
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let start = std::time::SystemTime::now() - std::time::Duration::from_secs(30 * 86400);
            params.not_before = start.into();
            params.not_after = (start + std::time::Duration::from_secs(90 * 86400)).into();
            params.signed_by(&request.public_key, &self.issuer).unwrap().pem()
        }

        fn enrol(&self, node: &str) -> Identity {
            let key = NodeKey::create().unwrap();
            let certificate = self.sign(&key.request().unwrap(), node);
            Identity::new(key, &certificate, &self.pem).unwrap()
        }
    }

    fn token() -> Token {
        Token { secret: "s3cret-_".into(), authority: Digest::of(b"ca"), root: Digest::of(b"root") }
    }

    #[test]
    fn a_token_reads_back_and_hides_its_secret() {
        assert_eq!(token().to_string().parse(), Ok(token()));
        assert_eq!(format!("  {}\n", token()).parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains("s3cret"));
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_its_secret() {
        let (ca, root) = (Digest::of(b"ca"), Digest::of(b"root"));
        let table = [
            (String::new(), "1 parts"),
            (format!("gs1.s3cret.{ca}"), "3 parts"),
            (format!("gs2.s3cret.{ca}.{root}"), "does not begin with gs1"),
            (format!("gs1..{ca}.{root}"), "its secret is not"),
            (format!("gs1.s3 cret.{ca}.{root}"), "its secret is not"),
            (format!("gs1.{}.{ca}.{root}", "s".repeat(129)), "its secret is not"),
            (format!("gs1.s3cret.{ca}.zz"), "root hash"),
            (format!("gs1.s3cret.00.{root}"), "CA hash"),
        ];
        for (text, expected) in table {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("s3"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends_in_a_token_or_an_error(text in "(gs1)?(\\.[a-f0-9]{64}|\\.\\PC{0,12}){0,5}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string().parse(), Ok(token));
            }
        }
    }

    #[test]
    fn an_identity_is_stored_for_its_owner_alone_and_reads_back() {
        let dir = TempDir::new().unwrap();
        let state = dir.path().join("state");
        assert!(matches!(Identity::load(&state), Err(IdentityError::NotEnrolled { .. })));
        let identity = Fleet::new().enrol("web-1");
        identity.store(&state).unwrap();
        identity.store(&state).unwrap();
        let loaded = Identity::load(&state).unwrap();
        assert_eq!(loaded.node().as_str(), "web-1");
        assert_eq!(loaded.certificate(), identity.certificate());
        assert_eq!(loaded.key.serialize_pem(), identity.key.serialize_pem());
        assert_eq!(loaded.authority.der, identity.authority.der);
        let mode = std::fs::metadata(state.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        loaded.quic_config().unwrap();
    }

    #[test]
    fn a_damaged_identity_says_what_is_wrong() {
        let dir = TempDir::new().unwrap();
        let identity = Fleet::new().enrol("web-1");
        identity.store(dir.path()).unwrap();
        let good = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        let begin = "-----BEGIN CERTIFICATE-----";
        let other = Fleet::new().enrol("web-2").certificate.pem;
        let table = [
            (String::new(), "0 certificates"),
            (good.replacen("MIG", "!!!", 1), "no private key"),
            (good[..good.rfind(begin).unwrap()].to_owned(), "1 certificates"),
            (good[..good.len() / 2].to_owned(), "certificate"),
            (good.replace(&identity.certificate.pem, &other), "another key"),
        ];
        for (text, expected) in table {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let error = Identity::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("enrol again"), "{expected}: {error}");
        }
    }

    #[test]
    fn an_answer_that_is_not_for_this_node_is_refused() {
        let (fleet, other) = (Fleet::new(), Fleet::new());
        let key = || NodeKey::create().unwrap();
        let (mine, foreign) = (key(), key());
        let certificate = fleet.sign(&foreign.request().unwrap(), "web-1");
        let error = Identity::new(mine, &certificate, &fleet.pem).unwrap_err();
        assert!(error.to_string().contains("another key"), "{error}");
        assert!(Identity::new(foreign, &certificate, &other.pem).is_err());

        let mine = key();
        let unnamed = fleet.sign(&mine.request().unwrap(), "Not a Name");
        assert!(Identity::new(mine, &unnamed, &fleet.pem).unwrap_err().to_string().contains("Not a Name"));

        let identity = fleet.enrol("web-1");
        let fresh = key();
        let certificate = fleet.sign(&fresh.request().unwrap(), "web-2");
        let error = identity.renewed(fresh, &certificate).unwrap_err();
        assert!(error.to_string().contains("names web-2, but this node is web-1"), "{error}");
        let fresh = key();
        let certificate = fleet.sign(&fresh.request().unwrap(), "web-1");
        assert_eq!(identity.renewed(fresh, &certificate).unwrap().node().as_str(), "web-1");
        let fresh = key();
        let certificate = other.sign(&fresh.request().unwrap(), "web-1");
        assert!(identity.renewed(fresh, &certificate).is_err());
    }

    #[test]
    fn a_certificate_is_due_for_renewal_when_two_thirds_of_its_life_are_over() {
        let identity = Fleet::new().enrol("web-1");
        let now = Utc::now();
        for (days, expected) in [(0, false), (29, false), (31, true), (61, true)] {
            assert_eq!(identity.renewal_due(now + TimeDelta::days(days)), expected, "in {days} days");
        }
    }

    #[test]
    fn what_the_server_sends_is_held_against_the_token() {
        let fleet = Fleet::new();
        let ca = Certificate::from_pem(&fleet.pem).unwrap();
        let token = Token { authority: Digest::of(&ca.der), root: Digest::of(b"{}"), ..token() };
        token.check_authority(&fleet.pem).unwrap();
        token.check_root("{}").unwrap();
        let error = token.check_authority(&Fleet::new().pem).unwrap_err();
        assert!(matches!(&error, IdentityError::ForeignAuthority { expected, .. } if *expected == token.authority));
        assert!(matches!(token.check_root("{ }"), Err(IdentityError::ForeignRoot { .. })));
        assert!(token.check_authority(&[fleet.pem.clone(), Fleet::new().pem].concat()).is_err());
    }
}
