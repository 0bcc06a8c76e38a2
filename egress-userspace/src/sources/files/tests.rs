//! Loading from real directories: what stays and what goes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{Loaded, Loader};
use crate::{
    diagnostic::Severity,
    model::{ObjectName, Target},
};

pub(super) type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(super) fn policy(name: &str, cidr: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: EgressGatewayPolicy\nmetadata: {{name: {name}}}\nspec: {{rules: [{{destination: {{cidr: {cidr}}}}}]}}\n"
    )
}

pub(super) fn namespace(name: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n")
}

/// The policies in force, as "name=destination", and the namespaces.
pub(super) fn in_force(loaded: &Loaded) -> Vec<String> {
    let policies = loaded.model.policies.iter().map(|(name, policy)| {
        let rules: Vec<_> = policy.rules.iter().map(crate::model::Rule::label).collect();
        format!("{name}={}", rules.join("+"))
    });
    policies
        .chain(loaded.model.namespaces.keys().cloned())
        .collect()
}

pub(super) fn errors(loaded: &Loaded) -> Vec<String> {
    loaded
        .diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Severity::Error)
        .map(ToString::to_string)
        .collect()
}

fn only_error(loaded: &Loaded) -> Result<String, String> {
    match errors(loaded).as_slice() {
        [error] => Ok(error.clone()),
        others => Err(format!("not one error: {others:?}")),
    }
}

fn loader(path: &Path) -> Loader {
    Loader::new(vec![path.to_owned()])
}

#[test]
fn files_are_found_in_order_and_the_rest_left_alone() -> Outcome {
    let dir = TempDir::new()?;
    let write = |name: &str, text: &str| -> std::io::Result<()> {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
        fs::write(path, text)
    };
    write("b.yaml", &namespace("b"))?;
    write("a.yml", &namespace("a"))?;
    write(
        "sub/.git/c.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"c\"}}",
    )?;
    write("..data/d.yaml", &namespace("d"))?;
    write(".e.yaml", "nonsense: [")?;
    write("f.txt", "nonsense: [")?;
    write("g.yaml", "")?;
    let loaded = loader(dir.path()).load();
    assert_eq!(in_force(&loaded), ["a", "b", "c"]);
    assert_eq!(errors(&loaded), [""; 0]);
    let names: Vec<_> = loaded
        .errors_by_file
        .iter()
        .map(|(path, errors)| Ok((path.strip_prefix(dir.path())?.to_path_buf(), *errors)))
        .collect::<Result<_, std::path::StripPrefixError>>()?;
    let expected =
        ["a.yml", "b.yaml", "g.yaml", "sub/.git/c.json"].map(|name| (PathBuf::from(name), 0));
    assert_eq!(names, expected);

    // Given twice, by two ways, it is still one file.
    let mut twice = Loader::new(vec![
        dir.path().join("b.yaml"),
        dir.path().to_owned(),
        dir.path().join("./a.yml"),
    ]);
    assert_eq!(errors(&twice.load()), [""; 0]);
    Ok(())
}

#[test]
fn an_invalid_object_keeps_its_last_good_version() -> Outcome {
    let dir = TempDir::new()?;
    let file = dir.path().join("all.yaml");
    fs::write(
        &file,
        policy("p", "10.0.0.0/8") + &policy("q", "11.0.0.0/8"),
    )?;
    let mut loader = loader(dir.path());
    assert_eq!(in_force(&loader.load()), ["p=10.0.0.0/8", "q=11.0.0.0/8"]);

    fs::write(
        &file,
        policy("p", "nonsense")
            + &policy("q", "12.0.0.0/8")
            + &policy("r", "bad")
            + &namespace("n"),
    )?;
    for _ in 0..2 {
        let loaded = loader.load();
        assert_eq!(in_force(&loaded), ["p=10.0.0.0/8", "q=12.0.0.0/8", "n"]);
        assert_eq!(loaded.degraded, ["EgressGatewayPolicy p".to_owned()].into());
        let refused: Vec<_> = loaded.refused.iter().map(ToString::to_string).collect();
        assert_eq!(refused, ["EgressGatewayPolicy r"]);
        assert_eq!(loaded.errors_by_file[&file], 2);
    }

    fs::write(&file, policy("q", "12.0.0.0/8"))?;
    let loaded = loader.load();
    assert_eq!(
        in_force(&loaded),
        ["q=12.0.0.0/8"],
        "what is gone from a good file is gone"
    );
    assert_eq!(
        (loaded.degraded.len(), loaded.errors_by_file[&file]),
        (0, 0)
    );

    fs::write(&file, policy("p", "nonsense") + &policy("q", "12.0.0.0/8"))?;
    assert_eq!(
        in_force(&loader.load()),
        ["q=12.0.0.0/8"],
        "and what was gone is not remembered"
    );
    Ok(())
}

#[test]
fn a_broken_document_keeps_what_came_from_its_file() -> Outcome {
    let dir = TempDir::new()?;
    let (one, two) = (dir.path().join("1.yaml"), dir.path().join("2.yaml"));
    fs::write(&one, policy("p", "10.0.0.0/8") + &policy("q", "11.0.0.0/8"))?;
    fs::write(&two, policy("r", "12.0.0.0/8"))?;
    let mut loader = loader(dir.path());
    let _first = loader.load();

    fs::write(&one, policy("p", "13.0.0.0/8") + "---\nkind: [\n")?;
    let loaded = loader.load();
    assert_eq!(
        in_force(&loaded),
        ["p=13.0.0.0/8", "q=11.0.0.0/8", "r=12.0.0.0/8"]
    );
    assert_eq!(loaded.degraded, ["EgressGatewayPolicy q".to_owned()].into());
    assert_eq!(
        (loaded.errors_by_file[&one], loaded.errors_by_file[&two]),
        (1, 0)
    );

    // It moved: the version elsewhere is the one in force.
    fs::write(&two, policy("q", "14.0.0.0/8"))?;
    let loaded = loader.load();
    assert_eq!(in_force(&loaded), ["p=13.0.0.0/8", "q=14.0.0.0/8"]);
    assert_eq!(loaded.degraded.len(), 0);
    Ok(())
}

#[test]
fn what_cannot_be_read_keeps_what_came_from_it() -> Outcome {
    let dir = TempDir::new()?;
    let file = dir.path().join("p.yaml");
    let good = || fs::write(&file, policy("p", "10.0.0.0/8"));
    good()?;
    let mut loader = Loader::new(vec![file.clone()]);
    let _first = loader.load();
    let mut expect = |error: &str, place: &str| -> Outcome {
        let loaded = loader.load();
        let found = only_error(&loaded)?;
        assert!(found.contains(error) && found.contains(place), "{found}");
        assert_eq!(in_force(&loaded), ["p=10.0.0.0/8"], "{error}");
        assert_eq!(loaded.degraded, ["EgressGatewayPolicy p".to_owned()].into());
        assert_eq!(loaded.errors_by_file[&file], 1);
        Ok(())
    };
    fs::remove_file(&file)?;
    expect("No such file", "p.yaml")?;
    fs::write(&file, b"kind: Pod\nmetadata: \xff\n")?;
    expect("not UTF-8 here", "p.yaml:2:11")?;
    fs::remove_file(&file)?;
    symlink("p.yaml", &file)?;
    expect("symbolic links", "p.yaml")?;
    fs::remove_file(&file)?;
    fs::File::create(&file)?.set_len(super::MAX_FILE_BYTES + 1)?;
    expect("larger than 64 MiB", "p.yaml")?;
    fs::remove_file(&file)?;
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU)?;
    expect("not a regular file", "p.yaml")?;
    fs::remove_file(&file)?;
    good()?;
    let loaded = loader.load();
    assert_eq!((errors(&loaded).len(), loaded.degraded.len()), (0, 0));
    Ok(())
}

#[test]
fn a_directory_that_is_missing_keeps_what_came_from_it() -> Outcome {
    let dir = TempDir::new()?;
    let resources = dir.path().join("resources");
    fs::create_dir(&resources)?;
    fs::write(resources.join("p.yaml"), policy("p", "10.0.0.0/8"))?;
    let mut loader = loader(&resources);
    let _first = loader.load();
    fs::rename(&resources, dir.path().join("elsewhere"))?;
    let loaded = loader.load();
    assert_eq!(in_force(&loaded), ["p=10.0.0.0/8"]);
    assert!(only_error(&loaded)?.contains("No such file"));
    Ok(())
}

#[test]
fn links_are_followed_and_their_loops_end() -> Outcome {
    let dir = TempDir::new()?;
    let real = dir.path().join("real");
    fs::create_dir(&real)?;
    fs::write(real.join("p.yaml"), policy("p", "10.0.0.0/8"))?;
    let given = dir.path().join("given");
    fs::create_dir(&given)?;
    symlink("../real", given.join("linked"))?;
    symlink("../given", given.join("loop"))?;
    symlink(".", real.join("self"))?;
    let loaded = loader(&given).load();
    assert_eq!(in_force(&loaded), ["p=10.0.0.0/8"]);
    assert_eq!(errors(&loaded), [""; 0]);
    symlink("nowhere", given.join("dangling.yaml"))?;
    assert!(only_error(&loader(&given).load())?.contains("dangling.yaml"));
    Ok(())
}

#[test]
fn the_same_object_twice_is_an_error_that_names_both_places() -> Outcome {
    let dir = TempDir::new()?;
    let (one, two) = (dir.path().join("1.yaml"), dir.path().join("2.yaml"));
    fs::write(&one, policy("p", "10.0.0.0/8"))?;
    fs::write(&two, namespace("n") + &policy("p", "11.0.0.0/8"))?;
    let loaded = loader(dir.path()).load();
    assert_eq!(in_force(&loaded), ["p=10.0.0.0/8", "n"]);
    let expected = format!(
        "{}:6:18: EgressGatewayPolicy p: the object is at {}:4:18 too (remove one of the two; the first one is in force)",
        two.display(),
        one.display()
    );
    assert_eq!(only_error(&loaded)?, expected);
    assert_eq!(
        (loaded.errors_by_file[&one], loaded.errors_by_file[&two]),
        (0, 1)
    );
    Ok(())
}

#[test]
fn everything_reaches_the_model() -> Outcome {
    let dir = TempDir::new()?;
    fs::write(
        dir.path().join("all.yaml"),
        r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n}}
- {apiVersion: v1, kind: Node, metadata: {name: n1}}
- {apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {name: g, namespace: n}, spec: {nextHops: [192.0.2.1]}}
- {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: i}, spec: {cidr: 10.244.0.0/16}}
- {apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: c}, spec: {cidrs: [10.96.0.0/12]}}
- {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.96.0.1}}
- {apiVersion: projectcalico.org/v3, kind: EgressGatewayPolicy, metadata: {name: p}, spec: {rules: [{gateway: {selector: all()}}]}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}
"#,
    )?;
    let loaded = loader(dir.path()).load();
    assert_eq!(errors(&loaded), [""; 0]);
    let model = &loaded.model;
    assert!(model.pods.contains_key(&ObjectName::new("n", "a")));
    assert!(model.gateways.contains_key(&ObjectName::new("n", "g")));
    assert!(model.nodes.contains_key("n1"));
    assert!(matches!(
        model.policies["p"].rules[0].target,
        Target::Gateways(_)
    ));
    let prefixes: Vec<_> = model
        .cluster_prefixes
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(prefixes, ["10.96.0.0/12", "10.96.0.1/32", "10.244.0.0/16"]);
    assert_eq!(
        loaded.skipped,
        [("apps/v1 Deployment".to_owned(), 1)].into()
    );
    assert_eq!(loaded.places.len(), 7);
    Ok(())
}
