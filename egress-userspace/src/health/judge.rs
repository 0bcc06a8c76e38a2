//! Whether somebody who is asked again and again is in order: pure.
//!
//! Silence is what counts, not a number of lost probes; but silence of somebody who was hardly asked is none: a
//! process that was kept from running for a second has not heard from anybody. Damping delays only coming back.

use std::time::Duration;

use serde::Deserialize;

/// When whoever is asked counts as down or up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Timing {
    /// The pause between two questions.
    pub interval: Duration,
    /// How long nothing may be heard.
    pub timeout: Duration,
    /// How long replies must come before somebody who was down is up again.
    pub up_after: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(300),
            timeout: Duration::from_millis(900),
            up_after: Duration::from_secs(2),
        }
    }
}

impl Timing {
    /// How many questions must be without an answer: as many as the time of silence has room for, but one that may
    /// have just been sent.
    fn least(&self) -> u32 {
        let questions = self.timeout.as_nanos() / self.interval.as_nanos().max(1);
        u32::try_from(questions.saturating_sub(1))
            .unwrap_or(u32::MAX)
            .max(1)
    }
}

/// What was seen of somebody. Times are since a moment that stays the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When the last question was sent.
    pub asked: Option<Duration>,
    /// When the last answer came.
    pub heard: Option<Duration>,
    /// How long that took.
    pub round_trip: Duration,
    /// Questions that were sent since.
    pub unanswered: u32,
}

/// What is held of somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judge {
    /// When it was first asked by this process.
    since: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    Down {
        /// The last answer before it was down.
        heard: Option<Duration>,
        /// The first answer since.
        back: Option<Duration>,
    },
}

impl Judge {
    /// Begins at `now`. Who was silent when somebody asked it before is down, whoever is new is up until it is silent.
    #[must_use]
    pub fn new(now: Duration, seen: &Seen, timing: &Timing) -> Self {
        let silent = seen.unanswered >= timing.least()
            && seen.asked.is_some_and(|asked| {
                asked.saturating_sub(seen.heard.unwrap_or_default()) >= timing.timeout
            });
        let state = if silent {
            State::Down {
                heard: seen.heard,
                back: None,
            }
        } else {
            State::Up
        };
        Self { since: now, state }
    }

    /// Begins at `now` with somebody who was down before: it comes back as slowly as all others do.
    #[must_use]
    pub const fn down(now: Duration) -> Self {
        Self {
            since: now,
            state: State::Down {
                heard: Some(Duration::ZERO),
                back: None,
            },
        }
    }

    /// Whether it is usable.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    /// Looks again.
    pub fn look(&mut self, now: Duration, seen: &Seen, timing: &Timing) {
        let last = seen.heard.map_or(self.since, |heard| heard.max(self.since));
        let silent =
            now.saturating_sub(last) >= timing.timeout && seen.unanswered >= timing.least();
        match &mut self.state {
            State::Up => {
                if silent {
                    self.state = State::Down {
                        heard: seen.heard,
                        back: None,
                    };
                }
            }
            State::Down { heard, back } => {
                let Some(latest) = seen.heard.filter(|_| seen.heard != *heard) else {
                    return;
                };
                if silent {
                    (*heard, *back) = (Some(latest), None);
                    return;
                }
                let first = *back.get_or_insert(latest);
                // Who was never heard before was not down, but not there yet.
                if heard.is_none() || latest.saturating_sub(first) >= timing.up_after {
                    self.state = State::Up;
                }
            }
        }
    }

    /// When it will be down if nothing is heard until then.
    #[must_use]
    pub fn deadline(&self, seen: &Seen, timing: &Timing) -> Option<Duration> {
        let last = seen.heard.map_or(self.since, |heard| heard.max(self.since));
        self.is_up().then_some(last + timing.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn seen(asked: u64, heard: Option<u64>, unanswered: u32) -> Seen {
        Seen {
            asked: Some(ms(asked)),
            heard: heard.map(ms),
            round_trip: ms(1),
            unanswered,
        }
    }

    /// Plays what is seen at each moment, and compares with whether it is up then.
    #[track_caller]
    fn play(name: &str, steps: &[(u64, Seen, bool)]) {
        let timing = Timing::default();
        let mut judge = Judge::new(ms(0), &Seen::default(), &timing);
        for (now, seen, up) in steps {
            judge.look(ms(*now), seen, &timing);
            assert_eq!(judge.is_up(), *up, "{name}: at {now}");
        }
    }

    #[test]
    fn silence_is_down_and_answers_for_a_while_are_up() {
        play(
            "silence",
            &[
                (10, seen(0, Some(1), 0), true),
                (899, seen(600, Some(1), 2), true),
                (900, seen(600, Some(1), 2), true),
                (901, seen(600, Some(1), 2), false),
                (5000, seen(4800, Some(1), 16), false),
                (5100, seen(5100, Some(5101), 0), false),
                (7000, seen(6900, Some(6901), 0), false),
                (7102, seen(7101, Some(7102), 0), true),
            ],
        );
        play(
            "answers with a gap begin anew",
            &[
                (10, seen(0, Some(1), 0), true),
                (1000, seen(900, Some(1), 3), false),
                (1201, seen(1200, Some(1201), 0), false),
                (2200, seen(2100, Some(1201), 3), false),
                (2401, seen(2400, Some(2401), 0), false),
                (3300, seen(3300, Some(3301), 0), false),
                (4402, seen(4401, Some(4402), 0), true),
            ],
        );
    }

    #[test]
    fn who_comes_for_the_first_time_is_up_at_once() {
        play(
            "late",
            &[
                (899, seen(600, None, 3), true),
                (900, seen(900, None, 4), false),
                (9000, seen(8900, None, 30), false),
                (9101, seen(9100, Some(9101), 0), true),
            ],
        );
    }

    #[test]
    fn a_process_that_did_not_run_has_heard_no_silence() {
        play(
            "asleep",
            &[
                (10, seen(0, Some(1), 0), true),
                (5000, seen(0, Some(1), 0), true),
                (5000, seen(5000, Some(1), 1), true),
                (5001, seen(5000, Some(5001), 0), true),
            ],
        );
    }

    #[test]
    fn a_new_process_goes_on_where_the_last_one_was() {
        let timing = Timing::default();
        for (name, seen, up) in [
            ("nobody asked", Seen::default(), true),
            ("answered", seen(600, Some(601), 0), true),
            ("silent", seen(4000, Some(2000), 6), false),
            ("never heard", seen(4000, None, 6), false),
            ("just asked", seen(4000, Some(2000), 1), true),
        ] {
            let judge = Judge::new(ms(100_000), &seen, &timing);
            assert_eq!(judge.is_up(), up, "{name}");
        }
    }

    #[test]
    fn who_was_down_before_comes_back_as_slowly_as_others() {
        let timing = Timing::default();
        let mut judge = Judge::down(ms(100_000));
        for (now, heard, up) in [
            (100_000, None, false),
            (100_010, Some(100_009), false),
            (101_900, Some(101_899), false),
            (102_010, Some(102_009), true),
        ] {
            judge.look(ms(now), &seen(now, heard, 0), &timing);
            assert_eq!(judge.is_up(), up, "at {now}");
        }
    }

    #[test]
    fn the_deadline_is_that_of_silence() {
        let timing = Timing::default();
        let mut judge = Judge::new(ms(50), &Seen::default(), &timing);
        assert_eq!(judge.deadline(&Seen::default(), &timing), Some(ms(950)));
        let heard = seen(300, Some(301), 0);
        assert_eq!(judge.deadline(&heard, &timing), Some(ms(1201)));
        judge.look(ms(1201), &seen(900, Some(301), 2), &timing);
        assert_eq!(judge.deadline(&heard, &timing), None);
    }
}
