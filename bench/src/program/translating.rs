//! The gateway node: `egress_from_overlay`, `egress_from_uplink`, and pods of its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Result, ensure};
use egress_common::{
    gateway::Settings,
    maps,
    nat::NatState,
    overlay::{FrameKind, Tag},
};
use egress_userspace::{
    gateway_id::gateway_id,
    kernel::Program,
    resolve::{Resolved, Way},
    settings::NatOptions,
    state::{EgressAddress, Holder, OtherNode, Translation},
    translation,
};

use super::check;
use crate::{
    lab::{
        Action, Capacity, Connection, OVERLAY, Ours, POD, Reference, References, Shim, Tunnel,
        UPLINK, gateway_name, resolved,
    },
    measured::Measured,
    progress::Progress,
    rounds::Bed,
    world::{Flow, GATEWAYS, Scale, Target, Template, World, short},
};

/// Subjects' names, which gates look for.
pub(crate) const OUT: &str = "ours, from the overlay";
const BACK: &str = "ours, a reply";
const HERE: &str = "ours, of a pod here";

const VNI: u32 = 4097;
const SELF: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
const WORKER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 11);
const SEND: Tag = Tag([0x52, 1, 2, 3, 4, 5]);
const ACCEPT: Tag = Tag([0x56, 6, 7, 8, 9, 10]);
/// No connection ends while it is measured.
const A_DAY: u32 = 86_400;
/// How often each flow is seen before.
const SEEN: usize = 2;

/// The egress address of a gateway.
pub(crate) fn egress4(gateway: u32) -> IpAddr {
    Ipv4Addr::from(0xc633_6464 + gateway).into()
}

/// Likewise.
pub(super) fn egress6(gateway: u32) -> IpAddr {
    Ipv6Addr::from((0x2001_0db8_00ff_u128 << 80) + u128::from(gateway) + 1).into()
}

/// A node with the overlay and one other node, whose gateways have addresses of one family.
pub(super) struct Node {
    v6: bool,
}

impl Node {
    pub(super) const fn new(v6: bool) -> Self {
        Self { v6 }
    }

    fn egress(&self, gateway: u32) -> IpAddr {
        if self.v6 {
            egress6(gateway)
        } else {
            egress4(gateway)
        }
    }

    /// The gateway is the other node's.
    pub(super) fn overlay(&self, gateway: u32) -> Way {
        Way::Overlay {
            egress: self.egress(gateway),
            node: "worker".to_owned(),
            address: WORKER.into(),
            ifindex: OVERLAY,
            mtu: 1450,
            tag: SEND,
        }
    }

    /// The gateway is this node's.
    pub(super) fn here(&self, gateway: u32) -> Way {
        Way::Here {
            egress: self.egress(gateway),
            node: "here".to_owned(),
            ifindex: UPLINK,
            mtu: 1500,
        }
    }

    /// Loads our programs, with all gateways' addresses owned by this node.
    pub(super) fn load(&self, resolved: Resolved, capacity: Capacity) -> Result<Ours> {
        let addresses = (0..GATEWAYS).map(|number| {
            let name = gateway_name(number);
            let address = EgressAddress {
                id: gateway_id(&name),
                gateway: name,
                ifindex: UPLINK,
                interface: "uplink".to_owned(),
                mtu: 1500,
                ports: (1024, 65_535),
                holder: Holder::Routing,
                allow_local_services: false,
                is_down: false,
            };
            (self.egress(number), address)
        });
        let worker = OtherNode {
            addresses: vec![WORKER.into()],
            address: WORKER.into(),
            mtu: 1450,
            send: SEND,
            accept: [ACCEPT, Tag::ZERO],
        };
        let translation = Translation {
            addresses: addresses.collect(),
            nodes: BTreeMap::from([("worker".to_owned(), worker)]),
            own: vec![SELF.into()],
            locals: BTreeMap::new(),
        };
        let nat = NatOptions {
            connections: capacity.connections,
            source_quota: u32::MAX / 2,
            timeouts: [A_DAY; NatState::COUNT],
            ..NatOptions::default()
        };
        let overlay = Some((OVERLAY, VNI));
        let settings: Settings = translation::settings(&translation, overlay, &nat, 0, true);
        let resolved = Resolved {
            translation,
            ..resolved
        };
        Ours::load(&resolved, &settings, capacity)
    }
}

/// Ever more connections.
pub(super) fn flows(quick: bool, progress: &Progress) -> Result<(Vec<Bed>, Vec<Measured>)> {
    let counts: &[usize] = if quick {
        &[50_000]
    } else {
        &[1000, 50_000, 300_000]
    };
    let mut beds = Vec::new();
    for count in counts {
        let scene = scene(*count);
        progress.making(&scene);
        beds.extend(connections(&scene, *count)?);
    }
    Ok((beds, Vec::new()))
}

/// What a scene of so many connections is called.
pub(crate) fn scene(count: usize) -> String {
    format!("{} flows", short(count))
}

fn connections(scene: &str, count: usize) -> Result<[Bed; 3]> {
    let world = World::new(&Scale::new(1000, 100))?;
    let mut flows = world.steered(count);
    // One connection for each five-tuple: what a pod opens twice is one.
    flows.sort_by_key(|flow| {
        (
            flow.source,
            flow.destination,
            flow.source_port,
            flow.destination_port,
        )
    });
    flows.dedup();
    let capacity = Capacity {
        connections: maps::capacity::NAT.max(u32::try_from(2 * count)?),
        ..Capacity::default()
    };
    let node = Node::new(false);
    let references = References::empty()?;
    let empty = references.program(Reference::Empty)?;

    // From another node.
    let mut ours = node.load(Resolved::default(), capacity)?;
    let gateways: Vec<u32> = flows
        .iter()
        .filter_map(|flow| gateway(&world, flow))
        .collect();
    ensure!(gateways.len() == flows.len(), "a flow leads to no gateway");
    let frames: Vec<Template> = flows
        .iter()
        .zip(&gateways)
        .map(|(flow, gateway)| {
            let kind = FrameKind::Out(gateway_id(&gateway_name(*gateway)));
            flow.template_between(ACCEPT.0, kind.to_mac().0)
        })
        .collect();
    let tunnel = Some(Tunnel {
        vni: VNI,
        source: WORKER.into(),
    });
    let program = ours.program(Program::FromOverlay)?;
    let mut out = Shim::new(program, &frames, OVERLAY, tunnel)?;
    let mut translated = Vec::with_capacity(flows.len());
    for (index, (flow, gateway)) in flows.iter().zip(&gateways).enumerate() {
        let (action, frame) = out.one(index)?;
        let became = Flow::read(&frame);
        let wanted = Flow {
            source: egress4(*gateway),
            source_port: became.map_or(0, |became| became.source_port),
            ..*flow
        };
        ensure!(
            action == Action::Redirect && became == Some(wanted),
            "{flow:?} from the overlay became {became:?}: {action:?}"
        );
        translated.push(wanted);
    }
    let mut from_overlay = Bed::new(
        format!("{scene}, from the overlay"),
        Shim::new(empty, &frames, OVERLAY, tunnel)?,
    );

    // What comes back to it.
    let back: Vec<Template> = translated
        .iter()
        .map(|flow| flow.reversed().template())
        .collect();
    let program = ours.program(Program::FromUplink)?;
    let mut replies = Shim::new(program, &back, UPLINK, None)?;
    for (index, flow) in flows.iter().enumerate().take(check::PACKETS) {
        let (action, frame) = replies.one(index)?;
        let became = Flow::read(&frame);
        ensure!(
            action == Action::Redirect && became == Some(flow.reversed()),
            "a reply to {flow:?} became {became:?}: {action:?}"
        );
    }
    // Answered connections are what most are.
    replies.all(flows.len(), SEEN)?;
    out.all(flows.len(), SEEN)?;
    from_overlay.add(OUT, out, Action::Redirect);
    let mut from_uplink = Bed::new(
        format!("{scene}, replies"),
        Shim::new(empty, &back, UPLINK, None)?,
    );
    from_uplink.add(BACK, replies, Action::Redirect);

    // Of pods of this node, and of a program that does no more than it must.
    let templates: Vec<Template> = flows.iter().map(Flow::template).collect();
    let shim = |program| Shim::new(program, &templates, POD, None);
    let mut bed = Bed::new(scene, shim(empty)?);
    let connections = flows
        .iter()
        .zip(&translated)
        .map(|(flow, became)| Connection {
            flow: *flow,
            address: became.source,
            port: became.source_port,
        });
    let references = References::translating(&connections.collect::<Vec<_>>())?;
    let mut least = shim(references.program(Reference::Translate)?)?;
    for (index, wanted) in translated.iter().enumerate().take(check::PACKETS) {
        let (action, frame) = least.one(index)?;
        let sum = crate::world::checksum(&frame[14..34]);
        ensure!(
            action == Action::Redirect && Flow::read(&frame) == Some(*wanted) && sum == 0,
            "the reference made {:?} of {:?}, and should {wanted:?}",
            Flow::read(&frame),
            flows[index]
        );
    }
    bed.add(Reference::Translate.name(), least, Action::Redirect);
    let mut ours = node.load(resolved(&world, |number| node.here(number)), capacity)?;
    let mut here = shim(ours.program(Program::FromPod)?)?;
    for (index, flow) in flows.iter().enumerate().take(check::PACKETS) {
        let (action, frame) = here.one(index)?;
        let became = Flow::read(&frame);
        ensure!(
            action == Action::Redirect
                && became.map(|became| became.source) == Some(egress4(gateways[index])),
            "{flow:?} of a pod here became {became:?}: {action:?}"
        );
    }
    here.all(flows.len(), SEEN)?;
    bed.add(HERE, here, Action::Redirect);
    Ok([bed, from_overlay, from_uplink])
}

fn gateway(world: &World, flow: &Flow) -> Option<u32> {
    match world.verdict(world.pod(flow.source)?, flow.destination)? {
        (_, Target::Gateway(number)) => Some(number),
        (_, Target::Local) => None,
    }
}
