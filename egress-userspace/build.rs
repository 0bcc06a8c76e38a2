//! Builds the eBPF object, which the library embeds.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    let features: &[&str] = if env::var_os("CARGO_FEATURE_OTHER_LAYOUT").is_some() {
        &["other-layout"]
    } else {
        &[]
    };
    ebpf_build::build(&ebpf_build::Programs {
        package: "egress-ebpf",
        binary: "egress",
        sources: &["egress-ebpf", "egress-common"],
        features,
        object: "egress.bpf.o",
    })
}
