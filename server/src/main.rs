//! The binary `goldsync`: the server (`goldsync serve`) and the operator's tool (everything else).

use std::process::ExitCode;

fn main() -> ExitCode {
    // A library that asks for the process's default (none should) must find the one that all of goldsync uses.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    goldsync_server::main_with(std::env::args_os())
}
