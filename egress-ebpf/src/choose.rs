//! Which member of a group a flow uses: the one that it started on, as long as the group has it.

use aya_ebpf::{btf_maps::LruHashMap, macros::btf_map};
use egress_common::{
    DropReason,
    cells::SLOTS,
    flow::Flow,
    gateway::GatewayId,
    maps::capacity,
    pod::{Choice, FlowKey},
};

use crate::{
    fragments, lines,
    packet::Packet,
    parse::{self, Fragment, Ip},
    verdicts,
};

#[btf_map]
static FLOWS: LruHashMap<FlowKey, Choice, { capacity::FLOWS as usize }> = LruHashMap::new();

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
pub(crate) fn member(packet: &Packet<'_>, ip: &Ip, group: &Group) -> Result<u32, DropReason> {
    let mut number = 0;
    choose(packet, ip, group, &mut number)?;
    Ok(group.first_member.wrapping_add(number))
}

/// Fills in the number of the member within its group.
///
/// A function of its own, which fills a place of the caller's, for the reasons that `parse::headers` has.
#[inline(never)]
fn choose(packet: &Packet<'_>, ip: &Ip, group: &Group, number: &mut u32) -> Result<(), DropReason> {
    let choice = match ip.fragment {
        Fragment::Whole => of_flow(packet, ip, group)?,
        Fragment::First(id) => {
            let choice = of_flow(packet, ip, group)?;
            fragments::remember(ip, id, choice);
            choice
        }
        Fragment::Later(id) => fragments::choice(ip, id)
            .filter(|choice| *choice != Choice::PASSED)
            .and_then(|choice| usable(group, choice))
            .ok_or(DropReason::FragmentUnknown)?,
    };
    *number = choice.number;
    Ok(())
}

#[inline(always)]
fn of_flow(packet: &Packet<'_>, ip: &Ip, group: &Group) -> Result<Choice, DropReason> {
    let transport = parse::transport(packet, ip.protocol, ip.l4, ip.end())?;
    let key = FlowKey {
        source: ip.source,
        destination: ip.destination,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        ifindex: packet.ifindex(),
        protocol: ip.protocol,
        pad: [0; 3],
    };
    // SAFETY: plain bytes, copied at once; of an entry that is evicted and reused meanwhile, only a member
    // that the group has is used.
    if let Some(&known) = unsafe { FLOWS.get(&key) }
        && let Some(choice) = usable(group, known)
    {
        if choice != known {
            let _ = FLOWS.insert(&key, &choice, 0);
        }
        return Ok(choice);
    }
    // A flow that a full table forgot is placed by its hash again.
    let choice = by_hash(group, &key)?;
    let _ = FLOWS.insert(&key, &choice, 0);
    Ok(choice)
}

/// The choice with the number that its gateway has in the group, if it has one.
#[inline(always)]
fn usable(group: &Group, choice: Choice) -> Option<Choice> {
    let number =
        if choice.number < group.members && gateway(group, choice.number) == Some(choice.gateway) {
            choice.number
        } else {
            search(group, choice.gateway)
        };
    (number != NOWHERE).then_some(Choice { number, ..choice })
}

/// The number of a gateway in the group, or [`NOWHERE`].
#[inline(never)]
fn search(group: &Group, wanted: GatewayId) -> u32 {
    let mut low = Forgotten::new(0);
    let mut high = Forgotten::new(group.members);
    for _ in 0..SEARCH {
        let (from, to) = (low.get(), high.get());
        if from >= to {
            break;
        }
        let middle = from.wrapping_add(to) / 2;
        let Some(found) = gateway(group, middle) else {
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

/// A place where the verifier loses sight of a number.
///
/// It would follow every way through the search for itself. The upper half of a word of stack is one that it
/// does not follow, so all ways through a step lead to one state.
#[repr(C, align(8))]
struct Forgotten {
    lower: u32,
    number: u32,
}

impl Forgotten {
    #[inline(always)]
    fn new(number: u32) -> Self {
        let mut place = Self {
            lower: 0,
            number: 0,
        };
        place.set(number);
        place
    }

    #[inline(always)]
    fn get(&self) -> u32 {
        // SAFETY: a field of our own.
        unsafe { core::ptr::read_volatile(&raw const self.number) }
    }

    #[inline(always)]
    fn set(&mut self, number: u32) {
        // SAFETY: as in `get`.
        unsafe { core::ptr::write_volatile(&raw mut self.number, number) };
    }
}

/// What the slot table says of a flow.
#[inline(always)]
fn by_hash(group: &Group, key: &FlowKey) -> Result<Choice, DropReason> {
    let flow = Flow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        protocol: key.protocol,
    };
    let choice = lines::cell(group.lines, flow.hash() % SLOTS).and_then(|number| {
        let number = u32::from(number);
        Some(Choice {
            gateway: gateway(group, number)?,
            number,
        })
    });
    choice.ok_or(DropReason::StateMissing)
}

#[inline(always)]
fn gateway(group: &Group, number: u32) -> Option<GatewayId> {
    verdicts::member(group.first_member.wrapping_add(number)).map(|member| member.gateway)
}
