//! Which member of a group a flow uses.

use egress_common::{DropReason, cells::SLOTS, flow::Flow};

use crate::{
    fragments, lines,
    packet::Packet,
    parse::{self, Fragment, Ip},
};

/// The number of the member, within its group, that the packet's flow uses.
#[inline(always)]
pub(crate) fn member(packet: &Packet<'_>, ip: &Ip, slot_lines: u32) -> Result<u32, DropReason> {
    let hash = match ip.fragment {
        Fragment::Whole => flow_hash(packet, ip)?,
        Fragment::First(id) => {
            let hash = flow_hash(packet, ip)?;
            fragments::remember_hash(ip, id, hash);
            hash
        }
        Fragment::Later(id) => fragments::hash(ip, id).ok_or(DropReason::FragmentUnknown)?,
    };
    match lines::cell(slot_lines, hash % SLOTS) {
        Some(number) => Ok(u32::from(number)),
        None => Err(DropReason::StateMissing),
    }
}

#[inline(always)]
fn flow_hash(packet: &Packet<'_>, ip: &Ip) -> Result<u32, DropReason> {
    let transport = parse::transport(packet, ip.protocol, ip.l4, ip.end())?;
    let flow = Flow {
        source: ip.source,
        destination: ip.destination,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: ip.protocol,
    };
    Ok(flow.hash())
}
