//! The configuration as it is written: every key optional, because any of them may be in another file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::units::Size;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Raw {
    pub(super) server: Option<String>,
    pub(super) channel: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) state: Option<PathBuf>,
    pub(super) slots: Option<Slots>,
    pub(super) activation: Option<Activation>,
    pub(super) schedule: Option<Schedule>,
    pub(super) limits: Option<Limits>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Slots {
    pub(super) a: Option<PathBuf>,
    pub(super) b: Option<PathBuf>,
    pub(super) size: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Activation {
    pub(super) backend: Option<String>,
    pub(super) link: Option<PathBuf>,
    pub(super) command: Option<Vec<String>>,
    pub(super) time_limit: Option<String>,
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
}
