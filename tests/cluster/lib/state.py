"""One cluster's own directory: what was decided about it (kind, version, ports) and where its files are.

Everything about a cluster stands below its directory, so that removing the directory forgets it. This
module must not start, stop or ask any process.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import random
import re
import shutil
import socket
import time

from .trouble import Trouble

NODE_KINDS = ("fake", "real", "none")

# Names the cluster that commands are about, where they do not say it themselves.
NAME_VARIABLE = "APSCLI_CLUSTER"

# Below the range that the kernel hands out to outgoing connections, which could otherwise take a port
# in the seconds between choosing and listening.
CHOSEN_PORTS = range(21000, 32000)

# How long a second command on the same cluster waits for the first.
LOCK_PATIENCE_SECONDS = 1800


def state_root() -> pathlib.Path:
    base = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local/state"
    return pathlib.Path(base).absolute() / "apscli-cluster"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster as it was decided by its first `up`; later commands read it back."""

    name: str
    nodes: str
    kubernetes: str
    ports: dict
    node_count: int

    @property
    def directory(self) -> pathlib.Path:
        return state_root() / self.name

    def path(self, *parts: str) -> pathlib.Path:
        return self.directory.joinpath(*parts)

    @property
    def kubeconfig(self) -> pathlib.Path:
        return self.path("kubeconfig")


def check_name(name: str) -> str:
    """Cluster names become directory, cgroup and node names."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise Trouble(f"a cluster's name has 1 to 32 of a-z, 0-9 and -, not {name!r}")
    return name


@contextlib.contextmanager
def locked(name: str):
    """Only one command at a time changes a cluster. The kernel lets go if the holder is killed."""
    state_root().mkdir(parents=True, exist_ok=True)
    with _locked_file(state_root() / f".{name}.lock", f"cluster {name}"):
        yield


@contextlib.contextmanager
def _locked_file(path: pathlib.Path, what: str):
    with path.open("w") as lock:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Trouble(f"another command has held {what} for {LOCK_PATIENCE_SECONDS} s") from None
                time.sleep(0.1)
        yield


def load(name: str) -> Cluster | None:
    """The cluster of that name, or None if there is none."""
    try:
        decided = json.loads((state_root() / name / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    return Cluster(**decided)


def known() -> list[Cluster]:
    """All clusters of this user."""
    if not state_root().is_dir():
        return []
    loaded = (load(entry.name) for entry in sorted(state_root().iterdir()) if entry.is_dir())
    return [cluster for cluster in loaded if cluster]


def create(name: str, nodes: str, kubernetes: str, port_names: list[str], node_count: int) -> Cluster:
    """Decides about a new cluster and writes it down, whole or not at all."""
    with _locked_file(state_root() / ".ports.lock", "the choice of ports"):
        cluster = Cluster(name, nodes, kubernetes, _choose_ports(port_names), node_count)
        # Left by a starter that was killed before it had decided anything.
        shutil.rmtree(cluster.directory, ignore_errors=True)
        cluster.directory.mkdir(mode=0o700)
        for directory in ("run", "log", "config"):
            cluster.path(directory).mkdir(mode=0o700)
        write_whole(cluster.path("cluster.json"), json.dumps(dataclasses.asdict(cluster), indent=2) + "\n")
    return cluster


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that it is there with all its text or not at all; only its owner may read it."""
    half = path.with_name(path.name + ".half")
    half.write_text(text)
    half.chmod(0o600)
    half.rename(path)


def _choose_ports(names: list[str]) -> dict[str, int]:
    """Ports nobody listens on now and no other cluster has, even one that is down or starting.

    Drawn by lot: clusters below another state directory cannot be asked what they are about to take.
    """
    taken = {port for cluster in known() for port in cluster.ports.values()}
    drawn = random.sample(CHOSEN_PORTS, len(CHOSEN_PORTS))
    free = (port for port in drawn if port not in taken and _nobody_listens(port))
    try:
        return {name: next(free) for name in names}
    except StopIteration:
        raise Trouble(f"no free port between {CHOSEN_PORTS.start} and {CHOSEN_PORTS.stop}") from None


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
