"""Nodes that run containers: containerd and kubelet, with the whole cluster inside one sandbox.

The sandbox is a process in new network, mount and process namespaces (sandbox-init.sh). The control
plane runs in it too, so nothing but two forwarded ports on loopback can be seen from the machine, and
killing that one process ends all there is, containers and mounts included. Only cgroups outlive it;
they stand below one directory of this cluster's own and are removed by name.
This module must not start processes itself, but for short commands inside a running sandbox.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

from . import images, pki
from .api import Api
from .control_plane import SERVICE_ADDRESS
from .fake_nodes import node_is_ready
from .part import Part
from .process import Process
from .state import Cluster, state_root, write_whole
from .trouble import Trouble, need_cni_plugins, need_root, need_tool, search_path

HERE = pathlib.Path(__file__).resolve().parent
PAUSE_IMAGE = HERE.parent / "images/pause.toml"
PAUSE_NAME = "docker.io/apscli/pause:1"
POD_RANGE = "10.85.0.0/16"
CGROUP_ROOTS = pathlib.Path("/sys/fs/cgroup")
# The sandbox lays its own file systems over these.
COVERED = ("/run", "/var/run", "/var/log", "/var/lib")
MEMORY_FOR_TWO_NODES = 4 << 30


def affordable_nodes() -> int:
    """Two where the memory allows, so that scheduling and losing a node can be seen."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:") and int(line.split()[1]) * 1024 < MEMORY_FOR_TWO_NODES:
            return 1
    return 2


def need_all() -> None:
    """Says the first thing that is missing before anything is built or started."""
    need_root("--nodes real")
    for tool in ("unshare", "nsenter", "ip", "runc", "busybox"):
        need_tool(tool)
    need_cni_plugins()
    if any(state_root().is_relative_to(covered) for covered in COVERED):
        raise Trouble(f"with --nodes real XDG_STATE_HOME may not be below {', '.join(COVERED)}")
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        raise Trouble("--nodes real needs the right to make namespaces (CAP_SYS_ADMIN); or use --nodes fake")
    hierarchies = _cgroup_hierarchies()
    if not hierarchies or not all(os.access(hierarchy, os.W_OK) for hierarchy in hierarchies):
        raise Trouble(f"--nodes real needs to make cgroups below {CGROUP_ROOTS}, but may not; or use --nodes fake")
    if (CGROUP_ROOTS / "cgroup.controllers").exists():
        need_controllers(CGROUP_ROOTS)


def node_name(number: int) -> str:
    return f"real-{number}"


def node_address(number: int) -> str:
    return f"10.85.0.{10 + number}"


def identities(count: int) -> dict[str, pki.Identity]:
    return {
        f"node-{number}": pki.Identity(
            f"system:node:{node_name(number)}", group="system:nodes", serves=(f"IP:{node_address(number)}",)
        )
        for number in range(1, count + 1)
    }


def prepare(cluster: Cluster) -> None:
    """Writes the nodes' configuration; certificates exist by now."""
    keys = cluster.path("pki")
    cni = cluster.path("config", "cni")
    cni.mkdir(exist_ok=True)
    write_whole(cni / "pods.conflist", json.dumps(_cni_network(), indent=2) + "\n")
    images.write_image(PAUSE_IMAGE, cluster.path("config", "pause.tar"))
    for number in range(1, cluster.node_count + 1):
        own = cluster.path("nodes", str(number))
        own.mkdir(parents=True, exist_ok=True)
        server = f"https://{SERVICE_ADDRESS}"
        pki.write_kubeconfig(cluster.path("config", f"node-{number}.kubeconfig"), server, keys, f"node-{number}")
        write_whole(cluster.path("config", f"containerd-{number}.toml"), _containerd_config(cluster, number, cni))
        kubelet = json.dumps(_kubelet_config(cluster, number), indent=2) + "\n"
        write_whole(cluster.path("config", f"kubelet-{number}.json"), kubelet)
    for hierarchy in _cgroup_hierarchies():
        (hierarchy / _cgroup(cluster)).mkdir(exist_ok=True)


def sandbox(cluster: Cluster) -> Part:
    """The namespaces. Part of every other part: when this one ends, so do all that run inside."""
    made = cluster.path("run", "sandbox.made")
    addresses = [f"{SERVICE_ADDRESS}/32"]
    addresses += [f"{node_address(number)}/16" for number in range(1, cluster.node_count + 1)]
    argv = [
        "unshare", "--net", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc",
        str(HERE / "sandbox-init.sh"), str(made), *addresses,
    ]  # fmt: skip
    return Part("sandbox", [need_tool(argv[0]), *argv[1:]], made.exists, before=lambda: made.unlink(missing_ok=True),
                environment={"PATH": search_path()})  # fmt: skip


def forward(cluster: Cluster) -> Part:
    """The way from the machine's loopback to the apiserver and etcd in the sandbox."""
    ports = cluster.ports
    argv = [
        sys.executable,
        str(HERE / "forward.py"),
        f"/proc/{_sandbox_pid(cluster)}/ns/net",
        f"{ports['api']}={SERVICE_ADDRESS}:443",
        f"{ports['etcd']}=127.0.0.1:{ports['etcd']}",
    ]
    return Part("forward", argv, lambda: True)


def parts(cluster: Cluster, containerd: pathlib.Path, kubernetes: pathlib.Path) -> tuple[list[Part], list[Part]]:
    """The nodes' runtimes, which need nothing of the control plane, and the kubelets, which need both."""
    admin = Api(cluster.ports["api"], cluster.path("pki"))
    runtimes, kubelets = [], []
    for number in range(1, cluster.node_count + 1):
        path = {"PATH": f"{containerd}:{search_path()}"}

        def imported(number=number) -> bool:
            return import_image(cluster, containerd, number, cluster.path("config", "pause.tar"))

        def registered(number=number) -> bool:
            return node_is_ready(admin, node_name(number))

        daemon = [f"{containerd}/containerd", f"--config={cluster.path('config', f'containerd-{number}.toml')}"]
        kubelet = [
            f"{kubernetes}/kubelet",
            f"--config={cluster.path('config', f'kubelet-{number}.json')}",
            f"--kubeconfig={cluster.path('config', f'node-{number}.kubeconfig')}",
            f"--hostname-override={node_name(number)}",
            f"--node-ip={node_address(number)}",
            f"--root-dir={cluster.path('nodes', str(number), 'kubelet')}",
        ]
        runtimes.append(Part(f"containerd-{number}", daemon, imported, True, path))
        kubelets.append(Part(f"kubelet-{number}", kubelet, registered, True, path))
    return runtimes, kubelets


def entering(cluster: Cluster) -> list[str]:
    """What to put before a command so that it runs inside the sandbox."""
    pid = _sandbox_pid(cluster)
    return [
        need_tool("nsenter"), f"--target={pid}", "--net", "--mount", f"--pid=/proc/{pid}/ns/pid_for_children", "--",
    ]  # fmt: skip


def import_image(cluster: Cluster, containerd: pathlib.Path, number: int, tar: pathlib.Path) -> bool:
    """Whether a node's containerd took the image."""
    ctr = [f"{containerd}/ctr", f"--address={_socket(number)}", "--namespace=k8s.io"]
    took = subprocess.run([*entering(cluster), *ctr, "images", "import", str(tar)], capture_output=True, text=True)
    return took.returncode == 0


def remove_cgroups(cluster: Cluster) -> None:
    """Removes this cluster's cgroups. Their processes are dead but may still be on their way out."""
    for hierarchy in _cgroup_hierarchies():
        own = hierarchy / _cgroup(cluster)
        deadline = time.monotonic() + 10
        while own.is_dir():
            for directory in sorted(own.rglob("*/"), reverse=True):
                _remove_if_empty(directory)
            _remove_if_empty(own)
            if own.is_dir() and time.monotonic() > deadline:
                raise Trouble(f"the cgroup {own} does not get empty")
            time.sleep(0.01)


def _remove_if_empty(directory: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def need_controllers(root: pathlib.Path) -> None:
    """With cgroup v2: whether a container's limits can be kept below this root."""
    needed = {"cpu", "memory", "pids"}

    def words(file: str) -> set[str]:
        return set((root / file).read_text().split())

    if missing := needed - words("cgroup.controllers"):
        raise Trouble(f"--nodes real needs the cgroup controllers {', '.join(sorted(missing))}; or use --nodes fake")
    # Only the machine's own root hands controllers down while processes are in it, and it alone has no type.
    in_container = (root / "cgroup.type").exists()
    if in_container and words("cgroup.procs") and needed - words("cgroup.subtree_control"):
        raise Trouble(
            f"--nodes real needs a cgroup without processes at {root}, but this container's own are in it: "
            "start the container with the machine's cgroup namespace; or use --nodes fake"
        )


def _cgroup_hierarchies() -> list[pathlib.Path]:
    """One with cgroup v2, one for each controller with v1."""
    if (CGROUP_ROOTS / "cgroup.controllers").exists():
        return [CGROUP_ROOTS]
    return [procs.parent for procs in CGROUP_ROOTS.glob("*/cgroup.procs")]


def _cgroup(cluster: Cluster) -> str:
    return f"apscli-cluster-{cluster.name}"


def _sandbox_pid(cluster: Cluster) -> int:
    pid = Process(cluster.path("run", "sandbox.pid")).pid()
    if pid is None:
        raise Trouble(f"cluster {cluster.name} has no running sandbox: run `cluster up` again")
    return pid


def _socket(number: int) -> str:
    # In the sandbox's own /run, since a socket's path may have no more than 107 characters.
    return f"/run/node-{number}/containerd.sock"


def _cni_network() -> dict:
    addresses = {
        "type": "host-local",
        "dataDir": "/run/pod-addresses",
        "ranges": [[{"subnet": POD_RANGE, "rangeStart": "10.85.1.0", "gateway": "10.85.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "apscli0", "ipam": addresses}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


def _containerd_config(cluster: Cluster, number: int, cni: pathlib.Path) -> str:
    own = cluster.path("nodes", str(number))
    # A restricted oom_score_adj: without CAP_SYS_RESOURCE runc could not set a lower one and would fail.
    return f"""version = 3
root = "{own}/containerd"
state = "/run/node-{number}/containerd"

[grpc]
address = "{_socket(number)}"

[plugins."io.containerd.internal.v1.opt"]
path = "{own}/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_NAME}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{need_cni_plugins()}"]
conf_dir = "{cni}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _kubelet_config(cluster: Cluster, number: int) -> dict:
    keys = cluster.path("pki")
    own = cluster.path("nodes", str(number))
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node_address(number),
        "port": 10250,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{keys}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{keys}/node-{number}.crt",
        "tlsPrivateKeyFile": f"{keys}/node-{number}.key",
        "containerRuntimeEndpoint": f"unix://{_socket(number)}",
        "podLogsDir": f"{own}/pod-logs",
        "volumePluginDir": f"{own}/volume-plugins",
        "resolvConf": "/dev/null",
        "kubeAPIQPS": 500,
        "kubeAPIBurst": 500,
        "serializeImagePulls": False,
        # Images come by hand here; a collected one could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        # The machine is somebody's: no limits on it as a whole, no rules in its firewall, no evictions.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{_cgroup(cluster)}",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "evictionHard": {},
        "makeIPTablesUtilChains": False,
    }
