"""Carries TCP connections from this machine's loopback into a sandbox's network namespace.

usage: python3 forward.py NAMESPACE_FILE LISTEN_PORT=ADDRESS:PORT…

The listening sockets are made outside; then the process enters the namespace, where it may open its
connections. That is the only way into a sandbox, so nothing of a cluster listens on the machine's own
addresses but loopback. It must not look into what it carries.
"""

import asyncio
import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000


def enter_network_namespace(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    os.close(descriptor)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction until its end, which is passed on; the other direction may go on."""
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


def carrier(address: str, port: int):
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_writer = None
        try:
            far_reader, far_writer = await asyncio.open_connection(address, port)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(copy(reader, far_writer))
                directions.create_task(copy(far_reader, writer))
        except* OSError:
            pass  # Nobody there, or gone: the caller sees its connection closed.
        finally:
            writer.close()
            if far_writer:
                far_writer.close()

    return carry


async def main(namespace: str, routes: list[str]) -> None:
    listening = []
    for route in routes:
        port, _, target = route.partition("=")
        address, _, target_port = target.rpartition(":")
        listening.append((socket.create_server(("127.0.0.1", int(port))), address, int(target_port)))
    enter_network_namespace(namespace)
    servers = [
        await asyncio.start_server(carrier(address, port), sock=listener) for listener, address, port in listening
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
