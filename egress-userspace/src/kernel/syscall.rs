//! The `bpf()` commands that aya does not wrap.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;

/// Commands of `enum bpf_cmd`, and a type of `enum bpf_map_type` (`linux/bpf.h`).
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_DETACH: libc::c_long = 34;
const ARRAY_OF_MAPS: u32 = 12;
/// Of `enum bpf_attach_type`.
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// What the kernel says of operations that a map does not have (`linux/errno.h`); no number of user space's.
const ENOTSUPP: i32 = 524;
/// Programs that one side of an interface can have at most (`BPF_MPROG_MAX`).
const MOST_PROGRAMS: usize = 64;

/// The first fields of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: i32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// The fields of `union bpf_attr` for `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
struct Element {
    map_fd: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The fields of `union bpf_attr` for `BPF_OBJ_GET` and `BPF_OBJ_PIN`.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The fields of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The first fields of `struct bpf_link_info`, as a TCX link fills them.
#[repr(C)]
#[derive(Default)]
struct TcxLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
}

/// The fields of `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// The fields of `union bpf_attr` for `BPF_PROG_QUERY`, all of them: the kernel writes to the last one.
#[repr(C)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    _padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The fields of `union bpf_attr` for `BPF_PROG_TEST_RUN`, as far as they are used.
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// The fields of `union bpf_attr` for `BPF_MAP_LOOKUP_ELEM`.
#[repr(C)]
struct LookupElement {
    map_fd: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The fields of `union bpf_attr` for `BPF_MAP_LOOKUP_BATCH`.
#[repr(C)]
struct LookupBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Makes an array of maps, with maps like `template` as its values. Its name has at most 15 characters.
pub(super) fn create_array_of_maps(
    name: &str,
    entries: u32,
    template: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    for (to, from) in map_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let attributes = MapCreate {
        map_type: ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries: entries,
        map_flags: 0,
        inner_map_fd: template.as_raw_fd(),
        numa_node: 0,
        map_name,
    };
    owned(bpf(BPF_MAP_CREATE, &attributes)?)
}

/// Takes a map out of an array of maps, which aya does not offer.
///
/// # Errors
/// `ENOENT` where none is.
pub(super) fn remove_inner_map(outer: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let attributes = Element {
        map_fd: number(outer)?,
        _padding: 0,
        key: (&raw const index) as u64,
        value: 0,
        flags: 0,
    };
    bpf(BPF_MAP_DELETE_ELEM, &attributes)?;
    Ok(())
}

/// Opens what is pinned at `path`, whatever it is.
///
/// # Errors
/// `ENOENT` where nothing is.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    owned(bpf(BPF_OBJ_GET, &attributes)?)
}

/// Pins a map, a program or a link.
///
/// # Errors
/// `EEXIST` where something is pinned already.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object {
        pathname: path.as_ptr() as u64,
        bpf_fd: number(object)?,
        file_flags: 0,
    };
    bpf(BPF_OBJ_PIN, &attributes)?;
    Ok(())
}

/// Whether a TCX link is still on its interface: the kernel says interface 0 of one that was detached, or whose
/// interface is gone (kernel commit e420bed02507, 6.6).
pub(super) fn tcx_link_is_attached(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = TcxLinkInfo::default();
    let attributes = InfoByFd {
        bpf_fd: number(link)?,
        info_len: u32::try_from(size_of::<TcxLinkInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(info.ifindex != 0)
}

/// Detaches the link that is pinned at `path`; when this returns no packet meets its program any more.
///
/// Removing the pin alone lets go of the link some time later, by a work queue after a grace period.
///
/// # Errors
/// `ENOLINK` and the like from a link whose interface is gone.
pub(super) fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let link = open_pinned(path)?;
    let link_fd = number(link.as_fd())?;
    bpf(BPF_LINK_DETACH, &LinkDetach { link_fd })?;
    Ok(())
}

/// One of `enum bpf_attach_type`.
pub(super) const fn tcx_side(egress: bool) -> u32 {
    if egress {
        BPF_TCX_EGRESS
    } else {
        BPF_TCX_INGRESS
    }
}

/// The ids of the programs that TCX runs on one side of an interface (kernel commit e420bed02507, 6.6).
///
/// What aya has for this opens each program by its id, which takes CAP_SYS_ADMIN.
///
/// # Errors
/// `EINVAL` from a kernel without TCX, `ENODEV`.
pub(super) fn tcx_programs(ifindex: u32, egress: bool) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut attributes = ProgQuery {
        target_ifindex: ifindex,
        attach_type: tcx_side(egress),
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(MOST_PROGRAMS).map_err(io::Error::other)?,
        _padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    bpf_mut(BPF_PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.count).map_err(io::Error::other)?;
    Ok(ids.into_iter().take(count).collect())
}

/// Runs a TC program once over a frame, which it may not change, and gives what it returned.
pub(super) fn run_classifier(program: impl AsFd, frame: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        prog_fd: number(program.as_fd())?,
        retval: 0,
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    bpf_mut(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(attributes.retval)
}

/// Where a batch ends and the next one begins: a bucket, which no change of the map moves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket(Option<u32>);

/// Reads the next entries of a hash map, whole buckets at a time (kernel commit 057996380a42, 5.6).
///
/// The map's keys and values must have the sizes of `K` and `V`. Gives at most `room` entries, and whether they
/// were the last ones.
///
/// # Errors
/// `ENOSPC` where a bucket has more entries than there is room for.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    room: usize,
    bucket: &mut Bucket,
) -> io::Result<(Vec<(K, V)>, bool)> {
    let mut keys = Vec::<K>::with_capacity(room);
    let mut values = Vec::<V>::with_capacity(room);
    let mut next = 0_u32;
    let mut attributes = LookupBatch {
        in_batch: bucket
            .0
            .as_ref()
            .map_or(0, |bucket| (&raw const *bucket) as u64),
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(room).map_err(io::Error::other)?,
        map_fd: number(map)?,
        elem_flags: 0,
        flags: 0,
    };
    let last = match bpf_mut(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    bucket.0 = Some(next);
    let count = usize::try_from(attributes.count)
        .map_err(io::Error::other)?
        .min(room);
    // SAFETY: the kernel has filled that many of each, of which any bit pattern is a value.
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    Ok((keys.into_iter().zip(values).collect(), last))
}

/// Writes consecutive elements of an array, one after another (kernel commit c60f2d286155, 5.6).
///
/// The map's values must have the size of `T`.
///
/// # Errors
/// What the kernel says, with some of the elements written.
pub(super) fn update_range<T: Pod>(
    map: BorrowedFd<'_>,
    first: u32,
    values: &[T],
) -> io::Result<()> {
    let count = u32::try_from(values.len()).map_err(io::Error::other)?;
    let keys: Vec<u32> = (first..).take(values.len()).collect();
    let mut attributes = LookupBatch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: number(map)?,
        elem_flags: 0,
        flags: 0,
    };
    bpf_mut(BPF_MAP_UPDATE_BATCH, &mut attributes)?;
    Ok(())
}

/// Reads consecutive elements of an array, of so many words each.
///
/// # Errors
/// What [`is_unsupported`] knows, where the kernel reads such maps one element at a time only; fewer elements than asked
/// for.
pub(super) fn lookup_range(
    map: BorrowedFd<'_>,
    first: u32,
    length: usize,
    words: usize,
) -> io::Result<Vec<u64>> {
    let mut keys = vec![0_u32; length];
    let mut values = vec![0_u64; length * words];
    // The kernel goes on after the key that the last batch ended with.
    let before = first.checked_sub(1);
    let mut next = 0_u32;
    let mut attributes = LookupBatch {
        in_batch: before.as_ref().map_or(0, |key| (&raw const *key) as u64),
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(length).map_err(io::Error::other)?,
        map_fd: number(map)?,
        elem_flags: 0,
        flags: 0,
    };
    match bpf_mut(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
        Ok(_) => {}
        // It met the end of the map.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    if usize::try_from(attributes.count).is_ok_and(|count| count == length) {
        Ok(values)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Whether an error means that the map has no batches.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ENOTSUPP | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

/// Reads an element of an array, of so many words.
///
/// # Errors
/// The kernel refuses.
pub(super) fn lookup_words(map: BorrowedFd<'_>, index: u32, words: usize) -> io::Result<Vec<u64>> {
    let mut value = vec![0_u64; words];
    let mut attributes = LookupElement {
        map_fd: number(map)?,
        _padding: 0,
        key: (&raw const index) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    bpf_mut(BPF_MAP_LOOKUP_ELEM, &mut attributes)?;
    Ok(value)
}

pub(super) fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

pub(super) fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    bpf_at(command, &raw const *attributes)
}

/// For commands that answer in their attributes.
fn bpf_mut<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    bpf_at(command, &raw mut *attributes)
}

fn bpf_at<T>(command: libc::c_long, attributes: *const T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, which live for the call, and no further than their size; it
    // writes to them only for commands that come here by `bpf_mut`. What they point to lives in the
    // callers' frames.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(super) fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just given to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
