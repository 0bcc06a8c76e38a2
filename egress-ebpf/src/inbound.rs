//! Connections that came in to pods: their replies go back the way they came, whatever the policy says.
//!
//! What comes in may be forged: an address and a port of the far end of a pod's own connection. So a SYN
//! lets nothing pass but what only a SYN is answered with, a connection that the pod has started is its own
//! (a SYN from the far end, RFC 9293's simultaneous open, does not change that), and UDP opens nothing but
//! on ports that the pod names. What is forgotten, here or in `own`, goes by the policy.

use aya_ebpf::{btf_maps::LruHashMap, helpers::bpf_ktime_get_ns, macros::btf_map};
use egress_common::{
    WireU16,
    keys::ReplyKey,
    maps::capacity,
    pod::{Choice, FLOW_SECONDS, Inbound},
};

use crate::{
    classify, fragments, locals, own,
    packet::Packet,
    parse::{Fragment, Ip, load_within, protocol},
    pods, verdicts,
};

#[btf_map]
static INBOUND: LruHashMap<ReplyKey, Inbound, { capacity::INBOUND as usize }> = LruHashMap::new();

/// Nanoseconds that an entry of UDP, or of TCP without an answer, lives after what opened it.
const LIFE: u64 = FLOW_SECONDS as u64 * 1_000_000_000;
/// Nanoseconds between two notes that an entry was used: more would only tear at its cache line.
const NOTED: u64 = 1_000_000_000;

/// Where TCP's flags lie, and the flags (RFC 9293, 3.1).
const TCP_FLAGS: u32 = 13;
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
    if own::may_be(&key) {
        // A SYN keeps nothing: the pod may answer it only as long as it repeats its own.
        if ip.protocol == protocol::UDP {
            own::keep(&key, false);
        }
        return false;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(entry) = INBOUND.get_ptr_mut(&key) {
        // SAFETY: an aligned word of an entry. One that is evicted and reused meanwhile is as new as this.
        unsafe {
            if now.wrapping_sub((*entry).last_seen) > NOTED {
                (*entry).last_seen = now;
            }
        }
    } else {
        let opened = Inbound {
            last_seen: now,
            answered: 0,
        };
        if INBOUND.insert(&key, &opened, 0).is_err() {
            return false;
        }
    }
    // The pod may have started the flow since: whoever comes second, here or in `is_reply`, takes it back.
    if own::may_be(&key) {
        let _ = INBOUND.remove(&key);
        return false;
    }
    true
}

/// Whether a pod's packet, which the policy would steer or has no gateway for, answers a connection that came in.
#[inline(always)]
pub(crate) fn is_reply(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    concerns(packet, ip, slot) && judge(packet, ip, slot)
}

/// Whether a pod's packet for the cluster answers a connection that came in by an address of the node's own.
#[inline(always)]
pub(crate) fn is_reply_by_node(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
    concerns(packet, ip, slot) && locals::is_node(&ip.destination) && judge(packet, ip, slot)
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
#[inline(never)]
fn judge(packet: &Packet<'_>, ip: &Ip, slot: u32) -> bool {
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
        let _ = INBOUND.remove(&key);
        return false;
    }
    // SAFETY: copied at once.
    let Some(entry) = unsafe { INBOUND.get(&key) }.copied() else {
        return false;
    };
    if entry.answered != 0 {
        return true;
    }
    if !is_alive(&entry) {
        return false;
    }
    if tcp.flags & (SYN | ACK | RST) == SYN | ACK {
        let answered = Inbound {
            answered: 1,
            ..entry
        };
        return INBOUND.insert(&key, &answered, 0).is_ok();
    }
    // A port that is closed answers with sequence number zero (RFC 9293, 3.10.7.1); the reset of a
    // connection, which may be the pod's own, has that connection's.
    tcp.flags & (SYN | ACK | RST) == RST | ACK && tcp.sequence == [0; 4]
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
    // Only what comes in keeps it open: a forged packet opens nothing for longer than its own while.
    // SAFETY: copied at once.
    if (unsafe { INBOUND.get(&key) }.copied()).is_some_and(|entry| is_alive(&entry)) {
        return true;
    }
    if own::remember(&key) {
        let _ = INBOUND.remove(&key);
    }
    false
}

#[inline(always)]
fn is_alive(entry: &Inbound) -> bool {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // Another CPU's clock may have been read later.
    now.saturating_sub(entry.last_seen) < LIFE
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
