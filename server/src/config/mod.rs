//! The server's configuration: `server.toml`, then the drop-ins beside it.
//!
//! ```text
//! /var/lib/goldsync-server/server.toml       read first (`goldsync init` writes it)
//! /var/lib/goldsync-server/server.d/*.toml   then these, by name; a later file's key replaces an earlier one's
//! ```
//! Every file is read and checked on its own, so that an error names the file and the line. An unknown key is an error
//! that names the nearest known one: a misspelt limit that is silently ignored is worse than a server that does not
//! start. [`Config::check`] runs before anything is bound or opened.

mod keys;

pub use goldsync_proto::units;

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use units::Span;

/// Where a server keeps its data unless told otherwise.
pub const DATA_DEFAULT: &str = "/var/lib/goldsync-server";

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The data folder. Default [`DATA_DEFAULT`].
    pub data: PathBuf,
    /// Where nodes reach the server: UDP (QUIC). Default `[::]:7400`, which takes IPv4 too. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where operators reach the server: TCP (HTTPS). Default `[::]:7401`.
    pub api: SocketAddr,
    /// Names and addresses under which the server is reached; they go into its certificate. `localhost` and the
    /// loopback addresses are always in it.
    pub names: Vec<String>,
    /// How nodes are served.
    pub nodes: Nodes,
    /// How fleet orders are held.
    pub orders: Orders,
    /// How plans are made.
    pub plans: Plans,
    /// How images are kept.
    pub store: Store,
}

/// How nodes are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// Connections at once, all nodes together. Default 100,000; an idle one costs about 40 KiB.
    pub connections_max: u32,
    /// Connections of one node at once: a daemon, and a command or two beside it. Default 8.
    pub connections_per_node: u32,
    /// Requests of one connection at once; further ones wait in the node. Default 16, at least 2 because the control
    /// stream takes one for good. Memory for one node's answers is bounded by 1 MiB for each of them.
    pub streams_per_connection: u32,
    /// How long a peer may take to send a request, or to take a piece of an answer. Default 20 s.
    pub request_timeout: Span,
    /// The server's sign of life on a quiet connection; keeps NATs and firewalls open. Default 15 s.
    pub keep_alive: Span,
    /// A connection that is silent for so long is dead. Default 45 s; more than twice `keep_alive`.
    pub idle_timeout: Span,
    /// How long a stopping server waits for requests that are under way. Default 10 s.
    pub drain: Span,
}

/// How fleet orders are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orders {
    /// A node of an order that is away for so long counts as failed. Default 10 min: time for a reboot.
    pub away_max: Span,
    /// An order that is older is given up. Default 1 day.
    pub lifetime: Span,
}

/// How images are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// What nothing needs any more is removed when nobody wrote or read it for so long. Default 1 hour: more than a node
    /// rests in the middle of an update.
    pub grace: Span,
    /// Percent of a segment that may be dead, needed by no image, before the rest of it is written anew and it goes. Default
    /// 50; 100 leaves every segment as it is for as long as an image lies in any part of it.
    pub rewrite_above: u8,
}

/// How plans are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plans {
    /// Whether each plan is made again in the background, with more work: smaller for all who come later, and as small as can be
    /// for nodes that would rather spare bytes than time. Default true.
    pub thorough: bool,
}

impl Default for Plans {
    fn default() -> Self {
        Self { thorough: true }
    }
}

impl Default for Config {
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self {
            data: DATA_DEFAULT.into(),
            listen: any(7400),
            api: any(7401),
            names: Vec::new(),
            nodes: Nodes::default(),
            orders: Orders::default(),
            plans: Plans::default(),
            store: Store::default(),
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            connections_per_node: 8,
            streams_per_connection: 16,
            request_timeout: Span::seconds(20),
            keep_alive: Span::seconds(15),
            idle_timeout: Span::seconds(45),
            drain: Span::seconds(10),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { grace: Span::seconds(3600), rewrite_above: 50 }
    }
}

impl Default for Orders {
    fn default() -> Self {
        Self { away_max: Span::seconds(600), lifetime: Span::seconds(86_400) }
    }
}

/// Why a configuration cannot be used. The operator's to mend; nothing was bound or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{path}: {error}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is not TOML, or a value is not of its kind.
    #[error("{path}: {message}", path = path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A key that does not exist.
    #[error("{path}: unknown key `{key}`; did you mean `{nearest}`?", path = path.display())]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// The key, with the tables that it stands in.
        key: String,
        /// The known key that looks most like it.
        nearest: String,
    },
    /// A value outside its bounds.
    #[error("`{key} = {value}` {problem}")]
    Value {
        /// Which.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads `path` and the drop-ins in the folder of the same name ending in `.d`, and checks the result.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut whole = read_table(path)?;
        for drop_in in drop_ins(path)? {
            overlay(&mut whole, read_table(&drop_in)?);
        }
        let config = Self::from_table(path, whole)?;
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration from text; `path` is for messages only.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config = Self::from_table(path, parse_table(path, text)?)?;
        config.check()?;
        Ok(config)
    }

    fn from_table(path: &Path, table: toml::Table) -> Result<Self, ConfigError> {
        table.try_into().map_err(|error: toml::de::Error| parse_error(path, &error))
    }

    /// The configuration as a file's text.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    /// Holds every value against its bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let nodes = &self.nodes;
        let between = |key, got: u32, low: u32, high: u32| match (low..=high).contains(&got) {
            true => Ok(()),
            false => Err(value(key, got, format!("is outside {low} to {high}"))),
        };
        between("nodes.connections_max", nodes.connections_max, 1, 10_000_000)?;
        between("nodes.connections_per_node", nodes.connections_per_node, 1, 1000)?;
        between("nodes.streams_per_connection", nodes.streams_per_connection, 2, 1024)?;
        // Lower than that, more would be copied again and again than is ever given back.
        between("store.rewrite_above", self.store.rewrite_above.into(), 10, 100)?;
        for (key, span) in [
            ("nodes.request_timeout", nodes.request_timeout),
            ("nodes.keep_alive", nodes.keep_alive),
            ("nodes.idle_timeout", nodes.idle_timeout),
            ("orders.away_max", self.orders.away_max),
            ("orders.lifetime", self.orders.lifetime),
            ("store.grace", self.store.grace),
        ] {
            if !(Span::seconds(1)..=Span::seconds(10 * 365 * 86_400)).contains(&span) {
                return Err(value(key, span, "is outside \"1 s\" to \"3650 days\"".into()));
            }
        }
        if nodes.keep_alive.0 * 2 >= nodes.idle_timeout.0 {
            let needed = format!(
                "is not more than twice `nodes.keep_alive` ({}): one lost packet would end it",
                nodes.keep_alive
            );
            return Err(value("nodes.idle_timeout", nodes.idle_timeout, needed));
        }
        if self.data.as_os_str().is_empty() || !self.data.is_absolute() {
            return Err(value("data", self.data.display(), "is not an absolute path".into()));
        }
        self.names.iter().try_for_each(|name| check_name(name))
    }
}

/// A name for the certificate: an IP address or a DNS name, no port, no scheme.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let dns = |text: &str| {
        let label =
            |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        text.len() <= 253 && text.split('.').all(label)
    };
    if name.parse::<std::net::IpAddr>().is_ok() || dns(name) {
        return Ok(());
    }
    Err(value(
        "names",
        format!("{name:?}"),
        "is neither a host name nor an address; write it without scheme and port".into(),
    ))
}

fn value(key: &'static str, value: impl ToString, problem: String) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), problem }
}

fn read_table(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.into(), error })?;
    parse_table(path, &text)
}

/// Reads one file: its form, its keys, and each of its values.
fn parse_table(path: &Path, text: &str) -> Result<toml::Table, ConfigError> {
    let table: toml::Table = toml::from_str(text).map_err(|error| parse_error(path, &error))?;
    if let Some((key, nearest)) = keys::unknown(&table) {
        return Err(ConfigError::UnknownKey { path: path.into(), key, nearest });
    }
    toml::from_str::<Config>(text).map_err(|error| parse_error(path, &error))?;
    Ok(table)
}

fn parse_error(path: &Path, error: &toml::de::Error) -> ConfigError {
    ConfigError::Parse { path: path.into(), message: error.to_string().trim_end().to_owned() }
}

/// `server.toml` → the files `server.d/*.toml`, by name. No such folder: none.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = path.with_extension("d");
    let read = |error| ConfigError::Read { path: folder.clone(), error };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Lays `upper` over `lower`: tables are joined, everything else is replaced.
fn overlay(lower: &mut toml::Table, upper: toml::Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("server.toml"), text)
    }

    #[test]
    fn an_empty_file_gives_the_defaults_and_they_pass_their_own_check() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn the_shipped_example_is_read_and_states_the_defaults() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/server.toml");
        let config = Config::load(&example).unwrap();
        assert_eq!(config, Config { names: config.names.clone(), ..Config::default() });
        assert!(!config.names.is_empty());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_table_and_its_nearest_kin() {
        for (text, key, nearest) in [
            ("lisen = \"[::]:1\"", "`lisen`", "`listen`"),
            ("[nodes]\nkeepalive = \"15 s\"", "`nodes.keepalive`", "`nodes.keep_alive`"),
            ("[node]\nkeep_alive = \"15 s\"", "`node`", "`nodes`"),
            ("keep_alive = \"15 s\"", "`keep_alive`", "`nodes.keep_alive`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(nearest) && error.contains("server.toml"), "{error}");
        }
    }

    #[test]
    fn a_bad_value_is_named_with_its_limit() {
        for (text, parts) in [
            ("listen = \"7400\"", vec!["line 1", "socket address"]),
            ("[nodes]\nkeep_alive = 15", vec!["line 2", "7 days"]),
            ("[nodes]\nkeep_alive = \"30 s\"", vec!["nodes.idle_timeout", "45 s", "30 s"]),
            ("[nodes]\nstreams_per_connection = 1", vec!["= 1`", "2 to 1024"]),
            ("names = [\"https://gold:7400\"]", vec!["https://gold:7400", "without scheme"]),
            ("data = \"here\"", vec!["here", "absolute"]),
            ("data = ", vec!["line 1"]),
        ] {
            let error = parse(text).unwrap_err().to_string();
            parts.iter().for_each(|part| assert!(error.contains(part), "{part:?} not in {error}"));
        }
    }

    #[test]
    fn drop_ins_are_laid_over_by_name_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.toml");
        std::fs::create_dir(dir.path().join("server.d")).unwrap();
        std::fs::write(&path, "names = [\"a\"]\n[nodes]\nkeep_alive = \"5 s\"\nconnections_max = 7\n").unwrap();
        std::fs::write(dir.path().join("server.d/20-b.toml"), "names = [\"c\"]\n").unwrap();
        std::fs::write(dir.path().join("server.d/10-a.toml"), "names = [\"b\"]\n[nodes]\nkeep_alive = \"6 s\"\n")
            .unwrap();
        std::fs::write(dir.path().join("server.d/README"), "not read").unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!((config.names, config.nodes.connections_max), (vec!["c".to_owned()], 7));
        assert_eq!(config.nodes.keep_alive, Span::seconds(6));
        let error = Config::load(&dir.path().join("other.toml")).unwrap_err().to_string();
        assert!(error.contains("other.toml"), "{error}");
    }

    #[test]
    fn what_is_written_reads_back() {
        let config = Config { names: vec!["gold.example".into(), "10.0.0.1".into()], ..Config::default() };
        assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config);
    }
}
