//! Prefixes: which texts are one, which addresses are in it, and what the longest one decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
};

use egress_userspace::{
    diagnostic::Source,
    explain::{Outcome, explain},
    model::ObjectName,
    resolve,
    resources::{Object, parse},
};
use ipnet::IpNet;

use super::steered;

/// Prefixes of one policy.
const MOST: usize = 12;

/// A steered pod, and a gateway for it.
const CAST: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  annotations: {egress.projectcalico.org/egressGatewayPolicy: it}
spec: {nodeName: here}
status: {podIPs: [{ip: 10.1.0.5}, {ip: "fd00::5"}]}
---
apiVersion: egress.fastpath/v1alpha1
kind: EgressGateway
metadata: {name: red, labels: {code: red}}
spec: {nextHops: [192.168.9.1, "fd09::1"]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
"#;

pub(super) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let mut nets = BTreeMap::new();
    for (number, line) in text.lines().take(MOST).enumerate() {
        // A rule for what is even, none for what is odd.
        if let Some(net) = check_text(line) {
            nets.entry(net).or_insert(number % 2 == 0);
        }
    }
    decide(&nets);
}

/// Whether a text is taken for a prefix, and for which, must be as another reader has it.
fn check_text(text: &str) -> Option<IpNet> {
    let wanted = naive(text);
    let found = rules(&policy(&[(text, false)]));
    match (&wanted, found.as_slice()) {
        (Some(wanted), [Some(found)]) if wanted == found => {}
        (None, []) => {}
        _ => panic!("{text:?} is read as {found:?}, and is {wanted:?}"),
    }
    if let Some(net) = wanted {
        let printed = net.to_string();
        assert_eq!(naive(&printed), Some(net), "{printed} is another prefix");
    }
    wanted
}

/// The destinations of the policy's rules, if it is valid.
fn rules(manifest: &str) -> Vec<Option<IpNet>> {
    let parsed = parse(&Source::new("fuzz.yaml", manifest.to_owned()));
    let valid = parsed.entries.into_iter().filter(|entry| entry.valid);
    valid
        .filter_map(|entry| match entry.object {
            Some(Object::Policy(policy)) => Some(policy),
            _ => None,
        })
        .flat_map(|policy| policy.rules.to_vec())
        .map(|rule| rule.destination)
        .collect()
}

/// A policy with these destinations, through the gateway or not.
fn policy(destinations: &[(&str, bool)]) -> String {
    let mut text = String::from(
        "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {name: it}\nspec:\n  rules:\n",
    );
    for (destination, steered) in destinations {
        let quoted = serde_json::to_string(destination).unwrap_or_default();
        let gateway = if *steered {
            ", gateway: {selector: \"code == 'red'\"}"
        } else {
            ""
        };
        // Writing into a string cannot fail.
        let _cannot_fail = writeln!(text, "  - {{destination: {{cidr: {quoted}}}{gateway}}}");
    }
    text
}

/// An address, a slash, and a length in digits without zeros in front; bits behind the prefix are masked.
fn naive(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let digits = !length.is_empty() && length.chars().all(|c| c.is_ascii_digit());
    if !digits || (length.len() > 1 && length.starts_with('0')) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    if length > width {
        return None;
    }
    let masked = match address {
        IpAddr::V4(address) => {
            let bits = u32::from(address);
            let kept = (0..32).filter(|bit| *bit >= 32 - u32::from(length));
            IpAddr::V4(kept.map(|bit| bits & (1 << bit)).sum::<u32>().into())
        }
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            if bits >> 32 == 0xffff && length >= 96 {
                return None;
            }
            let kept = (0..128).filter(|bit| *bit >= 128 - u32::from(length));
            IpAddr::V6(kept.map(|bit| bits & (1 << bit)).sum::<u128>().into())
        }
    };
    IpNet::new(masked, length).ok()
}

/// Of all these rules the longest that has the address decides.
fn decide(nets: &BTreeMap<IpNet, bool>) {
    let texts: Vec<(String, bool)> = nets
        .iter()
        .map(|(net, steered)| (net.to_string(), *steered))
        .collect();
    let rules: Vec<(&str, bool)> = texts
        .iter()
        .map(|(text, to)| (text.as_str(), *to))
        .collect();
    if rules.is_empty() {
        return;
    }
    let manifest = format!("{CAST}{}", policy(&rules));
    let loaded = steered::load(manifest.as_bytes());
    let settings = resolve::Settings {
        node_name: "here".to_owned(),
        ..resolve::Settings::default()
    };
    let Some((resolved, _)) = steered::check_on(&loaded.model, &settings) else {
        panic!("a few prefixes do not fit: {rules:?}");
    };
    let pod = ObjectName::new("default", "web");
    assert!(
        resolved.pods.contains_key(&pod),
        "the pod is not steered: {:?}, {:?}",
        loaded.diagnostics,
        resolved.warnings
    );
    let mut asked = BTreeSet::new();
    for net in nets.keys() {
        asked.extend(steered::edges(*net));
    }
    for address in asked {
        let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
        if mapped {
            continue;
        }
        let longest = nets.iter().filter(|(net, _)| within(**net, address));
        let longest = longest.max_by_key(|(net, _)| net.prefix_len());
        let cluster = resolved.cluster_prefixes.iter();
        let cluster = cluster.filter(|net| within(**net, address));
        let cluster = cluster.map(IpNet::prefix_len).max();
        let wanted = match (longest, cluster) {
            (None, None) => Outcome::Unmatched,
            (None, Some(_)) => Outcome::Local,
            (Some((net, _)), Some(longer)) if longer > net.prefix_len() => Outcome::Local,
            (Some((_, true)), _) => Outcome::Gateway,
            (Some((_, false)), _) => Outcome::Local,
        };
        let found = explain(&resolved, &pod, address);
        assert_eq!(found.verdict, wanted, "{address} among {nets:?}: {found:?}");
    }
}

/// Bit by bit.
fn within(net: IpNet, address: IpAddr) -> bool {
    let (width, one, other) = match (net.addr(), address) {
        (IpAddr::V4(one), IpAddr::V4(other)) => {
            (32, u128::from(u32::from(one)), u128::from(u32::from(other)))
        }
        (IpAddr::V6(one), IpAddr::V6(other)) => (128, u128::from(one), u128::from(other)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    (0..u32::from(net.prefix_len())).all(|bit| {
        let shift = width - 1 - bit;
        (one >> shift) & 1 == (other >> shift) & 1
    })
}
