//! Connections that have ended leave their tables, both halves at once, and nothing else does.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use egress_common::{
    Addr, WireU16,
    gateway::{Egress, GatewayId, Settings},
    maps::{EGRESS, EGRESS_ADDRS, NAT_SOURCES, SETTINGS},
    nat::{NatBack, NatBackKey, NatOut, NatOutKey, NatState},
};
use egress_tests::wait;
use egress_userspace::{
    agent::sweep::{Sweeper, Sweeping, Swept, now},
    kernel::{Capacities, Datapath, LoadOptions, NatMaps, NatSweep, Paths},
    nat::{SECOND, back_key},
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};

const GATEWAY: GatewayId = GatewayId(7);
const EGRESS_ADDRESS: Addr = Addr::v4([203, 0, 113, 1]);
const REMOTE: Addr = Addr::v4([192, 0, 2, 80]);
const POD: Addr = Addr::v4([10, 65, 0, 10]);
const MINUTE: u64 = 60 * SECOND;

/// The real maps and program, with no packets.
struct Tables {
    maps: NatMaps,
    sources: HashMap<MapData, Addr, u64>,
    datapath: Datapath,
    paths: Paths,
    now: u64,
    _pins: Pins,
}

impl Tables {
    fn new() -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "this loads eBPF programs and makes a network namespace: run it as root"
        );
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let pins = Pins::new();
        let paths = Paths::new(&pins.0);
        let datapath = Datapath::load(&LoadOptions {
            paths: paths.clone(),
            capacities: Capacities {
                prefixes: 64,
                replies: 64,
                ..Capacities::default()
            },
            attach_mode: None,
            debug_log: false,
        })?;
        let mut settings: Array<_, Settings> = open(&paths, SETTINGS)?.try_into()?;
        let told = Settings {
            timeouts: NatState::ALL.map(|(_, _, seconds)| seconds),
            source_quota: 1000,
            ..Settings::default()
        };
        settings.set(0, told, 0)?;
        let mut addresses: HashMap<_, Addr, u32> = open(&paths, EGRESS_ADDRS)?.try_into()?;
        addresses.insert(EGRESS_ADDRESS, 3, 0)?;
        let mut egress: Array<_, Egress> = open(&paths, EGRESS)?.try_into()?;
        let owned = Egress {
            address: EGRESS_ADDRESS,
            gateway: GATEWAY,
            first_port: 2000,
            last_port: 2999,
            ..Egress::default()
        };
        egress.set(3, owned, 0)?;
        Ok(Self {
            maps: NatMaps::open(&paths)?,
            sources: open(&paths, NAT_SOURCES)?.try_into()?,
            datapath,
            paths,
            // A machine that has just started has no long past.
            now: now()?,
            _pins: pins,
        })
    }

    fn sweeper(&mut self) -> Result<Sweeper> {
        let program = NatSweep::new(self.datapath.nat_sweep()?)?;
        Ok(Sweeper::new(NatMaps::open(&self.paths)?, program))
    }

    /// Entries last seen `out` and `back` seconds ago; of a half without age there is none.
    fn seed(
        &mut self,
        port: u16,
        state: NatState,
        out: Option<u64>,
        back: Option<u64>,
    ) -> Result<(NatOutKey, NatBackKey)> {
        let out_key = NatOutKey {
            pod: POD,
            remote: REMOTE,
            pod_port: WireU16::new(port),
            remote_port: WireU16::new(443),
            gateway: GATEWAY,
            protocol: 6,
            pad: [0; 3],
        };
        let before = |age: Option<u64>| self.now.saturating_sub(age.unwrap_or(0) * SECOND);
        let out_half = NatOut {
            last_seen: before(out),
            egress: EGRESS_ADDRESS,
            origin: 0,
            egress_port: WireU16::new(port),
            state: state as u8,
            pad: 0,
        };
        let back_half = NatBack {
            last_seen: before(back),
            pod: POD,
            origin: 0,
            gateway: GATEWAY,
            pod_port: WireU16::new(port),
            state: state as u8,
            pad: [0; 5],
        };
        let other = back_key(&out_key, &out_half);
        if back.is_some() {
            self.maps.insert_back(&other, &back_half)?;
        }
        if out.is_some() {
            self.maps.insert_out(&out_key, &out_half)?;
        }
        Ok((out_key, other))
    }

    /// Whether each half is there.
    fn has(&self, (out, back): &(NatOutKey, NatBackKey)) -> Result<(bool, bool)> {
        Ok((
            self.maps.out(out)?.is_some(),
            self.maps.back(back)?.is_some(),
        ))
    }

    fn count_source(&mut self, connections: u64) -> Result<()> {
        Ok(self.sources.insert(POD, connections, 0)?)
    }

    /// Connections that the source is said to have; one that has none may be left out.
    fn source(&self) -> u64 {
        self.sources.get(&POD, 0).unwrap_or(0)
    }
}

/// Runs `test` on a thread whose network namespace nobody else is in.
fn with_tables(test: impl FnOnce(&mut Tables) -> Result<()> + Send) -> Result<()> {
    thread::scope(|scope| {
        scope
            .spawn(|| test(&mut Tables::new()?))
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pin directory that is removed whatever happens.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("/sys/fs/bpf/egress-sweep-{}-{number}", process::id()).into())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What was never made need not be removed.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn open(paths: &Paths, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(MapData::from_pin(paths.map(name))?)?)
}

fn walk(sweeper: &mut Sweeper, now: u64) -> Result<Swept> {
    sweeper.walk(now, || {})
}

#[test]
fn what_has_ended_goes_and_nothing_else() -> Result<()> {
    with_tables(|tables| {
        let mut sweeper = tables.sweeper()?;
        let mut expected = Vec::new();
        // More than a frame holds.
        for port in 0..100 {
            let connection = tables.seed(2000 + port, NatState::TcpClose, Some(11), Some(12))?;
            expected.push((connection, false));
        }
        for (port, state, out, back, stays) in [
            (3000, NatState::TcpClose, 1, 1, true),
            (3001, NatState::TcpClose, 1, 20, true),
            (3002, NatState::TcpClose, 20, 1, true),
            (3003, NatState::TcpEstablished, 20, 20, true),
            (3004, NatState::Udp, 40, 40, false),
            (3005, NatState::UdpStream, 40, 40, true),
        ] {
            let connection = tables.seed(port, state, Some(out), Some(back))?;
            expected.push((connection, stays));
        }
        tables.count_source(106)?;
        let swept = walk(&mut sweeper, now()?)?;
        assert_eq!((swept.expired, swept.orphans), (101, 0));
        for (connection, stays) in &expected {
            assert_eq!(tables.has(connection)?, (*stays, *stays), "{connection:?}");
        }
        assert_eq!(tables.source(), 5);
        let found = swept.statistics;
        assert_eq!(found.connections, BTreeMap::from([((GATEWAY, 6), 5)]));
        assert_eq!(found.fullest[0].used, 5);
        assert_eq!(found.fullest[0].available, Some(1000));
        assert_eq!(found.fullest[0].remote.far_end(), "192.0.2.80:443/tcp");
        assert_eq!(found.capacity, u64::from(tables.maps.capacity()));

        // The program looks again: whoever was mistaken about the time removes nothing.
        let swept = walk(&mut sweeper, now()? + 1000 * MINUTE)?;
        assert_eq!(swept.expired, 0);
        assert_eq!(tables.source(), 5);
        Ok(())
    })
}

#[test]
fn halves_that_are_alone_do_not_stay() -> Result<()> {
    with_tables(|tables| {
        let mut sweeper = tables.sweeper()?;
        let whole = tables.seed(3000, NatState::TcpEstablished, Some(1), Some(1))?;
        let only_out = tables.seed(3001, NatState::TcpEstablished, Some(0), None)?;
        let only_back = tables.seed(3002, NatState::TcpEstablished, None, Some(0))?;
        let begin = now()?;
        assert_eq!(walk(&mut sweeper, begin)?.orphans, 0);
        assert_eq!(walk(&mut sweeper, begin + MINUTE / 2)?.orphans, 0);
        assert_eq!(tables.has(&only_out)?, (true, false));
        assert_eq!(tables.has(&only_back)?, (false, true));
        assert_eq!(walk(&mut sweeper, begin + MINUTE)?.orphans, 2);
        // The half that is counted becomes a connection again, which ends as others do.
        assert_eq!(tables.has(&only_out)?, (true, true));
        assert_eq!(tables.has(&only_back)?, (false, false));
        assert_eq!(tables.has(&whole)?, (true, true));
        let swept = walk(&mut sweeper, begin + 2 * MINUTE)?;
        assert_eq!(swept.orphans, 0);
        assert_eq!(swept.statistics.connections[&(GATEWAY, 6)], 2);
        Ok(())
    })
}

/// What two CPUs that make and remove a connection at once may leave: halves that lead to the halves of others.
#[test]
fn halves_that_lead_to_another_connection_do_not_stay() -> Result<()> {
    with_tables(|tables| {
        let mut sweeper = tables.sweeper()?;
        let there = tables.seed(3000, NatState::TcpEstablished, Some(1), Some(1))?;
        let (out_key, back_key) = there;
        // Replies under a port that the pod's connection does not have any more.
        let stale = NatBackKey {
            egress_port: WireU16::new(3999),
            ..back_key
        };
        let back = tables.maps.back(&back_key)?.context("no such half")?;
        tables.maps.insert_back(&stale, &back)?;
        // A pod's half under a port that another connection has by now.
        let late = NatOutKey {
            pod_port: WireU16::new(3998),
            ..out_key
        };
        let out = tables.maps.out(&out_key)?.context("no such half")?;
        tables.maps.insert_out(&late, &out)?;
        let begin = now()?;
        assert_eq!(walk(&mut sweeper, begin)?.orphans, 0);
        assert_eq!(walk(&mut sweeper, begin + MINUTE)?.orphans, 2);
        ensure!(tables.maps.back(&stale)?.is_none(), "its port stays taken");
        ensure!(tables.maps.out(&late)?.is_none(), "it stays for ever");
        assert_eq!(tables.has(&there)?, (true, true));
        let swept = walk(&mut sweeper, begin + 2 * MINUTE)?;
        assert_eq!((swept.orphans, swept.statistics.back_entries), (0, 1));
        Ok(())
    })
}

#[test]
fn empty_tables_of_a_node_without_egress_addresses_are_not_walked() -> Result<()> {
    with_tables(|tables| {
        let mut sweeper = tables.sweeper()?;
        let mut addresses: HashMap<_, Addr, u32> = open(&tables.paths, EGRESS_ADDRS)?.try_into()?;
        let walked = |sweeper: &mut Sweeper, tables: &mut Tables, port| -> Result<bool> {
            let ended = tables.seed(port, NatState::TcpClose, Some(11), Some(11))?;
            walk(sweeper, now()?)?;
            Ok(tables.has(&ended)? == (false, false))
        };
        // While there is an address, an empty table may fill up at any time.
        walk(&mut sweeper, now()?)?;
        addresses.remove(&EGRESS_ADDRESS)?;
        assert!(walked(&mut sweeper, tables, 3000)?, "what is left over");
        // The first walk that finds nothing is the last.
        walk(&mut sweeper, now()?)?;
        assert!(!walked(&mut sweeper, tables, 3001)?, "idle");
        addresses.insert(EGRESS_ADDRESS, 3, 0)?;
        assert!(walked(&mut sweeper, tables, 3002)?, "an address came");
        Ok(())
    })
}

#[test]
fn tables_whose_timeouts_are_not_known_are_left_alone() -> Result<()> {
    with_tables(|tables| {
        let mut sweeper = tables.sweeper()?;
        let mut settings: Array<_, Settings> = open(&tables.paths, SETTINGS)?.try_into()?;
        settings.set(0, Settings::default(), 0)?;
        let old = tables.seed(3000, NatState::TcpClose, Some(500), Some(500))?;
        assert_eq!(walk(&mut sweeper, now()?)?, Swept::default());
        assert_eq!(tables.has(&old)?, (true, true));
        Ok(())
    })
}

#[test]
fn a_thread_does_it_again_and_again() -> Result<()> {
    with_tables(|tables| {
        let published = Arc::default();
        let sweeper = tables.sweeper()?;
        let sweeping = Sweeping::start(sweeper, Arc::clone(&published))?;
        for port in [3000, 3001] {
            let old = tables.seed(port, NatState::TcpClose, Some(11), Some(11))?;
            let young = tables.seed(port + 100, NatState::TcpClose, Some(0), Some(0))?;
            wait::until("what has ended is swept", || {
                ensure!(tables.has(&old)? == (false, false), "it is still there");
                Ok(())
            })?;
            // It ends within the time that this takes, and not before its own.
            let left = tables.has(&young)?;
            assert!(left == (true, true) || now()? >= tables.now + 10 * SECOND);
        }
        wait::until("what is left is published", || {
            ensure!(published.load().capacity > 0, "nothing is");
            Ok(())
        })?;
        drop(sweeping);
        Ok(())
    })
}

#[test]
fn full_tables_are_walked_in_time() -> Result<()> {
    with_tables(|tables| {
        let mut sweeper = tables.sweeper()?;
        let empty = Instant::now();
        walk(&mut sweeper, now()?)?;
        let empty = empty.elapsed();
        let capacity = tables.maps.capacity();
        let half = capacity / 2;
        for number in 0..capacity {
            let [_, high, low, last] = number.to_be_bytes();
            let port = u16::from_be_bytes([low, last]);
            let state = if number < half {
                NatState::TcpEstablished
            } else {
                NatState::TcpClose
            };
            let before = tables.now.saturating_sub(11 * SECOND);
            let (out_key, out, back) = (
                NatOutKey {
                    pod: POD,
                    remote: Addr::v4([192, 0, 2, high]),
                    pod_port: WireU16::new(port),
                    remote_port: WireU16::new(443),
                    gateway: GATEWAY,
                    protocol: 6,
                    pad: [0; 3],
                },
                NatOut {
                    last_seen: before,
                    egress: EGRESS_ADDRESS,
                    origin: 0,
                    egress_port: WireU16::new(port),
                    state: state as u8,
                    pad: 0,
                },
                NatBack {
                    last_seen: before,
                    pod: POD,
                    origin: 0,
                    gateway: GATEWAY,
                    pod_port: WireU16::new(port),
                    state: state as u8,
                    pad: [0; 5],
                },
            );
            tables.maps.insert_back(&back_key(&out_key, &out), &back)?;
            tables.maps.insert_out(&out_key, &out)?;
        }
        tables.count_source(capacity.into())?;
        let began = Instant::now();
        let mut batches = 0;
        let swept = sweeper.walk(now()?, || batches += 1)?;
        let full = began.elapsed();
        assert_eq!(swept.expired, u64::from(capacity - half));
        assert_eq!(swept.statistics.back_entries, u64::from(half));
        assert_eq!(tables.source(), u64::from(half));
        let began = Instant::now();
        let swept = walk(&mut sweeper, now()?)?;
        assert_eq!(swept.expired, 0);
        println!(
            "empty {empty:?}; full, half of it expired, in {batches} batches {full:?}; half full {:?}",
            began.elapsed()
        );
        ensure!(full.as_secs() < 30, "a walk took {full:?}");
        Ok(())
    })
}
