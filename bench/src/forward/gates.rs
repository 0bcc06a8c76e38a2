//! What has to hold of ways through namespaces.

use super::{FORWARDING, KERNEL, NEIGHBOUR, OURS, ROUTE, RULES, WHOLE};
use crate::gates::{Bound, Figure, Gate, Value};

const LARGE: &str = "1000 × 100";

const fn whole(subject: &'static str) -> Figure {
    Figure {
        group: WHOLE,
        ..forwarding(subject)
    }
}

const fn forwarding(subject: &'static str) -> Figure {
    Figure {
        group: FORWARDING,
        scene: LARGE,
        subject,
        gross: false,
    }
}

/// The gates.
pub(super) const GATES: &[Gate] = &[
    Gate {
        what: "forwarding to a next hop, beside redirect_neigh alone",
        value: Value::Ratio(forwarding(OURS), forwarding(NEIGHBOUR)),
        bound: Bound::AtMost(1.25),
    },
    Gate {
        what: "the same, beside the kernel's one route",
        value: Value::Ratio(forwarding(OURS), forwarding(ROUTE)),
        bound: Bound::AtMost(1.0),
    },
    Gate {
        what: "the same, 1000 ip rules beside it",
        value: Value::Ratio(forwarding(RULES), forwarding(OURS)),
        bound: Bound::AtLeast(10.0),
    },
    // Nanoseconds a packet are one over packets a second.
    Gate {
        what: "the whole way with NAT, packets a second beside kernel VXLAN with nftables SNAT",
        value: Value::Ratio(whole(KERNEL), whole(OURS)),
        bound: Bound::AtLeast(1.5),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gates,
        measured::{Measured, Unit},
    };

    #[test]
    fn each_gate_can_hold_and_fail() {
        let figure = |group, subject, ns| {
            Measured::of_samples(group, LARGE, subject, Unit::GrossNanoseconds, &[ns])
        };
        let of = |subject, ns| figure(FORWARDING, subject, ns);
        gates::tests::can_hold_and_fail(
            GATES,
            &[
                of(OURS, 420.0),
                of(NEIGHBOUR, 360.0),
                of(ROUTE, 470.0),
                of(RULES, 11_000.0),
                figure(WHOLE, OURS, 1500.0),
                figure(WHOLE, KERNEL, 3000.0),
            ],
        );
    }
}
