//! The names of counters, as they are kept: all of them once, and then what changes.
//!
//! A node may have a hundred thousand names, and an apply gives a few. The file has a line for each time that names were
//! kept: a checksum, and JSON that it is of. The first line has all names, the others what has changed since the line
//! before. A checksum counts in that of the line before, so lines are only good together and in their order. A last line
//! that is not whole is what a crash has left of names that nothing in the kernel counts for yet: it is as if it were not
//! there. Whoever begins to keep names begins with a new file, so nothing is ever added behind such a line.
//!
//! What is added is not waited for until it is on a disk: names mean nothing without the kernel's counters, and those do not
//! outlive the kernel. That is why the file says of which boot it is, too.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{boot, write_anew};
use crate::{
    model::ObjectName,
    state::{MemberLabel, Names},
};

/// Bytes of changes that are never a reason to write all anew.
const FEW: u64 = 64 << 10;

type Checksum = [u8; 32];

/// The first line.
#[derive(Serialize, Deserialize)]
struct First<'a, N> {
    /// Counters do not outlive the kernel that they are in.
    boot: &'a str,
    names: N,
}

/// What makes of some names others.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Changes {
    /// None is one that is gone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    policies: BTreeMap<String, Option<u32>>,
    /// Members' numbers that nothing has any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unnamed: Vec<u32>,
    /// New members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<(MemberLabel, u32)>,
    /// All of them, if any is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateways: Option<Vec<(ObjectName, u32)>>,
    /// All of them, if any is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<BTreeMap<String, u32>>,
}

/// Names that are being kept.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// What the file says.
    names: Arc<Names>,
    checksum: Checksum,
    /// Bytes of the first line, and of all others.
    first: u64,
    others: u64,
}

impl Journal {
    /// Begins a file; when this returns it survives a crash.
    pub(super) fn begin(path: &Path, names: &Arc<Names>) -> anyhow::Result<Self> {
        let first = First {
            boot: &boot()?,
            names: &**names,
        };
        let (line, checksum) = line(Checksum::default(), &first)?;
        let file = write_anew(&line, path)?;
        Ok(Self {
            file,
            names: Arc::clone(names),
            checksum,
            first: line.len() as u64,
            others: 0,
        })
    }

    /// Keeps other names from now on; when this returns they survive the process.
    ///
    /// Once this has failed, what the file says is not known, and it has to be begun anew.
    pub(super) fn keep(&mut self, names: &Arc<Names>) -> anyhow::Result<()> {
        let changes = Changes::between(&self.names, names);
        if changes != Changes::default() {
            let (line, checksum) = line(self.checksum, &changes)?;
            self.file.write_all(&line)?;
            self.checksum = checksum;
            self.others += line.len() as u64;
        }
        self.names = Arc::clone(names);
        Ok(())
    }

    /// Whether it can be gone on with: names are in the order of their numbers, and nobody has removed the file.
    pub(super) fn takes(&self, names: &Names) -> bool {
        let in_order = |names: &Names| names.members.is_sorted_by(|a, b| a.1 < b.1);
        self.is_there() && in_order(&self.names) && in_order(names)
    }

    /// Whether nobody has removed the file.
    pub(super) fn is_there(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.nlink() > 0)
    }

    /// Whether more was added than there was at first.
    pub(super) fn is_long(&self) -> bool {
        self.others > self.first.max(FEW)
    }

    /// What it says.
    pub(super) fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
    }
}

/// Reads what was kept; what is not there, or of another boot, is as good as empty.
pub(super) fn read(path: &Path) -> anyhow::Result<Names> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Names::default()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    understand(&bytes).with_context(|| format!("cannot understand {}", path.display()))
}

/// What a file of names says.
pub(super) fn understand(bytes: &[u8]) -> anyhow::Result<Names> {
    // As agents wrote it that kept all names each time.
    if bytes.first() == Some(&b'{') {
        return Ok(serde_json::from_slice(bytes)?);
    }
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let first = lines.next().context("it is empty")?;
    let (mut checksum, json) = content(Checksum::default(), first).context("its first line")?;
    let First { boot: of, names } = serde_json::from_slice::<First<'_, Names>>(json)?;
    if of != boot()? {
        return Ok(Names::default());
    }
    let mut read = Read::from(names);
    let mut lines = lines.enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        match content(checksum, line) {
            Ok((next, json)) => {
                checksum = next;
                read.change(serde_json::from_slice(json)?);
            }
            // Half of it was written.
            Err(_) if lines.peek().is_none() && !line.ends_with(b"\n") => {}
            Err(error) => return Err(error.context(format!("its line {}", number + 2))),
        }
    }
    Ok(read.finish())
}

/// A line, and the checksum in it.
fn line(before: Checksum, what: &impl Serialize) -> anyhow::Result<(Vec<u8>, Checksum)> {
    let json = serde_json::to_vec(what)?;
    let checksum = sum(before, &json);
    let mut line = Vec::with_capacity(json.len() + 2 * checksum.len() + 2);
    for byte in checksum {
        write!(line, "{byte:02x}")?;
    }
    line.push(b' ');
    line.extend(json);
    line.push(b'\n');
    Ok((line, checksum))
}

/// What a line has, and the checksum of it.
fn content(before: Checksum, line: &[u8]) -> anyhow::Result<(Checksum, &[u8])> {
    let Some(line) = line.strip_suffix(b"\n") else {
        bail!("is not whole");
    };
    let (written, rest) = line
        .split_at_checked(2 * size_of::<Checksum>())
        .context("is too short")?;
    let json = rest.strip_prefix(b" ").context("has no checksum")?;
    let checksum = sum(before, json);
    let mut digits = Vec::with_capacity(written.len());
    for byte in checksum {
        write!(digits, "{byte:02x}")?;
    }
    ensure!(digits == written, "has a wrong checksum");
    Ok((checksum, json))
}

fn sum(before: Checksum, json: &[u8]) -> Checksum {
    let mut hasher = Sha256::new();
    hasher.update(before);
    hasher.update(json);
    hasher.finalize().into()
}

impl Changes {
    /// From some names to others, both in the order of their numbers.
    fn between(before: &Names, after: &Names) -> Self {
        let mut changes = Self::default();
        for (policy, id) in &after.policies {
            if before.policies.get(policy) != Some(id) {
                changes.policies.insert(policy.clone(), Some(*id));
            }
        }
        for policy in before.policies.keys() {
            if !after.policies.contains_key(policy) {
                changes.policies.insert(policy.clone(), None);
            }
        }
        let mut old = before.members.iter().peekable();
        for (label, id) in &after.members {
            while let Some((_, gone)) = old.next_if(|(_, old)| old < id) {
                changes.unnamed.push(*gone);
            }
            // Most are the same in memory, and are not looked at.
            let is_known = old.next_if(|(_, old)| old == id);
            if is_known.is_none_or(|(known, _)| known != label) {
                changes.members.push((MemberLabel::clone(label), *id));
            }
        }
        changes.unnamed.extend(old.map(|(_, gone)| *gone));
        if before.gateways != after.gateways {
            let pairs = after.gateways.iter().map(|(name, id)| (name.clone(), *id));
            changes.gateways = Some(pairs.collect());
        }
        if before.nodes != after.nodes {
            changes.nodes = Some(after.nodes.clone());
        }
        changes
    }
}

/// Names that are being read.
struct Read {
    names: Names,
    /// Those of members, by their numbers.
    members: BTreeMap<u32, Arc<MemberLabel>>,
}

impl From<Names> for Read {
    fn from(mut names: Names) -> Self {
        let members = std::mem::take(&mut names.members).into_iter();
        Self {
            members: members.map(|(label, id)| (id, label)).collect(),
            names,
        }
    }
}

impl Read {
    fn change(&mut self, changes: Changes) {
        for (policy, id) in changes.policies {
            match id {
                Some(id) => drop(self.names.policies.insert(policy, id)),
                None => drop(self.names.policies.remove(&policy)),
            }
        }
        for id in changes.unnamed {
            self.members.remove(&id);
        }
        for (label, id) in changes.members {
            self.members.insert(id, Arc::new(label));
        }
        if let Some(gateways) = changes.gateways {
            self.names.gateways = gateways.into_iter().collect();
        }
        if let Some(nodes) = changes.nodes {
            self.names.nodes = nodes;
        }
    }

    fn finish(self) -> Names {
        let members = self.members.into_iter();
        Names {
            members: members.map(|(id, label)| (label, id)).collect(),
            ..self.names
        }
    }
}

#[cfg(test)]
mod tests;
