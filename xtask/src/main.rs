//! Set-up, build, run, demo, test and lint.
fn main() {}
