//! A flood of datagrams in fragments, of whoever, takes no other pod's datagrams apart.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use egress_tests::packets::{
    Action, Input, Lab,
    build::{
        Frame, GATEWAY_MAC, HOST_MAC, L3, address, fragment6, icmp,
        proto::{FRAGMENT, UDP},
    },
    flood::Varied,
    nat::{
        self,
        Fate::{Home, Out},
        Places, datagram, delivered, forwarded, in_both, on_uplink,
    },
    seed::{UPLINK, gateway, resolved, rule, via},
    with_lab,
};
use egress_userspace::{kernel::Program, resolve};

/// Datagrams of a flood: as many as there are identifications of IPv4.
const FLOOD: u32 = 1 << 16;
/// Datagrams that are on their way, each in two fragments, when the flood comes: so few that of the lab's small tables
/// none of their buckets has more than a pod's share, where three flood.
const DATAGRAMS: u16 = 6;
/// Datagrams of the flood that are asked for afterwards: several times as many as any table has room for. Which of them are
/// left depends on the hash, and on the time.
const SEEN: u16 = 1024;
/// The port of the pod that has them, that of the one that floods, and that of the far end.
const PORT: u16 = 40_000;
const FLOODING: u16 = 41_000;
const FAR: u16 = 53;

/// What is above IP, in two fragments of the datagram with this identification.
fn fragments(from: &str, to: &str, protocol: u8, id: u16, upper: &[u8]) -> [Frame; 2] {
    let middle = 24;
    [(0, true, &upper[..middle]), (3, false, &upper[middle..])].map(|(offset, more, part)| {
        if address(from).is_ipv4() {
            Frame::ip(from, to, protocol, part).fragment(id, offset, more)
        } else {
            let payload = fragment6(protocol, id.into(), offset, more, part);
            Frame::ip(from, to, FRAGMENT, &payload)
        }
    })
}

/// A datagram of UDP with its checksum, in two fragments.
fn parts(from: (&str, u16), to: (&str, u16), id: u16) -> [Frame; 2] {
    let whole = datagram(from, to, 40);
    let l4 = whole.bytes.len() - 48;
    fragments(from.0, to.0, UDP, id, &whole.bytes[l4..])
}

/// Where the identification lies in a frame with a fragment.
fn identification(from: &str) -> Varied {
    if address(from).is_ipv4() {
        // The type of service beside it stays what it is.
        Varied::once(L3 + 4, L3 + 1)
    } else {
        Varied::once(L3 + 46, L3 + 45)
    }
}

/// What the pod's datagrams become, and what comes back for it, as a node that translates them sees it.
struct Translated {
    out: [(Frame, Frame); 2],
    back: [(Frame, Frame); 2],
}

fn translated(p: &Places, id: u16) -> Translated {
    let (pod, alpha, far) = ((p.pod, PORT), (p.alpha, PORT), (p.remote, FAR));
    let paired = |a: [Frame; 2], b: [Frame; 2]| {
        let ([a, c], [b, d]) = (a, b);
        [(a, b), (c, d)]
    };
    let hop = |frames: [Frame; 2]| frames.map(|frame| forwarded(&frame));
    let home = |frames: [Frame; 2]| frames.map(|frame| delivered(&frame));
    Translated {
        out: paired(parts(pod, far, id), hop(parts(alpha, far, id))),
        back: paired(parts(far, alpha, id), home(parts(far, pod, id))),
    }
}

/// What a node remembers of datagrams that it translates: a pod floods it, the far end of a pod does, and who pings
/// the egress address, whose datagrams are the kernel's.
#[test]
fn take_no_translated_datagram_apart() {
    in_both(|node, p| {
        node.set_all(nat::QUOTA, 600);
        let check = |node: &mut nat::Node<'_>, of: &Translated, part: usize| {
            let (frame, fate) = &of.out[part];
            node.out("a pod's fragment", frame, Out(fate.clone()));
            let (frame, fate) = &of.back[part];
            node.back("a fragment for a pod", frame, Home(fate.clone()));
        };
        // To another far end: its datagrams to one address have one identification each.
        let far = (p.remote2, FAR);
        let [first, _] = parts((p.other, FLOODING), far, 0);
        let [became, _] = parts((p.alpha, FLOODING), far, 0);
        node.out("of who floods", &first, Out(forwarded(&became)));
        let known: Vec<Translated> = (0..DATAGRAMS).map(|id| translated(p, id)).collect();
        for it in &known {
            check(node, it, 0);
        }
        let [to_flooder, _] = parts(far, (p.alpha, FLOODING), 0);
        let ping = icmp(p.ping, 1, &[7; 40]);
        let [ping, _] = fragments(p.router, p.alpha, p.icmp, 0, &ping);
        let varied = identification(p.pod);
        for flood in [
            Input::from_pod(&first.bytes),
            on_uplink(&to_flooder),
            on_uplink(&ping),
        ] {
            node.flood(&flood, varied, FLOOD);
        }
        for it in &known {
            check(node, it, 1);
        }
        for id in DATAGRAMS..2 * DATAGRAMS {
            let it = translated(p, id);
            check(node, &it, 0);
            check(node, &it, 1);
        }
        // It was a flood: its own is what it took apart.
        let gone = (0..SEEN).filter(|id| {
            let [_, later] = parts((p.other, FLOODING), far, *id);
            let input = Input::from_pod(&later.bytes);
            node.run_quietly("of who floods", &input).0.action == Action::Drop
        });
        assert!(gone.count() > usize::from(SEEN / 2));
    });
}

fn arrives(lab: &mut Lab, frame: &Frame) -> Action {
    let input = Input {
        program: Program::FromGateway,
        ifindex: UPLINK,
        ..Input::from_pod(&frame.bytes)
    };
    let seen = lab.run(&input).unwrap();
    lab.moved();
    seen.action
}

/// What is remembered of replies in fragments, for pods that go through a next hop.
#[test]
fn take_no_reply_apart() {
    with_lab(|lab| {
        let hop = || via(vec![gateway("red", 1, 1500, &["192.168.9.1", "fd09::1"])]);
        let fate = || resolve::Fate::Rules(vec![rule("", hop())].into());
        let pods = [("web", 5, fate(), "main"), ("batch", 6, fate(), "main")];
        lab.bring_to(&resolved(&[], pods));
        for p in [&nat::V4, &nat::V6] {
            for (pod, port) in [(p.pod, PORT), (p.other, FLOODING)] {
                let out = datagram((pod, port), (p.remote, FAR), 8);
                let seen = lab.run(&Input::from_pod(&out.bytes)).unwrap();
                assert_eq!(seen.action, Action::Redirect, "{pod}");
            }
            let replies = |pod, port, id| {
                parts((p.remote, FAR), (pod, port), id)
                    .map(|frame| frame.macs(HOST_MAC, GATEWAY_MAC))
            };
            let [first, _] = replies(p.other, FLOODING, 0);
            assert_eq!(arrives(lab, &first), Action::Redirect, "{first:?}");
            let known = (0..DATAGRAMS).map(|id| replies(p.pod, PORT, id));
            let known: Vec<_> = known.collect();
            for [first, _] in &known {
                assert_eq!(arrives(lab, first), Action::Redirect, "{first:?}");
            }
            let input = Input {
                program: Program::FromGateway,
                ifindex: UPLINK,
                ..Input::from_pod(&first.bytes)
            };
            lab.flood(&input, identification(p.pod), FLOOD);
            for [_, later] in &known {
                assert_eq!(arrives(lab, later), Action::Redirect, "{later:?}");
            }
            for id in DATAGRAMS..2 * DATAGRAMS {
                for part in replies(p.pod, PORT, id) {
                    assert_eq!(arrives(lab, &part), Action::Redirect, "{part:?}");
                }
            }
            // It was a flood: its own is what it took apart.
            let gone = (0..SEEN).filter(|id| {
                let [_, later] = replies(p.other, FLOODING, *id);
                arrives(lab, &later) == Action::Pass
            });
            assert!(gone.count() > usize::from(SEEN / 2));
        }
    });
}
