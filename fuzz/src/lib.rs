//! What libFuzzer is told of what happens in the kernel, where it sees no branches.

use std::sync::atomic::{AtomicU8, Ordering};

use egress_tests::fuzz::{FEATURES, Target, listen};

/// Counters that libFuzzer looks at after each input, beside those that the compiler has put in.
// SAFETY: libFuzzer takes the section for bytes, reads them, and sets them to zero; it does so between two inputs, on
// the thread that runs them.
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static HAPPENED: [AtomicU8; FEATURES] = [const { AtomicU8::new(0) }; FEATURES];

/// Runs a target.
pub fn run(target: Target, data: &[u8]) {
    listen(|feature| HAPPENED[feature].store(1, Ordering::Relaxed));
    target.run(data);
}
