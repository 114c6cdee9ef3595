"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler: their files, flags and readiness.

All is as a real cluster has it, bar three things: etcd does not wait for the disk (a test cluster may
die with its machine), client-side rate limits are raised so that measurements show the work and not a
limiter, and nobody elects a leader. This module must not start processes.
"""

import json
import pathlib
import typing

from . import pki
from .api import Api
from .part import Part
from .state import Cluster, write_whole

SERVICE_RANGE = "10.96.0.0/16"
# The first address of the range is the `kubernetes` Service's. With real nodes the apiserver listens on
# exactly this address, inside the sandbox, so that pods reach it without any service proxy.
SERVICE_ADDRESS = "10.96.0.1"

PORTS = ["api", "etcd", "etcd-peer", "controller-manager", "scheduler"]

IDENTITIES = {
    "apiserver": pki.Identity(
        "kube-apiserver",
        serves=(
            "IP:127.0.0.1",
            f"IP:{SERVICE_ADDRESS}",
            "DNS:localhost",
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            "DNS:kubernetes.default.svc.cluster.local",
        ),
    ),
    "etcd": pki.Identity("etcd", serves=("IP:127.0.0.1",)),
    "etcd-client": pki.Identity("etcd-client"),
    "kubelet-client": pki.Identity("apiserver", group="system:masters"),
    "admin": pki.Identity("admin", group="system:masters"),
    "controller-manager": pki.Identity("system:kube-controller-manager"),
    "scheduler": pki.Identity("system:kube-scheduler"),
}


class Programs(typing.Protocol):
    """Where the built programs are."""

    etcd: pathlib.Path
    kubernetes: pathlib.Path


def prepare(cluster: Cluster, inner_server: str) -> None:
    """Writes the configuration files; certificates exist by now."""
    keys = cluster.path("pki")
    pki.write_kubeconfig(cluster.kubeconfig, f"https://127.0.0.1:{cluster.ports['api']}", keys, "admin")
    for client in ("controller-manager", "scheduler"):
        pki.write_kubeconfig(cluster.path("config", f"{client}.kubeconfig"), inner_server, keys, client)
    scheduler = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {
            "kubeconfig": str(cluster.path("config", "scheduler.kubeconfig")),
            "qps": 5000,
            "burst": 5000,
        },
        "leaderElection": {"leaderElect": False},
    }
    write_whole(cluster.path("config", "scheduler.json"), json.dumps(scheduler, indent=2) + "\n")


def parts(cluster: Cluster, programs: Programs, inside: bool) -> tuple[list[Part], list[Part]]:
    """What keeps and serves objects, and what needs that to be ready."""
    admin = Api(cluster.ports["api"], cluster.path("pki"))

    def controllers_work() -> bool:
        # The first pod of a namespace needs its service account, which a controller makes.
        return admin.answers("/api/v1/namespaces/default/serviceaccounts/default")

    def api_ready() -> bool:
        return admin.answers("/readyz")

    store = [
        # Its own readiness cannot be seen from outside a sandbox; the apiserver's includes it.
        Part("etcd", _etcd(cluster, programs), lambda: True, inside),
        Part("apiserver", _apiserver(cluster, programs, inside), api_ready, inside),
    ]
    controllers = [
        Part("controller-manager", _controller_manager(cluster, programs), controllers_work, inside),
        Part("scheduler", _scheduler(cluster, programs), api_ready, inside),
    ]
    return store, controllers


def _etcd(cluster: Cluster, programs: Programs) -> list[str]:
    keys = cluster.path("pki")
    client = f"https://127.0.0.1:{cluster.ports['etcd']}"
    peer = f"https://127.0.0.1:{cluster.ports['etcd-peer']}"
    return [
        f"{programs.etcd}/etcd",
        "--name=etcd",
        f"--data-dir={cluster.path('etcd')}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=etcd={peer}",
        f"--cert-file={keys}/etcd.crt",
        f"--key-file={keys}/etcd.key",
        f"--trusted-ca-file={keys}/ca.crt",
        "--client-cert-auth",
        f"--peer-cert-file={keys}/etcd.crt",
        f"--peer-key-file={keys}/etcd.key",
        f"--peer-trusted-ca-file={keys}/ca.crt",
        "--peer-client-cert-auth",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(cluster: Cluster, programs: Programs, inside: bool) -> list[str]:
    keys = cluster.path("pki")
    address = SERVICE_ADDRESS if inside else "127.0.0.1"
    return [
        f"{programs.kubernetes}/kube-apiserver",
        f"--bind-address={address}",
        f"--secure-port={443 if inside else cluster.ports['api']}",
        f"--advertise-address={address}",
        # An endpoint on loopback is refused, and nobody here looks at endpoints.
        "--endpoint-reconciler-type=none",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--etcd-servers=https://127.0.0.1:{cluster.ports['etcd']}",
        f"--etcd-cafile={keys}/ca.crt",
        f"--etcd-certfile={keys}/etcd-client.crt",
        f"--etcd-keyfile={keys}/etcd-client.key",
        f"--tls-cert-file={keys}/apiserver.crt",
        f"--tls-private-key-file={keys}/apiserver.key",
        f"--client-ca-file={keys}/ca.crt",
        f"--kubelet-client-certificate={keys}/kubelet-client.crt",
        f"--kubelet-client-key={keys}/kubelet-client.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys}/service-account.pub",
        f"--service-account-signing-key-file={keys}/service-account.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        # As clusters have it: who may be privileged is for Pod Security to say.
        "--allow-privileged",
    ]


def _controller_manager(cluster: Cluster, programs: Programs) -> list[str]:
    keys = cluster.path("pki")
    return [
        f"{programs.kubernetes}/kube-controller-manager",
        "--bind-address=127.0.0.1",
        f"--secure-port={cluster.ports['controller-manager']}",
        f"--kubeconfig={cluster.path('config', 'controller-manager.kubeconfig')}",
        "--authentication-skip-lookup",
        f"--client-ca-file={keys}/ca.crt",
        f"--root-ca-file={keys}/ca.crt",
        f"--service-account-private-key-file={keys}/service-account.key",
        "--use-service-account-credentials",
        "--leader-elect=false",
        # It makes this directory, which by default is one of the machine's.
        f"--flex-volume-plugin-dir={cluster.path('volume-plugins')}",
        "--kube-api-qps=5000",
        "--kube-api-burst=5000",
    ]


def _scheduler(cluster: Cluster, programs: Programs) -> list[str]:
    return [
        f"{programs.kubernetes}/kube-scheduler",
        "--bind-address=127.0.0.1",
        f"--secure-port={cluster.ports['scheduler']}",
        f"--config={cluster.path('config', 'scheduler.json')}",
        "--authentication-skip-lookup",
        f"--client-ca-file={cluster.path('pki')}/ca.crt",
    ]
