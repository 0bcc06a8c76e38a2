//! Very many connections at once, without a thread for each.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{Backlog, Shutdown, listen, setsockopt, shutdown, sockopt::Linger},
};

use crate::{Host, wait};

/// The port of [`Crowd`].
pub const CROWD_PORT: u16 = 8082;

/// Lets this process hold so many files more than usual: the limit of a login shell is lower.
pub fn allow_many_files(count: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count), hard.max(count))
        .context("this needs more open files than the system lets a process have")
}

/// A server that keeps every connection, and answers when it is told to.
#[derive(Debug)]
pub struct Crowd {
    listener: TcpListener,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Listens on [`CROWD_PORT`] of every address of a host.
    pub fn start(host: &Host) -> Result<Self> {
        let listener = host.enter(|| {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, CROWD_PORT))
                .with_context(|| format!("cannot listen on port {CROWD_PORT}"))?;
            // Callers come faster than a busy machine's thread takes them.
            listen(&listener, Backlog::new(4096)?)?;
            Ok(listener)
        })?;
        let streams = Arc::<Mutex<Vec<TcpStream>>>::default();
        let thread = {
            let (listener, streams) = (listener.try_clone()?, Arc::clone(&streams));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    streams
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(stream);
                }
            })
        };
        Ok(Self {
            listener,
            streams,
            thread: Some(thread),
        })
    }

    /// Who is connected, once it is `count`.
    pub fn wait_for(&self, count: usize) -> Result<Vec<SocketAddr>> {
        wait::until("the callers are there", || {
            let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(streams.len() == count, "{} are there", streams.len());
            streams
                .iter()
                .map(|stream| {
                    let peer = stream.peer_addr()?;
                    Ok(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
                })
                .collect()
        })
    }

    /// Forgets every connection so far, and how many it were: none.
    pub fn settle(&self) -> Result<usize> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.clear();
        Ok(streams.len())
    }

    /// Sends what each connection but the first few has said back on it: 8 bytes.
    pub fn answer(&self, skipped: usize) -> Result<()> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for mut stream in streams.iter().skip(skipped) {
            stream.set_read_timeout(Some(wait::PATIENCE))?;
            let mut line = [0; 8];
            stream.read_exact(&mut line)?;
            stream.write_all(&line)?;
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // This is what wakes a thread that waits in accept.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Connections to a [`Crowd`].
#[derive(Debug, Default)]
pub struct Callers {
    streams: Vec<TcpStream>,
}

impl Callers {
    /// Connects so many times, one after the other.
    pub fn connect(host: &Host, to: IpAddr, count: usize) -> Result<Self> {
        let address = SocketAddr::new(to, CROWD_PORT);
        let streams = host.enter(|| {
            (0..count)
                .map(|number| {
                    TcpStream::connect_timeout(&address, wait::PATIENCE)
                        .with_context(|| format!("connection {number} of {count} to {address}"))
                })
                .collect()
        })?;
        Ok(Self { streams })
    }

    /// Ends each connection with a reset.
    pub fn reset(self) -> Result<()> {
        for stream in self.streams {
            // No lingering: what is closed is forgotten.
            setsockopt(
                &stream,
                Linger,
                &nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                },
            )?;
        }
        Ok(())
    }

    /// Says something else on each connection.
    pub fn say(&self) -> Result<()> {
        for (number, mut stream) in self.streams.iter().enumerate() {
            stream.write_all(&number.to_be_bytes())?;
        }
        Ok(())
    }

    /// Checks that it came back on each.
    pub fn hear(&self) -> Result<()> {
        for (number, mut stream) in self.streams.iter().enumerate() {
            stream.set_read_timeout(Some(wait::PATIENCE))?;
            let mut line = [0; 8];
            stream
                .read_exact(&mut line)
                .with_context(|| format!("connection {number} broke"))?;
            ensure!(
                line == number.to_be_bytes(),
                "connection {number} heard another's words"
            );
        }
        Ok(())
    }
}
