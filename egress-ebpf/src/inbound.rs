//! Connections that came in to pods: their replies go back the way they came, whatever the policy says.
//!
//! What comes in may be forged: an address and a port of the far end of a pod's own connection. So a SYN
//! lets nothing pass but what only a SYN is answered with, a connection that the pod has started is its own
//! (a SYN from the far end, RFC 9293's simultaneous open, does not change that), and UDP opens nothing but
//! on ports that the pod names. What is forgotten, here or in `own`, goes by the policy.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use egress_common::{
    WireU16,
    keys::ReplyKey,
    pod::{Choice, FLOW_SECONDS},
    table::{Bucket, State, life},
};

use crate::{
    classify, fragments, locals, own,
    packet::Packet,
    parse::{self, Fragment, Ip, load_within, protocol},
    pods,
    table::{self, Look, Payer, Table},
    verdicts,
};

/// Where TCP's flags lie, and the flags (RFC 9293, 3.1).
const TCP_FLAGS: u32 = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP header up to its flags.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    source: WireU16,
    destination: WireU16,
    sequence: [u8; 4],
    acknowledgment: [u8; 4],
    offset: u8,
    flags: u8,
}

/// Whether TCP flags are those of the first packet of a connection.
#[inline(always)]
pub(crate) const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}

/// Remembers the connection that a packet to a pod opens, if it does.
#[inline(always)]
pub(crate) fn arrived(packet: &Packet<'_>, ip: &Ip) {
    if let Some(slot) = pods::slot_at(packet.ifindex(), ip.destination)
        && (ip.protocol != protocol::UDP || names_ports(slot))
        && (!is_from_cluster(slot, ip) || is_hidden_by_node(packet, ip))
        && open(packet, ip, slot)
    {
        pods::note_inbound(slot);
    }
}

/// Keeps the pod's own flow of a packet that came in through a gateway, where it could be forgotten: a far
/// end may send for longer than the pod is silent, and should not seem to open the flow afterwards.
#[inline(always)]
pub(crate) fn delivered(packet: &Packet<'_>, ip: &Ip) {
    if ip.protocol == protocol::UDP
        && let Some(slot) = pods::slot_at(packet.ifindex(), ip.destination)
        && names_ports(slot)
    {
        keep(packet, ip, slot);
    }
}

/// Says that the pod's own flow of a datagram to it is in use, and whether there is such a flow.
#[inline(never)]
fn keep(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    if matches!(ip.fragment, Fragment::Later(_)) {
        return false;
    }
    let Some([source, destination]) = load_within::<[WireU16; 2]>(packet, ip.l4, ip.end()) else {
        return false;
    };
    is_named(slot, destination) && own::keep(&key_to_pod(ip, source, destination), true)
}

/// Whether the far end is one of the cluster's own: packets to it are never steered, and a pod that is only
/// probed and talked to by its cluster should not pay for it.
#[inline(always)]
fn is_from_cluster(slot: u32, ip: &Ip) -> bool {
    let class = classify::class(ip.family, &ip.source);
    pods::state(slot).is_some_and(|state| verdicts::is_cluster(state, class))
}

/// Whether the node itself may have put its own address in the place of the far end's: its NAT takes that back, and
/// the answer leaves. What a socket of the node's sends nobody received, and is nobody else's.
#[inline(always)]
fn is_hidden_by_node(packet: &Packet<'_>, ip: &Ip) -> bool {
    packet.received_by() != 0 && locals::mark() != 0 && locals::is_node(&ip.source)
}

/// Opens, or keeps open, the connection of a packet to a pod, and says whether it did.
#[inline(never)]
fn open(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    if matches!(ip.fragment, Fragment::Later(_)) {
        return false;
    }
    let Some([source, destination]) = load_within::<[WireU16; 2]>(packet, ip.l4, ip.end()) else {
        return false;
    };
    match ip.protocol {
        protocol::TCP => {
            if !load_within(packet, ip.l4 + TCP_FLAGS, ip.end()).is_some_and(opens) {
                return false;
            }
        }
        protocol::UDP => {
            if !is_named(slot, destination) {
                return false;
            }
        }
        _ => return false,
    }
    let key = key_to_pod(ip, source, destination);
    // What came in and lives is not the pod's own, however crowded it is where that would be known.
    if refresh(&key) {
        return true;
    }
    if own::may_be(&key) {
        // A SYN keeps nothing: the pod may answer it only as long as it repeats its own.
        if ip.protocol == protocol::UDP {
            own::keep(&key, false);
        }
        return false;
    }
    if !enter(&key) {
        return false;
    }
    // The pod may have started the flow since: whoever comes second, here or in `is_reply`, takes it back.
    if own::may_be(&key) {
        forget(&key);
        return false;
    }
    true
}

/// Says that a packet came in on a connection, if it is one that lives.
#[inline(never)]
fn refresh(key: &ReplyKey) -> bool {
    let Some((bucket, look)) = find(key) else {
        return false;
    };
    // A connection of TCP that the pod has answered is open for as long as it is known.
    let answered = key.protocol == protocol::TCP && !look.is(State::New);
    if !answered && !look.is_alive() {
        return false;
    }
    table::touch(bucket, look, FLOW_SECONDS);
    true
}

/// Enters the connection that a packet opens, and says whether there is room.
#[inline(never)]
fn enter(key: &ReplyKey) -> bool {
    let Some((_, look)) = place(key) else {
        return false;
    };
    look.state = State::New as u32;
    look.until = look.now.wrapping_add(FLOW_SECONDS);
    table::enter(look, Payer::Second)
}

#[inline(never)]
fn forget(key: &ReplyKey) {
    if let Some((bucket, look)) = find(key) {
        table::remove(bucket, look);
    }
}

#[inline(always)]
fn find(key: &ReplyKey) -> Option<(*mut Bucket, &'static mut Look)> {
    let (bucket, look) = place(key)?;
    table::find(look).then_some((bucket, look))
}

#[inline(always)]
fn place(key: &ReplyKey) -> Option<(*mut Bucket, &'static mut Look)> {
    let look = table::look()?;
    look.set_reply(key);
    let bucket = look.bucket(Table::Inbound)?;
    Some((bucket, look))
}

/// Whether a pod's packet, which the policy would steer or has no gateway for, answers a connection that came in.
#[inline(always)]
pub(crate) fn is_reply(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    concerns(packet, ip, slot) && judge(packet, slot)
}

/// Whether a pod's packet for the cluster answers a connection that came in by an address of the node's own.
#[inline(always)]
pub(crate) fn is_reply_by_node(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    concerns(packet, ip, slot) && locals::is_node(&ip.destination) && judge(packet, slot)
}

/// Whether a packet opens a connection, or is of a pod that has something to do with others'.
#[inline(always)]
fn concerns(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    let later = matches!(ip.fragment, Fragment::Later(_));
    pods::has_inbound(slot)
        || match ip.protocol {
            protocol::TCP => !later && packet.byte(ip.l4 + TCP_FLAGS).is_some_and(opens),
            protocol::UDP => !later && names_ports(slot),
            _ => false,
        }
}

/// What [`is_reply`] says, of a packet that [`concerns`] it.
#[inline(always)]
fn judge(packet: &Packet<'_>, slot: u32) -> bool {
    egress_is_reply(packet.skb(), slot) != 0
}

/// Global (`verifier`).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_is_reply(skb: *mut __sk_buff, slot: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let packet = Packet::new(&ctx);
    parse::parsed()
        .is_some_and(|ip| answers(&packet, ip, slot))
        .into()
}

#[inline(always)]
fn answers(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    if let Fragment::Later(id) = ip.fragment {
        let passed = fragments::choice(ip, id) == Some(Choice::PASSED);
        // Another datagram may have the number next.
        if passed && fragments::is_last(packet, ip) {
            fragments::forget(ip, id);
        }
        return passed;
    }
    let reply = match ip.protocol {
        protocol::TCP => is_tcp_reply(packet, ip),
        protocol::UDP => is_udp_reply(packet, ip, slot),
        _ => false,
    };
    if let Fragment::First(id) = ip.fragment {
        if reply {
            fragments::remember(ip, id, &Choice::PASSED);
        } else {
            fragments::forget(ip, id);
        }
    }
    reply
}

#[inline(always)]
fn is_tcp_reply(packet: &Packet<'_>, ip: &Ip) -> bool {
    let Some(tcp) = load_within::<Tcp>(packet, ip.l4, ip.end()) else {
        return false;
    };
    let key = key(ip, tcp.source, tcp.destination);
    if opens(tcp.flags) {
        own::remember(&key);
        forget(&key);
        return false;
    }
    let Some((bucket, look)) = find(&key) else {
        return false;
    };
    let answers = tcp.flags & (SYN | ACK | RST) == SYN | ACK;
    if look.is(State::New) {
        if !look.is_alive() {
            return false;
        }
        if answers {
            table::turn(bucket, look, State::Answered as u32, FLOW_SECONDS);
            return true;
        }
        // A port that is closed answers with sequence number zero (RFC 9293, 3.10.7.1); the reset of a
        // connection, which may be the pod's own, has that connection's.
        return tcp.flags & (SYN | ACK | RST) == RST | ACK && tcp.sequence == [0; 4];
    }
    // Nothing but a handshake that was completed is worth more than what anybody can send.
    let (next, seconds) = if answers {
        (State::Answered, FLOW_SECONDS)
    } else if tcp.flags & (FIN | RST) != 0 || look.is(State::Closing) {
        (State::Closing, life::HALF_TCP)
    } else {
        (State::Settled, life::TCP)
    };
    if look.is(next) {
        table::touch(bucket, look, seconds);
    } else if !(answers && look.is(State::Settled)) {
        table::turn(bucket, look, next as u32, seconds);
    }
    true
}

#[inline(always)]
fn is_udp_reply(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    let Some([source, destination]) = load_within::<[WireU16; 2]>(packet, ip.l4, ip.end()) else {
        return false;
    };
    if !is_named(slot, source) {
        return false;
    }
    let key = key(ip, source, destination);
    if let Some((bucket, look)) = find(&key)
        && look.is_alive()
    {
        if look.is(State::New) {
            // Only what comes in keeps it open: a forged packet opens nothing for longer than its own while.
            let seconds = look.until.wrapping_sub(look.now);
            table::turn(bucket, look, State::Settled as u32, seconds);
        }
        return true;
    }
    if own::remember(&key) {
        forget(&key);
    }
    false
}

#[inline(always)]
fn key(ip: &Ip, pod_port: WireU16, remote_port: WireU16) -> ReplyKey {
    ReplyKey {
        remote: ip.destination,
        pod: ip.source,
        remote_port,
        pod_port,
        protocol: ip.protocol,
        pad: [0; 3],
    }
}

/// The key of a packet to the pod.
#[inline(always)]
fn key_to_pod(ip: &Ip, remote_port: WireU16, pod_port: WireU16) -> ReplyKey {
    ReplyKey {
        remote: ip.source,
        pod: ip.destination,
        remote_port,
        pod_port,
        protocol: ip.protocol,
        pad: [0; 3],
    }
}

/// Whether the pod names any UDP port on which connections may come in.
#[inline(always)]
fn names_ports(slot: u32) -> bool {
    pods::facts(slot).is_some_and(|facts| facts.udp.count != 0)
}

/// Whether the pod names this one.
#[inline(always)]
fn is_named(slot: u32, port: WireU16) -> bool {
    let Some(facts) = pods::facts(slot) else {
        return false;
    };
    let named = &facts.udp;
    let mut found = false;
    for (index, candidate) in named.ports.iter().enumerate() {
        found |= index < usize::from(named.count) && *candidate == port;
    }
    found
}
