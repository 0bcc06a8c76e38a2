//! Frames that nodes of a cluster send each other, and such as others make up.

use egress_common::{
    DropReason,
    gateway::GatewayId,
    overlay::{FrameKind, Tag},
    probe,
};

use super::{
    Expect::{self, Deliver, Drop, Refuse},
    FIRST, GATEWAY, OVERLAID, Overlaid, SECOND, TO_NEIGHBOUR, WRONG,
};
use crate::packets::build::Frame;

/// A frame with its tag, and what becomes of it.
pub struct Row {
    /// What it is.
    pub name: &'static str,
    /// All of it.
    pub frame: Vec<u8>,
    /// What becomes of it.
    pub expect: Expect,
}

fn row(name: &'static str, frame: Frame, tag: Tag, kind: FrameKind, expect: Expect) -> Row {
    Row {
        name,
        frame: frame.macs(tag.0, kind.to_mac().0).bytes,
        expect,
    }
}

/// What a node of the cluster sends, and what others make up, with packets of one family.
#[must_use]
pub fn rows(of: &Overlaid) -> Vec<Row> {
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
