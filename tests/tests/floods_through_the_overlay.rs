//! A pod of another node floods a gateway's node through the overlay, with flows and with datagrams in fragments: what
//! the other pods of that node have there holds.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use egress_common::{Addr, DropReason, gateway::Settings, maps, nat::NatState, overlay::FrameKind};
use egress_tests::{
    client::Wire,
    field::{DEVICE, Expect::Refuse, FIRST, Field, GATEWAY, PORT, UNDERLAYS, VNI, vxlan},
    packets::{
        build::{
            Frame, HOST_MAC, L3, address, fragment6,
            proto::{FRAGMENT, UDP},
        },
        nat::datagram,
    },
    wait,
};
use egress_userspace::kernel::Program;

/// Flows of the flood, and as many datagrams, in each family.
const FLOOD: u64 = 1 << 16;
/// Connections of the pod that has some, and datagrams that are on their way, in each family.
const CONNECTIONS: u16 = 50;
const DATAGRAMS: u16 = 20;
/// Connections that a source may have.
const QUOTA: u32 = 1000;
/// The first port of a pod's connections, and that of the far end.
const FIRST_PORT: u16 = 20_000;
const FAR: u16 = 53;

/// The same places in one family.
struct Places {
    /// The pod of the other node that has connections, and the one that floods.
    pods: [&'static str; 2],
    remote: &'static str,
    egress: &'static str,
    /// Where the header above IP is in a frame, and where the identification of a fragment.
    l4: usize,
    id: usize,
}

const PLACES: [Places; 2] = [
    Places {
        pods: ["10.9.0.5", "10.9.0.6"],
        remote: "192.0.2.7",
        egress: "203.0.113.10",
        l4: L3 + 20,
        id: L3 + 4,
    },
    Places {
        pods: ["fd09::5", "fd09::6"],
        remote: "2001:db8:1::7",
        egress: "2001:db8::10",
        l4: L3 + 40,
        id: L3 + 46,
    },
];

impl Places {
    /// A datagram of a pod's in two fragments.
    fn fragments(&self, pod: usize, port: u16, id: u16) -> [Frame; 2] {
        let whole = datagram((self.pods[pod], port), (self.remote, FAR), 40);
        let upper = &whole.bytes[self.l4..];
        [(0, true, &upper[..24]), (3, false, &upper[24..])].map(|(offset, more, part)| {
            if self.l4 == L3 + 20 {
                Frame::ip(self.pods[pod], self.remote, UDP, part).fragment(id, offset, more)
            } else {
                let part = fragment6(UDP, id.into(), offset, more, part);
                Frame::ip(self.pods[pod], self.remote, FRAGMENT, &part)
            }
        })
    }

    fn connection(&self, number: u16) -> Frame {
        datagram((self.pods[0], FIRST_PORT + number), (self.remote, FAR), 8)
    }

    fn reply(&self, number: u16) -> Frame {
        datagram((self.remote, FAR), (self.egress, FIRST_PORT + number), 8)
    }
}

/// A frame for the gateway, as the other node sends it.
fn framed(frame: Frame) -> Vec<u8> {
    let kind = FrameKind::Out(GATEWAY);
    vxlan(VNI, &frame.macs(FIRST.0, kind.to_mac().0).bytes)
}

/// Sends frames from the other node.
fn send(field: &Field, frames: impl Iterator<Item = Vec<u8>> + Send) -> Result<()> {
    let [underlay, _] = UNDERLAYS;
    field.neighbour.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(address(underlay.neighbour), 0))?;
        socket.connect(SocketAddr::new(address(underlay.node), PORT))?;
        for frame in frames {
            socket.send(&frame)?;
        }
        Ok(())
    })
}

/// The frame with each number at this place of its inner one.
fn varied(frame: Frame, at: usize) -> impl Iterator<Item = Vec<u8>> + Send {
    let frame = framed(frame);
    (0..=u16::MAX).map(move |number| {
        let mut frame = frame.clone();
        frame[8 + at..][..2].copy_from_slice(&number.to_be_bytes());
        frame
    })
}

/// How far a counter is.
fn counted(field: &mut Field, what: &str) -> Result<u64> {
    Ok(field.counts()?.get(what).copied().unwrap_or(0))
}

/// Waits until a counter has gone up by so much.
fn wait_for(field: &mut Field, what: &str, from: u64, more: u64) -> Result<()> {
    wait::until(&format!("{more} more are {what}"), || {
        let now = counted(field, what)?;
        ensure!(now - from == more, "{}: {:?}", now - from, field.counts()?);
        Ok(())
    })
}

fn seed(field: &mut Field) -> Result<()> {
    let settings = Settings {
        overlay_ifindex: field.ifindex(DEVICE)?,
        vni: VNI,
        source_quota: QUOTA,
        timeouts: [600; NatState::COUNT],
        ..Settings::default()
    };
    field.element(maps::SETTINGS, 0, settings)?;
    for (index, p) in (1_u32..).zip(&PLACES) {
        let egress = Addr::from(address(p.egress));
        field.entry(maps::EGRESS_ADDRS, egress, index)?;
    }
    field.attach(Program::FromOverlay, DEVICE)?;
    field.attach(Program::FromUplink, "eth0")
}

#[test]
fn break_nothing_of_other_pods() -> Result<()> {
    const OUT: &str = "translated Out";
    const BACK: &str = "translated Back";
    let mut field = Field::new()?;
    seed(&mut field)?;
    let uplink = Wire::open(&field.neighbour, "eth0")?;
    let node_mac = field.node.mac("eth0")?;
    for p in &PLACES {
        let out = counted(&mut field, OUT)?;
        let connections = (0..CONNECTIONS).map(|number| p.connection(number));
        let datagrams = (0..DATAGRAMS).map(|id| p.fragments(0, FIRST_PORT, id));
        let (firsts, laters): (Vec<Frame>, Vec<Frame>) =
            datagrams.map(|[first, later]| (first, later)).unzip();
        send(&field, connections.chain(firsts).map(framed))?;
        wait_for(&mut field, OUT, out, u64::from(CONNECTIONS + DATAGRAMS))?;

        let quota = format!("{:?}", Refuse(DropReason::SourceQuota));
        let refused = counted(&mut field, &quota)?;
        let out = counted(&mut field, OUT)?;
        let [first, _] = p.fragments(1, FIRST_PORT, 0);
        send(&field, varied(first, p.id))?;
        let flow = datagram((p.pods[1], 0), (p.remote, FAR), 8);
        send(&field, varied(flow, p.l4))?;
        // A device may have lost some.
        let most = FLOOD * 9 / 10;
        wait::until("the flood has arrived", || {
            let refused = counted(&mut field, &quota)? - refused;
            let out = counted(&mut field, OUT)? - out;
            ensure!(
                refused >= most && out >= most,
                "{refused} refused, {out} sent out"
            );
            Ok(())
        })?;

        let out = settled(&mut field, OUT)?;
        send(&field, laters.into_iter().map(framed))?;
        wait_for(&mut field, OUT, out, DATAGRAMS.into())?;
        let back = counted(&mut field, BACK)?;
        for number in 0..CONNECTIONS {
            uplink.send(&p.reply(number).macs(node_mac, HOST_MAC).bytes)?;
        }
        wait_for(&mut field, BACK, back, CONNECTIONS.into())?;
        // And what is new finds room.
        let out = counted(&mut field, OUT)?;
        let connections = (CONNECTIONS..2 * CONNECTIONS).map(|number| p.connection(number));
        let fragments = (DATAGRAMS..2 * DATAGRAMS).flat_map(|id| p.fragments(0, FIRST_PORT, id));
        send(&field, connections.chain(fragments).map(framed))?;
        let new = CONNECTIONS + 2 * DATAGRAMS;
        wait_for(&mut field, OUT, out, new.into())?;
    }
    Ok(())
}

/// A counter, once the last of what was sent has arrived.
fn settled(field: &mut Field, what: &str) -> Result<u64> {
    let mut last = None;
    wait::until("the flood is over", || {
        let now = counted(field, what)?;
        ensure!(last.replace(now) == Some(now), "still {now}");
        Ok(now)
    })
}
