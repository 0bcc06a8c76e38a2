//! Two nodes: pods on the first, and on the second the addresses that the outside sees.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::Result;
use egress_common::{gateway::Settings, maps, nat::NatState, overlay::Tag};
use egress_userspace::{
    gateway_id::gateway_id,
    kernel::Program,
    resolve::{Resolved, Way},
    settings::NatOptions,
    state::{EgressAddress, Holder, OtherNode, Translation},
    translation,
};

use super::{
    host::Host,
    laid::{A_DAY, CABLE, ENTRY, EXIT, Laid, TRANSLATED, mac, neighbours, translation},
    line::rules,
    right::{NextHop, Source},
};
use crate::{
    lab::{Capacity, OVERLAY, Ours, POD, UPLINK, gateway_name, resolved},
    program::egress4,
    world::{GATEWAYS, HOST_MAC, POD_MAC, World},
};

/// The device of the overlay, and the interface between the nodes.
const TUNNEL: &str = "overlay";
const BETWEEN: &str = "between";
/// Index of the latter on both.
const UNDERLAY: u32 = 77;
const VNI: u32 = 4097;
const PORT: u16 = 4790;
const PODS: &str = "10.65.0.0/16";
/// Largest IP packet in bytes that fits a frame between nodes.
const MTU: u32 = 1450;

/// A node as the other one knows it.
struct End {
    name: &'static str,
    address: Ipv4Addr,
    mac: [u8; 6],
    /// The tag of frames to it.
    tag: Tag,
}

const WORKER: End = End {
    name: "worker",
    address: Ipv4Addr::new(172, 18, 0, 11),
    mac: [2, 0, 0, 0, 0xdd, 11],
    tag: Tag([0x52, 1, 2, 3, 4, 5]),
};
const GATEWAY: End = End {
    name: "gateway",
    address: Ipv4Addr::new(172, 18, 0, 2),
    mac: [2, 0, 0, 0, 0xdd, 2],
    tag: Tag([0x56, 6, 7, 8, 9, 10]),
};

/// Who leads packets from node to node, and gives them their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steering {
    Ours,
    /// A default route through a VXLAN device, and one address by nftables.
    Kernel,
    /// The same policies as ours: a rule for each pod, a VXLAN device for each gateway, and its address by nftables.
    Rules,
}

/// Connects the hosts and sets the nodes up.
pub(super) fn lay(steering: Steering, world: &World) -> Result<Laid> {
    let (pod, worker, gateway, sink) = (Host::new()?, Host::new()?, Host::new()?, Host::new()?);
    connect(&pod, &worker, &gateway, &sink)?;
    let mut laid = Laid::new(pod, worker, sink);
    laid.right.lowered = 2;
    match steering {
        Steering::Ours => {
            for host in [&laid.node, &gateway] {
                host.ip(&format!(
                    "link add {TUNNEL} index {OVERLAY} type vxlan external nolearning dstport {PORT} \
                     udp6zerocsumrx udp6zerocsumtx
                     link set {TUNNEL} up"
                ))?;
            }
            laid.keeps.push(Box::new(steer(world, &laid.node)?));
            laid.keeps.push(Box::new(translate(&gateway)?));
            laid.right.source = Source::OfGateway(egress4);
        }
        Steering::Kernel => {
            let there = tunnel(&laid.node, &WORKER, &GATEWAY, 0)?;
            laid.node.ip(&format!("route add default {there}"))?;
            let back = tunnel(&gateway, &GATEWAY, &WORKER, 0)?;
            gateway.ip(&format!("route add {PODS} {back}"))?;
            gateway.nft(&translation(&format!("snat to {TRANSLATED}")))?;
            laid.right.source = Source::One(TRANSLATED.into());
        }
        Steering::Rules => {
            let mut map = Vec::new();
            for number in 0..GATEWAYS {
                tunnel(&laid.node, &WORKER, &GATEWAY, number)?;
                let back = tunnel(&gateway, &GATEWAY, &WORKER, number)?;
                if number == 0 {
                    gateway.ip(&format!("route add {PODS} {back}"))?;
                }
                map.push(format!("\"{TUNNEL}{number}\" : {}", egress4(number)));
            }
            laid.node.ip(&rules(world, |number| GATEWAY.way(number))?)?;
            let map = map.join(", ");
            gateway.nft(&translation(&format!("snat to iifname map {{ {map} }}")))?;
            laid.right.source = Source::OfGateway(egress4);
        }
    }
    if steering != Steering::Ours {
        gateway.settings(&[("netfilter/nf_conntrack_udp_timeout", A_DAY)])?;
    }
    laid.keeps.push(Box::new(gateway));
    Ok(laid)
}

fn connect(pod: &Host, worker: &Host, gateway: &Host, sink: &Host) -> Result<()> {
    worker.ip(&format!(
        "link add {ENTRY} index {POD} address {host} type veth peer name {CABLE} address {pods} netns {pod}
         link add {BETWEEN} index {UNDERLAY} address {own} type veth peer name {BETWEEN} index {UNDERLAY} address {other} \
         netns {gateway}
         link set {ENTRY} up
         link set {BETWEEN} up
         route add {PODS} dev {ENTRY}
         addr add {address}/24 dev {BETWEEN}
         neigh add {remote} lladdr {other} dev {BETWEEN} nud permanent",
        own = mac(WORKER.mac),
        other = mac(GATEWAY.mac),
        remote = GATEWAY.address,
        host = mac(HOST_MAC),
        pods = mac(POD_MAC),
        pod = pod.path(),
        gateway = gateway.path(),
        address = WORKER.address,
    ))?;
    gateway.ip(&format!(
        "link add {EXIT} index {UPLINK} address {host} type veth peer name {CABLE} netns {sink}
         link set {EXIT} up
         link set {BETWEEN} up
         addr add {address}/24 dev {BETWEEN}
         neigh add {remote} lladdr {other} dev {BETWEEN} nud permanent
         addr add 198.51.100.254/24 dev {EXIT}
         route add default via {first}
         {neighbours}",
        host = mac(HOST_MAC),
        sink = sink.path(),
        address = GATEWAY.address,
        remote = WORKER.address,
        other = mac(WORKER.mac),
        first = NextHop::address(0),
        neighbours = neighbours(),
    ))?;
    for host in [pod, sink] {
        host.ip(&format!("link set {CABLE} up"))?;
    }
    Ok(())
}

impl End {
    /// Its end of a tunnel, where the kernel routes.
    fn inner(&self, tunnel: u32) -> Ipv4Addr {
        let [.., last] = self.address.octets();
        Ipv4Addr::from(0x0a63_0000 + (tunnel << 8) + u32::from(last))
    }

    /// How a route says that it leads there.
    fn way(&self, tunnel: u32) -> String {
        format!("via {} dev {TUNNEL}{tunnel}", self.inner(tunnel))
    }
}

/// Makes one end of a tunnel, and says how a route leads to the other.
fn tunnel(host: &Host, own: &End, other: &End, number: u32) -> Result<String> {
    host.ip(&format!(
        "link add {TUNNEL}{number} address {mac} type vxlan id {vni} local {address} remote {remote} \
         dstport {PORT} nolearning
         link set {TUNNEL}{number} mtu {MTU} up
         addr add {inner}/24 dev {TUNNEL}{number}
         neigh add {via} lladdr {via_mac} dev {TUNNEL}{number} nud permanent",
        mac = mac(own.mac),
        vni = VNI + number,
        address = own.address,
        remote = other.address,
        inner = own.inner(number),
        via = other.inner(number),
        via_mac = mac(other.mac),
    ))?;
    Ok(other.way(number))
}

/// Our programs on the pods' node.
fn steer(world: &World, host: &Host) -> Result<Ours> {
    let way = |gateway| Way::Overlay {
        egress: egress4(gateway),
        node: GATEWAY.name.to_owned(),
        address: GATEWAY.address.into(),
        ifindex: OVERLAY,
        mtu: MTU,
        tag: GATEWAY.tag,
    };
    let mut ours = load(resolved(world, way), &WORKER, &GATEWAY, BTreeMap::new())?;
    host.enter(|| {
        ours.attach(Program::FromPod, ENTRY)?;
        ours.attach(Program::ToPod, ENTRY)?;
        ours.attach(Program::FromOverlay, TUNNEL)?;
        ours.attach(Program::FromUnderlay, BETWEEN)?;
        ours.attach(Program::ToUplink, BETWEEN)
    })?;
    Ok(ours)
}

/// Our programs on the node that has the addresses.
fn translate(host: &Host) -> Result<Ours> {
    let addresses = (0..GATEWAYS).map(|number| {
        let name = gateway_name(number);
        let address = EgressAddress {
            id: gateway_id(&name),
            gateway: name,
            ifindex: UPLINK,
            interface: EXIT.to_owned(),
            mtu: 1500,
            ports: (1024, 65_535),
            holder: Holder::Routing,
            allow_local_services: false,
            is_down: false,
        };
        (egress4(number), address)
    });
    let mut ours = load(Resolved::default(), &GATEWAY, &WORKER, addresses.collect())?;
    host.enter(|| {
        ours.attach(Program::FromOverlay, TUNNEL)?;
        ours.attach(Program::FromUnderlay, BETWEEN)?;
        ours.attach(Program::FromUplink, EXIT)
    })?;
    Ok(ours)
}

fn load(
    resolved: Resolved,
    own: &End,
    other: &End,
    addresses: BTreeMap<std::net::IpAddr, EgressAddress>,
) -> Result<Ours> {
    let other = (
        other.name.to_owned(),
        OtherNode {
            addresses: vec![other.address.into()],
            address: other.address.into(),
            mtu: MTU,
            send: other.tag,
            accept: [own.tag, Tag::ZERO],
        },
    );
    let translation = Translation {
        addresses,
        nodes: BTreeMap::from([other]),
        own: vec![own.address.into()],
        locals: BTreeMap::new(),
    };
    let nat = NatOptions {
        connections: maps::capacity::NAT,
        source_quota: u32::MAX / 2,
        timeouts: [A_DAY.parse()?; NatState::COUNT],
        ..NatOptions::default()
    };
    let settings = Settings {
        underlay_ifindex: UNDERLAY,
        overlay_port: PORT,
        first_source_port: 32_768,
        source_ports_end: 60_999,
        ..translation::settings(&translation, Some((OVERLAY, VNI)), &nat, 0, true)
    };
    let resolved = Resolved {
        translation,
        ..resolved
    };
    let capacity = Capacity {
        connections: nat.connections,
        ..Capacity::default()
    };
    Ours::load(&resolved, &settings, capacity)
}
