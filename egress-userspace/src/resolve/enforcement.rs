//! Steered pods that an egress network policy of others selects.
//!
//! Such a policy is enforced by rules where the kernel forwards packets, and what is redirected never comes there. So
//! it is refused, unless the operator accepts that. What stays local is the kernel's, and comes by those rules.

use egress_common::DropReason;

use super::{Action, Fate, PodState, Settings, plan::Planner, pods::list};
use crate::{
    model::{Model, ObjectName, Pod},
    network_policies::judging,
};

/// Policies that a warning names before it only counts.
const NAMED: usize = 3;

/// What network policies mean for a pod.
pub(super) struct Enforced {
    /// Where a pod that has rules stands.
    pub(super) state: PodState,
    /// The policies that packets of the pod go past, or would.
    pub(super) policies: Vec<String>,
    /// What to say of it.
    pub(super) warning: Option<String>,
}

/// Refuses what the pod's rules send to gateways, if that would go past a network policy that judges it.
pub(super) fn enforce(
    model: &Model,
    settings: &Settings,
    (name, pod): (&ObjectName, &Pod),
    fate: &mut Fate,
    planner: &mut Planner<'_, '_>,
) -> Enforced {
    let redirects = |action: &Action| matches!(action, Action::Gateways(_));
    let policies = match fate {
        Fate::Rules(rules) if rules.iter().any(|rule| redirects(&rule.action)) => {
            judging(model, name, pod)
        }
        Fate::Rules(_) | Fate::Drop(_) => Vec::new(),
    };
    if policies.is_empty() {
        return Enforced {
            state: PodState::Steered,
            policies,
            warning: None,
        };
    }
    let mut named = list(&policies[..policies.len().min(NAMED)]);
    if policies.len() > NAMED {
        named += &format!(" and {} more", policies.len() - NAMED);
    }
    if settings.accept_networkpolicy_bypass {
        return Enforced {
            state: PodState::PolicyBypass,
            policies,
            warning: Some(format!(
                "pod {name}: what its policy sends to gateways goes past {named}, as --accept-networkpolicy-bypass has \
                 it: what the pod must not reach has to be stopped at its gateways"
            )),
        };
    }
    if let Fate::Rules(rules) = fate {
        *rules = planner.refuse(rules, DropReason::PolicyEnforcement);
    }
    Enforced {
        state: PodState::PolicyEnforcement,
        policies,
        warning: Some(format!(
            "pod {name}: what its policy sends to gateways is dropped (PolicyEnforcement), since redirected packets \
             would go past {named}: exclude the pod there, or accept that with --accept-networkpolicy-bypass"
        )),
    }
}
