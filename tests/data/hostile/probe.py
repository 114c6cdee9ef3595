#!/usr/bin/env python3
"""What a hostile node tries, one probe a call: as a program (`probe.py NAME [ARGUMENT]`) or as a Python
function (`probe`). A probe says `open` where it got through, and else what stopped it."""

import ctypes
import errno
import fcntl
import os
import platform
import resource
import shutil
import signal
import socket
import struct
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"


def call(number, *arguments):
    """A system call by its number on x86-64 and on the others."""
    result = libc.syscall(ctypes.c_long(number[0] if X86 else number[1]), *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def long(value):
    return ctypes.c_long(value)


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def mem(pid):
    os.close(os.open("/proc/%s/mem" % pid, os.O_RDONLY))


def vm(pid):
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("PN", 4096, 8)
    try:
        call((310, 270), long(int(pid)), local, long(1), remote, long(1), long(0))
    except OSError as error:
        # It was looked there, and there is nothing at that address.
        if error.errno != errno.EFAULT:
            raise


def ptrace(pid):
    call((101, 117), long(0x4206), long(int(pid)), long(0), long(0))


def pidfd(pid):
    descriptor = call((434, 434), long(int(pid)), long(0))
    call((424, 424), long(descriptor), long(0), long(0), long(0))


def steal_fd(pid):
    descriptor = call((434, 434), long(int(pid)), long(0))
    os.close(call((438, 438), long(descriptor), long(0), long(0)))


def tcp(address, protocol=0, first=b""):
    host, port = address.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as it:
        it.settimeout(2)
        if first:
            try:
                it.sendto(first, 0x20000000, (host, int(port)))
            except BlockingIOError:
                pass  # on its way
        else:
            it.connect((host, int(port)))


def udp(address):
    host, port = address.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as it:
        it.sendto(b"x", (host, int(port)))


def unix(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as it:
        it.connect(path if path.startswith("/") else "\0" + path)


def hide():
    """Closes its memory, and with that its list of open files, to whoever counts them."""
    if libc.prctl(4, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "it stays open")


def files_apart():
    """A table of open files of its own, which nobody looks at who looks at another thread's."""
    call((436, 436), long(1_000_000), long(1_000_001), long(2))


def kind(family, how, protocol=0):
    socket.socket(family, how, protocol).close()


def child(flags):
    """A process by clone with these flags."""
    pid = call((56, 220), long(flags | signal.SIGCHLD), long(0), long(0), long(0), long(0))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def clone3():
    bad((435, 435), long(0), long(64))


def bad(number, *arguments):
    """A call that makes no sense: refused for its arguments, it got through."""
    try:
        call(number, *arguments)
    except OSError as error:
        if error.errno not in (errno.EFAULT, errno.EINVAL, errno.EBADF, errno.ENOENT, errno.ENODEV, errno.E2BIG):
            raise


def shm():
    segment = call((29, 194), long(0), long(4096), long(0o600))
    call((31, 195), long(segment), long(0), long(0))


def kill_above():
    """Whoever began shortly before its parent: the launcher, apscli, other nodes."""
    refused = None
    for pid in range(os.getppid() - 1, max(1, os.getppid() - 200), -1):
        try:
            os.kill(pid, 0)
            return
        except ProcessLookupError:
            pass
        except PermissionError as error:
            refused = error
    raise refused or OSError(errno.ESRCH, "there is nobody")


def wait_for(path):
    until = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < until:
        time.sleep(0.01)


def fork_after(path):
    """Fifty processes, once there is a file."""
    wait_for(path)
    for _ in range(50):
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)


def crowd_until(path):
    """Forty threads, which count as processes, until there is a file."""
    threading.stack_size(256 * 1024)
    for _ in range(39):
        threading.Thread(target=wait_for, args=(path,)).start()
    wait_for(path)


def write(path):
    with open(path, "a") as file:
        file.write("x")


def link_out(path):
    os.symlink(path, "link")
    write("link")


def follow(path):
    os.symlink(path, "followed")
    read("followed")


def hard_link(path):
    os.link(path, "hard")
    read("hard")


def move_out(path):
    write("mine")
    os.rename("mine", path)


def move_inside():
    """From a folder to another, as who replaces a file in one step does."""
    os.mkdir("here")
    os.mkdir("there")
    write("here/file")
    os.link("here/file", "there/link")
    os.rename("here/file", "there/file")
    os.rename("there", "here/there")


def make_device():
    os.mknod("device", 0o600 | 0o020000, os.makedev(1, 3))


def script_runs():
    with open("script", "w") as file:
        file.write("#!/bin/sh\necho fine > /dev/stderr; echo fine > /dev/null; cat /dev/fd/0 < /dev/null\n")
    os.chmod("script", 0o700)
    if os.system("./script") != 0:
        raise OSError(0, "a script of its own does not run")


def terminal():
    """Types a letter for whoever reads from a terminal."""
    try:
        fcntl.ioctl(0, 0x5412, b"x")
    except OSError as error:
        # It is none.
        if error.errno != errno.ENOTTY:
            raise


def chown():
    write("owned")
    os.chown("owned", 1, 1)


def session():
    """Whether it shares the terminal of whoever started it."""
    if os.getsid(0) != os.getsid(os.getppid()):
        raise OSError(errno.EPERM, "it has a session of its own")


def files_for_others():
    if os.umask(0o77) & 0o77 == 0o77:
        raise OSError(errno.EACCES, "they are its own")


def new_privileges():
    """Whether a setuid program would get its owner's rights."""
    if libc.prctl(39, 0, 0, 0, 0) == 1:
        raise OSError(errno.EPERM, "there are none to be had")


def limits():
    """Says which limits are higher than any fence sets them."""
    most = {
        "AS": 1 << 30,
        "CPU": 3600,
        "NOFILE": 1024,
        "FSIZE": 64 << 20,
        "CORE": 1,
        "MEMLOCK": 64 << 10,
        "MSGQUEUE": 0,
        "NPROC": 10_000,
    }
    over = []
    for name, value in most.items():
        soft, hard = resource.getrlimit(getattr(resource, "RLIMIT_" + name, 12))
        if not (0 <= soft <= value and 0 <= hard <= value):
            over.append(name)
    return "bounded" if not over else "unbounded: " + " ".join(over)


BATCH, CLASS_IDLE = 3, 3 << 13


def number(pid, numbers, *arguments):
    """A call whose first argument is a process's number."""
    call(numbers, long(int(pid)), *arguments)


def room(size=64):
    return ctypes.create_string_buffer(size)


def as_it_is():
    """The limit of a file's size that this process has."""
    return struct.pack("qq", *resource.getrlimit(resource.RLIMIT_FSIZE))


def attributes():
    return struct.pack("IIQiIQQQ", 48, BATCH, 0, 7, 0, 0, 0, 0)


def clock(pid):
    """The processor time of a process: a clock whose number is the process's."""
    call((228, 113), long(~int(pid) << 3 | 2), room())


ABOUT = {
    "get_affinity": lambda pid: number(pid, (204, 123), long(64), room()),
    "get_scheduler": lambda pid: number(pid, (145, 120)),
    "get_param": lambda pid: number(pid, (143, 121), room()),
    "get_attr": lambda pid: number(pid, (315, 275), room(), long(48), long(0)),
    "get_interval": lambda pid: number(pid, (148, 127), room()),
    "get_priority": lambda pid: call((140, 141), long(0), long(int(pid))),
    "get_io_priority": lambda pid: call((252, 31), long(1), long(int(pid))),
    "get_limit": lambda pid: number(pid, (302, 261), long(7), long(0), room()),
    "get_clock": clock,
    "get_group": lambda pid: number(pid, (121, 155)),
    "get_session": lambda pid: number(pid, (124, 156)),
}
CHANGES = {
    "set_affinity": lambda pid: number(pid, (203, 122), long(8), b"\xff" * 8),
    "set_scheduler": lambda pid: number(pid, (144, 119), long(BATCH), bytes(4)),
    "set_param": lambda pid: number(pid, (142, 118), bytes(4)),
    "set_attr": lambda pid: number(pid, (314, 274), attributes(), long(0)),
    "set_priority": lambda pid: call((141, 140), long(0), long(int(pid)), long(7)),
    "set_io_priority": lambda pid: call((251, 30), long(1), long(int(pid)), long(CLASS_IDLE)),
    "set_limit": lambda pid: number(pid, (302, 261), long(1), as_it_is(), long(0)),
}


def on_group(which, who):
    """A priority of many at once."""
    call((141, 140), long(which), long(who), long(7))


def limit_parent():
    """Few open files for who watches over it: it would see no more of them."""
    number(os.getppid(), (302, 261), long(7), struct.pack("QQ", 4, 4), long(0))


def own_process():
    """What libraries ask and set of themselves, by number 0 and by their own numbers."""
    for pid in (0, os.getpid()):
        for do in (ABOUT | CHANGES).values():
            do(pid)
    said = []

    def in_a_thread():
        try:
            for pid in (0, threading.get_native_id()):
                for name, do in (ABOUT | CHANGES).items():
                    # That is of whole processes.
                    if name != "get_clock":
                        do(pid)
            time.clock_gettime(time.pthread_getcpuclockid(threading.get_ident()))
        except OSError as error:
            said.append(error)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    # A runtime that has started another thread sets its processors.
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        CHANGES["set_affinity"](thread.native_id)
    finally:
        done.set()
    thread.join()
    child = os.fork()
    if child == 0:
        time.sleep(10)
        os._exit(0)
    try:
        for name, do in ABOUT.items():
            do(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for error in said:
        raise error


def opened(path, do):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        do(descriptor)
    finally:
        os.close(descriptor)


def chmod2(base, path, mode, flags):
    call((452, 452), long(base), path.encode(), long(mode), long(flags))


def at_link(path, do):
    os.symlink(path, "out")
    try:
        do("out")
    finally:
        os.unlink("out")


def times(path, *arguments):
    os.utime(path, (1, 2), *arguments)


def attribute(path):
    os.setxattr(path, "user.apscli", b"x")


def new_with(mode):
    os.close(os.open("new", os.O_CREAT | os.O_RDWR, mode))


def set_flags(descriptor):
    """The flags that it has already."""
    flags = room(8)
    fcntl.ioctl(descriptor, 0x80086601, flags)
    fcntl.ioctl(descriptor, 0x40086602, flags)


def modes_inside():
    """All ways to change modes and times of its own files, and what comes of it."""
    os.makedirs("own/below")
    write("own/file")
    os.symlink("file", "own/link")
    mode = 0o600

    def changed(do, path="own/file"):
        nonlocal mode
        mode = 0o640 if mode == 0o600 else 0o600
        do(mode)
        if os.stat(path).st_mode & 0o7777 != mode:
            raise OSError(errno.EIO, "it stays as it was")

    here = os.open("own", os.O_RDONLY)
    file = os.open("own/file", os.O_RDONLY)
    only = os.open("own/file", os.O_PATH)
    changed(lambda mode: os.chmod("own/file", mode))
    changed(lambda mode: os.chmod(os.path.abspath("own/file"), mode))
    changed(lambda mode: os.chmod("own/below/../link", mode))
    changed(lambda mode: os.fchmod(file, mode))
    changed(lambda mode: os.chmod("file", mode, dir_fd=here))
    changed(lambda mode: os.chmod("/proc/self/fd/%d" % file, mode))
    changed(lambda mode: os.chmod("/dev/fd/%d" % file, mode))
    changed(lambda mode: chmod2(here, "file", mode, 0x100))
    changed(lambda mode: chmod2(only, "", mode, 0x1000))
    os.chmod("own", 0o755)
    os.chmod(".", 0o700)
    now = 0

    def touched(do):
        nonlocal now
        now += 1000
        do((now, now + 1))
        if (os.stat("own/file").st_atime, os.stat("own/file").st_mtime) != (now, now + 1):
            raise OSError(errno.EIO, "it stays as it was")

    touched(lambda both: os.utime("own/file", both))
    touched(lambda both: os.utime("own/link", both))
    touched(lambda both: os.utime(file, both))
    touched(lambda both: os.utime("file", both, dir_fd=here))
    if X86:
        seconds = lambda both: struct.pack("qq", *both)
        micros = lambda both: struct.pack("qqqq", both[0], 0, both[1], 0)
        touched(lambda both: call((132, 0), b"own/file", seconds(both)))
        touched(lambda both: call((235, 0), b"own/file", micros(both)))
        touched(lambda both: call((261, 0), long(here), b"file", micros(both)))
    os.utime("own/file")
    if abs(os.stat("own/file").st_mtime - time.time()) > 60:
        raise OSError(errno.EIO, "that is not now")
    os.utime("own/link", (5, 6), follow_symlinks=False)
    if os.lstat("own/link").st_mtime != 6 or os.stat("own/file").st_mtime == 6:
        raise OSError(errno.EIO, "that is not the link")
    os.unlink("own/file")
    os.fchmod(file, 0o644)
    os.utime(file, (7, 8))
    if os.fstat(file).st_mode & 0o777 != 0o644:
        raise OSError(errno.EIO, "it stays as it was")
    for path, do in (("none", lambda: os.chmod("none", 0o600)), ("none/x", lambda: os.utime("none/x"))):
        try:
            do()
        except FileNotFoundError:
            continue
        raise OSError(errno.EIO, path + " is not there")
    os.mkdir("wide", 0o6755)
    if os.stat("wide").st_mode & 0o6000:
        raise OSError(errno.EIO, "a directory has it")
    shutil.rmtree("own")
    os.rmdir("wide")
    for descriptor in (here, file, only):
        os.close(descriptor)


def exchange(one, other):
    call((316, 276), long(-100), one, long(-100), other, long(2))


def race(path):
    """Changes modes and times of its own, while another process swaps them for links to what is not its
    own, and a thread the path in memory."""
    write("mine")
    os.symlink(path, "theirs")
    os.mkdir("dir")
    os.symlink(os.path.dirname(path), "link")
    until = time.monotonic() + 2
    if os.fork() == 0:
        while time.monotonic() < until:
            exchange(b"mine", b"theirs")
            os.chmod("dir", 0) if not os.path.islink("dir") else None
            exchange(b"dir", b"link")
        os._exit(0)
    name = ctypes.create_string_buffer(b"mine", 4096)

    def swap():
        while time.monotonic() < until:
            name.value = path.encode()
            name.value = b"mine"

    threading.Thread(target=swap).start()
    while time.monotonic() < until:
        for numbers, mode in (((90, 0), 0o4777), ((90, 0), 0o777)) if X86 else ():
            libc.syscall(ctypes.c_long(numbers[0]), name, long(mode))
        libc.syscall(ctypes.c_long(268 if X86 else 53), long(-100), b"mine", long(0o777))
        libc.syscall(ctypes.c_long(280 if X86 else 88), long(-100), name, struct.pack("qqqq", 1, 0, 1, 0), long(0))
    os.wait()


PROBES = {
    "chmod_out": lambda path: os.chmod(path, 0o666),
    "chmod_same": lambda path: os.chmod(path, 0o600),
    "chmod2_out": lambda path: chmod2(-100, path, 0o666, 0),
    "chmod2_nofollow": lambda path: chmod2(-100, path, 0o666, 0x100),
    "chmod_directory": lambda path: os.chmod(os.path.dirname(path), 0o777),
    "chmod_link": lambda path: at_link(path, lambda link: os.chmod(link, 0o666)),
    "chmod_up": lambda path: os.chmod(os.path.relpath(path), 0o666),
    "chmod_at": lambda path: opened("/", lambda it: os.chmod(path[1:], 0o666, dir_fd=it)),
    "chmod_read_only": lambda path: opened(path, lambda it: os.fchmod(it, 0o755)),
    "chmod_by_number": lambda path: opened(path, lambda it: os.chmod("/proc/self/fd/%d" % it, 0o755)),
    "chmod_empty_path": lambda path: opened(path, lambda it: chmod2(it, "", 0o755, 0x1000)),
    "chmod_parent_link": lambda path: os.chmod("/proc/%d/root/%s" % (os.getpid(), path), 0o666),
    "times_out": times,
    "times_now": lambda path: os.utime(path),
    "times_link": lambda path: at_link(path, times),
    "times_read_only": lambda path: opened(path, times),
    "times_utime": lambda path: call((132, 0), path.encode(), long(0)),
    "times_utimes": lambda path: call((235, 0), path.encode(), long(0)),
    "times_futimesat": lambda path: call((261, 0), long(-100), path.encode(), long(0)),
    "chown_out": lambda path: os.chown(path, -1, -1),
    "chown_link": lambda path: os.lchown(path, -1, -1),
    "chown_read_only": lambda path: opened(path, lambda it: os.fchown(it, -1, -1)),
    "set_attribute": attribute,
    "get_attribute": lambda path: os.getxattr(path, "user.apscli"),
    "list_attributes": lambda path: os.listxattr(path),
    "remove_attribute": lambda path: os.removexattr(path, "user.apscli"),
    "set_attribute_read_only": lambda path: opened(path, attribute),
    "set_user_id": lambda: (write("s"), os.chmod("s", 0o4755)),
    "set_group_id": lambda: (write("s"), opened("s", lambda it: os.fchmod(it, 0o2755))),
    "set_user_id_open": lambda: new_with(0o4755),
    "set_group_id_open": lambda: new_with(0o2755),
    "set_user_id_mknod": lambda: os.mknod("node", 0o104755),
    "openat2": lambda: bad((437, 437), long(-100), long(0), long(0), long(24)),
    "watch": lambda: os.close(call((294, 26), long(0))),
    "watch_add": lambda: bad((254, 27), long(-1), b"/", long(2)),
    "notice": lambda: opened("/usr", lambda it: fcntl.fcntl(it, 1026, 1)),
    "lease": lambda path: opened(path, lambda it: fcntl.fcntl(it, 1024, fcntl.F_RDLCK)),
    "flags_read_only": lambda path: opened(path, set_flags),
    "mounts": lambda: bad((457, 457), long(0), long(0), long(0), long(0)),
    "users_priority": lambda: on_group(2, 0),
    "groups_priority": lambda pid: on_group(1, int(pid)),
    "limit_parent": limit_parent,
    "own_process": own_process,
    "modes_inside": modes_inside,
    "race": race,
    **ABOUT,
    **CHANGES,
    "read": read,
    "list": lambda path: os.listdir(path),
    "environ": lambda pid: read("/proc/%s/environ" % pid),
    "cmdline": lambda pid: read("/proc/%s/cmdline" % pid),
    "fds": lambda pid: os.listdir("/proc/%s/fd" % pid),
    "mem": mem,
    "vm": vm,
    "ptrace": ptrace,
    "kill": lambda pid: os.kill(int(pid), 0),
    "kill_parent": lambda: os.kill(os.getppid(), 0),
    "kill_above": kill_above,
    "pidfd": pidfd,
    "steal_fd": steal_fd,
    "tcp": tcp,
    "mptcp": lambda address: tcp(address, 262),
    "fastopen": lambda address: tcp(address, 0, b"x"),
    "udp": udp,
    "tcp6": lambda: kind(socket.AF_INET6, socket.SOCK_STREAM),
    "raw": lambda: kind(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "icmp": lambda: kind(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
    "seqpacket": lambda: kind(socket.AF_INET, socket.SOCK_SEQPACKET),
    "netlink": lambda: kind(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet": lambda: kind(socket.AF_PACKET, socket.SOCK_DGRAM),
    "alg": lambda: kind(38, socket.SOCK_SEQPACKET),
    "vsock": lambda: kind(40, socket.SOCK_STREAM),
    "unix": unix,
    "unix_without_file": unix,
    "pair": lambda: socket.socketpair(socket.AF_UNIX),
    "datagram_pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "foreign_pair": lambda: socket.socketpair(socket.AF_INET, socket.SOCK_STREAM),
    "unshare_user": lambda: call((272, 97), long(0x10000000)),
    "unshare_net": lambda: call((272, 97), long(0x40000000)),
    "setns": lambda: bad((308, 268), long(-1), long(0)),
    "clone_user": lambda: child(0x10000000),
    "clone": lambda: child(0),
    "clone3": clone3,
    "wait_for": wait_for,
    "fork_after": fork_after,
    "crowd_until": crowd_until,
    "chroot": lambda: bad((161, 51), long(0)),
    "mount": lambda: bad((165, 40), long(0), long(0), long(0), long(0), long(0)),
    "bpf": lambda: bad((321, 280), long(9999), long(0), long(0)),
    "io_uring": lambda: bad((425, 425), long(1), long(0)),
    "keyctl": lambda: call((250, 219), long(0), long(-3), long(0), long(0), long(0)),
    "add_key": lambda: bad((248, 217), long(0), long(0), long(0), long(0), long(0)),
    "perf": lambda: bad((298, 241), long(0), long(0), long(-1), long(-1), long(0)),
    "userfaultfd": lambda: call((323, 282), long(1)),
    "memfd": lambda: os.memfd_create("x"),
    "shm": shm,
    "x32": lambda: bad((0x40000000 + 165, 40), long(0), long(0), long(0), long(0), long(0)),
    "newest": lambda: bad((468, 468), long(-1), long(0), long(0), long(0), long(0)),
    "terminal": terminal,
    "chown": chown,
    "session": session,
    "hide": hide,
    "files_apart": files_apart,
    "canary": lambda: "open" if "CANARY" in os.environ else "unset",
    "files_for_others": files_for_others,
    "new_privileges": new_privileges,
    "limits": limits,
    "inherited": lambda: os.read(9, 1),
    "follow": follow,
    "hard_link": hard_link,
    "write": write,
    "link_out": link_out,
    "move_out": move_out,
    "device": make_device,
    "write_inside": lambda: write("inside"),
    "script": script_runs,
    "move_inside": move_inside,
}


def fork(until):
    """Tries for as long as there may be no more processes, but not for ever."""
    while True:
        try:
            return os.fork()
        except BlockingIOError:
            if time.monotonic() > until:
                os._exit(0)
            time.sleep(0.001)


def swarm():
    """Forty processes, each of which hands on to another in a session of its own and ends: who lists
    them and then ends them is always late. Without a fence it ends by itself after ten seconds."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + 10
    for _ in range(40):
        if fork(until) == 0:
            while time.monotonic() < until:
                os.setsid()
                time.sleep(0.001)
                if fork(until) > 0:
                    os._exit(0)
            os._exit(0)
    time.sleep(10)


def flood():
    """Each starts others as fast as it can, all in sessions of their own, which no signal to a group
    reaches. Without a fence it ends by itself after a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if fork(until) == 0:
            os.setsid()


def breed():
    """Children without end; without a fence it ends by itself after some thousands."""
    until = time.monotonic() + 10
    for _ in range(4000):
        if fork(until) == 0:
            time.sleep(max(0.0, until - time.monotonic()))
            os._exit(0)
    time.sleep(max(0.0, until - time.monotonic()))


def fill():
    """10 GiB: many files, each within its limit."""
    for name in range(10 * 1024):
        with open("file%d" % name, "wb") as file:
            file.write(b"x" * 1024 * 1024)


def blind():
    """The same, once it has taken from who watches over it what that needs to look."""
    for pid in range(max(2, os.getppid() - 50), os.getppid() + 1):
        for resource_number in (7, 0, 1, 9):
            limit = struct.pack("QQ", 4, 4)
            libc.syscall(ctypes.c_long(302 if X86 else 261), long(pid), long(resource_number), limit, long(0))
    fill()


def ask():
    """Asks the launcher without end, in processes that are killed while they ask, and takes more than it may
    meanwhile."""
    write("x")
    if os.fork() == 0:
        askers = []
        while True:
            pid = os.fork()
            if pid == 0:
                while True:
                    os.chmod("x", 0o600)
            askers.append(pid)
            if len(askers) > 8:
                os.kill(askers.pop(0), signal.SIGKILL)
                os.wait()
    time.sleep(0.5)
    for name in range(10 * 1024):
        with open("file%d" % name, "wb") as file:
            file.write(b"x" * 1024 * 1024)
        time.sleep(0.01)


def shuffle():
    """80 MiB in directories, in each of which no file stays."""
    for name in "abcd":
        os.mkdir(name)
    for name in range(20):
        with open("a/%d" % name, "wb") as file:
            file.write(b"x" * 4 * 1024 * 1024)
    at = 0
    while True:
        for name in range(20):
            os.rename("%s/%d" % ("abcd"[at % 4], name), "%s/%d" % ("abcd"[(at + 1) % 4], name))
        at += 1


def fill_unnamed():
    kept = []
    for name in range(10 * 1024):
        kept.append(open("file%d" % name, "wb"))
        os.unlink("file%d" % name)
        for _ in range(10):
            kept[-1].write(b"x" * 1024 * 1024)
            kept[-1].flush()


def fill_hidden():
    """The same in a program whose own file cannot be read: so its open files cannot be listed."""
    shutil.copy("/bin/sh", "sh")
    os.chmod("sh", 0o111)
    one = "exec {0}>file{0}; rm file{0}; head -c 30000000 /dev/zero >&{0}; "
    script = "".join(one.format(number) for number in range(3, 10))
    os.execv("sh", ["sh", "-c", script + "sleep 1000"])


def headless(work):
    """Its first thread is over: of a process as a whole, the kernel tells nothing then."""
    threading.Thread(target=work).start()
    libc.syscall(ctypes.c_long(60 if X86 else 93), 0)


def fill_headless():
    headless(fill_unnamed)


def take_headless():
    def work():
        kept = bytearray(b"x") * (200 << 20)
        time.sleep(1000)
        return kept[0]

    for _ in range(8):
        if os.fork() == 0:
            headless(work)
    time.sleep(1000)


def fill_one():
    """Ends as a program with the error's number."""
    try:
        with open("file", "wb") as file:
            for _ in range(10 * 1024):
                file.write(b"x" * 1024 * 1024)
    except OSError as error:
        if __name__ == "__main__":
            sys.exit(error.errno)
        raise


def say():
    """1 GiB, far more than is kept."""
    line = b"x" * 1023 + b"\n"
    left = memoryview(line * 1024)
    for _ in range(1024):
        at = 0
        while at < len(left):
            at += os.write(1, left[at:])


def take():
    """64 GiB at once; then as much as there is in many processes."""
    try:
        kept = bytearray(64 << 30)
        return kept[0]
    except MemoryError:
        pass
    for _ in range(8):
        if os.fork() == 0:
            kept = bytearray(b"x") * (200 << 20)
            time.sleep(1000)
            return kept[0]
    time.sleep(1000)


def spin():
    while True:
        pass


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def daemon():
    """Leaves its parent, its group, its session and its death signal, twice."""
    for _ in range(2):
        if os.fork() > 0:
            return
        os.setsid()
        libc.prctl(1, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open("daemon", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)
    os._exit(0)


def daemon_and_stay():
    if os.fork() == 0:
        daemon()
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


WASTES = {
    name.__name__: name
    for name in (
        swarm,
        flood,
        breed,
        fill,
        blind,
        ask,
        shuffle,
        fill_unnamed,
        fill_hidden,
        fill_headless,
        take_headless,
        fill_one,
        say,
        take,
        spin,
        stop,
        daemon,
        daemon_and_stay,
    )
}


def probe(name, argument=None):
    """As a function: what came of a probe is its output."""
    arguments = () if argument is None else (argument,)
    if name in WASTES:
        WASTES[name](*arguments)
        return 0
    try:
        said = PROBES[name](*arguments)
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    return {"return_code": 0, "output": said if isinstance(said, str) else "open"}


if __name__ == "__main__":
    said = probe(*sys.argv[1:])
    if said:
        print("[OUTPUT]" + said["output"])
