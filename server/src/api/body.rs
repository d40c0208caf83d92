//! Request bodies: bounded, timed, and with errors that are [`super::types::Problem`]s.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use futures::StreamExt;
use goldsync_proto::limits::TRUST_FILE_MAX;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::problem::{ApiError, ApiResult};

/// The largest JSON body: a signed role and a target file, each of which may double when escaped.
pub const JSON_MAX: u64 = 4 * TRUST_FILE_MAX;

/// A body must go on arriving: the next piece of it within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A JSON body. An empty one reads as `{}`.
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> ApiResult<Self> {
        let bytes = read(request.into_body(), JSON_MAX).await?;
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(json)
            .map(Self)
            .map_err(|error| ApiError::bad_request(format!("the body is not what this path takes: {error}")))
    }
}

/// All of a body, at most `max` bytes.
pub async fn read(body: Body, max: u64) -> ApiResult<Bytes> {
    let mut stream = body.into_data_stream();
    let mut whole: Vec<u8> = Vec::new();
    while let Some(piece) = timeout(PATIENCE, stream.next()).await.map_err(|_| ApiError::slow())? {
        let piece = piece.map_err(|error| ApiError::bad_request(format!("the body could not be read: {error}")))?;
        if (whole.len() + piece.len()) as u64 > max {
            return Err(ApiError::too_large(max));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.into())
}

/// A part of a path, or of a query.
pub fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> ApiResult<T> {
    text.parse().map_err(|error: T::Err| ApiError::bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_beyond_its_limit_is_not_gathered() {
        assert_eq!(read(Body::from("12345"), 5).await.unwrap(), "12345");
        let error = read(Body::from("123456"), 5).await.unwrap_err();
        assert!(format!("{error:?}").contains("more than 5 bytes"), "{error:?}");
    }
}
