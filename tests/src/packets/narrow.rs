//! Pods whose only way is narrow: what does not fit is answered.

use egress_common::{Addr, DropReason, gateway::Settings};
use egress_userspace::resolve::{Fate, Resolved};

use super::{
    Expect::{self, Answered},
    Lab,
    build::{
        Frame, L3, address,
        proto::{ICMP, ICMPV6, UDP},
        udp,
    },
    seed::{STEERED, gateway, resolved, rule, via},
    with_lab,
};

/// What the way takes: small, so that packets which do not fit are soon cut at each length.
pub const MTU: u32 = 400;

/// A pod of each family, a far end, and the headers in front of a quoted packet.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The pod's address.
    pub pod: &'static str,
    /// The far end's.
    pub far: &'static str,
    /// ICMP's protocol number.
    pub icmp: u8,
    /// An echo request's type.
    pub ping: u8,
    /// Bytes of the IP header.
    pub header: usize,
    /// Bytes that are quoted at most.
    pub quoted: usize,
}

/// IPv4.
pub const V4: Family = Family {
    pod: "10.1.0.5",
    far: "192.0.2.7",
    icmp: ICMP,
    ping: 8,
    header: 20,
    quoted: 548,
};

/// IPv6.
pub const V6: Family = Family {
    pod: "fd00::5",
    far: "2001:db8:1::7",
    icmp: ICMPV6,
    ping: 128,
    header: 40,
    quoted: 1232,
};

/// Both families.
pub const BOTH: [&Family; 2] = [&V4, &V6];

/// Pods that send everything, multicast and broadcast too, through one gateway whose way takes [`MTU`].
#[must_use]
pub fn world() -> Resolved {
    let narrow = || via(vec![gateway("narrow", 1, MTU, &["192.168.9.4", "fd09::4"])]);
    let rules = || vec![rule("", narrow()), rule("fd10::/16", narrow())];
    let fate = || Fate::Rules(rules().into());
    resolved(
        &[],
        [("web", 5, fate(), STEERED), ("batch", 6, fate(), STEERED)],
    )
}

/// The node that speaks for itself, with an address of each family.
#[must_use]
pub fn node() -> Settings {
    Settings {
        node4: Addr::from(address("172.18.0.2")),
        node6: Addr::from(address("fd00:18::2")),
        ..Settings::default()
    }
}

/// Runs `test` in that world, on a node with addresses.
pub fn with_world(test: impl FnOnce(&mut Lab) + Send) {
    with_lab(|lab| {
        lab.bring_to(&world());
        lab.set_settings(node());
        test(lab);
    });
}

/// With "don't fragment", which IPv6 packets always are.
#[must_use]
pub fn whole(frame: Frame) -> Frame {
    if frame.bytes[12..14] == [8, 0] {
        frame.set(L3 + 6, &[0x40, 0])
    } else {
        frame
    }
}

/// A datagram of so many bytes from the IP header on.
#[must_use]
pub fn datagram(f: &Family, size: usize) -> Frame {
    whole(Frame::ip(
        f.pod,
        f.far,
        UDP,
        &udp(40_000, 53, size - f.header - 8),
    ))
}

/// Told that it lived too long, and dropped.
#[must_use]
pub fn too_old() -> Expect {
    Answered(STEERED, DropReason::TtlExceeded, 0)
}

/// Told what fits, and dropped.
#[must_use]
pub fn too_big() -> Expect {
    Answered(STEERED, DropReason::TooBig, MTU)
}
