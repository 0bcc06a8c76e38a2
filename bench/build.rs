//! Builds the reference programs, which the binary embeds.

use std::process::ExitCode;

fn main() -> ExitCode {
    ebpf_build::build(&ebpf_build::Programs {
        package: "egress-bench-ebpf",
        binary: "references",
        sources: &["bench/ebpf"],
        features: &[],
        object: "bench.bpf.o",
    })
}
