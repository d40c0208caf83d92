//! The configuration as it is written: every key optional, because any of them may be in another file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, value};
use goldsync_proto::units;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Raw {
    pub(super) server: Option<String>,
    pub(super) channel: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) state: Option<PathBuf>,
    pub(super) slots: Option<Slots>,
    pub(super) activation: Option<Activation>,
    pub(super) health: Option<Health>,
    pub(super) restart: Option<Restart>,
    pub(super) schedule: Option<Schedule>,
    pub(super) budget: Option<Budget>,
    pub(super) limits: Option<Limits>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Slots {
    pub(super) a: Option<PathBuf>,
    pub(super) b: Option<PathBuf>,
    pub(super) size: Option<Size>,
}

/// A number of bytes, or a text with a unit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

impl Size {
    /// In bytes; `key` is for the error.
    pub(super) fn bytes(&self, key: &'static str) -> Result<u64, ConfigError> {
        match self {
            Self::Bytes(bytes) => Ok(*bytes),
            Self::Text(text) => {
                let size = text.parse::<units::Size>();
                size.map(|size| size.0).map_err(|error| value(key, format!("cannot be used: {error}")))
            }
        }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Activation {
    pub(super) backend: Option<String>,
    pub(super) link: Option<PathBuf>,
    pub(super) tries: Option<u8>,
    pub(super) cmdline: Option<PathBuf>,
    pub(super) command: Option<Vec<String>>,
    pub(super) time_limit: Option<String>,
    pub(super) takes_effect: Option<String>,
    pub(super) grubenv: Option<PathBuf>,
    pub(super) esp: Option<PathBuf>,
    pub(super) efivars: Option<PathBuf>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) kernel_from: Option<String>,
    pub(super) uki: Option<PathBuf>,
    pub(super) options: Option<String>,
    pub(super) env_config: Option<PathBuf>,
    pub(super) single: Option<bool>,
    pub(super) entry_a: Option<String>,
    pub(super) entry_b: Option<String>,
    pub(super) target: Option<PathBuf>,
    pub(super) fstype: Option<String>,
    pub(super) verity: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Health {
    pub(super) commands: Option<Vec<Vec<String>>>,
    pub(super) time_limit: Option<String>,
    pub(super) units: Option<Vec<String>>,
    pub(super) boot_complete: Option<bool>,
    pub(super) server: Option<bool>,
    pub(super) deadline: Option<String>,
    pub(super) every: Option<String>,
    pub(super) steady: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Restart {
    pub(super) how: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) time_limit: Option<String>,
    pub(super) windows: Option<Vec<String>>,
    pub(super) time_zone: Option<String>,
    pub(super) inhibitors: Option<String>,
    pub(super) sessions: Option<String>,
    pub(super) keep: Option<Vec<PathBuf>>,
    pub(super) verity: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Budget {
    pub(super) update: Option<Size>,
    pub(super) link: Option<Vec<LinkBudget>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkBudget {
    pub(super) class: Option<String>,
    pub(super) interfaces: Option<Vec<String>>,
    pub(super) update: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Schedule {
    pub(super) cron: Option<String>,
    pub(super) splay: Option<String>,
    pub(super) time_zone: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Limits {
    pub(super) threads: Option<usize>,
    pub(super) scan_budget: Option<Size>,
    pub(super) prefer: Option<String>,
    pub(super) silence: Option<String>,
    pub(super) slowest: Option<String>,
}
