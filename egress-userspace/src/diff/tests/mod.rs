//! Plans carried out on plain maps: what every pod sees at every step, after a crash, and for slow packets.

mod cases;
mod forms;
mod plans;
mod steps;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
};

use egress_common::{
    Addr,
    cells::SLOTS,
    gateway::GatewayId,
    verdict::{Decision, NUMBER_UNMATCHED, Replies},
};
use proptest::prelude::*;

use super::*;
use crate::{
    compile::{
        self, candidates, compile, compile_again,
        slots::Tables,
        tests::{arbitrary_nodes, arbitrary_resolved, net, probes, told},
    },
    rows::{Cells, Row},
    state::{Extent, MemberSpec, Profile, Standing, VerdictSpec, Way},
};

/// Flows whose hashes land in different slots.
const FLOWS: [u32; 3] = [0, 7_777_777, 0xdead_beef];

fn arbitrary_state() -> impl Strategy<Value = DesiredState> {
    arbitrary_resolved().prop_map(|resolved| {
        compile(&resolved, &Limits::default()).unwrap_or_else(|e| unreachable!("{e}"))
    })
}

/// What a packet should see, from the desired state and the names alone.
fn expected(state: &DesiredState, names: &Names, pod: PodKey, to: IpAddr, flow: u32) -> Outcome {
    let Some(verdict) = told(state, pod, to) else {
        return Outcome::UnknownSource;
    };
    let policy = names.policies[&state.profiles[state.pods[&pod]].policy];
    match verdict {
        VerdictSpec::Unmatched => Outcome::Unmatched { policy },
        VerdictSpec::Local => Outcome::Local { policy },
        VerdictSpec::Drop(reason) => Outcome::Drop {
            policy,
            reason: *reason,
        },
        VerdictSpec::Gateways(specs) => {
            let spec = &specs[usize::from(slot_of(specs, flow))];
            let counter = names.members.iter().find(|(label, _)| *label == spec.label);
            Outcome::Out {
                policy,
                member: spec.value(counter.map_or(u32::MAX, |(_, id)| *id)),
            }
        }
    }
}

/// Which member of a group a flow takes; tables are slow to make without optimisation, so each is made once.
fn slot_of(specs: &[MemberSpec], flow: u32) -> u16 {
    thread_local! {
        static TABLES: RefCell<BTreeMap<Vec<MemberSpec>, Vec<u16>>> = const { RefCell::new(BTreeMap::new()) };
    }
    TABLES.with_borrow_mut(|tables| {
        let table = tables
            .entry(specs.to_vec())
            .or_insert_with(|| Tables::default().table(&candidates(specs)));
        table[(flow % SLOTS) as usize]
    })
}

/// The answers to every probe, for one pod.
type Answers = Vec<Outcome>;

fn answers(maps: &RawMaps, pod: PodKey) -> Answers {
    ask(|to, flow| maps.lookup(pod, to, flow))
}

fn ask(lookup: impl Fn(IpAddr, u32) -> Outcome) -> Answers {
    probes()
        .into_iter()
        .flat_map(|to| FLOWS.map(|flow| (to, flow)))
        .map(|(to, flow)| lookup(to, flow))
        .collect()
}

fn all_pods(states: &[&DesiredState]) -> BTreeSet<PodKey> {
    states.iter().flat_map(|s| s.pods.keys().copied()).collect()
}

fn assert_shows(maps: &RawMaps, state: &DesiredState, names: &Names) {
    for pod in all_pods(&[state]) {
        let wanted = ask(|to, flow| expected(state, names, pod, to, flow));
        assert_eq!(answers(maps, pod), wanted, "{pod:?}");
    }
}

/// A kernel with the names that go with it.
#[derive(Clone, Default)]
struct World {
    maps: RawMaps,
    live: KernelState,
    names: Names,
}

impl World {
    fn plan(&self, desired: &DesiredState) -> Plan {
        plan(&self.live, &self.names, desired, &Limits::default())
            .unwrap_or_else(|e| unreachable!("{e}"))
    }

    fn go(&mut self, plan: &Plan) {
        for change in &plan.changes {
            self.maps.apply(change);
        }
        self.live = plan.after.clone();
        self.names = plan.names.clone();
    }

    fn to(desired: &DesiredState) -> Self {
        let mut world = Self::default();
        let plan = world.plan(desired);
        world.go(&plan);
        world
    }
}

/// Without the headroom of rows, which the maps do not tell.
fn measured(mut live: KernelState) -> KernelState {
    let bound = live.prefixes.values().max().map_or(0, |class| class + 1);
    for row in live.rows.values_mut() {
        if let Cells::Dense(_) = &*row.cells {
            row.lines = Extent::lines_needed(bound);
        }
    }
    live
}

fn traced(maps: &RawMaps) -> KernelState {
    match trace(maps) {
        Ok(live) => live,
        Err(never) => match never {},
    }
}
