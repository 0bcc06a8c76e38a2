//! The eBPF object that is embedded in this binary, and the programs in it.

/// The object, as the compiler left it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.bpf.o"));

/// The embedded object, for tests that load it by themselves.
#[must_use]
pub fn ebpf_object() -> &'static [u8] {
    OBJECT
}

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// Ingress of a source pod's host-side interface.
    FromPod,
    /// Ingress of an interface that leads to a next-hop gateway.
    FromGateway,
    /// Egress of a source pod's host-side interface.
    ToPod,
    /// Ingress of the overlay device.
    FromOverlay,
    /// Ingress of an uplink.
    FromUplink,
    /// Egress of an interface that leads out of the cluster.
    ToUplink,
    /// Ingress of the interface that leads to other nodes.
    FromUnderlay,
}

impl Program {
    /// Every program.
    pub const ALL: &[Self] = &[
        Self::FromPod,
        Self::FromGateway,
        Self::ToPod,
        Self::FromOverlay,
        Self::FromUplink,
        Self::ToUplink,
        Self::FromUnderlay,
    ];

    /// Its name in the object, in the kernel and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "egress_from_pod",
            Self::FromGateway => "egress_from_gateway",
            Self::ToPod => "egress_to_pod",
            Self::FromOverlay => "egress_from_overlay",
            Self::FromUplink => "egress_from_uplink",
            Self::ToUplink => "egress_to_uplink",
            Self::FromUnderlay => "egress_from_underlay",
        }
    }
}

/// The program that removes ended connections: it is attached nowhere, but run with keys of `NAT_BACK`.
pub const NAT_SWEEP: &str = "egress_nat_sweep";
/// The program that asks gateways on other nodes whether they are in order: likewise run, with a frame for each.
pub const PROBE: &str = "egress_probe";
