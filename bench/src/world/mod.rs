//! What is set up: pods, policies over prefixes, and flows, the same in every run; and what a plain model says of them.

mod flow;
mod plain;
mod random;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Result, ensure};
use egress_common::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub(crate) use self::{
    flow::{FRAME, Flow, HOST_MAC, POD_MAC, TEMPLATE, Template, checksum},
    plain::{Plain, Target},
    random::Random,
};

/// Gateways that rules lead to.
pub(crate) const GATEWAYS: u32 = 8;
/// Rules of a policy that can lead to gateways: each has a number of its own, and there are 65,535.
const MOST_STEERED: usize = 50_000;
/// One rule in so many is local.
const LOCAL_EVERY: u64 = 4;

/// How much of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) family: Family,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
    /// Prefixes of each policy.
    pub(crate) prefixes: usize,
    /// Whether each policy has prefixes of its own, or all have the same.
    pub(crate) distinct: bool,
}

impl Scale {
    /// So many pods with a policy each, over the same prefixes.
    pub(crate) const fn new(pods: usize, prefixes: usize) -> Self {
        Self {
            family: Family::V4,
            pods,
            policies: pods,
            prefixes,
            distinct: false,
        }
    }

    /// As it is shown.
    pub(crate) fn name(&self) -> String {
        let mut name = format!("{} × {}", self.pods, short(self.prefixes));
        if self.distinct {
            name.push_str(" distinct");
        }
        if self.policies != self.pods {
            name.push_str(&format!(" of {} policies", self.policies));
        }
        if self.family == Family::V6 {
            name.push_str(", IPv6");
        }
        name
    }
}

/// A number as one says it.
pub(crate) fn short(number: usize) -> String {
    match number {
        1_000_000.. if number.is_multiple_of(1_000_000) => format!("{}M", number / 1_000_000),
        10_000.. if number.is_multiple_of(1000) => format!("{}k", number / 1000),
        _ => number.to_string(),
    }
}

/// A pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) address: IpAddr,
    /// Its policy, by number.
    pub(crate) policy: usize,
}

/// Pods and policies.
pub(crate) struct World {
    pub(crate) pods: Vec<Pod>,
    pub(crate) policies: Vec<Plain>,
    family: Family,
}

impl World {
    /// The world of this scale; the same each time.
    pub(crate) fn new(scale: &Scale) -> Result<Self> {
        ensure!(
            scale.pods > 0 && scale.policies > 0 && scale.prefixes > 0,
            "there is nothing to measure in {scale:?}"
        );
        let mut random = Random::new(0x6567_7265_7373);
        let sets = if scale.distinct { scale.policies } else { 1 };
        let all = prefixes(&mut random, scale.family, sets * scale.prefixes);
        // Only some can lead to gateways, and these lie all over.
        let every = scale.prefixes.div_ceil(MOST_STEERED) as u64;
        let policies = (0..scale.policies).map(|policy| {
            let from = if scale.distinct {
                policy * scale.prefixes
            } else {
                0
            };
            let own = all[from..from + scale.prefixes].iter().enumerate();
            Plain::new(own.map(|(place, net)| {
                let steered = (place as u64).is_multiple_of(every);
                // Policies differ in what they say of the same prefix; one with a single rule has to lead somewhere.
                let drawn = Random::new((policy * 1009 + place) as u64).number();
                let local = scale.prefixes > 1 && drawn.is_multiple_of(LOCAL_EVERY);
                let target = if steered && !local {
                    let gateway = (drawn >> 32) % u64::from(GATEWAYS);
                    Target::Gateway(u32::try_from(gateway).unwrap_or(0))
                } else {
                    Target::Local
                };
                (*net, target)
            }))
        });
        Ok(Self {
            policies: policies.collect(),
            pods: (0..scale.pods)
                .map(|number| Pod {
                    address: pod_address(scale.family, number),
                    policy: number % scale.policies,
                })
                .collect(),
            family: scale.family,
        })
    }

    /// What the pod's policy says of a destination: the longest matching rule and what it says.
    pub(crate) fn verdict(&self, pod: usize, destination: IpAddr) -> Option<(IpNet, Target)> {
        self.policies[self.pods[pod].policy].of(destination)
    }

    /// The pod with this address.
    pub(crate) fn pod(&self, address: IpAddr) -> Option<usize> {
        let number = match (address, pod_address(self.family, 0)) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u32::from(a).checked_sub(u32::from(b))? as usize,
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                usize::try_from(u128::from(a).checked_sub(u128::from(b))?).ok()?
            }
            _ => return None,
        };
        (number < self.pods.len()).then_some(number)
    }

    /// So many flows that all go to gateways, of any pods, to any of their prefixes.
    pub(crate) fn steered(&self, count: usize) -> Vec<Flow> {
        let mut random = Random::new(0x666c_6f77);
        let steered: Vec<Vec<IpNet>> = self.policies.iter().map(Plain::steered).collect();
        let mut flows = Vec::with_capacity(count);
        while flows.len() < count {
            let pod = random.below(self.pods.len());
            let nets = &steered[self.pods[pod].policy];
            if nets.is_empty() {
                continue;
            }
            let net = nets[random.below(nets.len())];
            let destination = inside(&mut random, &net);
            // A longer prefix may say otherwise.
            if let Some((_, Target::Gateway(_))) = self.verdict(pod, destination) {
                flows.push(self.flow(&mut random, pod, destination));
            }
        }
        flows
    }

    /// So many flows of all kinds: steered, local, to where no rule leads, and of nobody's source.
    pub(crate) fn mixed(&self, count: usize) -> Vec<Flow> {
        let mut random = Random::new(0x006d_6978_6564);
        let nets: Vec<Vec<IpNet>> = self.policies.iter().map(Plain::nets).collect();
        (0..count)
            .map(|number| {
                let pod = random.below(self.pods.len());
                let nets = &nets[self.pods[pod].policy];
                let destination = match number % 16 {
                    // 240.0.0.0/4 is nobody's, and 223.0.0.0/8 in no prefix; nor is 3fff::/20 (RFC 9637).
                    0 => match self.family {
                        Family::V4 => IpAddr::from([223, 1, 2, 3]),
                        Family::V6 => IpAddr::from([0x3fff, 0, 0, 0, 0, 0, 0, 1]),
                    },
                    _ => {
                        let net = nets[random.below(nets.len())];
                        inside(&mut random, &net)
                    }
                };
                let mut flow = self.flow(&mut random, pod, destination);
                if number % 32 == 31 {
                    flow.source = pod_address(self.family, self.pods.len() + number);
                }
                flow
            })
            .collect()
    }

    fn flow(&self, random: &mut Random, pod: usize, destination: IpAddr) -> Flow {
        Flow {
            source: self.pods[pod].address,
            destination,
            // Never zero, which is no port.
            source_port: random.bits16() | 1024,
            destination_port: random.bits16() | 1,
        }
    }
}

fn pod_address(family: Family, number: usize) -> IpAddr {
    let number = u32::try_from(number).unwrap_or(u32::MAX) + 16;
    match family {
        Family::V4 => Ipv4Addr::from(0x0a41_0000 + number).into(),
        Family::V6 => Ipv6Addr::from((0xfd00_0065_u128 << 96) + u128::from(number)).into(),
    }
}

/// Distinct prefixes of the lengths that policies and routing tables have, nested as these are.
fn prefixes(random: &mut Random, family: Family, count: usize) -> Vec<IpNet> {
    let mut seen = BTreeSet::new();
    let mut nets = Vec::with_capacity(count);
    while nets.len() < count {
        let net = match family {
            Family::V4 => {
                // Short ones would soon cover everything.
                let lengths: &[u8] = if count > 50_000 {
                    &[22, 23, 24, 24, 28]
                } else {
                    &[12, 14, 16, 20, 22, 24, 24, 28]
                };
                let length = lengths[random.below(lengths.len())];
                // From 20.0.0.0 to 179.255.255.255.
                let address = 0x1400_0000 + random.below32(0xa000_0000);
                Ipv4Net::new(address.into(), length).map(IpNet::from)
            }
            Family::V6 => {
                let lengths: &[u8] = &[40, 44, 48, 48, 56, 64];
                let length = lengths[random.below(lengths.len())];
                let bits = (u128::from(random.number()) << 32) & ((1 << 96) - 1);
                Ipv6Net::new(((0x2001_0000_u128 << 96) | bits).into(), length).map(IpNet::from)
            }
        };
        if let Ok(net) = net.map(|net| net.trunc())
            && seen.insert(net)
        {
            nets.push(net);
        }
    }
    nets
}

/// Any address of a prefix.
fn inside(random: &mut Random, net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let host = random.bits32() & u32::from(net.hostmask());
            Ipv4Addr::from(u32::from(net.network()) | host).into()
        }
        IpNet::V6(net) => {
            let bits = (u128::from(random.number()) << 64) | u128::from(random.number());
            Ipv6Addr::from(u128::from(net.network()) | (bits & u128::from(net.hostmask()))).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_what_their_scale_says() {
        for scale in [
            Scale::new(1, 1),
            Scale::new(3, 100),
            Scale {
                distinct: true,
                ..Scale::new(4, 50)
            },
            Scale {
                policies: 2,
                ..Scale::new(6, 20)
            },
            Scale {
                family: Family::V6,
                ..Scale::new(3, 100)
            },
        ] {
            let world = World::new(&scale).unwrap_or_else(|error| unreachable!("{error}"));
            assert_eq!(world.pods.len(), scale.pods, "{scale:?}");
            assert_eq!(world.policies.len(), scale.policies, "{scale:?}");
            let nets: BTreeSet<IpNet> = world.policies.iter().flat_map(Plain::nets).collect();
            let sets = if scale.distinct { scale.policies } else { 1 };
            assert_eq!(nets.len(), sets * scale.prefixes, "{scale:?}");
            for flow in world.steered(200) {
                let pod = world.pod(flow.source);
                let verdict = pod.and_then(|pod| world.verdict(pod, flow.destination));
                assert!(
                    matches!(verdict, Some((_, Target::Gateway(_)))),
                    "{scale:?}: {flow:?}: {verdict:?}"
                );
            }
            // Every kind is there, or the check before the measurement shows less than it should.
            let mixed = world.mixed(2000);
            let verdicts: Vec<_> = mixed
                .iter()
                .map(|flow| (world.pod(flow.source), flow.destination))
                .map(|(pod, destination)| pod.map(|pod| world.verdict(pod, destination)))
                .collect();
            assert!(verdicts.contains(&None), "{scale:?}");
            assert!(verdicts.contains(&Some(None)), "{scale:?}");
            let local = verdicts
                .iter()
                .any(|verdict| matches!(verdict, Some(Some((_, Target::Local)))));
            assert_eq!(local, scale.prefixes > 1, "{scale:?}");
        }
    }

    #[test]
    fn policies_over_the_same_prefixes_differ() {
        let world = World::new(&Scale::new(2, 100)).unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(world.policies[0].nets(), world.policies[1].nets());
        assert_ne!(world.policies[0].steered(), world.policies[1].steered());
    }

    #[test]
    fn scales_are_named_by_what_is_in_them() {
        for (scale, name) in [
            (Scale::new(1, 1), "1 × 1"),
            (Scale::new(1000, 100), "1000 × 100"),
            (Scale::new(1, 10_000), "1 × 10k"),
            (Scale::new(1, 1_000_000), "1 × 1M"),
            (
                Scale {
                    policies: 10,
                    ..Scale::new(1000, 100)
                },
                "1000 × 100 of 10 policies",
            ),
            (
                Scale {
                    distinct: true,
                    family: Family::V6,
                    ..Scale::new(10, 100)
                },
                "10 × 100 distinct, IPv6",
            ),
        ] {
            assert_eq!(scale.name(), name);
        }
    }
}
