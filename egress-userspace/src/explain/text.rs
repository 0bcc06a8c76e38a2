//! Explanations for people, at three in the morning: the verdict first.

use std::fmt;

use egress_common::DropReason;

use super::{Answer, GatewayShare, KernelDecision, Outcome, WayKind};

impl Outcome {
    /// What happens, in a few words.
    #[must_use]
    pub fn phrase(&self) -> String {
        match self {
            Self::NotSteered => "not steered: routed by the kernel".to_owned(),
            Self::Unmatched => "unmatched: routed by the kernel".to_owned(),
            Self::Local => "local: routed by the kernel".to_owned(),
            Self::Gateway => "through a gateway".to_owned(),
            Self::Drop(reason) => format!("dropped ({reason})"),
        }
    }
}

impl GatewayShare {
    /// Where packets go, and as whom they leave.
    fn route(&self) -> String {
        let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "?".to_owned());
        let egress = or_unknown(self.egress.map(|address| address.to_string()));
        let node = or_unknown(self.node.clone());
        let (address, device) = (self.address, &self.device);
        match self.way {
            WayKind::NextHop => format!("via next hop {address} on {device}"),
            WayKind::Overlay => {
                format!("as {egress} on node {node}, via overlay to {address} on {device}")
            }
            WayKind::Local => format!("as {egress} on node {node}, local, out of {device}"),
        }
    }
}

impl KernelDecision {
    /// What happens, in a few words.
    #[must_use]
    pub fn phrase(&self) -> String {
        match self {
            Self::Unmatched => Outcome::Unmatched.phrase(),
            Self::Local => Outcome::Local.phrase(),
            Self::Members(_) => Outcome::Gateway.phrase(),
            Self::Drop(reason) => format!("dropped ({reason})"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let it = &self.explanation;
        writeln!(
            f,
            "{} to {}: {}",
            it.pod,
            it.destination,
            it.verdict.phrase()
        )?;
        writeln!(f, "{}", it.because)?;
        if let Outcome::Drop(name) = &it.verdict
            && let Some(reason) = DropReason::ALL.iter().find(|r| r.name() == name)
        {
            writeln!(f, "{name}: {}", reason.describe())?;
        }
        if let Some(policy) = &it.policy {
            writeln!(f, "\npolicy     {policy}")?;
        }
        if let Some(interface) = &it.interface {
            match it.source {
                Some(source) => writeln!(f, "source     {source} on {interface}")?,
                None => writeln!(
                    f,
                    "source     none: the pod has no address of the destination's family, so it cannot send there"
                )?,
            }
            let cluster = it.cluster_prefix.map(|net| net.to_string());
            let cluster = cluster
                .as_deref()
                .unwrap_or("none contains the destination");
            writeln!(f, "cluster    {cluster}")?;
        }
        if !it.network_policies.is_empty() {
            writeln!(f, "judged by  {}", it.network_policies.join(", "))?;
        }
        for gateway in &it.gateways {
            writeln!(
                f,
                "gateway    {} {}, MTU {}, {:.1} % of the flows",
                gateway.gateway,
                gateway.route(),
                gateway.mtu,
                gateway.share * 100.0
            )?;
        }
        self.rules(f)?;
        self.kernel(f)
    }
}

impl Answer {
    fn rules(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rules = &self.explanation.rules;
        let width = |cell: fn(&super::RuleLine) -> &str| {
            rules
                .iter()
                .map(|r| cell(r).chars().count())
                .max()
                .unwrap_or(0)
        };
        let (rule, action) = (width(|r| &r.rule), width(|r| &r.action));
        if !rules.is_empty() {
            writeln!(f, "\nrules")?;
        }
        for line in rules {
            writeln!(
                f,
                "  {} {:rule$}  {:action$}  {}",
                if line.wins { "wins" } else { "    " },
                line.rule,
                line.action,
                line.because
            )?;
        }
        Ok(())
    }

    fn kernel(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(kernel) = &self.kernel else {
            return Ok(());
        };
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        writeln!(
            f,
            "\nkernel     {}; prefix {}, class {}, number {}",
            kernel.decision.phrase(),
            or_none(kernel.prefix.map(|p| p.to_string())),
            or_none(kernel.class.map(|c| c.to_string())),
            or_none(kernel.number.map(|n| n.to_string())),
        )?;
        if self.disagreements.is_empty() {
            return writeln!(f, "           agrees with the resources");
        }
        writeln!(f, "\nERROR: the kernel does not do what the resources say")?;
        for difference in &self.disagreements {
            writeln!(f, "  {difference}")?;
        }
        writeln!(
            f,
            "If this stays after a second, send the agent SIGHUP and report it with `egress dump pods --output json`."
        )
    }
}
