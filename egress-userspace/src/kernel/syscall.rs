//! The `bpf()` commands that aya does not wrap.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use egress_common::maps::LINES;

/// Commands of `enum bpf_cmd`, and a type of `enum bpf_map_type` (`linux/bpf.h`).
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;
const ARRAY_OF_MAPS: u32 = 12;

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

/// The fields of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The fields of `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// Makes the outer map of the line store, with the maps like `template` as its values.
pub(super) fn create_lines(entries: u32, template: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    map_name[..LINES.len()].copy_from_slice(LINES.as_bytes());
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

/// Detaches the link that is pinned at `path`; when this returns no packet meets its program any more.
///
/// Removing the pin alone lets go of the link some time later, by a work queue after a grace period.
///
/// # Errors
/// `ENOLINK` and the like from a link whose interface is gone.
pub(super) fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjectGet {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    let link = owned(bpf(BPF_OBJ_GET, &attributes)?)?;
    let link_fd = u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    bpf(BPF_LINK_DETACH, &LinkDetach { link_fd })?;
    Ok(())
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, which live for the call, and no further than their size;
    // what they point to lives in the callers' frames.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const *attributes,
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just given to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
