//! The operator's folder: who the operator is to the server, and the keys that sign.
//!
//! ```text
//! operator.toml   api, token, authority, name; mode 0600, because the token is a credential
//! ca.pem          the fleet's CA: the only one that the tool trusts
//! 1.root.json     the first signed root: what new nodes pin
//! keys/           the signing keys, see `trust`
//! ```
//! `goldsync init` makes it; everything else only reads it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use goldsync_proto::digest::Digest;
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::fail::{Code, Failure, Outcome};

/// The file that says who the operator is.
pub const FILE: &str = "operator.toml";

/// `operator.toml`, and where it lies.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// The API's address: `https://HOST:PORT`.
    pub api: String,
    /// The credential.
    pub token: String,
    /// The fleet's CA certificate, PEM; relative to the folder.
    pub authority: PathBuf,
    /// The operator's name, as the audit log has it.
    pub name: String,
    /// What nodes dial: `HOST:PORT`; printed with new tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The folder.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// The folder that was asked for, or `~/.config/goldsync`.
pub fn folder(asked: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(asked) = asked {
        return Ok(asked.to_owned());
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("goldsync"))
        .ok_or_else(|| {
            Failure::new(Code::Usage, "there is no HOME to look for the operator's folder in")
                .remedy("give it with --operator DIR, or in GOLDSYNC_OPERATOR")
        })
}

impl Operator {
    /// Reads the folder's `operator.toml`.
    pub fn open(folder: &Path) -> Outcome<Self> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::new(Code::Usage, format!("there is no {}", path.display())).remedy(
                "run `goldsync init` on the server's machine, bring its operator's folder here, or name the right one \
                 with --operator DIR",
            ),
            _ => Failure { code: Code::Usage, ..Failure::io("cannot read", &path, &error) },
        })?;
        let unusable = |why: String| {
            Failure::new(Code::Usage, format!("{}: {}", path.display(), why.trim_end()))
                .remedy("the keys are api, token, authority, name and server; `goldsync init` wrote it right")
        };
        let operator: Self = toml::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        let operator = Self { folder: folder.to_owned(), ..operator };
        // A token with a line break or the like could not be sent; say so here rather than from inside a request.
        if operator.token.is_empty() || !operator.token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unusable("`token` must be printable characters without spaces".into()));
        }
        operator.url().map(|_| operator)
    }

    /// The API's address, checked: HTTPS, a host, no path.
    pub fn url(&self) -> Outcome<Url> {
        let refuse = |why: &str| {
            Failure::new(Code::Usage, format!("`api` in {} is {:?}: {why}", self.folder.join(FILE).display(), self.api))
                .remedy("write it as https://HOST:PORT, for example https://gold.example.org:7401")
        };
        let url = Url::parse(&self.api).map_err(|error| refuse(&error.to_string()))?;
        match (url.scheme(), url.host_str(), url.path()) {
            ("https", Some(_), "/") => Ok(url),
            ("https", ..) => Err(refuse("it must name a host and have no path")),
            _ => Err(refuse("it must begin with https://, because the token travels by it")),
        }
    }

    /// The fleet's CA certificate.
    pub fn authority(&self) -> Outcome<CertificateDer<'static>> {
        let path = self.folder.join(&self.authority);
        let bytes = fs::read(&path).map_err(|error| Failure {
            code: Code::Usage,
            ..Failure::io("cannot read the fleet's CA", &path, &error)
        })?;
        CertificateDer::from_pem_slice(&bytes).map_err(|error| {
            Failure::new(Code::Usage, format!("{} holds no certificate in PEM form: {error}", path.display()))
                .remedy("`authority` in operator.toml must name the ca.pem that `goldsync init` wrote")
        })
    }

    /// What nodes dial: as noted by `init`, or the API's host with the usual port beside the API's.
    pub fn nodes_dial(&self) -> Outcome<String> {
        if let Some(server) = &self.server {
            return Ok(server.clone());
        }
        let url = self.url()?;
        let port = url.port_or_known_default().and_then(|port| port.checked_sub(1)).unwrap_or(7400);
        Ok(format!("{}:{port}", url.host_str().unwrap_or_default()))
    }

    /// Whether others than the owner can read the credential.
    pub fn exposed(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(self.folder.join(FILE)).is_ok_and(|data| data.mode() & 0o077 != 0)
    }
}

/// `gs1.SECRET.CA.ROOT`: what a new machine needs to know, in one word.
pub fn join_token(secret: &str, authority: &CertificateDer<'_>, root: &[u8]) -> String {
    format!("gs1.{secret}.{}.{}", Digest::of(authority), Digest::of(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Outcome<Operator> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), text).unwrap();
        Operator::open(folder.path())
    }

    fn with(api: &str, more: &str) -> String {
        format!("api = \"{api}\"\ntoken = \"t\"\nauthority = \"ca.pem\"\nname = \"ann\"\n{more}")
    }

    #[test]
    fn what_init_writes_is_read() {
        let operator = open(&with("https://gold.example.org:7401", "server = \"gold:9\"\n")).unwrap();
        assert_eq!((operator.name.as_str(), operator.nodes_dial()), ("ann", Ok("gold:9".into())));
        let text = toml::to_string(&operator).unwrap();
        assert_eq!(open(&text).unwrap().api, operator.api);
    }

    #[test]
    fn nodes_dial_the_port_beside_the_api_s_if_nothing_is_noted() {
        for (api, dial) in
            [("https://gold:7401", "gold:7400"), ("https://[::1]:1235", "[::1]:1234"), ("https://gold", "gold:442")]
        {
            assert_eq!(open(&with(api, "")).unwrap().nodes_dial(), Ok(dial.to_owned()), "{api}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_remedy() {
        for (text, words) in [
            (with("http://gold:7401", ""), "https://"),
            (with("https://gold:7401/v1", ""), "no path"),
            (with("gold", ""), "relative URL"),
            (with("https://gold", "tokn = \"x\"\n"), "tokn"),
            ("api = 7".into(), "invalid type"),
            (with("https://gold", "").replace("\"t\"", "\"two words\""), "without spaces"),
        ] {
            let failure = open(&text).unwrap_err();
            assert_eq!(failure.code, Code::Usage, "{text}");
            assert!(failure.message.contains(words), "{words}: {failure}");
            assert!(failure.remedy.is_some());
        }
        let nowhere = Operator::open(Path::new("/nonexistent")).unwrap_err();
        assert!(nowhere.remedy.unwrap().contains("goldsync init"));
    }

    #[test]
    fn a_ca_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), with("https://gold", "")).unwrap();
        let operator = Operator::open(folder.path()).unwrap();
        assert!(operator.authority().unwrap_err().message.contains("ca.pem"));
        fs::write(folder.path().join("ca.pem"), "not a certificate").unwrap();
        assert!(operator.authority().unwrap_err().message.contains("no certificate"));
    }

    #[test]
    fn a_credential_that_others_can_read_is_noticed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, with("https://gold", "")).unwrap();
        for (mode, exposed) in [(0o600, false), (0o640, true), (0o604, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Operator::open(folder.path()).unwrap().exposed(), exposed, "{mode:o}");
        }
    }
}
