"""apscli itself on a cluster: its programs built, their images on the nodes, both charts installed.

May be repeated: what has changed since is built, loaded and rolled out, what has not stays. This module
must not start or stop a part of the cluster.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from . import images, lifecycle
from .state import Cluster
from .trouble import Trouble, need_tool

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAMESPACE = "apscli"
# The chart's `sharedNamespace`.
SHARED = "apscli-services"
BUILT = ("apscli", "apscli-node", "libapscli_python.so")
PATIENCE = "300s"


def install(name: str) -> None:
    """Builds, loads and installs; returns once the operator is ready and the services can be run."""
    cluster = lifecycle.existing(name)
    if cluster.nodes != "real":
        raise Trouble(
            f"cluster {name} was made with --nodes {cluster.nodes} and runs no operator: "
            f"take another --name, and `cluster up --nodes real` first"
        )
    need_all()
    with tempfile.TemporaryDirectory(prefix="apscli-install-") as scratch:
        built = pathlib.Path(scratch, "built")
        _build(built)
        tag = _tag(built)
        _load_images(cluster, built, tag, pathlib.Path(scratch))
    _install_charts(cluster, tag)


def need_all() -> None:
    """Says the first thing that is missing to install, before anything is built."""
    for tool in ("cargo", "debootstrap", "readelf"):
        need_tool(tool)
    # Debian keeps the one without which the other makes no use in another package.
    found = subprocess.run(["python3", "-c", "import ensurepip, venv"], capture_output=True)
    if found.returncode != 0:
        raise Trouble("python3 cannot make virtual environments: apt-get install python3-venv "
                      "(or run tests/cluster/install-deps)")  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build(built: pathlib.Path) -> None:
    """Release programs, as they come into the images."""
    _say("building the programs (the first time, this takes minutes)")
    _run([str(ROOT / "src/node/build"), "--operator", str(built)], shown=True)


def _tag(built: pathlib.Path) -> str:
    """Another tag for other programs, so that an upgrade is seen as one."""
    content = hashlib.sha256()
    for name in BUILT:
        content.update((built / name).read_bytes())
    version = re.search(r'^appVersion: "(.*)"$', (ROOT / "charts/apscli/Chart.yaml").read_text(), re.MULTILINE)
    return f"{version[1]}-{content.hexdigest()[:12]}"


def _load_images(cluster: Cluster, built: pathlib.Path, tag: str, scratch: pathlib.Path) -> None:
    """Writes the images and gives them to the nodes, unless these have them."""
    os.environ |= {"APSCLI_BUILT": str(built), "APSCLI_TAG": tag}
    mark = cluster.path("images-loaded")
    for image in ("apscli", "apscli-node"):
        if mark.exists() and f"{image}:{tag}" in mark.read_text().split():
            continue
        _say(f"loading the image {image}:{tag}")
        tar = scratch / f"{image}.tar"
        images.write_image(ROOT / "images" / f"{image}.toml", tar)
        lifecycle.load_image(cluster.name, str(tar))
        tar.unlink()
        with mark.open("a") as loaded:
            loaded.write(f"{image}:{tag}\n")


def _install_charts(cluster: Cluster, tag: str) -> None:
    environment = os.environ | {
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": f"{lifecycle.tool_path(cluster)}:{os.environ.get('PATH', os.defpath)}",
    }

    def tool(*words: str, told: str | None = None) -> None:
        _run(list(words), told=told, env=environment)

    for name in (NAMESPACE, SHARED):
        namespace = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
        apply = ["kubectl", "apply", "--server-side", "--field-manager=cluster-install", "--filename=-"]
        tool(*apply, told=json.dumps(namespace))
        # Left by an install that was killed in the middle; helm would not go on from there.
        tool("kubectl", "delete", "secrets", "--namespace", name,
             "--selector=owner=helm,status in (pending-install, pending-upgrade, pending-rollback)")  # fmt: skip
    values = {"image": {"tag": tag}, "nodes": {"image": {"tag": tag}}}
    upgrade = ["helm", "upgrade", "--install", "--wait", "--timeout", PATIENCE, "--namespace"]
    _say("installing the chart apscli")
    tool(*upgrade, NAMESPACE, "apscli", str(ROOT / "charts/apscli"), "--values=-", told=json.dumps(values))
    _say("installing the chart apscli-services")
    tool(*upgrade, SHARED, "apscli-services", str(ROOT / "charts/apscli-services"))
    tool("kubectl", "wait", "--namespace", SHARED, "--for=condition=Ready", f"--timeout={PATIENCE}",
         "services.apscli.dev", "--all")  # fmt: skip
    _say(f"apscli {tag} is ready in the namespace {NAMESPACE}, its services are in {SHARED}: kubectl get apsvc --all-namespaces")


def _run(command: list[str], told: str | None = None, shown: bool = False, **options) -> None:
    """Runs a command; if it fails, the last of what it said is the trouble. `shown`: it takes so long that
    people want to see what it says, all of it on stderr."""
    output = sys.stderr if shown else subprocess.PIPE
    done = subprocess.run(command, input=told, stdout=output, stderr=output, text=True, **options)
    if done.returncode != 0:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) if not shown else "see above"
        raise Trouble(f"{' '.join(command[:2])} ended with {done.returncode}: {said}")
