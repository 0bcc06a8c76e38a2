//! Which member of a group a flow uses: the one that it started on, as long as the group has it.

use aya_ebpf::{bindings::__sk_buff, btf_maps::PerCpuArray, macros::btf_map, programs::TcContext};
use egress_common::{
    DropReason,
    cells::SLOTS,
    flow::Flow,
    pod::{Choice, FlowKey},
};

use crate::{
    fragments, lines,
    packet::Packet,
    parse::{self, Fragment, Ip, Quoted, TransportKind},
    table::{self, Payer, Table},
    verdicts,
    verifier::{self, Forgotten},
};

/// What would not fit the stack, of which a chain of calls has 512 bytes.
///
/// Softirqs do not interrupt each other on a CPU, and no program runs within another.
#[btf_map]
static CHOOSING: PerCpuArray<Choosing, 1> = PerCpuArray::new();

/// The flow that is looked up, and what an error quotes.
struct Choosing {
    key: FlowKey,
    quoted: Quoted,
}

/// Steps of a search among as many members as 16 bits can count.
const SEARCH: u32 = 16;

/// No member's number.
const NOWHERE: u32 = u32::MAX;

/// A group with several members.
pub(crate) struct Group {
    /// First line of the slot table.
    pub(crate) lines: u32,
    /// The member that number 0 means.
    pub(crate) first_member: u32,
    /// How many there are, in ascending order of their gateways' ids.
    pub(crate) members: u32,
}

/// The member that the packet's flow uses.
#[inline(always)]
pub(crate) fn member(packet: &Packet<'_>, group: &Group) -> Result<u32, DropReason> {
    let Group {
        lines,
        first_member,
        members,
    } = *group;
    let number = verifier::outcome(egress_choose(packet.skb(), lines, first_member, members))?;
    Ok(first_member.wrapping_add(number))
}

/// The number of the member within its group, or why there is none, as [`verifier::outcome`] reads it.
///
/// The verifier looks at it once, for any packet and any group, instead of once for each way that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_choose(
    skb: *mut __sk_buff,
    lines: u32,
    first_member: u32,
    members: u32,
) -> u32 {
    let group = Group {
        lines,
        first_member,
        members,
    };
    let ctx = TcContext::new(skb);
    let packet = Packet::new(&ctx);
    let mut number = 0;
    let chosen = match parse::parsed() {
        Some(ip) => choose(&packet, ip, &group, &mut number),
        None => Err(DropReason::StateMissing),
    };
    verifier::told(chosen.map(|()| number))
}

#[inline(always)]
fn choose(packet: &Packet<'_>, ip: &Ip, group: &Group, number: &mut u32) -> Result<(), DropReason> {
    if let Fragment::Later(id) = ip.fragment {
        let known = fragments::choice(ip, id).unwrap_or(Choice::PASSED);
        *number = find(group, &known);
        return if *number == NOWHERE {
            Err(DropReason::FragmentUnknown)
        } else {
            Ok(())
        };
    }
    let place = CHOOSING.get_ptr_mut(0).ok_or(DropReason::StateMissing)?;
    // SAFETY: this CPU's own element, which is used nowhere else.
    let Choosing { key, quoted } = unsafe { &mut *place };
    let transport = parse::transport(packet, ip.protocol, ip.l4, ip.end())?;
    *key = FlowKey {
        source: ip.source,
        destination: ip.destination,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        ifindex: packet.ifindex(),
        protocol: ip.protocol,
        pad: [0; 3],
    };
    let mut is_error = Forgotten::new(0);
    if transport.kind == TransportKind::IcmpError {
        is_error.set(1);
        follow_quoted(packet, ip, key, quoted);
    }
    let look = table::look().ok_or(DropReason::StateMissing)?;
    look.set_flow(key);
    let bucket = look.bucket(Table::Flows).ok_or(DropReason::StateMissing)?;
    let noted = table::recall(bucket, look);
    let found = noted || table::find(look);
    let mut known = Choice::PASSED;
    if found {
        look.get(&mut known);
    }
    *number = find(group, &known);
    if *number == NOWHERE {
        // A flow that is not known, or had no room, is placed by its hash.
        *number = by_hash(group, key).ok_or(DropReason::StateMissing)?;
    }
    let choice = Choice {
        gateway: verdicts::gateway(group.first_member.wrapping_add(*number))
            .ok_or(DropReason::StateMissing)?,
        number: *number,
    };
    let flags = table::flags(packet, ip);
    if is_error.get() == 0 && !(noted && choice == known && table::is_plain(flags)) {
        look.put(&choice, found);
        look.flags = flags;
        // Without room it goes on without.
        table::note(bucket, look, Payer::First);
    }
    if let Fragment::First(id) = ip.fragment {
        fragments::remember(ip, id, &choice);
    }
    Ok(())
}

/// Makes the key of a pod's ICMP error that of the connection it is about: the gateway that this uses is the
/// one that knows where the error belongs. What quotes nothing is known by its addresses.
#[inline(always)]
fn follow_quoted(packet: &Packet<'_>, ip: &Ip, key: &mut FlowKey, quoted: &mut Quoted) {
    if !parse::quoted(packet, ip, quoted) {
        return;
    }
    key.source = quoted.destination;
    key.destination = quoted.source;
    key.protocol = quoted.protocol;
    let transport = &quoted.transport;
    key.source_port = transport.source_port;
    key.destination_port = transport.destination_port;
    // An echo's identifier is the same both ways.
    if transport.kind == TransportKind::Flow {
        key.source_port = transport.destination_port;
        key.destination_port = transport.source_port;
    }
}

/// The number that the choice's gateway has in the group, or [`NOWHERE`].
#[inline(never)]
fn find(group: &Group, choice: &Choice) -> u32 {
    if *choice == Choice::PASSED {
        return NOWHERE;
    }
    let wanted = choice.gateway;
    if choice.number < group.members
        && verdicts::gateway(group.first_member.wrapping_add(choice.number)) == Some(wanted)
    {
        return choice.number;
    }
    let mut low = Forgotten::new(0);
    let mut high = Forgotten::new(group.members);
    for _ in 0..SEARCH {
        let (from, to) = (low.get(), high.get());
        if from >= to {
            break;
        }
        let middle = from.wrapping_add(to) / 2;
        let Some(found) = verdicts::gateway(group.first_member.wrapping_add(middle)) else {
            break;
        };
        if found == wanted {
            return middle;
        }
        if found < wanted {
            low.set(middle.wrapping_add(1));
        } else {
            high.set(middle);
        }
    }
    NOWHERE
}

/// What the slot table says of a flow.
#[inline(always)]
fn by_hash(group: &Group, key: &FlowKey) -> Option<u32> {
    let flow = Flow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        protocol: key.protocol,
    };
    lines::cell(group.lines, flow.hash() % SLOTS).map(u32::from)
}
