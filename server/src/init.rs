//! The server half of `goldsync init`: everything that a fleet begins with.
//!
//! ```text
//! data/      server.toml · catalog.sqlite · authority/ (CA, server certificate) · trust/ (online keys, first metadata)
//! operator/  operator.toml · ca.pem · keys/ (offline keys) · trust/ (the pinned root)
//! ```
//! Nothing that exists is touched: the data folder must be empty or absent, and the operator's folder must hold no
//! operator. `server.toml` is written last; if anything fails before, what was made is removed again, so that the next
//! try starts from nothing. A kill in between leaves files that the next try names.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use chrono::Utc;
use goldsync_proto::digest::Digest;
use goldsync_proto::release::Word;
use serde::Serialize;

use crate::api::random_hex;
use crate::authority::{Authority, AuthorityError};
use crate::catalog::{Act, Catalog, CatalogError, Operator};
use crate::config::{Config, ConfigError};
use crate::disk::{self, DiskError};
use crate::trust::{Online, Operator as Signer, Trust, TrustError};

/// The channels of a new fleet.
pub const CHANNELS: [&str; 4] = ["dev", "qa", "staging", "production"];

/// Random bytes in an operator's bearer token.
const TOKEN_BYTES: usize = 32;

/// The configuration's name in the data folder.
pub const CONFIG_FILE: &str = "server.toml";

/// Where the parts of a data folder are.
pub(crate) mod place {
    /// The fleet's CA.
    pub const AUTHORITY: &str = "authority";
    /// Signed metadata.
    pub const TRUST: &str = "trust";
}

/// What to make.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The server's data folder.
    pub data: PathBuf,
    /// Where nodes will come, UDP.
    pub listen: SocketAddr,
    /// Where operators will come, TCP.
    pub api: SocketAddr,
    /// Names and addresses of the server; the first one is what `operator.toml` says.
    pub names: Vec<String>,
    /// The operator's folder.
    pub operator_dir: PathBuf,
    /// The operator's name in the audit log.
    pub operator_name: String,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct InitReport {
    /// The server's data folder, absolute.
    pub data: PathBuf,
    /// The operator's folder, absolute.
    pub operator_dir: PathBuf,
    /// The operator's name.
    pub operator_name: String,
    /// `https://HOST:PORT`
    pub api: String,
    /// `HOST:PORT` for nodes.
    pub server: String,
    /// BLAKE3 of the CA's certificate.
    pub authority: Digest,
    /// BLAKE3 of `1.root.json`.
    pub root: Digest,
    /// The channels.
    pub channels: Vec<Word>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// Something is there.
    #[error("{} is there already: {what}; choose another folder, or remove it if nothing of it is needed", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The operator's name is empty or too long.
    #[error("{name:?} is not an operator's name: 1 to 64 printable characters are needed")]
    Name {
        /// As given.
        name: String,
    },
    /// A file or folder.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file or folder.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A value that the configuration does not take.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration could not be written as text.
    #[error("server.toml: {0}")]
    Toml(#[from] toml::ser::Error),
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The keys or the metadata.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// `operator.toml`, as the operator's tool reads it.
#[derive(Serialize)]
struct OperatorFile<'a> {
    api: &'a str,
    token: &'a str,
    authority: &'a str,
    name: &'a str,
    server: &'a str,
}

/// Makes a server's data folder and its first operator's folder.
pub async fn create(options: InitOptions) -> Result<InitReport, InitError> {
    let name = &options.operator_name;
    if name.trim().is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(InitError::Name { name: name.clone() });
    }
    let data = prepare(&options.data)?;
    let operator_dir = prepare(&options.operator_dir)?;
    refuse_what_is_there(&data, &operator_dir)?;
    let config = Config {
        data: data.clone(),
        listen: options.listen,
        api: options.api,
        names: options.names.clone(),
        ..Config::default()
    };
    config.check()?;
    let made = fill(&config, &operator_dir, name).await;
    if made.is_err() {
        clear(&data, &["authority", "trust", "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"]);
        clear(&operator_dir, &OPERATOR_FILES);
    }
    made
}

const OPERATOR_FILES: [&str; 4] = ["operator.toml", "keys", "trust", "ca.pem"];

/// Makes a folder that only its owner may look into, and its absolute path.
fn prepare(folder: &Path) -> Result<PathBuf, InitError> {
    let io = |error| InitError::Io { path: folder.to_owned(), error };
    if !folder.exists() {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    }
    fs::canonicalize(folder).map_err(io)
}

fn refuse_what_is_there(data: &Path, operator_dir: &Path) -> Result<(), InitError> {
    let io = |error| InitError::Io { path: data.to_owned(), error };
    for entry in fs::read_dir(data).map_err(io)? {
        let path = entry.map_err(io)?.path();
        // A volume of its own may be freshly made; an operator's folder may lie inside in a trial.
        if path.file_name().is_some_and(|name| name == "lost+found") || operator_dir.starts_with(&path) {
            continue;
        }
        return Err(InitError::Exists { path, what: "the data folder must be empty" });
    }
    for name in OPERATOR_FILES {
        let path = operator_dir.join(name);
        if path.exists() {
            return Err(InitError::Exists { path, what: "the folder belongs to an operator" });
        }
    }
    Ok(())
}

async fn fill(config: &Config, operator_dir: &Path, name: &str) -> Result<InitReport, InitError> {
    let now = Utc::now();
    let data = &config.data;
    let channels: Vec<Word> = CHANNELS.iter().filter_map(|channel| channel.parse().ok()).collect();

    let authority = Authority::create(&data.join(place::AUTHORITY), now)?;
    authority.server(&certificate_names(config), now)?;

    let trust_dir = data.join(place::TRUST);
    let online = Online::create(&trust_dir)?;
    let signer = Signer::create(operator_dir, &channels)?;
    let files = signer.found(&online.public(), &channels, now)?;
    Trust::create(&trust_dir, &files).await?;

    let token = random_hex::<TOKEN_BYTES>();
    let catalog = Catalog::open(data).await?;
    let operator = Operator { name: name.to_owned(), token_hash: blake3::hash(token.as_bytes()) };
    catalog.add_operator(&operator, Act::new("init", "operator.add", name, "this machine")).await?;
    catalog.close().await;

    let host = reached_as(config);
    let (api, server) = (format!("https://{host}:{}", config.api.port()), format!("{host}:{}", config.listen.port()));
    let file = OperatorFile { api: &api, token: &token, authority: "ca.pem", name, server: &server };
    disk::write(operator_dir, "ca.pem", authority.pem().as_bytes(), disk::PUBLIC)?;
    disk::write(operator_dir, "operator.toml", toml::to_string(&file)?.as_bytes(), disk::SECRET)?;
    // Last: its presence says that the rest is whole.
    disk::write(data, CONFIG_FILE, config.to_toml()?.as_bytes(), disk::PUBLIC)?;
    Ok(InitReport {
        data: data.clone(),
        operator_dir: operator_dir.to_owned(),
        operator_name: name.to_owned(),
        api,
        server,
        authority: authority.hash(),
        root: signer.root_hash()?,
        channels,
    })
}

/// Removes what a failed try made; nothing of it was there before.
fn clear(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "left behind");
        }
    }
}

/// What the server's certificate says: the configured names, the addresses listened on, and the loopback.
pub(crate) fn certificate_names(config: &Config) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.extend(config.names.iter().cloned());
    names.extend(
        [config.listen, config.api]
            .iter()
            .map(SocketAddr::ip)
            .filter(|ip| !ip.is_unspecified())
            .map(|ip| ip.to_string()),
    );
    names.sort();
    names.dedup();
    names
}

/// How others reach this server: the first name, else the address listened on, else this machine's name.
fn reached_as(config: &Config) -> String {
    let bracket = |host: &str| match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => host.to_owned(),
    };
    match config.names.first() {
        Some(name) => bracket(name),
        None if !config.api.ip().is_unspecified() => bracket(&config.api.ip().to_string()),
        None => "localhost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    pub fn options(folder: &Path) -> InitOptions {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        InitOptions {
            data: folder.join("data"),
            listen: any,
            api: any,
            names: vec![],
            operator_dir: folder.join("operator"),
            operator_name: "alice".into(),
        }
    }

    #[tokio::test]
    async fn a_fleet_begins_whole_and_its_secrets_are_secret() {
        let dir = tempfile::tempdir().unwrap();
        let report = create(options(dir.path())).await.unwrap();
        assert_eq!(report.channels.len(), CHANNELS.len());
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(report.operator_dir.join("operator.toml")), 0o600);
        assert_eq!(mode(report.data.join("authority/ca.key")), 0o600);
        assert_eq!(mode(report.data.clone()), 0o700);
        let config = Config::load(&report.data.join(CONFIG_FILE)).unwrap();
        assert_eq!(config.data, report.data);
        let text = fs::read_to_string(report.operator_dir.join("operator.toml")).unwrap();
        let operator: toml::Table = toml::from_str(&text).unwrap();
        let catalog = Catalog::open(&report.data).await.unwrap();
        let known = catalog.operator_by_token(operator["token"].as_str().unwrap()).await.unwrap();
        assert_eq!(known.as_deref(), Some("alice"));
        assert!(!format!("{report:?}").contains(operator["token"].as_str().unwrap()));
        let all = fs::read(report.data.join("catalog.sqlite")).unwrap();
        let token = operator["token"].as_str().unwrap().as_bytes();
        assert!(!all.windows(token.len()).any(|window| window == token), "the token is stored hashed only");
    }

    #[tokio::test]
    async fn nothing_that_exists_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let report = create(options(dir.path())).await.unwrap();
        let before = fs::read(report.data.join("authority/ca.pem")).unwrap();
        let error = create(options(dir.path())).await.unwrap_err().to_string();
        assert!(error.contains("there already"), "{error}");
        let elsewhere = InitOptions { data: dir.path().join("other"), ..options(dir.path()) };
        let error = create(elsewhere).await.unwrap_err().to_string();
        assert!(error.contains("belongs to an operator"), "{error}");
        assert_eq!(fs::read(report.data.join("authority/ca.pem")).unwrap(), before);
    }

    #[tokio::test]
    async fn a_try_that_fails_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let bad = InitOptions { names: vec!["x".repeat(64)], ..options(dir.path()) };
        create(bad).await.unwrap_err();
        let bad = InitOptions { operator_name: "\n".into(), ..options(dir.path()) };
        assert!(create(bad).await.unwrap_err().to_string().contains("operator's name"));
        create(options(dir.path())).await.unwrap();
    }

    #[test]
    fn the_first_name_is_how_others_reach_the_server() {
        let config = |names: &[&str], api: &str| Config {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            api: api.parse().unwrap(),
            ..Config::default()
        };
        for (config, host) in [
            (config(&["gold.example", "10.0.0.1"], "[::]:7401"), "gold.example"),
            (config(&["fd00::1"], "[::]:7401"), "[fd00::1]"),
            (config(&[], "127.0.0.1:7401"), "127.0.0.1"),
            (config(&[], "[::]:7401"), "localhost"),
        ] {
            assert_eq!(reached_as(&config), host);
        }
    }
}
