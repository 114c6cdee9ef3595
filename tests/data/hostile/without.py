"""Runs a command for which the kernel has no Landlock, no seccomp, or no listener of it, or which lacks root's right to
become another user: `without.py landlock|seccomp|listener|setuid COMMAND…`."""

import ctypes
import os
import platform
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
SECCOMP = 317 if platform.machine() == "x86_64" else 277
what = sys.argv[1]
if what == "setuid":
    # From the bounding set, so that root does not get it by exec either.
    if libc.prctl(24, 7, 0, 0, 0) != 0:
        sys.exit("not dropped: " + os.strerror(ctypes.get_errno()))
    os.execvp(sys.argv[2], sys.argv[2:])
FIRST, LAST = {"landlock": (444, 446), "seccomp": (SECCOMP, SECCOMP), "listener": (SECCOMP, SECCOMP)}[what]
ENOSYS, EBUSY = 38, 16


def step(code, true, false, value):
    return struct.pack("HBBI", code, true, false, value)


program = b"".join(
    (
        step(0x20, 0, 0, 0),
        step(0x35, 0, 2, FIRST),
        step(0x25, 1, 0, LAST),
        step(0x06, 0, 0, 0x00050000 | ENOSYS),
        step(0x06, 0, 0, 0x7FFF0000),
    )
)
if what == "listener":
    # As where a filter around it has one: the second argument has its flag.
    program = b"".join(
        (
            step(0x20, 0, 0, 0),
            step(0x15, 0, 3, SECCOMP),
            step(0x20, 0, 0, 24),
            step(0x45, 0, 1, 8),
            step(0x06, 0, 0, 0x00050000 | EBUSY),
            step(0x06, 0, 0, 0x7FFF0000),
        )
    )
kept = ctypes.create_string_buffer(program, len(program))
filter = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept))
if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, filter, 0, 0) != 0:
    sys.exit("no filter: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
