//! How long gateways that take no new connections may keep those that they have.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    health::{Faults, Subject},
    model::ObjectName,
};

/// The gateways that are drained, since when, and how long each has.
#[derive(Debug)]
pub(super) struct Drains {
    /// How long a gateway has that says nothing of it.
    usual: Duration,
    since: BTreeMap<ObjectName, (Instant, Duration)>,
}

impl Drains {
    /// Nobody is drained yet.
    pub(super) const fn new(usual: Duration) -> Self {
        Self {
            usual,
            since: BTreeMap::new(),
        }
    }

    /// Takes note of who is drained at `now`: their time goes on, that of others is forgotten.
    pub(super) fn note(&mut self, draining: &BTreeMap<ObjectName, Option<Duration>>, now: Instant) {
        self.since.retain(|name, _| draining.contains_key(name));
        for (name, timeout) in draining {
            let timeout = timeout.unwrap_or(self.usual);
            let place = self.since.entry(name.clone()).or_insert((now, timeout));
            place.1 = timeout;
        }
    }

    /// Adds those whose time is over at `now`.
    pub(super) fn add_faults(&self, now: Instant, faults: &mut Faults) {
        for (name, (since, timeout)) in &self.since {
            if now.saturating_duration_since(*since) >= *timeout {
                let reason = format!(
                    "it is drained, and the {} s of its drainTimeout are over",
                    timeout.as_secs_f64()
                );
                faults.insert(Subject::Drained { name: name.clone() }, reason);
            }
        }
    }

    /// When the next one's time is over, after `now`.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.since
            .values()
            .filter_map(|(since, timeout)| since.checked_add(*timeout))
            .filter(|over| *over > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_is_over_once() {
        let [a, b] = ["a", "b"].map(|name| ObjectName::new("default", name));
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut drains = Drains::new(Duration::from_secs(60));
        let both: BTreeMap<_, _> = [(a.clone(), None), (b, Some(Duration::from_secs(10)))].into();
        drains.note(&both, at(0));
        drains.note(&both, at(5));
        assert_eq!(drains.next(at(5)), Some(at(10)));
        assert_eq!(drains.next(at(10)), Some(at(60)));
        for (now, over) in [(9, 0), (10, 1), (60, 2)] {
            let mut faults = Faults::new();
            drains.add_faults(at(now), &mut faults);
            assert_eq!(faults.len(), over, "at {now}");
        }
        drains.note(&[(a, None)].into(), at(70));
        let mut faults = Faults::new();
        drains.add_faults(at(71), &mut faults);
        assert_eq!(faults.len(), 1);
        assert_eq!(drains.next(at(71)), None);
    }
}
