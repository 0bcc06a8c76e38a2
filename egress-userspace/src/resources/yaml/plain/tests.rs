#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::{
    super::{documents, parse_any},
    *,
};

/// Where the plain parser says something, the other says the same. Says whether it did.
fn agrees(text: &str) -> Result<bool, TestCaseError> {
    let mut said = false;
    for span in documents(text) {
        let document = &text[span.clone()];
        let Some(found) = parse(document, span.start) else {
            continue;
        };
        said = true;
        let expected = parse_any(document, span.start, span);
        prop_assert_eq!(Ok(found), expected, "{}", text);
    }
    Ok(said)
}

#[test]
fn manifests_are_read_the_short_way() {
    for text in [
        "a: b\nc:\n  d: 1\n  e: text\nlist:\n- x: why\n  z: w\n- {cidr: 1.2.3.0/24, b: [c, d]}\nlast: [1, x]\n",
        "---\nkind: Pod\n\nspec:\n  rules:\n    - destination: {cidr: 2001:db8::/32}\n      gateway: {selector: \"a == 'b'\"}\n    - x: 'y'",
        "status:\n  podIPs: [{ip: 10.0.0.1}]\n  containers: [{name: a}]\nempty: {}\nnothing: []\n",
        "a:\n- b\n- \"c\"\nd:\n  - e\n  - ff: g\n    h:\n    - i\n    - j\nk: l\n",
    ] {
        assert!(agrees(text).unwrap(), "{text}");
    }
}

#[test]
fn what_is_in_doubt_is_left_to_the_other() {
    for text in [
        "a: yes\n",
        "a: 1.5\n",
        "a: 0x1f\n",
        "a: 010\n",
        "a: 1e5\n",
        "a: ~\n",
        "a:\n",
        "a: b # c\n",
        "a: &x b\n",
        "a: |\n  b\n",
        "a: b\n  c\n",
        "- - a\n",
        "? a\n: b\n",
        "a: \"b\\n\"\n",
        "a: 'b''c'\n",
        "a: b: c\n",
        "a: {b: c,}\n",
        "a: {b}\n",
        "a: [b: c]\n",
        "a:\n    b: c\n  d: e\n",
        "\ta: b\n",
        "a: b \n",
        "<<: {a: b}\n",
        "a: 12:30\n",
        "a: -1\n",
        "a: é\n",
        "\"a\": b\n",
        "null: a\n",
        "a: 2001-01-01\n",
        "just text\n",
        "a: !!str b\n",
        "a: {b: c\n}\n",
        "-\n  a: b\n",
        "a: [b,\n  c]\n",
        "a: .5\n",
        "a: b:\n",
        "a: {b:c}\n",
        "a: nan\n",
    ] {
        assert_eq!(parse(text, 0), None, "{text}");
    }
}

/// Manifests, and such as have something odd in one place.
fn texts() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        "[a-z0-9./:_-]{1,9}",
        "[1-9][0-9]{0,2}\\.[0-9]{1,3}\\.0\\.0/[0-9]{1,2}",
        "[0-9]{1,19}",
        "\"[ -~]{0,6}\"",
        "'[ -~]{0,6}'",
        Just("true".to_owned()),
        Just("2001:db8::/32".to_owned()),
    ];
    let key = "[a-z][a-zA-Z./-]{0,6}|containers|[a-z0-9]{1,2}";
    let node = scalar
        .prop_map(Node::Scalar)
        .prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec((key, inner.clone()), 1..4).prop_flat_map(|entries| any::<
                    bool,
                >(
                )
                .prop_map(move |flow| Node::Map(entries.clone(), flow))),
                prop::collection::vec(inner, 1..4).prop_flat_map(|items| {
                    (any::<bool>(), any::<bool>())
                        .prop_map(move |(flow, indented)| Node::List(items.clone(), flow, indented))
                }),
            ]
        });
    let odd = prop_oneof![
        Just(String::new()),
        Just(" ".to_owned()),
        Just("\n".to_owned()),
        Just("- ".to_owned()),
        Just(": ".to_owned()),
        Just("#".to_owned()),
        Just("\n\n".to_owned()),
        Just("  ".to_owned()),
        Just(",".to_owned()),
        Just("}".to_owned()),
        Just("---\n".to_owned()),
        "[ -~]",
        Just("\t".to_owned()),
        Just("é".to_owned()),
    ];
    (node, odd, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(node, odd, at, removes)| {
        let mut text = String::new();
        node.write(&mut text, 0, false);
        let at = at.index(text.len() + 1);
        if text.is_char_boundary(at) {
            if removes && at < text.len() {
                text.remove(at);
            } else {
                text.insert_str(at, &odd);
            }
        }
        text
    })
}

#[derive(Clone, Debug)]
enum Node {
    Scalar(String),
    Map(Vec<(String, Node)>, bool),
    List(Vec<Node>, bool, bool),
}

impl Node {
    fn flow(&self) -> String {
        match self {
            Self::Scalar(text) => text.clone(),
            Self::Map(entries, _) => {
                let entries = entries
                    .iter()
                    .map(|(key, node)| format!("{key}: {}", node.flow()));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
            Self::List(items, ..) => {
                format!(
                    "[{}]",
                    items.iter().map(Self::flow).collect::<Vec<_>>().join(", ")
                )
            }
        }
    }

    /// From the column where it begins, which the line has reached.
    fn write(&self, out: &mut String, column: usize, dashed: bool) {
        match self {
            Self::Map(entries, false) => {
                for (index, (key, node)) in entries.iter().enumerate() {
                    if index > 0 {
                        out.push_str(&" ".repeat(column));
                    }
                    out.push_str(key);
                    out.push(':');
                    match node {
                        Self::Map(_, false) => {
                            out.push('\n');
                            out.push_str(&" ".repeat(column + 2));
                            node.write(out, column + 2, false);
                        }
                        Self::List(_, false, indented) => {
                            let column = column + if *indented { 2 } else { 0 };
                            out.push('\n');
                            out.push_str(&" ".repeat(column));
                            node.write(out, column, false);
                        }
                        other @ (Self::Scalar(_) | Self::Map(..) | Self::List(..)) => {
                            out.push(' ');
                            other.write(out, column, false);
                        }
                    }
                }
            }
            Self::List(items, false, _) if !dashed => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push_str(&" ".repeat(column));
                    }
                    out.push_str("- ");
                    item.write(out, column + 2, true);
                }
            }
            other @ (Self::Scalar(_) | Self::Map(..) | Self::List(..)) => {
                out.push_str(&other.flow());
                out.push('\n');
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn both_parsers_say_the_same(text in texts()) {
        agrees(&text)?;
    }
}
