//! Everything a scene leaves outside its own process, under one name, so that it can be removed.
//!
//! A workspace is called `eg<pid>-<n>`: its network namespaces are `/run/netns/eg<pid>-<n>-<host>`, its
//! files and its private bpffs are in `/run/egress-tests/eg<pid>-<n>`. A process removes its own on drop
//! and on SIGINT, SIGTERM and SIGHUP; what a killed process left is removed by whoever comes next.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{Host, host::run, wait};

const FILES: &str = "/run/egress-tests";
const NAMESPACES: &str = "/run/netns";

/// Held while something is made that outlives the process, and for good once a signal has cleaned up.
static GATE: Mutex<()> = Mutex::new(());
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The owner of a scene's namespaces, files and pins.
#[derive(Debug)]
pub struct Workspace {
    name: String,
}

impl Workspace {
    /// An empty workspace; leftovers of dead processes are removed first.
    pub fn new() -> Result<Self> {
        if !geteuid().is_root() {
            bail!("this makes network namespaces and loads eBPF programs: run it as root");
        }
        clean_up_on_signals();
        let gate = gate();
        let _one_process_at_a_time = lock()?;
        remove_leftovers();
        let name = format!(
            "{}{}",
            prefix(process::id()),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let workspace = Self { name };
        fs::create_dir_all(workspace.files())
            .with_context(|| format!("cannot make {}", workspace.files().display()))?;
        let bpffs = workspace.bpffs();
        fs::create_dir(&bpffs)?;
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount a bpffs on {}", bpffs.display()))?;
        drop(gate);
        Ok(workspace)
    }

    /// A new host, connected to nothing.
    pub fn host(&self, role: &str) -> Result<Host> {
        let namespace = format!("{}-{role}", self.name);
        let _gate = gate();
        let _one_process_at_a_time = lock()?;
        run(process::Command::new("ip").args(["netns", "add", &namespace]))?;
        Ok(Host::new(role, Path::new(NAMESPACES).join(namespace)))
    }

    /// A directory for files of this scene.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        Path::new(FILES).join(&self.name)
    }

    /// Where this scene's own bpffs is mounted.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.files().join("bpf")
    }

    /// What exists of this workspace outside the process: paths and process numbers.
    #[must_use]
    pub fn remains(&self) -> Vec<String> {
        remains_of(&self.name)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _gate = gate();
        remove_namespaces(&format!("{}-", self.name));
        remove_files(&self.files());
    }
}

/// What exists of any workspace of the process `pid`: paths and process numbers.
#[must_use]
pub fn remains(pid: u32) -> Vec<String> {
    remains_of(&prefix(pid))
}

fn remains_of(prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for namespace in entries(Path::new(NAMESPACES), prefix) {
        found.extend(
            processes_in(&namespace)
                .iter()
                .map(|pid| format!("process {pid}")),
        );
        found.push(namespace.display().to_string());
    }
    found.extend(
        entries(Path::new(FILES), prefix)
            .iter()
            .map(|path| path.display().to_string()),
    );
    found
}

fn prefix(pid: u32) -> String {
    format!("eg{pid}-")
}

fn gate() -> MutexGuard<'static, ()> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `ip netns add` prepares its directory at first use, and two at once trip over each other.
fn lock() -> Result<Flock<fs::File>> {
    fs::create_dir_all(FILES)?;
    let file = fs::File::create(Path::new(FILES).join("lock"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot lock the directory of test scenes")
}

/// Takes SIGINT, SIGTERM and SIGHUP over: remove everything of this process, then end as the signal would.
fn clean_up_on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (installed, wait) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let number = wait_for_signal(&installed);
            // Nothing new can be made from here on: the gate stays shut until the process is gone.
            let _gate = gate();
            let own = prefix(process::id());
            remove_namespaces(&own);
            for files in entries(Path::new(FILES), &own) {
                remove_files(&files);
            }
            end_children();
            process::exit(128 + number.unwrap_or(0));
        });
        // An answer is an installed handler, no answer a thread that ended: nothing to wait for either way.
        let _ = wait.recv();
    });
}

fn wait_for_signal(installed: &std::sync::mpsc::Sender<()>) -> io::Result<i32> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let _ = installed.send(());
        tokio::select! {
            _ = interrupt.recv() => Ok(2),
            _ = terminate.recv() => Ok(15),
            _ = hangup.recv() => Ok(1),
        }
    })
}

fn remove_leftovers() {
    let namespaces = entries(Path::new(NAMESPACES), "eg");
    let files = entries(Path::new(FILES), "eg");
    for path in namespaces.iter().chain(&files) {
        let owner = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix("eg")?.split('-').next())
            .and_then(|pid| pid.parse().ok());
        let Some(owner) = owner else { continue };
        if kill(Pid::from_raw(owner), None) == Err(Errno::ESRCH) {
            let own = prefix(owner.unsigned_abs());
            remove_namespaces(&own);
            for files in entries(Path::new(FILES), &own) {
                remove_files(&files);
            }
        }
    }
}

/// Removes the namespaces whose name starts with `prefix`, with what runs inside.
fn remove_namespaces(prefix: &str) {
    for namespace in entries(Path::new(NAMESPACES), prefix) {
        for pid in processes_in(&namespace) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // What is gone already is as good as removed.
        let _ = umount2(&namespace, MntFlags::MNT_DETACH);
        drop(fs::remove_file(&namespace));
    }
}

fn remove_files(files: &Path) {
    // Everything pinned goes with the mount.
    let _ = umount2(&files.join("bpf"), MntFlags::MNT_DETACH);
    drop(fs::remove_dir_all(files));
}

/// The processes whose network is `namespace`: only ones that were started for this scene can be there.
fn processes_in(namespace: &Path) -> Vec<Pid> {
    let Ok(wanted) = fs::metadata(namespace) else {
        return Vec::new();
    };
    entries(Path::new("/proc"), "")
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
        })
        .map(Pid::from_raw)
        .collect()
}

/// Ends what this process has started, which may not have entered its namespace yet: with the namespace's
/// name gone, nothing that starts from now on can.
fn end_children() {
    let gone = wait::until("the processes of the scene end", || {
        let living = living_children();
        for pid in &living {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        ensure!(living.is_empty(), "these live on: {living:?}");
        Ok(())
    });
    // There is nobody left to tell but the caller of the process, who gets its exit code.
    drop(gone);
}

fn living_children() -> Vec<Pid> {
    entries(Path::new("/proc"), "")
        .iter()
        .filter_map(|path| {
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            // `pid (name) state parent …`, and a name may hold anything.
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let (state, parent) = (fields.next()?, fields.next()?.parse::<u32>().ok()?);
            (state != "Z" && process::id() == parent).then_some(Pid::from_raw(pid))
        })
        .collect()
}

fn entries(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(prefix))
        })
        .collect()
}
