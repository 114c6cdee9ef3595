"""Keys, certificates and kubeconfigs of one cluster, made at its first `up` and gone with it.

One authority signs all; who somebody is follows from the certificate alone, so no token or password
exists anywhere. Files are readable by their owner only. This module must not know which program uses what.
"""

import base64
import dataclasses
import json
import pathlib
import shutil
import subprocess

from .state import write_whole
from .trouble import Trouble, need_tool

VALID_DAYS = "365"


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a certificate says: a user and a group to Kubernetes, and the addresses it serves."""

    user: str
    group: str = ""
    serves: tuple[str, ...] = ()


def make(directory: pathlib.Path, identities: dict[str, Identity]) -> None:
    """Makes the authority, a key and certificate per identity, and the service-account key pair."""
    if directory.is_dir():
        return
    openssl = need_tool("openssl")
    # Renamed at the end: a half-made set, left by a killed starter, is made anew.
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    _certificate(openssl, unfinished, "ca", "/CN=apscli-cluster", ["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
    for name, identity in identities.items():
        group = f"/O={identity.group}" if identity.group else ""
        extensions = ["-addext", "basicConstraints=critical,CA:FALSE"]
        if identity.serves:
            extensions += ["-addext", f"subjectAltName={','.join(identity.serves)}"]
        signed = ["-CA", str(unfinished / "ca.crt"), "-CAkey", str(unfinished / "ca.key"), *extensions]
        _certificate(openssl, unfinished, name, f"{group}/CN={identity.user}", signed)
    _run(openssl, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(unfinished / "service-account.key"))
    _run(openssl, "ec", "-in", str(unfinished / "service-account.key"), "-pubout",
         "-out", str(unfinished / "service-account.pub"))  # fmt: skip
    for path in unfinished.iterdir():
        path.chmod(0o600)
    unfinished.rename(directory)


def write_kubeconfig(path: pathlib.Path, server: str, pki: pathlib.Path, name: str) -> None:
    """Writes a kubeconfig (JSON is YAML) with everything inside, so that it may be copied."""

    def inside(file: str) -> str:
        return base64.b64encode((pki / file).read_bytes()).decode()

    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "cluster", "cluster": {"server": server, "certificate-authority-data": inside("ca.crt")}}
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": inside(f"{name}.crt"),
                    "client-key-data": inside(f"{name}.key"),
                },
            }
        ],
        "contexts": [{"name": "default", "context": {"cluster": "cluster", "user": name}}],
        "current-context": "default",
    }
    write_whole(path, json.dumps(config, indent=2) + "\n")


def _certificate(openssl: str, directory: pathlib.Path, name: str, subject: str, extra: list[str]) -> None:
    _run(
        openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-sha256",
        "-days", VALID_DAYS, "-subj", subject, "-keyout", str(directory / f"{name}.key"),
        "-out", str(directory / f"{name}.crt"), *extra,
    )  # fmt: skip


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise Trouble(f"{' '.join(argv[:2])} failed: {done.stderr.strip().splitlines()[-1]} (OpenSSL 3 is needed)")
