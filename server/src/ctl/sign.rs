//! Signing: between the API, which hands out signed metadata, and the keys in the operator's folder.
//!
//! A role has one next version. When two operators sign at the same time, the server takes one and answers the other
//! with a conflict; that one looks again and signs on top, a few times.

use chrono::Utc;
use goldsync_proto::release::{Manifest, Pointer, ReleaseRef};
use reqwest::StatusCode;
use serde::Serialize;

use super::Desk;
use super::client::Refusal;
use super::fail::{Code, Failure, Outcome};
use crate::api::types::{PromoteRequest, PruneRequest, Pruning, ReleaseRequest};
use crate::trust::{Fault, Operator as Signer, TrustError};

/// How often to sign anew when others are faster.
pub const TURNS: u32 = 5;

/// Opens the keys of the desk's folder, and makes sure that the one that will be needed is there: better now than
/// after 20 GiB.
pub fn signer(desk: &Desk, role: &str) -> Outcome<Signer> {
    let signer = Signer::open(&desk.operator.folder)?;
    signer.keys().get(role)?;
    Ok(signer)
}

/// Signs a release and makes it visible. `Ok(false)`: the server holds another release of that name already.
pub async fn release(desk: &Desk, signer: &Signer, manifest: &Manifest) -> Outcome<bool> {
    let text = to_text(manifest)?;
    for _ in 0..TURNS {
        let files = desk.client.trust().await?.files;
        let role = match signer.sign_release(&files, &text, Utc::now()).await {
            Err(TrustError::ReleaseExists { .. }) => return Ok(false),
            signed => signed?,
        };
        match desk.client.add_release(&ReleaseRequest { manifest: text.clone(), role }).await? {
            Ok(()) => return Ok(true),
            Err(Refusal::Problem(StatusCode::CONFLICT, _))
                if desk.client.release(&manifest.release).await?.is_some() =>
            {
                return Ok(false);
            }
            // A pruned release's name stays taken, though no list shows it.
            Err(Refusal::Problem(StatusCode::CONFLICT, problem)) if problem.code != "taken" => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Err(outpaced())
}

/// Signs a channel's pointer and makes it count.
pub async fn pointer(desk: &Desk, signer: &Signer, pointer: &Pointer) -> Outcome {
    let text = to_text(pointer)?;
    for _ in 0..TURNS {
        let files = desk.client.trust().await?.files;
        let role = signer.sign_pointer(&files, &text, Utc::now()).await?;
        match desk.client.promote(&pointer.channel, &PromoteRequest { pointer: text.clone(), role }).await? {
            Ok(()) => return Ok(()),
            Err(Refusal::Problem(StatusCode::CONFLICT, _)) => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Err(outpaced())
}

/// Signs the list of releases without these, and makes it count.
pub async fn removal(desk: &Desk, signer: &Signer, releases: &[ReleaseRef]) -> Outcome<Pruning> {
    for _ in 0..TURNS {
        let files = desk.client.trust().await?.files;
        let role = signer.sign_removal(&files, releases, Utc::now()).await?;
        let request = PruneRequest { releases: releases.to_vec(), role: Some(role) };
        match desk.client.prune(&request).await? {
            Ok(pruned) => return Ok(pruned),
            Err(Refusal::Problem(StatusCode::CONFLICT, problem)) if problem.code != "needed" => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Err(outpaced())
}

pub fn outpaced() -> Failure {
    Failure::new(
        Code::Failed,
        format!("others were faster {TURNS} times: each time the metadata moved on before ours came"),
    )
    .remedy("run the same command again; what was sent is kept")
}

fn to_text<T: Serialize>(value: &T) -> Outcome<String> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Code::Failed, format!("cannot write what is to be signed: {error}")))
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        let code = match (&error, error.fault()) {
            (TrustError::Signature { .. } | TrustError::Expired { .. }, _) => Code::NotTrusted,
            (TrustError::NoKey { .. } | TrustError::BadKey { .. } | TrustError::ForeignKey { .. }, _) => Code::Usage,
            (_, Fault::Distrust) => Code::NotTrusted,
            (_, Fault::Local) => Code::Disk,
            (_, Fault::Request | Fault::Conflict | Fault::NotFound) => Code::Failed,
        };
        let failure = Self::new(code, error.to_string());
        match code {
            Code::NotTrusted => failure.remedy("nothing was signed; find out what the server did before you go on"),
            _ => failure,
        }
    }
}
