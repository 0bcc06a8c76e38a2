//! Connections that this node translates: two entries each, one for either direction.
//!
//! The entry of replies is made first, with `BPF_NOEXIST`: it is what makes a port taken. Endpoint-dependent
//! (RFC 4787, 4.1): one egress address carries a port once for each remote address and port.

use crate::{
    addr::{Addr, WireU16},
    gateway::GatewayId,
    map_type,
    table::{bucket, folded, ports, product},
};

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// Where a connection stands; each state has a timeout of its own, named as Linux conntrack names them.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatState {
    /// TCP: the pod has sent a packet, and nothing came back.
    TcpSynSent = 0,
    /// TCP: a SYN came back.
    TcpSynRecv = 1,
    /// TCP: the pod has acknowledged it.
    TcpEstablished = 2,
    /// TCP: the pod has sent a FIN.
    TcpFinWait = 3,
    /// TCP: the far end has sent a FIN.
    TcpCloseWait = 4,
    /// TCP: both have.
    TcpLastAck = 5,
    /// TCP: both have, and the last one is acknowledged.
    TcpTimeWait = 6,
    /// TCP: one of them has sent a RST.
    TcpClose = 7,
    /// UDP: nothing came back yet.
    Udp = 8,
    /// UDP: answered.
    UdpStream = 9,
    /// ICMP or ICMPv6 echo.
    Icmp = 10,
    /// Any other protocol.
    Generic = 11,
}

impl NatState {
    /// How many states there are.
    pub const COUNT: usize = 12;

    /// Every state, in order of number, with its name and its timeout in seconds unless a flag changes it.
    ///
    /// The defaults are those of `nf_conntrack` (Linux, `Documentation/networking/nf_conntrack-sysctl.rst`).
    pub const ALL: [(Self, &'static str, u32); Self::COUNT] = [
        (Self::TcpSynSent, "tcp-syn-sent", 120),
        (Self::TcpSynRecv, "tcp-syn-recv", 60),
        (Self::TcpEstablished, "tcp-established", 432_000),
        (Self::TcpFinWait, "tcp-fin-wait", 120),
        (Self::TcpCloseWait, "tcp-close-wait", 60),
        (Self::TcpLastAck, "tcp-last-ack", 30),
        (Self::TcpTimeWait, "tcp-time-wait", 120),
        (Self::TcpClose, "tcp-close", 10),
        (Self::Udp, "udp", 30),
        (Self::UdpStream, "udp-stream", 120),
        (Self::Icmp, "icmp", 30),
        (Self::Generic, "generic", 600),
    ];

    /// How old the time of an entry may get before a packet writes it again, in nanoseconds, where so many seconds of silence
    /// end the connection: a thirty-second of them, between one second and eight.
    ///
    /// A packet that writes it looks up both halves, which are in no near cache where there are many connections.
    #[inline(always)]
    pub const fn refresh(timeout: u32) -> u64 {
        let part = timeout as u64 * (SECOND / 32);
        if part < SECOND {
            SECOND
        } else if part > 8 * SECOND {
            8 * SECOND
        } else {
            part
        }
    }

    /// Nanoseconds from the times of both entries on after which a connection has ended that may be silent for so many seconds:
    /// they may be older than its last packet, and it is to have all of its time. But for a second, which it never had.
    #[inline(always)]
    pub const fn life(timeout: u32) -> u64 {
        timeout as u64 * SECOND + (Self::refresh(timeout) - SECOND)
    }

    /// The state with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::TcpSynSent),
            1 => Some(Self::TcpSynRecv),
            2 => Some(Self::TcpEstablished),
            3 => Some(Self::TcpFinWait),
            4 => Some(Self::TcpCloseWait),
            5 => Some(Self::TcpLastAck),
            6 => Some(Self::TcpTimeWait),
            7 => Some(Self::TcpClose),
            8 => Some(Self::Udp),
            9 => Some(Self::UdpStream),
            10 => Some(Self::Icmp),
            11 => Some(Self::Generic),
            _ => None,
        }
    }
}

const _: () = {
    let mut i = 0;
    while i < NatState::COUNT {
        assert!(NatState::ALL[i].0 as usize == i);
        i += 1;
    }
};

/// A connection as the pod's packets carry it: the key of `NAT_OUT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatOutKey {
    /// The pod.
    pub pod: Addr,
    /// The far end.
    pub remote: Addr,
    /// The pod's port, or the identifier of an ICMP echo; zero for protocols without either.
    pub pod_port: WireU16,
    /// The far end's port; zero for ICMP and protocols without ports.
    pub remote_port: WireU16,
    /// The gateway: a pod may reach one remote through two.
    pub gateway: GatewayId,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: [u8; 3],
}
map_type!(NatOutKey, size = 44, align = 4);

/// The array of what packets became a moment ago, which is pinned nowhere: who takes a connection out of `NAT_OUT` by hand
/// clears its lines.
pub const NAT_RECENT: &str = "NAT_RECENT";
/// Lines of `NAT_RECENT`: a connection whose two lines others have is looked up in `NAT_OUT`. 16 MiB.
pub const RECENT_LINES: u32 = 262_144;
/// Words of a connection's key but for its protocol, two at a time.
pub type RecentKey = [(u32, u32); 5];

impl NatOutKey {
    /// What the connection's lines in `NAT_RECENT` are found by.
    #[inline(always)]
    pub const fn recent(&self) -> RecentKey {
        let (pod, remote) = (self.pod.words(), self.remote.words());
        let ports = ports(self.pod_port, self.remote_port);
        [
            (pod[0], pod[1]),
            (pod[2], pod[3]),
            (remote[0], remote[1]),
            (remote[2], remote[3]),
            (ports, self.gateway.0),
        ]
    }
}

/// A sum of products, none of which waits for another.
#[inline(always)]
pub const fn recent_sum(key: &RecentKey) -> u64 {
    let mut sum = 0_u64;
    let mut pair = 0;
    while pair < key.len() {
        sum = sum.wrapping_add(product(pair, key[pair].0, key[pair].1));
        pair += 1;
    }
    sum
}

/// The lines of a key with that sum, the first of which is where it is looked for first: neighbours.
#[inline(always)]
pub const fn recent_lines(sum: u64) -> [u32; 2] {
    let first = bucket(folded(sum), RECENT_LINES);
    [first, first ^ 1]
}

/// What the pod's packets become: the value of `NAT_OUT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatOut {
    /// When a packet went out last, in nanoseconds of `CLOCK_MONOTONIC`, and up to [`NatState::refresh`] less.
    pub last_seen: u64,
    /// The egress address when the connection started.
    pub egress: Addr,
    /// The node that the pod is on: an index of `NODE_STATE`.
    pub origin: u32,
    /// The port, or identifier, that the outside sees.
    pub egress_port: WireU16,
    /// A [`NatState`], the same in both entries.
    pub state: u8,
    /// Always zero.
    pub pad: u8,
}
map_type!(NatOut, size = 32, align = 8);

/// A connection as its replies carry it: the key of `NAT_BACK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatBackKey {
    /// The egress address.
    pub egress: Addr,
    /// The far end.
    pub remote: Addr,
    /// The port, or identifier, that the outside sees.
    pub egress_port: WireU16,
    /// The far end's port; zero for ICMP and protocols without ports.
    pub remote_port: WireU16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: [u8; 3],
}
map_type!(NatBackKey, size = 40, align = 4);

/// Where replies go: the value of `NAT_BACK`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatBack {
    /// When a packet came back last, in nanoseconds of `CLOCK_MONOTONIC`, and up to [`NatState::refresh`] less.
    pub last_seen: u64,
    /// The pod.
    pub pod: Addr,
    /// The node that the pod is on: an index of `NODE_STATE`.
    pub origin: u32,
    /// The gateway.
    pub gateway: GatewayId,
    /// The pod's port, or the identifier of its ICMP echo.
    pub pod_port: WireU16,
    /// A [`NatState`], the same in both entries.
    pub state: u8,
    /// Always zero.
    pub pad: [u8; 5],
}
map_type!(NatBack, size = 40, align = 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_rest_for_less_than_connections_may() {
        // Seconds of silence, and thousandths for which a time rests.
        for (timeout, rests) in [
            (0, 1000),
            (1, 1000),
            (30, 1000),
            (32, 1000),
            (48, 1500),
            (120, 3750),
            (256, 8000),
            (432_000, 8000),
            (u32::MAX, 8000),
        ] {
            let refresh = NatState::refresh(timeout);
            assert_eq!(refresh, rests * SECOND / 1000, "{timeout}");
            // A packet that wrote no time came so much later at most.
            let silent = NatState::life(timeout) + SECOND - refresh;
            assert_eq!(silent, u64::from(timeout) * SECOND, "{timeout}");
        }
    }
}
