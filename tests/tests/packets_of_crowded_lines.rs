//! Pods that belong on one line of `POD_INDEX`, which has room for two: the others are found all the same.

#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use aya::maps::{Array, Map, MapData};
use egress_common::{
    Addr, DropReason, maps,
    pod::{PodLine, addr_to_words, pod_line},
};
use egress_tests::packets::{
    Action, Counts, Input, Lab, Slot,
    build::{L3, address},
    seed::{CLUSTER, POD, gateway, resolved, rule, via},
    talk::datagram,
    with_lab,
};
use egress_userspace::resolve::{Fate, Resolved};

/// Where the pods' packets go, by family.
const REMOTES: [&str; 2] = ["192.0.2.7", "2001:db8:1::7"];

/// A steered pod and its gateway, whose policy has the same number.
type Pods = BTreeMap<IpAddr, u8>;

fn line_of(address: IpAddr) -> u32 {
    pod_line(addr_to_words(&Addr::from(address)))
}

/// So many addresses of each family whose pods belong on one line, and which.
fn of_one_line(each: usize) -> (u32, Vec<IpAddr>) {
    let v4 = |number: u32| IpAddr::from((0x0a01_0000 + number).to_be_bytes());
    let v6 = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes().map(u16::from);
        IpAddr::from([0xfd00, 0, 0, 0, a, b, c, d])
    };
    let line = line_of(v4(5));
    let alike = |of: &dyn Fn(u32) -> IpAddr| -> Vec<IpAddr> {
        let found = (1..).map(of).filter(|address| line_of(*address) == line);
        found.take(each).collect()
    };
    (line, [alike(&v4), alike(&v6)].concat())
}

fn world(pods: &Pods) -> Resolved {
    let names: Vec<_> = pods.values().map(|number| format!("p{number}")).collect();
    let fates = pods.values().map(|number| {
        let hops = ["192.168.9.1", "fd09::1"];
        let gateways = vec![gateway(&format!("g{number}"), 1, 1500, &hops)];
        Fate::Rules(Arc::new([rule("", via(gateways))]))
    });
    let mut world = resolved(
        CLUSTER,
        names
            .iter()
            .zip(fates)
            .map(|(name, fate)| (name.as_str(), 0, fate, name.as_str())),
    );
    // By name, as the numbers are sorted.
    let mut addresses: Vec<_> = pods
        .iter()
        .map(|(address, number)| (number, address))
        .collect();
    addresses.sort_unstable();
    for (pod, (_, address)) in world.pods.values_mut().zip(addresses) {
        pod.addresses = vec![*address];
    }
    world
}

/// The addresses that the line has.
fn indexed(lab: &Lab, line: u32) -> Vec<IpAddr> {
    let data = MapData::from_pin(lab.paths().map(maps::POD_INDEX)).unwrap();
    let index = Array::<_, PodLine>::try_from(Map::Array(data)).unwrap();
    let entries = index.get(&line, 0).unwrap().0;
    let taken = entries.into_iter().filter(|entry| entry.pod != 0);
    taken
        .map(|entry| {
            let [first, second] = entry.addr.map(u64::to_ne_bytes);
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&first);
            bytes[8..].copy_from_slice(&second);
            Addr(bytes).into()
        })
        .collect()
}

/// Sends a packet from each address: from a pod's it leaves by the pod's gateway, from another's not at all.
fn check(lab: &mut Lab, what: &str, addresses: &[IpAddr], pods: &Pods) {
    for source in addresses {
        let remote = REMOTES
            .iter()
            .find(|to| address(to).is_ipv4() == source.is_ipv4());
        let frame = datagram(&source.to_string(), remote.unwrap());
        let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
        let (action, slot) = match pods.get(source) {
            Some(number) => (
                Action::Redirect,
                Slot::Member(format!("p{number}"), "default".into(), format!("g{number}")),
            ),
            None => (
                Action::Drop,
                Slot::Drop(String::new(), DropReason::SpoofedSource),
            ),
        };
        let bytes = u64::try_from(frame.bytes.len() - L3).unwrap();
        assert_eq!(seen.action, action, "{what}: from {source}");
        assert_eq!(
            lab.moved(),
            Counts::from([(slot, (1, bytes))]),
            "{what}: from {source}"
        );
    }
}

#[test]
fn who_finds_no_room_is_steered_all_the_same() {
    let (line, addresses) = of_one_line(4);
    // The last of each family is nobody's.
    let pods: Pods = (0..)
        .zip(
            addresses
                .iter()
                .filter(|address| **address != addresses[3] && **address != addresses[7]),
        )
        .map(|(number, address)| (*address, number))
        .collect();
    with_lab(|lab| {
        lab.bring_to(&world(&pods));
        let first = indexed(lab, line);
        assert_eq!(first.len(), PodLine::ENTRIES, "the line is full");
        check(lab, "all of them", &addresses, &pods);

        // Each gets the policy of the next one.
        let turned: Pods = pods
            .iter()
            .map(|(address, number)| (*address, (number + 1) % 6))
            .collect();
        lab.bring_to(&world(&turned));
        check(lab, "turned", &addresses, &turned);

        let mut fewer = turned.clone();
        fewer.retain(|address, _| !first.contains(address));
        lab.bring_to(&world(&fewer));
        check(lab, "without those that had room", &addresses, &fewer);

        lab.bring_to(&world(&turned));
        assert_eq!(
            indexed(lab, line).len(),
            PodLine::ENTRIES,
            "the line is full again"
        );
        check(lab, "all of them again", &addresses, &turned);
    });
}
