//! The way to the server: HTTPS with the fleet's own CA pinned and the operator's token, JSON both ways.
//!
//! ```text
//! call ──▶ attempt ──▶ 2xx: the body          ┐
//!   ▲         │        4xx, 5xx: Problem      ├─▶ Outcome
//!   └─ wait ◀─┘        nothing: unreachable   ┘
//! ```
//! A call is tried again when that cannot do harm: always if the connection was never made or the server said that it
//! is busy, and after a broken connection only if the call is idempotent. The system's own certificates are not
//! trusted here, proxies are not used, redirects are not followed: the token goes to this server and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{Method, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fail::{Code, Failure, Outcome, chain};
use super::operator::Operator;
use crate::api::types::Problem;

/// The longest answer that is read: the missing runs of a 100 GiB image in the worst pattern.
const ANSWER_MAX: usize = 256 << 20;
/// The longest line of an event stream; a node's report is below 64 KiB.
const LINE_MAX: usize = 1 << 20;
/// Without a connection after this long there is no server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A small call that takes longer than this will not come back.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A peer that acknowledges nothing for this long is gone. Holds for calls without an end of their own.
const SILENCE: Duration = Duration::from_secs(30);

/// How long to go on when the server is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// About a second and a half: somebody waits for an answer.
    Short,
    /// About half a minute: long enough for a server to be restarted under a running upload.
    Long,
}

impl Patience {
    fn pauses(self) -> u32 {
        match self {
            Self::Short => 3,
            Self::Long => 8,
        }
    }
}

/// One call, before it is made.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    body: Option<(Bytes, &'static str)>,
    idempotent: bool,
    patience: Patience,
    timeout: Option<Duration>,
}

impl Call {
    /// A call of `method` on `/v1/` and the segments of `path`, divided by `/`.
    pub fn new<'a>(method: Method, path: impl IntoIterator<Item = &'a str>) -> Self {
        let idempotent = method != Method::POST;
        let path = path.into_iter().map(str::to_owned).collect();
        let (query, body, patience) = (Vec::new(), None, Patience::Short);
        Self { method, path, query, body, idempotent, patience, timeout: Some(CALL_TIMEOUT) }
    }

    /// With `?key=value`, if there is a value.
    pub fn query(mut self, key: &'static str, value: Option<String>) -> Self {
        self.query.extend(value.map(|value| (key, value)));
        self
    }

    /// With a JSON body.
    pub fn json<T: Serialize>(mut self, value: &T) -> Outcome<Self> {
        let json = serde_json::to_vec(value)
            .map_err(|error| Failure::new(Code::Failed, format!("cannot write the request as JSON: {error}")))?;
        self.body = Some((Bytes::from(json), "application/json"));
        Ok(self)
    }

    /// With a body of plain bytes.
    pub fn octets(mut self, bytes: Bytes) -> Self {
        self.body = Some((bytes, "application/octet-stream"));
        self
    }

    /// Doing it twice is the same as doing it once, although it is a POST.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Goes on for longer when the server is away.
    pub fn patient(mut self) -> Self {
        self.patience = Patience::Long;
        self
    }

    /// May take as long as it takes; a dead peer is noticed nevertheless.
    pub fn endless(mut self) -> Self {
        self.timeout = None;
        self
    }
}

/// The connection to one server as one operator.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
}

impl Client {
    /// For the server and credential of an operator's folder. Touches no network.
    pub fn new(operator: &Operator) -> Outcome<Self> {
        let base = operator.url()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(&operator.authority()?)?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(SILENCE / 2)
            .tcp_user_timeout(SILENCE)
            .user_agent(concat!("goldsync/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::new(Code::Usage, format!("cannot make an HTTPS client: {}", chain(&error))))?;
        Ok(Self { http, base, token: operator.token.clone() })
    }

    /// The server's address, for people.
    pub fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Makes a call whose answer has a JSON body.
    pub async fn get<T: DeserializeOwned>(&self, call: &Call) -> Outcome<T> {
        read(call, &self.whole(call).await?)
    }

    /// Makes a call whose answer may be "not found".
    pub async fn find<T: DeserializeOwned>(&self, call: &Call) -> Outcome<Option<T>> {
        match self.whole(call).await {
            Ok(body) => read(call, &body).map(Some),
            Err(Refusal::Problem(StatusCode::NOT_FOUND, _)) => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Makes a call whose answer has a JSON body, and leaves it to the caller what a refusal means.
    pub async fn try_get<T: DeserializeOwned>(&self, call: &Call) -> Outcome<Result<T, Refusal>> {
        match self.whole(call).await {
            Ok(body) => read(call, &body).map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Makes a call whose answer has no body worth reading.
    pub async fn send(&self, call: &Call) -> Outcome {
        Ok(self.try_send(call).await?)
    }

    /// Makes a call whose answer has no body worth reading, and leaves it to the caller what a refusal means.
    pub async fn try_send(&self, call: &Call) -> Result<(), Refusal> {
        self.whole(call).await.map(drop)
    }

    /// Opens a stream of JSON lines.
    pub async fn lines(&self, call: &Call) -> Result<Lines, Refusal> {
        let answer = self.again(call, async || self.attempt(call).await).await?;
        Ok(Lines { address: self.address().to_owned(), answer, rest: BytesMut::new() })
    }

    /// The whole body of a call's answer. A body that breaks off is asked for again like a call that does.
    async fn whole(&self, call: &Call) -> Result<Bytes, Refusal> {
        self.again(call, async || self.body(self.attempt(call).await?).await).await
    }

    /// Makes an attempt, and others after growing pauses while they may help and can do no harm.
    async fn again<T>(&self, call: &Call, attempt: impl AsyncFn() -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut pauses = 0;
        loop {
            match attempt().await {
                Err(refusal) if refusal.worth_another(call.idempotent) && pauses < call.patience.pauses() => {
                    tokio::time::sleep(pause(pauses)).await;
                    pauses += 1;
                }
                ended => return ended,
            }
        }
    }

    async fn attempt(&self, call: &Call) -> Result<reqwest::Response, Refusal> {
        let mut request = self.http.request(call.method.clone(), self.url(call)).bearer_auth(&self.token);
        if let Some((body, kind)) = &call.body {
            request = request.header(reqwest::header::CONTENT_TYPE, *kind).body(body.clone());
        }
        if let Some(timeout) = call.timeout {
            request = request.timeout(timeout);
        }
        let answer = request.send().await.map_err(|error| broken(self.address(), error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = self.body(answer).await.unwrap_or_default();
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| foreign(status, &body));
        Err(Refusal::Problem(status, problem))
    }

    fn url(&self, call: &Call) -> Url {
        let mut url = self.base.clone();
        // `Operator::url` proved that the address is one that can have a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(&call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        url
    }

    async fn body(&self, mut answer: reqwest::Response) -> Result<Bytes, Refusal> {
        let mut body = BytesMut::new();
        while let Some(part) = answer.chunk().await.map_err(|error| broken(self.address(), error))? {
            if body.len() + part.len() > ANSWER_MAX {
                return Err(Refusal::TooLong { limit: ANSWER_MAX });
            }
            body.extend_from_slice(&part);
        }
        Ok(body.freeze())
    }
}

/// Why a call has no result.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// No connection, or a broken one.
    Unreachable {
        /// The server's address.
        address: String,
        /// The request never left.
        never_sent: bool,
        /// What the system said.
        why: String,
    },
    /// Somebody answered who is not this fleet's server.
    Stranger {
        /// The server's address.
        address: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The server said no.
    Problem(StatusCode, Problem),
    /// The server said too much.
    TooLong {
        /// Bytes that are read at most.
        limit: usize,
    },
}

impl Refusal {
    /// Whether the same call may succeed a moment later, and whether trying is harmless.
    fn worth_another(&self, idempotent: bool) -> bool {
        match self {
            Self::Unreachable { never_sent, .. } => *never_sent || idempotent,
            Self::Problem(status, _) => matches!(status.as_u16(), 429 | 503) || (idempotent && status.as_u16() == 502),
            Self::Stranger { .. } | Self::TooLong { .. } => false,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unreachable { address, why, .. } => {
                Self::new(Code::Server, format!("cannot reach the server at {address}: {why}")).remedy(
                    "is `goldsync serve` running there, and does a firewall let its API port through? \
                     The address is `api` in operator.toml",
                )
            }
            Refusal::Stranger { address, why } => {
                Self::new(Code::NotTrusted, format!("who answers at {address} is not this fleet's server: {why}"))
                    .remedy(
                        "is `api` in operator.toml the right address, and one of the names given to `goldsync init`? \
                     ca.pem must be the fleet's own",
                    )
            }
            Refusal::TooLong { limit } => {
                Self::new(Code::Server, format!("the server's answer is longer than the limit of {limit} bytes"))
            }
            Refusal::Problem(status, problem) => refused(status, problem),
        }
    }
}

/// The server's own words, with the exit code that they amount to.
fn refused(status: StatusCode, problem: Problem) -> Failure {
    let code = match (status.as_u16(), problem.code.as_str()) {
        (_, "not_trusted") => Code::NotTrusted,
        (401 | 403 | 429 | 500.., _) => Code::Server,
        _ => Code::Failed,
    };
    let usual = match status.as_u16() {
        401 | 403 => {
            Some("the `token` in operator.toml must be one that this server knows; `goldsync init` wrote the first")
        }
        500.. => Some("the server's log says more"),
        _ => None,
    };
    let remedy = problem.remedy.or_else(|| usual.map(str::to_owned));
    Failure { code, message: problem.message, remedy }
}

/// An error answer that is not goldsync's: a proxy's, say.
fn foreign(status: StatusCode, body: &[u8]) -> Problem {
    let said: String = String::from_utf8_lossy(body).split_whitespace().collect::<Vec<_>>().join(" ");
    let said: String = said.chars().take(200).collect();
    let message = if said.is_empty() {
        format!("the server answered {status}")
    } else {
        format!("the server answered {status}: {said}")
    };
    Problem { code: "unknown".into(), message, remedy: None }
}

fn read<T: DeserializeOwned>(call: &Call, body: &[u8]) -> Outcome<T> {
    serde_json::from_slice(body).map_err(|error| {
        let path = call.path.join("/");
        Failure::new(Code::Server, format!("the server's answer to {} /v1/{path} cannot be read: {error}", call.method))
            .remedy("is the server much older or newer than this tool? compare `goldsync --version` on both machines")
    })
}

fn broken(address: &str, error: reqwest::Error) -> Refusal {
    let address = address.to_owned();
    match distrust(&error) {
        Some(why) => Refusal::Stranger { address, why },
        None => {
            let never_sent = error.is_connect();
            Refusal::Unreachable { address, never_sent, why: chain(&error.without_url()) }
        }
    }
}

/// Whether the trouble is the peer's certificate, and what is wrong with it.
fn distrust(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(cause) = next {
        // An I/O error hides what it wraps from `source`.
        let wrapped = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        let tls = cause.downcast_ref::<rustls::Error>().or_else(|| wrapped?.downcast_ref());
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return Some(why.to_string());
        }
        next = wrapped.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| cause.source());
    }
    None
}

/// A quarter of a second, twice as much each time, at most eight seconds; a random part keeps many tools apart.
fn pause(before: u32) -> Duration {
    let whole = Duration::from_millis(250).saturating_mul(1 << before.min(5)).min(Duration::from_secs(8));
    whole.mul_f64(rand::random_range(0.5..=1.0))
}

/// TLS 1.3 that trusts one CA and nobody else.
fn tls(authority: &CertificateDer<'static>) -> Outcome<rustls::ClientConfig> {
    let unusable = |error: rustls::Error| {
        Failure::new(Code::Usage, format!("the fleet's CA certificate cannot be used: {error}"))
            .remedy("`authority` in operator.toml must name the ca.pem that `goldsync init` wrote")
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.clone()).map_err(unusable)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A stream of JSON lines.
#[derive(Debug)]
pub struct Lines {
    address: String,
    answer: reqwest::Response,
    rest: BytesMut,
}

impl Lines {
    /// The next line, or `None` when the server has said everything. Empty lines (a server's sign of life) are skipped.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Outcome<Option<T>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let unreadable = |error| Failure::new(Code::Server, format!("an event cannot be read: {error}"));
                return serde_json::from_slice(&line).map(Some).map_err(unreadable);
            }
            if self.rest.len() > LINE_MAX {
                return Err(Refusal::TooLong { limit: LINE_MAX }.into());
            }
            match self.answer.chunk().await.map_err(|error| broken(&self.address, error))? {
                Some(part) => self.rest.extend_from_slice(&part),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
pub mod place;
#[cfg(test)]
mod tests;
