//! Names and default capacities of the maps. A name has at most 15 characters (`BPF_OBJ_NAME_LEN`).

macro_rules! names {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        $($(#[doc = $doc])+
        pub const $name: &str = stringify!($name);
        const _: () = assert!($name.len() <= 15);)+
        /// Every map that is pinned.
        pub const ALL: &[&str] = &[$($name,)+];
    };
}

names! {
    /// Hash: source pod → slot in `POD_STATE`.
    PODS,
    /// Array, written through `mmap`: slot → the pod's row and rule base.
    POD_STATE,
    /// LPM trie: IPv4 prefix → class.
    PREFIXES4,
    /// LPM trie: IPv6 prefix → class.
    PREFIXES6,
    /// Array of maps: the segments of the line store.
    LINES,
    /// Array: number + rule base → verdict.
    VERDICTS,
    /// Array: member → its way out.
    MEMBERS,
    /// LRU hash: recorded connection → where its replies go.
    REPLIES,
    /// LRU hash: fragments of a datagram from a pod → the hash of its flow.
    FRAGMENTS,
    /// LRU hash: fragments of a reply → where they go.
    REPLY_FRAGMENTS,
    /// Per-CPU array: packets and bytes per member.
    MEMBER_COUNTS,
    /// Per-CPU array: packets and bytes per policy and reason.
    DROP_COUNTS,
    /// Per-CPU array: packets and bytes per policy that went on to the kernel.
    PASS_COUNTS,
}

/// Capacities of the maps, in entries, before flags change them.
pub mod capacity {
    /// Source pods, an entry for each address.
    pub const PODS: u32 = 4096;
    /// Distinct prefixes of one family.
    pub const PREFIXES: u32 = 1_048_576;
    /// Verdicts of all policies.
    pub const VERDICTS: u32 = 65_536;
    /// Members of all groups.
    pub const MEMBERS: u32 = 16_384;
    /// Policies that are counted.
    pub const POLICIES: u32 = 2048;
    /// Recorded connections.
    pub const REPLIES: u32 = 65_536;
    /// Datagrams in fragments.
    pub const FRAGMENTS: u32 = 8192;
}
