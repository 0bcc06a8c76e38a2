//! From a file of resources to the content of the maps, and the promises on that way.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use egress_common::keys::PodKey;
use egress_userspace::{
    compile::compile,
    diff::{self, Plan},
    explain::{disagreements, explain, kernel_verdict},
    model::{Model, ObjectName},
    node::NodeView,
    overlay_keys::OverlayKeys,
    resolve::{self, Fate, PodGateways, Resolved, resolve},
    sources::files::{Loaded, Loader},
    state::{KernelState, Limits, Names},
};
use ipnet::IpNet;
use tempfile::NamedTempFile;

/// Nodes of each kind that are looked at from, pods of each, and destinations of each pod.
const NODES: usize = 1;
const PODS: usize = 6;
const DESTINATIONS: usize = 24;
/// What small maps hold: the way to say so is a way, too.
const LIMITS: Limits = Limits {
    matrix_memory: 4 << 20,
    sparse_from: 0,
    pods: 256,
    prefixes: 1024,
    verdicts: 1024,
    members: 256,
    policies: 64,
};

thread_local! {
    static FILE: RefCell<Option<NamedTempFile>> = const { RefCell::new(None) };
}

/// What a file with this content is to a process that reads files.
pub(super) fn in_file<T>(content: &[u8], read: impl FnOnce(&std::path::Path) -> T) -> T {
    FILE.with_borrow_mut(|slot| {
        let file = slot.get_or_insert_with(|| {
            let folder = ["/dev/shm", "/tmp"]
                .into_iter()
                .find(|at| fs::metadata(at).is_ok_and(|metadata| metadata.is_dir()));
            tempfile::Builder::new()
                .suffix(".yaml")
                .tempfile_in(folder.unwrap_or("."))
                .unwrap_or_else(|error| panic!("cannot make a temporary file: {error}"))
        });
        let written = file
            .as_file()
            .set_len(0)
            .and_then(|()| std::io::Seek::rewind(file.as_file_mut()))
            .and_then(|()| file.as_file_mut().write_all(content));
        written.unwrap_or_else(|error| panic!("cannot write a temporary file: {error}"));
        read(file.path())
    })
}

/// Reads a file of resources as the agent does.
pub(super) fn load(content: &[u8]) -> Loaded {
    in_file(content, |path| Loader::new(vec![path.to_owned()]).load())
}

/// Takes a model as far as the maps, on every kind of node.
pub(super) fn check(model: &Model) {
    let mut nodes: BTreeSet<&str> = model
        .pods
        .values()
        .filter_map(|pod| pod.node.as_deref())
        .take(NODES)
        .collect();
    nodes.extend(model.nodes.keys().map(String::as_str).take(NODES));
    nodes.insert("");
    for (number, node) in nodes.into_iter().enumerate() {
        for pod_gateways in [PodGateways::Translate, PodGateways::Forward] {
            let settings = resolve::Settings {
                node_name: node.to_owned(),
                pod_gateways,
                overlay: (number % 2 == 0).then(|| resolve::Overlay {
                    device: "egress.vxlan".to_owned(),
                    port: 4790,
                    vni: 4097,
                    keys: OverlayKeys::assumed(),
                }),
                ..resolve::Settings::default()
            };
            drop(check_on(model, &settings));
        }
    }
}

/// Takes a model as far as the maps of one node; gives them unless they are too small.
pub(super) fn check_on(model: &Model, settings: &resolve::Settings) -> Option<(Resolved, Plan)> {
    let view = NodeView::assumed(model, "egress.vxlan");
    let to_node = || {
        let (held, assigned) = (resolve::Held::new(), resolve::Assigned::new());
        resolve(model, &view, settings, &held, &assigned, &BTreeMap::new())
    };
    let resolved = to_node();
    assert!(resolved == to_node(), "resolving is not deterministic");
    let desired = match compile(&resolved, &LIMITS) {
        Ok(desired) => desired,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "an error says nothing");
            return None;
        }
    };
    assert!(
        compile(&resolved, &LIMITS).as_ref() == Ok(&desired),
        "compiling is not deterministic"
    );
    let empty = (KernelState::default(), Names::default());
    let plan = match diff::plan(&empty.0, &empty.1, &desired, &LIMITS) {
        Ok(plan) => plan,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "an error says nothing");
            return None;
        }
    };
    let again = diff::plan(&plan.after, &plan.names, &desired, &LIMITS);
    match again {
        Ok(again) => assert!(
            again.changes.is_empty(),
            "what was applied is to be changed again: {:?}",
            again.changes
        ),
        Err(error) => panic!("what was applied does not fit: {error}"),
    }
    for pod in resolved.pods.keys().take(PODS) {
        for destination in destinations(&resolved, pod) {
            check_verdict(&resolved, &plan, pod, destination);
        }
    }
    Some((resolved, plan))
}

/// What the maps say about a destination is what the resources say.
fn check_verdict(resolved: &Resolved, plan: &Plan, pod: &ObjectName, destination: IpAddr) {
    let explanation = explain(resolved, pod, destination);
    let Some(source) = explanation.source else {
        return;
    };
    let key = PodKey {
        ifindex: resolved.pods[pod].ifindex,
        addr: source.into(),
    };
    // A pod that shares its address with another one is what that one is.
    if resolved
        .pods
        .values()
        .filter(|other| other.ifindex == key.ifindex && other.addresses.contains(&source))
        .count()
        > 1
    {
        return;
    }
    let kernel = kernel_verdict(&plan.after, key, destination);
    let differences = disagreements(&explanation, &kernel, &plan.names);
    assert!(
        differences.is_empty(),
        "{pod} → {destination}: {differences:?}"
    );
}

/// Addresses at the edges of the prefixes that matter to a pod, and right beside them.
pub(super) fn destinations(resolved: &Resolved, pod: &ObjectName) -> Vec<IpAddr> {
    let mut all = vec![
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ];
    let rules = match &resolved.pods[pod].fate {
        Fate::Rules(rules) => rules.iter().filter_map(|rule| rule.destination).collect(),
        Fate::Drop(_) => Vec::new(),
    };
    let nets = rules.iter().chain(&resolved.cluster_prefixes);
    for net in nets.take(DESTINATIONS / 2) {
        all.extend(edges(*net));
    }
    // What pretends to be IPv4 is no destination.
    all.retain(|address| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
    });
    all
}

/// The first and the last address of a prefix, the one before and the one behind.
pub(super) fn edges(net: IpNet) -> [IpAddr; 4] {
    let beside = |address: IpAddr, up: bool| match address {
        IpAddr::V4(address) => {
            let number = u32::from(address);
            let other = if up {
                number.wrapping_add(1)
            } else {
                number.wrapping_sub(1)
            };
            IpAddr::V4(other.into())
        }
        IpAddr::V6(address) => {
            let number = u128::from(address);
            let other = if up {
                number.wrapping_add(1)
            } else {
                number.wrapping_sub(1)
            };
            IpAddr::V6(other.into())
        }
    };
    let (first, last) = (net.network(), net.broadcast());
    [first, last, beside(first, false), beside(last, true)]
}
