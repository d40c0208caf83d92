//! The demo: a server and three nodes on this machine, through an update's whole life. It is also both of goldsync's
//! programs, which it starts as processes of their own.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    if let Some(code) = goldsync_tests::programs::be_one() {
        return code;
    }
    match goldsync_tests::demo::run(&goldsync_tests::demo::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
