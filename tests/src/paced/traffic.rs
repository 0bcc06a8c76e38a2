//! Everything at once that should go on, whatever happens to agents.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{Paced, PacedServer};
use crate::{Host, wait};

/// Messages a second of each kind of traffic.
const RATE: u32 = 100;

/// To each address a connection, a flow of datagrams, and datagrams of new flows.
#[derive(Debug)]
pub struct Traffic {
    began: Instant,
    to: Vec<IpAddr>,
    streams: Vec<Paced>,
    datagrams: Vec<Paced>,
}

impl Traffic {
    /// Begins it, from a host to the addresses of a [`PacedServer`].
    pub fn start(host: &Host, to: &[IpAddr]) -> Result<Self> {
        let mut traffic = Self {
            began: Instant::now(),
            to: to.to_vec(),
            streams: Vec::new(),
            datagrams: Vec::new(),
        };
        for &address in to {
            traffic.streams.push(Paced::stream(host, address, RATE)?);
            let datagrams = &mut traffic.datagrams;
            datagrams.push(Paced::datagrams(host, address, RATE)?);
            datagrams.push(Paced::flows(host, address, RATE / 2));
        }
        Ok(traffic)
    }

    /// Waits until so much time has passed and as much as that was sent came back.
    pub fn go_on(&self, time: Duration) -> Result<()> {
        let began = Instant::now();
        wait::until_within("time passes", time + wait::PATIENCE, || {
            ensure!(began.elapsed() >= time);
            Ok(())
        })?;
        self.streams.iter().try_for_each(Paced::settle)
    }

    /// Ends it: everything came back, and the server saw all of it from one address of each family.
    pub fn end(self, server: &PacedServer, from: impl Fn(IpAddr) -> IpAddr) -> Result<()> {
        self.end_without(0, server, from)
    }

    /// The same of what has lost at most so many answers of each flow of datagrams.
    pub fn end_without(
        self,
        answers: u64,
        server: &PacedServer,
        from: impl Fn(IpAddr) -> IpAddr,
    ) -> Result<()> {
        let lasted = self.began.elapsed();
        let (mut sent, mut back) = (0, 0);
        self.streams.iter().for_each(|paced| paced.stop(0));
        self.datagrams.iter().for_each(|paced| paced.stop(answers));
        for paced in self.streams {
            let tally = paced.end()?;
            ensure!(tally.sent == tally.back, "of a connection: {tally:?}");
        }
        for paced in self.datagrams {
            let tally = paced.end()?;
            ensure!(
                tally.back + answers >= tally.sent,
                "of datagrams: {tally:?}"
            );
            sent += tally.sent;
            back += tally.back;
        }
        let seen = server.datagrams();
        ensure!(
            seen.values().sum::<u64>() == sent,
            "{sent} datagrams were sent, seen were {seen:?}"
        );
        let expected: BTreeSet<IpAddr> = self.to.into_iter().map(from).collect();
        let seen: BTreeSet<IpAddr> = seen.into_keys().collect();
        let callers = server.callers();
        ensure!(
            seen == expected && callers == expected,
            "datagrams came from {seen:?}, connections from {callers:?}, not all from {expected:?}"
        );
        println!("{sent} datagrams in {lasted:?}: all arrived, {back} came back");
        Ok(())
    }
}
