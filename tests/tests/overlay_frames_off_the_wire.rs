//! Plain frames of the overlay past the kernel's stack: the same verdicts as by the overlay device, for those that the
//! device would have got; and on the wire the same bytes as the device's.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_common::{
    Addr, DropReason,
    cells::RowPlace,
    gateway::Settings,
    maps,
    overlay::FrameKind,
    verdict::{Decision, Member, PodState, Verdict},
};
use egress_tests::{
    client::Wire,
    field::{
        DEVICE,
        Expect::{Deliver, Drop, Refuse},
        FIRST, Field, GATEWAY, NEIGHBOUR_MAC, NODE_MAC, OVERLAID, POLICY, PORT, SLOT, TO_NEIGHBOUR,
        UNDERLAYS, VNI, rows, vxlan,
    },
    packets::build::{Frame, HOST_MAC, POD_MAC, address, hex, proto, segment, udp},
    wait,
};
use egress_userspace::kernel::Program;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::{TimeVal, TimeValLike as _},
};

/// Where the headers of a frame on the wire lie.
const IP: usize = 14;
const UDP: usize = IP + 20;
const VXLAN: usize = UDP + 8;
/// Ports that VXLAN devices take by default.
const SOURCE_PORTS: (u16, u16) = (32_768, 60_999);

/// A frame on the wire, as a node sends it.
fn plain(from: &str, to: &str, vni: u32, frame: &[u8]) -> Vec<u8> {
    let payload = vxlan(vni, frame);
    let mut datagram = udp(40_001, PORT, payload.len());
    // No checksum (RFC 7348, 5).
    datagram.truncate(8);
    datagram[6..8].fill(0);
    datagram.extend(payload);
    Frame::ip(from, to, proto::UDP, &datagram)
        .macs(NODE_MAC, NEIGHBOUR_MAC)
        .bytes
}

/// Makes plain frames go past the stack, both ways.
fn open(field: &mut Field) -> Result<()> {
    let settings = settings(field)?;
    field.element(maps::SETTINGS, 0, settings)
}

fn settings(field: &Field) -> Result<Settings> {
    Ok(Settings {
        node4: Addr::from(address(UNDERLAYS[0].node)),
        overlay_ifindex: field.ifindex(DEVICE)?,
        vni: VNI,
        underlay_ifindex: field.ifindex("eth0")?,
        overlay_port: PORT,
        first_source_port: SOURCE_PORTS.0,
        source_ports_end: SOURCE_PORTS.1,
        ..Settings::default()
    })
}

/// Counts what of the overlay the node's stack gets: `stack`, or makes: `made`.
fn watch_stack(field: &Field, counter: &str, hook: &str) -> Result<()> {
    field.node.nft(&format!(
        "table inet watch {{
           counter {counter} {{}}
           chain overlay {{
             type filter hook {hook} priority -450;
             udp dport {PORT} counter name {counter}
           }}
         }}"
    ))
}

/// Whether a frame that ends so does not need the stack: it is a node's and well-formed, and nobody is to be told.
fn is_plain(reason: DropReason) -> bool {
    matches!(reason, DropReason::PodUnknown | DropReason::Malformed)
}

#[test]
fn frames_off_the_wire_are_judged_as_the_device_has_them_judged() -> Result<()> {
    let mut field = Field::new()?;
    field.attach(Program::FromOverlay, DEVICE)?;
    field.attach(Program::FromUnderlay, "eth0")?;
    watch_stack(&field, "stack", "prerouting")?;
    let wire = Wire::open(&field.neighbour, "eth0")?;
    let underlay = &UNDERLAYS[0];
    for is_fast in [false, true] {
        if is_fast {
            open(&mut field)?;
        }
        for overlaid in &OVERLAID {
            let mut frames: Vec<_> = rows(overlaid)
                .into_iter()
                .map(|row| {
                    let frame = plain(underlay.neighbour, underlay.node, VNI, &row.frame);
                    (row.name, frame, row.expect)
                })
                .collect();
            let right = overlaid
                .back(overlaid.pod)
                .macs(FIRST.0, FrameKind::Back(GATEWAY).to_mac().0)
                .bytes;
            let node = underlay.node;
            frames.push((
                "no node",
                plain(underlay.stranger, node, VNI, &right),
                Drop(DropReason::OverlayUnknownNode),
            ));
            frames.push((
                "another network",
                plain(underlay.neighbour, node, VNI + 1, &right),
                Drop(DropReason::OverlayMalformed),
            ));
            for (name, frame, expect) in frames {
                let (wanted, needs_stack) = match expect {
                    Deliver => ("the pod: delivered".to_owned(), false),
                    Drop(reason) | Refuse(reason) => (format!("{expect:?}"), !is_plain(reason)),
                };
                let mut wanted = vec![wanted.as_str()];
                if needs_stack || !is_fast {
                    wanted.push("the kernel: stack");
                }
                let before = field.counts()?;
                wire.send(&frame)?;
                let context = || format!("{}: {name}, fast: {is_fast}", overlaid.pod);
                field.expect(&before, &wanted).with_context(context)?;
            }
        }
    }
    Ok(())
}

/// What of its outer headers makes a frame the kernel's, which knows what to do with each.
#[test]
fn what_is_not_plain_is_left_to_the_kernel() -> Result<()> {
    type Change = fn(&mut Vec<u8>);
    const DELIVERED: &str = "the pod: delivered";
    const STACK: &str = "the kernel: stack";
    let rows: &[(&str, Change, &[&str])] = &[
        ("as it is", |_| (), &[DELIVERED]),
        (
            "don't fragment",
            |frame| set(frame, IP + 6, &[0x40, 0]),
            &[DELIVERED],
        ),
        (
            "able to tell of congestion",
            |frame| set(frame, IP + 1, &[0x02]),
            &[DELIVERED],
        ),
        (
            "another class",
            |frame| set(frame, IP + 1, &[0xb8]),
            &[DELIVERED],
        ),
        (
            "the last hop",
            |frame| set(frame, IP + 8, &[1]),
            &[DELIVERED],
        ),
        (
            "congestion that the packet cannot tell of (RFC 6040, 4.2)",
            |frame| set(frame, IP + 1, &[0x03]),
            &[STACK],
        ),
        (
            "options",
            |frame| {
                let length = u16::from_be_bytes([frame[IP + 2], frame[IP + 3]]) + 4;
                frame.splice(UDP..UDP, [1; 4]);
                set(frame, IP, &[0x46]);
                set(frame, IP + 2, &length.to_be_bytes());
            },
            &[DELIVERED, STACK],
        ),
        ("padding", |frame| frame.extend([0; 3]), &[DELIVERED, STACK]),
        (
            "a header that does not sum up",
            |frame| frame[IP + 10] ^= 1,
            &[],
        ),
        ("a wrong checksum", |frame| frame[UDP + 6] = 1, &[STACK]),
        (
            "a length of UDP's own",
            |frame| frame[UDP + 5] -= 1,
            &[STACK, "Drop(Malformed)"],
        ),
        (
            "what VXLAN keeps for later",
            |frame| frame[VXLAN + 7] = 1,
            &[STACK],
        ),
        ("another flag of VXLAN", |frame| frame[VXLAN] |= 1, &[STACK]),
        ("another host's", |frame| frame[5] ^= 1, &[]),
    ];
    let mut field = Field::new()?;
    field.attach(Program::FromOverlay, DEVICE)?;
    field.attach(Program::FromUnderlay, "eth0")?;
    watch_stack(&field, "stack", "prerouting")?;
    open(&mut field)?;
    let wire = Wire::open(&field.neighbour, "eth0")?;
    let underlay = &UNDERLAYS[0];
    for overlaid in &OVERLAID {
        let right = overlaid
            .back(overlaid.pod)
            .macs(FIRST.0, FrameKind::Back(GATEWAY).to_mac().0)
            .bytes;
        for (name, change, wanted) in rows {
            let mut frame = plain(underlay.neighbour, underlay.node, VNI, &right);
            change(&mut frame);
            let before = field.counts()?;
            wire.send(&frame)?;
            // What follows on the same way has arrived, so that nothing more comes of the frame.
            wire.send(&plain(underlay.neighbour, underlay.node, VNI, &right))?;
            let mut wanted: Vec<_> = wanted.to_vec();
            wanted.push(DELIVERED);
            let context = || format!("{}: {name}", overlaid.pod);
            field.expect(&before, &wanted).with_context(context)?;
        }
    }
    Ok(())
}

/// Writes into a frame's outer IP header, and mends its checksum.
fn set(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame[IP + 10..IP + 12].fill(0);
    let length = usize::from(frame[IP] & 0x0f) * 4;
    let sum: u32 = frame[IP..IP + length]
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from(sum & 0xffff).unwrap_or(0);
    frame[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
}

/// What a host gets from its wire.
struct Listening(OwnedFd);

impl Listening {
    fn on(field: &Field) -> Result<Self> {
        let socket = field.neighbour.enter(|| {
            let all = Some(SockProtocol::EthAll);
            Ok(socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                all,
            )?)
        })?;
        let patience = TimeVal::milliseconds(i64::try_from(wait::PATIENCE.as_millis())?);
        setsockopt(&socket, ReceiveTimeout, &patience)?;
        Ok(Self(socket))
    }

    /// The next frame of the overlay.
    fn frame(&self) -> Result<Vec<u8>> {
        loop {
            let mut bytes = vec![0; 4096];
            let length = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
            bytes.truncate(length);
            let is_ours = bytes.get(12..14) == Some(&[8, 0])
                && bytes.get(IP + 9) == Some(&proto::UDP)
                && bytes.get(UDP + 2..UDP + 4) == Some(&PORT.to_be_bytes());
            if is_ours {
                return Ok(bytes);
            }
        }
    }
}

#[test]
fn frames_are_the_same_as_the_devices() -> Result<()> {
    let mut field = Field::new()?;
    field.attach(Program::FromPod, "pod0")?;
    watch_stack(&field, "made", "output")?;
    // Whoever routes for pods forwards, and the kernel's routes are asked only where that is so.
    field.node.sysctl(&[("ipv4/ip_forward", "1")])?;
    let overlay = field.ifindex(DEVICE)?;
    let node = Addr::from(address(UNDERLAYS[0].neighbour));
    let member = Member::overlay(9, GATEWAY, overlay, 1400, node, TO_NEIGHBOUR);
    let maps = &mut field.datapath.maps;
    maps.write_member(1, &member)?;
    maps.write_verdicts(16, &[Verdict::new(POLICY, Decision::Member(1))])?;
    maps.turn_pod(SLOT, PodState::new(RowPlace::dense(0), 16))?;
    let pod = Wire::open(&field.pod, "eth0")?;
    let listening = Listening::on(&field)?;
    let settings = settings(&field)?;
    let device = Settings {
        underlay_ifindex: 0,
        ..settings
    };
    for overlaid in &OVERLAID {
        let is_v4 = !overlaid.pod.contains(':');
        let packet = |protocol, payload: &[u8]| {
            Frame::ip(overlaid.pod, overlaid.remote, protocol, payload).macs(HOST_MAC, POD_MAC)
        };
        let class = |tos: u8| {
            let frame = packet(proto::UDP, &udp(40_000, 53, 20));
            if is_v4 {
                let mut frame = frame;
                set(&mut frame.bytes, IP + 1, &[tos]);
                frame
            } else {
                frame.set(IP, &[0x60 | tos >> 4, tos << 4])
            }
        };
        let header = if is_v4 { 20 } else { 40 };
        let rows = [
            ("a datagram", packet(proto::UDP, &udp(40_000, 53, 20))),
            ("another flow's", packet(proto::UDP, &udp(40_002, 53, 20))),
            (
                "one of odd length",
                packet(proto::UDP, &udp(40_000, 53, 33)),
            ),
            ("an empty one", packet(proto::UDP, &udp(40_000, 53, 0))),
            (
                "as large as fits",
                packet(proto::UDP, &udp(40_000, 53, 1400 - header - 8)),
            ),
            (
                "a segment",
                packet(proto::TCP, &segment(40_000, 443, 0x10, 7, 100)),
            ),
            (
                "the start of a connection",
                packet(proto::TCP, &segment(40_000, 443, 0x02, 7, 0)),
            ),
            (
                "padding",
                packet(proto::UDP, &udp(40_000, 53, 1)).padded(&[7; 9]),
            ),
            ("a class", class(0xb8)),
            ("able to tell of congestion", class(0x02)),
            ("the same in the other way", class(0x01)),
            ("congestion", class(0x03)),
        ];
        for (name, frame) in rows {
            let context = || format!("{}: {name}", overlaid.pod);
            let mut seen = Vec::new();
            for (settings, made) in [(device, 1), (settings, 0)] {
                field.element(maps::SETTINGS, 0, settings)?;
                let before = of_stack(&field.counts()?);
                pod.send(&frame.bytes)?;
                let frame = listening.frame().with_context(context)?;
                let after = of_stack(&field.counts()?);
                ensure!(
                    after - before == made,
                    "{}: the stack made {}, not {made}",
                    context(),
                    after - before
                );
                seen.push(frame);
            }
            let [by_device, past_it] = &mut seen[..] else {
                bail!("not two frames");
            };
            for frame in [&mut *by_device, &mut *past_it] {
                let sum = u16::from_be_bytes([frame[IP + 10], frame[IP + 11]]);
                // Whatever number it has, the header sums up; and it is the only one.
                let number = [frame[IP + 4], frame[IP + 5]];
                set(frame, IP + 4, &number);
                let right = u16::from_be_bytes([frame[IP + 10], frame[IP + 11]]);
                ensure!(
                    sum == right,
                    "{}: sum {sum:04x}, not {right:04x}",
                    context()
                );
                set(frame, IP + 4, &[0, 0]);
            }
            ensure!(
                by_device == past_it,
                "{}: {} by the device, {} past it",
                context(),
                hex(by_device),
                hex(past_it)
            );
        }
    }
    Ok(())
}

/// Frames that the node's stack has made.
fn of_stack(counts: &BTreeMap<String, u64>) -> u64 {
    counts.get("the kernel: made").copied().unwrap_or_default()
}
