//! What a program does with packets is right, or it is not measured.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use ipnet::IpNet;

use crate::{
    lab::{Action, Ours, Reference, References, Shim, verdict},
    world::{Flow, Target, World},
};

/// Packets that have to be right.
pub(super) const PACKETS: usize = 2000;
/// The TTL of a packet that was sent on.
const LOWERED: u8 = 63;

/// How a steered packet leaves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leaves {
    /// To somebody who is told by the count alone.
    Steered,
    /// From the egress address of its gateway: the first, and as many after it as there are gateways.
    Translated(fn(u32) -> IpAddr),
}

/// What the plain model says of a flow: nothing if the pod is nobody's.
type Said = Option<Option<(IpNet, Target)>>;

fn said(world: &World, flow: &Flow) -> (Option<usize>, Said) {
    let pod = world.pod(flow.source);
    (pod, pod.map(|pod| world.verdict(pod, flow.destination)))
}

/// Compares verdicts, counts and frames of our `egress_from_pod` with the model.
pub(super) fn ours(
    world: &World,
    ours: &Ours,
    flows: &[Flow],
    shim: &mut Shim,
    leaves: Leaves,
) -> Result<()> {
    for (index, flow) in flows.iter().enumerate() {
        let (pod, said) = said(world, flow);
        let about = || format!("packet {index}, {flow:?}, of which the model says {said:?}");
        let Some(Some((net, Target::Gateway(gateway)))) = said else {
            let wanted = if said.is_none() {
                Action::Drop
            } else {
                Action::Pass
            };
            let (action, _) = shim.one(index)?;
            ensure!(
                action == wanted,
                "{action:?} is not {wanted:?}: {}",
                about()
            );
            continue;
        };
        let policy = world.pods[pod.unwrap_or(0)].policy;
        let rule = net.to_string();
        let before = ours.counted(policy, &rule, gateway)?.packets;
        let (action, frame) = shim.one(index)?;
        let counted = ours.counted(policy, &rule, gateway)?.packets - before;
        ensure!(
            action == Action::Redirect && counted == 1 && Flow::ttl(&frame) == Some(LOWERED),
            "{action:?}, counted {counted} times for its gateway, TTL {:?}: {}",
            Flow::ttl(&frame),
            about()
        );
        let left = Flow::read(&frame);
        let wanted = match leaves {
            Leaves::Steered => *flow,
            Leaves::Translated(egress) => Flow {
                source: egress(gateway),
                source_port: left.map_or(0, |left| left.source_port),
                ..*flow
            },
        };
        ensure!(left == Some(wanted), "it left as {left:?}: {}", about());
    }
    Ok(())
}

/// Compares verdicts and counts of a reference program with the model.
pub(super) fn reference(
    world: &World,
    references: &References,
    which: Reference,
    flows: &[Flow],
    shim: &mut Shim,
) -> Result<()> {
    for (index, flow) in flows.iter().enumerate() {
        let (pod, said) = said(world, flow);
        let steered = |said: Said| match said.flatten() {
            Some((_, Target::Gateway(_))) => Action::Redirect,
            Some((_, Target::Local)) | None => Action::Pass,
        };
        let wanted = match which {
            Reference::Empty => Action::Pass,
            Reference::Redirect | Reference::RedirectNeigh | Reference::Translate => {
                Action::Redirect
            }
            Reference::Floor | Reference::FloorUncounted => {
                pod.map_or(Action::Drop, |_| Action::Redirect)
            }
            Reference::LpmPolicy => pod.map_or(Action::Drop, |_| steered(said)),
            // It has no list of pods: a source that it does not know has no entry.
            Reference::LpmSource => steered(said),
        };
        let counter = match which {
            Reference::Floor => pod.and_then(|pod| u32::try_from(pod).ok()),
            Reference::LpmPolicy | Reference::LpmSource => {
                said.flatten().map(|(_, target)| verdict(target))
            }
            Reference::Empty
            | Reference::Redirect
            | Reference::RedirectNeigh
            | Reference::FloorUncounted
            | Reference::Translate => None,
        };
        let count = || {
            counter
                .map(|counter| references.counted(counter))
                .transpose()
        };
        let before = count()?;
        let (action, _) = shim.one(index)?;
        let after = count()?;
        ensure!(
            action == wanted && after == before.map(|before| before + 1),
            "{}: packet {index}, {flow:?}, of which the model says {said:?}: {action:?} is not {wanted:?}, or it is \
             not counted once",
            which.name()
        );
    }
    Ok(())
}
