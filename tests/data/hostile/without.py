"""Runs a command for which the kernel has no Landlock, or no seccomp: `without.py landlock|seccomp COMMAND…`."""

import ctypes
import os
import platform
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
SECCOMP = 317 if platform.machine() == "x86_64" else 277
FIRST, LAST = {"landlock": (444, 446), "seccomp": (SECCOMP, SECCOMP)}[sys.argv[1]]
ENOSYS = 38


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
kept = ctypes.create_string_buffer(program, len(program))
filter = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept))
if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, filter, 0, 0) != 0:
    sys.exit("no filter: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
