//! Whether what left an uplink had any business to.

use std::net::IpAddr;

use egress_common::overlay::Tag;
use ipnet::IpNet;

use super::{Content, Kind, Sent};

/// Why a packet to the outside may leave an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The node.
    pub node: String,
    /// Its source.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpNet,
    /// The port of the service that it is a reply of; `None` is anything.
    pub service: Option<u16>,
}

/// Frames of the overlay that a test forges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forged {
    /// The node whose uplink they leave, with its own outer source.
    pub node: String,
    /// What they carry and nothing else does.
    pub tag: Tag,
}

/// The rules that a capture is judged by.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Prefixes inside the cluster: nodes, pods, the segment.
    pub inside: Vec<IpNet>,
    /// The nodes and the prefixes of their pods.
    pub nodes: Vec<(String, Vec<IpAddr>, Vec<IpNet>)>,
    /// What may leave.
    pub permits: Vec<Permit>,
    /// What may leave whatever is inside.
    pub forged: Vec<Forged>,
    /// Addresses that nodes may say they cannot deliver to, with their own: what comes for one that was just taken off
    /// is the kernel's to answer.
    pub gone: Vec<IpAddr>,
}

impl Rules {
    /// Why a packet should not have left, if it should not.
    pub(super) fn fault(&self, sent: &Sent) -> Option<&'static str> {
        match &sent.content {
            Content::Plain {
                source,
                destination,
                service,
                ..
            } => {
                let permitted = self.permits(&sent.node, *source, *destination, *service);
                (!permitted).then_some("nothing permits this source")
            }
            Content::Undeliverable {
                source,
                destination,
                to,
            } => {
                let own = self.node_at(*source);
                let own = own.is_some_and(|(name, ..)| *name == sent.node);
                let permitted = (own && self.gone.contains(to))
                    || self.permits(&sent.node, *source, *destination, None);
                (!permitted).then_some("nothing permits this source")
            }
            Content::Overlay {
                from,
                to,
                tag,
                kind,
                source,
                destination,
            } => {
                let Some(sender) = self.node_at(*from).filter(|(name, ..)| *name == sent.node)
                else {
                    return Some("the overlay's outer source is not this node's");
                };
                let Some(receiver) = self.node_at(*to) else {
                    return Some("the overlay's receiver is no node");
                };
                let forged = |one: &Forged| one.node == sent.node && one.tag == *tag;
                if self.forged.iter().any(forged) {
                    return None;
                }
                match kind {
                    Kind::Out if !has(&sender.2, *source) => {
                        Some("the packet inside is not of a pod of this node")
                    }
                    Kind::Out if self.is_inside(*destination) => {
                        Some("the packet inside is for the cluster itself")
                    }
                    Kind::Back if !has(&receiver.2, *destination) => {
                        Some("the reply inside is not for a pod of the receiver")
                    }
                    Kind::Out | Kind::Back => None,
                }
            }
            Content::Probe { from, to } => {
                let sender = self.node_at(*from).map(|(name, ..)| name);
                if sender != Some(&sent.node) {
                    Some("the probe's outer source is not this node's")
                } else if self.node_at(*to).is_none() {
                    Some("the probe's receiver is no node")
                } else {
                    None
                }
            }
            Content::Strange(_) => Some("this could not be read"),
        }
    }

    /// Whether a node may send this, not in the overlay.
    fn permits(
        &self,
        node: &str,
        source: IpAddr,
        destination: IpAddr,
        service: Option<u16>,
    ) -> bool {
        let permitted = |permit: &Permit| {
            permit.node == node
                && permit.source == source
                && permit.destination.contains(&destination)
                && permit.service.is_none_or(|port| service == Some(port))
        };
        self.is_inside(destination)
            || is_of_the_link(destination)
            || self.permits.iter().any(permitted)
    }

    fn is_inside(&self, address: IpAddr) -> bool {
        has(&self.inside, address)
    }

    fn node_at(&self, address: IpAddr) -> Option<&(String, Vec<IpAddr>, Vec<IpNet>)> {
        self.nodes
            .iter()
            .find(|(_, addresses, _)| addresses.contains(&address))
    }
}

fn has(prefixes: &[IpNet], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(&address))
}

/// Neighbour discovery, multicast reports and the like.
fn is_of_the_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_multicast() || address.is_broadcast() || address.is_link_local()
        }
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Result, ensure};

    use super::*;

    #[test]
    fn only_frames_that_carry_the_forged_tag_are_let_go() -> Result<()> {
        let (worker, gateway): (IpAddr, IpAddr) = ("172.18.0.11".parse()?, "172.18.0.21".parse()?);
        let guessed = Tag([9; 6]);
        let rules = Rules {
            inside: vec!["172.18.0.0/24".parse()?],
            nodes: vec![
                (
                    "worker".to_owned(),
                    vec![worker],
                    vec!["10.65.11.0/24".parse()?],
                ),
                ("gateway".to_owned(), vec![gateway], Vec::new()),
            ],
            permits: Vec::new(),
            forged: vec![Forged {
                node: "worker".to_owned(),
                tag: guessed,
            }],
            gone: Vec::new(),
        };
        // A reply that is for nobody on the gateway: a leak, unless the test itself forged it.
        for (node, from, tag, fine) in [
            ("worker", worker, guessed, true),
            ("worker", worker, Tag([8; 6]), false),
            ("worker", gateway, guessed, false),
            ("gateway", gateway, guessed, false),
        ] {
            let sent = Sent {
                node: node.to_owned(),
                content: Content::Overlay {
                    from,
                    to: gateway,
                    tag,
                    kind: Kind::Back,
                    source: "10.65.11.10".parse()?,
                    destination: "198.51.100.80".parse()?,
                },
            };
            let fault = rules.fault(&sent);
            ensure!(fault.is_none() == fine, "{sent}: {fault:?}");
        }
        Ok(())
    }
}
