//! Packets that run while something changes.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    Action, Input, Runner,
    build::{Frame, proto, udp},
    seed::addresses,
};

/// Runs between two looks whether it goes on.
const REPEAT: u32 = 2000;

/// What one pod sends.
#[derive(Clone, Copy, Debug)]
pub struct Stream<'a> {
    /// The last byte of the pod's address.
    pub pod: u8,
    /// Where to.
    pub destinations: &'a [&'a str],
    /// What has to become of each packet, if that is always the same.
    pub wanted: Option<Action>,
}

/// Runs packets to all destinations, again and again until that is done, and says how many of each stream.
///
/// # Panics
/// What becomes of one is not what is wanted, or it does not run.
pub fn run_until<const N: usize>(
    runner: &Runner,
    streams: [Stream<'_>; N],
    done: &AtomicBool,
) -> [u64; N] {
    let mut sent = [0; N];
    while !done.load(Ordering::Relaxed) {
        for (stream, sent) in streams.iter().zip(&mut sent) {
            for destination in stream.destinations {
                let input = packet(stream.pod, destination);
                let seen = runner.run_often(&input, REPEAT).unwrap();
                *sent += u64::from(REPEAT);
                let is_right = stream.wanted.is_none_or(|wanted| wanted == seen.action);
                assert!(is_right, "{:?}: {}", seen.action, input.describe());
            }
        }
    }
    sent
}

fn packet(pod: u8, to: &str) -> Input {
    let family = usize::from(to.parse::<IpAddr>().unwrap().is_ipv6());
    let from = addresses(pod)[family].to_string();
    let frame = Frame::ip(&from, to, proto::UDP, &udp(40_000, 53, 4));
    Input::from_pod(&frame.bytes)
}
