//! What is kept in `fuzz/corpus`, and changes of it: what an ordinary test can find without libFuzzer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Target, listen};
use crate::packets::{build::hex, random::Random};

/// The seed of the changes: the same ones every time.
const SEED: u64 = 0x6567_7265_7373;
/// Bytes of an input that changes make at most.
const LARGEST: usize = 4096;

/// What has happened since the last input.
static NEW: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// What is kept of a target, by name.
///
/// # Errors
/// There is nothing, or it cannot be read.
pub fn kept(target: Target) -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = root().join("corpus").join(target.name());
    let mut kept = BTreeMap::new();
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        kept.insert(name.into_owned(), bytes);
    }
    ensure!(!kept.is_empty(), "nothing is kept in {}", folder.display());
    Ok(kept)
}

/// Runs everything that is kept.
///
/// # Errors
/// The corpus cannot be read.
pub fn replay(target: Target) -> Result<usize> {
    let kept = kept(target)?;
    for (name, bytes) in &kept {
        // Cargo shows the last one with what failed.
        println!("{}/{name}", target.name());
        target.run(bytes);
    }
    Ok(kept.len())
}

/// Runs changes of what is kept: so many, or as many as there is time for. Gives how many.
///
/// # Errors
/// The corpus cannot be read.
pub fn change(target: Target, most: usize, time: Duration) -> Result<usize> {
    listen(|feature| {
        if let Ok(mut new) = NEW.lock() {
            new.insert(feature);
        }
    });
    let mut pool: Vec<Vec<u8>> = kept(target)?.into_values().collect();
    let words = words(target)?;
    let mut random = Random::from_seed(SEED);
    let mut known = BTreeSet::new();
    let start = Instant::now();
    for done in 0..most {
        if start.elapsed() > time {
            return Ok(done);
        }
        let input = changed(&mut random, &pool, &words);
        let shown = Shown(target, &input);
        target.run(&input);
        drop(shown);
        let happened = NEW.lock().map(|mut new| std::mem::take(&mut *new));
        let before = known.len();
        known.extend(happened.unwrap_or_default());
        if known.len() > before {
            pool.push(input);
        }
    }
    Ok(most)
}

/// An input that is told if it fails.
struct Shown<'a>(Target, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("{} fails with {}", self.0.name(), hex(self.1));
        }
    }
}

/// One input with a few changes.
fn changed(random: &mut Random, pool: &[Vec<u8>], words: &[Vec<u8>]) -> Vec<u8> {
    let mut input = random.one_of(pool).clone();
    for _ in 0..=random.below(5) {
        let at = random.below(input.len() + 1);
        let length = random.below(input.len() - at + 1).min(64);
        match random.below(8) {
            0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 if at < input.len() => input[at] = *random.one_of(&[0, 1, 0x7f, 0x80, 0xff]),
            3 => input.insert(at, random.next_u8()),
            4 => drop(input.drain(at..at + length)),
            5 => {
                let copy = input[at..at + length].to_vec();
                insert(&mut input, at, &copy);
            }
            6 => {
                let other = random.one_of(pool);
                let from = random.below(other.len() + 1);
                let length = random.below(other.len() - from + 1);
                insert(&mut input, at, &other[from..from + length]);
            }
            7 if !words.is_empty() => insert(&mut input, at, &words[random.below(words.len())]),
            _ if at < input.len() => input[at] = random.next_u8(),
            _ => {}
        }
    }
    input.truncate(LARGEST);
    input
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    drop(input.splice(at..at, bytes.iter().copied()));
}

/// What the target's language is made of: libFuzzer's dictionary, an entry in quotes on each line.
fn words(target: Target) -> Result<Vec<Vec<u8>>> {
    let path = root()
        .join("dictionaries")
        .join(format!("{}.dict", target.name()));
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let quoted = text
        .lines()
        .filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    let plain = quoted.map(|word| word.replace("\\x0a", "\n").replace("\\\"", "\""));
    Ok(plain.map(String::into_bytes).collect())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}
