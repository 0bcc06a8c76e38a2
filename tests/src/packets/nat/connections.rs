//! The tables of connections: what they say, whether their halves fit, and time that passes for them.

use std::collections::BTreeMap;

use egress_common::{
    Addr,
    nat::{NatBack, NatBackKey, NatOut, NatOutKey, NatState},
};
use egress_userspace::nat::back_key;

use super::Node;

impl Node<'_> {
    /// Makes all connections those of pods of another node.
    pub fn move_to(&mut self, origin: u32) {
        for (key, out) in self.all_outs() {
            self.outs.insert(key, NatOut { origin, ..out }, 0).unwrap();
        }
        for (key, back) in self.all_backs() {
            let back = NatBack { origin, ..back };
            self.backs.insert(key, back, 0).unwrap();
        }
    }

    /// Lets time pass for all connections and fragments: their packets were seen that much earlier.
    pub fn age(&mut self, seconds: u32) {
        let age = u64::from(seconds) * 1_000_000_000;
        for (key, mut out) in self.all_outs() {
            out.last_seen = out.last_seen.saturating_sub(age);
            self.outs.insert(key, out, 0).unwrap();
        }
        for (key, mut back) in self.all_backs() {
            back.last_seen = back.last_seen.saturating_sub(age);
            self.backs.insert(key, back, 0).unwrap();
        }
        self.fragments.age(seconds);
        self.forget_recent();
    }

    /// Has the programs look every connection up.
    pub fn forget_recent(&mut self) {
        let keys: Vec<_> = self.all_outs().into_iter().map(|(key, _)| key).collect();
        self.lab.forget_recent(keys).unwrap();
    }

    /// Every connection's pods' side.
    #[must_use]
    pub fn all_outs(&self) -> Vec<(NatOutKey, NatOut)> {
        self.outs.iter().map(|entry| entry.unwrap()).collect()
    }

    /// Every connection's side of replies.
    #[must_use]
    pub fn all_backs(&self) -> Vec<(NatBackKey, NatBack)> {
        self.backs.iter().map(|entry| entry.unwrap()).collect()
    }

    /// The states of all connections, after a look at whether their halves fit, and their sources' counts.
    #[must_use]
    pub fn states(&self) -> Vec<NatState> {
        let outs = self.all_outs();
        let backs: BTreeMap<NatBackKey, NatBack> = self.all_backs().into_iter().collect();
        assert_eq!(outs.len(), backs.len(), "halves: {outs:#?} {backs:#?}");
        let mut counts: BTreeMap<Addr, i64> = BTreeMap::new();
        let mut states = Vec::new();
        for (key, out) in outs {
            let back = backs[&back_key(&key, &out)];
            assert_eq!(
                (
                    back.pod,
                    back.pod_port,
                    back.gateway,
                    back.origin,
                    back.state
                ),
                (key.pod, key.pod_port, key.gateway, out.origin, out.state),
                "halves that do not fit: {key:?} {out:?} {back:?}"
            );
            *counts.entry(key.pod).or_default() += 1;
            states.push(NatState::from_number(out.state).unwrap());
        }
        for (pod, count) in self.sources.iter().map(|entry| entry.unwrap()) {
            assert_eq!(Some(count), counts.remove(&pod), "connections of {pod:?}");
        }
        assert!(counts.is_empty(), "sources without a count: {counts:?}");
        states.sort_unstable();
        states
    }
}
