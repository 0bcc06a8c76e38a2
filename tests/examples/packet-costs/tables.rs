//! What tables of flows cost, when ten thousand flows are in them.

use egress_tests::packets::{
    Input, Lab,
    build::{Frame, GATEWAY_MAC, HOST_MAC, proto::UDP, udp},
    seed::{UPLINK, world},
    with_lab,
};
use egress_userspace::kernel::Program;

/// The test-run repeats a program with what it made of the frame: the TTL goes down.
const REPEAT: u32 = 200;
const FLOWS: u16 = 10_000;

/// Nanoseconds of the packets of many flows, their median: of each flow's first, of one alone, and again and again.
fn medians(lab: &mut Lab, input: impl Fn(u16) -> Input) -> [u128; 3] {
    [1, 1, REPEAT].map(|repeat| {
        let took = (0..FLOWS).map(|number| lab.run_often(&input(number), repeat).unwrap().1);
        let mut took: Vec<u128> = took.map(|took| took.as_nanos()).collect();
        took.sort_unstable();
        took[took.len() / 2]
    })
}

fn from_gateway(frame: &Frame) -> Input {
    Input {
        program: Program::FromGateway,
        ifindex: UPLINK,
        ..Input::from_pod(&frame.bytes)
    }
}

pub(crate) fn measure() {
    with_lab(|lab| {
        lab.bring_to(&world());
        for program in Program::ALL {
            let loaded = lab.datapath().program(*program).unwrap();
            let verified = loaded.info().unwrap().verified_instruction_count();
            println!("{}: {verified:?} instructions verified", program.name());
        }
        for (what, pod, remote) in [
            ("replies by the kernel, IPv4", "10.1.0.5", "192.88.99.7"),
            ("one gateway, IPv4", "10.1.0.5", "192.0.2.7"),
            ("one gateway, IPv6", "fd00::5", "2001:db8:1::7"),
            ("a group, IPv4", "10.1.0.5", "198.51.100.7"),
            ("a group, IPv6", "fd00::5", "2001:db8:2::7"),
        ] {
            lab.forget();
            let out = |number| {
                let frame = Frame::ip(pod, remote, UDP, &udp(20_000 + number, 53, 20)).ttl(255);
                Input::from_pod(&frame.bytes)
            };
            let back = |number| {
                let frame = Frame::ip(remote, pod, UDP, &udp(53, 20_000 + number, 20)).ttl(255);
                from_gateway(&frame.macs(HOST_MAC, GATEWAY_MAC))
            };
            let out = medians(lab, out);
            let back = medians(lab, back);
            println!("{what}, {FLOWS} flows, ns (first, alone, again): out {out:?}, back {back:?}");
        }
    });
}
