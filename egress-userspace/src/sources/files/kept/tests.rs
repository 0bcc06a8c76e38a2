//! What a run has kept, and what the next one makes of it, whatever happened in between.

use std::{
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, fs::symlink},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    super::{
        Loaded, Loader,
        tests::{Outcome, errors, in_force, namespace, policy},
    },
    Faults, Keeper, page_of,
};

/// Resources and state, and runs of the agent's loader one after another.
struct Runs {
    dir: TempDir,
}

/// What a run saw.
struct Run {
    loader: Loader,
    faults: Faults,
}

impl Runs {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let dir = TempDir::new()?;
        fs::create_dir(dir.path().join("resources"))?;
        Ok(Self { dir })
    }

    fn resources(&self) -> PathBuf {
        self.dir.path().join("resources")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state/objects")
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        fs::write(self.resources().join(name), text)
    }

    fn run(&self) -> Run {
        self.run_on(vec![self.resources()])
    }

    fn run_on(&self, paths: Vec<PathBuf>) -> Run {
        let faults = Faults::default();
        let keeper = Keeper::new(self.state(), faults.clone());
        Run {
            loader: Loader::keeping(paths, keeper),
            faults,
        }
    }

    /// One run that loads once and ends.
    fn once(&self) -> (Loaded, Faults) {
        let mut run = self.run();
        let loaded = run.loader.load();
        drop(run.loader);
        (loaded, run.faults)
    }

    fn pages(&self) -> std::io::Result<Vec<PathBuf>> {
        let pages = fs::read_dir(self.state())?.map(|entry| entry.map(|entry| entry.path()));
        let mut pages = pages.collect::<Result<Vec<_>, _>>()?;
        pages.sort();
        Ok(pages)
    }
}

#[test]
fn a_restart_goes_on_with_what_cannot_be_read() -> Outcome {
    type Break = fn(&Path) -> std::io::Result<()>;
    let breaks: &[(&str, Break)] = &[
        ("gone, as is its directory", |file| {
            let directory = file.parent().unwrap_or(file);
            fs::rename(directory, directory.with_extension("elsewhere"))
        }),
        ("an empty volume", |file| fs::remove_file(file)),
        ("cut off", |file| fs::write(file, "apiVersion: v1\nkind: [")),
        ("not UTF-8", |file| fs::write(file, b"\xff")),
        ("a directory", |file| {
            fs::remove_file(file)?;
            fs::create_dir(file)
        }),
        ("a pipe", |file| {
            fs::remove_file(file)?;
            Ok(nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU)?)
        }),
        ("a loop of links", |file| {
            fs::remove_file(file)?;
            symlink("p.yaml", file)
        }),
        ("too large", |file| {
            fs::File::create(file)?.set_len(super::MAX_FILE_BYTES + 1)
        }),
        ("refused", |file| {
            fs::write(file, policy("p", "nonsense") + &namespace(""))
        }),
    ];
    for (what, break_it) in breaks {
        let runs = Runs::new()?;
        runs.write("p.yaml", &(policy("p", "10.0.0.0/8") + &namespace("n")))?;
        let (loaded, _) = runs.once();
        assert_eq!(loaded.restored.len(), 0);
        break_it(&runs.resources().join("p.yaml"))?;
        // Twice: what goes on without being read is kept for the run after the next, too.
        for _ in 0..2 {
            let (loaded, faults) = runs.once();
            assert_eq!(in_force(&loaded), ["p=10.0.0.0/8", "n"], "{what}");
            assert!(!errors(&loaded).is_empty(), "{what}");
            assert_eq!(loaded.unknown, [].into(), "{what}");
            let restored: Vec<_> = loaded.restored.values().flatten().collect();
            let expected = ["EgressGatewayPolicy p", "Namespace n"];
            assert_eq!(restored, expected, "{what}");
            assert!(restored.iter().all(|id| loaded.degraded.contains(*id)));
            assert_eq!(faults.all(), [].into(), "{what}");
            let place = loaded.places.values().next().ok_or("no places")?;
            let source = loaded.sources.get(&*place.object.file);
            assert!(source.is_some(), "{what}: {}", place.object);
        }
        let mut run = runs.run();
        assert_eq!(in_force(&run.loader.load()), ["p=10.0.0.0/8", "n"]);
        let file = runs.resources().join("p.yaml");
        if file.is_dir() {
            fs::remove_dir(&file)?;
        }
        fs::remove_file(&file).ok();
        fs::create_dir_all(runs.resources())?;
        runs.write("p.yaml", &policy("p", "11.0.0.0/8"))?;
        let loaded = run.loader.load();
        assert_eq!(in_force(&loaded), ["p=11.0.0.0/8"], "{what}");
        assert_eq!((loaded.restored.len(), loaded.degraded.len()), (0, 0));
        assert_eq!(loaded.sources.len(), 1, "{what}");
    }
    Ok(())
}

/// Of the forms that Calico has for one policy, only what is stored judges both directions without saying so.
#[test]
fn network_policies_are_kept_as_they_were_written() -> Outcome {
    let policy = |name: &str, version: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: {version}, kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
        )
    };
    let (stored, served) = ("crd.projectcalico.org/v1", "projectcalico.org/v3");
    let runs = Runs::new()?;
    let good = policy("a", stored, "selector: has(a)") + &policy("b", served, "selector: has(b)");
    runs.write("p.yaml", &good)?;
    let before = runs.once().0.model.network_policies;
    assert_eq!(before.keys().collect::<Vec<_>>(), ["GlobalNetworkPolicy a"]);
    runs.write("p.yaml", &policy("a", stored, "selector: nonsense"))?;
    for _ in 0..2 {
        let (loaded, _) = runs.once();
        assert_eq!(loaded.model.network_policies, before);
        assert!(loaded.degraded.contains("GlobalNetworkPolicy a"));
    }
    // One that was never good selects all that it might.
    runs.write("p.yaml", &policy("c", stored, "selector: nonsense"))?;
    let (loaded, _) = runs.once();
    assert_eq!(
        loaded.model.network_policies["GlobalNetworkPolicy c"]
            .pods
            .to_string(),
        "all()"
    );
    Ok(())
}

#[test]
fn what_is_gone_from_what_can_be_read_is_gone() -> Outcome {
    let runs = Runs::new()?;
    runs.write("p.yaml", &policy("p", "10.0.0.0/8"))?;
    runs.write(
        "q.yaml",
        &(policy("q", "11.0.0.0/8") + &policy("r", "12.0.0.0/8")),
    )?;
    runs.once();
    assert_eq!(runs.pages()?.len(), 2);

    fs::remove_file(runs.resources().join("p.yaml"))?;
    runs.write("q.yaml", &policy("r", "12.0.0.0/8"))?;
    let (loaded, _) = runs.once();
    assert_eq!(in_force(&loaded), ["r=12.0.0.0/8"]);
    assert_eq!(loaded.restored.len(), 0);
    assert_eq!(runs.pages()?.len(), 1);
    runs.write("q.yaml", "kind: [")?;
    assert_eq!(in_force(&runs.once().0), ["r=12.0.0.0/8"]);

    // Moved while nobody looked, and broken there: the same object, wherever it is.
    fs::remove_file(runs.resources().join("q.yaml"))?;
    runs.write("s.yaml", &policy("r", "nonsense"))?;
    for _ in 0..2 {
        let (loaded, _) = runs.once();
        assert_eq!(in_force(&loaded), ["r=12.0.0.0/8"]);
        let file = runs.resources().join("s.yaml");
        assert_eq!(loaded.restored.keys().collect::<Vec<_>>(), [&file]);
    }

    // Other resources are other resources.
    let other = runs.dir.path().join("other");
    fs::create_dir(&other)?;
    let loaded = runs.run_on(vec![other]).loader.load();
    assert_eq!(in_force(&loaded), [""; 0]);
    assert_eq!(errors(&loaded), [""; 0]);
    Ok(())
}

#[test]
fn an_empty_directory_is_waited_for_until_something_is_in_it() -> Outcome {
    let runs = Runs::new()?;
    assert_eq!(errors(&runs.once().0), [""; 0], "there was nothing before");
    runs.write("p.yaml", &policy("p", "10.0.0.0/8"))?;
    runs.once();
    fs::remove_file(runs.resources().join("p.yaml"))?;
    let mut run = runs.run();
    for _ in 0..2 {
        let loaded = run.loader.load();
        assert_eq!(in_force(&loaded), ["p=10.0.0.0/8"]);
        assert!(errors(&loaded)[0].contains("there is no manifest in it"));
    }
    runs.write("none.yaml", "")?;
    let loaded = run.loader.load();
    assert_eq!((in_force(&loaded).len(), errors(&loaded).len()), (0, 0));
    // Who empties it before the agent's eyes means it.
    fs::remove_file(runs.resources().join("none.yaml"))?;
    assert_eq!(errors(&run.loader.load()), [""; 0]);
    Ok(())
}

#[test]
fn a_file_that_was_never_read_in_full_is_unknown() -> Outcome {
    let runs = Runs::new()?;
    let file = runs.resources().join("p.yaml");
    runs.write("p.yaml", &(policy("p", "10.0.0.0/8") + "---\nkind: [\n"))?;
    for _ in 0..2 {
        let (loaded, _) = runs.once();
        assert_eq!(in_force(&loaded), ["p=10.0.0.0/8"]);
        assert_eq!(loaded.unknown, [file.clone()].into());
    }
    runs.write("p.yaml", "kind: [")?;
    let (loaded, _) = runs.once();
    assert_eq!(
        in_force(&loaded),
        ["p=10.0.0.0/8"],
        "a part is better than nothing"
    );
    assert_eq!(loaded.unknown, [file].into());
    runs.write("p.yaml", "")?;
    assert_eq!(runs.once().0.unknown, [].into());
    runs.write("p.yaml", "kind: [")?;
    assert_eq!(runs.once().0.unknown, [].into(), "it was empty");

    fs::rename(runs.resources(), runs.dir.path().join("elsewhere"))?;
    assert_eq!(runs.once().0.unknown, [].into());
    fs::remove_dir_all(runs.state())?;
    assert_eq!(runs.once().0.unknown, [runs.resources()].into());
    Ok(())
}

#[test]
fn a_broken_state_directory_costs_what_it_held_and_nothing_else() -> Outcome {
    type Break = fn(&Path) -> std::io::Result<()>;
    fn above(page: &Path) -> &Path {
        page.parent().unwrap_or(page)
    }
    let breaks: &[(&str, Break)] = &[
        ("empty", |page| fs::write(page, "")),
        ("cut off", |page| {
            let text = fs::read_to_string(page)?;
            fs::write(page, &text[..text.len() - 9])
        }),
        ("another bit", |page| {
            fs::write(page, fs::read_to_string(page)?.replace("10.0", "10.4"))
        }),
        ("not UTF-8", |page| fs::write(page, b"\xff\xfe")),
        ("zeroes", |page| fs::write(page, [0; 5000])),
        ("another format", |page| {
            let text = fs::read_to_string(page)?;
            fs::write(page, text.replace("last good 1", "last good 2"))
        }),
        ("a directory", |page| {
            fs::remove_file(page)?;
            fs::create_dir_all(page.join("x"))
        }),
        ("a pipe", |page| {
            fs::remove_file(page)?;
            Ok(nix::unistd::mkfifo(page, nix::sys::stat::Mode::S_IRWXU)?)
        }),
        ("a link", |page| {
            fs::rename(page, page.with_extension("moved"))?;
            symlink(page.with_extension("moved"), page)
        }),
        ("anybody's", |page| {
            fs::set_permissions(page, fs::Permissions::from_mode(0o666))
        }),
        ("anybody's directory", |page| {
            fs::set_permissions(above(page), fs::Permissions::from_mode(0o777))
        }),
        ("a file for a directory", |page| {
            fs::remove_dir_all(above(page))?;
            fs::write(above(page), "x")
        }),
        ("a link for a directory", |page| {
            let (directory, moved) = (above(page), above(page).with_extension("moved"));
            fs::rename(directory, &moved)?;
            symlink(moved, directory)
        }),
    ];
    for (what, break_it) in breaks {
        let runs = Runs::new()?;
        runs.write("p.yaml", &policy("p", "10.0.0.0/8"))?;
        runs.write("q.yaml", &policy("q", "11.0.0.0/8"))?;
        runs.once();
        let page = page_of(&runs.state(), &runs.resources().join("p.yaml"));
        break_it(&page).map_err(|error| format!("{what}: {error}"))?;
        runs.write("p.yaml", "kind: [")?;

        let mut run = runs.run();
        let loaded = run.loader.load();
        assert!(
            in_force(&loaded).contains(&"q=11.0.0.0/8".to_owned()),
            "{what}"
        );
        assert!(!loaded.model.policies.contains_key("p"), "{what}");
        assert_eq!(loaded.unknown.len(), 1, "{what}");
        assert_eq!(run.faults.all().len(), 1, "{what}: {:?}", run.faults.all());

        // It is made anew.
        runs.write("p.yaml", &policy("p", "10.0.0.0/8"))?;
        run.loader.load();
        drop(run.loader);
        assert_eq!(
            run.faults.all().len(),
            1,
            "{what}: what was lost stays lost"
        );
        runs.write("p.yaml", "kind: [")?;
        let (loaded, faults) = runs.once();
        assert_eq!(
            in_force(&loaded),
            ["p=10.0.0.0/8", "q=11.0.0.0/8"],
            "{what}"
        );
        assert_eq!(faults.all(), [].into(), "{what}");
    }
    Ok(())
}

#[test]
fn a_state_directory_that_cannot_be_written_is_said_and_no_more() -> Outcome {
    let runs = Runs::new()?;
    fs::write(
        runs.dir.path().join("state"),
        "a file where a directory should be",
    )?;
    runs.write("p.yaml", &policy("p", "10.0.0.0/8"))?;
    let (loaded, faults) = runs.once();
    assert_eq!(in_force(&loaded), ["p=10.0.0.0/8"]);
    let faults: Vec<_> = faults.all().into_values().collect();
    assert!(
        faults
            .iter()
            .any(|fault| fault.contains("p.yaml is not kept")),
        "{faults:?}"
    );
    Ok(())
}

#[test]
fn every_kind_comes_back_as_it_was() -> Outcome {
    let runs = Runs::new()?;
    let all = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n, labels: {x: "1", y: "é\u2028"}, annotations: {egress.projectcalico.org/egressGatewayPolicy: p}}, spec: {nodeName: n1, containers: [{name: c}]}, status: {podIP: 10.0.0.1, phase: Running}}
- {apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.9}]}}
- {apiVersion: egress.fastpath/v1alpha1, kind: EgressGateway, metadata: {name: g, namespace: n}, spec: {nextHops: [192.0.2.1], weight: 7}}
- {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: i}, spec: {cidr: 10.244.0.0/16}}
- {apiVersion: networking.k8s.io/v1beta1, kind: ServiceCIDR, metadata: {name: c}, spec: {cidrs: [10.96.0.0/12]}}
- {apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.96.0.1}}
---
apiVersion: projectcalico.org/v3
kind: EgressGatewayPolicyList
items:
- metadata: {name: p}
  spec:
    rules:
    - description: >
        folded
        text
      gateway: {selector: "all()"}
    - destination: {cidr: 10.0.0.0/8}
---
{apiVersion: v1, kind: NamespaceList, items: [{metadata: {name: n}}]}
"#;
    runs.write("all.yaml", all)?;
    let (before, _) = runs.once();
    assert_eq!(errors(&before), [""; 0]);
    assert_eq!(before.places.len(), 8);
    runs.write("all.yaml", "kind: [")?;
    let (after, faults) = runs.once();
    assert_eq!(after.model, before.model);
    assert_eq!(faults.all(), [].into());
    let state: Vec<_> = runs.pages()?;
    assert_eq!(state.len(), 1);
    let mode = |path: &Path| fs::metadata(path).map(|m| m.permissions().mode() & 0o777);
    assert_eq!((mode(&runs.state())?, mode(&state[0])?), (0o700, 0o600));
    Ok(())
}

#[test]
fn a_page_is_written_when_its_content_changes() -> Outcome {
    use std::os::unix::fs::MetadataExt as _;
    let runs = Runs::new()?;
    let file = runs.resources().join("p.yaml");
    let page = page_of(&runs.state(), &file);
    runs.write("p.yaml", &policy("p", "10.0.0.0/8"))?;
    runs.once();
    let written = |page: &Path| fs::metadata(page).map(|m| (m.ino(), m.mtime_nsec()));
    let mut run = runs.run();
    run.loader.load();
    drop(run.loader);
    let first = written(&page)?;
    let mut run = runs.run();
    run.loader.load();
    run.loader.load();
    runs.write("p.yaml", "kind: [")?;
    run.loader.load();
    runs.write("p.yaml", &(policy("p", "10.0.0.0/8") + "# another comment"))?;
    run.loader.load();
    drop(run.loader);
    assert_eq!(written(&page)?, first, "nothing new was said");
    Ok(())
}

#[test]
fn the_last_of_what_comes_and_goes_is_kept() -> Outcome {
    let runs = Runs::new()?;
    let mut run = runs.run();
    runs.write("first.yaml", &policy("first", "10.0.0.0/8"))?;
    run.loader.load();
    // Faster than pages are written.
    for round in 0..20 {
        runs.write("stays.yaml", &policy("p", &format!("{round}.0.0.0/8")))?;
        runs.write("goes.yaml", &policy("q", "10.0.0.0/8"))?;
        run.loader.load();
        fs::remove_file(runs.resources().join("goes.yaml"))?;
        run.loader.load();
    }
    drop(run.loader);
    let page = |name: &str| page_of(&runs.state(), &runs.resources().join(name));
    let mut expected = [page("first.yaml"), page("stays.yaml")];
    expected.sort();
    assert_eq!(runs.pages()?, expected);
    assert!(fs::read_to_string(page("stays.yaml"))?.contains("19.0.0.0/8"));
    Ok(())
}

#[test]
fn paths_of_any_kind_are_found_again() -> Outcome {
    for name in ["with space %41.yaml", "new\nline.yaml", "é.yaml"]
        .map(|name| name.as_bytes().to_vec())
        .into_iter()
        .chain([b"\xff\xfe.yaml".to_vec()])
    {
        let runs = Runs::new()?;
        let file = runs.resources().join(std::ffi::OsStr::from_bytes(&name));
        fs::write(&file, policy("p", "10.0.0.0/8"))?;
        runs.once();
        fs::write(&file, "kind: [")?;
        let (loaded, _) = runs.once();
        assert_eq!(in_force(&loaded), ["p=10.0.0.0/8"]);
        assert_eq!(loaded.restored.keys().collect::<Vec<_>>(), [&file]);
    }
    Ok(())
}

#[test]
fn nothing_is_left_when_it_is_removed() -> Outcome {
    let runs = Runs::new()?;
    runs.write("p.yaml", &policy("p", "10.0.0.0/8"))?;
    runs.once();
    let page = runs.pages()?[0].clone();
    fs::write(page.with_extension("new"), "half")?;
    fs::write(page.with_extension("broken"), "x")?;
    super::remove(&runs.state())?;
    assert!(!runs.state().exists());
    super::remove(&runs.state())?;
    Ok(())
}
