//! YAML of any kind: its documents, what is refused, and where errors are.

use super::*;

#[test]
fn hostile_yaml_is_refused() {
    let flow = format!("a: {}", "[".repeat(100_000));
    let block = (0..3000).fold(String::new(), |text, depth| {
        text + &" ".repeat(depth) + "a:\n"
    });
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    for (name, text) in [("flow", flow), ("block", block), ("bomb", bomb)] {
        let file = read(&text);
        assert!(
            file.incomplete && file.diagnostics.len() == 1,
            "{name}: {:?}",
            file.diagnostics
        );
    }
    // As deep as allowed, in the deepest stack frames there are.
    let nested = (0..90).fold(
        "apiVersion: v1\nkind: X\nitems:\n".to_owned(),
        |text, depth| text + &" ".repeat(depth + 1) + "a:\n",
    );
    assert_eq!(read(&nested).diagnostics, []);
}

#[test]
fn texts_that_repeat_a_long_one_are_refused() {
    let long = "x".repeat(1 << 20);
    let map = (0..300).fold(format!("a: &a {long}\n"), |text, n| {
        text + &format!("b{n}: *a\n")
    });
    let list = format!("- &a [{}]\n{}", "{},".repeat(90_000), "- *a\n".repeat(900));
    let keys = (0..300).fold(format!("? &a {long}\n: 1\n"), |text, n| {
        text + &format!("- {{? *a : {n}}}\n").replacen("- ", &format!("k{n}: "), 1)
    });
    for (name, text) in [("map", map), ("list", list), ("keys", keys)] {
        let file = read(&text);
        assert!(file.incomplete, "{name}");
        assert_eq!(file.diagnostics.len(), 1, "{name}");
    }
}

#[test]
fn what_is_said_of_a_file_has_an_end() {
    let faults = "---\nkind: [\n".repeat(5000);
    let object = |spec: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        )
    };
    let fields = (0..5000).fold("{".to_owned(), |text, n| text + &format!("f{n}: 1, ")) + "}";
    let long = "x".repeat(1 << 20);
    let quoted = format!("{{rules: [{{destination: {{cidr: {long}}}}}]}}");
    let kinds = (0..5000).fold(String::new(), |text, n| {
        text + &format!("---\napiVersion: v1\nkind: K{n}\n")
    });
    let name = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {long}}}\n");
    let kind = format!("apiVersion: v1\nkind: {long}\n");
    for (what, text) in [
        ("faults", faults),
        ("fields", object(&fields)),
        ("quoted", object(&quoted)),
        ("kinds", kinds),
        ("name", name),
        ("kind", kind),
    ] {
        let file = read(&text);
        let said: usize = file
            .diagnostics
            .iter()
            .map(|d| d.render(false).len() + d.to_string().len())
            .sum();
        let skipped: usize = file.skipped.keys().map(String::len).sum();
        assert!(
            said < 2 << 20 && skipped < 1 << 14,
            "{what}: {said} {skipped}"
        );
        let accounted = file.diagnostics.len() + file.untold + file.skipped.values().sum::<usize>();
        let expected = match what {
            "faults" | "kinds" => 5000,
            "fields" => 50,
            _ => 1,
        };
        assert_eq!(accounted, expected, "{what}");
    }
}

#[test]
fn many_documents_are_read() {
    const { assert!(MAX_DOCUMENTS >= 100_000) };
    let text = (0..20_000).fold(String::new(), |text, index| {
        text + &format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: n{index}}}}}\n")
    });
    let file = read(&text);
    assert_eq!((file.entries.len(), file.diagnostics.len()), (20_000, 0));
    let text = "---\na\n".repeat(MAX_DOCUMENTS + 1);
    let file = read(&text);
    assert!(file.incomplete && file.entries.is_empty());
    assert_eq!(file.diagnostics.len(), 1);
}

#[test]
fn documents_end_where_yaml_says() {
    let table = [
        ("", 0),
        ("---\n---\n", 0),
        ("# comment\n", 0),
        ("\u{feff}a: 1\n", 1),
        ("a: 1\n---\nb: 1", 2),
        ("a: |\n  ---\n  x\n---\r\nb: 1\r\n", 2),
        ("a: 1\n...\n# c\n%YAML 1.2\n---\nb: 1\n", 2),
        ("--- {a: 1}\n--- # c\n---\n", 1),
        ("---x: 1\n", 1),
    ];
    for (text, expected) in table {
        let documents = yaml::documents(text);
        assert_eq!(documents.len(), expected, "{text:?}");
        for document in documents {
            assert!(yaml::parse(text, document).is_ok(), "{text:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in "[-a:{}\\[\\]'\"&*!|>%@`# \n\t,?~.0-9é\u{feff}]{0,60}") {
        for diagnostic in read(&text).diagnostics {
            let _rendered = diagnostic.render(true);
        }
    }

    /// However a selector is written in YAML, the place of its error is the place of the wrong character.
    #[test]
    fn the_place_is_inside_the_string(
        labels in prop::collection::vec("[a-zé]{1,6}", 1..5),
        style in 0..5_usize,
    ) {
        let good: String = labels.iter().map(|label| {
            let label = label.replace('é', "e");
            format!("{label} == 'ü' && ")
        }).collect();
        let text = format!("{good}has(a) § has(b)");
        let written = match style {
            0 => text.clone(),
            1 => format!("\"{}\"", text.replace('&', "\\x26")),
            2 => format!("'{}'", text.replace('\'', "''")),
            3 => format!("|\n      {text}\n"),
            _ => format!(">-\n      {}\n", text.replace("&& ", "&&\n      ")),
        };
        let yaml = policy(&format!("rules:\n- gateway:\n    selector: {written}"));
        let file = read(&yaml);
        prop_assert_eq!(file.diagnostics.len(), 1);
        let position = file.diagnostics[0].position.clone();
        prop_assert_eq!(position.map(|position| &yaml[position.span]), Some("§"), "{}", yaml);
    }
}
