//! A flow that goes on whatever happens, to measure for how long it did not.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{Host, wait};

const PORT: u16 = 8099;

/// Datagrams of one flow, one every few milliseconds, and whom the far end saw as their source.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    /// When each was sent.
    sent: Arc<Mutex<Vec<Instant>>>,
    /// The source and the number of each that was answered.
    heard: Arc<Mutex<Vec<(IpAddr, usize)>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    /// From `pod` to `to`, an address of `far`; begins once the first answer is there.
    pub fn start(pod: &Host, far: &Host, to: IpAddr) -> Result<Self> {
        let server = far.enter(|| Ok(UdpSocket::bind((to, PORT))?))?;
        let client = pod.enter(|| {
            let any: IpAddr = if to.is_ipv4() {
                [0; 4].into()
            } else {
                [0_u16; 8].into()
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(SocketAddr::new(to, PORT))?;
            Ok(socket)
        })?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let heard: Arc<Mutex<Vec<_>>> = Arc::default();
        let answering = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut text = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = server.recv_from(&mut text) {
                        let number = String::from_utf8_lossy(&text[..length]);
                        let answer = format!("{} {number}", from.ip());
                        // The next one may fare better.
                        drop(server.send_to(answer.as_bytes(), from));
                    }
                }
            })
        };
        let sending = {
            let (stop, sent, client) = (Arc::clone(&stop), Arc::clone(&sent), client.try_clone()?);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = {
                        let mut sent = lock(&sent);
                        sent.push(Instant::now());
                        sent.len() - 1
                    };
                    // An ICMP error of a datagram before.
                    drop(client.send(number.to_string().as_bytes()));
                    // The rate: it is what silences are measured with.
                    thread::sleep(Duration::from_millis(4));
                }
            })
        };
        let listening = {
            let (stop, heard) = (Arc::clone(&stop), Arc::clone(&heard));
            thread::spawn(move || {
                let mut text = [0; 64];
                while !stop.load(Ordering::Relaxed) {
                    // A timeout, or an ICMP error of a datagram before.
                    let Ok(length) = client.recv(&mut text) else {
                        continue;
                    };
                    let answer = String::from_utf8_lossy(&text[..length]);
                    let parts = answer.split_once(' ');
                    if let Some((Ok(from), Ok(number))) =
                        parts.map(|(from, number)| (from.parse(), number.parse()))
                    {
                        lock(&heard).push((from, number));
                    }
                }
            })
        };
        let flow = Self {
            stop,
            sent,
            heard,
            threads: vec![answering, sending, listening],
        };
        wait::until("the flow has begun", || flow.last())?;
        Ok(flow)
    }

    /// Whom the far end saw last.
    pub fn last(&self) -> Result<IpAddr> {
        let heard = lock(&self.heard);
        let last = heard.last().context("nothing was heard yet")?;
        Ok(last.0)
    }

    /// How many datagrams were answered.
    pub fn count(&self) -> usize {
        lock(&self.heard).len()
    }

    /// For how long nothing that was sent was answered before the source that was heard last was heard first, and the
    /// longest pause of the sender meanwhile.
    pub fn last_silence(&self) -> Result<(Duration, Duration)> {
        let heard = lock(&self.heard);
        let (latest, _) = heard.last().context("nothing was heard yet")?;
        let before = heard.iter().rposition(|(from, _)| from != latest);
        let before = before.context("there was but one source")?;
        let sent = lock(&self.sent);
        let times = &sent[heard[before].1..=heard[before + 1].1];
        let pause = times.windows(2).map(|pair| pair[1] - pair[0]).max();
        Ok((
            times[times.len() - 1] - times[0],
            pause.context("both are one")?,
        ))
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}
