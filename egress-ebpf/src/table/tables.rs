//! The tables there are, by number: what asks for one by its number is looked at by the verifier once for all of them.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use egress_common::{
    maps::capacity,
    table::{self, Bucket, buckets},
};

/// `BPF_F_MMAPABLE`: nobody maps these, but their buckets begin where a page does, and so each record has one line of a
/// cache for itself.
const ALIGNED: usize = 1 << 10;

/// Recorded connections: where their replies go.
#[btf_map]
static REPLIES: Array<Bucket, { buckets(capacity::REPLIES) as usize }, ALIGNED> = Array::new();
/// Flows of groups: the member that each started on.
#[btf_map]
static FLOWS: Array<Bucket, { buckets(capacity::FLOWS) as usize }, ALIGNED> = Array::new();
/// Connections that came in to pods.
#[btf_map]
static INBOUND: Array<Bucket, { buckets(capacity::INBOUND) as usize }, ALIGNED> = Array::new();
/// Datagrams in fragments from pods: the member that the first one used, or that it was passed.
#[btf_map]
static FRAGMENTS: Array<Bucket, { buckets(capacity::FRAGMENTS) as usize }, ALIGNED> = Array::new();
/// Datagrams in fragments to pods: where the first one went.
#[btf_map]
static REPLY_FRAGMENTS: Array<Bucket, { buckets(capacity::FRAGMENTS) as usize }, ALIGNED> =
    Array::new();
/// Translated datagrams in fragments: what the first one became.
#[btf_map]
static NAT_FRAGMENTS: Array<Bucket, { buckets(capacity::FRAGMENTS) as usize }, ALIGNED> =
    Array::new();

/// How many buckets each has, told by the loader.
#[unsafe(no_mangle)]
static REPLIES_BUCKETS: u32 = buckets(capacity::REPLIES);
#[unsafe(no_mangle)]
static FLOWS_BUCKETS: u32 = buckets(capacity::FLOWS);
#[unsafe(no_mangle)]
static INBOUND_BUCKETS: u32 = buckets(capacity::INBOUND);
#[unsafe(no_mangle)]
static FRAGMENTS_BUCKETS: u32 = buckets(capacity::FRAGMENTS);

/// A table.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Table {
    Replies = 0,
    Flows = 1,
    Inbound = 2,
    Fragments = 3,
    ReplyFragments = 4,
    NatFragments = 5,
}

impl Table {
    /// Where in the table the bucket of a hash is.
    #[inline(always)]
    pub(super) fn index(self, hash: u32) -> u32 {
        let buckets = match self {
            Self::Replies => &raw const REPLIES_BUCKETS,
            Self::Flows => &raw const FLOWS_BUCKETS,
            Self::Inbound => &raw const INBOUND_BUCKETS,
            Self::Fragments | Self::ReplyFragments | Self::NatFragments => {
                &raw const FRAGMENTS_BUCKETS
            }
        };
        // SAFETY: a static of the read-only section, read as the loader left it.
        table::bucket(hash, unsafe { core::ptr::read_volatile(buckets) })
    }

    /// The bucket at an index.
    #[inline(always)]
    pub(super) fn bucket(self, index: u32) -> Option<*mut Bucket> {
        match self {
            Self::Replies => REPLIES.get_ptr_mut(index),
            Self::Flows => FLOWS.get_ptr_mut(index),
            Self::Inbound => INBOUND.get_ptr_mut(index),
            Self::Fragments => FRAGMENTS.get_ptr_mut(index),
            Self::ReplyFragments => REPLY_FRAGMENTS.get_ptr_mut(index),
            Self::NatFragments => NAT_FRAGMENTS.get_ptr_mut(index),
        }
    }

    /// The table of that number.
    #[inline(always)]
    pub(super) const fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Replies,
            1 => Self::Flows,
            2 => Self::Inbound,
            3 => Self::Fragments,
            4 => Self::ReplyFragments,
            5 => Self::NatFragments,
            _ => return None,
        })
    }
}
