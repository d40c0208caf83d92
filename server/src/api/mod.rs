//! The HTTPS + JSON API: what operators, dashboards and the operator's tool use, and nothing else does.

pub mod types;
