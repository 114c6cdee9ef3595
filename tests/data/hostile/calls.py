#!/usr/bin/env python3
"""Makes each of some system calls, each in a process of its own, with one value for all arguments: `calls.py ARGUMENT
NUMBER…`. Says what came of each: an error's name, the value, how the process ended, or that it was still blocked
after some time."""

import ctypes
import errno
import os
import signal
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
argument = ctypes.c_long(int(sys.argv[1]))
PATIENCE = 4


def make(number):
    said, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        result = libc.syscall(ctypes.c_long(number), *[argument] * 6)
        name = errno.errorcode.get(ctypes.get_errno(), "?") if result < 0 else "0" if result == 0 else "value"
        os.write(says, name.encode())
        os._exit(0)
    os.close(says)
    return pid, said


def end(pid, said, until):
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = None
            break
        time.sleep(0.001)
    os.set_blocking(said, False)
    try:
        name = os.read(said, 64).decode()
    except BlockingIOError:
        name = ""
    os.close(said)
    if name:
        # fork and its like say something twice.
        return "0" if name.startswith("0") else name.removesuffix("0")
    if status is None:
        return "blocked"
    return "signal%d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else "exited"


numbers = [int(it) for it in sys.argv[2:]]
answers = []
for at in range(0, len(numbers), 16):
    made = [make(number) for number in numbers[at : at + 16]]
    until = time.monotonic() + PATIENCE
    answers += [end(pid, said, until) for pid, said in made]
print("[OUTPUT]" + " ".join("EOPNOTSUPP" if it == "ENOTSUP" else it for it in answers))
