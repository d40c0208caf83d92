//! The demo: a server and three nodes on this machine, through an update's whole life. It is also both of goldsync's
//! programs, which it starts as processes of their own.

use std::process::ExitCode;

use clap::Parser;
use goldsync_tests::{demo, programs};

fn main() -> ExitCode {
    programs::be_one().unwrap_or_else(|| demo::main(&demo::Options::parse()))
}
