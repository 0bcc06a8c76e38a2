//! Which gateways a pod uses when its rule allows it only some of them.
//!
//! Rendezvous hashing: every pair of pod and gateway has a score, and a pod uses the gateways of its highest
//! scores. So the choice is the same on every node and after every restart, pods spread over the gateways, and
//! a gateway that comes or goes moves only pods that it gains or loses.

use crate::model::ObjectName;

/// A pod and its scores.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    /// The hash of the pod's name.
    pod: u64,
    /// Scores that are known, by the gateway's number: a pod's rules mostly ask for the same again.
    scores: Vec<Option<u64>>,
}

impl Chooser {
    pub(super) fn new(pod: &ObjectName) -> Self {
        Self {
            pod: absorb(FNV_OFFSET, pod),
            scores: Vec::new(),
        }
    }

    /// The `count` of `gateways` with the highest scores, in their order.
    pub(super) fn choose<'a>(
        &mut self,
        gateways: &[usize],
        count: usize,
        name: impl Fn(usize) -> &'a ObjectName,
    ) -> Vec<usize> {
        if count == 0 || count >= gateways.len() {
            return gateways[..count.min(gateways.len())].to_vec();
        }
        let most = gateways.iter().copied().max().unwrap_or(0);
        if self.scores.len() <= most {
            self.scores.resize(most + 1, None);
        }
        let mut scored: Vec<_> = gateways
            .iter()
            .map(|&gateway| {
                let score = match self.scores[gateway] {
                    Some(score) => score,
                    None => self.score(name(gateway)),
                };
                self.scores[gateway] = Some(score);
                (score, gateway)
            })
            .collect();
        scored.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        scored.truncate(count);
        let mut chosen: Vec<_> = scored.into_iter().map(|(_, gateway)| gateway).collect();
        chosen.sort_unstable();
        chosen
    }

    /// FNV-1a over `NAMESPACE/NAME` of the pod, a zero byte, and `NAMESPACE/NAME` of the gateway (64 bits), closed by
    /// the finalizer of `SplitMix64`, because FNV alone hardly mixes the last bytes into the highest bits.
    ///
    /// Agents of different releases must agree, so this never changes.
    fn score(&self, gateway: &ObjectName) -> u64 {
        let mut h = absorb(fnv(self.pod, b"\0"), gateway);
        h ^= h >> 30;
        h = h.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h ^= h >> 27;
        h = h.wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^ (h >> 31)
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn absorb(h: u64, name: &ObjectName) -> u64 {
    let h = fnv(h, name.namespace.as_bytes());
    fnv(fnv(h, b"/"), name.name.as_bytes())
}

fn fnv(h: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(h, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(kind: &str, count: usize) -> Vec<ObjectName> {
        (0..count)
            .map(|n| ObjectName::new("default", format!("{kind}-{n}")))
            .collect()
    }

    fn choice(
        pod: &ObjectName,
        names: &[ObjectName],
        gateways: &[usize],
        count: usize,
    ) -> Vec<usize> {
        Chooser::new(pod).choose(gateways, count, |gateway| &names[gateway])
    }

    #[test]
    fn scores_never_change() {
        let pod = Chooser::new(&ObjectName::new("team-a", "web-0"));
        let score = pod.score(&ObjectName::new("egress", "red-1"));
        // From the definition, by other means: the bytes are "team-a/web-0", 0, "egress/red-1".
        assert_eq!(score, 0x516c_ebf8_7fff_e1ed);
    }

    #[test]
    fn pods_spread_over_gateways() {
        let gateways = names("gateway", 5);
        let mut users = [0; 5];
        for pod in names("pod", 5000) {
            let chosen = choice(&pod, &gateways, &[0, 1, 2, 3, 4], 2);
            assert!(chosen.len() == 2 && chosen[0] < chosen[1]);
            for gateway in chosen {
                users[gateway] += 1;
            }
        }
        // 2000 expected; the standard deviation of a fair choice is below 35.
        assert!(users.iter().all(|n| (1850..=2150).contains(n)), "{users:?}");
    }

    #[test]
    fn a_gateway_that_goes_moves_only_its_own_pods() {
        const GONE: usize = 3;
        let gateways = names("gateway", 8);
        let (mut lost, mut kept) = (0, 0);
        for pod in names("pod", 1000) {
            let before = choice(&pod, &gateways, &[0, 1, 2, 3, 4, 5, 6, 7], 3);
            let after = choice(&pod, &gateways, &[0, 1, 2, 4, 5, 6, 7], 3);
            if before.contains(&GONE) {
                lost += 1;
                assert!(
                    before.iter().all(|g| *g == GONE || after.contains(g)),
                    "{pod}"
                );
            } else {
                kept += 1;
                assert_eq!(before, after, "{pod}");
            }
        }
        assert!(lost > 200 && kept > 200);
    }

    #[test]
    fn a_pod_that_asks_again_is_told_the_same() {
        let gateways = names("gateway", 50);
        let all: Vec<_> = (0..50).collect();
        let pod = ObjectName::new("a", "b");
        let mut chooser = Chooser::new(&pod);
        for count in [7, 3, 20] {
            for list in [&all[..20], &all[10..], &all[..]] {
                assert_eq!(
                    chooser.choose(list, count, |gateway| &gateways[gateway]),
                    choice(&pod, &gateways, list, count)
                );
            }
        }
    }

    #[test]
    fn enough_is_all() {
        let gateways = names("gateway", 3);
        let pod = ObjectName::new("a", "b");
        assert_eq!(choice(&pod, &gateways, &[0, 1, 2], 3), [0, 1, 2]);
        assert_eq!(choice(&pod, &gateways, &[0, 2], 9), [0, 2]);
        assert_eq!(choice(&pod, &gateways, &[], 9), [0_usize; 0]);
    }
}
