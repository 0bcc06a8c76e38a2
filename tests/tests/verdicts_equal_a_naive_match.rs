//! Random policies: the kernel's verdict is that of a longest match written here, and `explain` agrees.
#![expect(
    clippy::panic,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_common::{
    Addr, DropReason, Family, WireU16, counter::PassKind, flow::Flow, keys::PodKey,
};
use egress_tests::packets::{
    Action, Counts, Input, Lab, Slot,
    build::{Frame, L3, forwarded, proto, udp},
    random::Random,
    seed::{POD, gateway, resolved, rule, via},
    with_lab,
};
use egress_userspace::{
    explain::{Outcome, choose, disagreements, explain, kernel_verdict},
    model::ObjectName,
    resolve::{self, EffectiveRule, Fate, Resolved, UsableGateway},
    state::Limits,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Rounds of new policies, pods in each, and destinations asked of each pod.
const ROUNDS: usize = 12;
const PODS: u8 = 20;
const DESTINATIONS: usize = 50;
/// The ports of every packet.
const SOURCE_PORT: u16 = 40_000;
const DESTINATION_PORT: u16 = 53;

#[test]
fn random_policies() {
    with_lab(|lab| {
        let mut random = Random::new();
        for _ in 0..ROUNDS {
            let world = random_world(&mut random, PODS);
            either_form(lab, &mut random);
            lab.bring_to(&world);
            for pod in world.pods.keys() {
                check_pod(lab, &mut random, &world, pod, DESTINATIONS);
            }
        }
    });
}

#[test]
fn random_changes_of_policy() {
    with_lab(|lab| {
        let mut random = Random::new();
        let mut world = random_world(&mut random, 6);
        for _ in 0..40 {
            either_form(lab, &mut random);
            lab.bring_to(&world);
            for pod in world.pods.keys() {
                check_pod(lab, &mut random, &world, pod, 10);
            }
            let other = random_world(&mut random, 6);
            if random.once_in(3) {
                world.cluster_prefixes = other.cluster_prefixes;
            }
            for (name, pod) in other.pods {
                match random.below(4) {
                    0 => drop(world.pods.remove(&name)),
                    1 => drop(world.pods.insert(name, pod)),
                    _ => {}
                }
            }
        }
    });
}

/// Has rows be as they are by themselves, or sparse wherever they can.
fn either_form(lab: &mut Lab, random: &mut Random) {
    lab.sparse_from(if random.once_in(2) {
        0
    } else {
        Limits::default().sparse_from
    });
}

/// Whatever the order of the changes: between any two of them a pod has its old or its new verdict.
#[test]
fn between_two_changes() {
    with_lab(|lab| {
        let mut random = Random::new();
        let mut before = random_world(&mut random, 3);
        lab.bring_to(&before);
        for _ in 0..12 {
            let after = random_world(&mut random, 3);
            either_form(lab, &mut random);
            let asked: Vec<(ObjectName, IpAddr)> = before
                .pods
                .keys()
                .flat_map(|pod| {
                    [&before, &after]
                        .map(|world| (pod.clone(), destination(&mut random, world, pod)))
                })
                .collect();
            lab.bring_to_stepwise(&after, |lab, _| {
                for (pod, destination) in &asked {
                    let allowed =
                        [&before, &after].map(|world| action(&naive(world, pod, *destination)));
                    let input = packet(&before, pod, *destination);
                    let seen = lab
                        .run(&input)
                        .unwrap_or_else(|error| panic!("{error:#}: {}", input.describe()));
                    assert!(
                        allowed.contains(&seen.action),
                        "{pod} → {destination}: {:?} is neither old nor new ({allowed:?}): {}",
                        seen.action,
                        input.describe()
                    );
                }
            });
            before = after;
        }
    });
}

/// What the naive reading says of a packet.
#[derive(Debug)]
enum Verdict {
    Pass(PassKind),
    Drop(DropReason),
    /// The rule's name, and the gateways that may be used.
    Out(String, Vec<String>),
}

/// Checks packets of a pod one by one, and then that the right counters moved, and no others.
fn check_pod(
    lab: &mut Lab,
    random: &mut Random,
    world: &Resolved,
    pod: &ObjectName,
    packets: usize,
) {
    // Else flows stay on gateways that another policy has put them on.
    lab.forget_flows();
    let mut wanted = Counts::new();
    let mut asked = Vec::new();
    for _ in 0..packets {
        let destination = destination(random, world, pod);
        let (slot, bytes) = check(lab, world, pod, destination);
        let count = wanted.entry(slot).or_default();
        *count = (count.0 + 1, count.1 + bytes);
        asked.push(destination);
    }
    assert_eq!(
        lab.moved(),
        wanted,
        "counters of {pod} after packets to {asked:?}: cluster {:?}, rules {:?}",
        world.cluster_prefixes,
        world.pods[pod].fate
    );
}

/// Checks one packet, and says which counter it moves by how many bytes.
fn check(lab: &mut Lab, world: &Resolved, pod: &ObjectName, destination: IpAddr) -> (Slot, u64) {
    let wanted = naive(world, pod, destination);
    let policy = world.pods[pod].policy.clone();
    let input = packet(world, pod, destination);
    let seen = lab
        .run(&input)
        .unwrap_or_else(|error| panic!("{error:#}: {}", input.describe()));
    let about = || {
        format!(
            "{pod} → {destination}: {}\nexpected {wanted:?}, saw {seen:?}, cluster {:?}, rules {:?}",
            input.describe(),
            world.cluster_prefixes,
            world.pods[pod].fate
        )
    };
    assert_eq!(seen.action, action(&wanted), "{}", about());
    let frame = match &wanted {
        Verdict::Out(..) => forwarded(&input.frame),
        Verdict::Pass(_) | Verdict::Drop(_) => input.frame.clone(),
    };
    assert_eq!(seen.frame, frame, "{}", about());

    let explanation = explain(world, pod, destination);
    let key = PodKey {
        ifindex: POD,
        addr: Addr::from(source(world, pod, destination)),
    };
    let kernel = kernel_verdict(lab.state(), key, destination);
    let differences = disagreements(&explanation, &kernel, lab.names());
    assert!(differences.is_empty(), "{differences:?}: {}", about());
    let explained = match explanation.verdict {
        Outcome::Gateway => Action::Redirect,
        Outcome::Drop(_) => Action::Drop,
        Outcome::Local | Outcome::Unmatched | Outcome::NotSteered => Action::Pass,
    };
    assert_eq!(explained, seen.action, "explain differs: {}", about());

    let slot = match &wanted {
        Verdict::Pass(kind) => Slot::Pass(policy, *kind),
        Verdict::Drop(reason) => Slot::Drop(policy, *reason),
        Verdict::Out(rule, gateways) => {
            let chosen = chosen(lab, key, destination);
            let chosen = chosen.unwrap_or_else(|| panic!("no member is chosen: {}", about()));
            assert!(
                gateways.contains(&chosen),
                "{chosen} is chosen: {}",
                about()
            );
            Slot::Member(policy, rule.clone(), chosen)
        }
    };
    (slot, u64::try_from(input.frame.len() - L3).unwrap_or(0))
}

/// The gateway that the packet's flow takes, by the computation that `verdicts_of_groups` checks.
fn chosen(lab: &Lab, pod: PodKey, destination: IpAddr) -> Option<String> {
    let flow = Flow {
        source: pod.addr,
        destination: Addr::from(destination),
        source_port: WireU16::new(SOURCE_PORT),
        destination_port: WireU16::new(DESTINATION_PORT),
        protocol: proto::UDP,
    };
    let member = choose(lab.state(), pod, &flow)?;
    let counter = lab.state().members.get(&member)?.counter;
    let mut names = lab.names().members.iter();
    let (label, _) = names.find(|(_, id)| *id == counter)?;
    Some(label.gateway.clone())
}

const fn action(verdict: &Verdict) -> Action {
    match verdict {
        Verdict::Pass(_) => Action::Pass,
        Verdict::Drop(_) => Action::Drop,
        Verdict::Out(..) => Action::Redirect,
    }
}

/// Every prefix is tried, one by one, bit by bit.
fn naive(world: &Resolved, pod: &ObjectName, destination: IpAddr) -> Verdict {
    // A pod that is gone is a stranger on its interface.
    let Some(pod) = world.pods.get(pod) else {
        return Verdict::Drop(DropReason::SpoofedSource);
    };
    let rules = match &pod.fate {
        Fate::Drop(reason) => return Verdict::Drop(*reason),
        Fate::Rules(rules) => rules,
    };
    let mut best: Option<(u8, &EffectiveRule)> = None;
    for length in (0..=128_u8).rev() {
        for rule in rules.iter() {
            let matches = match rule.destination {
                Some(net) => net.prefix_len() == length && within(net, destination),
                None => length == 0,
            };
            // A default for one family is more than a default for both.
            let better = best.is_none_or(|(known, other)| {
                known == length && other.destination.is_none() && rule.destination.is_some()
            });
            if matches && better {
                best = Some((length, rule));
            }
        }
    }
    let mut cluster = None;
    for net in &world.cluster_prefixes {
        if within(*net, destination) {
            cluster = cluster.max(Some(net.prefix_len()));
        }
    }
    match (best, cluster) {
        (None, None) => Verdict::Pass(PassKind::Unmatched),
        (None, Some(_)) => Verdict::Pass(PassKind::Local),
        (Some((length, _)), Some(longer)) if longer > length => Verdict::Pass(PassKind::Local),
        (Some((_, rule)), _) => match &rule.action {
            resolve::Action::Local => Verdict::Pass(PassKind::Local),
            resolve::Action::Drop(reason) => Verdict::Drop(*reason),
            resolve::Action::Gateways(all) => {
                let usable: Vec<String> = all
                    .iter()
                    .filter(|gateway| {
                        let mut ways = gateway.ways.iter();
                        ways.any(|way| (way.family() == Family::V4) == destination.is_ipv4())
                    })
                    .map(|gateway| gateway.name.name.clone())
                    .collect();
                if usable.is_empty() {
                    Verdict::Drop(DropReason::NoGateway)
                } else {
                    Verdict::Out(rule.label.clone(), usable)
                }
            }
        },
    }
}

fn within(net: IpNet, address: IpAddr) -> bool {
    let (width, net_bits, bits) = match (net.addr(), address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (32, u128::from(u32::from(a)), u128::from(u32::from(b))),
        (IpAddr::V6(a), IpAddr::V6(b)) => (128, u128::from(a), u128::from(b)),
        _ => return false,
    };
    (0..u32::from(net.prefix_len())).all(|bit| {
        let shift = width - 1 - bit;
        (net_bits >> shift) & 1 == (bits >> shift) & 1
    })
}

fn source(world: &Resolved, pod: &ObjectName, destination: IpAddr) -> IpAddr {
    let own = &world.pods[pod].addresses;
    let family = own.iter().find(|a| a.is_ipv4() == destination.is_ipv4());
    *family.unwrap_or_else(|| panic!("{pod} has no address for {destination}"))
}

fn packet(world: &Resolved, pod: &ObjectName, destination: IpAddr) -> Input {
    let source = source(world, pod, destination);
    let frame = Frame::ip(
        &source.to_string(),
        &destination.to_string(),
        proto::UDP,
        &udp(SOURCE_PORT, DESTINATION_PORT, 4),
    );
    Input::from_pod(&frame.bytes)
}

/// Pods `pod-1` and on, each with a policy of its own.
fn random_world(random: &mut Random, pods: u8) -> Resolved {
    let cluster: Vec<String> = (0..random.below(5))
        .map(|_| prefix(random).to_string())
        .collect();
    let cluster: Vec<&str> = cluster.iter().map(String::as_str).collect();
    let names: Vec<(String, String, u8)> = (1..=pods)
        .map(|n| (format!("pod-{n}"), format!("policy-{n}"), n))
        .collect();
    resolved(
        &cluster,
        names
            .iter()
            .map(|(pod, policy, n)| (pod.as_str(), *n, random_fate(random), policy.as_str())),
    )
}

fn random_fate(random: &mut Random) -> Fate {
    if random.once_in(12) {
        let reason = [DropReason::PolicyMissing, DropReason::PolicyInvalid];
        return Fate::Drop(*random.one_of(&reason));
    }
    let mut rules: Vec<EffectiveRule> = Vec::new();
    for _ in 0..random.below(14) {
        let destination = if random.once_in(6) {
            String::new()
        } else {
            prefix(random).to_string()
        };
        let action = random_action(random);
        let new = rule(&destination, action);
        // No two rules of a policy have one destination.
        if rules.iter().all(|old| old.destination != new.destination) {
            rules.push(new);
        }
    }
    rules.sort();
    Fate::Rules(rules.into())
}

fn random_action(random: &mut Random) -> resolve::Action {
    match random.below(4) {
        0 => resolve::Action::Local,
        1 => via(random_gateways(random, 1)),
        _ => {
            let most = random.below(4);
            via(random_gateways(random, most))
        }
    }
}

/// Gateways of one family or both.
fn random_gateways(random: &mut Random, most: usize) -> Vec<UsableGateway> {
    let mut gateways = Vec::new();
    for n in 1..=most {
        let (v4, v6) = (format!("192.168.9.{n}"), format!("fd09::{n}"));
        let hops: &[&str] = match random.below(4) {
            0 => &[&v4],
            1 => &[&v6],
            _ => &[&v4, &v6],
        };
        let weight = u32::try_from(1 + random.below(3)).unwrap_or(1);
        gateways.push(gateway(&format!("gw-{n}"), weight, 1500, hops));
    }
    gateways
}

/// A prefix that often nests in others: few distinct leading bits, any length.
fn prefix(random: &mut Random) -> IpNet {
    if random.once_in(2) {
        let length = *random.one_of(&[0, 1, 4, 7, 8, 9, 12, 15, 16, 17, 20, 23, 24, 25, 31, 32]);
        let net = Ipv4Net::new(some_v4(random), length);
        IpNet::V4(net.unwrap_or_default().trunc())
    } else {
        let length = *random.one_of(&[
            0, 1, 3, 8, 16, 29, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 112, 127, 128,
        ]);
        let net = Ipv6Net::new(some_v6(random), length);
        IpNet::V6(net.unwrap_or_default().trunc())
    }
}

fn some_v4(random: &mut Random) -> Ipv4Addr {
    let mut part = || *random.one_of(&[0, 1, 127, 128, 255]);
    Ipv4Addr::new(198, part(), part(), part())
}

fn some_v6(random: &mut Random) -> Ipv6Addr {
    let mut part = || *random.one_of(&[0, 1, 0x7fff, 0x8000, 0xffff]);
    Ipv6Addr::new(0x2001, part(), part(), part(), part(), 0, 0, part())
}

/// An address in, at the edges of, or right beside a prefix that matters; sometimes any.
fn destination(random: &mut Random, world: &Resolved, pod: &ObjectName) -> IpAddr {
    let rules = match world.pods.get(pod).map(|pod| &pod.fate) {
        Some(Fate::Rules(rules)) => rules.iter().filter_map(|rule| rule.destination).collect(),
        Some(Fate::Drop(_)) | None => Vec::new(),
    };
    let nets: Vec<IpNet> = rules
        .into_iter()
        .chain(world.cluster_prefixes.iter().copied())
        .collect();
    if nets.is_empty() || random.once_in(8) {
        return if random.once_in(2) {
            some_v4(random).into()
        } else {
            some_v6(random).into()
        };
    }
    let net = *random.one_of(&nets);
    let place = random.below(5);
    let noise = random.next_u64();
    match net {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            let within = u32::try_from(noise % (u64::from(last - first) + 1)).unwrap_or(0);
            Ipv4Addr::from(match place {
                0 => first,
                1 => last,
                2 => first.wrapping_sub(1),
                3 => last.wrapping_add(1),
                _ => first + within,
            })
            .into()
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            let address = Ipv6Addr::from(match place {
                0 => first,
                1 => last,
                2 => first.wrapping_sub(1),
                3 => last.wrapping_add(1),
                _ => first + (u128::from(noise) & (last - first)),
            });
            // What pretends to be IPv4 is no destination: a row of its own says so.
            match address.to_ipv4_mapped() {
                Some(_) => some_v6(random).into(),
                None => address.into(),
            }
        }
    }
}
