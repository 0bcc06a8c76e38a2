//! How long it takes to compile and plan large policies, in a release build:
//! `cargo run --release -p egress-userspace --example large-policies`.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use anyhow::ensure;
use egress_userspace::{
    compile::compile,
    diff,
    model::ObjectName,
    resolve::{Action, EffectiveRule, Fate, Resolved, SourcePod},
    state::{KernelState, Limits, Names},
};
use ipnet::IpNet;

fn main() -> anyhow::Result<()> {
    for (policies, prefixes) in [(1000, 100), (1, 1_000_000)] {
        let resolved = node(policies, prefixes);
        let limits = Limits::default();
        let start = Instant::now();
        let state = compile(&resolved, &limits)?;
        let compiled = start.elapsed();
        let start = Instant::now();
        let plan = diff::plan(&KernelState::default(), &Names::default(), &state, &limits)?;
        let first = start.elapsed();
        let start = Instant::now();
        let again = diff::plan(&plan.after, &plan.names, &state, &limits)?;
        ensure!(again.changes.is_empty(), "a plan does not end");
        println!(
            "{policies} policies of {prefixes} prefixes: compile {compiled:?}, first plan {first:?}, \
             empty plan {:?}",
            start.elapsed()
        );
    }
    Ok(())
}

/// A node with a pod for each of so many policies, each of so many hosts.
fn node(policies: u32, prefixes: u32) -> Resolved {
    let pods = (0..policies).map(|number| {
        let first = 0x0b00_0000 + number * prefixes;
        (
            ObjectName::new("pods", format!("pod{number}")),
            pod(number, first..first + prefixes),
        )
    });
    Resolved {
        pods: BTreeMap::from_iter(pods),
        ..Resolved::default()
    }
}

fn pod(number: u32, hosts: std::ops::Range<u32>) -> SourcePod {
    let rules = hosts.map(|host| {
        let destination = IpNet::from(IpAddr::from(host.to_be_bytes()));
        EffectiveRule {
            label: destination.to_string(),
            destination: Some(destination),
            action: Action::Local,
        }
    });
    SourcePod {
        ifindex: number,
        interface: format!("veth{number}"),
        addresses: vec![IpAddr::from([10, 0, 0, 1])],
        policy: format!("p{number}"),
        fate: Fate::Rules(rules.collect()),
        mtu: 1500,
        network_policies: Vec::new(),
        udp_ports: Vec::new(),
    }
}
