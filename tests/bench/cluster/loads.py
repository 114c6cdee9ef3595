"""Driving a load and measuring what it takes, against a cluster that is there.

All calls go over kept-alive connections, and from this process, which shares nothing with the engine
that is measured. Must not know one engine from another; `controller.py` does.
"""

import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

import prometheus
from controller import LARGE, Controller
from shapes import Shape, diamond

from lib.api import Api

AT_ONCE = 32
PATIENCE_SECONDS = 1800
# A control plane that does nothing still takes a tenth of two processors.
QUIET = 0.15
WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION")
PODS = "/api/v1/namespaces/default/pods"
# Of the pods of raw, which no engine looks at.
RAW_LABEL = ("app.kubernetes.io/managed-by", "raw")
OWN_CALLS = "apscli_api_calls_total"


class Client:
    """The API of a cluster over one kept-alive connection a thread."""

    def __init__(self, api: Api):
        self._api = api
        self._own = threading.local()

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        for last in (False, True):
            connection = getattr(self._own, "connection", None)
            if connection is None:
                connection = self._own.connection = self._api.connect(timeout=120)
            try:
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException):
                self._own.connection = None
                # A create whose answer is lost is not tried again: it may have been done.
                if last or method == "POST":
                    raise
                continue
            if answer.status >= 300:
                raise SystemExit(f"{method} {path}: {answer.status}: {text[:300].decode(errors='replace')}")
            return text
        raise AssertionError

    def get(self, path: str) -> dict:
        return json.loads(self.call("GET", path))


class Ends:
    """Waits until runs are over, by one watch."""

    def __init__(self, api: Api, client: Client, controller: Controller):
        self._api, self._controller = api, controller
        self._path = controller.about["resource"]
        self._version = client.get(f"{self._path}?limit=1")["metadata"]["resourceVersion"]
        self._over: dict[str, tuple[float, bool]] = {}
        self._broken: BaseException | None = None
        self._news = threading.Condition()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        """Ends with the connection that it watches by. Whoever watched on would take the time of the next load."""
        self._closed.set()

    def _watch(self) -> None:
        try:
            self._follow()
        except BaseException as error:
            # This thread would end unheard, and whoever waits would wait in vain.
            with self._news:
                self._broken = error
                self._news.notify()

    def _follow(self) -> None:
        while not self._closed.is_set():
            query = urllib.parse.urlencode({"watch": "true", "resourceVersion": self._version})
            try:
                for event in self._api.watch(f"{self._path}?{query}", timeout=PATIENCE_SECONDS):
                    run = event["object"]
                    if event["type"] in ("ERROR", "HTTP"):
                        raise SystemExit(f"the watch of runs broke: {run}")
                    self._version = run["metadata"]["resourceVersion"]
                    name = run["metadata"]["name"]
                    if self._controller.is_over(run) and name not in self._over:
                        with self._news:
                            self._over[name] = (time.monotonic(), self._controller.is_good(run))
                            self._news.notify()
            except (OSError, http.client.HTTPException, ValueError):
                self._closed.wait(0.2)

    def wait(self, names: list[str]) -> float:
        """When the last of them was over. All must have ended well."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._news:
            while not all(name in self._over for name in names):
                if self._broken:
                    raise self._broken
                if not self._news.wait(timeout=max(0.0, deadline - time.monotonic())):
                    missing = [name for name in names if name not in self._over]
                    raise SystemExit(f"{len(missing)} runs are not over, {missing[0]} among them")
        bad = [name for name in names if not self._over[name][1]]
        if bad:
            raise SystemExit(f"{len(bad)} runs did not end well, {bad[0]} among them")
        return max(self._over[name][0] for name in names)


def measure(
    api: Api, controller: Controller, shape: Shape, raw: Callable[[], float], profile: pathlib.Path | None
) -> dict:
    """One load on an engine that was just started; gives back all that was measured. `raw` measures the bare
    control plane: before each time and after the last, so that both meet the same machine. With `profile` the
    engine is sampled into that file."""
    client = Client(api)
    ends = Ends(api, client, controller)
    if shape.bystanders:
        names = [f"bystander-{i}" for i in range(shape.bystanders)]
        with _ready(client, controller, names, Shape("", shape.bystanders, diamond())) as create:
            create()
        ends.wait(names)
    # As raw was: the first run of all meets a server that has never seen one.
    with _ready(client, controller, ["warm-up"], Shape("", 1, diamond())) as create:
        create()
    ends.wait(["warm-up"])
    raws, walls, peaks, grown, cpu = [], [], [], [], 0.0
    at_server, of_engine = prometheus.Samples(), prometheus.Samples()

    def measure_raw() -> None:
        _settle()
        raws.append(raw())
        _clear(client, "=".join(RAW_LABEL))

    with _profiled(controller.pid, profile):
        for nth in range(shape.times):
            measure_raw()
            _settle()
            names = [f"{shape.name}-{nth}-{i}" for i in range(shape.runs)]
            with _ready(client, controller, names, shape) as create:
                controller.forget_peak()
                memory = controller.memory_mib("VmRSS")
                then = (_of_server(client), prometheus.samples(controller.metrics()), controller.cpu_seconds())
                began = time.monotonic()
                create()
                walls.append(ends.wait(names) - began)
                cpu += controller.cpu_seconds() - then[2]
            prometheus.add(at_server, prometheus.difference(then[0], _of_server(client)))
            prometheus.add(of_engine, prometheus.difference(then[1], prometheus.samples(controller.metrics())))
            peaks.append(controller.memory_mib("VmHWM"))
            grown.append(peaks[-1] - memory)
    ends.close()
    if not shape.bystanders:
        # When raw was measured before, there were none either. Those of bystanders were there, and stay.
        _clear(client)
    measure_raw()
    wall = statistics.median(walls)
    runs, nodes = shape.runs * shape.times, shape.total * shape.times
    measured = {
        "shape": shape.name,
        "controller": controller.name,
        "runs": shape.runs,
        "nodes": shape.total,
        "seconds": round(wall, 3),
        "nodes_per_second": round(shape.total / wall, 1),
        "cpu_seconds": round(cpu / shape.times, 3),
        "peak_mib": round(max(peaks), 1),
        "grown_mib": round(statistics.median(grown), 2),
        "cluster_writes_per_node": round(_cluster_writes(at_server) / nodes, 2),
        "largest_object_bytes": _largest(client, controller),
        "raw_seconds": round(statistics.median(raws), 3),
        "ratio_to_raw": round(statistics.median(raws) / wall, 3),
    }
    if any(name == OWN_CALLS for name, _ in of_engine):
        measured |= _own(of_engine, runs, nodes)
    return measured


@contextlib.contextmanager
def _profiled(pid: int, file: pathlib.Path | None) -> Iterator[None]:
    """Has `perf` sample a process. What it does meanwhile is the load: raw is none of its business."""
    if file is None:
        yield
        return
    command = ["perf", "record", "--freq", "997", "-g", "--pid", str(pid), "--output", str(file)]
    perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(1)  # By then it has said why, if it cannot.
    if perf.poll() is not None:
        raise SystemExit(f"perf does not record: {perf.stderr.read().decode(errors='replace').strip()}")
    try:
        yield
    finally:
        perf.send_signal(signal.SIGINT)
        perf.communicate()


def _of_server(client: Client) -> prometheus.Samples:
    return prometheus.samples(client.call("GET", "/metrics").decode())


def _own(found: prometheus.Samples, runs: int, nodes: int) -> dict:
    """What the engine tells of itself."""
    calls = prometheus.summed(found, OWN_CALLS, "verb", "resource")
    sent = prometheus.summed(found, "apscli_api_sent_bytes_total", "verb", "resource")
    per_node = {f"{verb} {resource}": round(n / nodes, 3) for (verb, resource), n in sorted(calls.items())}
    each = {
        f"{verb} {resource}": round(sent[verb, resource] / n)
        for (verb, resource), n in calls.items()
        if sent.get((verb, resource))
    }
    reads = ("get", "list", "watch")
    writes = sum(n for (verb, _), n in calls.items() if verb not in reads)
    handoff = [prometheus.quantile(found, "apscli_handoff_seconds", q) for q in (0.5, 0.99)]
    return {
        "own_writes_per_node": round(writes / nodes, 3),
        "own_calls_per_node": per_node,
        "bytes_per_call": each,
        "bytes_per_node": round(prometheus.total(found, "apscli_api_sent_bytes_total") / nodes),
        "reconciles_per_run": round(
            prometheus.total(found, "apscli_reconcile_seconds_count", resource="workflowruns") / runs, 1
        ),
        "handoff_ms_p50": None if handoff[0] is None else round(handoff[0] * 1000, 2),
        "handoff_ms_p99": None if handoff[1] is None else round(handoff[1] * 1000, 2),
    }


@contextlib.contextmanager
def _ready(client: Client, controller: Controller, names: list[str], shape: Shape) -> Iterator[Callable[[], object]]:
    """Gives what creates these runs. Who calls it pays for the creation only: bodies are written by then, and
    connections are open, as raw's is before its clock starts. (A command that submits opens its own.)"""
    path = controller.about["resource"]
    bodies = [json.dumps(controller.manifest(name, shape.nodes, shape.parallelism)).encode() for name in names]
    if len(bodies[0]) > LARGE and "submit" in controller.about:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "template.json")
            file.write_text(controller.template(shape.nodes))
            yield lambda: [controller.submit(name, file) for name in names]
    elif len(bodies) == 1:
        client.get(f"{path}?limit=1")
        yield lambda: client.call("POST", path, bodies[0])
    else:
        threads = min(AT_ONCE, len(bodies))
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            _connect(client, pool, threads, f"{path}?limit=1")
            yield lambda: list(pool.map(lambda body: client.call("POST", path, body), bodies))


def _connect(client: Client, pool: concurrent.futures.ThreadPoolExecutor, threads: int, path: str) -> None:
    """Opens the connection of each thread of the pool. Each waits for all, so that none does another's part."""
    together = threading.Barrier(threads)

    def connect(_: int) -> None:
        try:
            client.get(path)
        finally:
            together.wait()

    for _ in pool.map(connect, range(threads)):
        pass


def _clear(client: Client, labels: str = "") -> None:
    """Deletes pods until there are none: of those that lie around, whoever is measured next would pay for the
    watches, and beyond 12,500 the cluster deletes ended ones by itself."""
    query = urllib.parse.urlencode({"labelSelector": labels})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while client.get(f"{PODS}?{query}&limit=1")["items"]:
        if time.monotonic() > deadline:
            raise SystemExit("pods that were deleted are still there")
        # So many at a time, as the server answers with all of them. An engine may have to let them go first.
        client.call("DELETE", f"{PODS}?{query}&limit=500")
        time.sleep(0.1)


def _settle() -> None:
    """Until the machine does little, or 30 seconds: what went before must not be paid for by what comes."""
    deadline = time.monotonic() + 30
    before = _ticks()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = _ticks()
        busy, passed = (n - then for n, then in zip(now, before, strict=True))
        if busy < passed * QUIET:
            return
        before = now


def _ticks() -> tuple[int, int]:
    """How long all processors have worked, and how long there have been any, in ticks."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def _cluster_writes(found: prometheus.Samples) -> float:
    """Writes of everybody, without the Leases that the cluster renews whatever runs."""
    by_kind = prometheus.summed(found, "apiserver_request_total", "verb", "resource")
    return sum(n for (verb, resource), n in by_kind.items() if verb in WRITES and resource != "leases")


def _largest(client: Client, controller: Controller) -> int:
    """In bytes of JSON, among what an engine writes: its runs and whatever else its group has, and ConfigMaps."""
    group = controller.about["resource"].split("/namespaces/")[0]
    kinds = client.get(group)["resources"]
    paths = [f"{group}/{kind['name']}" for kind in kinds if kind["namespaced"] and "/" not in kind["name"]]
    largest = 0
    for path in [*paths, "/api/v1/configmaps"]:
        token = ""
        while True:
            found = client.get(f"{path}?limit=100&continue={urllib.parse.quote(token)}")
            sizes = [len(json.dumps(item, separators=(",", ":"))) for item in found["items"]]
            largest = max([largest, *sizes])
            token = found["metadata"].get("continue", "")
            if not token:
                break
    return largest
