"""Runs a command as a user without rights in a network of its own, in which somebody listens for TCP and UDP at
each address: `apart.py UID ADDRESS,… COMMAND…`. The addresses are the machine's own there, whatever they are
elsewhere, so nothing leaves it."""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNET = 0x10000000, 0x40000000
SET_ADDRESS, SET_FLAGS, UP = 0x8916, 0x8914, 0x1


def unshare(flags):
    if libc.unshare(flags) != 0:
        sys.exit("no network of its own: " + os.strerror(ctypes.get_errno()))


def be(uid):
    """Nobody needs root for it; who is root stops being it."""
    if os.geteuid() != 0:
        uid, gid = os.getuid(), os.getgid()
        unshare(NEWUSER | NEWNET)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open("/proc/self/" + name, "w") as file:
                file.write(text)
        return lambda: None
    unshare(NEWNET)

    def drop():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)

    return drop


def listen(hosts_and_ports):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as it:
        fcntl.ioctl(it, SET_FLAGS, struct.pack("16sh22x", b"lo", UP))
        for number, (host, _) in enumerate(hosts_and_ports):
            address = struct.pack("16sHH4s16x", b"lo:%d" % number, socket.AF_INET, 0, socket.inet_aton(host))
            if not host.startswith("127."):
                fcntl.ioctl(it, SET_ADDRESS, address)
    kept = []
    for address in hosts_and_ports:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            kept.append(socket.socket(socket.AF_INET, kind))
            kept[-1].bind(address)
        kept[-2].listen()
    return kept


uid, addresses = int(sys.argv[1]), sys.argv[2].split(",")
drop = be(uid)
pairs = [(host, int(port)) for host, port in (address.rsplit(":", 1) for address in addresses)]
kept = listen(pairs)
if os.fork() == 0:
    # Holds the sockets for as long as the command lives.
    libc.prctl(1, signal.SIGKILL)
    os.chdir("/")
    while os.getppid() != 1:
        time.sleep(0.2)
    os._exit(0)
for it in kept:
    it.close()
drop()
os.execvp(sys.argv[3], sys.argv[3:])
