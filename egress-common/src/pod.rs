//! What is known of a steered pod beside its policy.

use crate::{
    addr::{Addr, Mac, WireU16},
    flow::Flow,
    gateway::GatewayId,
    keys::ReplyKey,
    map_type,
    maps::capacity,
    table,
    verdict::PodState,
};

/// Where a steered address is: the value of `POD_PLACES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPlace {
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// Its slot, as in `PODS`.
    pub slot: u32,
}
map_type!(PodPlace, size = 8, align = 4);

/// Pods whose keys have one hash: an element of `POD_INDEX`, one cache line.
///
/// What `PODS` says, where there is room for it: a look-up there costs a packet more than all that it is told.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLine(pub [PodEntry; PodLine::ENTRIES]);
map_type!(PodLine, size = 64, align = 8);

impl PodLine {
    /// Pods of a line.
    pub const ENTRIES: usize = 2;
}

/// A pod of a [`PodLine`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodEntry {
    /// The address, as it lies in memory.
    pub addr: [u64; 2],
    /// The interface, and the slot above it; zero is nobody. What is written last, and cleared first.
    pub pod: u64,
    /// Its row and rule base, as in `POD_STATE`.
    pub state: PodState,
}
map_type!(PodEntry, size = 32, align = 8);

impl PodEntry {
    /// The word of a pod.
    #[inline(always)]
    pub const fn word(ifindex: u32, slot: u32) -> u64 {
        (slot as u64) << 32 | ifindex as u64
    }

    /// The interface in such a word.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is asked for"
    )]
    pub const fn ifindex(word: u64) -> u32 {
        word as u32
    }

    /// The slot in such a word.
    #[inline(always)]
    pub const fn slot(word: u64) -> u32 {
        (word >> 32) as u32
    }
}

/// An address as two words, as it lies in memory.
#[inline(always)]
pub const fn addr_to_words(addr: &Addr) -> [u64; 2] {
    // SAFETY: both are 16 bytes of plain numbers.
    unsafe { core::mem::transmute::<[u8; 16], [u64; 2]>(addr.0) }
}

/// The line of `POD_INDEX` in which a pod stands, if it does.
///
/// Neighbouring addresses share lines and pages, since those of a node's pods are neighbours.
#[inline(always)]
pub const fn pod_line(addr: [u64; 2]) -> u32 {
    // The upper bits of a product are those that all bits of its factors have a part in.
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let [_, _, _, _, a, b, c, d] = addr[1].to_ne_bytes();
    let last = u32::from_be_bytes([a, b, c, d]);
    let [a, b, c, d, ..] = addr[1].to_ne_bytes();
    let before = addr[0] ^ u32::from_ne_bytes([a, b, c, d]) as u64;
    let network = (before.wrapping_mul(ODD) >> 32) as u32;
    #[expect(clippy::cast_possible_truncation, reason = "two of them")]
    let entries = PodLine::ENTRIES as u32;
    (last / entries).wrapping_add(network) % capacity::POD_INDEX
}
const _: () = assert!(capacity::POD_INDEX.is_power_of_two());

/// What the datapath learns of a pod: an element of `POD_NOTES`, by slot. Zero until it is learned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodNote {
    /// The MAC that the pod sends from, in the lower six bytes in memory.
    pub pod_mac: u64,
    /// The MAC that the pod sends to, likewise.
    pub host_mac: u64,
    /// Whether a connection came in to the pod, ever.
    pub inbound: u64,
    /// Always zero.
    pub pad: u64,
}
map_type!(PodNote, size = 32, align = 8);

/// A MAC in a word that is read and written at once.
#[inline(always)]
pub const fn mac_to_word(mac: Mac) -> u64 {
    let m = mac.0;
    u64::from_ne_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0])
}

/// The MAC in such a word.
#[inline(always)]
pub const fn mac_from_word(word: u64) -> Mac {
    let m = word.to_ne_bytes();
    Mac([m[0], m[1], m[2], m[3], m[4], m[5]])
}

/// What userspace says of a pod beside its policy: an element of `POD_FACTS`, by slot.
///
/// Userspace writes it before it writes the pod into `PODS`. The facts of a live pod change in place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodFacts {
    /// Largest IP packet in bytes that its interface takes; zero is not known.
    pub mtu: u32,
    /// UDP ports on which connections may come in to it.
    pub udp: UdpPorts,
}
map_type!(PodFacts, size = 36, align = 4);

/// UDP ports on which connections may come in to a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpPorts {
    /// How many there are.
    pub count: u16,
    /// The ports; what follows `count` is zero.
    pub ports: [WireU16; UdpPorts::MAX],
}
map_type!(UdpPorts, size = 32, align = 2);

impl UdpPorts {
    /// Ports that a pod can name.
    pub const MAX: usize = 15;
}

/// How many seconds a flow of UDP, or the attempt to open a TCP connection, lives on without a packet.
///
/// Longer than any stack waits before it repeats a SYN (Linux: `TCP_RTO_MAX`, 120 s), and than a NAT
/// should keep UDP at least (RFC 4787, 4.3: 2 minutes).
pub const FLOW_SECONDS: u32 = 180;

/// Flows that pods started themselves, of one bucket: an element of `OWN_FLOWS`, one cache line.
///
/// A bucket that is too small for a pod's flows says so instead of forgetting: one word then stands for all
/// flows of that pod there, for as long as any of them may live.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnFlows {
    /// [`OwnFlow::word`]s and [`OwnFlow::any`]s, each read and written at once; zero where there is none.
    pub flows: [u64; OwnFlows::FLOWS],
    /// When a flow had no place because as many pods had flows here, in seconds of `CLOCK_MONOTONIC`: then all
    /// flows count as a pod's own. Zero is never.
    pub crowded: u64,
}
map_type!(OwnFlows, size = 64, align = 8);

impl OwnFlows {
    /// Words of a bucket.
    pub const FLOWS: usize = 7;
}

/// A pod's own flow: which bucket it is in, and what tells it from others there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnFlow {
    /// Index into `OWN_FLOWS`.
    pub bucket: u32,
    /// The pod in the upper half, and the flow beside it; the lower three bytes are zero.
    print: u64,
}

/// The pod's 16 bits of a word, its flow's 24, and the second's 24.
const OF_POD: u64 = 0xffff << 48;
const OF_FLOW: u64 = 0x00ff_ffff << 24;
const OF_SECOND: u64 = 0x00ff_ffff;

impl OwnFlow {
    /// The flow whose replies have this key.
    #[inline(always)]
    pub fn new(key: &ReplyKey) -> Self {
        let flow = Flow {
            source: key.pod,
            destination: key.remote,
            source_port: key.pod_port,
            destination_port: key.remote_port,
            protocol: key.protocol,
        };
        let hash = flow.hash();
        let [a, b] = key.pod_port.0;
        let [c, d] = key.remote_port.0;
        let print = hash ^ u32::from_ne_bytes([a, b, c, d]);
        // Nothing but the word for all flows has no print.
        let print = (print as u64) << 24 & OF_FLOW | 1 << 24;
        Self {
            bucket: hash % capacity::OWN_FLOWS,
            print: (table::owner(&key.pod.words()) as u64) << 48 | print,
        }
    }

    /// What stands in the bucket for the flow when it was last used at `second`.
    #[inline(always)]
    pub const fn word(self, second: u32) -> u64 {
        self.print | second as u64 & OF_SECOND
    }

    /// What stands in the bucket for all flows of its pod that have no word of their own.
    #[inline(always)]
    pub const fn any(self, second: u32) -> u64 {
        self.print & OF_POD | second as u64 & OF_SECOND
    }

    /// Whether the word is this flow's.
    #[inline(always)]
    pub const fn is(self, word: u64) -> bool {
        word & !OF_SECOND == self.print
    }

    /// Whether the word is of the flow's pod.
    #[inline(always)]
    pub const fn is_of_pod(self, word: u64) -> bool {
        word != 0 && (word ^ self.print) & OF_POD == 0
    }

    /// Whether the word stands for all flows of the flow's pod.
    #[inline(always)]
    pub const fn is_any(self, word: u64) -> bool {
        word != 0 && word & !OF_SECOND == self.print & OF_POD
    }

    /// Whether what the word stands for, or `OwnFlows::crowded`, lives at `now`, in seconds.
    ///
    /// The second is one of 194 days.
    #[inline(always)]
    pub const fn is_alive(word: u64, now: u32) -> bool {
        word != 0 && (now as u64).wrapping_sub(word) & OF_SECOND < FLOW_SECONDS as u64
    }

    /// Whether two words are of flows of one pod.
    #[inline(always)]
    pub const fn are_of_one_pod(a: u64, b: u64) -> bool {
        (a ^ b) & OF_POD == 0
    }

    /// What stands for all flows of the word's pod that have no word of their own.
    #[inline(always)]
    pub const fn any_beside(word: u64, second: u32) -> u64 {
        word & OF_POD | second as u64 & OF_SECOND
    }
}

/// What later packets are told: the value of `FLOWS`, of a flow, and of `FRAGMENTS`, of a datagram.
///
/// The member that the flow uses, as long as its group allows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// The gateway.
    pub gateway: GatewayId,
    /// The number that it had in its group.
    pub number: u32,
}
map_type!(Choice, size = 8, align = 4);

impl Choice {
    /// No member at all: the datagram answers a connection that came in, and the kernel routes it.
    pub const PASSED: Self = Self {
        gateway: GatewayId(0),
        number: u32::MAX,
    };
}

/// Key of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The pod.
    pub source: Addr,
    /// The far end.
    pub destination: Addr,
    /// The pod's port, or the identifier of an ICMP echo.
    pub source_port: WireU16,
    /// The far end's port.
    pub destination_port: WireU16,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: [u8; 3],
}
map_type!(FlowKey, size = 44, align = 4);
