//! Watching real directories: what is told, and when.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Guard, watch};
use crate::sources::files::{
    Loader,
    tests::{Outcome, in_force, namespace, policy},
};

/// Watches, and measures how long after the last write a change is told.
struct Watching {
    runtime: tokio::runtime::Runtime,
    changes: tokio::sync::mpsc::Receiver<()>,
    _guard: Guard,
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
        let mut loader = Loader::new(vec![given.clone()]);
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
fn a_plain_file_may_become_anything() -> Outcome {
    let dir = TempDir::new()?;
    let (given, elsewhere) = (dir.path().join("given"), dir.path().join("elsewhere"));
    let file = given.join("a.yaml");
    fs::create_dir(&given)?;
    fs::create_dir(&elsewhere)?;
    fs::write(&file, namespace("a"))?;
    let mut watching = Watching::new(&[&given])?;
    for round in 0..2 {
        symlink(&elsewhere, given.join("new"))?;
        fs::rename(given.join("new"), &file)?;
        watching.told()?;
        while !watching.silent() {}
        fs::write(elsewhere.join("b.yaml"), namespace("b"))?;
        watching
            .told()
            .map_err(|error| format!("{round}, behind a link: {error}"))?;
        fs::write(given.join("new"), namespace("a"))?;
        fs::rename(given.join("new"), &file)?;
        watching.told()?;
        while !watching.silent() {}
        fs::write(elsewhere.join("b.yaml"), namespace("c"))?;
        assert!(watching.silent(), "{round}: nothing leads there any more");
        fs::remove_file(&file)?;
        fs::create_dir(&file)?;
        watching.told()?;
        while !watching.silent() {}
        fs::write(file.join("d.yaml"), namespace("d"))?;
        watching
            .told()
            .map_err(|error| format!("{round}, in a directory of its name: {error}"))?;
        fs::remove_dir_all(&file)?;
        fs::write(&file, namespace("a"))?;
        watching.told()?;
        while !watching.silent() {}
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
