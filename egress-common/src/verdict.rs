//! What a pod's packet is told: a number in its row, a verdict behind the number, a member behind that.

use crate::{addr::Addr, drop::DropReason, map_type};

/// Where a pod's row and verdicts are: the one word that is turned when its policy changes.
///
/// Userspace writes it with one 64-bit store, so that a packet sees the old policy or the new one.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodState(pub u64);
map_type!(PodState, size = 8, align = 8);

impl PodState {
    /// From the row's first line and the index of the first verdict.
    #[inline(always)]
    pub const fn new(row: u32, rule_base: u32) -> Self {
        Self(((row as u64) << 32) | rule_base as u64)
    }

    /// The first line of the row.
    #[inline(always)]
    pub const fn row(self) -> u32 {
        (self.0 >> 32) as u32
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
    pad: u16,
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
        let (kind, reason, lines, member) = match decision {
            Decision::Unmatched => (UNMATCHED, 0, 0, 0),
            Decision::Local => (LOCAL, 0, 0, 0),
            Decision::Member(member) => (MEMBER, 0, 0, member),
            Decision::Group {
                lines,
                first_member,
            } => (GROUP, 0, lines, first_member),
            Decision::Drop(reason) => (DROP, reason as u8, 0, 0),
        };
        Self {
            kind,
            reason,
            pad: 0,
            policy,
            lines,
            member,
        }
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
            }),
            DROP => match DropReason::from_number(self.reason) {
                Some(reason) => Some(Decision::Drop(reason)),
                None => None,
            },
            _ => None,
        }
    }
}

/// How a member's packets leave: a gateway as the datapath sees it, and where it is counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    way: u8,
    replies: u8,
    pad: u16,
    /// Index into `MEMBER_COUNTS`.
    pub counter: u32,
    /// The interface that leads to the gateway.
    pub ifindex: u32,
    /// Largest IP packet in bytes that this way takes.
    pub mtu: u32,
    /// The next hop's address.
    pub next_hop: Addr,
}
map_type!(Member, size = 32, align = 4);

const NEXT_HOP: u8 = 1;
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

impl Member {
    /// A gateway that is the next hop `next_hop` on `ifindex`.
    pub const fn next_hop(
        counter: u32,
        ifindex: u32,
        mtu: u32,
        next_hop: Addr,
        replies: Replies,
    ) -> Self {
        let replies = match replies {
            Replies::Kernel => REPLIES_KERNEL,
            Replies::Recorded => REPLIES_RECORDED,
        };
        Self {
            way: NEXT_HOP,
            replies,
            pad: 0,
            counter,
            ifindex,
            mtu,
            next_hop,
        }
    }

    /// Whether anything was ever written here.
    #[inline(always)]
    pub const fn is_set(&self) -> bool {
        self.way == NEXT_HOP
    }

    /// Who brings replies back.
    #[inline(always)]
    pub const fn replies(&self) -> Replies {
        if self.replies == REPLIES_RECORDED {
            Replies::Recorded
        } else {
            Replies::Kernel
        }
    }
}
