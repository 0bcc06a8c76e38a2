//! What the programs remember, and making them forget.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::{
    WireU16,
    keys::{PodKey, ReplyKey, ReplyPath},
    pod::{Choice, FlowKey, OwnFlow, OwnFlows, PodFacts, PodNote, UdpPorts},
    table::{self, State},
};

use super::{CAPACITIES, Lab};
use crate::packets::{build::proto::TCP, seed::POD};

/// The second of a word of `OWN_FLOWS`.
const OWN_SECOND: u64 = 0x00ff_ffff;

impl Lab {
    /// The recorded connections.
    #[must_use]
    pub fn replies(&self) -> BTreeMap<ReplyKey, ReplyPath> {
        let entries = self.replies.entries().into_iter();
        entries
            .map(|(record, _)| {
                let key = ReplyKey::from_words(&record.key);
                (key, ReplyPath::from_words(&record.value))
            })
            .collect()
    }

    /// How many of the recorded connections have not ended.
    #[must_use]
    pub fn live_replies(&self) -> u64 {
        self.replies.alive()
    }

    /// How many buckets the table of recorded connections has.
    #[must_use]
    pub fn reply_buckets(&self) -> u32 {
        table::buckets(CAPACITIES.replies)
    }

    /// How many datagrams are remembered for their fragments: from pods, and of replies.
    #[must_use]
    pub fn fragments(&self) -> (usize, usize) {
        (
            self.fragments.entries().len(),
            self.reply_fragments.entries().len(),
        )
    }

    /// The connections that came in, and whether each is answered.
    #[must_use]
    pub fn inbound(&self) -> BTreeMap<ReplyKey, bool> {
        let entries = self.inbound.entries().into_iter();
        entries
            .map(|(record, state)| {
                let key = ReplyKey::from_words(&record.key);
                (key, state != State::New as u8 && key.protocol == TCP)
            })
            .collect()
    }

    /// The flows that stay on their gateway.
    #[must_use]
    pub fn flows(&self) -> BTreeMap<FlowKey, Choice> {
        let entries = self.flows.entries().into_iter();
        entries
            .map(|(record, _)| {
                let key = FlowKey::from_words(&record.key);
                (key, Choice::from_words(&record.value))
            })
            .collect()
    }

    /// Forgets all flows of groups, as a full table would some.
    pub fn forget_flows(&mut self) {
        self.flows.clear();
    }

    /// Forgets the connections that came in, as a full table would some.
    pub fn forget_inbound(&mut self) {
        self.inbound.clear();
    }

    /// Names UDP ports on which connections may come in to the pod with this address.
    pub fn name_udp_ports(&mut self, address: IpAddr, ports: &[u16]) {
        let mut udp = UdpPorts {
            count: ports.len().try_into().unwrap(),
            ..UdpPorts::default()
        };
        for (place, port) in udp.ports.iter_mut().zip(ports) {
            *place = WireU16::new(*port);
        }
        self.set_facts(address, |facts| facts.udp = udp);
    }

    /// Says how large a packet the interface of the pod with this address takes, in bytes of IP.
    pub fn set_pod_mtu(&mut self, address: IpAddr, mtu: u32) {
        self.set_facts(address, |facts| facts.mtu = mtu);
    }

    fn set_facts(&mut self, address: IpAddr, set: impl FnOnce(&mut PodFacts)) {
        let slot = self.slot(address);
        let mut facts = self.pod_facts.get(&slot, 0).unwrap();
        set(&mut facts);
        self.pod_facts.set(slot, facts, 0).unwrap();
    }

    /// Whether a connection ever came in to the pod with this address.
    #[must_use]
    pub fn has_inbound(&self, address: IpAddr) -> bool {
        let slot = self.slot(address);
        self.pod_notes.get(&slot, 0).unwrap().inbound != 0
    }

    fn slot(&self, address: IpAddr) -> u32 {
        let pod = PodKey {
            ifindex: POD,
            addr: address.into(),
        };
        self.state.pods[&pod]
    }

    /// Lets so many seconds pass for every connection that came in, and for the flows that pods started, as far
    /// as `own` has them, with their buckets.
    pub fn age(&mut self, seconds: u32, own: &[ReplyKey]) {
        self.inbound.age(seconds);
        let mut aged = BTreeSet::new();
        for key in own {
            let flow = OwnFlow::new(key);
            let mut known = self.own_flows.get(&flow.bucket, 0).unwrap();
            let first = aged.insert(flow.bucket);
            if first {
                known.crowded = known.crowded.saturating_sub(seconds.into());
            }
            for word in &mut known.flows {
                if flow.is(*word) || first && flow.is_any(*word) {
                    let second = word.wrapping_sub(seconds.into()) & OWN_SECOND;
                    *word = *word & !OWN_SECOND | second;
                }
            }
            self.own_flows.set(flow.bucket, known, 0).unwrap();
        }
    }

    /// Lets so many seconds pass for everything that is remembered, but for the flows that pods started.
    pub fn idle(&mut self, seconds: u32) {
        for table in [
            &mut self.replies,
            &mut self.fragments,
            &mut self.reply_fragments,
            &mut self.flows,
            &mut self.inbound,
        ] {
            table.age(seconds);
        }
    }

    /// Forgets how many answers anybody had.
    pub(super) fn forget_answers(&mut self) {
        for bucket in 0..self.buckets.len() {
            if self.buckets.get(&bucket, 0).unwrap() != 0 {
                self.buckets.set(bucket, 0, 0).unwrap();
            }
        }
    }

    /// Forgets the flows that pods started: a change of every bucket, since nobody has a list.
    pub fn forget_own_flows(&mut self) {
        for bucket in 0..self.own_flows.len() {
            self.own_flows.set(bucket, OwnFlows::default(), 0).unwrap();
        }
    }

    /// Forgets connections, fragments, how many answers anybody had, and what is known of pods; but not
    /// the flows that pods started, of which nobody has a list.
    pub fn forget(&mut self) {
        // Only an answer makes a bucket fuller, and there are many buckets.
        let answers = self.answers_sent();
        if answers != self.answers_forgotten {
            self.forget_answers();
            self.answers_forgotten = answers;
        }
        self.forget_connections();
    }

    /// The same but for how many answers anybody had.
    pub(crate) fn forget_connections(&mut self) {
        self.replies.clear();
        self.fragments.clear();
        self.reply_fragments.clear();
        self.flows.clear();
        self.inbound.clear();
        for slot in 0..CAPACITIES.pods {
            self.pod_notes.set(slot, PodNote::default(), 0).unwrap();
            self.pod_facts.set(slot, PodFacts::default(), 0).unwrap();
        }
    }
}
