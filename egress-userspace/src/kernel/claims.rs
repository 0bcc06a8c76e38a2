//! Connections of the node's own sockets from egress addresses, in the table of replies.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use aya::maps::{HashMap, MapData, MapError};
use egress_common::{
    Addr, WireU16,
    gateway::GatewayId,
    maps::NAT_BACK,
    nat::{NatBack, NatBackKey, NatState},
    overlay::ORIGIN_KERNEL,
};

use super::paths::Paths;

/// `BPF_NOEXIST` and `BPF_EXIST` of `linux/bpf.h`.
const NOEXIST: u64 = 1;
const EXIST: u64 = 2;

/// What makes the datapath leave the replies of a socket to the kernel, and its port to no pod.
///
/// An entry takes its port in the same way as a pod's connection does, so neither can have what the other has. It
/// ends like a closed connection, by the sweep or by whoever wants the port, also where the agent is gone.
pub struct OwnConnections {
    back: Mutex<HashMap<MapData, NatBackKey, NatBack>>,
}

impl OwnConnections {
    /// Opens the pinned table.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(paths: &Paths) -> anyhow::Result<Self> {
        Ok(Self {
            back: Mutex::new(super::maps::open(paths, NAT_BACK)?.try_into()?),
        })
    }

    /// Takes the port, or identifier, of the key until this time of `CLOCK_MONOTONIC`, and for as long as a closed
    /// connection lasts. Says whether it was free.
    ///
    /// # Errors
    /// The table is full.
    pub fn claim(
        &self,
        key: &NatBackKey,
        gateway: GatewayId,
        until: Duration,
    ) -> anyhow::Result<bool> {
        match self.write(key, gateway, until, NOEXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(error) => Err(error).with_context(|| {
                format!("cannot write {NAT_BACK}: raise --nat-connections if it is full")
            }),
        }
    }

    /// Changes until when it is taken; only while it is.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn extend(
        &self,
        key: &NatBackKey,
        gateway: GatewayId,
        until: Duration,
    ) -> anyhow::Result<()> {
        self.write(key, gateway, until, EXIST)
            .with_context(|| format!("cannot write {NAT_BACK}"))
    }

    fn write(
        &self,
        key: &NatBackKey,
        gateway: GatewayId,
        until: Duration,
        flags: u64,
    ) -> Result<(), MapError> {
        let back = NatBack {
            last_seen: u64::try_from(until.as_nanos()).unwrap_or(u64::MAX),
            // Nobody's, so that no pod's connection is taken for it.
            pod: Addr::v6([0; 16]),
            origin: ORIGIN_KERNEL,
            gateway,
            pod_port: WireU16([0; 2]),
            state: NatState::TcpClose as u8,
            pad: [0; 5],
        };
        let mut table = self.back.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert(key, back, flags)
    }
}
