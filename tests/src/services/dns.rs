//! A name server that knows one name, and the system's own resolver as its client.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Host, host::run};

/// The port of [`Dns`].
pub const DNS_PORT: u16 = 53;
/// What every name's `A` record is.
pub const NAMED_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// What every name's `AAAA` record is.
pub const NAMED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 7);

const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;

/// A name server with one answer for each type of address.
#[derive(Debug)]
pub struct Dns {
    callers: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Serves [`DNS_PORT`] of one address of a host: what asks it is answered from there.
    pub fn start(host: &Host, address: IpAddr) -> Result<Self> {
        let socket = host.enter(|| {
            UdpSocket::bind((address, DNS_PORT))
                .with_context(|| format!("cannot serve names on {address}"))
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let callers = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (callers, stop) = (Arc::clone(&callers), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut question = [0; 512];
                    let Ok((length, from)) = socket.recv_from(&mut question) else {
                        continue;
                    };
                    callers
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(from);
                    if let Some(reply) = answer(&question[..length]) {
                        drop(socket.send_to(&reply, from));
                    }
                }
            })
        };
        Ok(Self {
            callers,
            stop,
            thread: Some(thread),
        })
    }

    /// Who asked so far.
    #[must_use]
    pub fn callers(&self) -> Vec<SocketAddr> {
        self.callers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The reply to a query (RFC 1035, 4.1): the question once more, and a record that points at its name.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let mut end = HEADER;
    while *query.get(end)? != 0 {
        end += usize::from(query[end]) + 1;
    }
    end += 1;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let address = match kind {
        A => NAMED_V4.octets().to_vec(),
        AAAA => NAMED_V6.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut reply = query.get(..end + 4)?.to_vec();
    // A response, authoritative; one question, and one answer if there is any.
    reply[2..4].copy_from_slice(&[0x84, 0x00]);
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::from(!address.is_empty()), 0, 0, 0, 0]);
    if !address.is_empty() {
        reply.extend([0xc0, 0x0c]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 60]);
        reply.extend(u16::try_from(address.len()).ok()?.to_be_bytes());
        reply.extend(address);
    }
    Some(reply)
}

/// Asks the C library's resolver on a host for a name's addresses, with `server` in its configuration; the
/// configuration is written below `files`.
pub fn lookup(host: &Host, server: IpAddr, name: &str, files: &Path) -> Result<Vec<IpAddr>> {
    let (servers, order) = (files.join("resolv.conf"), files.join("nsswitch.conf"));
    fs::write(
        &servers,
        format!("nameserver {server}\noptions timeout:3 attempts:2\n"),
    )?;
    fs::write(&order, "hosts: dns\n")?;
    // Mounts of its own, so that the machine's resolver stays what it is.
    let script = "mount --bind \"$0\" /etc/resolv.conf && mount --bind \"$1\" /etc/nsswitch.conf && exec getent ahosts \"$2\"";
    let mut command = host.command("unshare");
    command
        .args(["--mount", "--", "bash", "-c", script])
        .args([servers.as_os_str(), order.as_os_str()])
        .arg(name);
    let mut found: Vec<IpAddr> = run(&mut command)?
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}
