//! Who forges frames of the overlay gets nothing out of it, and is counted: a pod that seems to be its node, a host
//! that claims a node's address, and one that does not even do that.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context, Result, bail, ensure};
use egress_common::{
    gateway::GatewayId,
    overlay::{FrameKind, Tag},
};
use egress_tests::{
    ClusterStage, Host,
    client::{Wire, datagram_socket},
    cluster::{BLUE, ELSEWHERE, GATEWAY_NODE, KEY, OVERLAY_PORT, OVERLAY_VNI, RED, Seen},
    host::run,
    server::ECHO_PORT,
    wait,
};
use egress_userspace::overlay_keys::OverlayKeys;
use etherparse::PacketBuilder;

const FORGED: &[u8] = b"forged";
const GUESSES: u64 = 5;
/// The port that a forged packet seems to come from.
const FAR_PORT: u16 = 40_000;
const GUESSED: Tag = Tag([0x5a, 1, 2, 3, 4, 5]);

/// The identifier that a gateway's name makes, reckoned by coreutils.
fn identifier(gateway: &str) -> Result<GatewayId> {
    let mut digest = std::process::Command::new("bash");
    digest.args([
        "-c",
        "printf %s \"$0\" | sha256sum",
        &format!("default/{gateway}"),
    ]);
    let digest = run(&mut digest)?;
    let first = digest.get(..8).context("no digest")?;
    Ok(GatewayId(u32::from_str_radix(first, 16)?))
}

fn ip(
    from: IpAddr,
    to: IpAddr,
    macs: [[u8; 6]; 2],
    ports: [u16; 2],
    payload: &[u8],
) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(macs[0], macs[1]);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => bail!("{from} and {to} are of two families"),
    };
    let mut frame = Vec::new();
    ip.udp(ports[0], ports[1]).write(&mut frame, payload)?;
    Ok(frame)
}

/// What follows the UDP header: VXLAN's (RFC 7348, 5) and a frame with a tag that was guessed.
fn encapsulated(kind: FrameKind, from: IpAddr, to: IpAddr, vni: u32) -> Result<Vec<u8>> {
    tagged(GUESSED, kind, from, to, vni)
}

fn tagged(tag: Tag, kind: FrameKind, from: IpAddr, to: IpAddr, vni: u32) -> Result<Vec<u8>> {
    let ports = [FAR_PORT, ECHO_PORT];
    let inner = ip(from, to, [kind.to_mac().0, tag.0], ports, FORGED)?;
    let vni = (vni << 8).to_be_bytes();
    Ok([&[0x08, 0, 0, 0][..], &vni, &inner].concat())
}

fn nothing_arrived(stage: &ClusterStage) -> Result<()> {
    // What follows on the same way has arrived, so everything before has.
    for address in ELSEWHERE.addresses() {
        stage.expect_at("web", address, Seen::As(BLUE))?;
    }
    let seen = stage.outside.internet_datagrams.seen();
    ensure!(
        seen.iter().all(|datagram| datagram.payload != FORGED),
        "a forged packet came out: {seen:?}"
    );
    Ok(())
}

#[test]
fn an_unsteered_pod_behind_its_nodes_address() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let gateway = stage.node(GATEWAY_NODE)?.clone();
        let web = stage.pod("web")?.clone();
        let out = FrameKind::Out(identifier(RED.name)?);
        for outer in [gateway.v4.into(), gateway.v6.into()] {
            let to = SocketAddr::new(outer, OVERLAY_PORT);
            let socket = datagram_socket(stage.host("plain")?, to)?;
            for address in ELSEWHERE.addresses() {
                for (reason, kind, vni) in [
                    ("OverlayForged", out, OVERLAY_VNI),
                    (
                        "OverlayForged",
                        FrameKind::Back(identifier(RED.name)?),
                        OVERLAY_VNI,
                    ),
                    ("OverlayMalformed", out, OVERLAY_VNI + 1),
                ] {
                    let before = stage.dropped(GATEWAY_NODE, reason)?;
                    let payload = encapsulated(kind, web.address_like(address), address, vni)?;
                    for _ in 0..GUESSES {
                        socket.send(&payload)?;
                    }
                    stage.wait_for_drops(GATEWAY_NODE, reason, before + GUESSES)?;
                }
            }
        }
        nothing_arrived(stage)?;
        // The node's masquerade let them out, as it does with everything that an unsteered pod sends.
        stage.permit_forged("worker-1", GUESSED);
        Ok(())
    })
}

/// Sends frames of the overlay from a host of the segment, with an outer source of its choice.
fn forge(stranger: &Host, node: &Host, addresses: [IpAddr; 2], payload: &[u8]) -> Result<()> {
    let wire = Wire::open(stranger, "eth0")?;
    let macs = [stranger.mac("eth0")?, node.mac("eth0")?];
    let frame = ip(
        addresses[0],
        addresses[1],
        macs,
        [50_000, OVERLAY_PORT],
        payload,
    )?;
    for _ in 0..GUESSES {
        wire.send(&frame)?;
    }
    Ok(())
}

#[test]
fn a_host_that_claims_a_nodes_address() -> Result<()> {
    ClusterStage::usual()?.play(|stage| {
        stage.permit(BLUE, &[ELSEWHERE]);
        let stranger = stage.cluster.add_stranger("stranger", 99)?;
        let own: [IpAddr; 2] = ["172.18.0.99".parse()?, "fd00:18::99".parse()?];
        let (worker, gateway) = (stage.node("worker-1")?, stage.node(GATEWAY_NODE)?);
        let web = stage.pod("web")?;
        let out = FrameKind::Out(identifier(RED.name)?);
        for (round, inner) in ELSEWHERE.addresses().into_iter().enumerate() {
            let payload = encapsulated(out, web.address_like(inner), inner, OVERLAY_VNI)?;
            for (outer, own) in [
                (IpAddr::from(gateway.v4), own[0]),
                (gateway.v6.into(), own[1]),
            ] {
                for (reason, source) in [
                    ("OverlayForged", worker.address_like(outer)),
                    ("OverlayUnknownNode", own),
                ] {
                    let before = stage.dropped(GATEWAY_NODE, reason)?;
                    forge(&stranger, &gateway.host, [source, outer], &payload)?;
                    stage
                        .wait_for_drops(GATEWAY_NODE, reason, before + GUESSES)
                        .with_context(|| format!("round {round}, from {source} to {outer}"))?;
                }
            }
        }
        nothing_arrived(stage)?;

        // The other way: a reply that no gateway sent, and for the sake of comparison one whose tag is right.
        let back = FrameKind::Back(identifier(RED.name)?);
        let key = OverlayKeys::parse(KEY.as_bytes())?;
        let right = key.tag(OVERLAY_VNI, GATEWAY_NODE, worker.name);
        for remote in ELSEWHERE.addresses() {
            let own = web.address_like(remote);
            let socket = web.host.enter(|| {
                let socket = UdpSocket::bind((own, ECHO_PORT))?;
                socket.connect((remote, FAR_PORT))?;
                Ok(socket)
            })?;
            for outer in [IpAddr::from(worker.v4), worker.v6.into()] {
                let outer = [gateway.address_like(outer), outer];
                let send = |tag| {
                    let reply = tagged(tag, back, remote, own, OVERLAY_VNI)?;
                    forge(&stranger, &worker.host, outer, &reply)
                };
                // Zero is what stands for the second key where there is none.
                for tag in [GUESSED, Tag::ZERO] {
                    let before = stage.dropped(worker.name, "OverlayForged")?;
                    send(tag)?;
                    stage.wait_for_drops(worker.name, "OverlayForged", before + GUESSES)?;
                }
                socket.set_nonblocking(true)?;
                let heard = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
                assert_eq!(heard, Err(ErrorKind::WouldBlock), "{own} from {outer:?}");
                socket.set_nonblocking(false)?;
                socket.set_read_timeout(Some(wait::PATIENCE))?;
                send(right)?;
                for _ in 0..GUESSES {
                    assert_eq!(socket.recv(&mut [0; 64])?, FORGED.len());
                }
            }
        }
        nothing_arrived(stage)
    })
}
