//! The steered pods: who sent a packet, where one for a pod goes, and what is noted of each.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use egress_common::{
    Addr, DropReason, Family,
    keys::PodKey,
    maps::capacity,
    pod::{PodEntry, PodFacts, PodLine, PodNote, PodPlace, addr_to_words, pod_line},
    verdict::PodState,
};

use crate::{
    packet::Packet,
    parse::{self, Fragment, Ip, protocol},
    verifier,
};

/// `BPF_F_MMAPABLE`: userspace turns a pod with one store.
const MMAPABLE: usize = 1 << 10;

#[btf_map]
static PODS: HashMap<PodKey, u32, { capacity::PODS as usize }> = HashMap::new();

#[btf_map]
static POD_INDEX: Array<PodLine, { capacity::POD_INDEX as usize }, MMAPABLE> = Array::new();

#[btf_map]
static POD_STATE: Array<PodState, { capacity::PODS as usize }, MMAPABLE> = Array::new();

#[btf_map]
static POD_PLACES: HashMap<Addr, PodPlace, { capacity::PODS as usize }> = HashMap::new();

#[btf_map]
static INTERFACES: HashMap<u32, u32, { capacity::PODS as usize }> = HashMap::new();

#[btf_map]
static POD_NOTES: Array<PodNote, { capacity::PODS as usize }> = Array::new();

#[btf_map]
static POD_FACTS: Array<PodFacts, { capacity::PODS as usize }> = Array::new();

/// What the source of a packet is.
pub(crate) enum Source {
    /// A steered pod.
    Pod { state: PodState, slot: u32 },
    /// A steered pod that the map of states does not know.
    Broken,
    /// Not a pod's address, but one that any host sends from while it has none, or to its neighbours.
    Neighbourly,
    /// Somebody else's address.
    Unknown,
}

/// Looks the source up by interface and address, never by address alone.
#[inline(always)]
pub(crate) fn identify(packet: &Packet<'_>, ip: &Ip) -> Source {
    let ifindex = packet.ifindex();
    if let Some((state, slot)) = indexed(ifindex, &ip.source) {
        return Source::Pod { state, slot };
    }
    if let Some(slot) = slot_at(ifindex, ip.source) {
        return match state(slot) {
            Some(state) => Source::Pod { state, slot },
            None => Source::Broken,
        };
    }
    if is_neighbourly(packet, ip) {
        Source::Neighbourly
    } else {
        Source::Unknown
    }
}

/// State and slot of the steered pod that has this address on this interface, if the index has it.
#[inline(always)]
fn indexed(ifindex: u32, addr: &Addr) -> Option<(PodState, u32)> {
    let addr = addr_to_words(addr);
    let line = POD_INDEX.get(pod_line(addr))?;
    for entry in &line.0 {
        // SAFETY: aligned words that userspace writes with one store each: that of the pod after what it stands for. An
        // entry that is cleared is written again only after a grace period.
        unsafe {
            let word = core::ptr::read_volatile(&raw const entry.pod);
            let entry = verifier::after(core::ptr::from_ref(entry), word);
            let [first, second] = core::ptr::read_volatile(&raw const (*entry).addr);
            let other = (first ^ addr[0]) | (second ^ addr[1]);
            if other | u64::from(PodEntry::ifindex(word) ^ ifindex) == 0 {
                let state = core::ptr::read_volatile(&raw const (*entry).state);
                return Some((state, PodEntry::slot(word)));
            }
        }
    }
    None
}

/// What the pod of a slot is told.
#[inline(always)]
pub(crate) fn state(slot: u32) -> Option<PodState> {
    // SAFETY: an aligned word that userspace writes with one store; it must be read with one load.
    POD_STATE
        .get(slot)
        .map(|state| unsafe { core::ptr::read_volatile(state) })
}

/// The slot of the steered pod that has this address on this interface.
#[inline(always)]
pub(crate) fn slot_at(ifindex: u32, addr: Addr) -> Option<u32> {
    let key = PodKey { ifindex, addr };
    // SAFETY: the slot of a live key never changes, and a key is removed only after its pod is gone.
    unsafe { PODS.get(&key) }.copied()
}

/// A slot of the steered pod whose interface this is.
#[inline(always)]
pub(crate) fn slot_behind(ifindex: u32) -> Option<u32> {
    // SAFETY: a word, copied at once; the slot is given to another pod only after a grace period.
    unsafe { INTERFACES.get(&ifindex) }.copied()
}

/// Whether a steered pod has this address on this interface.
#[inline(always)]
pub(crate) fn is_at(ifindex: u32, addr: Addr) -> bool {
    slot_at(ifindex, addr).is_some()
}

/// What userspace says of the pod of this slot. It may change between two reads.
#[inline(always)]
pub(crate) fn facts(slot: u32) -> Option<&'static PodFacts> {
    POD_FACTS.get(slot)
}

/// Largest IP packet in bytes that the interface of the pod of this slot takes.
#[inline(always)]
pub(crate) fn mtu(slot: u32) -> u32 {
    // SAFETY: an aligned word that userspace may write.
    let mtu = facts(slot).map_or(0, |facts| unsafe {
        core::ptr::read_volatile(&raw const facts.mtu)
    });
    if mtu == 0 { u32::MAX } else { mtu }
}

/// Whether a connection ever came in to the pod of this slot.
#[inline(always)]
pub(crate) fn has_inbound(slot: u32) -> bool {
    // SAFETY: an aligned word that another CPU may write.
    POD_NOTES
        .get(slot)
        .is_some_and(|note| unsafe { core::ptr::read_volatile(&raw const note.inbound) } != 0)
}

/// Notes that a connection came in to the pod of this slot.
#[inline(always)]
pub(crate) fn note_inbound(slot: u32) {
    if has_inbound(slot) {
        return;
    }
    if let Some(note) = POD_NOTES.get_ptr_mut(slot) {
        // SAFETY: an aligned word of an array element, which is always there.
        unsafe { core::ptr::write_volatile(&raw mut (*note).inbound, 1) };
    }
}

/// Where the steered pod with this address is.
#[inline(always)]
pub(crate) fn place(addr: &Addr) -> Option<PodPlace> {
    // SAFETY: a live key's value never changes, and it is copied at once.
    unsafe { POD_PLACES.get(addr) }.copied()
}

/// Notes the MACs of a packet from the pod: what is delivered to it has them the other way round.
#[inline(always)]
pub(crate) fn learn(packet: &Packet<'_>, slot: u32) -> Result<(), DropReason> {
    let note = POD_NOTES
        .get_ptr_mut(slot)
        .ok_or(DropReason::StateMissing)?;
    let (host_mac, pod_mac) = packet.mac_words().ok_or(DropReason::Malformed)?;
    // SAFETY: aligned words of an array's element, which never goes; each is read and written at once,
    // and written only when it is new, for the sake of the other CPUs' caches.
    unsafe {
        if core::ptr::read_volatile(&raw const (*note).pod_mac) != pod_mac {
            core::ptr::write_volatile(&raw mut (*note).pod_mac, pod_mac);
        }
        if core::ptr::read_volatile(&raw const (*note).host_mac) != host_mac {
            core::ptr::write_volatile(&raw mut (*note).host_mac, host_mac);
        }
    }
    Ok(())
}

/// The pod's MAC and the one that it sends to, as words, once a packet of it has shown them.
#[inline(always)]
pub(crate) fn macs(slot: u32) -> Option<(u64, u64)> {
    let note = POD_NOTES.get_ptr(slot)?;
    // SAFETY: as in `learn`.
    let (pod_mac, host_mac) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*note).pod_mac),
            core::ptr::read_volatile(&raw const (*note).host_mac),
        )
    };
    if pod_mac == 0 || host_mac == 0 {
        return None;
    }
    Some((pod_mac, host_mac))
}

/// The exceptions to "the source is the pod's": address configuration and neighbour discovery.
#[inline(always)]
fn is_neighbourly(packet: &Packet<'_>, ip: &Ip) -> bool {
    let to = ip.destination.0;
    match ip.family {
        // DHCP before there is an address (RFC 2131, 4.1).
        Family::V4 => {
            ip.source == Addr::v4([0; 4])
                && ip.destination == Addr::v4([255; 4])
                && ip.protocol == protocol::UDP
                && !matches!(ip.fragment, Fragment::Later(_))
                && parse::load_within::<[u8; 4]>(packet, ip.l4, ip.end()) == Some([0, 68, 0, 67])
        }
        Family::V6 => {
            let from = ip.source.0;
            let to_link_multicast = to[0] == 0xff && to[1] == 0x02;
            // Duplicate address detection and router solicitation (RFC 4861, RFC 4862).
            let unspecified = ip.source == Addr::v6([0; 16]);
            (unspecified && to_link_multicast && ip.protocol == protocol::ICMPV6)
                || (is_link_local(from) && (is_link_local(to) || to_link_multicast))
        }
    }
}

#[inline(always)]
const fn is_link_local(addr: [u8; 16]) -> bool {
    addr[0] == 0xfe && addr[1] & 0xc0 == 0x80
}
