//! Frames on a real overlay device: whose are taken, what becomes of each, and that the kernel sees none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, PerCpuArray},
};
use egress_common::{
    Addr, DropReason, Family, Mac,
    counter::{Answer, Count, Direction, NO_POLICY, drop_index, gateway_index},
    gateway::{EGRESS_DOWN, Egress, GatewayId, GatewayKey, Settings},
    keys::PodKey,
    maps,
    overlay::{FrameKind, NodeState, Tag},
    pod::{PodFacts, PodNote, PodPlace, mac_to_word},
    probe,
    verdict::{Decision, Member, PodState, Verdict},
};
use egress_tests::{
    Host,
    client::Wire,
    packets::{
        Input,
        answer::answered,
        build::{Frame, HOST_MAC, L3, POD_MAC, address, hex, proto::UDP, udp},
    },
    wait,
    workspace::Workspace,
};
use egress_userspace::kernel::{
    Capacities, CounterMaps, Datapath, Hook, LoadOptions, Paths, Program,
};
use etherparse::{PacketBuilder, TcpOptionElement};

const DEVICE: &str = "egress.vxlan";
const PORT: u16 = 4790;
const VNI: u32 = 4097;
const GATEWAY: GatewayId = GatewayId(0x0708_090a);
/// Index of the gateway's counters.
const COUNTER: u32 = 3;
/// Largest packet that its uplink takes.
const UPLINK_MTU: u32 = 1280;
/// The neighbour's index.
const ORIGIN: u32 = 2;
const SLOT: u32 = 4;
const POLICY: u32 = 6;

const FIRST: Tag = Tag([0x03, 1, 2, 3, 4, 5]);
const SECOND: Tag = Tag([0x52, 6, 7, 8, 9, 10]);
const TO_NEIGHBOUR: Tag = Tag([0xff, 11, 12, 13, 14, 15]);
const WRONG: Tag = Tag([0x03, 1, 2, 3, 4, 6]);

/// The underlay of one family: this node, its neighbour, and a host that is no node.
struct Underlay {
    name: &'static str,
    node: &'static str,
    neighbour: &'static str,
    stranger: &'static str,
}

const UNDERLAYS: [Underlay; 2] = [
    Underlay {
        name: "IPv4",
        node: "172.20.0.2",
        neighbour: "172.20.0.1",
        stranger: "172.20.0.9",
    },
    Underlay {
        name: "IPv6",
        node: "fd20::2",
        neighbour: "fd20::1",
        stranger: "fd20::9",
    },
];

/// The packets of one family: a pod, its remote, addresses that are no steered pod's.
struct Overlaid {
    pod: &'static str,
    remote: &'static str,
    /// In neither map.
    unknown: &'static str,
    /// In `POD_PLACES` alone.
    leaving: &'static str,
    /// In both, but it never sent anything.
    silent: &'static str,
}

const OVERLAID: [Overlaid; 2] = [
    Overlaid {
        pod: "10.1.0.5",
        remote: "192.0.2.7",
        unknown: "10.1.0.6",
        leaving: "10.1.0.7",
        silent: "10.1.0.8",
    },
    Overlaid {
        pod: "fd00::5",
        remote: "2001:db8:1::7",
        unknown: "fd00::6",
        leaving: "fd00::7",
        silent: "fd00::8",
    },
];

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// Dropped, and counted for nobody.
    Drop(DropReason),
    /// Dropped, and counted for the gateway.
    Refuse(DropReason),
    /// It arrives at the pod.
    Deliver,
}
use Expect::{Deliver, Drop, Refuse};

/// A node with the program on its overlay device, a neighbour that sends frames, and a pod.
struct Field {
    node: Host,
    neighbour: Host,
    pod: Host,
    datapath: Datapath,
    counters: CounterMaps,
    // Last, so that what is pinned goes when everything else has gone.
    _workspace: Workspace,
}

impl Field {
    fn new() -> Result<Self> {
        let workspace = Workspace::new()?;
        let [node, neighbour, pod] = ["node", "neighbour", "pod"].map(|role| workspace.host(role));
        let (node, neighbour, pod) = (node?, neighbour?, pod?);
        for host in [&node, &neighbour, &pod] {
            host.sysctl(&[
                ("ipv4/conf/all/rp_filter", "1"),
                ("ipv4/conf/default/rp_filter", "1"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv6/conf/default/router_solicitations", "0"),
            ])?;
        }
        wire(&node, &neighbour, &pod)?;
        let paths = Paths::new(workspace.bpffs().join("egress"));
        let datapath = Datapath::load(&LoadOptions {
            paths: paths.clone(),
            capacities: Capacities::default(),
            attach_mode: None,
            debug_log: false,
        })?;
        let mut field = Self {
            counters: CounterMaps::open(&paths)?,
            node,
            neighbour,
            pod,
            datapath,
            _workspace: workspace,
        };
        field.seed()?;
        Ok(field)
    }

    fn seed(&mut self) -> Result<()> {
        let overlay = self.ifindex(DEVICE)?;
        let pod = self.ifindex("pod0")?;
        self.element(
            maps::SETTINGS,
            0,
            Settings {
                overlay_ifindex: overlay,
                vni: VNI,
                ..Settings::default()
            },
        )?;
        self.element(
            maps::NODE_STATE,
            ORIGIN,
            NodeState {
                address: Addr::from(address(UNDERLAYS[0].neighbour)),
                mtu: 1450,
                send: TO_NEIGHBOUR,
                accept: [FIRST, SECOND],
                pad: [0; 2],
            },
        )?;
        for underlay in &UNDERLAYS {
            let neighbour = Addr::from(address(underlay.neighbour));
            self.entry(maps::NODES, neighbour, ORIGIN)?;
        }
        for (index, family) in [(1, Family::V4), (2, Family::V6)] {
            self.entry(maps::GATEWAYS, GatewayKey::new(GATEWAY, family), index)?;
            let egress = Egress {
                address: Addr::from(address(
                    ["203.0.113.10", "2001:db8::10"][index as usize - 1],
                )),
                gateway: GATEWAY,
                ifindex: self.ifindex("eth0")?,
                mtu: UPLINK_MTU,
                counter: COUNTER,
                first_port: 1024,
                last_port: 65_535,
                flags: 0,
            };
            self.element(maps::EGRESS, index, egress)?;
        }
        for overlaid in &OVERLAID {
            for (text, slot, live) in [
                (overlaid.pod, SLOT, true),
                (overlaid.silent, SLOT + 1, true),
                (overlaid.leaving, SLOT, false),
            ] {
                let addr = Addr::from(address(text));
                self.entry(maps::POD_PLACES, addr, PodPlace { ifindex: pod, slot })?;
                if live {
                    self.entry(maps::PODS, PodKey { ifindex: pod, addr }, slot)?;
                }
            }
        }
        let note = PodNote {
            pod_mac: mac_to_word(Mac(POD_MAC)),
            host_mac: mac_to_word(Mac(HOST_MAC)),
            ..PodNote::default()
        };
        self.element(maps::POD_NOTES, SLOT, note)
    }

    fn ifindex(&self, interface: &str) -> Result<u32> {
        self.node
            .enter(|| Ok(nix::net::if_::if_nametoindex(interface)?))
    }

    fn element<V: Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        let data = self.datapath.ebpf().map_mut(map).context("no such map")?;
        Array::try_from(data)?
            .set(index, value, 0)
            .with_context(|| format!("cannot write {map}[{index}]"))
    }

    fn entry<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) -> Result<()> {
        let data = self.datapath.ebpf().map_mut(map).context("no such map")?;
        HashMap::try_from(data)?
            .insert(key, value, 0)
            .with_context(|| format!("cannot write to {map}"))
    }

    fn attach(&mut self, program: Program, interface: &str) -> Result<()> {
        let hooks = BTreeSet::from([Hook {
            program,
            ifindex: self.ifindex(interface)?,
            interface: interface.to_owned(),
        }]);
        let datapath = &mut self.datapath;
        self.node.enter(|| {
            let (attachments, ebpf) = datapath.attaching();
            let errors = attachments.attach(ebpf, program, &hooks);
            ensure!(errors.is_empty(), "{errors:?}");
            Ok(())
        })
    }

    /// Every counter that can move, those that are zero left out: of drops, of the gateway, of what the
    /// kernel saw of the overlay, and of what the pod got.
    fn counts(&mut self) -> Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        for reason in DropReason::ALL {
            let count = self.counters.dropped(NO_POLICY, *reason)?;
            counts.insert(format!("{:?}", Drop(*reason)), count.packets);
            let index = drop_index(COUNTER, *reason);
            let count = self.sum(maps::GATEWAY_DROPS, index)?;
            counts.insert(format!("{:?}", Refuse(*reason)), count);
        }
        for direction in Direction::ALL {
            let count = self.sum(maps::GATEWAY_COUNTS, gateway_index(COUNTER, *direction))?;
            counts.insert(format!("translated {direction:?}"), count);
        }
        for (host, role) in [(&self.node, "the kernel"), (&self.pod, "the pod")] {
            for (name, count) in host.counters()? {
                counts.insert(format!("{role}: {name}"), count.packets);
            }
        }
        counts.retain(|_, packets| *packets != 0);
        Ok(counts)
    }

    fn sum(&mut self, map: &str, index: u32) -> Result<u64> {
        let data = self.datapath.ebpf().map_mut(map).context("no such map")?;
        let counts: PerCpuArray<_, Count> = data.try_into()?;
        Ok(counts.get(&index, 0)?.iter().map(|cpu| cpu.packets).sum())
    }

    /// Sends a frame with this network identifier from an address of the neighbour's namespace.
    fn send(&self, from: &str, to: &str, vni: u32, frame: &[u8]) -> Result<()> {
        self.neighbour.enter(|| {
            let socket = UdpSocket::bind(SocketAddr::new(address(from), 0))?;
            let sent = socket.send_to(&vxlan(vni, frame), SocketAddr::new(address(to), PORT))?;
            ensure!(sent == frame.len() + 8, "only {sent} bytes were sent");
            Ok(())
        })
    }

    /// Waits until exactly what is wanted has been added to the counters.
    fn expect(&mut self, before: &BTreeMap<String, u64>, wanted: &[&str]) -> Result<()> {
        let mut then = before.clone();
        for name in wanted {
            *then.entry((*name).to_owned()).or_default() += 1;
        }
        wait::until(&format!("{wanted:?} are counted"), || {
            let now = self.counts()?;
            ensure!(now == then, "counted are {now:?}, wanted {then:?}");
            Ok(())
        })
    }
}

fn wire(node: &Host, neighbour: &Host, pod: &Host) -> Result<()> {
    node.ip(&format!(
        "link set lo up
         link add eth0 type veth peer name eth0 netns {}
         link add pod0 type veth peer name eth0 netns {}
         link add {DEVICE} type vxlan external dstport {PORT} nolearning
         link set eth0 up
         link set pod0 up
         link set {DEVICE} up
         addr add {}/24 dev eth0
         addr add {}/64 dev eth0 nodad
         ",
        neighbour.namespace(),
        pod.namespace(),
        UNDERLAYS[0].node,
        UNDERLAYS[1].node,
    ))?;
    let [v4, v6] = UNDERLAYS;
    neighbour.ip(&format!(
        "link set lo up
         link set eth0 up
         addr add {}/24 dev eth0
         addr add {}/64 dev eth0 nodad
         addr add {}/24 dev eth0
         addr add {}/64 dev eth0 nodad
         ",
        v4.neighbour, v6.neighbour, v4.stranger, v6.stranger
    ))?;
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    pod.ip(&format!(
        "link set lo up
         link set eth0 address {}
         link set eth0 up
         ",
        mac(POD_MAC)
    ))?;
    // After the programs of TC and before everything else of the kernel's.
    node.nft(&format!(
        "table netdev watch {{
           counter seen {{}}
           chain overlay {{
             type filter hook ingress device \"{DEVICE}\" priority 0;
             counter name seen
           }}
         }}"
    ))?;
    let macs = format!("ether daddr {} ether saddr {}", mac(POD_MAC), mac(HOST_MAC));
    pod.nft(&format!(
        "table netdev watch {{
           counter delivered {{}}
           counter other {{}}
           chain pod {{
             type filter hook ingress device \"eth0\" priority 0;
             {macs} ip ttl 63 udp dport 53 counter name delivered accept
             {macs} ip6 hoplimit 63 udp dport 53 counter name delivered accept
             meta l4proto {{ tcp, udp }} counter name other
           }}
         }}"
    ))?;
    for host in [node, neighbour, pod] {
        wait::until("links are up", || {
            let links = host.run(&["ip", "-br", "link"])?;
            ensure!(!links.contains("DOWN"), "{links}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A frame as VXLAN carries it (RFC 7348, 5).
fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(frame);
    bytes
}

fn datagram(source: &str, destination: &str, length: usize) -> Frame {
    Frame::ip(source, destination, UDP, &udp(40_000, 53, length))
}

impl Overlaid {
    fn back(&self, to: &str) -> Frame {
        datagram(self.remote, to, 20)
    }

    fn out(&self, length: usize) -> Frame {
        datagram(self.pod, self.remote, length)
    }
}

/// A frame with its tag, and what becomes of it.
struct Row {
    name: &'static str,
    frame: Vec<u8>,
    expect: Expect,
}

fn row(name: &'static str, frame: Frame, tag: Tag, kind: FrameKind, expect: Expect) -> Row {
    Row {
        name,
        frame: frame.macs(tag.0, kind.to_mac().0).bytes,
        expect,
    }
}

/// What a node of the cluster sends, and what others make up, with packets of one family.
fn rows(of: &Overlaid) -> Vec<Row> {
    use DropReason::{
        Malformed, OverlayForged, OverlayMalformed, OverlayUnknownGateway, PodUnknown, TooBig,
        TtlExceeded,
    };
    use FrameKind::{Back, Out};
    let gateway = Out(GATEWAY);
    let unknown = Out(GatewayId(0x0708_090b));
    let v4 = of.pod == OVERLAID[0].pod;
    let mut tagged = of.out(20).bytes;
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    let mut rows = vec![
        row(
            "the first key",
            of.back(of.pod),
            FIRST,
            Back(GATEWAY),
            Deliver,
        ),
        row(
            "the second key",
            of.back(of.pod),
            SECOND,
            Back(GATEWAY),
            Deliver,
        ),
        row(
            "no tag",
            of.back(of.pod),
            Tag::ZERO,
            Back(GATEWAY),
            Drop(OverlayForged),
        ),
        row(
            "a wrong tag",
            of.back(of.pod),
            WRONG,
            Back(GATEWAY),
            Drop(OverlayForged),
        ),
        row(
            "the other direction's tag",
            of.out(20),
            TO_NEIGHBOUR,
            gateway,
            Drop(OverlayForged),
        ),
        row(
            "a wrong tag for a gateway",
            of.out(20),
            WRONG,
            gateway,
            Drop(OverlayForged),
        ),
        row(
            "an unknown pod",
            of.back(of.unknown),
            FIRST,
            Back(GATEWAY),
            Drop(PodUnknown),
        ),
        row(
            "a pod that leaves",
            of.back(of.leaving),
            FIRST,
            Back(GATEWAY),
            Drop(PodUnknown),
        ),
        row(
            "a pod without MACs",
            of.back(of.silent),
            FIRST,
            Back(GATEWAY),
            Drop(PodUnknown),
        ),
        row(
            "back, and no more hops",
            of.back(of.pod).ttl(1),
            FIRST,
            Back(GATEWAY),
            Drop(TtlExceeded),
        ),
        row(
            "an unknown gateway",
            of.out(20),
            FIRST,
            unknown,
            Drop(OverlayUnknownGateway),
        ),
        row(
            "out, and no more hops",
            of.out(20).ttl(1),
            FIRST,
            gateway,
            Refuse(TtlExceeded),
        ),
        row(
            "ARP",
            Frame::raw(0x0806, &[0; 28]),
            FIRST,
            gateway,
            Drop(OverlayMalformed),
        ),
        row(
            "not IP",
            Frame::raw(0x88cc, &[0; 28]),
            FIRST,
            Back(GATEWAY),
            Drop(OverlayMalformed),
        ),
        row(
            "a VLAN tag",
            Frame { bytes: tagged },
            FIRST,
            gateway,
            Drop(OverlayMalformed),
        ),
        row(
            "a probe with a wrong tag",
            Frame::raw(probe::ETHERTYPE, &[0; 46]),
            WRONG,
            FrameKind::Probe(GATEWAY),
            Drop(OverlayForged),
        ),
        row(
            "the answer to a probe, with a wrong tag",
            Frame::raw(probe::ETHERTYPE, &[0; 46]),
            WRONG,
            FrameKind::ProbeReply(GATEWAY),
            Drop(OverlayForged),
        ),
        row(
            "cut short",
            cut(of.out(20), 10),
            FIRST,
            gateway,
            Drop(Malformed),
        ),
    ];
    if v4 {
        rows.push(row("too big", of.out(1300), FIRST, gateway, Refuse(TooBig)));
    }
    for (name, kind) in [
        ("an unknown kind", [0x02, 5, 0, 0, 0, 0]),
        ("a MAC that is not ours", [0x00, 1, 7, 8, 9, 10]),
    ] {
        rows.push(Row {
            name,
            frame: of.out(20).macs(FIRST.0, kind).bytes,
            expect: Drop(OverlayMalformed),
        });
    }
    rows
}

/// The frame without its last bytes.
fn cut(mut frame: Frame, bytes: usize) -> Frame {
    frame.bytes.truncate(frame.bytes.len() - bytes);
    frame
}

/// A probe is answered by the node that has the gateway, as long as its own probes find nothing wrong.
#[test]
fn probes_are_answered_for_gateways_that_are_in_order() -> Result<()> {
    let mut field = Field::new()?;
    field.attach(Program::FromOverlay, DEVICE)?;
    let [underlay, _] = &UNDERLAYS;
    let listening = field.neighbour.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(address(underlay.neighbour), PORT))?;
        Ok(socket)
    })?;
    listening.set_read_timeout(Some(Duration::from_secs(5)))?;
    let before = field.counts()?;
    let ask = |gateway: GatewayId, cookie: u8| {
        Frame::raw(probe::ETHERTYPE, &[cookie; 46])
            .macs(FIRST.0, FrameKind::Probe(gateway).to_mac().0)
            .bytes
    };
    let unknown = GatewayId(GATEWAY.0 + 1);
    let mut down = Egress {
        flags: EGRESS_DOWN,
        gateway: unknown,
        address: Addr::from(address("203.0.113.11")),
        ..Egress::default()
    };
    for (what, gateway, cookie, answered) in [
        ("of another node's", unknown, 1, false),
        ("of this node's", GATEWAY, 2, true),
        ("of this node's that is down", unknown, 3, false),
        ("of this node's that is up again", unknown, 4, true),
    ] {
        if cookie >= 3 {
            field.element(maps::EGRESS, 7, down)?;
            field.entry(maps::GATEWAYS, GatewayKey::new(unknown, Family::V4), 7)?;
            down.flags = 0;
        }
        field.send(
            underlay.neighbour,
            underlay.node,
            VNI,
            &ask(gateway, cookie),
        )?;
        // Answers come in order: another one would be of a probe that should have none.
        let sent = if answered { cookie } else { 0 };
        if !answered {
            field.send(underlay.neighbour, underlay.node, VNI, &ask(GATEWAY, sent))?;
        }
        let mut frame = [0; 128];
        let length = listening.recv(&mut frame).with_context(|| what)?;
        let of = if answered { gateway } else { GATEWAY };
        let reply = Frame::raw(probe::ETHERTYPE, &[sent; 46])
            .macs(TO_NEIGHBOUR.0, FrameKind::ProbeReply(of).to_mac().0);
        ensure!(frame[..length] == *vxlan(VNI, &reply.bytes), "{what}");
    }
    field.expect(&before, &[])
}

#[test]
fn only_what_nodes_send_is_taken_and_nothing_reaches_the_kernel() -> Result<()> {
    let mut field = Field::new()?;
    // Without the program the kernel gets what arrives: the counter would tell.
    let [underlay, _] = &UNDERLAYS;
    let before = field.counts()?;
    let frame = OVERLAID[0].out(20).macs([0xff; 6], HOST_MAC).bytes;
    field.send(underlay.stranger, underlay.node, VNI, &frame)?;
    field.expect(&before, &["the kernel: seen"])?;

    field.attach(Program::FromOverlay, DEVICE)?;
    for underlay in &UNDERLAYS {
        for overlaid in &OVERLAID {
            for row in rows(overlaid) {
                let context = format!("{} over {}: {}", overlaid.pod, underlay.name, row.name);
                let before = field.counts()?;
                field.send(underlay.neighbour, underlay.node, VNI, &row.frame)?;
                let wanted = match row.expect {
                    Deliver => "the pod: delivered".to_owned(),
                    drop @ (Drop(_) | Refuse(_)) => format!("{drop:?}"),
                };
                field.expect(&before, &[&wanted]).context(context)?;
            }
            let right = overlaid
                .back(overlaid.pod)
                .macs(FIRST.0, FrameKind::Back(GATEWAY).to_mac().0)
                .bytes;
            for (name, from, vni, reason) in [
                (
                    "no node",
                    underlay.stranger,
                    VNI,
                    DropReason::OverlayUnknownNode,
                ),
                (
                    "another network",
                    underlay.neighbour,
                    VNI + 1,
                    DropReason::OverlayMalformed,
                ),
                (
                    "the network 0",
                    underlay.neighbour,
                    0,
                    DropReason::OverlayMalformed,
                ),
            ] {
                let context = format!("{} over {}: {name}", overlaid.pod, underlay.name);
                let before = field.counts()?;
                field.send(from, underlay.node, vni, &right)?;
                let wanted = format!("{:?}", Drop(reason));
                field.expect(&before, &[&wanted]).context(context)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_pods_packet_arrives_at_the_node_of_its_gateway() -> Result<()> {
    let mut field = Field::new()?;
    field.attach(Program::FromPod, "pod0")?;
    let overlay = field.ifindex(DEVICE)?;
    let pod = Wire::open(&field.pod, "eth0")?;
    for underlay in &UNDERLAYS {
        let node = Addr::from(address(underlay.neighbour));
        let member = Member::overlay(9, GATEWAY, overlay, 1400, node, TO_NEIGHBOUR);
        let maps = &mut field.datapath.maps;
        maps.write_member(1, &member)?;
        maps.write_verdicts(16, &[Verdict::new(POLICY, Decision::Member(1))])?;
        maps.turn_pod(SLOT, PodState::new(0, 16))?;
        for overlaid in &OVERLAID {
            let context = || format!("{} over {}", overlaid.pod, underlay.name);
            let (large, fitting) = if overlaid.pod.contains(':') {
                (1440, 1340)
            } else {
                (1460, 1360)
            };
            let tag = TO_NEIGHBOUR.0;
            let kind = FrameKind::Out(GATEWAY).to_mac().0;
            let sent = syn(overlaid, [POD_MAC, HOST_MAC], 64, large)?;
            let wanted = vxlan(VNI, &syn(overlaid, [kind, tag], 63, fitting)?);
            let received = field.neighbour.enter(|| {
                let socket = UdpSocket::bind(SocketAddr::new(address(underlay.neighbour), PORT))?;
                socket.set_read_timeout(Some(wait::PATIENCE))?;
                pod.send(&sent)?;
                let mut bytes = vec![0; 2048];
                let (length, from) = socket.recv_from(&mut bytes)?;
                ensure!(from.ip() == address(underlay.node), "it came from {from}");
                bytes.truncate(length);
                Ok(bytes)
            });
            let received = received.with_context(context)?;
            ensure!(
                received == wanted,
                "{}: {received:02x?}, wanted {wanted:02x?}",
                context()
            );
        }
    }
    Ok(())
}

/// What its own side of the veth would drop, and what has no hop left: the far end is told, by the gateway.
#[test]
fn a_reply_that_a_pod_does_not_take_is_answered_through_its_gateway() -> Result<()> {
    const ROOM: u32 = 1300;
    let mut field = Field::new()?;
    let facts = PodFacts {
        mtu: ROOM,
        ..PodFacts::default()
    };
    field.element(maps::POD_FACTS, SLOT, facts)?;
    field.attach(Program::FromOverlay, DEVICE)?;
    let underlay = &UNDERLAYS[0];
    for overlaid in &OVERLAID {
        let is_v4 = !overlaid.pod.contains(':');
        let header = if is_v4 { 20 } else { 40 };
        let reply = |size: usize| {
            let frame = datagram(overlaid.remote, overlaid.pod, size - header - 8);
            let frame = if is_v4 {
                frame.set(L3 + 6, &[0x40, 0])
            } else {
                frame
            };
            frame.macs(FIRST.0, FrameKind::Back(GATEWAY).to_mac().0)
        };
        let fits = reply(1300);
        let before = field.counts()?;
        field.send(underlay.neighbour, underlay.node, VNI, &fits.bytes)?;
        field.expect(&before, &["the pod: delivered"])?;
        for (name, frame, reason, answer) in [
            ("too big", reply(1301), DropReason::TooBig, Answer::TooBig),
            (
                "too old",
                reply(100).ttl(1),
                DropReason::TtlExceeded,
                Answer::TimeExceeded,
            ),
        ] {
            let context = || format!("{}: {name}", overlaid.pod);
            let told = answered(
                &Input::to_pod(&frame.bytes),
                answer,
                ROOM,
                &Settings::default(),
            );
            // From the pod, for the gateway that the reply came from.
            let mut told = Frame { bytes: told };
            told = told.macs(TO_NEIGHBOUR.0, FrameKind::Out(GATEWAY).to_mac().0);
            let before = field.counts()?;
            let received = field.neighbour.enter(|| {
                let socket = UdpSocket::bind(SocketAddr::new(address(underlay.neighbour), PORT))?;
                socket.set_read_timeout(Some(wait::PATIENCE))?;
                let to = SocketAddr::new(address(underlay.node), PORT);
                socket.send_to(&vxlan(VNI, &frame.bytes), to)?;
                let mut bytes = vec![0; 2048];
                let length = socket.recv(&mut bytes)?;
                bytes.truncate(length);
                Ok(bytes)
            });
            let received = received.with_context(context)?;
            assert_eq!(
                hex(&received),
                hex(&vxlan(VNI, &told.bytes)),
                "{}",
                context()
            );
            let wanted = format!("{:?}", Drop(reason));
            field.expect(&before, &[&wanted]).with_context(context)?;
        }
    }
    Ok(())
}

/// A frame with a SYN of the pod's that tells this segment size; `macs` are source and destination.
fn syn(of: &Overlaid, macs: [[u8; 6]; 2], ttl: u8, mss: u16) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(macs[0], macs[1]);
    let ip = match (address(of.pod), address(of.remote)) {
        (IpAddr::V4(pod), IpAddr::V4(to)) => ethernet.ipv4(pod.octets(), to.octets(), ttl),
        (IpAddr::V6(pod), IpAddr::V6(to)) => ethernet.ipv6(pod.octets(), to.octets(), ttl),
        mixed => bail!("{mixed:?} are not of one family"),
    };
    let mut bytes = Vec::new();
    ip.tcp(40_000, 443, 1, 65_535)
        .syn()
        .options(&[TcpOptionElement::MaximumSegmentSize(mss)])?
        .write(&mut bytes, &[])?;
    Ok(bytes)
}
