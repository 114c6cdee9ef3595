"""The programs of a cluster, built from pinned modules and kept in the user's cache.

Each directory below parts/ is a Go module of its own, so that the dependencies of one program never
bend those of another. A build's place in the cache is named by a hash of its pins and flags; it is
built beside that place under a lock and renamed into it, so that what is there is always whole and two
builds at once are one build. This module must not know how the programs are used.
"""

import dataclasses
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from .trouble import Trouble, need_tool, search_path

PARTS = pathlib.Path(__file__).resolve().parent.parent / "parts"
DEFAULT_KUBERNETES = "v1.37.2"


@dataclasses.dataclass(frozen=True)
class Part:
    """A module with pinned programs. `version_flags` may use {version}, {major} and {minor}."""

    directory: str
    pinned_module: str
    version_flags: tuple[str, ...] = ()
    # The go command names a program by its package's path, which is not always the name people know.
    renamed: tuple[tuple[str, str], ...] = ()


def kubernetes(version: str) -> Part:
    """The control plane, kubelet and kubectl of one version."""
    variables = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return Part(
        f"kubernetes/{version}",
        "k8s.io/kubernetes",
        # Without these every client sees v0.0.0 and version checks fail.
        tuple(
            f"-X {package}.{name}"
            for package in variables
            for name in ("gitVersion={version}", "gitMajor={major}", "gitMinor={minor}")
        ),
    )


ETCD = Part("etcd", "go.etcd.io/etcd/server/v3", renamed=(("server", "etcd"),))
CONTAINERD = Part(
    "containerd",
    "github.com/containerd/containerd/v2",
    ("-X github.com/containerd/containerd/v2/version.Version={version}",),
)
KWOK = Part("kwok", "sigs.k8s.io/kwok")
HELM = Part("helm", "helm.sh/helm/v4", ("-X helm.sh/helm/v4/internal/version.version={version}",))


def cache_root() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base).absolute() / "apscli-cluster"


def kubernetes_versions() -> list[str]:
    return sorted(path.parent.name for path in PARTS.glob("kubernetes/*/go.mod"))


def check_kubernetes_version(version: str) -> str:
    """Accepts 1.37.2, v1.37.2 and 1.37, if that is pinned."""
    wanted = version if version.startswith("v") else f"v{version}"
    for pinned in kubernetes_versions():
        if pinned == wanted or pinned.rpartition(".")[0] == wanted:
            return pinned
    raise Trouble(
        f"Kubernetes {version} is not pinned here (there is: {', '.join(kubernetes_versions())}); "
        f"pin it with tests/cluster/pin-kubernetes {wanted}"
    )


def need(part: Part) -> None:
    """Says what is missing to have a part's programs."""
    if not _place(part).is_dir():
        need_tool("go")


def binaries(part: Part) -> pathlib.Path:
    """The directory with a part's programs, built if they are not cached."""
    cached = _place(part)
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{cached}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not cached.is_dir():
                _build(part, cached)
    return cached


def _place(part: Part) -> pathlib.Path:
    """Where a part's programs are, or will be once they are built."""
    module = PARTS / part.directory
    digest = hashlib.sha256()
    for text in ((module / "go.mod").read_bytes(), (module / "go.sum").read_bytes(), "\0".join(_flags(part)).encode()):
        digest.update(hashlib.sha256(text).digest())
    return cache_root() / "bin" / f"{part.directory.replace('/', '-')}-{digest.hexdigest()[:16]}"


def _build(part: Part, cached: pathlib.Path) -> None:
    go = need_tool("go")
    print(f"building {part.directory} (kept in {cached}) …", file=sys.stderr, flush=True)
    began = time.monotonic()
    # Only the holder of the lock has this name, so what is there was left by one that was killed.
    unfinished = cached.with_name(cached.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    built = subprocess.run(
        [go, "build", *_flags(part), "-o", f"{unfinished}/", "tool"],
        cwd=PARTS / part.directory,
        env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off", "PATH": search_path()},
        stderr=subprocess.PIPE,
        text=True,
    )
    if built.returncode != 0:
        sys.stderr.write(built.stderr)
        raise Trouble(f"building {part.directory} failed; what go said stands above")
    for as_built, as_known in part.renamed:
        (unfinished / as_built).rename(unfinished / as_known)
    unfinished.rename(cached)
    print(f"built {part.directory} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _flags(part: Part) -> list[str]:
    module = PARTS / part.directory
    pins = (module / "go.mod").read_text()
    version = re.search(rf"^(?:require )?\s*{re.escape(part.pinned_module)} (v(\d+)\.(\d+)\S*)", pins, re.MULTILINE)
    if version is None:
        raise Trouble(f"{module}/go.mod does not pin {part.pinned_module}")
    told = [flag.format(version=version[1], major=version[2], minor=version[3]) for flag in part.version_flags]
    return ["-trimpath", "-ldflags", " ".join(["-s -w", *told])]
