//! One gateway that asks the outside in one way: when, and what the answers say of it.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use super::super::{Board, Judge, Outcome, Seen, Subject, Timing, round::now};

/// A way of asking the outside.
pub(super) trait Way {
    /// What nobody has given: "answer".
    const WANTED: &str;

    /// Asks everybody once more. Who cannot be reached is as good as asked.
    ///
    /// # Errors
    /// Nobody was asked, for want of something of our own.
    fn ask(&mut self) -> anyhow::Result<()>;

    /// Waits for the next answer, and says how long it took. Nothing is lost if this is dropped.
    async fn answer(&mut self) -> Duration;

    /// Who is asked, and if it is known why nothing came.
    fn asked(&self) -> Vec<(String, Option<&str>)>;
}

/// A gateway that asks.
pub(super) struct Asking<W> {
    subject: Subject,
    way: W,
    timing: Timing,
    board: Arc<Board>,
    judge: Judge,
    seen: Seen,
    /// Why it is down, in the words of when it came to be.
    fault: Option<String>,
    /// Whether the last questions could not be asked, which is said once.
    failed: bool,
}

impl<W: Way> Asking<W> {
    /// One that has not asked yet; the board has it when this returns.
    pub(super) fn new(
        subject: Subject,
        way: W,
        timing: Timing,
        board: &Arc<Board>,
        was_down: impl Fn(&Subject) -> bool,
    ) -> Self {
        let was_down = was_down(&subject);
        let mut asking = Self {
            judge: if was_down {
                Judge::down(now())
            } else {
                Judge::new(now(), &Seen::default(), &timing)
            },
            fault: None,
            subject,
            way,
            timing,
            board: Arc::clone(board),
            seen: Seen::default(),
            failed: false,
        };
        if was_down {
            asking.fault = Some(asking.describe("yet, and it was down before"));
        }
        asking.note();
        asking
    }

    /// Asks until this is dropped.
    pub(super) async fn go_on(mut self) {
        // Time that went by until the first question says nothing of who is asked.
        if self.judge.is_up() {
            self.judge = Judge::new(now(), &self.seen, &self.timing);
        }
        let mut next = now();
        loop {
            let deadline = self.judge.deadline(&self.seen, &self.timing);
            let wake = deadline
                .filter(|deadline| *deadline > now())
                .map_or(next, |deadline| deadline.min(next));
            tokio::select! {
                took = self.way.answer() => self.hear(took),
                () = tokio::time::sleep(wake.saturating_sub(now())) => {}
            }
            if now() >= next {
                self.ask();
                // Who was late does not make up for what it missed.
                next = now() + self.timing.interval;
            }
            self.look();
        }
    }

    fn hear(&mut self, took: Duration) {
        self.seen.heard = Some(now());
        self.seen.round_trip = took;
        self.seen.unanswered = 0;
    }

    fn ask(&mut self) {
        let asked = self.way.ask();
        match &asked {
            Ok(()) => {
                self.seen.asked = Some(now());
                self.seen.unanswered = self.seen.unanswered.saturating_add(1);
            }
            Err(error) if !self.failed => {
                tracing::error!(
                    "cannot ask {}, which counts as it did: {error:#}",
                    self.subject
                );
            }
            Err(_) => {}
        }
        self.failed = asked.is_err();
    }

    fn look(&mut self) {
        let was_up = self.judge.is_up();
        self.judge.look(now(), &self.seen, &self.timing);
        if self.judge.is_up() {
            self.fault = None;
        } else if was_up {
            let since = format!("for {} s", self.timing.timeout.as_secs_f64());
            self.fault = Some(self.describe(&since));
        }
        self.note();
    }

    fn note(&self) {
        let outcome = Outcome {
            fault: self.fault.clone(),
            round_trip: self.seen.heard.map(|_| self.seen.round_trip),
        };
        self.board.note([(self.subject.clone(), outcome)]);
    }

    /// That nobody has answered, since when, and why where that is known.
    fn describe(&self, since: &str) -> String {
        let mut silent = String::new();
        let mut troubles: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let asked = self.way.asked();
        for (name, trouble) in &asked {
            let comma = if silent.is_empty() { "" } else { ", " };
            let _infallible = write!(silent, "{comma}{name}");
            if let Some(trouble) = trouble {
                troubles.entry(trouble).or_default().push(name.clone());
            }
        }
        let why: Vec<String> = troubles
            .into_iter()
            .map(|(trouble, names)| {
                if names.len() == asked.len() {
                    trouble.to_owned()
                } else {
                    format!("{}: {trouble}", names.join(", "))
                }
            })
            .collect();
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(" ({})", why.join("; "))
        };
        let kind = self.subject.kind();
        format!("{kind} probe: no {} from {silent} {since}{why}", W::WANTED)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::future::pending;

    use anyhow::bail;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::model::{ObjectName, ProbeKind};

    /// Answers as it is told.
    struct Told {
        troubles: Vec<Option<&'static str>>,
        answers: bool,
        can_ask: bool,
        asked: (UnboundedSender<()>, UnboundedReceiver<()>),
    }

    impl Told {
        fn new(troubles: &[Option<&'static str>], answers: bool, can_ask: bool) -> Self {
            Self {
                troubles: troubles.to_vec(),
                answers,
                can_ask,
                asked: unbounded_channel(),
            }
        }
    }

    impl Way for Told {
        const WANTED: &str = "answer";

        fn ask(&mut self) -> anyhow::Result<()> {
            if !self.can_ask {
                bail!("no socket");
            }
            self.asked.0.send(()).unwrap();
            Ok(())
        }

        async fn answer(&mut self) -> Duration {
            if !self.answers {
                return pending().await;
            }
            self.asked.1.recv().await.unwrap();
            Duration::from_millis(7)
        }

        fn asked(&self) -> Vec<(String, Option<&str>)> {
            let names = ["a", "b", "c"].iter().zip(&self.troubles);
            names
                .map(|(name, why)| ((*name).to_owned(), *why))
                .collect()
        }
    }

    const TIMING: Timing = Timing {
        interval: Duration::from_millis(10),
        timeout: Duration::from_millis(1500),
        up_after: Duration::from_millis(30),
    };

    fn asking(told: Told, timing: Timing, was_down: bool) -> (Asking<Told>, Arc<Board>, Subject) {
        let subject = Subject::Outside {
            name: ObjectName::new("egress", "red"),
            by: ProbeKind::Icmp,
        };
        let board = Board::new();
        let asking = Asking::new(subject.clone(), told, timing, &board, |_| was_down);
        (asking, board, subject)
    }

    #[test]
    fn who_is_down_says_who_was_silent_for_how_long_and_why() {
        for (troubles, expected) in [
            (&[None][..], "icmp probe: no answer from a for 1.5 s"),
            (&[None, None], "icmp probe: no answer from a, b for 1.5 s"),
            (&[Some("x")], "icmp probe: no answer from a for 1.5 s (x)"),
            (
                &[Some("x"), Some("x")],
                "icmp probe: no answer from a, b for 1.5 s (x)",
            ),
            (
                &[Some("y"), None, Some("x")],
                "icmp probe: no answer from a, b, c for 1.5 s (c: x; a: y)",
            ),
        ] {
            let (mut asking, board, subject) =
                asking(Told::new(troubles, false, true), TIMING, false);
            assert!(board.faults().is_empty());
            asking.seen.unanswered = 1000;
            asking.judge = Judge::new(Duration::ZERO, &Seen::default(), &TIMING);
            asking.look();
            assert_eq!(board.faults()[&subject], expected);
        }
    }

    /// Lets one ask until the board is so.
    fn play(asking: Asking<Told>, until: impl Fn() -> bool) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let asking = tokio::spawn(asking.go_on());
            while !until() {
                assert!(!asking.is_finished());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn answers_bring_back_who_was_down_before() {
        let (asking, board, subject) = asking(Told::new(&[None], true, true), TIMING, true);
        let fault = "icmp probe: no answer from a yet, and it was down before";
        assert_eq!(board.faults()[&subject], fault);
        let began = now();
        play(asking, || board.faults().is_empty());
        assert!(now() - began >= TIMING.up_after);
        assert_eq!(board.round_trips()[&subject], Duration::from_millis(7));
    }

    #[test]
    fn silence_is_down_but_not_where_nobody_could_be_asked() {
        let short = Timing {
            timeout: Duration::from_millis(40),
            ..TIMING
        };
        let (silent, board, subject) = asking(Told::new(&[None], false, true), short, false);
        play(silent, || board.faults().contains_key(&subject));
        let (helpless, board, _) = asking(Told::new(&[None], false, false), short, false);
        let until = now() + short.timeout * 3;
        play(helpless, || now() >= until);
        assert!(board.faults().is_empty());
    }
}
