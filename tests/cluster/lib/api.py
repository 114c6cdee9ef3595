"""A small client of the Kubernetes API (and of etcd's JSON gateway) over the standard library.

It exists so that `cluster` and its tests can ask and say things without a process per question. It
must not retry or hide an answer: who calls decides what an answer means.
"""

import contextlib
import http.client
import json
import pathlib
import ssl


class Api:
    """One TLS endpoint spoken to with a client certificate. Not for use by several threads at once."""

    def __init__(self, port: int, pki: pathlib.Path, identity: str = "admin"):
        self.port = port
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / f"{identity}.crt", pki / f"{identity}.key")

    def call(self, method: str, path: str, body: dict | None = None, *, patch: str = "merge-patch") -> tuple[int, dict]:
        """The answer's status and body. Raises OSError where nobody answers."""
        kind = f"application/{patch}+json" if method == "PATCH" else "application/json"
        with contextlib.closing(self.connect(timeout=30)) as connection:
            connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, _decoded(answer.read())

    def get(self, path: str) -> tuple[int, dict]:
        return self.call("GET", path)

    def answers(self, path: str) -> bool:
        """Whether a GET is answered with 200."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get(path)[0] == 200
        return False

    def watch(self, path: str, timeout: float = 30):
        """Yields the events of a watch; an answer other than 200 comes as one event of type HTTP."""
        with contextlib.closing(self.connect(timeout)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200:
                yield {"type": "HTTP", "object": {"code": answer.status}}
                return
            for line in answer:
                yield json.loads(line)

    def connect(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self._tls)


def _decoded(body: bytes) -> dict:
    try:
        return json.loads(body)
    except ValueError:
        return {"text": body.decode(errors="replace")}
