//! The programs and their maps, for one frame after the other.

use anyhow::Result;
use aya::{
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::SchedClassifier,
};
use egress_common::{
    Addr, DropReason, Family, Mac,
    counter::{Count, Direction, drop_index, gateway_index},
    gateway::{Egress, GatewayKey, Settings},
    maps,
    nat::{NatBack, NatBackKey, NatOut, NatOutKey},
    overlay::NodeState,
    pod::{PodNote, PodPlace, mac_to_word},
};
use egress_userspace::{kernel::Program, resolve::Resolved};

use super::{
    script::Step,
    tunnel::{self, Tunnel},
    world,
};
use crate::packets::{
    Action, Counts, Lab, Seen, Slot,
    build::{HOST_MAC, L3, POD_MAC},
    nat::{ALPHA, BETA, Gateway, addr},
    pinned::{Table, clear, open},
    seed::UPLINK,
    test_run::{self, CONTEXT},
};

/// The ports that translated connections are given: few, so that they meet.
pub(super) const PORTS: (u16, u16) = (40_000, 40_003);

/// Scripts between two of which nobody has had an answer yet.
const SCRIPTS: u64 = 64;

/// What became of a frame.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) seen: Seen,
    /// Counters of policies and members, and of answers.
    pub(super) moved: Counts,
    /// Counters of this node's gateways, named by their IPv4 address.
    pub(super) gateways: Counts,
}

/// A node with the programs in a network namespace of the calling thread's.
pub(super) struct Bench {
    lab: Lab,
    world: Resolved,
    tunnel: Tunnel,
    outs: HashMap<MapData, NatOutKey, NatOut>,
    backs: HashMap<MapData, NatBackKey, NatBack>,
    sources: HashMap<MapData, Addr, i64>,
    fragments: Table,
    notes: Array<MapData, PodNote>,
    counts: PerCpuArray<MapData, Count>,
    drops: PerCpuArray<MapData, Count>,
    last: Counts,
    scripts: u64,
}

impl Bench {
    pub(super) fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let world = world::world();
        lab.bring_to(&world);
        lab.set_settings(world::settings());
        let paths = lab.paths().clone();
        let next: &SchedClassifier = lab.datapath().program(Program::FromOverlay)?;
        let mut bench = Self {
            tunnel: Tunnel::load(next)?,
            outs: open(&paths, maps::NAT_OUT)?,
            backs: open(&paths, maps::NAT_BACK)?,
            sources: open(&paths, maps::NAT_SOURCES)?,
            fragments: Table::open(&paths, maps::NAT_FRAGMENTS)?,
            notes: open(&paths, maps::POD_NOTES)?,
            counts: open(&paths, maps::GATEWAY_COUNTS)?,
            drops: open(&paths, maps::GATEWAY_DROPS)?,
            last: Counts::new(),
            scripts: 0,
            world,
            lab,
        };
        bench.own_gateways()?;
        bench.know_nodes()?;
        bench.know_places()?;
        // Everything is open by now. A process that is killed leaves nothing behind.
        bench.lab.unpin();
        Ok(bench)
    }

    fn own_gateways(&mut self) -> Result<()> {
        let paths = self.lab.paths().clone();
        let mut gateways: HashMap<_, GatewayKey, u32> = open(&paths, maps::GATEWAYS)?;
        let mut addresses: HashMap<_, Addr, u32> = open(&paths, maps::EGRESS_ADDRS)?;
        let mut egress: Array<_, Egress> = open(&paths, maps::EGRESS)?;
        for gateway in [ALPHA, BETA] {
            for (text, family, index) in [
                (gateway.v4, Family::V4, 2 * gateway.counter),
                (gateway.v6, Family::V6, 2 * gateway.counter + 1),
            ] {
                let element = Egress {
                    address: addr(text),
                    gateway: gateway.id,
                    ifindex: UPLINK,
                    mtu: world::UPLINK_MTU,
                    counter: gateway.counter,
                    first_port: PORTS.0,
                    last_port: PORTS.1,
                    flags: 0,
                };
                egress.set(index, element, 0)?;
                addresses.insert(element.address, index, 0)?;
                gateways.insert(GatewayKey::new(gateway.id, family), index, 0)?;
            }
        }
        Ok(())
    }

    fn know_nodes(&mut self) -> Result<()> {
        let paths = self.lab.paths().clone();
        let mut nodes: HashMap<_, Addr, u32> = open(&paths, maps::NODES)?;
        let mut states: Array<_, NodeState> = open(&paths, maps::NODE_STATE)?;
        for node in world::nodes() {
            states.set(node.index, node.state, 0)?;
            for address in node.addresses {
                nodes.insert(addr(address), node.index, 0)?;
            }
        }
        Ok(())
    }

    fn know_places(&mut self) -> Result<()> {
        let paths = self.lab.paths().clone();
        let mut places: HashMap<_, Addr, PodPlace> = open(&paths, maps::POD_PLACES)?;
        for (key, slot) in self.lab.state().pods.clone() {
            let place = PodPlace {
                ifindex: key.ifindex,
                slot,
            };
            places.insert(key.addr, place, 0)?;
        }
        Ok(())
    }

    /// Forgets all that earlier scripts have left, but the flows that pods started, and mostly how many answers anybody
    /// had: that is a long list.
    pub(super) fn forget(&mut self) {
        self.scripts += 1;
        if self.scripts.is_multiple_of(SCRIPTS) {
            self.lab.forget();
        } else {
            self.lab.forget_connections();
        }
        let keys: Vec<NatOutKey> = self.outs.keys().filter_map(Result::ok).collect();
        self.lab
            .forget_recent(keys)
            .unwrap_or_else(|error| panic!("cannot forget packets: {error}"));
        clear(&mut self.outs);
        clear(&mut self.backs);
        clear(&mut self.sources);
        self.fragments.clear();
        let note = PodNote {
            pod_mac: mac_to_word(Mac(POD_MAC)),
            host_mac: mac_to_word(Mac(HOST_MAC)),
            ..PodNote::default()
        };
        for (key, slot) in self.lab.state().pods.clone() {
            self.notes
                .set(slot, note, 0)
                .unwrap_or_else(|error| panic!("cannot write a note: {error}"));
            self.lab.set_pod_mtu(key.addr.into(), world::ROOM);
        }
        self.lab.moved();
        self.last = self.gateway_counts();
    }

    /// Runs a frame; nothing becomes of one that the test-run refuses.
    pub(super) fn play(&mut self, step: &Step) -> Option<Outcome> {
        let seen = match self.run(step) {
            Ok(seen) => seen,
            Err(_) if is_refused(&step.frame) => return None,
            Err(error) => panic!("{error:#}: {step:?}"),
        };
        let now = self.gateway_counts();
        let gateways = crate::packets::added(&self.last, &now);
        self.last = now;
        Some(Outcome {
            seen,
            moved: self.lab.moved(),
            gateways,
        })
    }

    fn run(&mut self, step: &Step) -> Result<Seen> {
        let mut context = [0; CONTEXT];
        let mut set = |offset, value| test_run::set(&mut context, offset, value);
        set(test_run::MARK, step.mark);
        set(test_run::IFINDEX, step.ifindex);
        set(test_run::GSO_SIZE, step.gso.0);
        set(test_run::GSO_SEGS, step.gso.1);
        let program = match step.tunnel {
            Some((flags, identifier, address)) => {
                set(tunnel::FLAGS, flags);
                set(tunnel::IDENTIFIER, identifier);
                for (word, offset) in address.into_iter().zip((tunnel::ADDRESS..).step_by(4)) {
                    set(offset, word);
                }
                self.tunnel.program()?
            }
            None => self.lab.datapath().program(step.program)?,
        };
        let (seen, _) = test_run::test_run(program, &step.frame, &context, 1)?;
        if let Action::Other(returned) = seen.action {
            tunnel::ensure_called(returned)?;
        }
        Ok(seen)
    }

    /// What the pods are told.
    pub(super) const fn world(&self) -> &Resolved {
        &self.world
    }

    /// What the node is told.
    pub(super) fn settings(&self) -> Settings {
        self.lab.settings()
    }

    fn gateway_counts(&self) -> Counts {
        let mut counts = Counts::new();
        let mut note = |slot: Slot, array: &PerCpuArray<MapData, Count>, index: u32| {
            let values = array
                .get(&index, 0)
                .unwrap_or_else(|error| panic!("cannot read a counter: {error}"));
            let sum = values.iter().fold((0, 0), |(packets, bytes), count| {
                (packets + count.packets, bytes + count.bytes)
            });
            if sum != (0, 0) {
                counts.insert(slot, sum);
            }
        };
        for gateway in [ALPHA, BETA] {
            for (direction, name) in [(Direction::Out, "out"), (Direction::Back, "back")] {
                let index = gateway_index(gateway.counter, direction);
                note(translated(&gateway, name), &self.counts, index);
            }
            for reason in DropReason::ALL {
                let index = drop_index(gateway.counter, *reason);
                let slot = Slot::Drop(gateway.v4.to_owned(), *reason);
                note(slot, &self.drops, index);
            }
        }
        counts
    }
}

/// Whether the kernel may not run this frame: newer ones want whole IP headers.
fn is_refused(frame: &[u8]) -> bool {
    let header = match frame[12..14] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 0,
    };
    frame.len() < L3 + header
}

/// The counter of what a gateway of this node translated.
pub(super) fn translated(gateway: &Gateway, direction: &str) -> Slot {
    Slot::Member(
        "gateway".to_owned(),
        direction.to_owned(),
        gateway.v4.to_owned(),
    )
}
