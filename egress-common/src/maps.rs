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
    /// Array, written through `mmap`: what `PODS` says, by a hash of its keys.
    POD_INDEX,
    /// Array, written through `mmap`: slot → the pod's row and rule base.
    POD_STATE,
    /// Array, written through `mmap`: the first 13 bits of an address → what is below them in the prefix trie.
    ROOTS,
    /// Array of maps, written through `mmap`: the segments of the prefix trie.
    TRIE,
    /// Array of maps: the segments of the line store.
    LINES,
    /// Array, written through `mmap`: number + rule base → verdict.
    VERDICTS,
    /// Array, written through `mmap`: half of number + rule base → what most packets need of that verdict and the next.
    SHORTCUTS,
    /// Array: member → its way out; behind the members, ways that shortcuts name.
    MEMBERS,
    /// Array: buckets of recorded connections → where their replies go.
    REPLIES,
    /// Array: buckets of datagrams in fragments from pods → the member that the first fragment used.
    FRAGMENTS,
    /// Array: buckets of replies in fragments → where they go.
    REPLY_FRAGMENTS,
    /// Array, read through `mmap`: packets and bytes per CPU and member.
    MEMBER_COUNTS,
    /// Per-CPU array: packets and bytes per policy and reason.
    DROP_COUNTS,
    /// Per-CPU array: packets and bytes per policy that went on to the kernel.
    PASS_COUNTS,
    /// Hash: a steered address → its interface and slot.
    POD_PLACES,
    /// Array: slot → what the datapath learns of a pod.
    POD_NOTES,
    /// Array: slot → what userspace says of a pod beside its policy.
    POD_FACTS,
    /// Array: buckets of flows → the member that each uses of its group.
    FLOWS,
    /// Array: buckets of connections that came in to pods; each entry's state says how far it got.
    INBOUND,
    /// Array: buckets of the flows that pods started themselves, by hash.
    OWN_FLOWS,
    /// Array of one: what the whole node is told.
    SETTINGS,
    /// LPM trie: IPv4 prefix that is local whatever a policy says → whether it is this node's own.
    LOCALS4,
    /// LPM trie: the same of IPv6.
    LOCALS6,
    /// Hash: interface of a steered pod → one of the pod's slots.
    INTERFACES,
    /// Hash: gateway and family → index into `EGRESS`.
    GATEWAYS,
    /// Hash: egress address → index into `EGRESS`.
    EGRESS_ADDRS,
    /// Array: the egress addresses that this node owns.
    EGRESS,
    /// Hash: address of another node → index into `NODE_STATE`.
    NODES,
    /// Array: the other nodes.
    NODE_STATE,
    /// Hash: connection as pods' packets carry it → what they become.
    NAT_OUT,
    /// Hash: connection as replies carry it → where they go.
    NAT_BACK,
    /// Hash: source address → how many connections it has.
    NAT_SOURCES,
    /// Array: buckets of translated datagrams in fragments → what the first was translated to.
    NAT_FRAGMENTS,
    /// Per-CPU array: translated packets and bytes per gateway and direction.
    GATEWAY_COUNTS,
    /// Per-CPU array: dropped packets and bytes per gateway and reason.
    GATEWAY_DROPS,
    /// Per-CPU array: answers sent, per kind.
    ANSWER_COUNTS,
    /// Array: how many more answers a source may have.
    ANSWER_BUCKETS,
    /// Hash: gateway on another node → when it was asked, and when it answered.
    PROBES,
}

/// What was pinned by versions before, and is removed with all else.
pub const FORMER: &[&str] = &["PREFIXES4", "PREFIXES6"];

/// The maps that userspace fills from the desired state: they name places in each other, and can be filled anew.
/// All others keep what only the datapath knows: connections, counts, and when gateways answered.
pub const FILLED: &[&str] = &[
    PODS,
    POD_INDEX,
    POD_STATE,
    ROOTS,
    TRIE,
    LINES,
    VERDICTS,
    SHORTCUTS,
    MEMBERS,
    POD_PLACES,
    POD_NOTES,
    POD_FACTS,
    SETTINGS,
    LOCALS4,
    LOCALS6,
    INTERFACES,
    GATEWAYS,
    EGRESS_ADDRS,
    EGRESS,
    NODES,
    NODE_STATE,
];

/// The number of a map's layout: another one whenever its keys or values, or what they mean, are others, also where
/// their sizes stay the same.
#[must_use]
pub const fn layout(name: &str) -> u32 {
    // Maps of another layout, for tests of upgrades.
    if cfg!(feature = "other-layout") {
        if same(name, MEMBERS) {
            return 2;
        }
        if same(name, VERDICTS) {
            return 3;
        }
    }
    // Raised whenever it changes.
    if is_table(name) || same(name, ROOTS) || same(name, TRIE) {
        3
    } else if same(name, VERDICTS)
        || same(name, MEMBER_COUNTS)
        || same(name, OWN_FLOWS)
        || same(name, POD_STATE)
        || same(name, POD_INDEX)
        || same(name, LINES)
        || same(name, SETTINGS)
    {
        2
    } else {
        1
    }
}

const fn is_table(name: &str) -> bool {
    let mut at = 0;
    while at < TABLES.len() {
        if same(name, TABLES[at].0) {
            return true;
        }
        at += 1;
    }
    false
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// The tables of flows: arrays of [`crate::table::Bucket`]s, with the constant that tells the programs how many
/// there are.
pub const TABLES: &[(&str, &str)] = &[
    (REPLIES, "REPLIES_BUCKETS"),
    (FRAGMENTS, "FRAGMENTS_BUCKETS"),
    (REPLY_FRAGMENTS, "FRAGMENTS_BUCKETS"),
    (NAT_FRAGMENTS, "FRAGMENTS_BUCKETS"),
    (FLOWS, "FLOWS_BUCKETS"),
    (INBOUND, "INBOUND_BUCKETS"),
];

/// Capacities of the maps, in entries, before flags change them.
pub mod capacity {
    /// Source pods, an entry for each address.
    pub const PODS: u32 = 4096;
    /// Lines of pods: 512 KiB. No flag changes it, since it says which line is a pod's.
    pub const POD_INDEX: u32 = 8192;
    /// Distinct prefixes of one family.
    pub const PREFIXES: u32 = 1_048_576;
    /// Verdicts of all policies: 5 MiB, for a thousand policies of a hundred rules twice over.
    pub const VERDICTS: u32 = 262_144;
    /// Members of all groups: 5 MiB, and 2 MiB of counters for each CPU that there can be.
    pub const MEMBERS: u32 = 131_072;
    /// Ways that members share: as many gateways, about. No flag changes it; what finds no place is told by its member.
    pub const WAYS: u32 = crate::verdict::Shortcut::WAYS;
    /// Policies that are counted.
    pub const POLICIES: u32 = 2048;
    /// Recorded connections: 10 MiB.
    pub const REPLIES: u32 = 131_072;
    /// Datagrams in fragments.
    pub const FRAGMENTS: u32 = 8192;
    /// Flows that stay on their gateway: 10 MiB.
    pub const FLOWS: u32 = 131_072;
    /// Connections that came in to pods: 5 MiB.
    pub const INBOUND: u32 = 65_536;
    /// Buckets of flows that pods started: 8 MiB. No flag changes it, since it says which bucket is a flow's.
    pub const OWN_FLOWS: u32 = 131_072;
    /// Egress addresses of one node.
    pub const EGRESS: u32 = 1024;
    /// Other nodes, and their addresses.
    pub const NODES: u32 = 16_384;
    /// Connections that a node translates.
    pub const NAT: u32 = 262_144;
    /// Source addresses with connections.
    pub const NAT_SOURCES: u32 = 65_536;
    /// Buckets that limit answers: a source's is found by its hash.
    pub const ANSWER_BUCKETS: u32 = 4096;
    /// Gateways on other nodes that are probed.
    pub const PROBES: u32 = 4096;
}
