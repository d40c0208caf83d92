//! goldsync
fn main() {}
