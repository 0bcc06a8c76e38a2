//! Why a packet was dropped: error type, counter index and metric label in one.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal,)+) => {
        /// Why a packet was dropped. Numbers are never reused.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name = $value,)+
        }

        impl DropReason {
            /// Every reason, in order of number.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason with this number.
            #[inline(always)]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($value => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The reason as metrics and `explain` spell it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// What the reason means, in a sentence.
            pub const fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+
                }
            }
        }
    };
}

reasons! {
    /// The source address is not the pod's on its interface.
    SpoofedSource = 1,
    /// A VLAN tag, or an ethertype that is neither ARP nor IP.
    NotPlainIp = 2,
    /// A header is cut short or contradicts itself.
    Malformed = 3,
    /// The pod's annotation names a policy that does not exist or was never valid.
    PolicyMissing = 4,
    /// The rule's selector matches no usable gateway of the packet's family.
    NoGateway = 5,
    /// A fragment whose first fragment was not seen.
    FragmentUnknown = 6,
    /// TTL or hop limit would reach zero here.
    TtlExceeded = 7,
    /// The packet, or a segment of it, is larger than the MTU of its way out.
    TooBig = 8,
    /// A map entry that another one names is not there: the datapath's own state is broken.
    StateMissing = 9,
    /// The kernel refused to rewrite or redirect the packet.
    RedirectFailed = 10,
    /// The pod's own selector annotation cannot be parsed.
    PolicyInvalid = 11,
    /// A source route is still to be followed: the packet's destination is not where it goes.
    SourceRouted = 12,
    /// No port of the egress address is free for this remote, or the connection table is full.
    NatExhausted = 13,
    /// The source address has as many connections as one source may have.
    SourceQuota = 14,
    /// To an egress address, or through it, but of no connection that was translated.
    NatNoState = 15,
    /// A protocol or message that cannot be translated.
    NatUnsupported = 16,
    /// A protocol without ports whose remote already talks to another pod through this egress address.
    NatAmbiguous = 17,
    /// From the overlay with a tag that no key gives.
    OverlayForged = 18,
    /// From the overlay, and not from a node of the cluster.
    OverlayUnknownNode = 19,
    /// From the overlay, for a gateway whose egress address this node does not own.
    OverlayUnknownGateway = 20,
    /// From the overlay with another network identifier or a frame that is not ours.
    OverlayMalformed = 21,
    /// A reply for a pod that is not steered on this node.
    PodUnknown = 22,
    /// The uplink of the egress address has no route to where the packet goes.
    NoRoute = 23,
    /// No room to record the connection: its place in the table is full of connections of others.
    FlowsExhausted = 24,
    /// Let through as the cluster's own, and something translated its destination to one that is not.
    LocalLeftCluster = 25,
    /// An egress network policy selects the pod, and would not see the packet: it is redirected before the forward chain.
    PolicyEnforcement = 26,
    /// For the cluster, while the program that sees whether it stays there is missing where it may leave.
    LocalUnguarded = 27,
}

impl DropReason {
    /// Counter slots a policy has: room for every number, used or not.
    pub const COUNT: u32 = 32;
}

const _: () = {
    let mut i = 0;
    while i < DropReason::ALL.len() {
        assert!((DropReason::ALL[i] as u32) < DropReason::COUNT);
        i += 1;
    }
};
