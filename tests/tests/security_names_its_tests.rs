//! What SECURITY.md claims is shown by tests, and they are there.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};

/// The tests that a text names, as file and function: spans of code with `::` in them.
fn named(text: &str) -> Vec<(&str, &str)> {
    let spans = text
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    spans.filter_map(|span| span.rsplit_once("::")).collect()
}

#[test]
fn every_threat_names_tests_that_exist() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("SECURITY.md"))?;
    let mut files = BTreeMap::new();
    for (file, test) in named(&page) {
        let path = if Path::new(file).extension().is_some() {
            root.join(file)
        } else {
            root.join("tests/tests").join(file).with_extension("rs")
        };
        if !files.contains_key(&path) {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("SECURITY.md names {file}::{test}"))?;
            files.insert(path.clone(), text);
        }
        let text = files.get(&path).map_or("", String::as_str);
        let (before, _) = text
            .split_once(&format!("fn {test}("))
            .with_context(|| format!("there is no test {test} in {}", path.display()))?;
        let attributes = before.rsplit_once("\n}\n").map_or(before, |(_, near)| near);
        ensure!(
            attributes.contains("#[test]"),
            "{test} in {} is no test",
            path.display()
        );
    }
    let threats = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"))
        .filter(|line| !line.ends_with("| shown by |"));
    let mut count = 0;
    for threat in threats {
        ensure!(!named(threat).is_empty(), "no test shows this: {threat}");
        count += 1;
    }
    ensure!(count > 20, "the page has only {count} threats");
    Ok(())
}
