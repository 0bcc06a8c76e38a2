//! Frames on a real overlay device: whose are taken, what becomes of each, and that the kernel sees none.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use egress_common::{
    Addr, DropReason, Family,
    cells::RowPlace,
    counter::Answer,
    gateway::{EGRESS_DOWN, Egress, GatewayId, GatewayKey, Settings},
    maps,
    overlay::FrameKind,
    pod::PodFacts,
    probe,
    verdict::{Decision, Member, PodState, Verdict},
};
use egress_tests::{
    client::Wire,
    field::{
        DEVICE,
        Expect::{Deliver, Drop, Refuse},
        FIRST, Field, GATEWAY, OVERLAID, Overlaid, POLICY, PORT, SLOT, TO_NEIGHBOUR, UNDERLAYS,
        VNI, datagram, rows, vxlan,
    },
    packets::{
        Input,
        answer::answered,
        build::{Frame, HOST_MAC, L3, POD_MAC, address, hex},
    },
    wait,
};
use egress_userspace::kernel::Program;
use etherparse::{PacketBuilder, TcpOptionElement};
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

/// A probe is answered by the node that has the gateway, as long as its own probes find nothing wrong.
/// Keeps the thread, and those that it starts, where it is: each CPU has a queue of its own for what comes out of a veth, and
/// what is sent from several may be taken up in any order.
fn stay_on_this_cpu() -> Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &here)?)
}

#[test]
fn probes_are_answered_for_gateways_that_are_in_order() -> Result<()> {
    stay_on_this_cpu()?;
    let mut field = Field::new()?;
    field.attach(Program::FromOverlay, DEVICE)?;
    let [underlay, _] = &UNDERLAYS;
    let listening = field.neighbour.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(address(underlay.neighbour), PORT))?;
        Ok(socket)
    })?;
    listening.set_read_timeout(Some(wait::PATIENCE))?;
    let before = field.counts()?;
    let ask = |gateway: GatewayId, cookie: u8| {
        Frame::raw(probe::ETHERTYPE, &[cookie; 46])
            .macs(FIRST.0, FrameKind::Probe(gateway).to_mac().0)
            .bytes
    };
    let unknown = GatewayId(GATEWAY.0 + 1);
    let mut down = Egress {
        flags: EGRESS_DOWN,
        gateway: unknown,
        address: Addr::from(address("203.0.113.11")),
        ..Egress::default()
    };
    for (what, gateway, cookie, answered) in [
        ("of another node's", unknown, 1, false),
        ("of this node's", GATEWAY, 2, true),
        ("of this node's that is down", unknown, 3, false),
        ("of this node's that is up again", unknown, 4, true),
    ] {
        if cookie >= 3 {
            field.element(maps::EGRESS, 7, down)?;
            field.entry(maps::GATEWAYS, GatewayKey::new(unknown, Family::V4), 7)?;
            down.flags = 0;
        }
        field.send(
            underlay.neighbour,
            underlay.node,
            VNI,
            &ask(gateway, cookie),
        )?;
        // Answers come in order: another one would be of a probe that should have none.
        let sent = if answered { cookie } else { 0 };
        if !answered {
            field.send(underlay.neighbour, underlay.node, VNI, &ask(GATEWAY, sent))?;
        }
        let mut frame = [0; 128];
        let length = listening.recv(&mut frame).with_context(|| what)?;
        let of = if answered { gateway } else { GATEWAY };
        let reply = Frame::raw(probe::ETHERTYPE, &[sent; 46])
            .macs(TO_NEIGHBOUR.0, FrameKind::ProbeReply(of).to_mac().0);
        ensure!(frame[..length] == *vxlan(VNI, &reply.bytes), "{what}");
    }
    field.expect(&before, &[])
}

#[test]
fn only_what_nodes_send_is_taken_and_nothing_reaches_the_kernel() -> Result<()> {
    let mut field = Field::new()?;
    // Without the program the kernel gets what arrives: the counter would tell.
    let [underlay, _] = &UNDERLAYS;
    let before = field.counts()?;
    let frame = OVERLAID[0].out(20).macs([0xff; 6], HOST_MAC).bytes;
    field.send(underlay.stranger, underlay.node, VNI, &frame)?;
    field.expect(&before, &["the kernel: seen"])?;

    field.attach(Program::FromOverlay, DEVICE)?;
    for underlay in &UNDERLAYS {
        for overlaid in &OVERLAID {
            for row in rows(overlaid) {
                let context = format!("{} over {}: {}", overlaid.pod, underlay.name, row.name);
                let before = field.counts()?;
                field.send(underlay.neighbour, underlay.node, VNI, &row.frame)?;
                let wanted = match row.expect {
                    Deliver => "the pod: delivered".to_owned(),
                    drop @ (Drop(_) | Refuse(_)) => format!("{drop:?}"),
                };
                field.expect(&before, &[&wanted]).context(context)?;
            }
            let right = overlaid
                .back(overlaid.pod)
                .macs(FIRST.0, FrameKind::Back(GATEWAY).to_mac().0)
                .bytes;
            for (name, from, vni, reason) in [
                (
                    "no node",
                    underlay.stranger,
                    VNI,
                    DropReason::OverlayUnknownNode,
                ),
                (
                    "another network",
                    underlay.neighbour,
                    VNI + 1,
                    DropReason::OverlayMalformed,
                ),
                (
                    "the network 0",
                    underlay.neighbour,
                    0,
                    DropReason::OverlayMalformed,
                ),
            ] {
                let context = format!("{} over {}: {name}", overlaid.pod, underlay.name);
                let before = field.counts()?;
                field.send(from, underlay.node, vni, &right)?;
                let wanted = format!("{:?}", Drop(reason));
                field.expect(&before, &[&wanted]).context(context)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_pods_packet_arrives_at_the_node_of_its_gateway() -> Result<()> {
    let mut field = Field::new()?;
    field.attach(Program::FromPod, "pod0")?;
    let overlay = field.ifindex(DEVICE)?;
    let pod = Wire::open(&field.pod, "eth0")?;
    for underlay in &UNDERLAYS {
        let node = Addr::from(address(underlay.neighbour));
        let member = Member::overlay(9, GATEWAY, overlay, 1400, node, TO_NEIGHBOUR);
        let maps = &mut field.datapath.maps;
        maps.write_member(1, &member)?;
        maps.write_verdicts(16, &[Verdict::new(POLICY, Decision::Member(1))])?;
        maps.turn_pod(SLOT, PodState::new(RowPlace::dense(0), 16))?;
        for overlaid in &OVERLAID {
            let context = || format!("{} over {}", overlaid.pod, underlay.name);
            let (large, fitting) = if overlaid.pod.contains(':') {
                (1440, 1340)
            } else {
                (1460, 1360)
            };
            let tag = TO_NEIGHBOUR.0;
            let kind = FrameKind::Out(GATEWAY).to_mac().0;
            let sent = syn(overlaid, [POD_MAC, HOST_MAC], 64, large)?;
            let wanted = vxlan(VNI, &syn(overlaid, [kind, tag], 63, fitting)?);
            let received = field.neighbour.enter(|| {
                let socket = UdpSocket::bind(SocketAddr::new(address(underlay.neighbour), PORT))?;
                socket.set_read_timeout(Some(wait::PATIENCE))?;
                pod.send(&sent)?;
                let mut bytes = vec![0; 2048];
                let (length, from) = socket.recv_from(&mut bytes)?;
                ensure!(from.ip() == address(underlay.node), "it came from {from}");
                bytes.truncate(length);
                Ok(bytes)
            });
            let received = received.with_context(context)?;
            ensure!(
                received == wanted,
                "{}: {received:02x?}, wanted {wanted:02x?}",
                context()
            );
        }
    }
    Ok(())
}

/// What its own side of the veth would drop, and what has no hop left: the far end is told, by the gateway.
#[test]
fn a_reply_that_a_pod_does_not_take_is_answered_through_its_gateway() -> Result<()> {
    const ROOM: u32 = 1300;
    let mut field = Field::new()?;
    let facts = PodFacts {
        mtu: ROOM,
        ..PodFacts::default()
    };
    field.element(maps::POD_FACTS, SLOT, facts)?;
    field.attach(Program::FromOverlay, DEVICE)?;
    let underlay = &UNDERLAYS[0];
    for overlaid in &OVERLAID {
        let is_v4 = !overlaid.pod.contains(':');
        let header = if is_v4 { 20 } else { 40 };
        let reply = |size: usize| {
            let frame = datagram(overlaid.remote, overlaid.pod, size - header - 8);
            let frame = if is_v4 {
                frame.set(L3 + 6, &[0x40, 0])
            } else {
                frame
            };
            frame.macs(FIRST.0, FrameKind::Back(GATEWAY).to_mac().0)
        };
        let fits = reply(1300);
        let before = field.counts()?;
        field.send(underlay.neighbour, underlay.node, VNI, &fits.bytes)?;
        field.expect(&before, &["the pod: delivered"])?;
        for (name, frame, reason, answer) in [
            ("too big", reply(1301), DropReason::TooBig, Answer::TooBig),
            (
                "too old",
                reply(100).ttl(1),
                DropReason::TtlExceeded,
                Answer::TimeExceeded,
            ),
        ] {
            let context = || format!("{}: {name}", overlaid.pod);
            let told = answered(
                &Input::to_pod(&frame.bytes),
                answer,
                ROOM,
                &Settings::default(),
            );
            // From the pod, for the gateway that the reply came from.
            let mut told = Frame { bytes: told };
            told = told.macs(TO_NEIGHBOUR.0, FrameKind::Out(GATEWAY).to_mac().0);
            let before = field.counts()?;
            let received = field.neighbour.enter(|| {
                let socket = UdpSocket::bind(SocketAddr::new(address(underlay.neighbour), PORT))?;
                socket.set_read_timeout(Some(wait::PATIENCE))?;
                let to = SocketAddr::new(address(underlay.node), PORT);
                socket.send_to(&vxlan(VNI, &frame.bytes), to)?;
                let mut bytes = vec![0; 2048];
                let length = socket.recv(&mut bytes)?;
                bytes.truncate(length);
                Ok(bytes)
            });
            let received = received.with_context(context)?;
            assert_eq!(
                hex(&received),
                hex(&vxlan(VNI, &told.bytes)),
                "{}",
                context()
            );
            let wanted = format!("{:?}", Drop(reason));
            field.expect(&before, &[&wanted]).with_context(context)?;
        }
    }
    Ok(())
}

/// A frame with a SYN of the pod's that tells this segment size; `macs` are source and destination.
fn syn(of: &Overlaid, macs: [[u8; 6]; 2], ttl: u8, mss: u16) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(macs[0], macs[1]);
    let ip = match (address(of.pod), address(of.remote)) {
        (IpAddr::V4(pod), IpAddr::V4(to)) => ethernet.ipv4(pod.octets(), to.octets(), ttl),
        (IpAddr::V6(pod), IpAddr::V6(to)) => ethernet.ipv6(pod.octets(), to.octets(), ttl),
        mixed => bail!("{mixed:?} are not of one family"),
    };
    let mut bytes = Vec::new();
    ip.tcp(40_000, 443, 1, 65_535)
        .syn()
        .options(&[TcpOptionElement::MaximumSegmentSize(mss)])?
        .write(&mut bytes, &[])?;
    Ok(bytes)
}
