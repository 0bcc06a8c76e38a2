//! Follows the node's network: what changed is read again, and only what differs wakes anybody.

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

use super::{Netlink, NodeView};

/// How long changes are gathered before they are read.
const SETTLE: Duration = Duration::from_millis(20);
/// How long changes of neighbours are: they come all the time, and mostly mean nothing.
const SETTLE_NEIGHBOURS: Duration = Duration::from_millis(100);
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
    /// Neighbours and forwarding entries.
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
            Self::Any | Self::Wanted => SETTLE,
        }
    }
}

/// Where changes are heard and read.
struct Source {
    socket: TokioSocket,
    netlink: Netlink,
    pending: Option<Change>,
    wanted: Arc<Notify>,
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
            let mut view = match change {
                Change::Neighbours => {
                    let mut view = NodeView::clone(&before);
                    self.netlink.read_neighbours(&mut view).await?;
                    view
                }
                Change::Any | Change::Wanted => self.netlink.read().await?,
            };
            view.remember(&before);
            debug!(
                ?change,
                differs = view != *before,
                "read the node's network"
            );
            if view != *before || change == Change::Wanted {
                sender.send_replace(Arc::new(view));
            }
        }
    }

    /// Waits for a change, and then a moment for those that come with it.
    ///
    /// The moment begins with the first change, so that no stream of changes puts it off for ever.
    async fn gather(&mut self) -> Result<Change> {
        let mut change = match self.pending.take() {
            Some(change) => change,
            None => self.next().await?,
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

    /// The next change. The kernel's messages are not decoded: one that we could not decode would be missed.
    async fn next(&self) -> Result<Change> {
        let mut header = [0; NLMSG_HEADER];
        let mut rest = &mut header[..];
        let received = tokio::select! {
            received = self.socket.recv(&mut rest) => received,
            () = self.wanted.notified() => return Ok(Change::Wanted),
        };
        match received {
            Ok(()) => Ok(classify(header)),
            // The kernel had more to tell than the socket holds, and told us so.
            Err(error) if is_overrun(&error) => Ok(Change::Any),
            Err(error) => Err(error).context("cannot receive network changes"),
        }
    }
}

/// Bytes of a netlink message's header.
const NLMSG_HEADER: usize = 16;

fn classify(header: [u8; NLMSG_HEADER]) -> Change {
    match u16::from_ne_bytes([header[4], header[5]]) {
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => Change::Neighbours,
        _ => Change::Any,
    }
}

fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}
