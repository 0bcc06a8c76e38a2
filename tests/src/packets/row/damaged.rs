//! The packets of rows, cut and with random bytes changed.

use egress_common::{DropReason, counter::Answer};
use egress_userspace::kernel::Program;

use super::{Expect, Row, Step, answer_to, check};
use crate::{
    machine,
    packets::{Action, Input, Lab, Seen, Slot, answer::answered, build::L3, random::Random},
};

/// Runs a packet cut at each length from the Ethernet header on.
///
/// A frame that still holds all that its IP header claims (the rest was padding) has the whole one's fate;
/// any other one from a pod is malformed, whatever it was, unless what is left of it already says worse.
pub(super) fn cut(lab: &mut Lab, row: &Row, step: &Step) {
    if step.input.frame.len() == L3 || step.input.gso.0 != 0 {
        return;
    }
    let whole = claimed(&step.input.frame);
    let lengths = shortest(&step.input.frame)..step.input.frame.len();
    for length in lengths.step_by(machine::stride()) {
        let mut cut = step.clone();
        cut.input.frame.truncate(length);
        let from_pod = step.input.program == Program::FromPod;
        if whole.is_none_or(|whole| length < whole) {
            cut.counted = (1, u64::try_from(length - L3).unwrap());
            cut.expect = if !from_pod {
                Expect::Untouched
            } else if whole.is_none() {
                // Ethertypes and what they mean stand in the first 14 bytes.
                step.expect.clone()
            } else if length >= L3 + 40 && has_mapped_source(&cut.input.frame) {
                Expect::Drop("", DropReason::SpoofedSource)
            } else {
                Expect::Drop("", DropReason::Malformed)
            };
        } else if matches!(step.expect, Expect::Drop("", DropReason::Malformed)) {
            cut.counted = (1, u64::try_from(length - L3).unwrap());
        } else if !matches!(step.expect, Expect::Untouched) {
            // Later fragments need the earlier ones: what is only padded needs no second look.
            continue;
        }
        let context = format!("row \"{}\" cut at {length}", row.name);
        check(lab, &cut, &mut None, &context);
    }
}

/// The least of this frame that the test-run takes: an IP header without options, as newer kernels insist.
/// What is shorter has to come over a real interface.
fn shortest(frame: &[u8]) -> usize {
    match frame[12..14] {
        [0x08, 0x00] => L3 + 20,
        [0x86, 0xdd] => L3 + 40,
        _ => L3 + 1,
    }
}

/// The bytes of the frame that its IP header claims; nothing for frames that are not IP.
fn claimed(frame: &[u8]) -> Option<usize> {
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    match word(12) {
        0x0800 if frame.len() >= L3 + 20 => Some(L3 + word(L3 + 2).max(20)),
        0x86dd if frame.len() >= L3 + 40 => Some(L3 + 40 + word(L3 + 4)),
        0x0800 | 0x86dd => Some(frame.len()),
        _ => None,
    }
}

fn has_mapped_source(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
        && frame[L3] >> 4 == 6
        && frame[L3 + 8..L3 + 20] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

/// Runs packets of rows with random bytes changed, and checks what holds for every packet: it is counted
/// at most once, a drop always, and it leaves only as a whole packet whose TTL alone was lowered, or goes back
/// as the answer to itself.
pub fn mutate(lab: &mut Lab, rows: &[Row], times: usize) {
    let mut random = Random::new();
    let steps: Vec<(&Row, &Step)> = rows
        .iter()
        .flat_map(|row| row.steps.iter().map(move |step| (row, step)))
        .collect();
    for _ in 0..machine::fewer(times) {
        let (row, step) = random.one_of(&steps);
        let mut input = step.input.clone();
        let headers = input.frame.len().min(L3 + 80);
        for _ in 0..=random.below(4) {
            let at = 12 + random.below(headers - 12);
            input.frame[at] = random.next_u8();
        }
        if random.once_in(4) {
            let length = L3 + random.below(input.frame.len() - L3 + 1);
            input.frame.truncate(length);
        }
        if input.frame.len() < shortest(&input.frame) {
            continue;
        }
        let seen = lab.run(&input);
        let moved = lab.moved();
        let about = || {
            format!(
                "row \"{}\" mutated: {}\nsaw {seen:?}, counters {moved:?}",
                row.name,
                input.describe()
            )
        };
        let seen = seen
            .as_ref()
            .unwrap_or_else(|error| panic!("{error:#}: {}", about()));
        let slots: Vec<&Slot> = moved.keys().collect();
        let from_pod = input.program == Program::FromPod;
        let mut answer = None;
        let fits = match (seen.action, slots.as_slice()) {
            (Action::Pass, []) => !from_pod || may_pass_uncounted(&input),
            (Action::Pass, [Slot::Pass(..)]) | (Action::Drop, [Slot::Drop(..)]) => true,
            (Action::Redirect, []) => !from_pod,
            (Action::Redirect, [Slot::Member(..)]) => from_pod,
            (Action::Redirect, [Slot::Drop(_, reason), Slot::Answer(sent)]) => {
                answer = Some(*sent);
                input.program != Program::ToPod && answer_to(*reason) == answer
            }
            _ => false,
        };
        assert!(fits, "action and counters do not fit: {}", about());
        if let Some(answer) = answer {
            assert!(is_answer(lab, &input, seen, answer), "answer: {}", about());
        } else if seen.action == Action::Redirect {
            assert!(is_one_hop_on(&input, seen), "shape: {}", about());
        } else {
            assert_eq!(seen.frame, input.frame, "changed: {}", about());
        }
    }
}

/// Whether all that becomes of a packet is the answer to it, with whatever MTU.
fn is_answer(lab: &Lab, input: &Input, seen: &Seen, answer: Answer) -> bool {
    let mtu = match answer {
        Answer::TimeExceeded => 0,
        // The lower half of the second word above IP.
        Answer::TooBig => {
            let at = if input.frame[12..14] == [8, 0] {
                L3 + 26
            } else {
                L3 + 46
            };
            seen.frame.get(at..at + 2).map_or(0, |bytes| {
                u32::from(u16::from_be_bytes([bytes[0], bytes[1]]))
            })
        }
    };
    seen.frame == answered(input, answer, mtu, &lab.settings())
}

/// Whether a frame from a pod is ARP, or comes from no address or a link-local one.
fn may_pass_uncounted(input: &Input) -> bool {
    let frame = &input.frame;
    match frame[12..14] {
        [0x08, 0x06] => true,
        [0x08, 0x00] => frame[L3 + 12..L3 + 20] == [0, 0, 0, 0, 255, 255, 255, 255],
        [0x86, 0xdd] => {
            let link_local = frame[L3 + 8] == 0xfe && frame[L3 + 9] & 0xc0 == 0x80;
            link_local || frame[L3 + 8..L3 + 24] == [0; 16]
        }
        _ => false,
    }
}

/// Whether all that changed on the way are the TTL, its checksum and, towards the pod, the MACs.
fn is_one_hop_on(input: &Input, seen: &Seen) -> bool {
    let (before, after) = (&input.frame, &seen.frame);
    if before.len() != after.len() {
        return false;
    }
    let v4 = before[12..14] == [8, 0];
    let (ttl, sum) = if v4 {
        (L3 + 8, L3 + 10..L3 + 12)
    } else {
        (L3 + 7, 0..0)
    };
    let same = (12..before.len())
        .filter(|at| *at != ttl && !sum.contains(at))
        .all(|at| before[at] == after[at]);
    let macs = input.program == Program::FromGateway || before[..12] == after[..12];
    let whole = claimed(before).is_some_and(|claimed| claimed <= before.len() || input.gso.0 != 0);
    same && macs && whole && before[ttl] > 1 && after[ttl] == before[ttl] - 1
}
