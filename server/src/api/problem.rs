//! Errors as the API tells them: a status for machines, a word for programs, the values and the remedy for people.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::types::Problem;
use crate::catalog::CatalogError;
use crate::golden::UploadError;
use crate::store::StoreError;
use crate::trust::{Fault, TrustError};

/// A status and its [`Problem`].
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    problem: Problem,
}

/// What a handler gives.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, code: &str, message: impl ToString) -> Self {
        Self { status, problem: Problem { code: code.into(), message: message.to_string(), remedy: None } }
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.problem.remedy = Some(remedy.into());
        self
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 401: no operator is known by this credential.
    pub fn unauthorised() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorised", "no operator of this fleet is known by that bearer token")
            .remedy("send `Authorization: Bearer TOKEN` with the token of operator.toml, which `goldsync init` wrote")
    }

    /// 404: there is no such thing.
    pub fn not_found(message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 405: not this method.
    pub fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take that method")
            .remedy("GET /v1/openapi.json lists what there is")
    }

    /// 408: the body did not come.
    pub fn slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body did not arrive in time")
    }

    /// 409: it does not fit what is there.
    pub fn conflict(message: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 409 that asking again does not change: the name is taken.
    pub fn taken(message: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, "taken", message)
    }

    /// 409 that lasts until what needs it has moved.
    pub fn needed(message: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, "needed", message)
    }

    /// 413: too many bytes.
    pub fn too_large(max: u64) -> Self {
        let message = format!("the request's body has more than {max} bytes, the limit here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 500: the server's fault. The log gets the reason.
    pub fn internal(error: impl ToString) -> Self {
        let error = error.to_string();
        tracing::error!(error, "a request to the API failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error).remedy("look into the server's log")
    }

    /// 503: the server is going down; whoever asks again meets its successor.
    pub fn stopping(message: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message).remedy("ask again once it is back")
    }

    fn not_trusted(message: impl ToString) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not_trusted", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Taken { .. } => Self::taken(error),
            error => Self::internal(error),
        }
    }
}

impl From<TrustError> for ApiError {
    fn from(error: TrustError) -> Self {
        match (error.fault(), &error) {
            (_, TrustError::Signature { .. } | TrustError::Expired { .. } | TrustError::ForeignKey { .. }) => {
                Self::not_trusted(error)
            }
            (Fault::Request, _) => Self::bad_request(error),
            (Fault::Conflict, _) => Self::conflict(error),
            (Fault::NotFound, _) => Self::not_found(error),
            (Fault::Distrust, _) => Self::not_trusted(error),
            (Fault::Local, _) => Self::internal(error),
        }
    }
}

impl From<UploadError> for ApiError {
    fn from(error: UploadError) -> Self {
        match error.code() {
            "not_found" => Self::not_found(error),
            "conflict" => Self::conflict(error),
            "bad_request" => Self::bad_request(error),
            "stopping" => Self::stopping(error),
            _ => Self::internal(error),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::UnknownImage { .. } | StoreError::NotFound { .. } => Self::not_found(error),
            StoreError::Stopping => Self::stopping(error),
            error => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_goes_down_says_so_in_the_way_that_is_asked_again() {
        let stopping = || StoreError::Stopping;
        for error in [ApiError::from(stopping()), ApiError::from(UploadError::from(stopping()))] {
            assert_eq!((error.status, error.problem.code.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "stopping"));
        }
    }
}
