//! Who is asked whether it is in order, and what that says of gateways.

use std::{collections::BTreeMap, sync::Arc};

use super::apply::Kernel;
use crate::{
    health::{Asking, Board, Faults, NextHopProbe, NextHopProber, Outside, Subject, UNKNOWN_NODE},
    resolve::Resolved,
    settings::ProbeOptions,
    state::Names,
};

/// The threads that ask.
pub(super) struct Health {
    board: Arc<Board>,
    overlay: Asking,
    /// None if next hops are not to be asked.
    next_hops: Option<Asking>,
    outside: Outside,
}

impl Health {
    /// Starts them; they ask nobody yet.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub(super) fn start(kernel: &mut Kernel, options: &ProbeOptions) -> anyhow::Result<Self> {
        let board = Board::new();
        let overlay = Asking::start(
            "probe overlay",
            kernel.prober()?,
            options.timing,
            Arc::clone(&board),
        )?;
        let next_hops = match options.next_hops {
            NextHopProbe::Off => None,
            how @ (NextHopProbe::Arp | NextHopProbe::Icmp) => Some(Asking::start(
                "probe next hops",
                NextHopProber::new(how),
                options.timing,
                Arc::clone(&board),
            )?),
        };
        let outside = Outside::start(
            Arc::new(kernel.own_connections()?),
            Arc::clone(&board),
            options.timing.up_after,
            kernel.down_gateways(),
        )?;
        Ok(Self {
            board,
            overlay,
            next_hops,
            outside,
        })
    }

    /// What they write down.
    pub(super) fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Who is not usable now.
    pub(super) fn faults(&self) -> Faults {
        self.board.faults()
    }

    /// Has exactly these asked: nodes by the numbers that the maps have for them by now. What an earlier run has
    /// found is among the faults when this returns.
    pub(super) fn watch(&mut self, resolved: &Resolved, names: &Names) {
        let (mut gateways, mut next_hops) = (BTreeMap::new(), BTreeMap::new());
        for subject in resolved.subjects.keys() {
            match subject {
                Subject::Gateway { node, .. } => {
                    let index = names.nodes.get(node).copied();
                    gateways.insert(subject.clone(), index.unwrap_or(UNKNOWN_NODE));
                }
                Subject::Outside { .. } | Subject::Drained { .. } => {}
                Subject::NextHop { .. } => {
                    next_hops.insert(subject.clone(), 0);
                }
            }
        }
        self.overlay.watch(gateways);
        if let Some(asking) = &mut self.next_hops {
            asking.watch(next_hops);
        }
        self.outside.watch(&resolved.probed);
    }

    /// Says that an apply is over: whoever is asked from here on has the gateways' addresses and the programs that let answers
    /// in, or will not have them soon.
    pub(super) fn ready(&self) {
        self.outside.ready();
    }
}
