//! Packets as the kernel has them in life: shared with whoever listens, and in pieces where they are large.
//!
//! Of a frame of more than a page that a packet socket sends, the first piece has the Ethernet header alone
//! (`packet_snd`, `packet_alloc_skb`), so every other header is somewhere else. Whoever listens is given the same memory as
//! the programs, which must not write there.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails where it is, with the frame at hand"
)]

use egress_tests::{
    client::Wire,
    ear::Ear,
    packets::{
        Counts, Slot,
        build::{self, Frame, GATEWAY_MAC, HOST_MAC, L3, flag, hex, proto},
        nat::{self, datagram, delivered, forwarded, with_sum},
        places::{V4, V6},
        seed::{CLUSTER, STEERED, gateway, resolved, rule, via},
        with_lab,
    },
};
use egress_userspace::{kernel::Program, resolve::Fate};

/// What all interfaces and gateways take, in bytes of IP.
const MTU: u32 = 9000;
/// Bytes of payload: of a frame in one piece, and of one in pieces.
const LENGTHS: [u16; 2] = [20, 6000];
/// The next hops.
const ROUTERS: [&str; 2] = ["192.168.9.1", "fd09::1"];

/// The wires of a node, and who listens at them: at the pod's end and the node's end of the pod's wire, at the node's end
/// and the far end of the uplink's.
struct Wires {
    pod: Wire,
    far: Wire,
    ears: [Ear; 4],
}

impl Wires {
    /// All programs see what arrives from now on.
    fn new(mut ip: impl FnMut(&str), pod: Wire, far: Wire) -> Self {
        let names = ["other", "pod", "uplink", "far"];
        for name in names {
            ip(&format!("link set {name} mtu {MTU}"));
        }
        let mac = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
        for router in ROUTERS {
            ip(&format!(
                "neigh replace {router} lladdr {mac} dev uplink nud permanent"
            ));
        }
        Self {
            pod,
            far,
            ears: names.map(|name| Ear::open_here(name).unwrap()),
        }
    }

    /// Sends a frame from the pod, which has to leave as another one.
    fn out(&self, what: &str, sent: &Frame, left: &Frame) {
        let left = left.clone().macs(GATEWAY_MAC, HOST_MAC);
        self.pod.send(&sent.bytes).unwrap();
        let [pod, node, uplink, far] = &self.ears;
        compare(what, [pod, node], sent);
        compare(what, [uplink, far], &left);
    }

    /// Sends a frame from the far end, which the pod has to get as another one.
    fn back(&self, what: &str, sent: &Frame, home: &Frame) {
        let sent = sent.clone().macs(HOST_MAC, GATEWAY_MAC);
        self.far.send(&sent.bytes).unwrap();
        let [pod, node, uplink, far] = &self.ears;
        compare(what, [far, uplink], &sent);
        compare(what, [node, pod], home);
    }
}

/// The next frame of this length and kind that each hears has to be this one.
fn compare(what: &str, ears: [&Ear; 2], frame: &Frame) {
    let kind = |bytes: &[u8]| {
        let protocol = if bytes[12] == 8 { L3 + 9 } else { L3 + 6 };
        (bytes.len(), [bytes[12], bytes[13], bytes[protocol]])
    };
    let wanted = kind(&frame.bytes);
    for ear in ears {
        let heard = ear
            .hear(|bytes| kind(bytes) == wanted)
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_eq!(hex(&heard), hex(&frame.bytes), "{what}: {ear:?}");
    }
}

/// Makes a frame of a protocol with these flags, where it has any, and so many bytes of payload.
type Made = fn(from: (&str, u16), to: (&str, u16), flags: u8, length: usize) -> Frame;

/// Both protocols.
const KINDS: [(&str, Made); 2] = [
    ("UDP", |from, to, _, length| datagram(from, to, length)),
    ("TCP", |from, to, flags, length| {
        let payload = build::segment(from.1, to.1, flags, 7, length);
        with_sum(Frame::ip(from.0, to.0, proto::TCP, &payload), proto::TCP)
    }),
];

/// A connection is opened, then it is known, then it is in use.
const FLAGS: [u8; 3] = [flag::SYN, flag::ACK, flag::ACK];

#[test]
fn what_leaves_as_it_is() {
    with_lab(|lab| {
        let rules = [rule("", via(vec![gateway("red", 1, MTU, &ROUTERS)]))];
        let fate = Fate::Rules(rules.into());
        lab.bring_to(&resolved(CLUSTER, [("web", 5, fate, STEERED)]));
        let pod = lab.connect_pod().unwrap();
        let far = lab.connect_uplink(Program::FromGateway).unwrap();
        let wires = Wires::new(|words| lab.ip(words).unwrap(), pod, far);
        let red = Slot::Member(STEERED.into(), "default".into(), "red".into());
        lab.moved();
        for (f, (kind, frame), length) in each([&V4, &V6]) {
            let what = format!("{}, {kind}, {length} bytes", f.name);
            // Of a connection of its own.
            let (web, remote) = ((f.web, 40_000 + length), (f.red.0, 443));
            let mut bytes = 0;
            for flags in FLAGS {
                let out = frame(web, remote, flags, length.into());
                wires.out(&what, &out, &forwarded(&out));
                bytes += out.bytes.len() - L3;
            }
            let count = (3, bytes.try_into().unwrap());
            assert_eq!(lab.moved(), Counts::from([(red.clone(), count)]), "{what}");
            let back = frame(remote, web, flag::SYN | flag::ACK, length.into());
            wires.back(&what, &back, &delivered(&back));
        }
        assert_eq!(lab.replies().len(), 8, "recorded connections");
    });
}

#[test]
fn what_is_translated() {
    nat::in_both(|node, p| {
        node.widen(MTU);
        let (pod, far) = (node.connect_pod(), node.connect_uplink());
        node.forward();
        for (network, router) in ["203.0.113.0/24", "2001:db8:a::/48"].iter().zip(ROUTERS) {
            node.ip(&format!(
                "route replace {network} via {router} dev uplink onlink"
            ));
        }
        let wires = Wires::new(|words| node.ip(words), pod, far);
        for (p, (kind, frame), length) in each([p]) {
            let what = format!("{}, {kind}, {length} bytes", p.name);
            let port = 40_000 + length;
            let (own, egress, remote) = ((p.pod, port), (p.alpha, port), (p.remote, 443));
            let from = |at, flags| frame(at, remote, flags, length.into());
            let to = |at| frame(remote, at, flag::SYN | flag::ACK, length.into());
            for flags in FLAGS {
                wires.out(&what, &from(own, flags), &forwarded(&from(egress, flags)));
            }
            wires.back(&what, &to(egress), &delivered(&to(own)));
        }
        assert_eq!(node.states().len(), 4);
    });
}

/// Each of these with each protocol and length.
fn each<T, const N: usize>(of: [&T; N]) -> impl Iterator<Item = (&T, (&'static str, Made), u16)> {
    of.into_iter().flat_map(|one| {
        KINDS
            .into_iter()
            .flat_map(move |kind| LENGTHS.map(|length| (one, kind, length)))
    })
}
