//! Replies that do not fit the way to their pod's node, or may live for no other hop: who is told what, in
//! whose name, and what is sent all the same.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use egress_common::{
    DropReason::{self, StateMissing, TooBig, TtlExceeded},
    counter::Answer,
    overlay::{FrameKind, NodeState, Tag},
};
use egress_tests::packets::{
    Input,
    build::{self, Frame, L3, fragment6, proto},
    nat::{
        ALPHA, Fate,
        Fate::{Answered, Dropped, Home, Out},
        Node, Places, addr, datagram, delivered, error, forwarded, in_both, on_uplink, with_sum,
    },
};

/// The node of the pods.
const ORIGIN: u32 = 3;
const TAG: Tag = Tag([1, 2, 3, 4, 5, 6]);
/// What fits a frame to it.
const MTU: u32 = 1400;
const FITS: usize = 1400;
const ACK: u8 = 16;

/// What the outer packets of the overlay are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Underlay {
    /// The kernel fragments what does not fit.
    V4,
    /// It does not.
    V6,
}

impl Underlay {
    fn node(self, mtu: u32) -> NodeState {
        NodeState {
            address: addr(match self {
                Self::V4 => "172.18.0.3",
                Self::V6 => "fd00:18::3",
            }),
            mtu,
            send: TAG,
            ..NodeState::default()
        }
    }

    /// What becomes of a packet that does not fit and that nobody is told of.
    fn untold(self, translated: &Frame) -> Fate {
        match self {
            Self::V4 => overlaid(translated),
            Self::V6 => Dropped(TooBig),
        }
    }
}

/// On its way to the pod's node.
fn overlaid(translated: &Frame) -> Fate {
    Home(forwarded(translated).macs(TAG.0, FrameKind::Back(ALPHA.id).to_mac().0))
}

/// Runs `test` for each family inside and outside, on a node that knows connections of a pod of another one:
/// its ports 40000 and 40001 talk to the remote's 53 and 443 by UDP and TCP.
fn over_both(test: impl Fn(&mut Node<'_>, &Places, Underlay) + Sync) {
    in_both(|node, p| {
        for underlay in [Underlay::V4, Underlay::V6] {
            node.reset();
            connect(node, p);
            node.know(ORIGIN, underlay.node(MTU));
            node.move_to(ORIGIN);
            test(node, p, underlay);
        }
    });
}

fn connect(node: &mut Node<'_>, p: &Places) {
    node.out(
        "UDP",
        &datagram((p.pod, 40_000), (p.remote, 53), 1),
        Out(forwarded(&datagram((p.alpha, 40_000), (p.remote, 53), 1))),
    );
    node.out(
        "TCP",
        &tcp((p.pod, 40_001), (p.remote, 443), 0),
        Out(forwarded(&tcp((p.alpha, 40_001), (p.remote, 443), 0))),
    );
}

fn is_v4(p: &Places) -> bool {
    p.icmp == proto::ICMP
}

fn header(p: &Places) -> usize {
    if is_v4(p) { 20 } else { 40 }
}

/// With "don't fragment", which IPv6 packets always are.
fn whole(frame: Frame) -> Frame {
    if frame.bytes[12..14] == [8, 0] {
        frame.set(L3 + 6, &[0x40, 0])
    } else {
        frame
    }
}

/// A datagram of so many bytes of IP from the remote, to its egress address and to the pod.
fn reply(p: &Places, size: usize) -> [Frame; 2] {
    let payload = size - header(p) - 8;
    [(p.alpha, 40_000), (p.pod, 40_000)].map(|to| datagram((p.remote, 53), to, payload))
}

fn whole_reply(p: &Places, size: usize) -> [Frame; 2] {
    reply(p, size).map(whole)
}

fn tcp(from: (&str, u16), to: (&str, u16), length: usize) -> Frame {
    let mut payload = build::tcp(from.1, to.1, &[1; 12], length);
    payload[13] = ACK;
    with_sum(Frame::ip(from.0, to.0, proto::TCP, &payload), proto::TCP)
}

/// Two segments, each of so many bytes of IP, as one aggregate.
fn aggregate(p: &Places, each: usize) -> [Frame; 2] {
    let length = 2 * (each - header(p) - 32);
    [(p.alpha, 40_001), (p.pod, 40_001)].map(|to| tcp((p.remote, 443), to, length))
}

fn segments(frame: &Frame, p: &Places, each: usize) -> Input {
    Input {
        gso: (u32::try_from(each - header(p) - 32).unwrap(), 2),
        ..on_uplink(frame)
    }
}

/// An error about a packet of the pod's, quoting all of it: longer than what fits.
fn long_error(p: &Places) -> [Frame; 2] {
    let quoted = |from| datagram((from, 40_000), (p.remote, 53), FITS - header(p) - 8);
    [p.alpha, p.pod].map(|at| whole(error(p.router, at, p.error, &quoted(at), FITS)))
}

#[test]
fn replies() {
    over_both(|node, p, underlay| {
        let [reply_, translated] = whole_reply(p, FITS);
        node.back("it fits", &reply_, overlaid(&translated));
        for size in [FITS + 1, FITS + 2, 1500, 3000] {
            let [frame, translated] = whole_reply(p, size);
            let what = format!("{size} bytes over {underlay:?}");
            node.back(&what, &frame, Answered(Answer::TooBig, MTU));
            if is_v4(p) {
                let [frame, translated] = reply(p, size);
                let what = format!("{what}, may be fragmented");
                node.back(&what, &frame, underlay.untold(&translated));
            }
            node.fall_silent();
            let what = format!("{what}, and enough was said");
            node.back(&what, &frame, underlay.untold(&translated));
            node.speak();
        }
        // Nothing of that harmed the connection.
        node.back("it fits again", &reply_, overlaid(&translated));
    });
}

#[test]
fn aggregates() {
    over_both(|node, p, underlay| {
        let mut run = |what: &str, [frame, _]: &[Frame; 2], each, fate: Fate| {
            let what = format!("{what} over {underlay:?}");
            node.run(&what, &segments(frame, p, each), &fate);
        };
        let fit = aggregate(p, FITS);
        run("segments that fit", &fit, FITS, overlaid(&fit[1]));
        let long = aggregate(p, FITS + 1);
        let told = long.clone().map(whole);
        let answer = Answered(Answer::TooBig, MTU);
        run("segments too long by one", &told, FITS + 1, answer);
        if is_v4(p) {
            let fate = underlay.untold(&long[1]);
            run("segments that may be fragmented", &long, FITS + 1, fate);
        }
        let old = fit.map(|frame| frame.ttl(1));
        let answer = Answered(Answer::TimeExceeded, 0);
        run("segments too old", &old, FITS, answer);
    });
}

#[test]
fn errors_are_not_answered() {
    over_both(|node, p, underlay| {
        let [frame, translated] = long_error(p);
        let what = format!("an error over {underlay:?}");
        node.back(&what, &frame, underlay.untold(&translated));
        node.back("an old error", &frame.ttl(1), Dropped(TtlExceeded));
    });
}

#[test]
fn fragments() {
    over_both(|node, p, underlay| {
        let fragment = |to: &str, offset: u16, size: usize| {
            // The datagram goes on where these end, so its checksum is anything; the pods' is mended from it.
            let first = [0, 53, 0x9c, 0x40, 0x20, 0, 0, 0];
            let mut payload = first.to_vec();
            payload.resize(size, 0x61);
            if is_v4(p) {
                Frame::ip(p.remote, to, proto::UDP, &payload).fragment(77, offset, true)
            } else {
                let payload = fragment6(proto::UDP, 77, offset, true, &payload);
                Frame::ip(p.remote, to, proto::FRAGMENT, &payload)
            }
        };
        let mut back = |what: &str, size: usize, offset, ttl, told: Option<Fate>| {
            let [frame, translated] =
                [p.alpha, p.pod].map(|to| fragment(to, offset, size).ttl(ttl));
            let fate = told.unwrap_or_else(|| {
                if frame.bytes.len() - L3 > FITS {
                    underlay.untold(&translated)
                } else {
                    overlaid(&translated)
                }
            });
            node.back(&format!("{what} over {underlay:?}"), &frame, fate);
        };
        let too_big = (!is_v4(p)).then_some(Answered(Answer::TooBig, MTU));
        back("a first fragment", 1200, 0, 64, None);
        back("a long first fragment", 1400, 0, 64, too_big);
        back("a later one", 1200, 200, 64, None);
        back("a long later one", 1400, 200, 64, None);
        let old = Some(Answered(Answer::TimeExceeded, 0));
        back("an old first one", 1200, 0, 1, old);
        let untold = Some(Dropped(TtlExceeded));
        back("an old later one", 1200, 200, 1, untold);
    });
}

#[test]
fn what_lives_for_no_other_hop() {
    over_both(|node, p, underlay| {
        for (size, ttl) in [(100, 1), (100, 0), (FITS, 1), (FITS + 1, 1)] {
            let [frame, _] = reply(p, size).map(|frame| frame.ttl(ttl));
            let what = format!("{size} bytes, TTL {ttl}, over {underlay:?}");
            node.back(&what, &frame, Answered(Answer::TimeExceeded, 0));
            node.fall_silent();
            node.back(&what, &frame, Dropped(TtlExceeded));
            node.speak();
        }
    });
}

#[test]
fn pods_of_this_node() {
    in_both(|node, p| {
        connect(node, p);
        for size in [FITS + 1, 1500, 1501] {
            let [frame, translated] = whole_reply(p, size);
            node.back("long", &frame, Home(delivered(&translated)));
        }
        node.narrow(MTU);
        let [frame, translated] = whole_reply(p, FITS);
        node.back("it fits", &frame, Home(delivered(&translated)));
        for size in [FITS + 1, 1500] {
            let [frame, _] = whole_reply(p, size);
            node.back("too big", &frame, Answered(Answer::TooBig, MTU));
            node.fall_silent();
            node.back("too big, and enough was said", &frame, Dropped(TooBig));
            node.speak();
        }
        if is_v4(p) {
            let [frame, _] = reply(p, FITS + 1);
            node.back("too big, may be fragmented", &frame, Dropped(TooBig));
        }
        let [frame, _] = long_error(p);
        node.back("an error that is too big", &frame, Dropped(TooBig));
        node.narrow(0);
        let [frame, _] = reply(p, 100).map(|frame| frame.ttl(1));
        node.back("old", &frame, Answered(Answer::TimeExceeded, 0));
        node.fall_silent();
        node.back("old, and enough was said", &frame, Dropped(TtlExceeded));
    });
}

#[test]
fn padding() {
    over_both(|node, p, underlay| {
        let [frame, translated] = whole_reply(p, FITS).map(|frame| frame.padded(&[0xee; 3]));
        let what = format!("it fits, but its frame does not, over {underlay:?}");
        node.back(&what, &frame, underlay.untold(&translated));
        let [frame, _] = whole_reply(p, FITS + 1).map(|frame| frame.padded(&[0xee; 3]));
        node.back("it fits not", &frame, Answered(Answer::TooBig, MTU));
    });
}

/// No sender of IPv6 makes packets smaller than 1280 bytes, whatever it is told.
#[test]
fn ways_too_narrow_for_ipv6() {
    over_both(|node, p, underlay| {
        node.know(ORIGIN, underlay.node(1000));
        let least = if underlay == Underlay::V4 && !is_v4(p) {
            1280
        } else {
            1000
        };
        for (size, fits) in [(1000, true), (1001, least > 1000), (1280, least == 1280)] {
            let [frame, translated] = whole_reply(p, size);
            let fate = if fits {
                overlaid(&translated)
            } else {
                Answered(Answer::TooBig, least)
            };
            node.back(&format!("{size} bytes over {underlay:?}"), &frame, fate);
        }
        let [frame, _] = whole_reply(p, 1281);
        node.back("1281 bytes", &frame, Answered(Answer::TooBig, least));
    });
}

#[test]
fn nobody_is_told_of_what_is_not_ours_or_goes_nowhere() {
    over_both(|node, p, underlay| {
        let dropped = |node: &mut Node<'_>, what: &str, frame: &Frame, reason: DropReason| {
            let what = format!("{what}, over {underlay:?}");
            node.back(&what, frame, Dropped(reason));
        };
        let stranger = datagram((p.remote2, 53), (p.alpha, 40_000), 1500);
        dropped(
            node,
            "a stranger's",
            &whole(stranger),
            DropReason::NatNoState,
        );
        let stranger = datagram((p.remote2, 53), (p.alpha, 40_000), 1).ttl(1);
        dropped(node, "a stranger's, old", &stranger, DropReason::NatNoState);
        node.know(ORIGIN, NodeState::default());
        let [frame, _] = whole_reply(p, 1500);
        dropped(node, "no such node", &frame, StateMissing);
    });
}
