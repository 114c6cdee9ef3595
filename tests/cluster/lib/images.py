"""OCI image tars without a container engine, the same bytes for the same input.

An image is told by a TOML file: a name, what runs, and a list of files and links. The tar holds an OCI
layout that `ctr images import` (and so `cluster load-image`), skopeo and podman read. Times, owners and
order are fixed, so that equal files give an equal digest. This module must not talk to a cluster.
"""

import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import stat
import subprocess
import tarfile
import tempfile
import tomllib

from .build import cache_root
from .trouble import Trouble, need_root, need_tool, search_path

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

# What an installation leaves behind that says when or where it was made, or that no container needs.
NOT_IN_A_BASE = (
    "dev", "proc", "sys", "run", "tmp", "var/cache", "var/log", "var/tmp", "var/lib/apt/lists",
    "var/lib/dpkg/status-old", "var/lib/dpkg/available-old", "etc/machine-id", "etc/hostname", "etc/resolv.conf", "usr/share/doc",
    "usr/share/man", "usr/share/locale", "usr/share/info", "debootstrap",
)  # fmt: skip
EMPTY_IN_A_BASE = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "var/tmp": 0o1777,
                   "var/log": 0o755, "var/cache": 0o755}  # fmt: skip

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(specification: pathlib.Path, output: pathlib.Path) -> str:
    """Writes the image that a TOML file tells of; returns its name and manifest digest."""
    try:
        told = tomllib.loads(specification.read_text())
        name = os.path.expandvars(told["name"])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Trouble(f"{specification}: {error}") from None
    except KeyError as key:
        raise Trouble(f"{specification}: {key} is missing") from None
    layers = []
    if "base" in told:
        layers.append(_debian_layer(told["base"]["suite"], told["base"]["packages"]))
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        own_layer = pathlib.Path(scratch, "layer.tar")
        _write_layer(own_layer, _told_entries(told, specification.parent))
        layers.append(own_layer)
        whole = pathlib.Path(scratch, "image.tar")
        digest = _write_layout(whole, name, layers, _run_configuration(told))
        whole.rename(output)
    return f"{name}@{digest}"


def _run_configuration(told: dict) -> dict:
    """The config's part that says what runs and as whom."""
    config = {
        "Entrypoint": told.get("entrypoint"),
        "Cmd": told.get("command"),
        "User": told.get("user"),
        "WorkingDir": told.get("directory", "/"),
        "Env": [f"{key}={value}" for key, value in sorted(told.get("environment", {}).items())],
        "Labels": told.get("labels"),
    }
    return {key: value for key, value in config.items() if value}


def _told_entries(told: dict, beside: pathlib.Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    entries = {}
    for file in told.get("file", []):
        source = beside / os.path.expandvars(file["from"])
        try:
            content, mode = source.read_bytes(), source.stat().st_mode
        except OSError as error:
            hint = " (apt-get install busybox-static)" if source.name == "busybox" else ""
            raise Trouble(f"{source}: {error.strerror}{hint}") from None
        if file.get("static") and b"ld-linux" in content[:4096]:
            raise Trouble(f"{source} needs shared libraries: apt-get install busybox-static")
        mode = int(file["mode"], 8) if "mode" in file else 0o755 if mode & 0o100 else 0o644
        entries[file["to"]] = (_entry(file["to"], tarfile.REGTYPE, mode, size=len(content)), content)
    for link in told.get("link", []):
        entries[link["at"]] = (_entry(link["at"], tarfile.SYMTYPE, 0o777, target=link["to"]), b"")
    for directory in told.get("directory_at", []):
        mode = int(directory.get("mode", "0755"), 8)
        entries[directory["at"]] = (_entry(directory["at"], tarfile.DIRTYPE, mode), b"")
    if "base" not in told:
        # A base has its own, perhaps as links, which an entry here would replace.
        for path in list(entries):
            for parent in pathlib.PurePosixPath(path).parents:
                entries.setdefault(str(parent), (_entry(str(parent), tarfile.DIRTYPE, 0o755), b""))
    return [entries[path] for path in sorted(entries) if path != "/"]


def _entry(path: str, kind: bytes, mode: int, size: int = 0, target: str = "") -> tarfile.TarInfo:
    """A tar header in which nothing depends on when, where or by whom it is written."""
    info = tarfile.TarInfo(path.strip("/"))
    info.type, info.mode, info.size, info.linkname = kind, mode, size, target
    info.mtime = info.uid = info.gid = 0
    return info


def _write_layer(output: pathlib.Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as layer:
        for info, content in entries:
            layer.addfile(info, io.BytesIO(content) if info.isreg() else None)


def _write_layout(output: pathlib.Path, name: str, layers: list[pathlib.Path], run: dict) -> str:
    """Writes the OCI layout; returns the manifest's digest."""
    digests = [_file_digest(layer) for layer in layers]
    architecture = ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    config = _json({
        "architecture": architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": digests},
        # As many as there are layers, or buildah cannot build upon the image.
        "history": [{"created_by": "tests/cluster/image"} for _ in digests],
    })  # fmt: skip
    manifest = _json({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": _digest(config), "size": len(config)},
        "layers": [
            {"mediaType": LAYER_TYPE, "digest": digest, "size": layer.stat().st_size}
            for digest, layer in zip(digests, layers, strict=True)
        ],
    })  # fmt: skip
    index = _json({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [
            {
                "mediaType": MANIFEST_TYPE,
                "digest": _digest(manifest),
                "size": len(manifest),
                "platform": {"architecture": architecture, "os": "linux"},
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name.rpartition(":")[2],
                },
            }
        ],
    })  # fmt: skip
    texts = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": index,
        _blob(_digest(config)): config,
        _blob(_digest(manifest)): manifest,
    }
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as layout:
        for path, text in sorted(texts.items()):
            layout.addfile(_entry(path, tarfile.REGTYPE, 0o644, size=len(text)), io.BytesIO(text))
        for digest, layer in sorted(dict(zip(digests, layers, strict=True)).items()):
            with layer.open("rb") as content:
                layout.addfile(_entry(_blob(digest), tarfile.REGTYPE, 0o644, size=layer.stat().st_size), content)
    return _digest(manifest)


def _debian_layer(suite: str, packages: list[str]) -> pathlib.Path:
    """A small Debian with these packages as one layer, from the cache or installed into it.

    What Debian serves changes with time, so this layer is reproducible only while it is cached.
    """
    wanted = hashlib.sha256(json.dumps([suite, sorted(packages), NOT_IN_A_BASE]).encode()).hexdigest()[:16]
    layer = cache_root() / "base" / f"debian-{suite}-{wanted}.tar"
    layer.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{layer}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layer.exists():
            debootstrap = need_tool("debootstrap")
            need_root("making a Debian base image")
            root = layer.with_suffix(".root")
            shutil.rmtree(root, ignore_errors=True)
            made = subprocess.run(
                [debootstrap, "--variant=minbase", f"--include={','.join(packages)}", suite, str(root)],
                capture_output=True,
                text=True,
                env=os.environ | {"PATH": search_path()},
            )
            if made.returncode != 0:
                raise Trouble(f"debootstrap failed: {(made.stdout + made.stderr).strip().splitlines()[-1]}")
            unfinished = layer.with_suffix(".unfinished")
            _write_tree_layer(unfinished, root)
            unfinished.rename(layer)
            shutil.rmtree(root)
    return layer


def _write_tree_layer(output: pathlib.Path, root: pathlib.Path) -> None:
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as layer:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if name.endswith(".pyc") or any(name == left or name.startswith(f"{left}/") for left in NOT_IN_A_BASE):
                continue
            status = path.lstat()
            mode = stat.S_IMODE(status.st_mode)
            if path.is_symlink():
                info = _entry(name, tarfile.SYMTYPE, 0o777, target=os.readlink(path))
            elif path.is_dir():
                info = _entry(name, tarfile.DIRTYPE, mode)
            elif path.is_file():
                info = _entry(name, tarfile.REGTYPE, mode, size=status.st_size)
            else:
                continue
            info.uid, info.gid = status.st_uid, status.st_gid
            with path.open("rb") if info.isreg() else io.BytesIO() as content:
                layer.addfile(info, content)
        for name, mode in sorted(EMPTY_IN_A_BASE.items()):
            layer.addfile(_entry(name, tarfile.DIRTYPE, mode))


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _digest(text: bytes) -> str:
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _file_digest(path: pathlib.Path) -> str:
    with path.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _json(value: dict) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
