//! An object as a line of YAML: how its last good version is kept, to be read by the same parser.

use std::fmt::Write as _;

use super::{
    Kind,
    yaml::{Data, Key, Value},
};

/// Writes an object in YAML's flow style, without line breaks and without the parts that nothing here reads.
///
/// Its type is written out, which items of a typed list leave to the list.
pub(super) fn line(value: &Value, kind: Kind) -> String {
    let mut out = String::from("{");
    // Writing into a string cannot fail.
    let _cannot_fail = write!(
        out,
        "\"apiVersion\": \"{}\", \"kind\": \"{kind:?}\",",
        kind.api_version()
    );
    if let Data::Map(entries) = &value.data {
        let is_type = |key: &Key| matches!(key.text.as_str(), "apiVersion" | "kind");
        for (key, value) in entries.iter().filter(|(key, _)| !is_type(key)) {
            write_entry(&mut out, key, value);
        }
    }
    out.push('}');
    out
}

fn write(out: &mut String, value: &Value) {
    // Writing into a string cannot fail.
    let _cannot_fail = match &value.data {
        Data::Null | Data::Skipped => write!(out, "null"),
        Data::Bool(value) => write!(out, "{value}"),
        Data::Integer(value) => write!(out, "{value}"),
        Data::Float(value) if value.is_nan() => write!(out, ".nan"),
        Data::Float(value) if value.is_infinite() => {
            write!(out, "{}.inf", if *value < 0.0 { "-" } else { "" })
        }
        Data::Float(value) => write!(out, "{value:?}"),
        Data::Text(text) => {
            quote(out, text);
            Ok(())
        }
        Data::List(items) => {
            out.push('[');
            for item in items {
                write(out, item);
                out.push(',');
            }
            out.push(']');
            Ok(())
        }
        Data::Map(entries) => {
            out.push('{');
            for (key, value) in entries {
                write_entry(out, key, value);
            }
            out.push('}');
            Ok(())
        }
    };
}

fn write_entry(out: &mut String, key: &Key, value: &Value) {
    if value.data == Data::Skipped {
        return;
    }
    // Without the question mark a key can have a thousand characters and no more.
    out.push_str("? ");
    quote(out, &key.text);
    out.push_str(" : ");
    write(out, value);
    out.push(',');
}

/// A string in double quotes; whatever may not stand in YAML, or looks like a line break, as an escape.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ if c.is_alphanumeric() => out.push(c),
            _ => {
                let _cannot_fail = write!(out, "\\U{:08X}", u32::from(c));
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resources::yaml;

    fn value(data: Data) -> Value {
        Value { data, span: 0..0 }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Data::Null),
            any::<bool>().prop_map(Data::Bool),
            any::<i64>().prop_map(|number| Data::Integer(number.into())),
            (-1e300..1e300_f64).prop_map(Data::Float),
            Just(Data::Float(f64::INFINITY)),
            any::<String>().prop_map(Data::Text),
            "[-~0-9nulltrue:{}#&*!|> \n]{0,8}".prop_map(Data::Text),
        ]
        .prop_map(value);
        leaf.prop_recursive(4, 30, 5, |inner| {
            let keys = prop_oneof![".{0,5}", Just("k".repeat(3000)), Just("<<".to_owned())];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| value(Data::List(items))),
                prop::collection::vec((keys, inner), 0..4).prop_map(|entries| {
                    let key = |text| Key { text, span: 0..0 };
                    value(Data::Map(
                        entries
                            .into_iter()
                            .map(|(text, value)| (key(text), value))
                            .collect(),
                    ))
                }),
            ]
        })
    }

    fn without_places(value: &Value) -> Value {
        let data = match &value.data {
            Data::List(items) => Data::List(items.iter().map(without_places).collect()),
            Data::Map(entries) => Data::Map(
                entries
                    .iter()
                    .map(|(key, value)| {
                        let key = Key {
                            span: 0..0,
                            ..key.clone()
                        };
                        (key, without_places(value))
                    })
                    .collect(),
            ),
            other @ (Data::Null
            | Data::Bool(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Text(_)
            | Data::Skipped) => other.clone(),
        };
        Value { data, span: 0..0 }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in values()) {
            let mut line = String::new();
            write(&mut line, &value);
            prop_assert!(!line.contains(['\n', '\r']), "{line}");
            let read = yaml::parse(&line, 0..line.len());
            prop_assert_eq!(read.map(|read| without_places(&read)), Ok(value), "{}", line);
        }
    }

    #[test]
    fn what_is_not_read_is_not_written() {
        let text = "{kind: Pod, spec: {containers: [{name: a}], nodeName: n}}";
        let read = yaml::parse(text, 0..text.len()).map(|value| line(&value, Kind::Pod));
        let expected = r#"{"apiVersion": "v1", "kind": "Pod",? "spec" : {? "nodeName" : "n",},}"#;
        assert_eq!(read.as_deref(), Ok(expected));
    }
}
