//! `goldsync-agent`: what runs on a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    goldsync_agent::cli::main_with(std::env::args_os())
}
