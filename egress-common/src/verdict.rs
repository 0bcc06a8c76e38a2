//! What a pod's packet is told: a number in its row, a verdict behind the number, a member behind that; and in short.

use crate::{
    addr::Addr, cells::RowPlace, drop::DropReason, gateway::GatewayId, map_type, overlay::Tag,
};

/// Where a pod's row and verdicts are: the one word that is turned when its policy changes.
///
/// Userspace writes it with one 64-bit store, so that a packet sees the old policy or the new one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodState(pub u64);
map_type!(PodState, size = 8, align = 8);

impl PodState {
    /// From the row's place and the index of the first verdict.
    #[inline(always)]
    pub const fn new(row: RowPlace, rule_base: u32) -> Self {
        Self(((row.0 as u64) << 32) | rule_base as u64)
    }

    /// Where the row is.
    #[inline(always)]
    pub const fn row(self) -> RowPlace {
        RowPlace((self.0 >> 32) as u32)
    }

    /// The index of the verdict for number 0.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is asked for"
    )]
    pub const fn rule_base(self) -> u32 {
        self.0 as u32
    }
}

/// Number of the verdict for a packet that no rule matches.
pub const NUMBER_UNMATCHED: u16 = 0;
/// Number of the verdict for a packet to one of the cluster's own prefixes.
pub const NUMBER_CLUSTER: u16 = 1;
/// Number of the first rule's verdict.
pub const NUMBER_FIRST_RULE: u16 = 2;

/// A verdict as it lies in the map; [`Verdict::decode`] gives its meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Verdict {
    kind: u8,
    reason: u8,
    members: u16,
    /// The policy that is counted.
    pub policy: u32,
    lines: u32,
    member: u32,
}
map_type!(Verdict, size = 16, align = 4);

/// What a rule means for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// No rule matched: the kernel routes as it would without us.
    Unmatched,
    /// The kernel routes, because a rule or the cluster says so.
    Local,
    /// Out through this member.
    Member(u32),
    /// Out through one of a group's members.
    Group {
        /// First line of the slot table, whose cells are numbers within the group.
        lines: u32,
        /// The member that number 0 means.
        first_member: u32,
        /// How many members there are, in ascending order of their gateways' ids.
        members: u16,
    },
    /// Not at all.
    Drop(DropReason),
}

const UNMATCHED: u8 = 1;
const LOCAL: u8 = 2;
const MEMBER: u8 = 3;
const GROUP: u8 = 4;
const DROP: u8 = 5;

impl Verdict {
    /// The map value for a decision.
    pub const fn new(policy: u32, decision: Decision) -> Self {
        let (kind, reason, lines, member, members) = match decision {
            Decision::Unmatched => (UNMATCHED, 0, 0, 0, 0),
            Decision::Local => (LOCAL, 0, 0, 0, 0),
            Decision::Member(member) => (MEMBER, 0, 0, member, 0),
            Decision::Group {
                lines,
                first_member,
                members,
            } => (GROUP, 0, lines, first_member, members),
            Decision::Drop(reason) => (DROP, reason as u8, 0, 0, 0),
        };
        Self {
            kind,
            reason,
            members,
            policy,
            lines,
            member,
        }
    }

    /// As two words, in the order of memory.
    #[must_use]
    pub const fn to_words(&self) -> [u64; 2] {
        let [a, b] = self.members.to_ne_bytes();
        let [c, d, e, f] = self.policy.to_ne_bytes();
        let [g, h, i, j] = self.lines.to_ne_bytes();
        let [k, l, m, n] = self.member.to_ne_bytes();
        [
            u64::from_ne_bytes([self.kind, self.reason, a, b, c, d, e, f]),
            u64::from_ne_bytes([g, h, i, j, k, l, m, n]),
        ]
    }

    /// From two words.
    #[must_use]
    pub const fn from_words([first, second]: [u64; 2]) -> Self {
        let [kind, reason, a, b, c, d, e, f] = first.to_ne_bytes();
        let [g, h, i, j, k, l, m, n] = second.to_ne_bytes();
        Self {
            kind,
            reason,
            members: u16::from_ne_bytes([a, b]),
            policy: u32::from_ne_bytes([c, d, e, f]),
            lines: u32::from_ne_bytes([g, h, i, j]),
            member: u32::from_ne_bytes([k, l, m, n]),
        }
    }

    /// Whether the decision is `Local`.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.kind == LOCAL
    }

    /// The decision, or nothing where no verdict was ever written.
    #[inline(always)]
    pub const fn decode(&self) -> Option<Decision> {
        match self.kind {
            UNMATCHED => Some(Decision::Unmatched),
            LOCAL => Some(Decision::Local),
            MEMBER => Some(Decision::Member(self.member)),
            GROUP => Some(Decision::Group {
                lines: self.lines,
                first_member: self.member,
                members: self.members,
            }),
            DROP => match DropReason::from_number(self.reason) {
                Some(reason) => Some(Decision::Drop(reason)),
                None => None,
            },
            _ => None,
        }
    }
}

/// What most packets need of a verdict, in half a word: the way of its one member, and where that is counted.
///
/// Zero where there is no member, or several, or what there is has too high a number: the verdict tells.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shortcut(pub u32);
const _: () = assert!(size_of::<Shortcut>() == 4);

/// A map value: two neighbours, since an array's elements take eight bytes at least (`array_map_alloc`).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortcuts(pub [Shortcut; 2]);
map_type!(Shortcuts, size = 8, align = 4);

/// Bits of a shortcut that name what counts.
const COUNTER_BITS: u32 = 20;
const COUNTER: u32 = (1 << COUNTER_BITS) - 1;

impl Shortcut {
    /// None: the verdict tells.
    pub const NONE: Self = Self(0);
    /// Ways that can be named.
    pub const WAYS: u32 = u32::MAX >> COUNTER_BITS;

    /// To a way, by its number, counted by `counter`; none if one of the numbers is too high.
    #[must_use]
    pub const fn new(way: u32, counter: u32) -> Self {
        if way < Self::WAYS && counter <= COUNTER {
            Self((way + 1) << COUNTER_BITS | counter)
        } else {
            Self::NONE
        }
    }

    /// The number of the way, if it names one.
    #[inline(always)]
    #[must_use]
    pub const fn way(self) -> Option<u32> {
        (self.0 >> COUNTER_BITS).checked_sub(1)
    }

    /// Index into `MEMBER_COUNTS`.
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> u32 {
        self.0 & COUNTER
    }
}

/// How a member's packets leave: a gateway as the datapath sees it, and where it is counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    way: u8,
    replies: u8,
    /// The tag that the overlay's frames carry to the gateway's node; zero for other ways.
    pub tag: Tag,
    /// Index into `MEMBER_COUNTS`.
    pub counter: u32,
    /// The interface that leads to the gateway: the next hop's, or the overlay device; zero for a gateway
    /// of this node.
    pub ifindex: u32,
    /// Largest IP packet in bytes that this way takes.
    pub mtu: u32,
    /// The gateway, the same on every node.
    pub gateway: GatewayId,
    /// The next hop's address, the address of the gateway's node, or the egress address.
    pub address: Addr,
    /// Always zero.
    #[cfg(feature = "other-layout")]
    pub other: u32,
}
#[cfg(not(feature = "other-layout"))]
map_type!(Member, size = 40, align = 4);
#[cfg(feature = "other-layout")]
map_type!(Member, size = 44, align = 4);

const NEXT_HOP: u8 = 1;
const OVERLAY: u8 = 2;
const HERE: u8 = 3;
const REPLIES_KERNEL: u8 = 1;
const REPLIES_RECORDED: u8 = 2;

/// Who brings replies back to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Replies {
    /// The kernel's routing.
    Kernel,
    /// We do: each connection is recorded on its way out.
    Recorded,
}

/// The way a member's packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// To an on-link next hop, which translates by itself.
    NextHop,
    /// Through the overlay to the node that owns the egress address.
    Overlay,
    /// Translated on this node, which owns the egress address.
    Here,
}

impl Member {
    /// A gateway that is the next hop `address` on `ifindex`.
    pub const fn next_hop(
        counter: u32,
        gateway: GatewayId,
        ifindex: u32,
        mtu: u32,
        address: Addr,
        replies: Replies,
    ) -> Self {
        let replies = match replies {
            Replies::Kernel => REPLIES_KERNEL,
            Replies::Recorded => REPLIES_RECORDED,
        };
        Self {
            way: NEXT_HOP,
            replies,
            tag: Tag::ZERO,
            counter,
            ifindex,
            mtu,
            gateway,
            address,
            #[cfg(feature = "other-layout")]
            other: 0,
        }
    }

    /// A gateway on the node with the underlay address `node`, reached through the overlay device `ifindex`.
    pub const fn overlay(
        counter: u32,
        gateway: GatewayId,
        ifindex: u32,
        mtu: u32,
        node: Addr,
        tag: Tag,
    ) -> Self {
        Self {
            way: OVERLAY,
            replies: REPLIES_KERNEL,
            tag,
            counter,
            ifindex,
            mtu,
            gateway,
            address: node,
            #[cfg(feature = "other-layout")]
            other: 0,
        }
    }

    /// A gateway whose egress address this node owns.
    pub const fn here(counter: u32, gateway: GatewayId, mtu: u32, egress: Addr) -> Self {
        Self {
            way: HERE,
            replies: REPLIES_KERNEL,
            tag: Tag::ZERO,
            counter,
            ifindex: 0,
            mtu,
            gateway,
            address: egress,
            #[cfg(feature = "other-layout")]
            other: 0,
        }
    }

    /// The way that packets take; nothing where no member was ever written.
    #[inline(always)]
    pub const fn way(&self) -> Option<Way> {
        match self.way {
            NEXT_HOP => Some(Way::NextHop),
            OVERLAY => Some(Way::Overlay),
            HERE => Some(Way::Here),
            _ => None,
        }
    }

    /// The way alone, as it is the same for all members that lead there.
    #[must_use]
    pub const fn uncounted(self) -> Self {
        Self { counter: 0, ..self }
    }

    /// Whether anything was ever written here.
    #[inline(always)]
    pub const fn is_set(&self) -> bool {
        self.way().is_some()
    }

    /// Who brings the replies of a next hop back.
    #[inline(always)]
    pub const fn replies(&self) -> Replies {
        if self.replies == REPLIES_RECORDED {
            Replies::Recorded
        } else {
            Replies::Kernel
        }
    }
}
