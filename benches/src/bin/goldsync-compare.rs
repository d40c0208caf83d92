//! The comparison, and every program of it that is ours, in one executable that starts itself again.

use std::process::ExitCode;

use clap::Parser;
use goldsync_benches::compare::{self, Options};

fn main() -> ExitCode {
    if let Some(code) = goldsync_tests::programs::be_one().or_else(compare::be_one) {
        return code;
    }
    let options = Options::parse();
    compare::enter();
    match compare::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("goldsync-compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}
