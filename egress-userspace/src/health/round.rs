//! The thread that asks everybody of one kind, again and again, and writes down what it finds.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};

use super::{Board, Judge, Outcome, Seen, Subject, Timing};

/// A way of asking.
pub trait Prober: Send + 'static {
    /// Makes ready to ask exactly these; the number of a gateway is its node's index of `NODE_STATE`.
    ///
    /// # Errors
    /// The kernel refuses.
    fn watch(&mut self, subjects: &BTreeMap<Subject, u32>) -> anyhow::Result<()>;

    /// Sends a question.
    ///
    /// # Errors
    /// It was not sent: that nobody answers it says nothing.
    fn ask(&mut self, subject: &Subject) -> anyhow::Result<()>;

    /// What was seen of a subject so far. Times are those of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// That cannot be known.
    fn seen(&mut self, subject: &Subject) -> anyhow::Result<Seen>;

    /// Why a subject is not usable that was silent for so long.
    fn fault(&self, subject: &Subject, silence: Duration) -> String;
}

/// How long whoever gives an order waits until it is carried out.
const PATIENCE: Duration = Duration::from_secs(1);

/// By how much somebody may be silent for longer than the time of silence, for others to be as well.
const TOGETHER: Duration = Duration::from_millis(5);

/// Who is to be asked, and whom to tell when what is known of them by now is written down.
type Order = (BTreeMap<Subject, u32>, mpsc::SyncSender<()>);

/// The thread; it ends with this.
#[derive(Debug)]
pub struct Asking {
    orders: Option<mpsc::Sender<Order>>,
    asked: BTreeMap<Subject, u32>,
    thread: Option<JoinHandle<()>>,
}

impl Asking {
    /// Starts a thread of this name that asks nobody yet.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub fn start(
        name: &str,
        prober: impl Prober,
        timing: Timing,
        board: Arc<Board>,
    ) -> anyhow::Result<Self> {
        let (orders, received) = mpsc::channel();
        let round = Round {
            prober,
            timing,
            board,
            subjects: BTreeMap::new(),
            numbers: BTreeMap::new(),
            failed: false,
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || round.run(&received))
            .context("cannot start a thread that probes gateways")?;
        Ok(Self {
            orders: Some(orders),
            asked: BTreeMap::new(),
            thread: Some(thread),
        })
    }

    /// Has exactly these asked from now on. When it returns, the board has what an earlier run knew of them.
    pub fn watch(&mut self, subjects: BTreeMap<Subject, u32>) {
        if subjects == self.asked {
            return;
        }
        self.asked.clone_from(&subjects);
        let (done, is_done) = mpsc::sync_channel(1);
        let orders = self.orders.as_ref();
        let told = orders.is_some_and(|orders| orders.send((subjects, done)).is_ok());
        if !told {
            tracing::error!("gateways are not probed any more: start the agent again");
            return;
        }
        if is_done.recv_timeout(PATIENCE).is_err() {
            tracing::warn!("it takes long to begin probing: gateways count as usable until then");
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that probes gateways has panicked");
        }
    }
}

struct Round<P> {
    prober: P,
    timing: Timing,
    board: Arc<Board>,
    subjects: BTreeMap<Subject, Judge>,
    /// Where each is asked.
    numbers: BTreeMap<Subject, u32>,
    /// Whether the last questions could not be sent, which is said once.
    failed: bool,
}

impl<P: Prober> Round<P> {
    fn run(mut self, orders: &mpsc::Receiver<Order>) {
        let mut next = now();
        loop {
            let wake = self.look(next);
            let order = if self.subjects.is_empty() {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                orders.recv_timeout(wake.saturating_sub(now()))
            };
            match order {
                Ok((subjects, done)) => {
                    self.change(&subjects);
                    self.look(next);
                    // Whoever gave the order may have lost patience.
                    let _gone = done.try_send(());
                    next = now();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if now() >= next {
                self.ask();
                // A thread that was late does not make up for what it missed.
                next = now() + self.timing.interval;
            }
        }
    }

    fn change(&mut self, subjects: &BTreeMap<Subject, u32>) {
        if let Err(error) = self.prober.watch(subjects) {
            tracing::error!("some gateways are not probed, and count as usable: {error:#}");
        }
        let gone: Vec<Subject> = self
            .subjects
            .keys()
            .filter(|subject| !subjects.contains_key(subject))
            .cloned()
            .collect();
        for subject in gone {
            self.subjects.remove(&subject);
            self.board.forget(&subject);
        }
        for (subject, number) in subjects {
            // Of whom is asked elsewhere from now on nothing is heard yet; who was down stays so until it is.
            let elsewhere = self.numbers.get(subject) != Some(number);
            let known = self.subjects.get(subject);
            if known.is_none_or(|judge| judge.is_up() && elsewhere) {
                let seen = self.prober.seen(subject).unwrap_or_default();
                let judge = Judge::new(now(), &seen, &self.timing);
                self.subjects.insert(subject.clone(), judge);
            }
        }
        self.numbers.clone_from(subjects);
    }

    fn ask(&mut self) {
        let mut error = None;
        for subject in self.subjects.keys() {
            if let Err(refusal) = self.prober.ask(subject) {
                error = Some((subject, refusal));
            }
        }
        if let Some((subject, error)) = &error
            && !self.failed
        {
            tracing::warn!("cannot ask {subject} whether it is in order: {error:#}");
        }
        self.failed = error.is_some();
    }

    /// Judges everybody, and says when to look again: when the next questions are due at `next`, or soon after the last
    /// ones were sent, or when somebody will have been silent for too long.
    fn look(&mut self, next: Duration) -> Duration {
        let now = now();
        let soon = (next + self.timing.interval / 4).saturating_sub(self.timing.interval);
        let wake = if soon > now { soon } else { next };
        let mut seen = BTreeMap::new();
        for subject in self.subjects.keys() {
            // Of whom nothing can be known everything stays as it is.
            if let Ok(what) = self.prober.seen(subject) {
                seen.insert(subject.clone(), what);
            }
        }
        let deadline = |subject: &Subject, judge: &Judge| {
            let seen = seen.get(subject)?;
            judge.deadline(seen, &self.timing)
        };
        // Those that are over for longer are of somebody who was not asked often enough.
        let is_near = |deadline: &Duration| *deadline + TOGETHER > now;
        let deadlines = self.subjects.iter().filter_map(|(s, j)| deadline(s, j));
        let due = together(deadlines.filter(is_near));
        let waiting = due.is_some_and(|due| due > now);
        let mut found = Vec::new();
        for (subject, judge) in &mut self.subjects {
            let Some(seen) = seen.get(subject) else {
                continue;
            };
            let deadline = judge.deadline(seen, &self.timing);
            if waiting && deadline.is_some_and(|at| at <= now && is_near(&at)) {
                continue;
            }
            let was_up = judge.is_up();
            judge.look(now, seen, &self.timing);
            if judge.is_up() != was_up {
                let silence = now.saturating_sub(seen.heard.unwrap_or_default());
                tracing::debug!(up = !was_up, ?silence, "judged {subject}");
            }
            let outcome = Outcome {
                fault: (!judge.is_up()).then(|| self.prober.fault(subject, self.timing.timeout)),
                round_trip: seen.heard.map(|_| seen.round_trip),
            };
            found.push((subject.clone(), outcome));
        }
        self.board.note(found);
        match due {
            Some(due) if due > now => wake.min(due),
            _ => wake,
        }
    }
}

/// The first moment by which somebody's deadline is over, and that of all who are hardly behind: gateways of one node
/// die together, and are left together.
fn together(deadlines: impl Iterator<Item = Duration> + Clone) -> Option<Duration> {
    let latest = deadlines.clone().min()? + TOGETHER;
    deadlines.filter(|deadline| *deadline <= latest).max()
}

/// The time of `CLOCK_MONOTONIC`, as programs read it.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_dies_together_is_left_together() {
        let ms = Duration::from_millis;
        for (deadlines, expected) in [
            (&[][..], None),
            (&[900], Some(900)),
            (&[900, 904, 1200], Some(904)),
            (&[904, 910, 900], Some(904)),
        ] {
            let found = together(deadlines.iter().copied().map(ms));
            assert_eq!(found, expected.map(ms), "{deadlines:?}");
        }
    }

    /// Answers whatever is put in here.
    struct Scripted(BTreeMap<Subject, Seen>);

    impl Prober for Scripted {
        fn watch(&mut self, _: &BTreeMap<Subject, u32>) -> anyhow::Result<()> {
            Ok(())
        }

        fn ask(&mut self, _: &Subject) -> anyhow::Result<()> {
            Ok(())
        }

        fn seen(&mut self, subject: &Subject) -> anyhow::Result<Seen> {
            Ok(self.0.get(subject).copied().unwrap_or_default())
        }

        fn fault(&self, _: &Subject, _: Duration) -> String {
            "silent".to_owned()
        }
    }

    #[test]
    fn who_was_asked_too_rarely_is_judged_once_it_was_not() {
        let [slow, fine] = [1, 2].map(|last| Subject::NextHop {
            address: [192, 0, 2, last].into(),
            ifindex: 1,
        });
        let timing = Timing::default();
        let board = Board::new();
        let began = now();
        let mut round = Round {
            prober: Scripted(BTreeMap::new()),
            timing,
            board: Arc::clone(&board),
            subjects: BTreeMap::new(),
            numbers: BTreeMap::new(),
            failed: false,
        };
        let both = [(slow.clone(), 0), (fine.clone(), 0)].into();
        round.change(&both);
        let long_ago = began.saturating_sub(timing.timeout * 2);
        round.subjects.values_mut().for_each(|judge| {
            *judge = Judge::new(long_ago, &Seen::default(), &timing);
        });
        let heard = |at: Duration, unanswered| Seen {
            asked: Some(began),
            heard: Some(at),
            round_trip: Duration::ZERO,
            unanswered,
        };
        for (unanswered, down) in [(1, false), (2, true)] {
            let seen = [
                (slow.clone(), heard(long_ago, unanswered)),
                (fine.clone(), heard(began, 0)),
            ];
            round.prober.0 = seen.into();
            let wake = round.look(began + timing.interval);
            assert!(wake <= began + timing.timeout);
            assert_eq!(board.faults().contains_key(&slow), down, "{unanswered}");
            assert!(!board.faults().contains_key(&fine));
        }
    }
}
