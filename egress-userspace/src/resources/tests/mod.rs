//! Golden diagnostics for every way to be malformed, and what well-formed objects mean.

mod documents;
mod failing;
mod malformed;
mod meaning;
mod probes;
mod slips;

use std::{fmt::Write as _, num::NonZeroU32};

use proptest::prelude::*;

use super::{Kind, MAX_DOCUMENTS, Object, ParsedFile, parse, yaml};
use crate::{
    diagnostic::{Severity, Source},
    model::{
        EgressAddresses, Exit, Gateway, GatewaySelector, Labels, Leaving, Namespace, Node,
        OnFailure, Phase, Pod, Policy, Preference, Replies, Rule, Steering, Target,
    },
    selector::Selector,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn read(text: &str) -> ParsedFile {
    parse(&Source::new("test.yaml", text.to_owned()))
}

fn selector(text: &str) -> Result<Selector, crate::selector::ParseError> {
    Selector::parse(text)
}

fn only_object(file: ParsedFile) -> Option<Object> {
    assert_eq!(file.diagnostics, [], "no complaints");
    file.entries.into_iter().next()?.object
}

/// Every case with its reports, as one golden text.
fn reports(cases: &[(&str, String)]) -> String {
    let mut out = String::new();
    for (name, text) in cases {
        let file = read(text);
        let accepted = file.entries.iter().filter(|entry| entry.valid).count();
        let kept = file
            .entries
            .iter()
            .filter(|entry| entry.object.is_some())
            .count();
        let _always = writeln!(
            out,
            "==== {name}: {accepted} accepted, {kept} with content{}",
            if file.incomplete { ", incomplete" } else { "" }
        );
        for diagnostic in &file.diagnostics {
            out += &diagnostic.render(false);
            out.push('\n');
        }
    }
    out
}

fn policy(rules: &str) -> String {
    let indented = rules.trim_end().replace('\n', "\n  ");
    format!(
        "apiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {{name: egw-policy}}\nspec:\n  {indented}\n"
    )
}
