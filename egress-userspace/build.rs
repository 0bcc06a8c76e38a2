//! Builds the eBPF object and leaves it in `OUT_DIR`, from where the library embeds it.
fn main() {}
