//! What exactly an answer to a pod says: how much it quotes, with which checksum, and how often a pod is told.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails where it is, with the packet at hand"
)]

use std::time::Instant;

use anyhow::ensure;
use egress_common::{DropReason, counter::Answer};
use egress_tests::{
    packets::{
        Action, Input, Lab, Slot,
        answer::answered,
        build::{
            Frame, L3, hex,
            proto::{ICMP, ICMPV6, TCP, UDP},
            tcp, udp,
        },
        narrow::{BOTH, MTU, datagram, node, whole, with_world},
        random::Random,
        seed::STEERED,
    },
    wait,
};

const MAIN: &str = STEERED;
const TOO_BIG: DropReason = DropReason::TooBig;
const TOO_OLD: DropReason = DropReason::TtlExceeded;

#[test]
fn how_much_is_quoted() {
    with_world(|lab| {
        for f in BOTH {
            let shortest = f.header + 8;
            let pieces = [511, 512, 513, 514, 515, 1023, 1024, 1025, 1027, 1399, 1400];
            let most = f.quoted - 3..=f.quoted + 4;
            let old = (shortest..shortest + 9).chain(pieces).chain(most);
            let old = old.map(|size| (datagram(f, size).ttl(1), Answer::TimeExceeded));
            let big = [401, 402, 403, 1500, 3000];
            let big = big.map(|size| (datagram(f, size), Answer::TooBig));
            for (frame, answer) in old.chain(big) {
                lab.forget();
                let input = Input::from_pod(&frame.bytes);
                let seen = lab.run(&input).unwrap();
                assert_eq!(seen.action, Action::Redirect, "{}", input.describe());
                assert_eq!(
                    hex(&seen.frame),
                    hex(&answered(&input, answer, MTU, &node())),
                    "{}",
                    input.describe()
                );
            }
        }
    });
}

/// The complement of the sum of these bytes (RFC 1071), by hand: the library sums whole messages only.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                word[0],
                word.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// The pseudo-header of RFC 9293, 3.1 and RFC 8200, 8.1.
fn pseudo_header(packet: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [addresses, &length, &[0, 0, 0, protocol]].concat()
}

/// A packet that leaves its checksum to a device has only the pseudo-header's sum in it; the answer's
/// checksum has to be right once a device has written the quoted one.
#[test]
fn a_quoted_checksum_that_a_device_is_to_write() {
    with_world(|lab| {
        let mut random = Random::new();
        for f in BOTH {
            for (protocol, at) in [(TCP, 16), (UDP, 6)] {
                for size in [0, 1, 2, 3, 33, 300, 600, 1300, 1391, 2000] {
                    lab.forget();
                    let mut data = match protocol {
                        TCP => tcp(random.next_u16(), 443, &[], size),
                        _ => udp(random.next_u16(), 53, size),
                    };
                    let frame = Frame::ip(f.pod, f.far, protocol, &data);
                    let pseudo = pseudo_header(&frame.bytes[L3..], protocol, data.len());
                    let sum = !checksum(&[&pseudo]);
                    data[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                    let frame = whole(Frame::ip(f.pod, f.far, protocol, &data));
                    // A small one is old, a large one too big.
                    let frame = if size < 340 { frame.ttl(1) } else { frame };
                    let seen = lab.run(&Input::from_pod(&frame.bytes)).unwrap();
                    assert_eq!(seen.action, Action::Redirect, "{}", hex(&frame.bytes));
                    let mut answer = seen.frame[L3..].to_vec();
                    let message = f.header;
                    let l4 = message + 8 + f.header;
                    let written = checksum(&[&answer[l4..]]);
                    answer[l4 + at..l4 + at + 2].copy_from_slice(&written.to_be_bytes());
                    let over = match f.icmp {
                        ICMP => Vec::new(),
                        _ => pseudo_header(&answer, ICMPV6, answer.len() - message),
                    };
                    assert_eq!(
                        checksum(&[&over, &answer[message..]]),
                        0,
                        "protocol {protocol}, {size} bytes: {}",
                        hex(&answer)
                    );
                }
            }
        }
    });
}

#[test]
fn a_source_is_told_fifty_times_and_then_a_hundred_times_a_second() {
    with_world(|lab| {
        let told_now =
            |lab: &mut Lab, frame: &Frame| match lab.run(&Input::from_pod(&frame.bytes)).unwrap() {
                seen if seen.action == Action::Redirect => true,
                seen => {
                    assert_eq!(seen.action, Action::Drop, "{seen:?}");
                    assert_eq!(
                        hex(&seen.frame),
                        hex(&frame.bytes),
                        "a drop leaves it alone"
                    );
                    false
                }
            };
        for f in BOTH {
            lab.moved();
            let frames = [datagram(f, 100).ttl(1), datagram(f, 1500)];
            let began = Instant::now();
            let mut told = [0_u64; 2];
            for turn in 0..200 {
                let kind = turn % 2;
                let answer = told_now(lab, &frames[kind]);
                assert!(
                    answer || turn >= 50,
                    "answer {turn} of the first fifty is missing"
                );
                told[kind] += u64::from(answer);
            }
            let more = began.elapsed().as_millis() / 10;
            let all = u128::from(told[0] + told[1]);
            assert!(
                (50..=51 + more).contains(&all),
                "{all} answers, and only {more} after the first fifty were due"
            );
            let moved = lab.moved();
            for (kind, (answer, reason)) in
                [(Answer::TimeExceeded, TOO_OLD), (Answer::TooBig, TOO_BIG)]
                    .into_iter()
                    .enumerate()
            {
                assert_eq!(moved[&Slot::Answer(answer)].0, told[kind], "{moved:?}");
                assert_eq!(
                    moved[&Slot::Drop(MAIN.to_owned(), reason)].0,
                    100,
                    "{moved:?}"
                );
            }
            assert_eq!(moved.len(), 4, "{moved:?}");

            let other = if f.icmp == ICMP {
                "10.1.0.6"
            } else {
                "fd00::6"
            };
            let neighbour = Frame::ip(other, f.far, UDP, &udp(1, 2, 3)).ttl(1);
            assert!(
                told_now(lab, &neighbour),
                "another source has its own share"
            );

            wait::until("the source may be told again", || {
                ensure!(told_now(lab, &frames[0]), "not yet");
                Ok(())
            })
            .unwrap();
        }
    });
}
