//! Selectors: what is accepted prints as what is read again as the same.

use std::collections::BTreeMap;

use egress_userspace::{model::Labels, selector::Selector};

pub(super) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let selector = match Selector::parse(text) {
        Ok(selector) => selector,
        Err(error) => {
            assert!(
                error.span.start <= error.span.end && error.span.end <= text.len(),
                "an error is outside the text: {error:?}"
            );
            assert!(
                text.is_char_boundary(error.span.start) && text.is_char_boundary(error.span.end),
                "an error is in the middle of a character: {error:?}"
            );
            assert!(!error.to_string().is_empty(), "an error says nothing");
            return;
        }
    };
    let printed = selector.to_string();
    let again = Selector::parse(&printed)
        .unwrap_or_else(|error| panic!("printed {printed:?}, which is refused: {error}"));
    assert_eq!(
        again, selector,
        "printed {printed:?}, and read as another one"
    );
    assert_eq!(again.to_string(), printed, "printing is not stable");
    // As deep as it may be, it has no room for one more.
    let negated = Selector::parse(&format!("!({printed})")).ok();
    for labels in label_sets(text) {
        let matches = selector.matches(&labels);
        assert_eq!(again.matches(&labels), matches, "{printed:?}, {labels:?}");
        if let Some(negated) = &negated {
            assert_eq!(
                negated.matches(&labels),
                !matches,
                "not {printed:?}, {labels:?}"
            );
        }
    }
}

/// Labels whose names and values are words of the text, in several ways.
fn label_sets(text: &str) -> Vec<Labels> {
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || "'\"(){}!=&|,".contains(c))
        .filter(|word| !word.is_empty())
        .take(8)
        .collect();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let neighbours = words.windows(2).map(|pair| (pair[0], pair[1]));
    vec![
        BTreeMap::new().into_iter().collect(),
        neighbours.map(|(name, value)| pair(name, value)).collect(),
        words.iter().map(|word| pair(word, word)).collect(),
        words.iter().map(|word| pair(word, "")).collect(),
    ]
}
