//! What pods' packets become on their way to another node: the frame, the TTL, and the segment size of a SYN.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

use anyhow::{Context, Result};
use aya::maps::Array;
use egress_common::{
    Addr, DropReason, Mac,
    gateway::{GatewayId, Settings},
    keys::PodKey,
    maps,
    overlay::{FrameKind, Tag},
    pod::{PodNote, mac_to_word},
    verdict::Member,
};
use egress_tests::packets::{
    Action, Counts, Input, Lab, Slot,
    build::{
        Frame, HOST_MAC, L3, POD_MAC, address, extension, forwarded, fragment6, hex,
        proto::{DESTINATION, FRAGMENT, TCP, UDP},
        udp,
    },
    seed::{POD, STEERED, UPLINK, world},
    with_lab,
};
use egress_userspace::state::MemberLabel;
use etherparse::TcpHeader;

const GATEWAY: GatewayId = GatewayId(0x0708_090a);
const TAG: Tag = Tag([0xff, 1, 2, 3, 4, 5]);
/// What fits a frame.
const MTU: u16 = 1400;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A pod and a remote of one family, and the rule that leads to the other node.
struct Family {
    pod: &'static str,
    remote: &'static str,
    rule: &'static str,
    /// IP's header and TCP's without options.
    headers: u16,
}

const FAMILIES: [Family; 2] = [
    Family {
        pod: "10.1.0.5",
        remote: "192.0.2.7",
        rule: "192.0.2.0/24",
        headers: 40,
    },
    Family {
        pod: "fd00::5",
        remote: "2001:db8:1::7",
        rule: "2001:db8:1::/48",
        headers: 60,
    },
];

impl Family {
    /// The largest segment of the overlay.
    fn most(&self) -> [u8; 2] {
        (MTU - self.headers).to_be_bytes()
    }

    /// A segment with these flags and options, its checksum right.
    fn tcp(&self, flags: u8, options: &[u8], payload: &[u8]) -> Frame {
        let segment = self.segment(flags, options, payload);
        Frame::ip(self.pod, self.remote, TCP, &segment)
    }

    fn segment(&self, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut header = TcpHeader::new(40_000, 443, 1, 65_535);
        header.syn = flags & SYN != 0;
        header.ack = flags & ACK != 0;
        header.set_options_raw(options).unwrap();
        header.checksum = match (address(self.pod), address(self.remote)) {
            (std::net::IpAddr::V4(pod), std::net::IpAddr::V4(remote)) => header
                .calc_checksum_ipv4_raw(pod.octets(), remote.octets(), payload)
                .unwrap(),
            (std::net::IpAddr::V6(pod), std::net::IpAddr::V6(remote)) => header
                .calc_checksum_ipv6_raw(pod.octets(), remote.octets(), payload)
                .unwrap(),
            mixed => panic!("{mixed:?} are not of one family"),
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        bytes
    }

    fn syn(&self, options: &[u8]) -> Frame {
        self.tcp(SYN, options, &[])
    }
}

/// What a packet is, and what it is sent as, apart from MACs and TTL; nothing if it is dropped.
struct Row {
    name: String,
    frame: Frame,
    sent: Result<Frame, DropReason>,
}

fn same(name: &str, frame: Frame) -> Row {
    Row {
        name: name.to_owned(),
        sent: Ok(frame.clone()),
        frame,
    }
}

fn becomes(name: &str, frame: Frame, sent: Frame) -> Row {
    Row {
        name: name.to_owned(),
        frame,
        sent: Ok(sent),
    }
}

/// A SYN whose option at `place` tells too large a segment; all around it stays.
fn lowered(of: &Family, name: &str, before: &[u8], after: &[u8], told: [u8; 2]) -> Row {
    let options = |size: [u8; 2]| [before, &[2, 4], &size, after].concat();
    let (frame, sent) = (of.syn(&options(told)), of.syn(&options(of.most())));
    becomes(name, frame, sent)
}

fn segment_sizes(of: &Family) -> Vec<Row> {
    let ethernet = 1460_u16.to_be_bytes();
    let timestamps = [8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
    let fits = of.most();
    vec![
        same("no option", of.syn(&[])),
        same("others alone", of.syn(&[&[4, 2][..], &timestamps].concat())),
        same("a smaller size", of.syn(&[2, 4, 2, 24])),
        same("the size itself", of.syn(&[2, 4, fits[0], fits[1]])),
        lowered(of, "a larger size", &[], &[], ethernet),
        lowered(of, "one too much", &[], &[], [fits[0], fits[1] + 1]),
        lowered(of, "the largest size", &[], &[], [0xff; 2]),
        lowered(of, "behind two bytes", &[1, 1], &[1, 1], ethernet),
        lowered(of, "behind one byte", &[1], &[1, 1, 1], ethernet),
        lowered(of, "behind three bytes", &[3, 3, 7], &[0], ethernet),
        lowered(
            of,
            "behind timestamps",
            &[&[4, 2][..], &timestamps].concat(),
            &[],
            ethernet,
        ),
        lowered(of, "at the very end", &[1; 36], &[], ethernet),
        lowered(of, "before what is garbled", &[], &[9, 0, 9, 1], ethernet),
        same("nothing but padding", of.syn(&[1; 40])),
        same(
            "behind the end of options",
            of.syn(&[0, 1, 1, 1, 2, 4, 5, 0xb4]),
        ),
        same("cut after its length", of.syn(&[1, 1, 2, 4])),
        same("cut after its kind", of.syn(&[1, 1, 1, 2])),
        same("a shorter option", of.syn(&[2, 3, 0xff, 1])),
        same(
            "a longer option",
            of.syn(&[2, 6, 0xff, 0xff, 0xff, 0xff, 1, 1]),
        ),
        same(
            "behind a length of zero",
            of.syn(&[3, 0, 2, 4, 5, 0xb4, 1, 1]),
        ),
        same(
            "behind a length of one",
            of.syn(&[3, 1, 2, 4, 5, 0xb4, 1, 1]),
        ),
        same(
            "behind a length past the end",
            of.syn(&[3, 250, 2, 4, 5, 0xb4, 1, 1]),
        ),
        same("in the payload", of.tcp(SYN, &[], &[2, 4, 0xff, 0xff])),
        same("not a SYN", of.tcp(ACK, &[2, 4, 0xff, 0xff], &[])),
        becomes(
            "a SYN's answer with an odd payload",
            of.tcp(SYN | ACK, &[1, 2, 4, 0xff, 0xff, 1, 1, 1], &[1, 2, 3]),
            of.tcp(SYN | ACK, &[1, 2, 4, fits[0], fits[1], 1, 1, 1], &[1, 2, 3]),
        ),
    ]
}

fn odd_headers(of: &Family) -> Vec<Row> {
    let large = of.segment(SYN, &[2, 4, 0xff, 0xff], &[]);
    let small = of.segment(SYN, &[&[2, 4][..], &of.most()].concat(), &[]);
    let mut short = large.clone();
    short[12] = 0x40;
    let raw = |protocol, payload: &[u8]| Frame::ip(of.pod, of.remote, protocol, payload);
    let mut rows = vec![
        same("a header shorter than it may be", raw(TCP, &short)),
        same("a header that is cut", raw(TCP, &large[..13])),
        same("options that are cut", raw(TCP, &large[..22])),
        same("another protocol", raw(UDP, &large)),
        same(
            "what fits",
            raw(UDP, &udp(1, 53, usize::from(MTU - of.headers + 20) - 8)),
        ),
    ];
    if let (std::net::IpAddr::V4(pod), std::net::IpAddr::V4(to)) =
        (address(of.pod), address(of.remote))
    {
        let options = |segment: &[u8]| Frame::v4(pod, to, &[1, 1, 1, 0], TCP, segment);
        rows.push(becomes(
            "behind IP's options",
            options(&large),
            options(&small),
        ));
        let first = |segment: &[u8]| raw(TCP, segment).fragment(7, 0, true);
        rows.push(becomes("a first fragment", first(&large), first(&small)));
        rows.push(same(
            "a later fragment",
            raw(TCP, &large).fragment(7, 3, true),
        ));
        rows.push(Row {
            name: "too big, and may be fragmented".to_owned(),
            frame: raw(UDP, &udp(1, 53, usize::from(MTU) - 27)),
            sent: Err(DropReason::TooBig),
        });
    } else {
        let behind = |segment: &[u8]| raw(DESTINATION, &extension(TCP, 1, segment));
        rows.push(becomes(
            "behind an extension header",
            behind(&large),
            behind(&small),
        ));
        let first = |segment: &[u8]| raw(FRAGMENT, &fragment6(TCP, 7, 0, true, segment));
        rows.push(becomes("a first fragment", first(&large), first(&small)));
        let later = raw(FRAGMENT, &fragment6(TCP, 7, 3, true, &large));
        rows.push(same("a later fragment", later));
    }
    rows.push(Row {
        name: "to a group of the link".to_owned(),
        frame: raw(UDP, &udp(1, 53, 20)).macs([0x01, 0, 0x5e, 0, 0, 1], POD_MAC),
        sent: Err(DropReason::RedirectFailed),
    });
    rows
}

/// Has the rules of [`FAMILIES`] lead to a node of either underlay.
fn lead_to(lab: &mut Lab, node: &str) -> Result<()> {
    let settings = Settings {
        overlay_ifindex: UPLINK,
        vni: 4097,
        ..Settings::default()
    };
    element(lab, maps::SETTINGS)?.set(0, settings, 0)?;
    for family in &FAMILIES {
        let label = |label: &MemberLabel| label.rule == family.rule;
        let counters: Vec<u32> = lab
            .names()
            .members
            .iter()
            .filter(|(of, _)| label(of))
            .map(|(_, id)| *id)
            .collect();
        let members = lab.state().members.iter();
        let members: Vec<(u32, u32)> = members
            .map(|(id, member)| (*id, member.counter))
            .filter(|(_, counter)| counters.contains(counter))
            .collect();
        for (id, counter) in members {
            let node = Addr::from(address(node));
            let member = Member::overlay(counter, GATEWAY, UPLINK, MTU.into(), node, TAG);
            lab.write_member(id, &member)?;
        }
    }
    Ok(())
}

fn element<'a, V: aya::Pod>(
    lab: &'a mut Lab,
    map: &str,
) -> Result<Array<&'a mut aya::maps::MapData, V>> {
    let data = lab.datapath().ebpf().map_mut(map).context("no such map")?;
    Ok(Array::try_from(data)?)
}

fn check(lab: &mut Lab, of: &Family, row: &Row) {
    let input = Input::from_pod(&row.frame.bytes);
    let seen = lab.run(&input).unwrap();
    let moved = lab.moved();
    let about = format!(
        "{}: {}: {}\nsaw {:?}, counters {moved:?}, frame {}",
        of.pod,
        row.name,
        input.describe(),
        seen.action,
        hex(&seen.frame)
    );
    let (action, frame, slot) = match &row.sent {
        Ok(sent) => {
            let kind = FrameKind::Out(GATEWAY).to_mac();
            let sent = Frame {
                bytes: forwarded(&sent.bytes),
            };
            let slot = Slot::Member(STEERED.to_owned(), of.rule.to_owned(), "red".to_owned());
            (Action::Redirect, sent.macs(TAG.0, kind.0).bytes, slot)
        }
        Err(reason) => (
            Action::Drop,
            row.frame.bytes.clone(),
            Slot::Drop(STEERED.to_owned(), *reason),
        ),
    };
    assert_eq!(seen.action, action, "{about}");
    assert_eq!(hex(&seen.frame), hex(&frame), "{about}");
    let bytes = u64::try_from(row.frame.bytes.len() - L3).unwrap();
    assert_eq!(moved, Counts::from([(slot, (1, bytes))]), "{about}");
}

#[test]
fn frames_and_segment_sizes() {
    with_lab(|lab| {
        lab.bring_to(&world());
        for node in ["172.20.0.1", "fd20::1"] {
            lead_to(lab, node).unwrap();
            for family in &FAMILIES {
                for row in segment_sizes(family).iter().chain(&odd_headers(family)) {
                    check(lab, family, row);
                }
            }
        }
    });
}

#[test]
fn what_was_learned_of_a_pod_is_what_it_sent_last() {
    with_lab(|lab| {
        lab.bring_to(&world());
        lead_to(lab, "172.20.0.1").unwrap();
        let [v4, v6] = &FAMILIES;
        for family in [v4, v6] {
            let key = PodKey {
                ifindex: POD,
                addr: Addr::from(address(family.pod)),
            };
            let slot = lab.state().pods[&key];
            let note = |lab: &mut Lab| -> PodNote {
                element(lab, maps::POD_NOTES)
                    .unwrap()
                    .get(&slot, 0)
                    .unwrap()
            };
            let known = note(lab);
            let spoofed = Frame::ip("10.1.0.99", v4.remote, UDP, &udp(1, 53, 0));
            let local = Frame::ip(family.pod, family.pod, UDP, &udp(1, 53, 0));
            for frame in [spoofed, local] {
                lab.run(&Input::from_pod(&frame.bytes)).unwrap();
                assert_eq!(note(lab), known, "{}: nothing was sent", family.pod);
            }
            for macs in [
                [HOST_MAC, POD_MAC],
                [[2, 1, 2, 3, 4, 5], [0xfe, 255, 254, 253, 252, 251]],
            ] {
                let frame = family.syn(&[]).macs(macs[0], macs[1]);
                lab.run(&Input::from_pod(&frame.bytes)).unwrap();
                let learned = PodNote {
                    pod_mac: mac_to_word(Mac(macs[1])),
                    host_mac: mac_to_word(Mac(macs[0])),
                    ..PodNote::default()
                };
                assert_eq!(note(lab), learned, "{}: from {macs:02x?}", family.pod);
            }
        }
    });
}
