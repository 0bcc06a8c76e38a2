//! What the programs remember, and making them forget.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use egress_common::{
    WireU16,
    keys::{PodKey, ReplyKey, ReplyPath},
    pod::{Choice, FlowKey, OwnFlow, OwnFlows, PodFacts, PodNote, UdpPorts},
};

use super::{CAPACITIES, Lab};
use crate::packets::{pinned::clear, seed::POD};

impl Lab {
    /// The recorded connections.
    #[must_use]
    pub fn replies(&self) -> BTreeMap<ReplyKey, ReplyPath> {
        self.replies.iter().map(|entry| entry.unwrap()).collect()
    }

    /// How many datagrams are remembered for their fragments: from pods, and of replies.
    #[must_use]
    pub fn fragments(&self) -> (usize, usize) {
        (
            self.fragments.keys().count(),
            self.reply_fragments.keys().count(),
        )
    }

    /// The connections that came in, and whether each is answered.
    #[must_use]
    pub fn inbound(&self) -> BTreeMap<ReplyKey, bool> {
        let entries = self.inbound.iter().map(|entry| entry.unwrap());
        entries
            .map(|(key, entry)| (key, entry.answered != 0))
            .collect()
    }

    /// The flows that stay on their gateway.
    #[must_use]
    pub fn flows(&self) -> BTreeMap<FlowKey, Choice> {
        self.flows.iter().map(|entry| entry.unwrap()).collect()
    }

    /// Forgets all flows of groups, as a full table would some.
    pub fn forget_flows(&mut self) {
        clear(&mut self.flows);
    }

    /// Forgets the connections that came in, as a full table would some.
    pub fn forget_inbound(&mut self) {
        clear(&mut self.inbound);
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
        let nanoseconds = u64::from(seconds) * 1_000_000_000;
        let keys: Vec<ReplyKey> = self.inbound.keys().map(|key| key.unwrap()).collect();
        for key in keys {
            let mut entry = self.inbound.get(&key, 0).unwrap();
            entry.last_seen = entry.last_seen.saturating_sub(nanoseconds);
            self.inbound.insert(key, entry, 0).unwrap();
        }
        let mut aged = BTreeSet::new();
        for key in own {
            let flow = OwnFlow::new(key);
            let mut known = self.own_flows.get(&flow.bucket, 0).unwrap();
            if aged.insert(flow.bucket) {
                known.crowded = known.crowded.saturating_sub(seconds.into());
            }
            for word in known.flows.iter_mut().filter(|word| flow.is(**word)) {
                let [second, _] = halves(*word);
                *word = flow.word(second.wrapping_sub(seconds));
            }
            self.own_flows.set(flow.bucket, known, 0).unwrap();
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
        clear(&mut self.replies);
        clear(&mut self.fragments);
        clear(&mut self.reply_fragments);
        clear(&mut self.flows);
        clear(&mut self.inbound);
        for slot in 0..CAPACITIES.pods {
            self.pod_notes.set(slot, PodNote::default(), 0).unwrap();
            self.pod_facts.set(slot, PodFacts::default(), 0).unwrap();
        }
    }
}

/// The lower and the upper half of a word.
fn halves(word: u64) -> [u32; 2] {
    let b = word.to_le_bytes();
    [
        u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    ]
}
