//! A node that owns egress addresses: its pods' packets out, and what comes back on its uplink.

mod connections;
mod frames;
mod places;
mod runs;

use std::net::IpAddr;

use anyhow::Result;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use egress_common::{
    Addr, DropReason, Family, Mac,
    counter::{Answer, Count, Direction, drop_index, gateway_index},
    gateway::{Egress, GatewayKey, Settings},
    maps,
    nat::{NatBack, NatBackKey, NatOut, NatOutKey, NatState},
    overlay::NodeState,
    pod::{PodNote, PodPlace, mac_to_word},
    verdict::Member,
};
use egress_userspace::{
    kernel::{Paths, Program},
    resolve::Fate as PodFate,
};

use crate::{client::Wire, machine};

pub use self::{
    frames::{
        datagram, delivered, error, forwarded, message, segment, sum_holds, with_sum, with_sum_at,
    },
    places::{ALPHA, BETA, Gateway, Places, V4, V6, addr, port},
};
use super::{
    Action, Counts, Input, Lab, Seen, Slot,
    answer::answered,
    build::{Frame, HOST_MAC, L3, POD_MAC, address, hex, proto},
    pinned::{self, Table, clear},
    seed::{self, STEERED, UPLINK},
    with_lab,
};

/// Largest packet that the uplink takes.
pub const MTU: u32 = 1500;
/// Connections that a pod may have.
pub const QUOTA: u32 = 40;

/// Runs `test` on a new node for each family.
pub fn in_both(mut test: impl FnMut(&mut Node<'_>, &Places) + Send) {
    with_node(|node| {
        for places in [&V4, &V6] {
            node.reset();
            test(node, places);
        }
    });
}

/// Runs `test` on a node.
pub fn with_node(test: impl FnOnce(&mut Node<'_>) + Send) {
    with_lab(|lab| {
        let mut node = Node::new(lab);
        node.reset();
        test(&mut node);
    });
}

/// What becomes of a packet.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It leaves as this one.
    Out(Frame),
    /// It goes to the pod as this one.
    Home(Frame),
    /// It is the kernel's, unchanged.
    Kernel,
    /// It is dropped, and whoever sent it gets this answer from the address that it was for, with this MTU.
    Answered(Answer, u32),
    /// It is dropped.
    Dropped(DropReason),
}

impl Fate {
    fn reason(&self) -> DropReason {
        match self {
            Self::Dropped(reason) => *reason,
            Self::Answered(Answer::TooBig, _) => DropReason::TooBig,
            Self::Answered(Answer::TimeExceeded, _) => DropReason::TtlExceeded,
            Self::Out(_) | Self::Home(_) | Self::Kernel => panic!("{self:?} is no drop"),
        }
    }
}

/// A node with pods, gateways and the programs.
pub struct Node<'a> {
    lab: &'a mut Lab,
    settings: Array<MapData, Settings>,
    gateways: HashMap<MapData, GatewayKey, u32>,
    addresses: HashMap<MapData, Addr, u32>,
    egress: Array<MapData, Egress>,
    places: HashMap<MapData, Addr, PodPlace>,
    notes: Array<MapData, PodNote>,
    /// One half of each connection.
    pub outs: HashMap<MapData, NatOutKey, NatOut>,
    /// The other.
    pub backs: HashMap<MapData, NatBackKey, NatBack>,
    /// How many connections each source has.
    pub sources: HashMap<MapData, Addr, i64>,
    fragments: Table,
    nodes: Array<MapData, NodeState>,
    buckets: Array<MapData, u64>,
    counts: PerCpuArray<MapData, Count>,
    drops: PerCpuArray<MapData, Count>,
    /// The gateway whose counters are expected to move.
    pub gateway: Gateway,
}

impl<'a> Node<'a> {
    fn new(lab: &'a mut Lab) -> Self {
        let via = |name, hops: &[&str]| seed::via(vec![seed::gateway(name, 1, MTU, hops)]);
        let alpha = || via("alpha", &[ALPHA.v4, ALPHA.v6]);
        let rules = vec![
            seed::rule("203.0.113.0/24", alpha()),
            seed::rule("2001:db8:a::/48", alpha()),
        ];
        let fate = || PodFate::Rules(rules.clone().into());
        lab.bring_to(&seed::resolved(
            seed::CLUSTER,
            [("web", 5, fate(), STEERED), ("other", 6, fate(), STEERED)],
        ));
        let paths = lab.paths().clone();
        let mut node = Self {
            settings: pinned(&paths, maps::SETTINGS),
            gateways: pinned(&paths, maps::GATEWAYS),
            addresses: pinned(&paths, maps::EGRESS_ADDRS),
            egress: pinned(&paths, maps::EGRESS),
            places: pinned(&paths, maps::POD_PLACES),
            notes: pinned(&paths, maps::POD_NOTES),
            outs: pinned(&paths, maps::NAT_OUT),
            backs: pinned(&paths, maps::NAT_BACK),
            sources: pinned(&paths, maps::NAT_SOURCES),
            fragments: Table::open(&paths, maps::NAT_FRAGMENTS).unwrap(),
            nodes: pinned(&paths, maps::NODE_STATE),
            buckets: pinned(&paths, maps::ANSWER_BUCKETS),
            counts: pinned(&paths, maps::GATEWAY_COUNTS),
            drops: pinned(&paths, maps::GATEWAY_DROPS),
            gateway: ALPHA,
            lab,
        };
        for (key, slot) in node.lab.state().pods.clone() {
            let place = PodPlace {
                ifindex: key.ifindex,
                slot,
            };
            node.places.insert(key.addr, place, 0).unwrap();
            let note = PodNote {
                pod_mac: mac_to_word(Mac(POD_MAC)),
                host_mac: mac_to_word(Mac(HOST_MAC)),
                ..PodNote::default()
            };
            node.notes.set(slot, note, 0).unwrap();
        }
        node
    }

    /// Brings settings, gateways and members to what they are at first, and forgets all connections.
    pub fn reset(&mut self) {
        self.forget_recent();
        clear(&mut self.outs);
        clear(&mut self.backs);
        clear(&mut self.sources);
        self.fragments.clear();
        self.speak();
        self.set_quota(QUOTA);
        for gateway in [ALPHA, BETA] {
            self.own(&gateway, (1024, 65_535), 0);
        }
        self.steer_to(&ALPHA);
    }

    /// Says how large a packet every interface takes, in bytes of IP.
    pub fn widen(&mut self, mtu: u32) {
        for (_, index) in self.addresses.iter().map(|entry| entry.unwrap()) {
            let egress = self.egress.get(&index, 0).unwrap();
            self.egress.set(index, Egress { mtu, ..egress }, 0).unwrap();
        }
        for id in self.lab.state().members.clone().into_keys() {
            let member = Member::here(id, self.gateway.id, mtu, Addr::default());
            self.lab.write_member(id, &member).unwrap();
        }
        self.narrow(mtu);
    }

    /// Says how large a packet the pods' interfaces take, in bytes of IP; zero is not known.
    pub fn narrow(&mut self, mtu: u32) {
        for key in self.lab.state().pods.clone().into_keys() {
            self.lab.set_pod_mtu(key.addr.into(), mtu);
        }
    }

    /// Sets how many connections a source may have.
    pub fn set_quota(&mut self, source_quota: u32) {
        let mut timeouts = [0; NatState::COUNT];
        for (state, ..) in NatState::ALL {
            timeouts[state as usize] = timeout(state);
        }
        self.set(source_quota, timeouts);
    }

    /// Sets how many connections a source may have, and one time for all states.
    pub fn set_all(&mut self, source_quota: u32, seconds: u32) {
        self.set(source_quota, [seconds; NatState::COUNT]);
    }

    fn set(&mut self, source_quota: u32, timeouts: [u32; NatState::COUNT]) {
        let settings = Settings {
            node4: addr("172.18.0.2"),
            node6: addr("fd00:18::2"),
            overlay_ifindex: UPLINK,
            source_quota,
            timeouts,
            ..Settings::default()
        };
        self.settings.set(0, settings, 0).unwrap();
    }

    /// Gives the node a gateway's addresses, with these ports and flags.
    pub fn own(&mut self, gateway: &Gateway, ports: (u16, u16), flags: u32) {
        self.own_at(gateway, gateway.v4, 2 * gateway.counter, ports, flags);
        self.own_at(gateway, gateway.v6, 2 * gateway.counter + 1, ports, flags);
    }

    /// Gives the node an address of a gateway, as element `index` of `EGRESS`.
    pub fn own_at(
        &mut self,
        gateway: &Gateway,
        text: &str,
        index: u32,
        ports: (u16, u16),
        flags: u32,
    ) {
        let egress = Egress {
            address: addr(text),
            gateway: gateway.id,
            ifindex: UPLINK,
            mtu: MTU,
            counter: gateway.counter,
            first_port: ports.0,
            last_port: ports.1,
            flags,
        };
        let family = match address(text) {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        self.egress.set(index, egress, 0).unwrap();
        self.addresses.insert(egress.address, index, 0).unwrap();
        let key = GatewayKey::new(gateway.id, family);
        self.gateways.insert(key, index, 0).unwrap();
    }

    /// Sends all that rules send out through this gateway, whose counters then move.
    pub fn steer_to(&mut self, gateway: &Gateway) {
        for id in self.lab.state().members.clone().into_keys() {
            let member = Member::here(id, gateway.id, MTU, Addr::default());
            self.lab.write_member(id, &member).unwrap();
        }
        self.gateway = *gateway;
    }

    /// Says what other node this is.
    pub fn know(&mut self, index: u32, state: NodeState) {
        self.nodes.set(index, state, 0).unwrap();
    }

    /// From now on everybody has had as many answers as there are.
    pub fn fall_silent(&mut self) {
        self.set_buckets(u64::MAX / 2);
    }

    /// From now on nobody has had an answer.
    pub fn speak(&mut self) {
        self.set_buckets(0);
    }

    fn set_buckets(&mut self, due: u64) {
        for bucket in 0..self.buckets.len() {
            if self.buckets.get(&bucket, 0).unwrap() != due {
                self.buckets.set(bucket, due, 0).unwrap();
            }
        }
    }

    /// Runs a frame from a pod.
    pub fn out(&mut self, what: &str, frame: &Frame, fate: Fate) {
        self.run(what, &Input::from_pod(&frame.bytes), &fate);
    }

    /// Runs a frame that arrives on the uplink.
    pub fn back(&mut self, what: &str, frame: &Frame, fate: Fate) {
        self.run(what, &on_uplink(frame), &fate);
    }

    /// Has the program of uplinks see what really arrives on the uplink, and gives the wire's other end.
    pub fn connect_uplink(&mut self) -> Wire {
        self.lab.connect_uplink(Program::FromUplink).unwrap()
    }

    /// Has `egress_from_pod` see what really arrives from pods, and gives the wire's other end.
    pub fn connect_pod(&mut self) -> Wire {
        self.lab.connect_pod().unwrap()
    }

    /// Has the kernel's routes asked.
    pub fn forward(&mut self) {
        self.lab.forward().unwrap();
    }

    /// Runs `ip` on the node.
    pub fn ip(&mut self, arguments: &str) {
        self.lab.ip(arguments).unwrap();
    }

    /// How many packets came back through the gateway, and how many of them belonged to no connection.
    #[must_use]
    pub fn came_back(&self) -> (u64, u64) {
        let counts = self.gateway_counts();
        let packets = |slot| counts.get(&slot).map_or(0, |(packets, _)| *packets);
        (
            packets(translated(&self.gateway, "back")),
            packets(dropped(&self.gateway, DropReason::NatNoState)),
        )
    }

    /// Runs a packet, and compares all that becomes of it.
    pub fn run(&mut self, what: &str, input: &Input, fate: &Fate) {
        machine::count_packet();
        let before = self.gateway_counts();
        let seen = match fate {
            Fate::Answered(..) => self.lab.run(input),
            Fate::Out(_) | Fate::Home(_) | Fate::Kernel | Fate::Dropped(_) => {
                self.lab.run_summed(input)
            }
        };
        let (seen, lab_moved) = self.ran(what, input, seen);
        let moved = super::counts::added(&before, &self.gateway_counts());
        let about = || {
            format!(
                "{what}: {}\nexpected {fate:?}\nsaw {:?}, frame {}\ncounters {lab_moved:?} {moved:?}",
                input.describe(),
                seen.action,
                hex(&seen.frame)
            )
        };
        let from_pod = input.program == Program::FromPod;
        let (action, frame) = match fate {
            Fate::Out(frame) | Fate::Home(frame) => (Action::Redirect, frame.bytes.clone()),
            Fate::Kernel => (Action::Pass, input.frame.clone()),
            Fate::Answered(answer, mtu) => {
                let node = if from_pod {
                    self.lab.settings()
                } else {
                    Settings::default()
                };
                (Action::Redirect, answered(input, *answer, *mtu, &node))
            }
            Fate::Dropped(_) => (Action::Drop, input.frame.clone()),
        };
        assert_eq!(seen.action, action, "action: {}", about());
        assert_eq!(hex(&seen.frame), hex(&frame), "frame: {}", about());
        let size = on_the_wire(input);
        let mut wanted = Counts::new();
        let mut wanted_of_lab = Counts::new();
        if let Fate::Answered(answer, _) = fate {
            wanted_of_lab.insert(Slot::Answer(*answer), (1, 0));
        }
        match fate {
            Fate::Out(_) | Fate::Home(_) => {
                let direction = if from_pod { "out" } else { "back" };
                wanted.insert(translated(&self.gateway, direction), size);
            }
            Fate::Dropped(_) | Fate::Answered(..) => {
                let reason = fate.reason();
                wanted.insert(dropped(&self.gateway, reason), size);
                if from_pod {
                    wanted_of_lab.insert(Slot::Drop(STEERED.to_owned(), reason), size);
                }
            }
            Fate::Kernel => {}
        }
        assert_eq!(moved, wanted, "gateway's counters: {}", about());
        if from_pod && matches!(fate, Fate::Out(_)) {
            let members: Vec<_> = lab_moved.keys().collect();
            assert!(matches!(*members, [Slot::Member(..)]), "{}", about());
        } else {
            assert_eq!(lab_moved, wanted_of_lab, "counters: {}", about());
        }
    }

    /// Runs a packet, and gives what became of it, and which counters but the gateways' moved.
    pub fn run_quietly(&mut self, what: &str, input: &Input) -> (Seen, Counts) {
        let seen = self.lab.run(input);
        self.ran(what, input, seen)
    }

    fn ran(&mut self, what: &str, input: &Input, seen: Result<Seen>) -> (Seen, Counts) {
        let seen = seen.unwrap_or_else(|error| panic!("{what}: {error:#}: {}", input.describe()));
        let moved = self.lab.moved();
        (seen, moved)
    }

    fn gateway_counts(&self) -> Counts {
        let mut counts = Counts::new();
        let sum = |array: &PerCpuArray<MapData, Count>, index| {
            let values = array.get(&index, 0).unwrap();
            values.iter().fold((0, 0), |(packets, bytes), count| {
                (packets + count.packets, bytes + count.bytes)
            })
        };
        for gateway in [ALPHA, BETA] {
            for (direction, name) in [(Direction::Out, "out"), (Direction::Back, "back")] {
                let index = gateway_index(gateway.counter, direction);
                counts.insert(translated(&gateway, name), sum(&self.counts, index));
            }
            for reason in DropReason::ALL {
                let index = drop_index(gateway.counter, *reason);
                counts.insert(dropped(&gateway, *reason), sum(&self.drops, index));
            }
        }
        counts.retain(|_, count| *count != (0, 0));
        counts
    }
}

/// Seconds that a connection in this state lives here: distinct for each, and shorter than any machine that runs
/// this is up.
#[must_use]
pub fn timeout(state: NatState) -> u32 {
    4 + u32::from(state as u8)
}

/// A frame that arrives on the uplink.
#[must_use]
pub fn on_uplink(frame: &Frame) -> Input {
    Input {
        program: Program::FromUplink,
        ifindex: UPLINK,
        ..Input::from_pod(&frame.bytes)
    }
}

/// Packets that leave a device, and their bytes: each segment of an aggregate has the headers again.
fn on_the_wire(input: &Input) -> (u64, u64) {
    let (frame, (_, segments)) = (&input.frame, input.gso);
    let length = ip_length(frame);
    if segments < 2 {
        return (1, length);
    }
    let (header, protocol) = match frame[12..14] {
        [8, 0] => (20, frame[L3 + 9]),
        _ => (40, frame[L3 + 6]),
    };
    let headers = match protocol {
        proto::TCP => header + 4 * usize::from(frame[L3 + header + 12] >> 4),
        _ => header + 8,
    };
    let headers = u64::try_from(headers).unwrap();
    let segments = u64::from(segments);
    (segments, length + (segments - 1) * headers)
}

/// Bytes of the IP packet in a frame: what follows is padding.
fn ip_length(frame: &[u8]) -> u64 {
    let word = |at: usize| u64::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    match frame[12..14] {
        [8, 0] => word(L3 + 2),
        _ => 40 + word(L3 + 4),
    }
}

fn translated(gateway: &Gateway, direction: &str) -> Slot {
    Slot::Member(
        "gateway".to_owned(),
        direction.to_owned(),
        gateway.v4.to_owned(),
    )
}

fn dropped(gateway: &Gateway, reason: DropReason) -> Slot {
    Slot::Drop(gateway.v4.to_owned(), reason)
}

fn pinned<T>(paths: &Paths, name: &str) -> T
where
    T: TryFrom<Map, Error: std::error::Error + Send + Sync + 'static>,
{
    pinned::open(paths, name).unwrap_or_else(|error| panic!("{error:#}"))
}
