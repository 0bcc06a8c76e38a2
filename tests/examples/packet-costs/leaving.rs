//! What it costs to mark what is the cluster's own, and to look at what is marked when it leaves.

use egress_common::gateway::Settings;
use egress_tests::packets::{
    Input, Lab,
    build::{
        Frame,
        flag::{ACK, SYN},
    },
    places::{V4, V6},
    seed::{OTHER, POD, UPLINK, world},
    talk::talk,
    with_lab,
};
use egress_userspace::{kernel::Program, state::Local};

const BIT: u32 = 0x1000;
const REPEAT: u32 = 100_000;

fn leaving(frame: &Frame, received_by: u32) -> Input {
    Input {
        program: Program::ToUplink,
        ifindex: UPLINK,
        mark: BIT,
        received_by,
        ..Input::from_pod(&frame.bytes)
    }
}

pub(crate) fn measure() {
    with_lab(|lab| {
        lab.bring_to(&world());
        lab.make_local(&[
            ("10.96.0.0/12", Local::Cluster),
            ("fd10::/16", Local::Cluster),
            ("10.100.0.1/32", Local::Node),
            ("fd10::1/128", Local::Node),
        ]);
        for mark in [0, BIT] {
            lab.set_settings(Settings {
                local_mark: mark,
                ..Settings::default()
            });
            for (f, node) in [(&V4, "10.100.0.1"), (&V6, "fd10::1")] {
                let out = talk(f.web, 5000, f.cluster, 443).tcp_out(ACK);
                let mut rows = vec![
                    ("out, the cluster's", Input::from_pod(&out.bytes)),
                    (
                        "out, an explicit rule's",
                        Input::from_pod(&talk(f.web, 5000, f.local, 443).tcp_out(ACK).bytes),
                    ),
                ];
                for (what, destination, received_by) in [
                    ("leaving, the cluster's", f.cluster, POD),
                    (
                        "leaving, the cluster's, nobody knows whose",
                        f.cluster,
                        OTHER,
                    ),
                ] {
                    let source = if received_by == POD { f.web } else { node };
                    let frame = talk(source, 5000, destination, 443).tcp_out(ACK);
                    rows.push((what, leaving(&frame, received_by)));
                }
                let mut unmarked = leaving(&out, POD);
                unmarked.mark = 0;
                rows.push(("leaving, not marked", unmarked));
                let best = |lab: &mut Lab, what: &str, input: &Input| {
                    let time = (0..5)
                        .map(|_| lab.run_often(input, REPEAT).unwrap().1.as_nanos())
                        .min();
                    println!("{} mark {mark:#x}: {what}: {time:?} ns", f.name);
                };
                for (what, input) in &rows {
                    best(lab, what, input);
                }
                let mut hidden = Input::to_pod(&talk(f.web, 80, node, 6000).tcp_in(SYN).bytes);
                hidden.received_by = UPLINK;
                lab.run(&hidden).unwrap();
                let what = "out, the cluster's, of a pod that others came in to";
                best(lab, what, &rows[0].1);
                lab.run(&Input::from_pod(
                    &talk(f.web, 80, node, 6000).tcp_out(SYN | ACK).bytes,
                ))
                .unwrap();
                let answer = talk(f.web, 80, node, 6000).tcp_out(ACK);
                best(
                    lab,
                    "out, an answer by the node",
                    &Input::from_pod(&answer.bytes),
                );
            }
        }
    });
}
