//! Recorded connections: how their replies find the pod where the kernel never saw the first packet.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use egress_common::{
    DropReason, Mac, WireU16,
    keys::{ReplyKey, ReplyPath},
    maps::capacity,
};

use crate::{
    packet::Packet,
    parse::{self, Fragment, Ip, Quoted, TransportKind, transport},
};

#[btf_map]
static REPLIES: LruHashMap<ReplyKey, ReplyPath, { capacity::REPLIES as usize }> = LruHashMap::new();

/// Records the connection of a packet from a pod that leaves by the interface `via`.
#[inline(always)]
pub(crate) fn record(packet: &Packet<'_>, ip: &Ip, via: u32) -> Result<(), DropReason> {
    // A later fragment belongs to a connection that its first fragment has recorded.
    if matches!(ip.fragment, Fragment::Later(_)) {
        return Ok(());
    }
    let transport = transport(packet, ip.protocol, ip.l4, ip.end())?;
    match transport.kind {
        TransportKind::Flow | TransportKind::EchoRequest => {}
        // Answers and errors open nothing that somebody could reply to.
        TransportKind::EchoReply | TransportKind::IcmpError | TransportKind::IcmpOther => {
            return Ok(());
        }
    }
    let (host_mac, pod_mac) = packet.macs().ok_or(DropReason::Malformed)?;
    let path = ReplyPath {
        ifindex: packet.ifindex(),
        pod_mac,
        host_mac,
        via,
    };
    let key = ReplyKey {
        remote: ip.destination,
        pod: ip.source,
        remote_port: transport.destination_port,
        pod_port: transport.source_port,
        protocol: ip.protocol,
        pad: [0; 3],
    };
    // SAFETY: compared at once; a reused entry differs and is written anew.
    if unsafe { REPLIES.get(&key) }.is_some_and(|known| *known == path) {
        return Ok(());
    }
    REPLIES
        .insert(&key, &path, 0)
        .map_err(|_| DropReason::StateMissing)
}

/// Where a packet goes if it answers a recorded connection, or is an ICMP error about one.
#[inline(always)]
pub(crate) fn find(packet: &Packet<'_>, ip: &Ip) -> Option<ReplyPath> {
    let mut path = ReplyPath {
        ifindex: 0,
        pod_mac: Mac([0; 6]),
        host_mac: Mac([0; 6]),
        via: 0,
    };
    look_up(packet, ip, &mut path).then_some(path)
}

/// Fills in the path, and says whether there is one.
///
/// A function of its own: the quoted packet and the key would not fit the caller's stack (512 bytes).
/// It returns a flag, as [`parse::quoted`] does.
#[inline(never)]
fn look_up(packet: &Packet<'_>, ip: &Ip, path: &mut ReplyPath) -> bool {
    let Some(key) = key(packet, ip) else {
        return false;
    };
    // SAFETY: plain bytes, copied at once.
    let Some(known) = (unsafe { REPLIES.get(&key) }) else {
        return false;
    };
    *path = *known;
    true
}

/// What a reply's connection, or that of an error's quoted packet, is recorded under.
#[inline(always)]
fn key(packet: &Packet<'_>, ip: &Ip) -> Option<ReplyKey> {
    let transport = transport(packet, ip.protocol, ip.l4, ip.end()).ok()?;
    let mut key = ReplyKey {
        remote: ip.source,
        pod: ip.destination,
        remote_port: transport.source_port,
        pod_port: transport.destination_port,
        protocol: ip.protocol,
        pad: [0; 3],
    };
    match transport.kind {
        TransportKind::Flow => {}
        TransportKind::EchoReply => {
            key.remote_port = WireU16([0, 0]);
            key.pod_port = transport.source_port;
        }
        TransportKind::IcmpError => quoted(packet, ip, &mut key)?,
        TransportKind::EchoRequest | TransportKind::IcmpOther => return None,
    }
    Some(key)
}

/// Turns the key into that of the connection which an ICMP error quotes.
#[inline(always)]
fn quoted(packet: &Packet<'_>, ip: &Ip, key: &mut ReplyKey) -> Option<()> {
    let mut quoted = Quoted::unread();
    // An error goes to the sender of what it quotes; anything else is made up.
    if !parse::quoted(packet, ip, &mut quoted) || quoted.source != ip.destination {
        return None;
    }
    key.remote = quoted.destination;
    key.remote_port = quoted.transport.destination_port;
    key.pod_port = quoted.transport.source_port;
    key.protocol = quoted.protocol;
    Some(())
}
