//! Files of resources: refused with a place, or taken as far as the maps.

use egress_userspace::{
    diagnostic::{Diagnostic, Source},
    lint::lint,
    resources::parse,
};

use super::steered;

/// More of them is the same again, and slow to write out.
const RENDERED: usize = 20;

pub(super) fn run(data: &[u8]) {
    let loaded = steered::load(data);
    assert!(
        loaded.unknown.is_empty() || !loaded.diagnostics.is_empty(),
        "a file that cannot be read is passed over in silence"
    );
    for diagnostic in loaded.diagnostics.iter().take(RENDERED) {
        check_diagnostic(diagnostic, data.len());
    }
    let Ok(text) = str::from_utf8(data) else {
        assert!(loaded.places.is_empty(), "objects in what is no text");
        return;
    };
    for finding in lint(&loaded.model, &loaded.places, &loaded.refused) {
        assert!(!finding.message.is_empty(), "a finding says nothing");
    }
    keep_and_read_again(text);
    steered::check(&loaded.model);
}

fn check_diagnostic(diagnostic: &Diagnostic, length: usize) {
    let told = diagnostic.render(false);
    // A panic of the parser is caught where files are read; here it is what is looked for.
    assert!(
        !told.contains("the YAML parser gave up"),
        "the parser panicked: {told}"
    );
    if let Some(position) = &diagnostic.position {
        assert!(
            position.span.start <= position.span.end && position.span.end <= length,
            "an error is outside the text: {position:?}"
        );
        assert!(
            position.line > 0 && position.column > 0,
            "lines and columns count from 1: {position:?}"
        );
    }
    assert!(!told.trim().is_empty(), "an error says nothing");
}

/// The line that an object is kept as is read as the same object.
fn keep_and_read_again(text: &str) {
    let parsed = parse(&Source::new("given.yaml", text.to_owned()));
    for entry in &parsed.entries {
        let Some(manifest) = &entry.manifest else {
            assert!(!entry.valid, "{} is valid, and is not kept", entry.id);
            continue;
        };
        let kept = parse(&Source::new("kept.yaml", format!("{manifest}\n")));
        let [again] = kept.entries.as_slice() else {
            panic!(
                "{} is kept as {manifest}, which holds {} objects: {:?}",
                entry.id,
                kept.entries.len(),
                kept.diagnostics
            );
        };
        assert!(
            again.id == entry.id && again.valid && again.object == entry.object,
            "{} is kept as {manifest}, which is read as {again:?}, not as {entry:?}",
            entry.id
        );
    }
}
