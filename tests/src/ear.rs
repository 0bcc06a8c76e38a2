//! A listener on an interface: like any packet socket, it is given a clone of every frame, in both directions.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
        sockopt::ReceiveTimeout,
    },
    time::{TimeVal, TimeValLike},
};

use crate::{client::link_address, machine, wait};

/// Larger than any frame here.
const LARGEST: usize = 1 << 16;

/// A listener on an interface.
#[derive(Debug)]
pub struct Ear {
    interface: String,
    socket: OwnedFd,
}

impl Ear {
    /// Listens on an interface of the network namespace that the thread is in.
    pub fn open_here(interface: &str) -> Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        let patience = machine::patience(wait::PATIENCE).as_secs();
        setsockopt(
            &socket,
            ReceiveTimeout,
            &TimeVal::seconds(patience.try_into()?),
        )?;
        // The address has no protocol, which leaves the socket's own: all.
        bind(socket.as_raw_fd(), &link_address(interface)?)?;
        Ok(Self {
            interface: interface.to_owned(),
            socket,
        })
    }

    /// Waits for the next frame that is wanted, and forgets those before it.
    ///
    /// # Errors
    /// None came.
    pub fn hear(&self, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let mut frame = vec![0; LARGEST];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty())
                .with_context(|| format!("no such frame on {}", self.interface))?;
            if wanted(&frame[..length]) {
                frame.truncate(length);
                return Ok(frame);
            }
        }
    }
}
