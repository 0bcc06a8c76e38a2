//! What is looked at once more before a packet is translated: elements that keys led to, and headers that vouch for
//! addresses.

use egress_common::DropReason::{NatNoState, StateMissing};
use egress_tests::packets::{
    Action, Input, Slot,
    build::{self, Frame, authentication, proto},
    nat::{
        ALPHA, BETA,
        Fate::{Dropped, Home, Kernel, Out},
        Node, Places, datagram, delivered, forwarded, in_both,
    },
};

/// A datagram there and back.
fn round_trip(node: &mut Node<'_>, p: &Places) {
    node.out(
        "out",
        &datagram((p.pod, 40_000), (p.remote, 53), 20),
        Out(forwarded(&datagram((p.alpha, 40_000), (p.remote, 53), 20))),
    );
    node.back(
        "back",
        &datagram((p.remote, 53), (p.alpha, 40_000), 33),
        Home(delivered(&datagram((p.remote, 53), (p.pod, 40_000), 33))),
    );
}

/// While an element is given to another address, a packet may still find it by its old keys.
#[test]
fn an_element_that_another_address_has_by_now() {
    in_both(|node, p| {
        round_trip(node, p);
        let family = u32::from(p.icmp != proto::ICMP);
        let element = 2 * ALPHA.counter + family;
        node.own_at(&BETA, p.beta, element, (1024, 65_535), 0);
        node.back(
            "to the address that is no more",
            &datagram((p.remote, 53), (p.alpha, 40_000), 20),
            Kernel,
        );
        let out = datagram((p.pod, 40_000), (p.remote, 53), 20);
        let (seen, moved) = node.run_quietly("no gateway", &Input::from_pod(&out.bytes));
        assert_eq!(seen.action, Action::Drop, "{}", p.name);
        let drop = Slot::Drop("main".to_owned(), StateMissing);
        assert!(moved.contains_key(&drop), "{moved:?}");
        node.own(&ALPHA, (1024, 65_535), 0);
        round_trip(node, p);
    });
}

/// An authentication header covers the addresses (RFC 4302, 2.2): it is nobody's, whatever connection comes behind it.
#[test]
fn a_header_that_vouches_for_addresses() {
    in_both(|node, p| {
        round_trip(node, p);
        let covered = authentication(proto::UDP, 4, &build::udp(53, 40_000, 20));
        node.back(
            "an answer",
            &Frame::ip(p.remote, p.alpha, proto::AH, &covered),
            Dropped(NatNoState),
        );
        round_trip(node, p);
    });
}
