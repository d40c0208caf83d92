//! Who is at the other end. The handshake has proven that a certificate is of this fleet's CA and that the peer holds
//! its key; whether it is a node *now* is the catalog's word.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::release::Word;
use quinn::Connection;
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::internal;
use crate::authority;
use crate::hub::Hub;
use crate::roster::{AdmitError, Admitted};

/// The other end.
pub enum Peer {
    /// A machine without a certificate, which may enrol.
    Stranger,
    /// A node.
    Node(Box<Node>),
}

/// A node on this connection.
pub struct Node {
    /// Its place in the roster.
    pub admitted: Admitted,
    /// The labels that its token gave it.
    pub fixed_labels: BTreeMap<String, String>,
    /// BLAKE3 of the certificate that it shows.
    pub fingerprint: blake3::Hash,
    expires: DateTime<Utc>,
}

impl Peer {
    /// Whether it is a node.
    pub fn is_node(&self) -> bool {
        matches!(self, Self::Node(_))
    }
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &Word {
        self.admitted.node()
    }

    /// A connection may outlive the certificate that it began with.
    pub fn check_time(&self) -> Result<(), Refusal> {
        if Utc::now() < self.expires {
            return Ok(());
        }
        let detail =
            format!("the certificate of {} expired on {}; connect with the renewed one", self.name(), self.expires);
        Err(Refusal::new(Reason::NotEnrolled, detail))
    }
}

/// The protocol that the handshake settled on.
pub fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

fn certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().cloned()
}

/// The node at the other end, entered into the roster.
pub async fn node(hub: &Hub, connection: &Connection) -> Result<Peer, Refusal> {
    let stranger = |detail: String| Refusal::new(Reason::NotEnrolled, detail);
    let certificate = certificate(connection).ok_or_else(|| stranger("no certificate was shown".into()))?;
    let named = authority::common_name(&certificate).map_err(|error| stranger(error.to_string()))?;
    let fingerprint = blake3::Hash::from_bytes(authority::fingerprint(&certificate).0);
    let row =
        hub.catalog.node_by_certificate(fingerprint).await.map_err(|error| internal("looking up the node", error))?;
    let row = row.filter(|row| row.node == named);
    let row =
        row.ok_or_else(|| stranger(format!("the certificate of {named} is not known here, or was superseded")))?;
    if let Some(at) = row.revoked_at {
        return Err(Refusal::new(Reason::Revoked, format!("{named} was revoked on {at}")));
    }
    let admitted = hub.roster.admit(&row.node, Arc::new(connection.clone())).map_err(|error| {
        let AdmitError::Revoked(_) = error;
        Refusal::new(Reason::Revoked, error.to_string())
    })?;
    let expires = expiry(&certificate).ok_or_else(|| stranger("the certificate has no readable expiry".into()))?;
    Ok(Peer::Node(Box::new(Node { admitted, fixed_labels: row.fixed_labels, fingerprint, expires })))
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<DateTime<Utc>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0)
}
