//! How a frame has to arrive: from where, to whom, by which next hop; what arrives otherwise is not measured.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, ensure};

use super::road::{KEPT, Road};
use crate::world::{Flow, HOST_MAC, Target, Template, World};

/// The TTL that frames start with.
const TTL: u8 = 64;

/// How.
#[derive(Clone, Copy, Debug)]
pub(super) struct Right {
    pub(super) next_hop: NextHop,
    pub(super) source: Source,
    /// How many hosts lower the TTL.
    pub(super) lowered: u8,
}

/// To whom the frame is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextHop {
    /// Nobody else than at first.
    Untouched,
    /// The one of the default route.
    First,
    /// That of the gateway that the pod's policy says.
    OfGateway,
}

/// The packet's source.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The pod, with its port.
    Own,
    /// This address.
    One(IpAddr),
    /// The egress address of the gateway that the pod's policy says.
    OfGateway(fn(u32) -> IpAddr),
}

impl NextHop {
    /// The address of the default route's for zero, and those of gateways from one on.
    pub(super) fn address(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0xc633_6401 + number)
    }

    /// Its MAC.
    pub(super) fn mac(number: u32) -> [u8; 6] {
        let [.., last] = number.to_be_bytes();
        [2, 0, 0, 0, 0xcc, 9 + last]
    }
}

impl Right {
    /// As a router does it.
    pub(super) const fn forwarded(next_hop: NextHop) -> Self {
        Self {
            next_hop,
            source: Source::Own,
            lowered: 1,
        }
    }

    /// Sends the first flows' frames, and compares what arrives.
    pub(super) fn check(&self, world: &World, flows: &[Flow], road: &Road) -> Result<()> {
        let arrived = road.in_order(KEPT)?;
        // Devices of their own may overtake each other.
        let mut sent: HashMap<(IpAddr, u16), VecDeque<&Flow>> = HashMap::new();
        for flow in flows.iter().cycle().take(KEPT as usize) {
            let destination = (flow.destination, flow.destination_port);
            sent.entry(destination).or_default().push_back(flow);
        }
        for frame in &arrived {
            let seen = Flow::read(frame).context("something is no packet any more")?;
            let destination = (seen.destination, seen.destination_port);
            let flow = sent
                .get_mut(&destination)
                .and_then(VecDeque::pop_front)
                .with_context(|| format!("nobody sent {seen:?}, or not that often"))?;
            self.compare(world, flow, &seen, frame)
                .with_context(|| format!("{flow:?}"))?;
        }
        ensure!(
            arrived.len() == KEPT as usize,
            "of {KEPT} packets, {} arrived",
            arrived.len()
        );
        Ok(())
    }

    fn compare(&self, world: &World, flow: &Flow, seen: &Flow, frame: &Template) -> Result<()> {
        let pod = world.pod(flow.source).context("it is no pod's")?;
        let Some((_, Target::Gateway(gateway))) = world.verdict(pod, flow.destination) else {
            anyhow::bail!("it is not to be steered");
        };
        let (source, source_port) = match self.source {
            Source::Own => (flow.source, flow.source_port),
            Source::One(address) => (address, seen.source_port),
            Source::OfGateway(egress) => (egress(gateway), seen.source_port),
        };
        let wanted = Flow {
            source,
            source_port,
            ..*flow
        };
        ensure!(*seen == wanted, "it arrived as {seen:?}, not as {wanted:?}");
        let ttl = TTL - self.lowered;
        ensure!(
            Flow::ttl(frame) == Some(ttl),
            "its TTL is {:?}, not {ttl}",
            Flow::ttl(frame)
        );
        let to = match self.next_hop {
            NextHop::Untouched => HOST_MAC,
            NextHop::First => NextHop::mac(0),
            NextHop::OfGateway => NextHop::mac(gateway + 1),
        };
        ensure!(
            frame[..6] == to,
            "it was sent to {:02x?}, not to {to:02x?}",
            &frame[..6]
        );
        ensure!(
            crate::world::checksum(&frame[14..34]) == 0,
            "its checksum is wrong"
        );
        Ok(())
    }
}
