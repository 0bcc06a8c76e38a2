//! What a test expects of the stage: how pods are seen, and what is dropped.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};

use super::{ClusterStage, GATEWAY_NODE};
use crate::{
    client::{unanswered, whoami},
    cluster::Egress,
    topology::Destination,
    wait,
};

/// How a pod is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// With an egress address.
    As(Egress),
    /// With its node's address.
    AsNode,
    /// With its own address.
    AsPod,
    /// Not at all: refused on the way.
    Refused,
}

impl ClusterStage {
    /// Checks how a destination sees a pod, in both families, and lets exactly that be sniffed.
    pub fn expect(&mut self, pod: &str, destination: Destination, seen: Seen) -> Result<()> {
        match seen {
            Seen::As(egress) => self.permit(egress, &[destination]),
            Seen::AsNode => {
                let node = self.pod(pod)?.node;
                self.permit_node(node, &[destination])?;
            }
            Seen::AsPod | Seen::Refused => {}
        }
        for address in destination.addresses() {
            self.expect_at(pod, address, seen)?;
        }
        Ok(())
    }

    /// Checks how one address sees a pod.
    pub fn expect_at(&self, pod: &str, address: IpAddr, seen: Seen) -> Result<()> {
        let pod = self.pod(pod)?;
        let answer = whoami(&pod.host, address)
            .with_context(|| format!("{} asked {address}; {}", pod.name, self.traces()));
        let expected = match seen {
            Seen::As(egress) => egress.like(address),
            Seen::AsNode => self.node(pod.node)?.address_like(address),
            Seen::AsPod => pod.address_like(address),
            Seen::Refused => match answer {
                Ok(answer) => bail!("{address} answered {}, and saw it as {answer}", pod.name),
                Err(_) => return Ok(()),
            },
        };
        let answer = answer?;
        ensure!(
            answer == expected,
            "{address} saw {} as {answer}, not as {expected} ({seen:?})",
            pod.name
        );
        Ok(())
    }

    /// Waits until an address sees a pod so.
    pub fn wait_until_seen(&self, pod: &str, address: IpAddr, seen: Seen) -> Result<()> {
        wait::until("the change is in the kernel", || {
            self.expect_at(pod, address, seen)
        })
    }

    /// Waits until nothing that a pod sends to a destination is answered any more.
    pub fn wait_until_gone(&self, pod: &str, destination: Destination) -> Result<()> {
        for address in destination.addresses() {
            wait::until("the destination is out of reach", || {
                unanswered(self.host(pod)?, address)
            })?;
        }
        Ok(())
    }

    /// Packets that a node's agent counts as dropped for this reason.
    pub fn dropped(&self, node: &str, reason: &str) -> Result<u64> {
        Ok(self.metrics(node)?.dropped_anywhere(reason))
    }

    /// Waits until a node has dropped so many packets for this reason since the test began.
    pub fn wait_for_drops(&self, node: &str, reason: &str, count: u64) -> Result<()> {
        self.agent(node)?
            .wait_for_metrics(&format!("{node} counts {reason}"), |metrics| {
                let found = metrics.dropped_anywhere(reason);
                ensure!(
                    found >= count,
                    "{found} of {count}; all drops: {:?}",
                    metrics.drops_anywhere()
                );
                Ok(())
            })?;
        Ok(())
    }

    /// Waits until as many packets left for these addresses by an egress address as a pod's node and the gateway's
    /// have counted.
    pub fn wait_until_counted(&self, node: &str, egress: Egress, to: &[IpAddr]) -> Result<()> {
        wait::until("what left is what was counted", || {
            let out = [("gateway", egress.name), ("direction", "out")];
            let translated = self
                .metrics(GATEWAY_NODE)?
                .sum("egress_gateway_translated_packets_total", &out);
            let sent = self.metrics(node)?.through(egress.name);
            let capture = self.sniffed()?;
            let left: u64 = to
                .iter()
                .map(|address| capture.plain(egress.like(*address), *address))
                .sum();
            ensure!(
                sent == translated && translated == left,
                "{node} sent {sent}, {translated} were translated, {left} left"
            );
            Ok(())
        })
    }

    /// Checks that no node has dropped anything.
    pub fn expect_no_drops(&self) -> Result<()> {
        for (name, agent) in &self.agents {
            let dropped = agent.metrics()?.drops_anywhere();
            let before = self.dropped.get(name).cloned().unwrap_or_default();
            ensure!(
                dropped == before,
                "{name} dropped {dropped:?}, and {before:?} before all gateways were up"
            );
        }
        Ok(())
    }

    /// Checks that no node has dropped anything but a few packets that were too large for their way, and that
    /// their senders were told: so they learn what fits.
    pub fn expect_only_what_teaches_the_mtu(&self) -> Result<()> {
        const FEW: u64 = 64;
        let (mut large, mut told) = (0, 0);
        for (name, agent) in &self.agents {
            let metrics = agent.metrics()?;
            let mut dropped = metrics.drops_anywhere();
            large += dropped.remove("TooBig").unwrap_or(0);
            told += metrics.sum("egress_answers_sent_total", &[("kind", "too_big")]);
            ensure!(dropped.is_empty(), "{name} dropped {dropped:?}");
        }
        ensure!(
            large <= FEW && (large == 0) == (told == 0) && told <= large,
            "{large} packets were too large, and {told} senders were told"
        );
        Ok(())
    }

    /// What each node has dropped and sent so far, for who looks for a reason.
    #[must_use]
    pub fn traces(&self) -> String {
        let mut text = String::from("drops so far:");
        for (name, agent) in &self.agents {
            let dropped = agent.metrics().map(|metrics| metrics.drops_anywhere());
            text.push_str(&format!(" {name} {dropped:?}"));
        }
        text.push_str("; what left the uplinks:");
        for (sent, count) in self.sniffed().unwrap_or_default().sent {
            text.push_str(&format!("\n{count} × {sent}"));
        }
        text
    }
}
