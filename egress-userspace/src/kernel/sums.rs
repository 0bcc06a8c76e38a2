//! Many counts of a per-CPU array at a time, each summed over CPUs.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context as _;
use egress_common::counter::Count;

use super::{maps::not_running, paths::Paths, syscall};

/// Bytes that one system call reads at most.
const BATCH_BYTES: usize = 256 << 10;

/// A per-CPU array of counts, opened from where it is pinned.
pub(super) struct Sums {
    name: &'static str,
    fd: OwnedFd,
    /// CPUs that there can be: an element has a count for each.
    cpus: usize,
    /// Whether the kernel reads one element at a time only: of per-CPU arrays it does before commit f008d732ab18 (5.13).
    one_by_one: AtomicBool,
}

impl Sums {
    pub(super) fn open(paths: &Paths, name: &'static str, cpus: usize) -> anyhow::Result<Self> {
        let path = paths.map(name);
        let fd = syscall::open_pinned(&path).with_context(|| not_running(&path))?;
        Ok(Self {
            name,
            fd,
            cpus,
            one_by_one: AtomicBool::new(false),
        })
    }

    /// The counts at these indexes, in order.
    pub(super) fn read(&self, indexes: Range<u32>) -> anyhow::Result<Vec<Count>> {
        let mut counts = Vec::with_capacity(indexes.len());
        let most = (BATCH_BYTES / (self.cpus * size_of::<Count>())).max(1);
        let mut rest = indexes;
        while !rest.is_empty() {
            let length = rest.len().min(most);
            let words = self
                .words(rest.start, length)
                .with_context(|| format!("cannot read {}[{}]", self.name, rest.start))?;
            counts.extend(words.chunks_exact(self.cpus * 2).map(sum));
            rest.start += u32::try_from(length)?;
        }
        Ok(counts)
    }

    fn words(&self, first: u32, length: usize) -> io::Result<Vec<u64>> {
        let each = self.cpus * 2;
        if !self.one_by_one.load(Ordering::Relaxed) {
            match syscall::lookup_range(self.fd.as_fd(), first, length, each) {
                Err(error) if syscall::is_unsupported(&error) => {
                    self.one_by_one.store(true, Ordering::Relaxed);
                }
                read => return read,
            }
        }
        let mut words = Vec::with_capacity(length * each);
        for index in (first..).take(length) {
            words.extend(syscall::lookup_words(self.fd.as_fd(), index, each)?);
        }
        Ok(words)
    }
}

fn sum(words: &[u64]) -> Count {
    let mut total = Count::default();
    for count in words.as_chunks::<2>().0 {
        total.packets = total.packets.wrapping_add(count[0]);
        total.bytes = total.bytes.wrapping_add(count[1]);
    }
    total
}

/// Sorted numbers as ranges of consecutive ones.
pub(super) fn runs(sorted: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for number in sorted {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_cpus_are_added_up() {
        let count = sum(&[1, 100, 2, 200, 0, 0]);
        assert_eq!((count.packets, count.bytes), (3, 300));
    }

    #[test]
    fn consecutive_numbers_are_read_at_once() {
        assert_eq!(runs([]), []);
        assert_eq!(runs([0, 1, 2, 5, 7, 8]), [0..3, 5..6, 7..9]);
    }
}
