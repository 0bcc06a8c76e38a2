//! A node that owns egress addresses: its pods' packets out, and what comes back on its uplink.

use std::{collections::BTreeMap, net::IpAddr, thread, time::Duration};

use aya::{
    Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
    programs::SchedClassifier,
};
use egress_common::{
    Addr, DropReason, Family, Mac, WireU16,
    counter::{Answer, Count, Direction, drop_index, gateway_index},
    gateway::{Egress, GatewayId, GatewayKey, Settings},
    keys::FragmentKey,
    maps,
    nat::{NatBack, NatBackKey, NatFragment, NatOut, NatOutKey, NatState},
    overlay::NodeState,
    pod::{PodNote, PodPlace, mac_to_word},
    verdict::Member,
};
use egress_userspace::{
    kernel::{NAT_SWEEP, Paths, Program},
    resolve::Fate as PodFate,
};
use etherparse::checksum::Sum16BitWords;

use crate::client::Wire;

use super::{
    Action, Counts, Input, Lab, Seen, Slot,
    answer::answered,
    build::{self, Frame, HOST_MAC, L3, POD_MAC, address, hex, proto},
    lab::{CONTEXT, IFINDEX, LARGEST},
    seed::{self, STEERED, UPLINK},
    with_lab,
};

/// The one gateway that the pods' rules name first.
pub const ALPHA: Gateway = Gateway {
    id: GatewayId(0x0a0a_0001),
    counter: 1,
    v4: "192.0.2.10",
    v6: "2001:db8:ee::10",
};
/// The other one.
pub const BETA: Gateway = Gateway {
    id: GatewayId(0x0a0a_0002),
    counter: 2,
    v4: "192.0.2.20",
    v6: "2001:db8:ee::20",
};

/// A gateway of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its number.
    pub id: GatewayId,
    /// Its counter.
    pub counter: u32,
    /// Its egress addresses.
    pub v4: &'static str,
    /// The IPv6 one.
    pub v6: &'static str,
}

/// Largest packet that the uplink takes.
pub const MTU: u32 = 1500;
/// Connections that a pod may have.
pub const QUOTA: u32 = 40;

/// The same places in one family.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// What rows are called.
    pub name: &'static str,
    /// Two pods.
    pub pod: &'static str,
    /// The other one.
    pub other: &'static str,
    /// A far end that rules send to `ALPHA`.
    pub remote: &'static str,
    /// Another one.
    pub remote2: &'static str,
    /// A router on the way there.
    pub router: &'static str,
    /// `ALPHA`'s address.
    pub alpha: &'static str,
    /// `BETA`'s address.
    pub beta: &'static str,
    /// ICMP's protocol number.
    pub icmp: u8,
    /// Types of an echo request, an echo reply, packet too big or its like, and an error that is none of it.
    pub ping: u8,
    /// The reply's type.
    pub pong: u8,
    /// An error's type.
    pub error: u8,
}

/// IPv4.
pub const V4: Places = Places {
    name: "IPv4",
    pod: "10.1.0.5",
    other: "10.1.0.6",
    remote: "203.0.113.7",
    remote2: "203.0.113.8",
    router: "198.51.100.1",
    alpha: ALPHA.v4,
    beta: BETA.v4,
    icmp: proto::ICMP,
    ping: 8,
    pong: 0,
    error: 3,
};

/// IPv6.
pub const V6: Places = Places {
    name: "IPv6",
    pod: "fd00::5",
    other: "fd00::6",
    remote: "2001:db8:a::7",
    remote2: "2001:db8:a::8",
    router: "2001:db8:b::1",
    alpha: ALPHA.v6,
    beta: BETA.v6,
    icmp: proto::ICMPV6,
    ping: 128,
    pong: 129,
    error: 2,
};

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
    members: Array<MapData, Member>,
    /// One half of each connection.
    pub outs: HashMap<MapData, NatOutKey, NatOut>,
    /// The other.
    pub backs: HashMap<MapData, NatBackKey, NatBack>,
    /// How many connections each source has.
    pub sources: HashMap<MapData, Addr, i64>,
    fragments: HashMap<MapData, FragmentKey, NatFragment>,
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
            settings: array(&paths, maps::SETTINGS),
            gateways: hash(&paths, maps::GATEWAYS),
            addresses: hash(&paths, maps::EGRESS_ADDRS),
            egress: array(&paths, maps::EGRESS),
            places: hash(&paths, maps::POD_PLACES),
            notes: array(&paths, maps::POD_NOTES),
            members: array(&paths, maps::MEMBERS),
            outs: hash(&paths, maps::NAT_OUT),
            backs: hash(&paths, maps::NAT_BACK),
            sources: hash(&paths, maps::NAT_SOURCES),
            fragments: hash(&paths, maps::NAT_FRAGMENTS),
            nodes: array(&paths, maps::NODE_STATE),
            buckets: array(&paths, maps::ANSWER_BUCKETS),
            counts: open(&paths, maps::GATEWAY_COUNTS),
            drops: open(&paths, maps::GATEWAY_DROPS),
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
        clear(&mut self.outs);
        clear(&mut self.backs);
        clear(&mut self.sources);
        clear(&mut self.fragments);
        self.speak();
        self.set_quota(QUOTA);
        for gateway in [ALPHA, BETA] {
            self.own(&gateway, (1024, 65_535), 0);
        }
        self.steer_to(&ALPHA);
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
        for id in self.lab.state().members.keys() {
            let member = Member::here(*id, gateway.id, MTU, Addr::default());
            self.members.set(*id, member, 0).unwrap();
        }
        self.gateway = *gateway;
    }

    /// Says what other node this is.
    pub fn know(&mut self, index: u32, state: NodeState) {
        self.nodes.set(index, state, 0).unwrap();
    }

    /// Makes all connections those of pods of another node.
    pub fn move_to(&mut self, origin: u32) {
        for (key, out) in self.all_outs() {
            self.outs.insert(key, NatOut { origin, ..out }, 0).unwrap();
        }
        for (key, back) in self.all_backs() {
            let back = NatBack { origin, ..back };
            self.backs.insert(key, back, 0).unwrap();
        }
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
        let before = self.gateway_counts();
        let (seen, lab_moved) = self.run_quietly(what, input);
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
        let seen = self
            .lab
            .run(input)
            .unwrap_or_else(|error| panic!("{what}: {error:#}: {}", input.describe()));
        let moved = self.lab.moved();
        (seen, moved)
    }

    /// Lets time pass for all connections: their packets were seen that much earlier.
    pub fn age(&mut self, seconds: u32) {
        let age = u64::from(seconds) * 1_000_000_000;
        for (key, mut out) in self.all_outs() {
            out.last_seen = out.last_seen.saturating_sub(age);
            self.outs.insert(key, out, 0).unwrap();
        }
        for (key, mut back) in self.all_backs() {
            back.last_seen = back.last_seen.saturating_sub(age);
            self.backs.insert(key, back, 0).unwrap();
        }
    }

    /// Every connection's pods' side.
    #[must_use]
    pub fn all_outs(&self) -> Vec<(NatOutKey, NatOut)> {
        self.outs.iter().map(|entry| entry.unwrap()).collect()
    }

    /// Every connection's side of replies.
    #[must_use]
    pub fn all_backs(&self) -> Vec<(NatBackKey, NatBack)> {
        self.backs.iter().map(|entry| entry.unwrap()).collect()
    }

    /// The states of all connections, after a look at whether their halves fit, and their sources' counts.
    #[must_use]
    pub fn states(&self) -> Vec<NatState> {
        let outs = self.all_outs();
        let backs: BTreeMap<NatBackKey, NatBack> = self.all_backs().into_iter().collect();
        assert_eq!(outs.len(), backs.len(), "halves: {outs:#?} {backs:#?}");
        let mut counts: BTreeMap<Addr, i64> = BTreeMap::new();
        let mut states = Vec::new();
        for (key, out) in outs {
            let other = NatBackKey {
                egress: out.egress,
                remote: key.remote,
                egress_port: out.egress_port,
                remote_port: key.remote_port,
                protocol: key.protocol,
                pad: [0; 3],
            };
            let back = backs[&other];
            assert_eq!(
                (
                    back.pod,
                    back.pod_port,
                    back.gateway,
                    back.origin,
                    back.state
                ),
                (key.pod, key.pod_port, key.gateway, out.origin, out.state),
                "halves that do not fit: {key:?} {out:?} {back:?}"
            );
            *counts.entry(key.pod).or_default() += 1;
            states.push(NatState::from_number(out.state).unwrap());
        }
        for (pod, count) in self.sources.iter().map(|entry| entry.unwrap()) {
            assert_eq!(Some(count), counts.remove(&pod), "connections of {pod:?}");
        }
        assert!(counts.is_empty(), "sources without a count: {counts:?}");
        states.sort_unstable();
        states
    }

    /// Has the sweep look at these connections, and gives how many it removed.
    pub fn sweep(&mut self, keys: &[NatBackKey]) -> u32 {
        sweep(self.lab.datapath().nat_sweep().unwrap(), keys)
    }

    /// Runs these frames again and again on one thread for each list, while another one sweeps the keys as often.
    pub fn at_once(&mut self, lists: &[Vec<Input>], keys: &[NatBackKey], times: usize) {
        let ebpf = self.lab.datapath().ebpf();
        let program =
            |name| -> &SchedClassifier { ebpf.program(name).unwrap().try_into().unwrap() };
        let sweeper = program(NAT_SWEEP);
        let programs = Program::ALL
            .iter()
            .map(|known| (*known, program(known.name())));
        let programs: BTreeMap<Program, &SchedClassifier> = programs.collect();
        thread::scope(|scope| {
            for inputs in lists {
                let programs = &programs;
                scope.spawn(move || {
                    for input in (0..times).flat_map(|_| inputs) {
                        run_once(programs[&input.program], input);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..times {
                    for keys in keys.chunks(32) {
                        sweep(sweeper, keys);
                    }
                }
            });
        });
        // What was counted is not asked here.
        self.lab.moved();
    }

    /// Nanoseconds that a program takes for a frame, on average.
    pub fn measure(&mut self, input: &Input, repeat: u32) -> Duration {
        let program: &mut SchedClassifier = self
            .lab
            .datapath()
            .ebpf()
            .program_mut(input.program.name())
            .unwrap()
            .try_into()
            .unwrap();
        run_repeatedly(program, input, repeat)
    }

    /// Instructions that the verifier looked at, by program, where the kernel tells.
    pub fn verified(&mut self) -> BTreeMap<String, u32> {
        let ebpf = self.lab.datapath().ebpf();
        ebpf.programs()
            .filter_map(|(name, program)| {
                let count = program.info().ok()?.verified_instruction_count()?;
                Some((name.to_owned(), count))
            })
            .collect()
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

fn run_once(program: &SchedClassifier, input: &Input) {
    run_repeatedly(program, input, 1);
}

fn run_repeatedly(program: &SchedClassifier, input: &Input, repeat: u32) -> Duration {
    let mut context = [0_u8; CONTEXT];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&input.ifindex.to_ne_bytes());
    let mut out = vec![0; LARGEST];
    let options = TestRunOptions {
        data_in: Some(&input.frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        repeat,
        ..TestRunOptions::default()
    };
    program.test_run(options).unwrap().duration
}

fn sweep(program: &SchedClassifier, keys: &[NatBackKey]) -> u32 {
    let mut frame = vec![0; L3];
    // An ethertype for experiments (RFC 5342, B): the test-run looks into what claims to be IP.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    for key in keys {
        frame.extend(key.egress.0);
        frame.extend(key.remote.0);
        frame.extend(key.egress_port.0);
        frame.extend(key.remote_port.0);
        frame.extend([key.protocol, 0, 0, 0]);
    }
    let mut out = vec![0; LARGEST];
    let options = TestRunOptions {
        data_in: Some(&frame),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).unwrap();
    out.truncate(result.data_size_out.try_into().unwrap());
    assert_eq!(hex(&out), hex(&frame), "the sweep changes no frame");
    result.return_value
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

/// The address as maps have it.
#[must_use]
pub fn addr(text: &str) -> Addr {
    Addr::from(address(text))
}

/// The frame one hop on, as it leaves or arrives: TTL lowered, the MACs as they were.
#[must_use]
pub fn forwarded(frame: &Frame) -> Frame {
    Frame {
        bytes: build::forwarded(&frame.bytes),
    }
}

/// The frame one hop on, as a pod gets it.
#[must_use]
pub fn delivered(frame: &Frame) -> Frame {
    forwarded(frame).macs(POD_MAC, HOST_MAC)
}

/// A UDP datagram with its checksum.
#[must_use]
pub fn datagram(from: (&str, u16), to: (&str, u16), length: usize) -> Frame {
    let frame = Frame::ip(from.0, to.0, proto::UDP, &build::udp(from.1, to.1, length));
    with_sum(frame, proto::UDP)
}

/// A TCP segment with these flags and its checksum.
#[must_use]
pub fn segment(from: (&str, u16), to: (&str, u16), flags: u8) -> Frame {
    let mut payload = build::tcp(from.1, to.1, &[], 12);
    payload[13] = flags;
    with_sum(Frame::ip(from.0, to.0, proto::TCP, &payload), proto::TCP)
}

/// An ICMP message with its checksum; the identifier lies in the first two bytes of `rest`.
#[must_use]
pub fn message(from: &str, to: &str, kind: u8, id: u16, payload: &[u8]) -> Frame {
    let protocol = if from.contains(':') {
        proto::ICMPV6
    } else {
        proto::ICMP
    };
    let frame = Frame::ip(from, to, protocol, &build::icmp(kind, id, payload));
    with_sum(frame, protocol)
}

/// An ICMP error that quotes the first bytes of a packet above Ethernet.
#[must_use]
pub fn error(from: &str, to: &str, kind: u8, quoted: &Frame, bytes: usize) -> Frame {
    let packet = &quoted.bytes[L3..];
    message(from, to, kind, 0, &packet[..bytes.min(packet.len())])
}

/// With the checksum of the header right above IP, which has no options or extensions.
#[must_use]
pub fn with_sum(frame: Frame, protocol: u8) -> Frame {
    let l4 = if frame.bytes[12..14] == [8, 0] {
        L3 + 20
    } else {
        L3 + 40
    };
    with_sum_at(frame, protocol, l4)
}

/// With the checksum of the header at `l4`.
#[must_use]
pub fn with_sum_at(frame: Frame, protocol: u8, l4: usize) -> Frame {
    let at = l4 + sum_offset(protocol);
    let frame = frame.set(at, &[0, 0]);
    let mut sum = sum(&frame.bytes, protocol, l4);
    if sum == 0 && protocol == proto::UDP {
        sum = 0xffff;
    }
    frame.set(at, &sum.to_be_bytes())
}

/// Whether the checksum of the header at `l4` holds.
#[must_use]
pub fn sum_holds(frame: &[u8], protocol: u8, l4: usize) -> bool {
    matches!(sum(frame, protocol, l4), 0 | 0xffff)
}

fn sum_offset(protocol: u8) -> usize {
    match protocol {
        proto::TCP => 16,
        proto::ICMP | proto::ICMPV6 => 2,
        _ => 6,
    }
}

/// The checksum over everything from `l4` on, and over the addresses where the protocol has it so.
fn sum(frame: &[u8], protocol: u8, l4: usize) -> u16 {
    let upper = &frame[l4..];
    let mut sum = Sum16BitWords::new().add_slice(upper);
    if protocol != proto::ICMP {
        let length = u32::try_from(upper.len()).unwrap();
        let addresses = if frame[12..14] == [8, 0] {
            L3 + 12..L3 + 20
        } else {
            L3 + 8..L3 + 40
        };
        sum = sum
            .add_slice(&frame[addresses])
            .add_4bytes(length.to_be_bytes())
            .add_2bytes([0, protocol]);
    }
    // The library keeps its sums in the byte order of the machine.
    sum.ones_complement().to_be()
}

/// A port as maps have it.
#[must_use]
pub fn port(number: u16) -> WireU16 {
    WireU16::new(number)
}

fn map(paths: &Paths, name: &str) -> Map {
    let data = MapData::from_pin(paths.map(name)).unwrap();
    Map::from_map_data(data).unwrap()
}

fn open<T>(paths: &Paths, name: &str) -> T
where
    T: TryFrom<Map>,
    T::Error: std::fmt::Debug,
{
    T::try_from(map(paths, name)).unwrap()
}

fn hash<K: Pod, V: Pod>(paths: &Paths, name: &str) -> HashMap<MapData, K, V> {
    map(paths, name).try_into().unwrap()
}

fn array<V: Pod>(paths: &Paths, name: &str) -> Array<MapData, V> {
    map(paths, name).try_into().unwrap()
}

fn clear<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().map(|key| key.unwrap()).collect();
    for key in keys {
        map.remove(&key).unwrap();
    }
}
