//! Rows: what a packet is, and everything that becomes of it.

mod damaged;

use std::net::IpAddr;

use egress_common::{
    DropReason,
    counter::{Answer, PassKind},
    keys::{ReplyKey, ReplyPath},
};
use egress_userspace::kernel::Program;

use self::damaged::cut;
use super::{
    Action, Counts, Input, Lab, Slot,
    answer::answered,
    build::{self, Frame, L3, hex},
    seed::{OTHER, STEERED, UPLINK, world},
    with_lab,
};
use crate::machine;

pub use self::damaged::mutate;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It is passed on as it is, and not counted.
    Untouched,
    /// It is passed on as it is, and counted for this policy.
    Pass(&'static str, PassKind),
    /// It is dropped as it is, and counted for this policy, or for none.
    Drop(&'static str, DropReason),
    /// It is dropped and counted likewise, and becomes an answer to its sender: of one that is too big, with
    /// this MTU.
    Answered(&'static str, DropReason, u32),
    /// It leaves through this gateway of this rule, its TTL lowered.
    Sent(&'static str, &'static str),
    /// It leaves through one gateway of this rule: the same in every step of the row.
    SentByOne(&'static str),
    /// It goes to the pod, its TTL lowered and its MACs set.
    Delivered,
}

/// One packet of a row.
#[derive(Clone, Debug)]
pub struct Step {
    /// The packet.
    pub input: Input,
    /// What becomes of it.
    pub expect: Expect,
    /// The packets and bytes that are counted, where it is counted.
    pub counted: (u64, u64),
}

/// What a row is about, its packets in order, and the connections that are recorded in the end.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is about.
    pub name: String,
    /// Its packets.
    pub steps: Vec<Step>,
    /// The recorded connections; none asks nothing.
    pub records: Option<Vec<(ReplyKey, ReplyPath)>>,
    /// The connections that came in, and whether each is answered; none asks nothing.
    pub inbound: Option<Vec<(ReplyKey, bool)>>,
    /// The UDP ports that the pods of the row name, by address.
    pub named: Vec<(IpAddr, Vec<u16>)>,
    /// How large a packet the interfaces of pods of the row take, by address.
    pub mtus: Vec<(IpAddr, u32)>,
}

impl Row {
    /// A row of one packet from a pod.
    pub fn new(name: &str, frame: Frame, expect: Expect) -> Self {
        Self::empty(name).then(frame, expect)
    }

    /// A row that begins with a packet that the node hands to the pod.
    pub fn arrival(name: &str, frame: Frame) -> Self {
        Self::empty(name).arrives(frame)
    }

    fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            steps: Vec::new(),
            records: None,
            inbound: None,
            named: Vec::new(),
            mtus: Vec::new(),
        }
    }

    /// With another packet from the pod.
    #[must_use]
    pub fn then(mut self, frame: Frame, expect: Expect) -> Self {
        self.steps.push(step(Input::from_pod(&frame.bytes), expect));
        self
    }

    /// With a packet that comes back from the gateways' side.
    #[must_use]
    pub fn back(mut self, frame: Frame, expect: Expect) -> Self {
        let mut input = Input::from_pod(&frame.bytes);
        input.program = Program::FromGateway;
        input.ifindex = UPLINK;
        self.steps.push(step(input, expect));
        self
    }

    /// With a packet that the node hands to the pod, which nothing ever changes or counts.
    #[must_use]
    pub fn arrives(mut self, frame: Frame) -> Self {
        self.steps
            .push(step(Input::to_pod(&frame.bytes), Expect::Untouched));
        self
    }

    /// Whose pod with this address names UDP ports on which connections may come in.
    #[must_use]
    pub fn naming(mut self, pod: &str, ports: &[u16]) -> Self {
        self.named.push((build::address(pod), ports.to_vec()));
        self
    }

    /// Whose pod with this address has an interface that takes so many bytes of IP.
    #[must_use]
    pub fn narrow(mut self, pod: &str, mtu: u32) -> Self {
        self.mtus.push((build::address(pod), mtu));
        self
    }

    /// After which exactly these connections have come in; each may be answered.
    #[must_use]
    pub fn inbound(mut self, inbound: Vec<(ReplyKey, bool)>) -> Self {
        self.inbound = Some(inbound);
        self
    }

    /// Whose last packet comes in by an interface that is no pod's.
    #[must_use]
    pub fn elsewhere(mut self) -> Self {
        self.last().input.ifindex = OTHER;
        self
    }

    /// Whose last packet is an aggregate.
    #[must_use]
    pub fn gso(mut self, size: u32, segments: u32) -> Self {
        self.last().input.gso = (size, segments);
        self
    }

    /// Whose last packet is counted so, and not as one packet of the frame's bytes above Ethernet.
    #[must_use]
    pub fn counted(mut self, packets: u64, bytes: u64) -> Self {
        self.last().counted = (packets, bytes);
        self
    }

    /// After which exactly these connections are recorded.
    #[must_use]
    pub fn records(mut self, records: Vec<(ReplyKey, ReplyPath)>) -> Self {
        self.records = Some(records);
        self
    }

    fn has_arrivals(&self) -> bool {
        let mut programs = self.steps.iter().map(|step| step.input.program);
        programs.any(|program| program == Program::ToPod)
    }

    fn last(&mut self) -> &mut Step {
        self.steps.last_mut().unwrap()
    }
}

fn step(input: Input, expect: Expect) -> Step {
    let bytes = u64::try_from(input.frame.len() - L3).unwrap();
    Step {
        input,
        expect,
        counted: (1, bytes),
    }
}

/// Runs the rows in the world of [`seed`](super::seed::world), and their packets with random bytes changed.
pub fn check_all(rows: &[Row]) {
    with_lab(|lab| {
        lab.bring_to(&world());
        if machine::report().is_some() && rows.iter().any(Row::has_arrivals) {
            // Another test may have left flows of the same ports.
            lab.forget_own_flows();
        }
        run(lab, rows);
        mutate(lab, rows, 4000);
    });
}

/// Runs the rows, each from empty tables of connections and fragments; then every packet of every row
/// again, cut at each length.
pub fn run(lab: &mut Lab, rows: &[Row]) {
    for row in rows {
        lab.forget();
        for (pod, ports) in &row.named {
            lab.name_udp_ports(*pod, ports);
        }
        for (pod, mtu) in &row.mtus {
            lab.set_pod_mtu(*pod, *mtu);
        }
        let mut gateway = None;
        for (number, step) in row.steps.iter().enumerate() {
            let context = format!("row \"{}\", packet {}", row.name, number + 1);
            check(lab, step, &mut gateway, &context);
        }
        if let Some(records) = &row.records {
            let seen: Vec<_> = lab.replies().into_iter().collect();
            let mut wanted = records.clone();
            wanted.sort_unstable();
            assert_eq!(seen, wanted, "row \"{}\": recorded connections", row.name);
        }
        if let Some(inbound) = &row.inbound {
            let seen: Vec<_> = lab.inbound().into_iter().collect();
            let mut wanted = inbound.clone();
            wanted.sort_unstable();
            assert_eq!(seen, wanted, "row \"{}\": what came in", row.name);
        }
        for step in &row.steps {
            cut(lab, row, step);
        }
    }
}

/// What senders are told of packets that are dropped for this reason.
fn answer_to(reason: DropReason) -> Option<Answer> {
    [
        (DropReason::TooBig, Answer::TooBig),
        (DropReason::TtlExceeded, Answer::TimeExceeded),
    ]
    .into_iter()
    .find_map(|(of, answer)| (of == reason).then_some(answer))
}

/// The counter of a gateway of the one policy of the rows that has rules.
fn sent(rule: &str, gateway: &str) -> Slot {
    Slot::Member(STEERED.to_owned(), rule.to_owned(), gateway.to_owned())
}

fn check(lab: &mut Lab, step: &Step, gateway: &mut Option<String>, context: &str) {
    machine::count_packet();
    let seen = match step.expect {
        Expect::Answered(..) => lab.run(&step.input),
        Expect::Untouched
        | Expect::Pass(..)
        | Expect::Drop(..)
        | Expect::Sent(..)
        | Expect::SentByOne(_)
        | Expect::Delivered => lab.run_summed(&step.input),
    };
    let seen =
        seen.unwrap_or_else(|error| panic!("{context}: {error:#}: {}", step.input.describe()));
    let moved = lab.moved();
    let about = || {
        format!(
            "{context}: {}\nexpected {:?}, saw {:?}, counters {moved:?}, frame {}",
            step.input.describe(),
            step.expect,
            seen.action,
            hex(&seen.frame)
        )
    };
    let unchanged = step.input.frame.clone();
    let counted = |slot: Slot| Counts::from([(slot, step.counted)]);
    let (action, frame, wanted) = match &step.expect {
        Expect::Untouched => (Action::Pass, unchanged, Counts::new()),
        Expect::Pass(policy, kind) => (
            Action::Pass,
            unchanged,
            counted(Slot::Pass((*policy).to_owned(), *kind)),
        ),
        Expect::Drop(policy, reason) => (
            Action::Drop,
            unchanged,
            counted(Slot::Drop((*policy).to_owned(), *reason)),
        ),
        Expect::Answered(policy, reason, mtu) => {
            let answer = answer_to(*reason)
                .unwrap_or_else(|| panic!("nobody answers {reason:?}: {}", about()));
            let mut counts = counted(Slot::Drop((*policy).to_owned(), *reason));
            counts.insert(Slot::Answer(answer), (1, 0));
            (
                Action::Redirect,
                answered(&step.input, answer, *mtu, &lab.settings()),
                counts,
            )
        }
        Expect::Sent(rule, gateway) => (
            Action::Redirect,
            build::forwarded(&unchanged),
            counted(sent(rule, gateway)),
        ),
        Expect::SentByOne(rule) => {
            let used = moved.keys().find_map(|slot| match slot {
                Slot::Member(_, of, gateway) if of == rule => Some(gateway.clone()),
                Slot::Member(..)
                | Slot::Drop(..)
                | Slot::Pass(..)
                | Slot::Answer(..)
                | Slot::Nameless(..) => None,
            });
            let used = used.unwrap_or_else(|| panic!("no gateway of the rule: {}", about()));
            let used = gateway.get_or_insert(used).clone();
            (
                Action::Redirect,
                build::forwarded(&unchanged),
                counted(sent(rule, &used)),
            )
        }
        Expect::Delivered => {
            let frame = Frame {
                bytes: build::forwarded(&unchanged),
            };
            (
                Action::Redirect,
                frame.macs(build::POD_MAC, build::HOST_MAC).bytes,
                Counts::new(),
            )
        }
    };
    assert_eq!(seen.action, action, "action: {}", about());
    assert_eq!(hex(&seen.frame), hex(&frame), "frame: {}", about());
    if action == Action::Redirect {
        assert!(build::checksum_holds(&seen.frame), "checksum: {}", about());
    }
    assert_eq!(moved, wanted, "counters: {}", about());
}
