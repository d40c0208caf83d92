//! The operator: every verb is a process of its own that runs the real command line, as people and scripts do.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::tools::{self, GOLDSYNC, Ran};

/// An operator's folder.
#[derive(Clone, Debug)]
pub struct Operator {
    /// With `operator.toml`, keys and the fleet's CA.
    pub folder: PathBuf,
}

impl Operator {
    /// `goldsync --operator FOLDER ARGS…`
    pub async fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        let mut line = vec!["--operator".into(), self.folder.clone().into_os_string()];
        line.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        tools::run(GOLDSYNC, line).await
    }

    /// The same, which must succeed and answer JSON.
    pub async fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).chain(["--json".into()]);
        self.run(args.collect::<Vec<_>>()).await.ok().json()
    }

    /// Publishes a file as `NAME:VERSION`, whatever comes of it.
    pub async fn try_publish(&self, image: &Path, release: &str) -> Ran {
        let (name, version) = release.split_once(':').expect("NAME:VERSION");
        let image = image.to_str().expect("path as text");
        self.run(["publish", image, "--name", name, "--version", version, "--json"]).await
    }

    /// Publishes a file as `NAME:VERSION`.
    pub async fn publish(&self, image: &Path, release: &str) -> Value {
        self.try_publish(image, release).await.ok().json()
    }

    /// Points a channel at a release.
    pub async fn promote(&self, release: &str, channel: &str) -> Value {
        self.json(["promote", release, channel]).await
    }

    /// A token for one node.
    pub async fn token(&self) -> String {
        let made = self.json(["token", "create"]).await;
        made["token"].as_str().expect("a token").to_owned()
    }

    /// What the audit log says, newest first: `(who, what, subject)`.
    pub async fn audit(&self) -> Vec<Value> {
        let entries = self.json(["audit"]).await;
        entries.as_array().expect("entries").clone()
    }

    /// One node as `fleet status` shows it.
    pub async fn node(&self, name: &str) -> Option<Value> {
        let nodes = self.json(["fleet", "status"]).await;
        nodes.as_array().expect("nodes").iter().find(|node| node["node"] == name).cloned()
    }

    /// Replaces a value in `operator.toml`.
    pub fn set(&self, key: &str, value: &str) {
        let path = self.folder.join("operator.toml");
        let text = std::fs::read_to_string(&path).expect("operator.toml");
        let mut table: toml::Table = text.parse().expect("operator.toml");
        table.insert(key.to_owned(), value.to_owned().into());
        std::fs::write(&path, table.to_string()).expect("operator.toml");
    }

    /// A value of `operator.toml`.
    pub fn get(&self, key: &str) -> String {
        let text = std::fs::read_to_string(self.folder.join("operator.toml")).expect("operator.toml");
        let table: toml::Table = text.parse().expect("operator.toml");
        table[key].as_str().expect("a text").to_owned()
    }
}
