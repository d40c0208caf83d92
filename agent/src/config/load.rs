//! Finding the files, and merging them into one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::raw::Raw;
use super::{ConfigError, keys};

/// Where a configuration is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// In these folders, the last one winning.
    Folders(Vec<PathBuf>),
    /// In this file alone.
    File(PathBuf),
}

impl Default for Where {
    fn default() -> Self {
        Self::Folders(["/usr/lib/goldsync", "/run/goldsync", "/etc/goldsync"].map(PathBuf::from).to_vec())
    }
}

/// Reads and merges.
pub(super) fn read(place: &Where) -> Result<Raw, ConfigError> {
    let files = match place {
        Where::File(file) => vec![file.clone()],
        Where::Folders(folders) => found(folders)?,
    };
    let texts: Result<Vec<_>, _> = files
        .into_iter()
        .map(|file| match fs::read_to_string(&file) {
            Ok(text) => Ok((file, text)),
            Err(error) => Err(ConfigError::Read { file, error }),
        })
        .collect();
    merge(texts?)
}

/// The main files, then the drop-ins by name.
fn found(folders: &[PathBuf]) -> Result<Vec<PathBuf>, ConfigError> {
    let mains = folders.iter().map(|folder| folder.join("agent.toml")).filter(|file| file.exists());
    let mut drop_ins = BTreeMap::new();
    for folder in folders {
        for file in toml_files(&folder.join("agent.toml.d"))? {
            drop_ins.insert(file.file_name().map(ToOwned::to_owned), file);
        }
    }
    let files: Vec<_> = mains.chain(drop_ins.into_values()).collect();
    if files.is_empty() {
        let places: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        return Err(ConfigError::None { places: places.join(", ") });
    }
    Ok(files)
}

fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let fail = |error| ConfigError::Read { file: folder.to_owned(), error };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>().map_err(fail)?;
    let hidden = |path: &Path| path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "toml") && !hidden(path)).collect())
}

/// Merges texts, the last one winning key by key. Each must be right by itself, so that the error can name its file.
pub(super) fn merge(texts: impl IntoIterator<Item = (PathBuf, String)>) -> Result<Raw, ConfigError> {
    let mut whole = Table::new();
    for (file, text) in texts {
        let syntax = |error: toml::de::Error| ConfigError::Syntax { file: file.clone(), error: error.to_string() };
        let table: Table = toml::from_str(&text).map_err(syntax)?;
        if let Some((key, hint)) = keys::first_unknown(&table) {
            return Err(ConfigError::UnknownKey { file, key, hint });
        }
        toml::from_str::<Raw>(&text).map_err(syntax)?;
        lay_over(&mut whole, table);
    }
    Raw::deserialize(whole)
        .map_err(|error| ConfigError::Syntax { file: "(all files)".into(), error: error.to_string() })
}

fn lay_over(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
