"""Nodes that run nothing: kwok plays the kubelet by the stages in fake/kwok.yaml.

This module must not decide how pods end; the stages and each pod's annotations do.
"""

import pathlib

from . import pki
from .api import Api
from .part import Part
from .state import Cluster
from .trouble import Trouble

CONFIGURATION = pathlib.Path(__file__).resolve().parent.parent / "fake/kwok.yaml"
NODE_NAMES = ("fake-1", "fake-2")

IDENTITIES = {"kwok": pki.Identity("kwok", group="system:masters")}


def prepare(cluster: Cluster, server: str) -> None:
    pki.write_kubeconfig(cluster.path("config", "kwok.kubeconfig"), server, cluster.path("pki"), "kwok")


def part(cluster: Cluster, kwok: pathlib.Path) -> Part:
    admin = Api(cluster.ports["api"], cluster.path("pki"))

    def nodes_ready() -> bool:
        for name in NODE_NAMES:
            _make_node(admin, name, cluster.kubernetes)
        return all(node_is_ready(admin, name) for name in NODE_NAMES)

    return Part(
        "kwok",
        [
            f"{kwok}/kwok",
            f"--config={CONFIGURATION}",
            f"--kubeconfig={cluster.path('config', 'kwok.kubeconfig')}",
            # At its usual level it writes a line for every change of every pod.
            "--v=warn",
        ],
        nodes_ready,
    )


def node_is_ready(admin: Api, name: str) -> bool:
    status, node = admin.get(f"/api/v1/nodes/{name}")
    conditions = node.get("status", {}).get("conditions", []) if status == 200 else []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _make_node(admin: Api, name: str, kubernetes: str) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "type": "fake"},
            "annotations": {"fake.apscli.dev/kubelet-version": kubernetes},
        },
    }
    status, answer = admin.call("POST", "/api/v1/nodes", node)
    if status not in (201, 409):
        raise Trouble(f"the node {name} could not be made: {answer.get('message')}")
