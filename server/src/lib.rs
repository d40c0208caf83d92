//! goldsync's server and the operator's tool.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

pub mod api;
pub mod authority;
pub mod catalog;
pub mod channel;
pub mod cli;
pub mod collector;
pub mod config;
pub mod ctl;
pub mod daemon;
mod disk;
pub mod golden;
pub mod hub;
pub mod init;
pub mod likely;
mod memory;
pub mod near;
pub mod orders;
pub mod packs;
mod peer;
mod prune;
pub mod recover;
pub mod roster;
pub mod session;
pub mod store;
#[cfg(test)]
mod testing;
pub mod trust;

/// The binary `goldsync`, so that another program can be it: parses `args` (the first one is the program's name), runs
/// the verb, and answers its exit code.
pub fn main_with(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    memory::bound_heaps();
    match cli::Cli::try_parse_from(args) {
        Ok(cli) => ctl::run(cli),
        Err(error) => {
            // Help and version are errors to clap: they go to standard output and are no failure.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}
