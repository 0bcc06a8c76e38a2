//! Recorded connections: how their replies find the pod where the kernel never saw the first packet.

use egress_common::{
    DropReason, WireU16,
    keys::{ReplyKey, ReplyPath},
};

use crate::{
    direct,
    packet::Packet,
    parse::{self, Fragment, Ip, Quoted, TransportKind, protocol, transport},
    table::{self, Look, Payer, Table},
};

/// Records the connection of a packet from a pod that leaves by the interface `via`.
#[inline(always)]
pub(crate) fn record(packet: &Packet<'_>, ip: &Ip, via: u32) -> Result<(), DropReason> {
    // A later fragment belongs to a connection that its first fragment has recorded.
    if matches!(ip.fragment, Fragment::Later(_)) {
        return Ok(());
    }
    if is_noted(packet, ip, via) {
        return Ok(());
    }
    let look = table::look().ok_or(DropReason::StateMissing)?;
    match begin(packet, ip, look) {
        OPENS => {}
        // Answers and errors open nothing that somebody could reply to.
        NOTHING => return Ok(()),
        _ => return Err(DropReason::Malformed),
    }
    let (host_mac, pod_mac) = packet.macs().ok_or(DropReason::Malformed)?;
    let path = ReplyPath {
        ifindex: packet.ifindex(),
        pod_mac,
        host_mac,
        via,
    };
    note(look, &path)
}

/// Whether the packet is of a connection that is recorded, in use, and was noted in this very second: as almost every
/// packet is of one that is busy.
///
/// Only of TCP and UDP, where the kernel has the headers in one piece; whatever else it may be, the long way tells.
#[inline(always)]
fn is_noted(packet: &Packet<'_>, ip: &Ip, via: u32) -> bool {
    let Some([a, b, c]) = direct::reply_macs(packet) else {
        return false;
    };
    let room = ip.end().saturating_sub(ip.l4) as usize;
    let ports = match ip.protocol {
        protocol::TCP if room >= TCP_START => {
            let Some(header) = direct::at::<TCP_START>(packet, ip.l4) else {
                return false;
            };
            if !table::is_plain(header.byte::<{ TCP_START - 1 }>().into()) {
                return false;
            }
            header.word::<0>()
        }
        protocol::UDP if room >= PORTS => match direct::at::<PORTS>(packet, ip.l4) {
            Some(header) => header.word::<0>(),
            None => return false,
        },
        _ => return false,
    };
    let Some(look) = table::look() else {
        return false;
    };
    // The far end's port comes first.
    let ports = ports.rotate_left(16);
    let found = look.seek(
        Table::Replies,
        &ip.destination,
        &ip.source,
        ports,
        ip.protocol,
    );
    // Not on the stack, which on this way has no room for it.
    look.tell([packet.ifindex(), a, b, c, via]);
    found.is_some_and(|bucket| table::is_noted(bucket, look))
}

/// Bytes of a TCP header up to its flags, and of both ports.
const TCP_START: usize = 14;
const PORTS: usize = 4;

/// Fills in what the connection of a pod's packet is recorded under, if there may be replies. Gives a constant, or
/// [`BROKEN`].
#[inline(never)]
fn begin(packet: &Packet<'_>, ip: &Ip, look: &mut Look) -> u32 {
    let Ok(transport) = transport(packet, ip.protocol, ip.l4, ip.end()) else {
        return BROKEN;
    };
    match transport.kind {
        TransportKind::Flow | TransportKind::EchoRequest => {}
        TransportKind::EchoReply | TransportKind::IcmpError | TransportKind::IcmpOther => {
            return NOTHING;
        }
    }
    look.set_reply(&ReplyKey {
        remote: ip.destination,
        pod: ip.source,
        remote_port: transport.destination_port,
        pod_port: transport.source_port,
        protocol: ip.protocol,
        pad: [0; 3],
    });
    look.flags = table::flags(packet, ip);
    OPENS
}

/// Enters the connection, or notes that it is in use.
#[inline(never)]
fn note(look: &mut Look, path: &ReplyPath) -> Result<(), DropReason> {
    let bucket = look
        .bucket(Table::Replies)
        .ok_or(DropReason::StateMissing)?;
    let found = table::find(look);
    look.put(path, found);
    if table::note(bucket, look, Payer::Second) {
        Ok(())
    } else {
        Err(DropReason::FlowsExhausted)
    }
}

/// Fills in where a packet goes if it answers a recorded connection, or is an ICMP error about one, and says whether it
/// does.
///
/// A function of its own: the key would not fit the caller's stack (512 bytes). It returns a flag, as
/// [`parse::quoted`] does.
#[inline(never)]
pub(crate) fn find(packet: &Packet<'_>, ip: &Ip, path: &mut ReplyPath) -> bool {
    let mut key = ReplyKey {
        remote: ip.source,
        pod: ip.destination,
        remote_port: WireU16([0, 0]),
        pod_port: WireU16([0, 0]),
        protocol: ip.protocol,
        pad: [0; 3],
    };
    match fill(packet, ip, &mut key) {
        REPLY => recall(&key, path, table::flags(packet, ip)),
        ERROR => recall(&key, path, QUOTED),
        _ => false,
    }
}

/// In place of TCP's flags: anybody can quote, so that nothing is noted.
const QUOTED: u32 = 0x200;

/// Fills in the path of a connection, and says whether there is one. Notes that it was answered by a packet with these
/// flags of TCP's, or [`table::NOT_TCP`].
#[inline(never)]
fn recall(key: &ReplyKey, path: &mut ReplyPath, flags: u32) -> bool {
    let Some(look) = table::look() else {
        return false;
    };
    look.set_reply(key);
    look.flags = flags;
    let Some(bucket) = look.bucket(Table::Replies) else {
        return false;
    };
    if table::recall(bucket, look) {
        look.get(path);
        return true;
    }
    if !table::find(look) {
        return false;
    }
    look.get(path);
    if flags & QUOTED == 0 {
        table::answered(bucket, look);
    }
    true
}

/// What a packet is: nothing to us, an answer, an error about what it quotes, what may be answered, or cut short.
const NOTHING: u32 = 0;
const REPLY: u32 = 1;
const ERROR: u32 = 2;
const OPENS: u32 = 3;
const BROKEN: u32 = 4;

/// Completes what a reply's connection, or that of an error's quoted packet, is recorded under; addresses and protocol
/// are those of the packet.
#[inline(never)]
fn fill(packet: &Packet<'_>, ip: &Ip, key: &mut ReplyKey) -> u32 {
    let Ok(transport) = transport(packet, ip.protocol, ip.l4, ip.end()) else {
        return NOTHING;
    };
    match transport.kind {
        TransportKind::Flow => {
            key.remote_port = transport.source_port;
            key.pod_port = transport.destination_port;
            REPLY
        }
        TransportKind::EchoReply => {
            key.pod_port = transport.source_port;
            REPLY
        }
        TransportKind::IcmpError if quoted(packet, ip, key).is_some() => ERROR,
        TransportKind::IcmpError | TransportKind::EchoRequest | TransportKind::IcmpOther => NOTHING,
    }
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
