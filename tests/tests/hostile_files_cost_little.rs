//! Whatever a file is or holds, reading it ends soon, takes little memory, and says what is wrong.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::{agent::binary, wait};
use nix::sys::resource::{UsageWho, getrusage};

/// What reading may take on a loaded machine, in a binary that was not optimised.
const PATIENCE: Duration = Duration::from_secs(200);
/// Kilobytes that the reader may have in memory: the tree of one document may have a quarter of it.
const MEMORY: i64 = 1 << 20;

const OBJECT: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: n";

fn repeated(path: &Path, head: &str, part: &str, times: usize) -> Result<()> {
    let mut file = std::io::BufWriter::new(File::create(path)?);
    file.write_all(head.as_bytes())?;
    for _ in 0..times {
        file.write_all(part.as_bytes())?;
    }
    Ok(file.flush()?)
}

/// Rows that take a binary that was not optimised a minute and more.
const HEAVY: [&str; 8] = [
    "6 MB of comments",
    "a wide list",
    "a wide map",
    "100,000 broken documents",
    "300,000 documents",
    "100,000 times the same object",
    "a text without an end",
    "a text repeated",
];

#[test]
fn reading_ends_soon_and_takes_little_memory() -> Result<()> {
    read_all(false)
}

#[test]
#[ignore = "soak: reads large files for minutes"]
fn reading_large_files_ends_and_takes_little_memory() -> Result<()> {
    read_all(true)
}

fn read_all(heavy: bool) -> Result<()> {
    type Make = fn(&Path) -> Result<()>;
    let rows: &[(&str, Make, &[&str])] = &[
        (
            "100 MB",
            |path| Ok(File::create(path)?.set_len(100_000_000)?),
            &["larger than 64 MiB"],
        ),
        (
            "100 MB of text",
            |path| repeated(path, "", "# 3456789\n", 10_000_000),
            &["larger than 64 MiB"],
        ),
        (
            "6 MB of comments",
            |path| repeated(path, "a: 1\n", "# 3456789\n", 600_000),
            &["no `kind`"],
        ),
        (
            "a wide list",
            |path| repeated(path, "a: [", "1,", 6_000_000),
            &["more than 256 MiB"],
        ),
        (
            "a wide map",
            |path| repeated(path, "a:\n", " b: {}\n", 3_000_000),
            &["more than 256 MiB"],
        ),
        (
            "deep lists",
            |path| repeated(path, "a: ", "[", 1_000_000),
            &["p.yaml:1:"],
        ),
        (
            "deep maps",
            |path| repeated(path, "", "- ", 1_000_000),
            &["p.yaml:1:"],
        ),
        (
            "a text repeated",
            |path| {
                let text = format!("a: &a {}\n", "x".repeat(1 << 20));
                let aliases: String = (0..40_000).map(|n| format!("b{n}: *a\n")).collect();
                Ok(fs::write(path, text + &aliases)?)
            },
            &["budget breached: ScalarBytes"],
        ),
        (
            "a billion laughs",
            |path| {
                let mut text = "a0: &a0 [lol]\n".to_owned();
                for level in 1..40 {
                    let aliases = format!("*a{}, ", level - 1).repeat(10);
                    text += &format!("a{level}: &a{level} [{aliases}]\n");
                }
                Ok(fs::write(path, text)?)
            },
            &["p.yaml:"],
        ),
        (
            "100,000 broken documents",
            |path| repeated(path, "", "---\nkind: [\n", 100_000),
            &["99000 more errors"],
        ),
        (
            "300,000 documents",
            |path| repeated(path, "", "---\na\n", 300_000),
            &["more than 200000 documents"],
        ),
        (
            "100,000 times the same object",
            |path| repeated(path, "", &format!("{OBJECT}}}\n"), 100_000),
            &["the object is at"],
        ),
        (
            "a text without an end",
            |path| repeated(path, "a: \"", "x\n", 2_000_000),
            &["not valid YAML"],
        ),
        (
            "not UTF-8",
            |path| Ok(fs::write(path, b"kind: \xff")?),
            &["not UTF-8 here"],
        ),
        (
            "zeroes",
            |path| Ok(fs::write(path, vec![0; 1 << 20])?),
            &["p.yaml"],
        ),
        (
            "a link to itself",
            |path| Ok(symlink("p.yaml", path)?),
            &["symbolic links"],
        ),
        (
            "a link to nothing",
            |path| Ok(symlink("nothing", path)?),
            &["No such file"],
        ),
        (
            "an endless device",
            |path| Ok(symlink("/dev/zero", path)?),
            &["not a regular file"],
        ),
        (
            "a pipe",
            |path| Ok(nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU)?),
            &["not a regular file"],
        ),
        (
            "a directory of directories of loops",
            |path| {
                let mut at = path.to_owned();
                for _ in 0..150 {
                    fs::create_dir(&at)?;
                    symlink("..", at.join("up"))?;
                    symlink(path, at.join("top"))?;
                    at.push("below");
                }
                fs::write(at.with_file_name("x.yaml"), "kind: [")?;
                Ok(())
            },
            &["x.yaml"],
        ),
    ];
    let dir = tempfile::tempdir()?;
    for (what, make, expected) in rows
        .iter()
        .filter(|(what, ..)| HEAVY.contains(what) == heavy)
    {
        let inside = dir.path().join(what.replace(' ', "-"));
        fs::create_dir(&inside)?;
        let path = inside.join("p.yaml");
        make(&path).context(*what)?;
        let began = Instant::now();
        let output = File::create(inside.join("output"))?;
        let mut child = Command::new(binary("egress", "EGRESS_BIN")?)
            .args(["validate"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let ended = wait::until_within("it ends", PATIENCE, || {
            child.try_wait()?.context("it is still reading")
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let status = ended.context(*what)?;
        let said = fs::read(inside.join("output"))?;
        let said = String::from_utf8_lossy(&said);
        let shown: String = said.chars().take(2000).collect();
        ensure!(status.code() == Some(1), "{what}: {status}, {shown}");
        for part in *expected {
            ensure!(
                said.contains(part),
                "{what}: it does not say {part:?}: {shown}"
            );
        }
        ensure!(said.len() < 8 << 20, "{what}: it says {} bytes", said.len());
        let memory = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
        println!("{what}: {:?}; at most {memory} KiB so far", began.elapsed());
        ensure!(memory < MEMORY, "{what}: {memory} KiB");
        fs::remove_dir_all(&inside)?;
    }
    Ok(())
}
