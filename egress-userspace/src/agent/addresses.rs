//! Egress addresses on their uplinks: put on, announced, put back, taken off.
//!
//! What the agent puts on an interface it writes down first, so that the next one, and `egress detach`, know it
//! from what was there before. That is never written down, and never taken off.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    node::{self, Announcer, NodeView},
    snapshot::OwnedAddress,
    state::{EgressAddress, Holder, Translation},
    state_dir::{AddressBook, Assigned},
};

/// The addresses that the agent has put on interfaces.
#[derive(Debug)]
pub struct Addresses {
    book: AddressBook,
    assigned: BTreeSet<Assigned>,
    /// Those of them that this agent has seen in place: one that is missing then was taken away.
    seated: BTreeSet<IpAddr>,
    /// Those that somebody else has put on the node.
    foreign: BTreeSet<IpAddr>,
    announcer: Announcer,
    /// The state of the uplinks when it was last looked at.
    up: BTreeMap<u32, bool>,
    restored: u64,
}

/// What [`Addresses::bring_to`] did.
#[derive(Debug, Default)]
pub struct Moved {
    /// Addresses that were put on or taken off.
    pub changes: usize,
    /// What could not be done; it is tried again the next time.
    pub errors: Vec<anyhow::Error>,
}

impl Moved {
    /// How many changes it took, if all of it worked.
    ///
    /// # Errors
    /// The first of what could not be done.
    pub fn in_full(self) -> anyhow::Result<usize> {
        match self.errors.into_iter().next() {
            None => Ok(self.changes),
            Some(first) => Err(first),
        }
    }
}

impl Addresses {
    /// Takes over what an earlier agent has written into the book.
    ///
    /// # Errors
    /// The kernel refuses what announcing needs.
    pub fn taking_over(book: AddressBook) -> anyhow::Result<Self> {
        let assigned = book.read().unwrap_or_else(|error| {
            tracing::warn!(
                "{error:#}; egress addresses that are on interfaces now are taken for somebody else's, and \
                 stay there when their gateways go"
            );
            BTreeSet::new()
        });
        Ok(Self {
            book,
            assigned,
            seated: BTreeSet::new(),
            foreign: BTreeSet::new(),
            announcer: Announcer::start()?,
            up: BTreeMap::new(),
            restored: 0,
        })
    }

    /// The addresses that are the agent's: whoever asks whether an address is the node's own leaves them out.
    #[must_use]
    pub fn assigned(&self) -> BTreeSet<IpAddr> {
        self.assigned.iter().map(|a| a.address).collect()
    }

    /// How often something else took an address away, and it was put back.
    #[must_use]
    pub fn restored(&self) -> u64 {
        self.restored
    }

    /// Every egress address of the node, and where it stands.
    #[must_use]
    pub fn lines(&self, translation: &Translation) -> Vec<OwnedAddress> {
        let line = |(address, egress): (&IpAddr, &EgressAddress)| OwnedAddress {
            address: *address,
            namespace: egress.gateway.namespace.clone(),
            gateway: egress.gateway.name.clone(),
            interface: egress.interface.clone(),
            ports: egress.ports,
            holder: holder(egress.holder).to_owned(),
            in_place: egress.holder != Holder::Agent
                || self.seated.contains(address)
                || self.foreign.contains(address),
        };
        translation.addresses.iter().map(line).collect()
    }

    /// Takes off what is no longer wanted where it is, and puts on what is missing.
    ///
    /// Call it with every new view, which is what an address wakes that something else took away. It asks the
    /// kernel nothing while the view shows all as it should be. It blocks for some system calls.
    pub fn bring_to(&mut self, translation: &Translation, view: &NodeView) -> Moved {
        let mut moved = self.take_off(translation, view);
        self.put_on(&wanted(translation), view, &mut moved);
        self.announce_where_link_came_up(view);
        moved
    }

    /// The first half of [`Self::bring_to`], for before the datapath lets go of an address.
    ///
    /// In between whatever listens on all addresses of the node would answer on the egress address.
    pub fn take_off(&mut self, translation: &Translation, view: &NodeView) -> Moved {
        let wanted = wanted(translation);
        let mut moved = Moved::default();
        let unwanted: Vec<Assigned> = self
            .assigned
            .iter()
            .filter(|a| wanted.get(&a.address).map(|(ifindex, _)| *ifindex) != Some(a.ifindex))
            .cloned()
            .collect();
        for gone in unwanted {
            self.announcer.hush(gone.ifindex, gone.address);
            let result =
                withdraw(&gone, view.links.get(&gone.ifindex).map(|l| &l.name)).and_then(|there| {
                    self.assigned.remove(&gone);
                    self.seated.remove(&gone.address);
                    self.book.keep(&self.assigned).map(|()| there)
                });
            match result {
                Ok(there) => {
                    if there {
                        tracing::info!("took {} off {}", gone.address, gone.interface);
                    }
                    moved.changes += usize::from(there);
                }
                Err(error) => moved.errors.push(error),
            }
        }
        moved
    }

    fn put_on(
        &mut self,
        wanted: &BTreeMap<IpAddr, (u32, &str)>,
        view: &NodeView,
        moved: &mut Moved,
    ) {
        self.foreign.retain(|address| wanted.contains_key(address));
        for (&address, &(ifindex, interface)) in wanted {
            let on = |ifindex: Option<u32>| {
                view.addresses.iter().any(|(index, net)| {
                    net.addr() == address && ifindex.is_none_or(|ifindex| *index == ifindex)
                })
            };
            let there = on(Some(ifindex));
            if !view.links.get(&ifindex).is_some_and(|link| link.up) {
                // The kernel takes IPv6 addresses off an interface that goes down.
                if !there {
                    self.seated.remove(&address);
                }
                continue;
            }
            if self.foreign.contains(&address) && on(None) {
                continue;
            }
            let result = if self.is_assigned(ifindex, address) {
                if there {
                    self.seated.insert(address);
                    continue;
                }
                self.put_back(ifindex, interface, address)
            } else {
                self.put_first(ifindex, interface, address)
            };
            match result {
                Ok(added) => moved.changes += usize::from(added),
                Err(error) => moved.errors.push(error),
            }
        }
    }

    fn is_assigned(&self, ifindex: u32, address: IpAddr) -> bool {
        self.assigned
            .iter()
            .any(|a| a.address == address && a.ifindex == ifindex)
    }

    fn put_back(&mut self, ifindex: u32, interface: &str, address: IpAddr) -> anyhow::Result<bool> {
        // The view may be older than our own last change.
        let missing = node::assign(ifindex, address)?;
        if missing {
            if self.seated.insert(address) {
                tracing::info!("put {address} on {interface} again");
            } else {
                self.restored += 1;
                tracing::warn!(
                    "something took the egress address {address} off {interface}: it is back"
                );
            }
            self.announcer.tell(ifindex, address);
        }
        Ok(missing)
    }

    fn put_first(
        &mut self,
        ifindex: u32,
        interface: &str,
        address: IpAddr,
    ) -> anyhow::Result<bool> {
        // Asked now, of the kernel: what is there is not ours, and the view may be too old to show it. The prefix
        // does not matter, since the kernel takes one address with two.
        if node::list_addresses()?
            .iter()
            .any(|listed| listed.address == address)
        {
            self.leave(interface, address);
            return Ok(false);
        }
        let assigned = Assigned {
            address,
            ifindex,
            interface: interface.to_owned(),
        };
        self.assigned.insert(assigned.clone());
        let added = self
            .book
            .keep(&self.assigned)
            .and_then(|()| node::assign(ifindex, address));
        if matches!(added, Ok(true)) {
            self.foreign.remove(&address);
            self.seated.insert(address);
            tracing::info!("put {address} on {interface}");
            self.announcer.tell(ifindex, address);
            return added;
        }
        self.assigned.remove(&assigned);
        self.book.keep(&self.assigned)?;
        if added.is_ok() {
            self.leave(interface, address);
        }
        added
    }

    fn leave(&mut self, interface: &str, address: IpAddr) {
        if self.foreign.insert(address) {
            tracing::info!(
                "{address} is on the node already, and is left as it is: the agent neither puts it on \
                 {interface} nor announces it"
            );
        }
    }

    /// What neighbours learned may be another network's by now.
    fn announce_where_link_came_up(&mut self, view: &NodeView) {
        for assigned in &self.assigned {
            let up = view
                .links
                .get(&assigned.ifindex)
                .is_some_and(|link| link.up);
            if up && self.up.get(&assigned.ifindex) == Some(&false) {
                self.announcer.tell(assigned.ifindex, assigned.address);
            }
        }
        self.up = self
            .assigned
            .iter()
            .filter_map(|a| Some((a.ifindex, view.links.get(&a.ifindex)?.up)))
            .collect();
    }
}

/// Takes everything off that the book says is the agent's, for good. Gives what was there.
///
/// # Errors
/// The book cannot be read, or an address cannot be taken off; what could not be stays in the book.
pub fn release(book: &AddressBook) -> anyhow::Result<Vec<IpAddr>> {
    let mut left = book.read()?;
    let mut released = Vec::new();
    for assigned in left.clone() {
        let name = nix::net::if_::if_indextoname(assigned.ifindex)
            .ok()
            .map(|name| name.to_string_lossy().into_owned());
        if withdraw(&assigned, name.as_ref())? {
            released.push(assigned.address);
        }
        left.remove(&assigned);
        book.keep(&left)?;
    }
    Ok(released)
}

/// Takes an address off the interface that it was put on, which has `name` now. Says whether it was there.
fn withdraw(assigned: &Assigned, name: Option<&String>) -> anyhow::Result<bool> {
    // With its interface the address went as well, and the index may be another's.
    if name == Some(&assigned.interface) || renamed(assigned, name) {
        node::withdraw(assigned.ifindex, assigned.address)
    } else {
        Ok(false)
    }
}

/// Whether the interface lives on under another name: then nobody has its old one.
fn renamed(assigned: &Assigned, name: Option<&String>) -> bool {
    name.is_some() && nix::net::if_::if_nametoindex(assigned.interface.as_str()).is_err()
}

const fn holder(holder: Holder) -> &'static str {
    match holder {
        Holder::Agent => "agent",
        Holder::Routing => "routing",
        Holder::Node => "node",
        Holder::Pod => "pod",
    }
}

/// What is left of a translation where only some uplinks have the program that answers for their addresses.
#[must_use]
pub fn answered(translation: &Translation, is_attached: impl Fn(u32) -> bool) -> Translation {
    let mut answered = translation.clone();
    answered
        .addresses
        .retain(|_, egress| is_attached(egress.ifindex));
    answered
}

/// The addresses that the agent holds, each with its uplink.
fn wanted(translation: &Translation) -> BTreeMap<IpAddr, (u32, &str)> {
    translation
        .addresses
        .iter()
        .filter(|(_, egress)| egress.holder == Holder::Agent)
        .map(|(address, egress)| (*address, (egress.ifindex, egress.interface.as_str())))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use egress_common::gateway::GatewayId;

    use super::*;
    use crate::model::ObjectName;

    #[test]
    fn an_address_is_on_only_where_the_program_of_its_uplink_is() {
        let egress = |ifindex: u32| EgressAddress {
            gateway: ObjectName::new("egress", "red"),
            id: GatewayId(7),
            ifindex,
            interface: format!("eth{ifindex}"),
            mtu: 1500,
            ports: (1024, 65_535),
            holder: Holder::Agent,
            allow_local_services: false,
            is_down: false,
        };
        let address = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
        let translation = Translation {
            addresses: [(address(7), egress(3)), (address(8), egress(4))].into(),
            ..Translation::default()
        };
        for (attached, expected) in [
            (&[3, 4][..], &[address(7), address(8)][..]),
            (&[4], &[address(8)]),
            (&[], &[]),
        ] {
            let answered = answered(&translation, |ifindex| attached.contains(&ifindex));
            let on: Vec<IpAddr> = wanted(&answered).into_keys().collect();
            assert_eq!(on, expected, "{attached:?}");
        }
    }
}
