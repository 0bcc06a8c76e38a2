//! A UDP server that sends back what it receives.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::Host;

/// The port of [`EchoDatagrams`].
pub const DATAGRAM_PORT: u16 = 8083;

/// A UDP server that sends back what it receives.
#[derive(Debug)]
pub struct EchoDatagrams {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoDatagrams {
    /// Serves [`DATAGRAM_PORT`] of one address of a host: what comes there is answered from there.
    pub fn start(host: &Host, address: IpAddr) -> Result<Self> {
        let socket = host.enter(|| {
            UdpSocket::bind((address, DATAGRAM_PORT))
                .with_context(|| format!("cannot serve datagrams on {address}"))
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut buffer = [0; 65536];
                while !stop.load(Ordering::Relaxed) {
                    // Errors are about datagrams sent before: the next may fare better.
                    if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                        drop(socket.send_to(&buffer[..length], from));
                    }
                }
            })
        };
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for EchoDatagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
