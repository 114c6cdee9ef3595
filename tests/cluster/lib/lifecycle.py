"""The life of a cluster: up, down, and what a fault test does to its parts in between.

Everything here may be repeated, and may go on where a killed command stopped: what is decided is read
back, what exists is kept, what runs is left running.
"""

import collections.abc
import http.client
import shutil
import signal
import sys
import time

from . import build, control_plane, fake_nodes, pki, process, real_nodes, state
from .api import Api
from .part import Part
from .process import Process
from .state import Cluster
from .trouble import Trouble, need_tool

READY_PATIENCE_SECONDS = 120


class Programs:
    """The built programs that a kind of cluster needs; making one builds what is not cached."""

    @staticmethod
    def parts(nodes: str, kubernetes: str) -> list[build.Part]:
        of_nodes = {"fake": [build.KWOK], "real": [build.CONTAINERD], "none": []}
        return [build.ETCD, build.kubernetes(kubernetes), *of_nodes[nodes], build.HELM]

    def __init__(self, nodes: str, kubernetes: str):
        places = {part: build.binaries(part) for part in self.parts(nodes, kubernetes)}
        self.etcd = places[build.ETCD]
        self.kubernetes = places[build.kubernetes(kubernetes)]
        self.kwok = places.get(build.KWOK)
        self.containerd = places.get(build.CONTAINERD)
        self.helm = places[build.HELM]


def need(nodes: str, kubernetes: str) -> None:
    """Says the first thing that is missing for such a cluster, before anything is built or started."""
    need_tool("openssl")
    if nodes == "real":
        real_nodes.need_all()
    for part in Programs.parts(nodes, kubernetes):
        build.need(part)


def existing(name: str) -> Cluster:
    cluster = state.load(name)
    if cluster is None:
        raise Trouble(f"there is no cluster {name}: run `cluster up --name {name}`")
    return cluster


def up(name: str, nodes: str | None, kubernetes: str | None) -> Cluster:
    """Brings a cluster up, whatever of it is there already."""
    cluster = state.load(name)
    if cluster:
        _refuse_another(cluster, nodes, kubernetes)
    kind = cluster.nodes if cluster else nodes or "fake"
    version = cluster.kubernetes if cluster else kubernetes or build.DEFAULT_KUBERNETES
    need(kind, version)
    # Before the lock, so that a long build does not keep `status` or `down` waiting.
    programs = Programs(kind, version)
    with state.locked(name):
        cluster = state.load(name)
        if cluster is None:
            count = real_nodes.affordable_nodes() if kind == "real" else 0
            cluster = state.create(name, kind, version, control_plane.PORTS, count)
        _refuse_another(cluster, nodes, kubernetes)
        began = time.monotonic()
        _prepare(cluster)
        _start_missing(cluster, programs)
        print(f"cluster {name} is up ({time.monotonic() - began:.1f} s)", file=sys.stderr)
    return cluster


def down(name: str) -> None:
    """Ends every process of a cluster, running, paused or half started, and forgets it."""
    with state.locked(name):
        cluster = state.load(name)
        if cluster is None:
            print(f"there is no cluster {name}", file=sys.stderr)
            return
        _end_all(cluster)
        if cluster.nodes == "real":
            real_nodes.remove_cgroups(cluster)
        shutil.rmtree(cluster.directory)


def restart(name: str, part_name: str) -> None:
    """Ends one part as its own stop would and starts it again."""
    with state.locked(name):
        cluster = existing(name)
        programs = Programs(cluster.nodes, cluster.kubernetes)
        _process(cluster, part_name).end(politely=True)
        _start_missing(cluster, programs)


def signal_part(name: str, part_name: str, number: signal.Signals) -> None:
    with state.locked(name):
        found = _process(existing(name), part_name)
        if found.pid() is None:
            raise Trouble(f"{part_name} is not running")
        found.signal(number)


def compact(name: str) -> None:
    """Makes every revision older than now answer 410 Gone.

    etcd forgets at once, but the apiserver goes on serving what its watch cache remembers; so that is
    made to forget too, by a restart. It keeps nothing, so it is killed: a polite end takes it far longer
    than the rest, as it waits for its watchers.
    """
    with state.locked(name):
        cluster = existing(name)
        etcd = Api(cluster.ports["etcd"], cluster.path("pki"), "etcd-client")
        _, newest = etcd.call("POST", "/v3/kv/range", {"key": "AA=="})
        request = {"revision": newest["header"]["revision"], "physical": True}
        status, answer = etcd.call("POST", "/v3/kv/compaction", request)
        if status != 200:
            raise Trouble(f"etcd did not compact: {answer}")
        _process(cluster, "apiserver").end(politely=False)
        _start_missing(cluster, Programs(cluster.nodes, cluster.kubernetes))


def load_image(name: str, tar: str) -> None:
    cluster = existing(name)
    if cluster.nodes != "real":
        raise Trouble(f"cluster {name} has {cluster.nodes} nodes, which hold no images")
    programs = Programs(cluster.nodes, cluster.kubernetes)
    for number in range(1, cluster.node_count + 1):
        if not real_nodes.import_image(cluster, programs.containerd, number, tar):
            raise Trouble(f"{real_nodes.node_name(number)} did not take {tar}; see `cluster logs containerd-{number}`")


def tool_path(cluster: Cluster) -> str:
    """Where kubectl and helm of the right version are, as a part of PATH."""
    programs = Programs(cluster.nodes, cluster.kubernetes)
    return f"{programs.kubernetes}:{programs.helm}"


def part_names(cluster: Cluster) -> list[str]:
    """In the order of starting."""
    names = ["etcd", "apiserver", "controller-manager", "scheduler"]
    if cluster.nodes == "fake":
        names.append("kwok")
    if cluster.nodes == "real":
        names = ["sandbox", "forward", *names]
        names += [f"{daemon}-{n}" for n in range(1, cluster.node_count + 1) for daemon in ("containerd", "kubelet")]
    return names


def states(cluster: Cluster) -> dict[str, tuple[int | None, str]]:
    """Each part's process id and whether it is running, paused or dead."""
    found = {name: _process(cluster, name) for name in part_names(cluster)}
    return {name: (process.pid(), process.state()) for name, process in found.items()}


def _refuse_another(cluster: Cluster, nodes: str | None, kubernetes: str | None) -> None:
    asked = (nodes or cluster.nodes, kubernetes or cluster.kubernetes)
    if asked != (cluster.nodes, cluster.kubernetes):
        raise Trouble(
            f"cluster {cluster.name} already exists with {cluster.nodes} nodes and Kubernetes {cluster.kubernetes}: "
            f"take another --name, or `cluster down --name {cluster.name}` first"
        )


def _prepare(cluster: Cluster) -> None:
    """Certificates and configuration files. Written anew each time: they follow from what was decided."""
    identities = control_plane.IDENTITIES | fake_nodes.IDENTITIES | real_nodes.identities(cluster.node_count)
    pki.make(cluster.path("pki"), identities)
    inside = cluster.nodes == "real"
    inner = control_plane.SERVICE_ADDRESS if inside else f"127.0.0.1:{cluster.ports['api']}"
    control_plane.prepare(cluster, f"https://{inner}")
    if cluster.nodes == "fake":
        fake_nodes.prepare(cluster, f"https://{inner}")
    if inside:
        real_nodes.prepare(cluster)


def _start_missing(cluster: Cluster, programs: Programs) -> None:
    """Starts what does not run, as much at once as can be: nearly all of a start is waiting."""
    if cluster.nodes == "real" and _process(cluster, "sandbox").pid() is None:
        # What ran inside died with it, and the way into the old one leads nowhere.
        _end_all(cluster)
    for wave in _waves(cluster, programs):
        for part in wave:
            _begin(cluster, part)
        _await_ready(cluster, wave)
    for name, (_, found) in states(cluster).items():
        if found == "dead":
            raise Trouble(f"{name} has ended; {_last_words(cluster, name)}")


def _waves(cluster: Cluster, programs: Programs) -> collections.abc.Iterator[list[Part]]:
    """The parts, in lists of those that do not need one another; each list needs those before it to be ready."""
    inside = cluster.nodes == "real"
    runtimes, nodes = [], []
    if inside:
        yield [real_nodes.sandbox(cluster)]
        yield [real_nodes.forward(cluster)]
        runtimes, nodes = real_nodes.parts(cluster, programs.containerd, programs.kubernetes)
    elif cluster.nodes == "fake":
        nodes = [fake_nodes.part(cluster, programs.kwok)]
    store, controllers = control_plane.parts(cluster, programs, inside)
    yield [*store, *runtimes]
    yield [*controllers, *nodes]


def _begin(cluster: Cluster, part: Part) -> None:
    found = _process(cluster, part.name)
    if found.pid() is None:
        part.before()
        argv = [*real_nodes.entering(cluster), *part.argv] if part.inside else part.argv
        process.start(found.pid_file, argv, cluster.path("log", f"{part.name}.log"), part.environment)
    elif found.state() == "paused":
        found.resume()


def _await_ready(cluster: Cluster, parts: list[Part]) -> None:
    """Returns once all of them are ready, asked in turn."""
    deadline = time.monotonic() + READY_PATIENCE_SECONDS
    while parts := [part for part in parts if not _is_ready(part)]:
        for part in parts:
            if _process(cluster, part.name).pid() is None:
                raise Trouble(f"{part.name} has ended; {_last_words(cluster, part.name)}")
        if time.monotonic() > deadline:
            late = parts[0].name
            raise Trouble(f"{late} is not ready after {READY_PATIENCE_SECONDS} s; see `cluster logs {late}`")
        time.sleep(0.05)


def _is_ready(part: Part) -> bool:
    try:
        return part.ready()
    except (OSError, http.client.HTTPException):
        return False


def _end_all(cluster: Cluster) -> None:
    """Nothing of a cluster outlives its end, so nobody is asked politely."""
    if cluster.nodes == "real":
        # The kernel ends all inside with the sandbox, and lets go of the namespaces once all are reaped:
        # by the nsenter around each, for the machine's own first process may take its time.
        _process(cluster, "sandbox").end(politely=False)
        _process(cluster, "forward").end(politely=False)
        for name in part_names(cluster):
            _process(cluster, name).await_end()
    for name in reversed(part_names(cluster)):
        _process(cluster, name).end(politely=False)


def _process(cluster: Cluster, part_name: str) -> Process:
    if part_name not in part_names(cluster):
        raise Trouble(f"cluster {cluster.name} has no {part_name}; its parts are {', '.join(part_names(cluster))}")
    return Process(cluster.path("run", f"{part_name}.pid"))


def _last_words(cluster: Cluster, part_name: str) -> str:
    log = cluster.path("log", f"{part_name}.log")
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f"its last words: {lines[-1]}" if lines else "it said nothing"
