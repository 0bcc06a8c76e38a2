//! What `egress explain` says is what packets do, asked of the kernel's maps and of the files.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use egress_tests::{
    Stage,
    topology::{ELSEWHERE, INTERNAL, RED_NETWORK},
};

#[test]
fn the_kernel_and_the_files_give_the_gateway_that_packets_take() -> Result<()> {
    let stage = Stage::of_examples()?;
    let path = stage.resources.directory().display().to_string();
    for (pod, destination, word) in [
        ("shop/web", INTERNAL, "local"),
        ("shop/web", RED_NETWORK, "default/red"),
        ("shop/web", ELSEWHERE, "default/blue"),
        ("lab/batch", ELSEWHERE, "default/red"),
        ("lab/batch", INTERNAL, "local"),
    ] {
        for address in destination.addresses() {
            let live = explain(&stage, pod, address, &[])?;
            let offline = explain(
                &stage,
                pod,
                address,
                &["--resources", &path, "--node", "worker-1"],
            )?;
            for answer in [&live, &offline] {
                ensure!(
                    answer.to_lowercase().contains(word),
                    "{pod} to {address} is said to go another way than {word}:\n{answer}"
                );
            }
        }
    }
    let plain = explain(&stage, "lab/plain", ELSEWHERE.v4.into(), &[])?;
    ensure!(!plain.contains("default/"), "{plain}");
    Ok(())
}

fn explain(stage: &Stage, pod: &str, address: IpAddr, more: &[&str]) -> Result<String> {
    let address = address.to_string();
    let mut words = vec!["explain", "--pod", pod, "--dst", &address];
    words.extend(more);
    if !more.is_empty() {
        for cidr in &stage.setup.local_cidrs {
            words.extend(["--local-cidr", cidr]);
        }
    }
    stage
        .setup
        .command(&words)
        .with_context(|| format!("egress {words:?}"))
}

#[test]
fn status_and_dump_speak_of_what_is_there() -> Result<()> {
    let stage = Stage::of_examples()?;
    let status = stage.setup.command(&["status"])?;
    for name in ["web", "red", "blue"] {
        ensure!(
            status.contains(name),
            "the status does not speak of {name}:\n{status}"
        );
    }
    let pins = stage.setup.pin_dir().display().to_string();
    for table in ["pods", "prefixes", "policies", "gateways", "counters"] {
        let json = stage
            .setup
            .command(&["dump", table, "--output", "json", "--pin-dir", &pins])?;
        let value: serde_json::Value = serde_json::from_str(&json)?;
        ensure!(
            value.as_array().is_some_and(|rows| !rows.is_empty())
                || value.as_object().is_some_and(|fields| !fields.is_empty()),
            "the dump of {table} is empty: {json}"
        );
    }
    Ok(())
}
