"""apscli itself on a cluster: its programs built, their images on the nodes, both charts installed.

May be repeated: what has changed since is built, loaded and rolled out, what has not stays. This module
must not start or stop a part of the cluster.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from . import images, lifecycle
from .state import Cluster
from .trouble import Trouble, need_tool

ROOT = pathlib.Path(__file__).resolve().parents[3]
NAMESPACE = "apscli"
BUILT = ("apscli", "apscli-node", "libapscli_python.so")
# The C library of the images' Debian: a program built against a newer one does not start there.
IMAGE_GLIBC = (2, 36)
PATIENCE = "300s"


def install(name: str) -> None:
    """Builds, loads and installs; returns once the operator is ready and the services can be run."""
    cluster = lifecycle.existing(name)
    if cluster.nodes != "real":
        raise Trouble(
            f"cluster {name} was made with --nodes {cluster.nodes} and runs no operator: "
            f"take another --name, and `cluster up --nodes real` first"
        )
    need_tool("cargo")
    need_tool("debootstrap")
    with tempfile.TemporaryDirectory(prefix="apscli-install-") as scratch:
        built = pathlib.Path(scratch, "built")
        _build(built)
        tag = _tag(built)
        _load_images(cluster, built, tag, pathlib.Path(scratch))
    _install_charts(cluster, tag)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build(built: pathlib.Path) -> None:
    """Release programs, as they come into the images."""
    _say("building the programs (the first time, this takes minutes)")
    _run(["cargo", "build", "--release", "--locked", "--quiet", "--package", "apscli"], cwd=ROOT)
    _run([str(ROOT / "src/node/build"), str(built)], cwd=ROOT)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    shutil.copy(target / "release/apscli", built / "apscli")
    needed = max(
        (tuple(map(int, version)) for version in re.findall(rb"GLIBC_(\d+)\.(\d+)", (built / "apscli").read_bytes())),
        default=IMAGE_GLIBC,
    )
    if needed > IMAGE_GLIBC:
        raise Trouble(
            f"this machine's C library gave a program that needs glibc {needed[0]}.{needed[1]}, and the image has "
            f"{IMAGE_GLIBC[0]}.{IMAGE_GLIBC[1]}: build the images by images/Containerfile"
        )


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

    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    apply = ["kubectl", "apply", "--server-side", "--field-manager=cluster-install", "--filename=-"]
    tool(*apply, told=json.dumps(namespace))
    values = {"image": {"tag": tag}, "nodes": {"image": {"tag": tag}}}
    upgrade = ["helm", "upgrade", "--install", "--namespace", NAMESPACE, "--wait", "--timeout", PATIENCE]
    _say("installing the chart apscli")
    tool(*upgrade, "apscli", str(ROOT / "charts/apscli"), "--values=-", told=json.dumps(values))
    _say("installing the chart apscli-services")
    tool(*upgrade, "apscli-services", str(ROOT / "charts/apscli-services"))
    tool("kubectl", "wait", "--namespace", NAMESPACE, "--for=condition=Ready", f"--timeout={PATIENCE}",
         "services.apscli.dev", "--all")  # fmt: skip
    _say(f"apscli {tag} is ready in the namespace {NAMESPACE}: kubectl get apsvc --all-namespaces")


def _run(command: list[str], told: str | None = None, **options) -> None:
    done = subprocess.run(command, input=told, capture_output=True, text=True, **options)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Trouble(f"{' '.join(command[:2])} ended with {done.returncode}: {' / '.join(said[-3:])}")
