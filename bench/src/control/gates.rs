//! What has to hold of the control plane. These are no ratios: people wait for seconds, not for multiples of anything.

use super::{
    CHANGES, LOADS, PODS,
    changes::{CHANGE_P99, LARGE, LOAD, MILLION},
    pods::{AT_REST, CHURNING, NODE, RESIDENT},
};
use crate::gates::{Bound, Figure, Gate, Value};

const MIB: f64 = (1 << 20) as f64;

const fn alone(
    group: &'static str,
    scene: &'static str,
    subject: &'static str,
    unit: f64,
) -> Value {
    let figure = Figure {
        group,
        scene,
        subject,
        gross: false,
    };
    Value::Alone(figure, unit)
}

pub(super) const GATES: &[Gate] = &[
    Gate {
        what: "a change of one policy among 100k prefixes, file to kernel, 99 of 100, in milliseconds",
        value: alone(CHANGES, LARGE, CHANGE_P99, 1.0),
        bound: Bound::AtMost(100.0),
    },
    Gate {
        what: "the agent's start with 1M prefixes, until the kernel holds them, in seconds",
        value: alone(LOADS, MILLION, LOAD, 1000.0),
        bound: Bound::AtMost(5.0),
    },
    Gate {
        what: "the agent at rest, 100 pods and 1000 prefixes, in MiB",
        value: alone(PODS, NODE, RESIDENT, MIB),
        bound: Bound::AtMost(30.0),
    },
    Gate {
        what: "the same, in hundredths of a core",
        value: alone(PODS, NODE, AT_REST, 1.0),
        bound: Bound::AtMost(1.0),
    },
    Gate {
        what: "20 pods a second that come and go, in hundredths of a core",
        value: alone(PODS, NODE, CHURNING, 1.0),
        bound: Bound::AtMost(5.0),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gates::tests::can_hold_and_fail,
        measured::{Measured, Unit},
    };

    #[test]
    fn each_gate_can_hold_and_fail() {
        let figure = |group, scene, subject, unit, value| {
            Measured::exactly(group, scene, subject, unit, value)
        };
        let passing = [
            figure(CHANGES, LARGE, CHANGE_P99, Unit::Milliseconds, 60.0),
            figure(LOADS, MILLION, LOAD, Unit::Milliseconds, 4000.0),
            figure(PODS, NODE, RESIDENT, Unit::Bytes, 20.0 * MIB),
            figure(PODS, NODE, AT_REST, Unit::PercentOfCore, 0.5),
            figure(PODS, NODE, CHURNING, Unit::PercentOfCore, 4.0),
        ];
        can_hold_and_fail(GATES, &passing);
    }
}
