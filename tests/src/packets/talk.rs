//! Flows between a pod and a far end, packet by packet.

use egress_common::{
    Addr, Mac, WireU16,
    keys::{ReplyKey, ReplyPath},
};

use super::{
    build::{
        Frame, HOST_MAC, POD_MAC, address, fragment6,
        proto::{FRAGMENT, TCP, UDP},
        segment, udp,
    },
    seed::{POD, UPLINK},
};

/// A flow between a pod and a far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Talk {
    /// The pod's address.
    pub pod: &'static str,
    /// Its port.
    pub pod_port: u16,
    /// The far end's address.
    pub remote: &'static str,
    /// Its port.
    pub remote_port: u16,
}

/// A flow of a pod's address and port, and a far end's.
#[must_use]
pub const fn talk(
    pod: &'static str,
    pod_port: u16,
    remote: &'static str,
    remote_port: u16,
) -> Talk {
    Talk {
        pod,
        pod_port,
        remote,
        remote_port,
    }
}

impl Talk {
    /// A segment from the far end.
    #[must_use]
    pub fn tcp_in(&self, flags: u8) -> Frame {
        let payload = segment(self.remote_port, self.pod_port, flags, 77, 0);
        Frame::ip(self.remote, self.pod, TCP, &payload)
    }

    /// A segment from the pod.
    #[must_use]
    pub fn tcp_out(&self, flags: u8) -> Frame {
        self.tcp_out_at(flags, 4711)
    }

    /// A segment from the pod with this sequence number.
    #[must_use]
    pub fn tcp_out_at(&self, flags: u8, sequence: u32) -> Frame {
        let payload = segment(self.pod_port, self.remote_port, flags, sequence, 0);
        Frame::ip(self.pod, self.remote, TCP, &payload)
    }

    /// A datagram from the far end.
    #[must_use]
    pub fn udp_in(&self) -> Frame {
        let payload = udp(self.remote_port, self.pod_port, 24);
        Frame::ip(self.remote, self.pod, UDP, &payload)
    }

    /// A datagram from the pod.
    #[must_use]
    pub fn udp_out(&self) -> Frame {
        let payload = udp(self.pod_port, self.remote_port, 24);
        Frame::ip(self.pod, self.remote, UDP, &payload)
    }

    /// What the flow is found by.
    #[must_use]
    pub fn key(&self, protocol: u8) -> ReplyKey {
        ReplyKey {
            remote: Addr::from(address(self.remote)),
            pod: Addr::from(address(self.pod)),
            remote_port: WireU16::new(self.remote_port),
            pod_port: WireU16::new(self.pod_port),
            protocol,
            pad: [0; 3],
        }
    }
}

/// As a fragment of datagram `id`: `frame` is whole, and `payload` what stands above IP in the fragment.
#[must_use]
pub fn fragment(from: &str, to: &str, id: u16, offset: u16, more: bool, payload: &[u8]) -> Frame {
    if address(from).is_ipv4() {
        Frame::ip(from, to, UDP, payload).fragment(id, offset, more)
    } else {
        let payload = fragment6(UDP, id.into(), offset, more, payload);
        Frame::ip(from, to, FRAGMENT, &payload)
    }
}

/// A datagram to the port of DNS.
#[must_use]
pub fn datagram(source: &str, destination: &str) -> Frame {
    Frame::ip(source, destination, UDP, &udp(40_000, 53, 20))
}

/// What is recorded of a flow that a pod begins through a gateway behind [`UPLINK`].
#[must_use]
pub fn record(
    pod: &'static str,
    remote: &'static str,
    protocol: u8,
    pod_port: u16,
    remote_port: u16,
) -> (ReplyKey, ReplyPath) {
    (
        talk(pod, pod_port, remote, remote_port).key(protocol),
        ReplyPath {
            ifindex: POD,
            pod_mac: Mac(POD_MAC),
            host_mac: Mac(HOST_MAC),
            via: UPLINK,
        },
    )
}
