//! One lab for all tests of a process, where loading the programs takes a minute.

use std::{
    fs::File,
    panic,
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow};
use aya::{
    maps::{Array, HashMap, MapData},
    programs::ProgramError,
};
use egress_common::{Addr, maps, overlay::NodeState, pod::PodPlace};
use egress_userspace::{kernel::Program, resolve::Resolved};
use nix::sched::{CloneFlags, setns};

use super::Lab;
use crate::{
    machine,
    packets::pinned::{clear, open},
};

/// What there is of the lab.
enum Shared {
    /// Nobody asked for it yet.
    Absent,
    /// The lab, and the network namespace that it is in.
    Present(Box<Lab>, File),
    /// Why there is none, and never will be.
    Refused(String),
}

static LAB: Mutex<Shared> = Mutex::new(Shared::Absent);

/// Runs `test` with the lab, on a thread inside its network namespace.
pub(super) fn with_lab(test: impl FnOnce(&mut Lab) + Send) {
    let mut guard = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = &mut *guard;
    let outcome = thread::scope(|scope| {
        scope
            .spawn(move || {
                let lab =
                    enter(shared).unwrap_or_else(|error| panic!("no lab for packets: {error:#}"));
                test(lab);
            })
            .join()
    });
    machine::measured("packets", &machine::packets().to_string()).unwrap();
    if let Err(panicked) = outcome {
        drop(guard);
        panic::resume_unwind(panicked);
    }
}

fn enter(shared: &mut Shared) -> Result<&mut Lab> {
    if matches!(shared, Shared::Absent) {
        *shared = match load() {
            Ok((lab, namespace)) => Shared::Present(Box::new(lab), namespace),
            Err(error) => Shared::Refused(format!("{error:#}")),
        };
    }
    match shared {
        Shared::Absent => Err(anyhow!("it was never loaded")),
        Shared::Refused(why) => Err(anyhow!("{why}")),
        Shared::Present(lab, namespace) => {
            setns(&*namespace, CloneFlags::CLONE_NEWNET)?;
            lab.begin_anew()?;
            Ok(lab)
        }
    }
}

fn load() -> Result<(Lab, File)> {
    let start = Instant::now();
    let mut lab = Lab::new()?;
    if machine::report().is_some() {
        // Whether this kernel takes every one of them is what it is asked.
        lab.datapath.require(Program::ALL.iter().copied())?;
    }
    let seconds = format!("{:.1}", start.elapsed().as_secs_f64());
    machine::measured("load-seconds", &seconds)?;
    machine::measured("attach", lab.datapath.attachments.mode().name())?;
    for (name, program) in lab.datapath.ebpf().programs() {
        let info = match program.info() {
            Err(ProgramError::NotLoaded) => continue,
            info => info?,
        };
        // Kernels tell since 5.16 (kernel commit aba64c7da983).
        if let Some(count) = info.verified_instruction_count() {
            machine::measured("verified", &format!("{name} {count}"))?;
        }
    }
    let namespace = File::open("/proc/thread-self/ns/net")?;
    Ok((lab, namespace))
}

impl Lab {
    /// Leaves nothing of what another test has put into the maps, but the flows that pods started.
    fn begin_anew(&mut self) -> Result<()> {
        self.forget();
        self.forget_answers();
        self.bring_to(&Resolved::default());
        self.set_settings(egress_common::gateway::Settings::default());
        clear(&mut open::<HashMap<MapData, Addr, PodPlace>>(
            &self.paths,
            maps::POD_PLACES,
        )?);
        clear(&mut open::<HashMap<MapData, Addr, u32>>(
            &self.paths,
            maps::NODES,
        )?);
        let mut nodes: Array<MapData, NodeState> = open(&self.paths, maps::NODE_STATE)?;
        for index in 0..16 {
            nodes.set(index, NodeState::default(), 0)?;
        }
        Ok(())
    }
}
