//! Follows the node's network: what changed is told or read again, and only what differs wakes anybody.

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use rtnetlink::{
    MulticastGroup,
    sys::{
        AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
    },
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use super::{
    Netlink, NodeView,
    told::{Message, Telling},
};

/// How long changes are gathered before they are read.
const SETTLE: Duration = Duration::from_millis(20);
/// How long changes of neighbours are: they come all the time, and mostly mean nothing.
const SETTLE_NEIGHBOURS: Duration = Duration::from_millis(100);
/// How often everything is read, whatever was told: of a few changes the kernel says nothing.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// Bytes of the largest message that is looked at. Longer ones are cut off, and what they tell is read.
const MESSAGE: usize = 16 << 10;
/// How long to wait after the kernel refused to be read.
const RETRY: Duration = Duration::from_secs(1);

/// The node's network as it was read last, and when there is something new.
#[derive(Clone, Debug)]
pub struct Watch {
    views: watch::Receiver<Arc<NodeView>>,
    wanted: Arc<Notify>,
}

impl Watch {
    /// The last view; [`Self::changed`] waits for another.
    pub fn view(&mut self) -> Arc<NodeView> {
        Arc::clone(&self.views.borrow_and_update())
    }

    /// Waits for a view that differs from the last, or was asked for.
    ///
    /// # Errors
    /// Nobody follows the network any more.
    pub async fn changed(&mut self) -> Result<()> {
        let changed = self.views.changed().await;
        changed.context("the node's network is not watched any more: start the agent again")
    }

    /// Asks for a reading from after now, whether it differs or not.
    ///
    /// For who has just changed the network: what somebody else undoes before it is read makes no difference
    /// to the last view, and would go unnoticed.
    pub fn read_again(&self) {
        self.wanted.notify_one();
    }
}

/// Reads the network namespace of the calling thread, and goes on reading it when it changes.
///
/// The watch wakes only for views that differ. It is told nothing while the kernel cannot be read; the last
/// view stays.
///
/// # Errors
/// The kernel refuses the first reading.
pub async fn watch() -> Result<Watch> {
    let wanted = Arc::new(Notify::new());
    // Listening comes first, or a change between the two would be missed.
    let mut source = Source::open(Arc::clone(&wanted))?;
    let (sender, receiver) = watch::channel(Arc::new(source.netlink.read().await?));
    let watch = Watch {
        views: receiver,
        wanted: Arc::clone(&wanted),
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                result = source.follow(&sender) => {
                    let Err(error) = result;
                    warn!("lost sight of the node's network, trying again: {error:#}");
                }
            }
            source = loop {
                sleep(RETRY).await;
                match Source::open(Arc::clone(&wanted)) {
                    // What was missed meanwhile counts as a change.
                    Ok(source) => break source.with_pending(Change::Wanted),
                    Err(error) => warn!("cannot follow the node's network: {error:#}"),
                }
            };
        }
    });
    Ok(watch)
}

/// What has to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// Nothing, if all that was told is certain.
    Told,
    /// Neighbours and forwarding entries, if there are bridges that have any.
    Neighbours,
    /// Possibly everything.
    Any,
    /// So too, and somebody waits for the reading.
    Wanted,
}

impl Change {
    const fn settle(self) -> Duration {
        match self {
            Self::Neighbours => SETTLE_NEIGHBOURS,
            Self::Told | Self::Any | Self::Wanted => SETTLE,
        }
    }
}

/// Where changes are heard and read.
struct Source {
    socket: TokioSocket,
    netlink: Netlink,
    pending: Option<Change>,
    wanted: Arc<Notify>,
    telling: Telling,
    /// What was told and not applied yet, and of which interfaces' neighbours.
    told: Vec<Message>,
    neighbours: Vec<u32>,
    /// When everything is read at the latest.
    read_at: Instant,
    buffer: Vec<u8>,
}

enum Never {}

impl Source {
    fn open(wanted: Arc<Notify>) -> Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let mask = groups
            .iter()
            .fold(0, |mask, &group| mask | 1 << (group as u32 - 1));
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, mask))
            .context("cannot subscribe to network changes")?;
        Ok(Self {
            socket,
            netlink: Netlink::connect()?,
            pending: None,
            wanted,
            telling: Telling::default(),
            told: Vec::new(),
            neighbours: Vec::new(),
            read_at: Instant::now() + READ_AGAIN,
            buffer: vec![0; MESSAGE],
        })
    }

    fn with_pending(mut self, change: Change) -> Self {
        self.pending = Some(change);
        self
    }

    /// Publishes every view that differs from the last.
    async fn follow(&mut self, sender: &watch::Sender<Arc<NodeView>>) -> Result<Never> {
        loop {
            let change = self.gather().await?;
            let before = Arc::clone(&sender.borrow());
            let (view, read) = self.view(change, &before).await?;
            debug!(
                ?change,
                ?read,
                differs = view != *before,
                "looked at the node's network"
            );
            if view != *before || change == Change::Wanted {
                sender.send_replace(Arc::new(view));
            }
        }
    }

    /// The view after what was gathered, and what of it had to be read.
    async fn view(&mut self, change: Change, before: &NodeView) -> Result<(NodeView, Change)> {
        let told = std::mem::take(&mut self.told);
        let neighbours = std::mem::take(&mut self.neighbours);
        if change < Change::Any && Instant::now() < self.read_at() {
            let mut view = before.clone();
            if self.telling.apply(&mut view, told) {
                // A link is told of before its neighbours are: one that is not there is gone.
                let is_bridged = |index: &u32| {
                    let link = view.links.get(index);
                    link.is_some_and(|link| link.bridge || link.master.is_some())
                };
                if !neighbours.iter().any(is_bridged) {
                    return Ok((view, Change::Told));
                }
                self.netlink.read_neighbours(&mut view).await?;
                view.remember(before);
                return Ok((view, Change::Neighbours));
            }
        }
        self.telling = Telling::default();
        self.read_at = Instant::now() + READ_AGAIN;
        let mut view = self.netlink.read().await?;
        view.remember(before);
        Ok((view, Change::Any))
    }

    /// When everything is read, whatever is told until then.
    fn read_at(&self) -> Instant {
        let due = self.telling.due();
        due.map_or(self.read_at, |due| due.min(self.read_at))
    }

    /// Waits for a change, and then a moment for those that come with it.
    ///
    /// The moment begins with the first change, so that no stream of changes puts it off for ever.
    async fn gather(&mut self) -> Result<Change> {
        let mut change = match self.pending.take() {
            Some(change) => change,
            None => {
                let read_at = self.read_at();
                tokio::select! {
                    next = self.next() => next?,
                    () = sleep_until(read_at) => return Ok(Change::Any),
                }
            }
        };
        let mut deadline = Instant::now() + change.settle();
        loop {
            tokio::select! {
                () = sleep_until(deadline) => return Ok(change),
                next = self.next() => {
                    let next = next?;
                    change = change.max(next);
                    deadline = deadline.min(Instant::now() + next.settle());
                }
            }
        }
    }

    /// The next change. What cannot be decoded is read.
    async fn next(&mut self) -> Result<Change> {
        let mut rest = &mut self.buffer[..];
        let received = tokio::select! {
            received = self.socket.recv(&mut rest) => received,
            () = self.wanted.notified() => return Ok(Change::Wanted),
        };
        let length = MESSAGE - rest.len();
        match received {
            Ok(()) => Ok(self.note(length)),
            // The kernel had more to tell than the socket holds, and told us so.
            Err(error) if is_overrun(&error) => Ok(Change::Any),
            Err(error) => Err(error).context("cannot receive network changes"),
        }
    }

    /// Notes what the message at the beginning of the buffer tells.
    fn note(&mut self, length: usize) -> Change {
        let message = &self.buffer[..length];
        if let Some(index) = neighbours_of(message) {
            self.neighbours.push(index);
            return Change::Neighbours;
        }
        // One that is cut off, or has another behind it, is not as long as it says.
        let said = message.get(..4).and_then(|bytes| bytes.try_into().ok());
        let is_whole = said.map(u32::from_ne_bytes) == u32::try_from(length).ok();
        match Message::deserialize(message) {
            Ok(message) if is_whole => {
                self.told.push(message);
                Change::Told
            }
            Ok(_) | Err(_) => Change::Any,
        }
    }
}

/// The interface whose neighbours or forwarding entries a message tells of (`struct nlmsghdr` and `struct ndmsg`).
fn neighbours_of(message: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let index = u32::from_ne_bytes(message.get(20..24)?.try_into().ok()?);
    matches!(kind, libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH).then_some(index)
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}
