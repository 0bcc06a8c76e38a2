//! What the log has said last: what goes on is said again now and then, not at every try.

use std::time::{Duration, Instant};

/// How often the same is said.
const AGAIN: Duration = Duration::from_secs(30);

/// The last thing that was said of one matter.
#[derive(Debug, Default)]
pub(super) struct Said(Option<(String, Instant)>);

impl Said {
    /// Whether to say this: it is something else than the last time, or that was a while ago.
    pub(super) fn is_news(&mut self, text: &str, now: Instant) -> bool {
        let is_known = self
            .0
            .as_ref()
            .is_some_and(|(last, at)| last == text && now.duration_since(*at) < AGAIN);
        if !is_known {
            self.0 = Some((text.to_owned(), now));
        }
        !is_known
    }

    /// The matter is over: whatever comes next is news. Says whether anything was the matter.
    pub(super) fn is_over(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_twice_a_minute() {
        let begin = Instant::now();
        let mut said = Said::default();
        let mut heard = 0;
        for tenths in 0..600 {
            let now = begin + Duration::from_millis(100) * tenths;
            heard += usize::from(said.is_news("no room", now));
        }
        assert_eq!(heard, 2);
        let end = begin + Duration::from_secs(60);
        for (text, over, news) in [
            ("no room", false, true),
            ("no room", false, false),
            ("no device", false, true),
            ("no room", false, true),
            ("no room", true, true),
        ] {
            if over {
                assert!(said.is_over());
                assert!(!said.is_over());
            }
            assert_eq!(said.is_news(text, end), news, "{text}");
        }
    }
}
