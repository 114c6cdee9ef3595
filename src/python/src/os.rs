//! The two things that the operating system offers and no safe wrapper does.
//!
//! May not grow: whatever rustix or Python itself can do is done there.
#![allow(unsafe_code)] // see each block; the rest of the crate has none

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_setfd};

unsafe extern "C" {
    // SAFETY: with a null pointer fflush takes every open stream, under their own locks.
    fn fflush(stream: *mut c_void) -> c_int;
}

/// Takes over a descriptor that was handed to this process by number.
pub fn adopt(fd: i32) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} cannot be the host's socket"),
        ));
    }
    // SAFETY: not -1; used only for a call that fails cleanly when nothing is open under the number.
    fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::CLOEXEC)?;
    // SAFETY: open (just shown), and the caller gave it away: nothing else in this process uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes out what C code (an extension module that calls printf) left in its buffers: `_exit` would lose it.
pub fn flush_c_streams() {
    // SAFETY: see the declaration.
    unsafe { fflush(std::ptr::null_mut()) };
}
