//! The fleet's own certificate authority: who is a node, and who is the server.
//!
//! ```text
//! DIR/ca.pem, DIR/ca.key           ECDSA P-256, 10 years; its hash is in every enrolment token
//! DIR/server.pem, DIR/server.key   2 years; made anew when less than a third is left, or the names changed
//! ```
//! A node's certificate says its name (CN), is good for 90 days and for nothing but being a client; the key never
//! leaves the node. Which certificates are *accepted* is the catalog's business: this module only says whether the
//! fleet's CA signed one.
//!
//! Both listeners use the server's certificate. On the QUIC side a client certificate is verified when one is shown
//! and not demanded, because a machine that is not enrolled yet has none: the session decides by ALPN and by
//! [`common_name`] what such a connection may ask.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use goldsync_proto::digest::Digest;
use goldsync_proto::release::Word;
use goldsync_proto::wire::{ALPN, ALPN_ENROL};
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::disk::{self, DiskError};

const CA_LIFE: TimeDelta = TimeDelta::days(3653);
const SERVER_LIFE: TimeDelta = TimeDelta::days(730);
/// How long a node's certificate is good for. The agent renews it when two thirds are over.
pub const NODE_LIFE: TimeDelta = TimeDelta::days(90);
/// How far a peer's clock may be behind ours.
const CLOCK_SLACK: TimeDelta = TimeDelta::days(1);

/// Why a certificate was not made, loaded or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file of this machine.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is a CA already.
    #[error("{} exists already; a new CA would lock out every node: remove it only if that is meant", path.display())]
    Exists {
        /// Its certificate.
        path: PathBuf,
    },
    /// A file that is not what it should be.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate signing request that cannot be honoured. The peer's fault.
    #[error("the certificate signing request cannot be honoured: {0}; send one made by `goldsync-agent enroll`")]
    Request(String),
    /// A certificate that cannot be read, or names no node. The peer's fault.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// A name for the server that cannot be in a certificate.
    #[error("{name:?} cannot be in the server's certificate: {reason}; give host names or addresses")]
    Name {
        /// As configured.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The crypto library refused.
    #[error("cannot make a certificate: {0}")]
    Making(#[from] rcgen::Error),
    /// The TLS library refused.
    #[error("cannot configure TLS: {0}")]
    Tls(String),
}

fn tls(error: impl ToString) -> AuthorityError {
    AuthorityError::Tls(error.to_string())
}

/// The fleet's CA.
pub struct Authority {
    dir: PathBuf,
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.hash())
    }
}

/// A node's new certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCertificate {
    /// For the node.
    pub pem: String,
    /// For the catalog: BLAKE3 of the certificate's DER.
    pub fingerprint: Digest,
    /// When it expires.
    pub expires: DateTime<Utc>,
}

impl Authority {
    /// Makes a CA in `dir`. Refuses if there is one.
    pub fn create(dir: &Path, now: DateTime<Utc>) -> Result<Self, AuthorityError> {
        let path = dir.join("ca.pem");
        if path.exists() {
            return Err(AuthorityError::Exists { path });
        }
        let key = KeyPair::generate()?;
        let mut params = params(now, CA_LIFE);
        // Two fleets' CAs differ in their names, too: people see them in error messages.
        let tag = Digest::of(key.public_key_raw()).short();
        params.distinguished_name.push(DnType::CommonName, format!("goldsync fleet CA {tag}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        disk::make_dir(dir)?;
        // The key first: a certificate without its key would count as a CA and be none.
        disk::write(dir, "ca.key", key.serialize_pem().as_bytes(), disk::SECRET)?;
        disk::write(dir, "ca.pem", certificate.pem().as_bytes(), disk::PUBLIC)?;
        Self::load(dir)
    }

    /// Loads the CA in `dir`.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (pem, der) = load_certificate(&dir.join("ca.pem"))?;
        let key = load_key(&dir.join("ca.key"))?;
        let holds = |der: &CertificateDer<'_>| {
            let (_, parsed) = X509Certificate::from_der(der).ok()?;
            Some(parsed.is_ca() && parsed.public_key().subject_public_key.data == key.public_key_raw())
        };
        if holds(&der) != Some(true) {
            let reason = "is not the certificate of the key in ca.key".to_owned();
            return Err(AuthorityError::BadFile { path: dir.join("ca.pem"), reason });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { dir: dir.to_owned(), pem, der, issuer })
    }

    /// The certificate, PEM: what a node or an operator pins.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate, DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// BLAKE3 of the certificate's DER, as tokens carry it.
    pub fn hash(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// BLAKE3 of the public key in a request. That whoever sent it has the key, its own signature says.
    pub fn key_of(&self, csr: &str) -> Result<blake3::Hash, AuthorityError> {
        Ok(blake3::hash(PublicKeyData::der_bytes(&read_request(csr)?.public_key)))
    }

    /// Signs a node's certificate. Of the request only the public key counts: the server names the node.
    pub fn sign_node(&self, csr: &str, node: &Word, now: DateTime<Utc>) -> Result<NodeCertificate, AuthorityError> {
        let request = read_request(csr)?;
        let mut params = params(now, NODE_LIFE);
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(NodeCertificate {
            pem: certificate.pem(),
            fingerprint: fingerprint(certificate.der()),
            expires: now + NODE_LIFE,
        })
    }

    /// The server's certificate for these host names and addresses: the one in the folder, or a new one if that has
    /// less than a third of its life left, or other names.
    pub fn server(&self, names: &[String], now: DateTime<Utc>) -> Result<ServerCertificate, AuthorityError> {
        if let Some(held) = self.held_server(names, now)? {
            return Ok(held);
        }
        let key = KeyPair::generate()?;
        let mut params = params(now, SERVER_LIFE);
        params.subject_alt_names = alt_names(names)?;
        params.distinguished_name.push(DnType::CommonName, "goldsync server");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        disk::write(&self.dir, "server.key", key.serialize_pem().as_bytes(), disk::SECRET)?;
        disk::write(&self.dir, "server.pem", certificate.pem().as_bytes(), disk::PUBLIC)?;
        self.server_from(certificate.der().clone(), &key)
    }

    fn held_server(&self, names: &[String], now: DateTime<Utc>) -> Result<Option<ServerCertificate>, AuthorityError> {
        if !self.dir.join("server.pem").exists() {
            return Ok(None);
        }
        let (_, der) = load_certificate(&self.dir.join("server.pem"))?;
        let key = load_key(&self.dir.join("server.key"))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|error| AuthorityError::Certificate(error.to_string()))?;
        // A crash between the two writes leaves a key with another key's certificate.
        let matches = parsed.public_key().subject_public_key.data == key.public_key_raw();
        let (_, authority) =
            X509Certificate::from_der(&self.der).map_err(|error| AuthorityError::Certificate(error.to_string()))?;
        let ours = parsed.issuer() == authority.subject();
        let wanted: BTreeSet<String> = names.iter().map(|name| normal_name(name)).collect();
        let left = parsed.validity().not_after.timestamp() - now.timestamp();
        let fresh = left > SERVER_LIFE.num_seconds() / 3;
        if !(matches && ours && fresh && names_in(&parsed) == wanted) {
            return Ok(None);
        }
        self.server_from(der.clone(), &key).map(Some)
    }

    fn server_from(&self, leaf: CertificateDer<'static>, key: &KeyPair) -> Result<ServerCertificate, AuthorityError> {
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(tls)?;
        let signer = aws_lc_rs::sign::any_supported_type(&der).map_err(tls)?;
        let shown = Shown {
            plain: Arc::new(CertifiedKey::new(vec![leaf.clone()], signer.clone())),
            with_authority: Arc::new(CertifiedKey::new(vec![leaf, self.der.clone()], signer)),
        };
        Ok(ServerCertificate { shown: Arc::new(RwLock::new(shown)), authority: self.der.clone() })
    }
}

fn read_request(csr: &str) -> Result<CertificateSigningRequestParams, AuthorityError> {
    let request =
        CertificateSigningRequestParams::from_pem(csr).map_err(|error| AuthorityError::Request(error.to_string()))?;
    let algorithm = PublicKeyData::algorithm(&request.public_key);
    if ![&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519].contains(&algorithm) {
        return Err(AuthorityError::Request("its key is neither ECDSA P-256 nor Ed25519".to_owned()));
    }
    Ok(request)
}

/// The server's certificate and key, ready to serve. Clones, and the configurations made of it, show the same one.
#[derive(Clone, Debug)]
pub struct ServerCertificate {
    shown: Arc<RwLock<Shown>>,
    authority: CertificateDer<'static>,
}

#[derive(Clone, Debug)]
struct Shown {
    plain: Arc<CertifiedKey>,
    with_authority: Arc<CertifiedKey>,
}

impl ServerCertificate {
    fn shown(&self) -> Shown {
        // A poisoned lock still holds a whole certificate: it is replaced by one assignment.
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate.
    pub fn der(&self) -> Option<CertificateDer<'static>> {
        self.shown().plain.cert.first().cloned()
    }

    /// Shows `newer` from the next handshake on. Returns whether it is another one.
    pub fn replace(&self, newer: &Self) -> bool {
        let (newer, held) = (newer.shown(), self.shown());
        let other = newer.plain.cert != held.plain.cert;
        if other {
            *self.shown.write().unwrap_or_else(PoisonError::into_inner) = newer;
        }
        other
    }

    /// For the QUIC listener: TLS 1.3, both ALPNs; a client certificate is not demanded, but verified against the
    /// CA when shown, so that one of another fleet ends the handshake.
    pub fn quic_config(&self) -> Result<quinn::ServerConfig, AuthorityError> {
        let provider = quic_provider();
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).map_err(tls)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(tls)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROL.to_vec()];
        // Nodes stay connected or come back after hours, mostly as new processes: a ticket would be sent in vain.
        config.send_tls13_tickets = 0;
        let crypto = QuicServerConfig::try_from(config).map_err(tls)?;
        Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
    }

    /// For the HTTPS listener: operators are known by their bearer token, not by a certificate.
    pub fn https_config(&self) -> Result<ServerConfig, AuthorityError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for ServerCertificate {
    /// A machine that enrols knows only the CA's hash and must be shown the CA; everybody else has it already.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let enrols = hello.alpn().is_some_and(|mut names| names.any(|name| name == ALPN_ENROL));
        let shown = self.shown();
        Some(if enrols { shown.with_authority } else { shown.plain })
    }
}

/// What QUIC handshakes use: X25519 only, whose hello fits one datagram.
fn quic_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() })
}

/// The name by which the catalog knows a certificate: BLAKE3 of its DER.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Digest {
    Digest::of(certificate)
}

/// The node that a certificate names. The certificate must have been verified already.
pub fn common_name(certificate: &CertificateDer<'_>) -> Result<Word, AuthorityError> {
    let unreadable = |error: &dyn ToString| AuthorityError::Certificate(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
    let name = parsed.subject().iter_common_name().next().ok_or_else(|| unreadable(&"it names nobody (no CN)"))?;
    let name = name.as_str().map_err(|error| unreadable(&error))?;
    name.parse().map_err(|error| unreadable(&error))
}

fn at(time: DateTime<Utc>) -> Duration {
    Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

fn params(now: DateTime<Utc>, life: TimeDelta) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut serial: [u8; 16] = rand::random();
    // A serial number is a positive integer.
    serial[0] &= 0x7f;
    let mut params = CertificateParams::default();
    params.not_before = epoch + at(now - CLOCK_SLACK);
    params.not_after = epoch + at(now + life);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn alt_names(names: &[String]) -> Result<Vec<rcgen::SanType>, AuthorityError> {
    let mut all = Vec::new();
    for name in names {
        let bad = |reason: String| AuthorityError::Name { name: name.clone(), reason };
        let plain = normal_name(name);
        // A name that no client can ask for would only be noticed when the first one fails.
        ServerName::try_from(plain.as_str()).map_err(|error| bad(error.to_string()))?;
        let one = CertificateParams::new(vec![plain]).map_err(|error| bad(error.to_string()))?;
        all.extend(one.subject_alt_names);
    }
    if all.is_empty() {
        let reason = "at least one name is needed".to_owned();
        return Err(AuthorityError::Name { name: String::new(), reason });
    }
    Ok(all)
}

/// `[::1]` as `::1`, and host names in lower case.
fn normal_name(name: &str) -> String {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().map_or_else(|_| bare.to_ascii_lowercase(), |address| address.to_string())
}

fn names_in(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(normal_name(name)),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

fn load_certificate(path: &Path) -> Result<(String, CertificateDer<'static>), AuthorityError> {
    let bad = |reason: String| AuthorityError::BadFile { path: path.to_owned(), reason };
    let pem = String::from_utf8(disk::read(path)?).map_err(|error| bad(error.to_string()))?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| bad(format!("is not a certificate in PEM form: {error}")))?;
    Ok((pem, der))
}

fn load_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let bad = |reason: String| AuthorityError::BadFile { path: path.to_owned(), reason };
    let pem = String::from_utf8(disk::read(path)?).map_err(|error| bad(error.to_string()))?;
    KeyPair::from_pem(&pem).map_err(|error| bad(format!("is not a private key in PEM form: {error}")))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rcgen::DnValue;
    use tempfile::TempDir;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn request(name: &str) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_ca_is_made_once_and_its_key_is_its_owners_alone() {
        let dir = TempDir::new().unwrap();
        let made = Authority::create(dir.path(), now()).unwrap();
        assert!(matches!(Authority::create(dir.path(), now()), Err(AuthorityError::Exists { .. })));
        let loaded = Authority::load(dir.path()).unwrap();
        assert_eq!((loaded.hash(), loaded.pem()), (made.hash(), made.pem()));
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_ca_whose_files_do_not_belong_together_is_refused() {
        let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        Authority::create(dir.path(), now()).unwrap();
        Authority::create(other.path(), now()).unwrap();
        fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
        let error = Authority::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not the certificate of the key"), "{error}");
        fs::write(dir.path().join("ca.pem"), "nonsense").unwrap();
        assert!(matches!(Authority::load(dir.path()), Err(AuthorityError::BadFile { .. })));
        fs::remove_file(dir.path().join("ca.pem")).unwrap();
        assert!(matches!(Authority::load(dir.path()), Err(AuthorityError::Disk(_))));
    }

    #[test]
    fn the_server_names_the_node_whatever_the_request_says() {
        let dir = TempDir::new().unwrap();
        let authority = Authority::create(dir.path(), now()).unwrap();
        let signed = authority.sign_node(&request("root-of-all"), &"web-1".parse().unwrap(), now()).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        assert_eq!(common_name(&der).unwrap().as_str(), "web-1");
        assert_eq!(signed.fingerprint, fingerprint(&der));
        assert_eq!(signed.expires, now() + TimeDelta::days(90));
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(parsed.validity().not_after.timestamp(), signed.expires.timestamp());
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !parsed.is_ca());
        let again = authority.sign_node(&request("x"), &"web-1".parse().unwrap(), now()).unwrap();
        assert_ne!(signed.fingerprint, again.fingerprint);
    }

    #[test]
    fn a_request_that_cannot_be_honoured_says_why() {
        let dir = TempDir::new().unwrap();
        let authority = Authority::create(dir.path(), now()).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let p384 = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let good = request("x");
        // Break the signature: the last bytes of the body.
        let lines: Vec<&str> = good.lines().collect();
        let last = lines[lines.len() - 2];
        let forged = good.replace(last, &format!("{}{}", "AAAA", &last[4..]));
        for (csr, expected) in [
            (String::new(), "cannot be honoured"),
            (authority.pem().to_owned(), "cannot be honoured"),
            (p384, "neither ECDSA P-256 nor Ed25519"),
            (forged, "cannot be honoured"),
        ] {
            let error = authority.sign_node(&csr, &"web-1".parse().unwrap(), now()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn the_servers_certificate_is_kept_until_a_third_is_left_or_its_names_change() {
        let dir = TempDir::new().unwrap();
        let authority = Authority::create(dir.path(), now()).unwrap();
        let first = names(&["Golden.example", "[::1]", "127.0.0.1"]);
        let der =
            |names: &[String], days| authority.server(names, now() + TimeDelta::days(days)).unwrap().der().unwrap();
        let made = der(&first, 0);
        assert_eq!(der(&first, 486), made);
        assert_eq!(der(&names(&["::1", "golden.example", "127.0.0.1"]), 0), made);
        let renewed = der(&first, 487);
        assert_ne!(renewed, made);
        let other = der(&names(&["golden.example"]), 487);
        assert_ne!(other, renewed);
        // A crash after the new key and before its certificate.
        fs::write(dir.path().join("server.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert_ne!(der(&names(&["golden.example"]), 487), other);
        for bad in [&[][..], &["two words"], &["ü.example"]] {
            assert!(matches!(authority.server(&names(bad), now()), Err(AuthorityError::Name { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_running_server_shows_its_next_certificate_and_that_once() {
        let dir = TempDir::new().unwrap();
        let authority = Authority::create(dir.path(), now()).unwrap();
        let at = |days| authority.server(&names(&["localhost"]), now() + TimeDelta::days(days)).unwrap();
        let running = at(0);
        let clone = running.clone();
        assert!(!running.replace(&at(486)));
        let next = at(487);
        assert!(running.replace(&next) && !running.replace(&next));
        assert_eq!(clone.der(), next.der());
    }

    #[test]
    fn both_listeners_configurations_can_be_made() {
        let dir = TempDir::new().unwrap();
        let authority = Authority::create(dir.path(), Utc::now()).unwrap();
        let server = authority.server(&names(&["localhost"]), Utc::now()).unwrap();
        server.quic_config().unwrap();
        assert_eq!(server.https_config().unwrap().alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn a_certificate_that_names_no_node_is_refused() {
        for name in ["", "Not A Node", "a/b"] {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert!(matches!(common_name(certificate.der()), Err(AuthorityError::Certificate(_))), "{name:?}");
        }
        assert!(common_name(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])).is_err());
    }
}
