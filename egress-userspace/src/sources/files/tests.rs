//! Loading from real directories: what stays, what goes, what is seen.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Loaded, Loader, watch};
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

/// Watches, and measures how long after the last write a change is told.
struct Watching {
    runtime: tokio::runtime::Runtime,
    changes: tokio::sync::mpsc::Receiver<()>,
    _guard: super::Guard,
}

impl Watching {
    fn new(paths: &[&Path]) -> Result<Self, Box<dyn std::error::Error>> {
        let (sender, changes) = tokio::sync::mpsc::channel(1);
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()?,
            changes,
            _guard: watch(
                paths.iter().map(|path| path.to_path_buf()).collect(),
                sender,
            )?,
        })
    }

    /// Waits for the change; a shared machine gets more time than the promise.
    fn told(&mut self) -> Result<Duration, Box<dyn std::error::Error>> {
        let from = Instant::now();
        let changes = &mut self.changes;
        let told = async { tokio::time::timeout(Duration::from_secs(5), changes.recv()).await };
        self.runtime.block_on(told)?.ok_or("nobody watches")?;
        Ok(from.elapsed())
    }

    /// Nothing is told for a while that is long beside the delay of a message.
    fn silent(&mut self) -> bool {
        let changes = &mut self.changes;
        let told = async { tokio::time::timeout(Duration::from_millis(200), changes.recv()).await };
        self.runtime.block_on(told).is_err()
    }
}

#[test]
fn changes_are_told_and_reading_is_none() -> Outcome {
    let dir = TempDir::new()?;
    let (given, file) = (dir.path().join("given"), dir.path().join("p.yaml"));
    fs::create_dir(&given)?;
    let mut watching = Watching::new(&[&given, &file])?;

    fs::write(&file, policy("p", "10.0.0.0/8"))?;
    watching
        .told()
        .map_err(|error| format!("a file that appears: {error}"))?;
    let mut loader = Loader::new(vec![given.clone(), file.clone()]);
    assert_eq!(in_force(&loader.load()), ["p=10.0.0.0/8"]);
    assert!(watching.silent(), "reading is no change");

    fs::write(dir.path().join("stranger.yaml"), "")?;
    assert!(
        watching.silent(),
        "a stranger beside a given file is no change"
    );

    fs::write(given.join("n.yaml"), namespace("n"))?;
    watching
        .told()
        .map_err(|error| format!("a file in a directory: {error}"))?;

    let below = given.join("one/two");
    fs::create_dir_all(&below)?;
    watching
        .told()
        .map_err(|error| format!("new directories: {error}"))?;
    assert!(watching.silent());
    fs::write(below.join("m.yaml"), namespace("m"))?;
    watching
        .told()
        .map_err(|error| format!("a file in a new directory: {error}"))?;
    assert_eq!(in_force(&loader.load()), ["p=10.0.0.0/8", "m", "n"]);

    let new = dir.path().join("p.new");
    fs::write(&new, policy("p", "11.0.0.0/8"))?;
    fs::rename(&new, &file)?;
    watching
        .told()
        .map_err(|error| format!("a file replaced: {error}"))?;
    assert_eq!(in_force(&loader.load()), ["p=11.0.0.0/8", "m", "n"]);

    fs::remove_file(below.join("m.yaml"))?;
    watching
        .told()
        .map_err(|error| format!("a file removed: {error}"))?;

    // The directory itself is replaced by another of its name.
    fs::rename(&given, dir.path().join("old"))?;
    fs::create_dir(&given)?;
    watching
        .told()
        .map_err(|error| format!("a directory replaced: {error}"))?;
    assert!(watching.silent());
    fs::write(given.join("k.yaml"), namespace("k"))?;
    watching
        .told()
        .map_err(|error| format!("a file in the new one: {error}"))?;
    assert_eq!(in_force(&loader.load()), ["p=11.0.0.0/8", "k"]);
    Ok(())
}

#[test]
fn half_a_file_is_no_change() -> Outcome {
    use std::io::Write as _;
    let dir = TempDir::new()?;
    let path = dir.path().join("p.yaml");
    fs::write(&path, policy("p", "10.0.0.0/8"))?;
    let mut watching = Watching::new(&[dir.path()])?;
    let mut file = fs::File::create(&path)?;
    file.write_all(b"---\n")?;
    assert!(watching.silent(), "it is being written");
    file.write_all(policy("p", "11.0.0.0/8").as_bytes())?;
    drop(file);
    watching.told()?;
    assert!(watching.silent());

    // Who never closes it is not waited for.
    let mut file = fs::File::options().append(true).open(&path)?;
    file.write_all(b"# more\n")?;
    watching.told()?;
    Ok(())
}

#[test]
fn a_config_map_that_is_swapped_is_seen() -> Outcome {
    let dir = TempDir::new()?;
    let mount = dir.path().join("mount");
    let version = |name: &str, cidr: &str| -> std::io::Result<()> {
        fs::create_dir(mount.join(name))?;
        fs::write(mount.join(name).join("p.yaml"), policy("p", cidr))?;
        symlink(name, mount.join("..data_tmp"))?;
        fs::rename(mount.join("..data_tmp"), mount.join("..data"))
    };
    fs::create_dir(&mount)?;
    version("..2024_1", "10.0.0.0/8")?;
    symlink("..data/p.yaml", mount.join("p.yaml"))?;
    let through_link = mount.join("..data/p.yaml");
    for given in [mount.clone(), mount.join("p.yaml"), through_link] {
        let mut watching = Watching::new(&[&given])?;
        let mut loader = loader(&given);
        for (name, cidr) in [("..2024_2", "11.0.0.0/8"), ("..2024_3", "12.0.0.0/8")] {
            let _before = loader.load();
            version(name, cidr)?;
            watching.told()?;
            assert_eq!(
                in_force(&loader.load()),
                [format!("p={cidr}")],
                "{}",
                given.display()
            );
            assert!(watching.silent());
        }
        for name in ["..2024_2", "..2024_3"] {
            fs::remove_dir_all(mount.join(name))?;
        }
    }
    Ok(())
}

#[test]
fn a_path_is_seen_when_it_appears() -> Outcome {
    let dir = TempDir::new()?;
    let given = dir.path().join("not/yet/there");
    let mut watching = Watching::new(&[&given])?;
    fs::create_dir(dir.path().join("not"))?;
    watching.told()?;
    fs::create_dir_all(&given)?;
    watching.told()?;
    assert!(watching.silent());
    fs::write(given.join("n.yaml"), namespace("n"))?;
    watching.told()?;
    Ok(())
}

#[test]
fn the_last_write_is_told_in_time() -> Outcome {
    let dir = TempDir::new()?;
    let file = dir.path().join("p.yaml");
    let mut watching = Watching::new(&[dir.path()])?;
    // The best of a few: the promise is about the watcher, not about a busy machine.
    let mut best = Duration::MAX;
    for round in 0..10 {
        fs::write(&file, policy("p", &format!("{round}.0.0.0/8")))?;
        best = best.min(watching.told()?);
    }
    assert!(best < Duration::from_millis(30), "{best:?}");
    Ok(())
}
