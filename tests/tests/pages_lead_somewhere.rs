//! Links of the pages lead to files and headings that are there, and the files that they name exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every page of the repository, by its path.
fn pages() -> Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::new();
    for directory in [root(), root().join("docs")] {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path)?;
                pages.insert(path.canonicalize()?, text);
            }
        }
    }
    Ok(pages)
}

/// The lines of a page that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// The targets of a page's links.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| {
        let after = line.split("](").skip(1);
        after.filter_map(|rest| Some(rest.split_once(')')?.0))
    })
}

#[test]
fn every_link_has_a_target() -> Result<()> {
    let pages = pages()?;
    let mut broken = Vec::new();
    let mut count = 0;
    for (path, text) in &pages {
        let name = path.file_name().context("no name")?.display();
        for link in links(text).filter(|link| !link.starts_with("http")) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().context("no directory")?.join(file)
            };
            let Ok(target) = target.canonicalize() else {
                broken.push(format!("{name}: there is no file {link}"));
                continue;
            };
            let known = || pages.get(&target).map(|text| anchors(text));
            if !anchor.is_empty() && known().is_none_or(|known| !known.contains(anchor)) {
                broken.push(format!("{name}: there is no heading {link}"));
            }
        }
    }
    assert_eq!(broken, [""; 0]);
    assert!(count > 20, "only {count} links");
    Ok(())
}

#[test]
fn every_file_that_is_named_is_there() -> Result<()> {
    const FOLDERS: [&str; 6] = [
        "deploy/",
        "docs/",
        "examples/",
        "tests/",
        "fuzz/",
        "egress-userspace/",
    ];
    let mut missing = Vec::new();
    for (path, text) in pages()? {
        let spans = text
            .lines()
            .flat_map(|line| line.split('`').skip(1).step_by(2));
        for span in spans {
            let name = span.split("::").next().unwrap_or(span);
            let is_path = FOLDERS.iter().any(|folder| name.starts_with(folder));
            // Words in capitals stand for something else.
            let stands_for = name
                .split('/')
                .any(|part| part.len() > 1 && part == part.to_uppercase());
            if is_path && !stands_for && !name.contains([' ', '*']) && !root().join(name).exists() {
                missing.push(format!("{}: {span}", path.display()));
            }
        }
    }
    assert_eq!(missing, [""; 0]);
    Ok(())
}
