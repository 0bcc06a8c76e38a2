//! A node with a real overlay device, a neighbour that sends frames, and a pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, PerCpuArray},
};
use egress_common::{
    Addr, DropReason, Family, Mac,
    counter::{Count, Direction, NO_POLICY, drop_index, gateway_index},
    gateway::{Egress, GatewayId, GatewayKey, Settings},
    keys::PodKey,
    maps,
    overlay::{NodeState, Tag},
    pod::{PodNote, PodPlace, mac_to_word},
};
use egress_userspace::kernel::{
    Capacities, CounterMaps, Datapath, Hook, LoadOptions, Paths, Program,
};

use crate::{
    Host,
    packets::build::{Frame, HOST_MAC, POD_MAC, address, proto::UDP, udp},
    wait,
    workspace::Workspace,
};

mod rows;

pub use self::rows::{Row, rows};

/// The overlay's device.
pub const DEVICE: &str = "egress.vxlan";
/// Its UDP port.
pub const PORT: u16 = 4790;
/// Its network identifier.
pub const VNI: u32 = 4097;
/// The gateway of the node.
pub const GATEWAY: GatewayId = GatewayId(0x0708_090a);
/// The MAC of the node where its neighbour is, and the neighbour's.
pub const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x20, 2];
/// See [`NODE_MAC`].
pub const NEIGHBOUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x20, 1];
/// Index of the gateway's counters.
const COUNTER: u32 = 3;
/// Largest packet that its uplink takes.
const UPLINK_MTU: u32 = 1280;
/// The neighbour's index.
const ORIGIN: u32 = 2;
/// The pod's slot.
pub const SLOT: u32 = 4;
/// The number of its policy.
pub const POLICY: u32 = 6;

/// A tag that is taken.
pub const FIRST: Tag = Tag([0x03, 1, 2, 3, 4, 5]);
/// The other one.
pub const SECOND: Tag = Tag([0x52, 6, 7, 8, 9, 10]);
/// The tag of what goes to the neighbour.
pub const TO_NEIGHBOUR: Tag = Tag([0xff, 11, 12, 13, 14, 15]);
/// A tag that is not taken.
pub const WRONG: Tag = Tag([0x03, 1, 2, 3, 4, 6]);

/// The underlay of one family: this node, its neighbour, and a host that is no node.
#[derive(Clone, Copy, Debug)]
pub struct Underlay {
    /// What it is called.
    pub name: &'static str,
    /// The node's address.
    pub node: &'static str,
    /// The neighbour's.
    pub neighbour: &'static str,
    /// That of the host that is no node.
    pub stranger: &'static str,
}

/// Both underlays.
pub const UNDERLAYS: [Underlay; 2] = [
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
#[derive(Clone, Copy, Debug)]
pub struct Overlaid {
    /// The pod.
    pub pod: &'static str,
    /// The far end.
    pub remote: &'static str,
    /// In neither map.
    pub unknown: &'static str,
    /// In `POD_PLACES` alone.
    pub leaving: &'static str,
    /// In both, but it never sent anything.
    pub silent: &'static str,
}

/// Packets of both families.
pub const OVERLAID: [Overlaid; 2] = [
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
pub enum Expect {
    /// Dropped, and counted for nobody.
    Drop(DropReason),
    /// Dropped, and counted for the gateway.
    Refuse(DropReason),
    /// It arrives at the pod.
    Deliver,
}
use Expect::{Drop, Refuse};

/// A node with the program on its overlay device, a neighbour that sends frames, and a pod.
pub struct Field {
    /// The node.
    pub node: Host,
    /// Its neighbour.
    pub neighbour: Host,
    /// Its pod.
    pub pod: Host,
    /// The programs and maps in the kernel.
    pub datapath: Datapath,
    counters: CounterMaps,
    // Last, so that what is pinned goes when everything else has gone.
    _workspace: Workspace,
}

impl Field {
    /// The hosts, and maps that know them; nothing is attached.
    pub fn new() -> Result<Self> {
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

    /// The index of an interface of the node.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        self.node
            .enter(|| Ok(nix::net::if_::if_nametoindex(interface)?))
    }

    /// Writes an element of an array.
    pub fn element<V: Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        let data = self.datapath.ebpf().map_mut(map).context("no such map")?;
        Array::try_from(data)?
            .set(index, value, 0)
            .with_context(|| format!("cannot write {map}[{index}]"))
    }

    /// Writes an entry of a hash.
    pub fn entry<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) -> Result<()> {
        let data = self.datapath.ebpf().map_mut(map).context("no such map")?;
        HashMap::try_from(data)?
            .insert(key, value, 0)
            .with_context(|| format!("cannot write to {map}"))
    }

    /// Attaches a program to an interface of the node.
    pub fn attach(&mut self, program: Program, interface: &str) -> Result<()> {
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
    pub fn counts(&mut self) -> Result<BTreeMap<String, u64>> {
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
    pub fn send(&self, from: &str, to: &str, vni: u32, frame: &[u8]) -> Result<()> {
        self.neighbour.enter(|| {
            let socket = UdpSocket::bind(SocketAddr::new(address(from), 0))?;
            let sent = socket.send_to(&vxlan(vni, frame), SocketAddr::new(address(to), PORT))?;
            ensure!(sent == frame.len() + 8, "only {sent} bytes were sent");
            Ok(())
        })
    }

    /// Waits until exactly what is wanted has been added to the counters.
    pub fn expect(&mut self, before: &BTreeMap<String, u64>, wanted: &[&str]) -> Result<()> {
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
    let mac = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    node.ip(&format!(
        "link set lo up
         link add eth0 address {} type veth peer name eth0 address {} netns {}
         link add pod0 type veth peer name eth0 netns {}
         link add {DEVICE} type vxlan external dstport {PORT} nolearning
         link set eth0 up
         link set pod0 up
         link set {DEVICE} up
         addr add {}/24 dev eth0
         addr add {}/64 dev eth0 nodad
         ",
        mac(NODE_MAC),
        mac(NEIGHBOUR_MAC),
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
#[must_use]
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(frame);
    bytes
}

/// A datagram to the port of DNS.
#[must_use]
pub fn datagram(source: &str, destination: &str, length: usize) -> Frame {
    Frame::ip(source, destination, UDP, &udp(40_000, 53, length))
}

impl Overlaid {
    /// A reply to an address.
    #[must_use]
    pub fn back(&self, to: &str) -> Frame {
        datagram(self.remote, to, 20)
    }

    /// What the pod sends.
    #[must_use]
    pub fn out(&self, length: usize) -> Frame {
        datagram(self.pod, self.remote, length)
    }
}
