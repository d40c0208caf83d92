//! Becoming a node, and staying one.

use std::collections::BTreeMap;

use chrono::Utc;
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::release::{Word, check_labels};
use goldsync_proto::wire::Answer;

use super::identify::Node;
use super::{Reply, Session, internal};
use crate::authority::AuthorityError;
use crate::catalog::Act;

impl Session {
    pub(super) async fn enrol(
        &self,
        token: &str,
        csr: &str,
        name: &Word,
        labels: &BTreeMap<String, String>,
    ) -> Result<Reply, Refusal> {
        let hub = &self.hub;
        let failed = |error| internal("enrolling", error);
        let from = self.from();
        // Cheap, and before anything is signed: a guess costs the server one look-up.
        let given = hub.catalog.token_labels(token).await.map_err(failed)?.ok_or_else(|| self.bad_token(&from))?;
        let mut all = labels.clone();
        all.extend(given);
        check_labels(&all).map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
        let key = hub.authority.key_of(csr).map_err(cannot_sign)?;
        let sign = |node: &Word| {
            let signed = hub.authority.sign_node(csr, node, Utc::now())?;
            Ok::<_, AuthorityError>((blake3::Hash::from_bytes(signed.fingerprint.0), signed))
        };
        let enrolled = hub.catalog.enrol(token, key, name, labels, &from, sign).await.map_err(failed)?;
        let (node, signed) = enrolled.ok_or_else(|| self.bad_token(&from))?.map_err(cannot_sign)?;
        tracing::info!(%node, from, "enrolled");
        Ok(Reply::from(Answer::Enrolled {
            node,
            certificate: signed.pem,
            authority: hub.authority.pem().to_owned(),
            root: hub.trust.first_root(),
        }))
    }

    fn bad_token(&self, from: &str) -> Refusal {
        tracing::warn!(from, "a machine tried to enrol with a token that is not good");
        Refusal::new(Reason::BadToken, "nothing was changed")
    }

    pub(super) async fn renew(&self, node: &Node, csr: &str) -> Result<Reply, Refusal> {
        let signed = self.hub.authority.sign_node(csr, node.name(), Utc::now()).map_err(cannot_sign)?;
        let act = Act::new(node.name(), "node.renew", format!("good until {}", signed.expires), self.from());
        let fresh = blake3::Hash::from_bytes(signed.fingerprint.0);
        let kept = self.hub.catalog.renew(node.name(), node.fingerprint, fresh, act).await;
        if !kept.map_err(|error| internal("renewing a certificate", error))? {
            return Err(Refusal::new(Reason::Revoked, format!("{} was revoked", node.name())));
        }
        Ok(Reply::from(Answer::Renewed { certificate: signed.pem }))
    }
}

fn cannot_sign(error: AuthorityError) -> Refusal {
    match error {
        AuthorityError::Request(_) => Refusal::new(Reason::BadRequest, error.to_string()),
        error => internal("signing a certificate", error),
    }
}
