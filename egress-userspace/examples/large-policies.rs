//! How long it takes to compile and plan large policies, at first and after a change of one, in a release build:
//! `cargo run --release -p egress-userspace --example large-policies`.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU32, sync::Arc, time::Instant};

use anyhow::ensure;
use egress_common::{gateway::GatewayId, verdict::Replies};
use egress_userspace::{
    compile::{self, compile_again},
    diff,
    model::ObjectName,
    resolve::{Action, EffectiveRule, Fate, Resolved, SourcePod, Standing, UsableGateway, Way},
    state::{KernelState, Limits, Names},
};
use ipnet::IpNet;

fn main() -> anyhow::Result<()> {
    let limits = Limits::default();
    let (local, out) = (Action::Local, Action::Gateways(Arc::new([gateway()])));
    for (policies, prefixes, action) in [
        (1, 16_384, &local),
        (100, 1000, &local),
        (100, 1000, &out),
        (1000, 100, &local),
        (1000, 100, &out),
        (10, 100_000, &local),
    ] {
        let mut resolved = node(policies, prefixes, action);
        let mut compilations = compile::Memo::default();
        let start = Instant::now();
        let state = compile_again(&resolved, &limits, &mut compilations)?;
        let compiled = start.elapsed();
        let (kernel, names) = (KernelState::default(), Names::default());
        let start = Instant::now();
        let nothing = diff::Memo::default();
        let (mut plan, mut memo) = diff::plan_again(&kernel, &names, &state, &limits, &nothing)?;
        let planned = start.elapsed();
        let (mut compile_times, mut plan_times) = (Vec::new(), Vec::new());
        for round in 0..20 {
            let other = if round % 2 == 0 { &out } else { &local };
            change(&mut resolved, other);
            let start = Instant::now();
            let state = compile_again(&resolved, &limits, &mut compilations)?;
            compile_times.push(start.elapsed());
            let start = Instant::now();
            let next = diff::plan_again(&plan.after, &plan.names, &state, &limits, &memo)?;
            plan_times.push(start.elapsed());
            ensure!(!next.0.changes.is_empty(), "nothing has changed");
            (plan, memo) = next;
            let (again, _) = diff::plan_again(&plan.after, &plan.names, &state, &limits, &memo)?;
            ensure!(again.changes.is_empty(), "a plan does not end");
        }
        println!(
            "{policies} policies of {prefixes} prefixes, {}: compile {compiled:?}, plan {planned:?}; after a change of one: \
             compile {:?}, plan {:?}",
            if matches!(action, Action::Local) {
                "local"
            } else {
                "to a gateway"
            },
            compile_times.iter().min().unwrap_or(&compiled),
            plan_times.iter().min().unwrap_or(&planned),
        );
    }
    Ok(())
}

fn gateway() -> UsableGateway {
    UsableGateway {
        name: ObjectName::new("gateways", "red"),
        id: GatewayId(7),
        weight: NonZeroU32::MIN,
        standing: Standing::Serving,
        ways: vec![Way::NextHop {
            next_hop: IpAddr::from([192, 0, 2, 1]),
            ifindex: 2,
            mtu: 1500,
            replies: Replies::Recorded,
        }],
    }
}

/// Has the first pod's last rule lead elsewhere.
fn change(resolved: &mut Resolved, action: &Action) {
    for pod in resolved.pods.values_mut().take(1) {
        if let Fate::Rules(rules) = &mut pod.fate {
            let mut changed = rules.to_vec();
            if let Some(rule) = changed.last_mut() {
                rule.action = action.clone();
            }
            *rules = changed.into();
        }
    }
}

/// A node with a pod for each of so many policies, each of so many hosts.
fn node(policies: u32, prefixes: u32, action: &Action) -> Resolved {
    let pods = (0..policies).map(|number| {
        let first = 0x0b00_0000 + number * prefixes;
        (
            ObjectName::new("pods", format!("pod{number}")),
            pod(number, first..first + prefixes, action),
        )
    });
    Resolved {
        pods: BTreeMap::from_iter(pods),
        ..Resolved::default()
    }
}

fn pod(number: u32, hosts: std::ops::Range<u32>, action: &Action) -> SourcePod {
    let rules = hosts.map(|host| {
        let destination = IpNet::from(IpAddr::from(host.to_be_bytes()));
        EffectiveRule {
            label: destination.to_string(),
            destination: Some(destination),
            action: action.clone(),
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
