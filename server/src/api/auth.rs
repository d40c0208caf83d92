//! Who asks: an operator, known by the bearer token.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;

use super::problem::{ApiError, ApiResult};
use crate::catalog::Act;
use crate::hub::Hub;
use crate::peer::canonical;

/// The longest token that is looked at. Ours have 64 characters.
const TOKEN_MAX: usize = 256;

/// The operator behind a request, and from where it came.
#[derive(Clone, Debug)]
pub struct Caller {
    name: String,
    from: String,
}

impl Caller {
    /// A line for the audit log.
    pub fn act(&self, what: &'static str, detail: impl ToString) -> Act {
        Act::new(&self.name, what, detail, &self.from)
    }
}

/// Lets operators through, and nobody else.
pub async fn require(State(hub): State<Arc<Hub>>, mut request: Request, next: Next) -> ApiResult<Response> {
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| canonical(info.0).to_string());
    let from = from.unwrap_or_else(|| "unknown".into());
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let name = match header.and_then(bearer) {
        Some(token) => hub.catalog.operator_by_token(token).await?,
        None => None,
    };
    let Some(name) = name else {
        tracing::warn!(from, path = request.uri().path(), "a request without a good bearer token was refused");
        return Err(ApiError::unauthorised());
    };
    request.extensions_mut().insert(Caller { name, from });
    Ok(next.run(request).await)
}

/// The token in `Bearer TOKEN`; the scheme's case does not matter.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    let good = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= TOKEN_MAX;
    good.then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_of_sane_length_is_looked_at() {
        let long = format!("Bearer {}", "a".repeat(TOKEN_MAX + 1));
        for (header, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
            (long.as_str(), None),
        ] {
            assert_eq!(bearer(header), token, "{header}");
        }
    }
}
