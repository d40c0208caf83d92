//! daemon
mod backoff;
mod queue;
mod systemd;
