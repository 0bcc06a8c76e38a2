//! The `egress` binary: arguments, then one command.
fn main() {}
