//! Evaluation and errors as tables; printing as a property.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{MAX_DEPTH, Node, Selector};
use crate::model::Labels;

fn labels() -> Labels {
    [
        ("egress-code", "red"),
        ("projectcalico.org/name", "default"),
        ("a.b/c-d_e", "x"),
        ("in", "word"),
        ("empty", ""),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

#[test]
fn evaluation() -> Result<(), Box<dyn std::error::Error>> {
    let table = [
        ("all()", true),
        ("global()", true),
        ("!all()", false),
        ("egress-code == 'red'", true),
        ("egress-code = 'red'", true),
        ("egress-code=='red'&&has(in)", true),
        ("egress-code == \"red\"", true),
        ("egress-code == 'Red'", false),
        ("egress-code == 'blue'", false),
        ("absent == ''", false),
        ("empty == ''", true),
        ("egress-code != 'red'", false),
        ("egress-code != 'blue'", true),
        ("absent != 'blue'", true),
        ("egress-code in {'blue', 'red'}", true),
        ("egress-code in {'blue',}", false),
        ("egress-code in {}", false),
        ("absent in {'blue'}", false),
        ("egress-code not in {'red'}", false),
        ("egress-code not in {'blue'}", true),
        ("egress-code notin{'blue'}", true),
        ("egress-code not in {}", true),
        ("absent not in {'blue'}", true),
        ("has(egress-code)", true),
        ("has ( empty )", true),
        ("!has(absent)", true),
        ("!!has(absent)", false),
        ("! ! ! has(absent)", true),
        ("egress-code contains 'e'", true),
        ("egress-code contains 'red'", true),
        ("egress-code contains 'x'", false),
        ("absent contains ''", false),
        ("egress-code starts with 're'", true),
        ("egress-code startswith're'", true),
        ("egress-code starts   with 'ed'", false),
        ("absent starts with ''", false),
        ("egress-code ends with 'ed'", true),
        ("egress-code ends with 're'", false),
        ("absent ends with ''", false),
        ("a.b/c-d_e == 'x'", true),
        ("in in {'word'}", true),
        ("in == 'word'", true),
        ("has == 'a'", false),
        ("all != 'a'", true),
        ("all() || all() && !all()", true),
        ("(all() || all()) && !all()", false),
        ("!(has(absent) || has(in))", false),
        ("!has(absent) && has(in)", true),
        ("\tprojectcalico.org/name\n==\n'default' ", true),
    ];
    for (text, expected) in table {
        let selector = Selector::parse(text).map_err(|error| format!("{text}: {error:?}"))?;
        assert_eq!(selector.matches(&labels()), expected, "{text}");
        assert_eq!(Selector::parse(&selector.to_string())?, selector, "{text}");
    }
    Ok(())
}

#[test]
fn printing_is_canonical() -> Result<(), Box<dyn std::error::Error>> {
    let table = [
        ("a='b'", "a == 'b'"),
        ("a==\"it's\"", "a == \"it's\""),
        ("((a=='b'))", "a == 'b'"),
        ("a in{'c','b','b'}", "a in {'b', 'c'}"),
        ("a notin {}", "a not in {}"),
        ("!!!has(a)", "!has(a)"),
        ("!(!(has(a)))", "has(a)"),
        ("(has(a)&&has(b))&&has(c)", "has(a) && has(b) && has(c)"),
        ("has(a)||(has(b)||has(c))", "has(a) || has(b) || has(c)"),
        ("(has(a)||has(b))&&has(c)", "(has(a) || has(b)) && has(c)"),
        ("has(a)||(has(b)&&has(c))", "has(a) || has(b) && has(c)"),
        ("!(has(a)&&has(b))", "!(has(a) && has(b))"),
        ("a startswith 'x'", "a starts with 'x'"),
    ];
    for (text, expected) in table {
        assert_eq!(Selector::parse(text)?.to_string(), expected, "{text}");
    }
    Ok(())
}

#[test]
fn errors_have_a_place_and_a_way_out() {
    let table = [
        ("", 0..0, "empty selector", "all()"),
        ("  ", 0..2, "empty selector", "all()"),
        (
            "a",
            1..1,
            "an operator after the label name `a`, found the end",
            "has(label)",
        ),
        ("a == b", 5..6, "expected a string, found `b`", "'b'"),
        ("a == ", 5..5, "expected a string, found the end", "quotes"),
        ("a == 'b", 5..7, "never closed", "closing '"),
        (
            "'a' == 'b'",
            0..3,
            "expected a label name",
            "`a == 'value'`",
        ),
        ("has('a')", 4..7, "expected a label name", "`has(a)`"),
        (
            "has()",
            4..5,
            "expected a label name, found `)`",
            "has(label)",
        ),
        (
            "a == 'b' c == 'd'",
            9..10,
            "expected `&&`, `||` or the end, found `c`",
            "&&",
        ),
        ("a == 'b' and has(c)", 9..12, "found `and`", "`&&`"),
        ("a == 'b' OR has(c)", 9..11, "found `OR`", "`||`"),
        ("a == 'b', has(c)", 8..9, "found `,`", "&&"),
        ("has(a) & has(b)", 7..8, "unexpected character `&`", "&&"),
        ("has(a) | has(b)", 7..8, "unexpected character `|`", "||"),
        ("has(é)", 4..6, "unexpected character `é`", "label names"),
        ("a in ('b')", 5..6, "expected `{`, found `(`", "braces"),
        (
            "a in {'b' 'c'}",
            10..13,
            "expected `,` or `}`",
            "{'a', 'b'}",
        ),
        ("a in {b}", 6..7, "expected a string", "'b'"),
        ("a in {'b'", 9..9, "found the end", "{'a', 'b'}"),
        ("(has(a)", 0..1, "never closed", ")"),
        ("has(a", 3..4, "never closed", ")"),
        ("has(a))", 6..7, "never opened", "remove"),
        (
            "()",
            1..2,
            "expected a condition, found `)`",
            "label == 'value'",
        ),
        ("all(x)", 4..5, "expected `)`", "nothing between"),
        ("any()", 0..3, "no function `any`", "has(label)"),
        (
            "a like 'b'",
            2..6,
            "an operator after the label name `a`, found `like`",
            "contains",
        ),
        ("a not 'b'", 2..5, "found `not`", "not in"),
        ("a && has(b)", 2..4, "found `&&`", "has(label)"),
        (
            "has(a) &&",
            9..9,
            "expected a condition, found the end",
            "has(label)",
        ),
        (
            "!",
            1..1,
            "expected a condition, found the end",
            "has(label)",
        ),
    ];
    for (text, span, message, help) in table {
        match Selector::parse(text) {
            Ok(selector) => assert_eq!(None, Some(selector), "{text} was accepted"),
            Err(error) => {
                assert_eq!(error.span, span, "{text}: {error:?}");
                assert!(error.message.contains(message), "{text}: {error:?}");
                assert!(error.help.contains(help), "{text}: {error:?}");
            }
        }
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| format!("{}all(){}", "(".repeat(depth), ")".repeat(depth));
    assert!(Selector::parse(&nested(MAX_DEPTH)).is_ok());
    let error = Selector::parse(&nested(1_000_000)).err();
    assert!(
        error
            .as_ref()
            .is_some_and(|error| error.message.contains("nest deeper")
                && error.span == (MAX_DEPTH..MAX_DEPTH + 1)),
        "{error:?}"
    );
    let negated = format!("{}all()", "!".repeat(1_000_001));
    assert!(Selector::parse(&negated).is_ok_and(|selector| !selector.matches(&labels())));
    let long = vec!["has(in)"; 100_000].join(" && ");
    assert!(Selector::parse(&long).is_ok_and(|selector| selector.matches(&labels())));
}

fn any_label() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9_./-]{1,12}",
        prop::sample::select(vec![
            "in", "not", "has", "all", "global", "contains", "starts", "with", "ends"
        ])
        .prop_map(str::to_owned),
    ]
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![r#"[^']{0,8}"#, r#"[^"]{0,8}"#]
}

fn any_node() -> impl Strategy<Value = Node> {
    let set = || prop::collection::btree_set(any_value(), 0..4);
    let leaf = prop_oneof![
        Just(Node::All),
        Just(Node::Global),
        any_label().prop_map(Node::Has),
        (any_label(), any_value()).prop_map(|(label, value)| Node::Equal(label, value)),
        (any_label(), any_value()).prop_map(|(label, value)| Node::NotEqual(label, value)),
        (any_label(), set()).prop_map(|(label, values)| Node::In(label, values)),
        (any_label(), set()).prop_map(|(label, values)| Node::NotIn(label, values)),
        (any_label(), any_value()).prop_map(|(label, value)| Node::Contains(label, value)),
        (any_label(), any_value()).prop_map(|(label, value)| Node::StartsWith(label, value)),
        (any_label(), any_value()).prop_map(|(label, value)| Node::EndsWith(label, value)),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(Node::negated),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Node::conjunction),
            prop::collection::vec(inner, 1..4).prop_map(Node::disjunction),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_itself(node in any_node()) {
        let selector = Selector(node);
        let text = selector.to_string();
        prop_assert_eq!(Selector::parse(&text), Ok(selector), "{}", text);
    }

    #[test]
    fn any_text_parses_or_is_refused_with_a_place_in_it(text in any::<String>()) {
        if let Err(error) = Selector::parse(&text) {
            prop_assert!(text.get(error.span.clone()).is_some(), "{:?}", error);
        }
    }

    #[test]
    fn quotes_and_parentheses_in_any_order_are_harmless(text in "[a'\"(){}!&|=, ]{0,30}") {
        if let Err(error) = Selector::parse(&text) {
            prop_assert!(text.get(error.span.clone()).is_some(), "{:?}", error);
        }
    }

    #[test]
    fn the_opposites_are_opposites(label in any_label(), value in any_value(), other in any_value()) {
        let labels: Labels = [(label.clone(), other)].into();
        let set: BTreeSet<String> = [value.clone()].into();
        for labels in [labels, Labels::new()] {
            prop_assert_ne!(
                Node::Equal(label.clone(), value.clone()).matches(&labels),
                Node::NotEqual(label.clone(), value.clone()).matches(&labels)
            );
            prop_assert_ne!(
                Node::In(label.clone(), set.clone()).matches(&labels),
                Node::NotIn(label.clone(), set.clone()).matches(&labels)
            );
        }
    }
}
