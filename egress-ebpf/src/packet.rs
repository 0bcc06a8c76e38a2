//! The only raw access to an skb: its metadata, its bytes, and the few writes we make.

mod route;
mod start;

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_RECOMPUTE_CSUM, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_redir_neigh,
        bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{
        bpf_clone_redirect, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail,
        bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_load_bytes_relative,
        bpf_skb_set_tunnel_key, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use egress_common::{Addr, DropReason, Mac};

pub(crate) use self::route::Question;
use crate::{direct, verifier::Forgotten};

/// Length of an Ethernet header: where the IP header starts, since a tagged frame never gets that far.
pub(crate) const L3: u32 = 14;

pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;
/// Length of `struct bpf_redir_neigh`.
const NEIGHBOUR_LEN: i32 = 20;
const _: () = assert!(size_of::<bpf_redir_neigh>() == 20);
/// `PACKET_HOST` of `linux/if_packet.h`: the frame is addressed to this host.
const PACKET_HOST: u32 = 0;
/// Sent to everybody on the link, or to a group.
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;
/// `VLAN_VID_MASK` of `linux/if_vlan.h`.
const VLAN_ID: u32 = 0x0fff;
/// How far [`Packet::byte`] looks by itself: the verifier wants a bound, and headers rarely go beyond.
const NEAR: u32 = 255;
/// First byte of a MAC that somebody made up for one host.
const UNICAST: u8 = 0x02;
/// TTL of the overlay's outer packets.
pub(crate) const TUNNEL_TTL: u8 = 64;
/// Where the TTL lies in an IPv4 header, and the hop limit in an IPv6 header.
const IPV4_TTL: u32 = 8;
const IPV6_HOP_LIMIT: u32 = 7;

/// `struct bpf_tunnel_key` up to its label: as long as it is in 5.10, and what later kernels take too.
#[repr(C)]
struct TunnelKey {
    id: u32,
    /// IPv4: the first word alone, in host order; IPv6: the wire's bytes.
    remote: [u32; 4],
    tos: u8,
    ttl: u8,
    ext: u16,
    label: u32,
}
const TUNNEL_KEY_LEN: u32 = 28;
const _: () = assert!(size_of::<TunnelKey>() == TUNNEL_KEY_LEN as usize);

/// A packet at a TC hook.
pub(crate) struct Packet<'a> {
    pub(crate) ctx: &'a TcContext,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) const fn new(ctx: &'a TcContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    pub(crate) fn skb(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// The device that the hook is on.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel passes a valid context; the verifier turns this into a checked read.
        unsafe { (*self.skb()).ifindex }
    }

    /// The device that the packet was received by: of what goes out after it came in; zero if nobody received it.
    #[inline(always)]
    pub(crate) fn received_by(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).ingress_ifindex }
    }

    /// The bytes at `offset` from the IP header on as a `T`, which must be plain bytes; nothing when the packet ends before.
    ///
    /// Where the IP header starts is what the kernel says: only of what leaves it is that certain.
    #[inline(always)]
    pub(crate) fn load_from_ip<T: Copy>(&self, offset: u32) -> Option<T> {
        let mut place = MaybeUninit::<T>::uninit();
        let into = place.as_mut_ptr().cast();
        let length = u32::try_from(size_of::<T>()).ok()?;
        // SAFETY: `place` has room for a `T`.
        let loaded = unsafe {
            bpf_skb_load_bytes_relative(self.skb().cast(), offset, into, length, BPF_HDR_START_NET)
        };
        // SAFETY: all of it was written, and any bytes are a `T`.
        (loaded == 0).then(|| unsafe { place.assume_init() })
    }

    /// The ethertype in host byte order; 802.3 lengths appear as `ETH_P_802_2`.
    #[inline(always)]
    pub(crate) fn ethertype(&self) -> u16 {
        // SAFETY: as in `ifindex`.
        let wire = unsafe { (*self.skb()).protocol }.to_ne_bytes();
        // A `__be16` that the kernel widened as a number, so it lies in the low half.
        if cfg!(target_endian = "little") {
            u16::from_be_bytes([wire[0], wire[1]])
        } else {
            u16::from_be_bytes([wire[2], wire[3]])
        }
    }

    /// Whether the kernel took a VLAN tag off the frame and keeps it beside it.
    #[inline(always)]
    pub(crate) fn has_vlan_tag(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).vlan_present != 0 }
    }

    /// Whether that tag names a VLAN: one that does not says the frame's priority alone, and the kernel
    /// ignores it (IEEE 802.1Q, 6.9.1).
    #[inline(always)]
    pub(crate) fn is_of_vlan(&self) -> bool {
        // SAFETY: as in `ifindex`.
        self.has_vlan_tag() && unsafe { (*self.skb()).vlan_tci } & VLAN_ID != 0
    }

    /// Forgets the tag beside the frame, if there is one: no device that the packet is sent to shall write it back.
    #[inline(always)]
    pub(crate) fn untag(&self) -> Result<(), DropReason> {
        if !self.has_vlan_tag() {
            return Ok(());
        }
        // SAFETY: the kernel passes a valid context; no pointer into the packet is kept anywhere.
        match unsafe { bpf_skb_vlan_pop(self.skb()) } {
            0 => Ok(()),
            _ => Err(DropReason::RedirectFailed),
        }
    }

    /// Whether the frame was sent to this host's MAC.
    #[inline(always)]
    pub(crate) fn is_for_this_host(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).pkt_type == PACKET_HOST }
    }

    /// Whether the frame was sent to many: the kernel sends none such on to a neighbour.
    #[inline(always)]
    pub(crate) fn is_for_many(&self) -> bool {
        // SAFETY: as in `ifindex`.
        let kind = unsafe { (*self.skb()).pkt_type };
        kind == PACKET_BROADCAST || kind == PACKET_MULTICAST
    }

    /// Bytes of the frame from the IP header on, Ethernet padding included.
    #[inline(always)]
    pub(crate) fn l3_len(&self) -> u32 {
        self.ctx.len().saturating_sub(L3)
    }

    /// Payload bytes of each segment that an aggregated skb will be cut into; zero when it is one packet.
    #[inline(always)]
    pub(crate) fn gso_size(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).gso_size }
    }

    /// Segments of an aggregated skb; zero when it is one packet or nobody counted.
    #[inline(always)]
    pub(crate) fn gso_segs(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).gso_segs }
    }

    /// The bytes at `offset` as a `T`, which must be plain bytes; nothing when the packet ends before.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(&self, offset: u32) -> Option<T> {
        self.ctx.load(offset as usize).ok()
    }

    /// The byte at `offset`, read where it lies if the kernel has it in one piece: for what is asked of
    /// almost every packet, since the helper behind [`Packet::load`] costs more than all the rest of the question.
    #[inline(always)]
    pub(crate) fn byte(&self, offset: u32) -> Option<u8> {
        // As a bound of a pointer the offset would matter to the verifier wherever it came from.
        let offset = Forgotten::new(offset).get();
        if offset <= NEAR {
            let at = self.ctx.data() + offset as usize;
            // One more than is needed: of `at < end`, into which the compiler turns the other, the verifier
            // learns nothing.
            if at + 2 <= self.ctx.data_end() {
                // SAFETY: within the packet, as was just compared; the verifier checks it again.
                return Some(unsafe { *(at as *const u8) });
            }
        }
        self.load(offset)
    }

    /// Reads the bytes at `offset` into a place of the caller's, and says whether the packet has them.
    ///
    /// Where [`Packet::load`] would put one more copy on the stack.
    #[inline(always)]
    pub(crate) fn load_addr(&self, offset: u32, into: &mut Addr) -> bool {
        let place = into.0.as_mut_ptr().cast();
        // SAFETY: `into` is 16 bytes that the caller owns, and any 16 bytes are an address.
        unsafe { bpf_skb_load_bytes(self.skb().cast(), offset, place, 16) == 0 }
    }

    /// The MACs of the frame: destination, then source.
    #[inline(always)]
    pub(crate) fn macs(&self) -> Option<(Mac, Mac)> {
        let macs: [Mac; 2] = self.load(0)?;
        Some((macs[0], macs[1]))
    }

    /// The MACs of the frame, destination, then source, each as `egress_common::pod::mac_to_word` makes it.
    #[inline(always)]
    pub(crate) fn mac_words(&self) -> Option<(u64, u64)> {
        let words: [u32; 3] = match direct::macs(self) {
            Some(words) => words,
            None => self.load(0)?,
        };
        let [first, second, third] = words.map(|word| u64::from(u32::from_le(word)));
        let destination = first | (second & 0xffff) << 32;
        let source = second >> 16 | third << 16;
        Some((destination.to_le(), source.to_le()))
    }

    /// Writes both MACs.
    #[inline(always)]
    pub(crate) fn set_macs(&self, destination: Mac, source: Mac) -> Result<(), DropReason> {
        self.ctx
            .store(0, &[destination, source], 0)
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// Writes both MACs, given as `mac_to_word` makes them.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "two words become three halves"
    )]
    pub(crate) fn set_mac_words(&self, destination: u64, source: u64) -> Result<(), DropReason> {
        let (destination, source) = (u64::from_le(destination), u64::from_le(source));
        let words = [
            (destination as u32).to_le(),
            ((destination >> 32) as u32 | (source as u32) << 16).to_le(),
            ((source >> 16) as u32).to_le(),
        ];
        if direct::set_macs(self, words) {
            return Ok(());
        }
        self.ctx
            .store(0, &words, 0)
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// Reads `length` bytes at `offset`, and says whether the packet has them.
    ///
    /// # Safety
    ///
    /// `into` must have room for `length` bytes, in a way that the verifier sees.
    #[inline(always)]
    pub(crate) unsafe fn load_bytes(&self, offset: u32, into: *mut u8, length: u32) -> bool {
        // SAFETY: the caller's promise.
        unsafe { bpf_skb_load_bytes(self.skb().cast(), offset, into.cast(), length) == 0 }
    }

    /// Ends the frame after `length` bytes, and makes one packet of an aggregate.
    ///
    /// Fails on what a tunnel of the sender's own has encapsulated, and where the L4 checksum that a
    /// device is still to write lies beyond the end.
    #[inline(always)]
    pub(crate) fn cut(&self, length: u32) -> Result<(), DropReason> {
        // SAFETY: the kernel passes a valid context; no pointer into the packet is kept anywhere.
        match unsafe { bpf_skb_change_tail(self.skb(), length, 0) } {
            0 => Ok(()),
            _ => Err(DropReason::RedirectFailed),
        }
    }

    /// Puts headers between the Ethernet header and the IP header.
    #[inline(always)]
    pub(crate) fn put_in_front<const WORDS: usize>(
        &self,
        headers: &[u32; WORDS],
    ) -> Result<(), DropReason> {
        let room = i32::try_from(WORDS * 4).map_err(|_| DropReason::RedirectFailed)?;
        self.ctx
            .adjust_room(room, BPF_ADJ_ROOM_MAC, 0)
            .map_err(|_| DropReason::RedirectFailed)?;
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        self.ctx
            .store(L3 as usize, headers, flags)
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// Swaps the MACs: the frame goes back where it came from.
    #[inline(always)]
    pub(crate) fn swap_macs(&self) -> Result<(), DropReason> {
        let (destination, source) = self.macs().ok_or(DropReason::Malformed)?;
        self.set_macs(source, destination)
    }

    /// Sends the packet out of `ifindex` as it is.
    #[inline(always)]
    pub(crate) fn redirect(&self, ifindex: u32) -> Result<(), DropReason> {
        // SAFETY: a helper without pointers.
        redirected(unsafe { bpf_redirect(ifindex, 0) })
    }

    /// Sends a copy of the packet out of `ifindex` at once.
    #[inline(always)]
    pub(crate) fn redirect_copy(&self, ifindex: u32) -> Result<(), DropReason> {
        // SAFETY: the kernel passes a valid context; no pointer into the packet is kept anywhere.
        match unsafe { bpf_clone_redirect(self.skb(), ifindex, 0) } {
            0 => Ok(()),
            _ => Err(DropReason::RedirectFailed),
        }
    }

    /// Writes a number at `offset`, as it lies in memory.
    #[inline(always)]
    pub(crate) fn store_word(&self, offset: u32, word: u64) -> Result<(), DropReason> {
        self.ctx
            .store(offset as usize, &word, 0)
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// Sends the packet out of `ifindex` to an on-link neighbour, which the kernel resolves.
    #[inline(always)]
    pub(crate) fn redirect_to_neighbour(
        &self,
        ifindex: u32,
        next_hop: &Addr,
    ) -> Result<(), DropReason> {
        let mut neighbour = if next_hop.is_v4() {
            bpf_redir_neigh {
                nh_family: AF_INET.into(),
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                    ipv6_nh: [next_hop.words()[3], 0, 0, 0],
                },
            }
        } else {
            bpf_redir_neigh {
                nh_family: AF_INET6.into(),
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                    ipv6_nh: next_hop.words(),
                },
            }
        };
        // SAFETY: `neighbour` lives on the stack for the call and has the length that is given.
        redirected(unsafe { bpf_redirect_neigh(ifindex, &mut neighbour, NEIGHBOUR_LEN, 0) })
    }

    /// Sends the packet out of `ifindex` to where the kernel's routes lead from there to its destination.
    #[inline(always)]
    pub(crate) fn redirect_by_route(&self, ifindex: u32) -> Result<(), DropReason> {
        // SAFETY: no parameters is what a null pointer of length zero stands for.
        redirected(unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) })
    }

    /// Makes the frame one for this host, whatever its MAC.
    ///
    /// A tag may look like a group's address, to which the kernel redirects nothing (`__bpf_redirect_neigh`).
    #[inline(always)]
    pub(crate) fn claim(&self) -> Result<(), DropReason> {
        let written = match direct::start::<2>(self) {
            Some(frame) => {
                frame.set_byte::<0>(UNICAST);
                Ok(())
            }
            None => self.ctx.store(0, &UNICAST, 0),
        };
        written
            .and_then(|()| self.ctx.change_type(PACKET_HOST))
            .map_err(|_| DropReason::RedirectFailed)
    }

    /// The packet's mark.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.skb()).mark }
    }

    /// Marks the packet.
    #[inline(always)]
    pub(crate) fn set_mark(&self, mark: u32) {
        // SAFETY: as in `ifindex`, a checked write.
        unsafe { (*self.skb()).mark = mark }
    }

    /// The network identifier of the tunnel that the packet came out of, and who sent it into that.
    #[inline(always)]
    pub(crate) fn tunnel(&self) -> Option<(u32, Addr)> {
        // Every clearing of a place is a call of its own.
        let mut key = MaybeUninit::uninit();
        if self.tunnel_key(&mut key, 0) {
            // SAFETY: the kernel has filled it in.
            let key = unsafe { key.assume_init_ref() };
            return Some((key.id, Addr::v4(key.remote[0].to_be_bytes())));
        }
        if self.tunnel_key(&mut key, BPF_F_TUNINFO_IPV6) {
            // SAFETY: likewise.
            let key = unsafe { key.assume_init_ref() };
            return Some((key.id, Addr::from_words(key.remote)));
        }
        None
    }

    /// Fails when the outer packet is of the other family, or there is none.
    #[inline(always)]
    fn tunnel_key(&self, key: &mut MaybeUninit<TunnelKey>, flags: u32) -> bool {
        let place = key.as_mut_ptr().cast();
        // SAFETY: `key` is as long as is said, and any bytes are one.
        unsafe { bpf_skb_get_tunnel_key(self.skb(), place, TUNNEL_KEY_LEN, flags.into()) == 0 }
    }

    /// Tells the tunnel device that the packet is redirected to where it goes.
    #[inline(always)]
    pub(crate) fn set_tunnel(&self, remote: &Addr, id: u32) -> Result<(), DropReason> {
        let mut key = TunnelKey {
            id,
            // Of IPv4 the kernel reads the first word alone.
            remote: remote.words(),
            tos: 0,
            ttl: TUNNEL_TTL,
            ext: 0,
            label: 0,
        };
        let flags = if remote.is_v4() {
            key.remote[0] = u32::from_be_bytes(remote.v4_bytes());
            // RFC 7348, 5. Over IPv6 a receiver takes no zero unless it is told to (RFC 6935).
            BPF_F_ZERO_CSUM_TX
        } else {
            BPF_F_TUNINFO_IPV6
        };
        let place = core::ptr::from_mut(&mut key).cast();
        // SAFETY: `key` lives on the stack for the call and is as long as is said.
        match unsafe { bpf_skb_set_tunnel_key(self.skb(), place, TUNNEL_KEY_LEN, flags.into()) } {
            0 => Ok(()),
            _ => Err(DropReason::RedirectFailed),
        }
    }
}

#[inline(always)]
fn redirected(action: i64) -> Result<(), DropReason> {
    if action == i64::from(aya_ebpf::bindings::TC_ACT_REDIRECT) {
        Ok(())
    } else {
        Err(DropReason::RedirectFailed)
    }
}
