"""As much of a Kubernetes API server as watching ConfigMaps needs, over TLS: it answers as a real kube-apiserver did.

What it does is written down in https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes;
tests of both are the same as far as they go (kube_apiserver.py).
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers.certificates import signed

NAMESPACE = "experiments"
TOKEN = "token-1"
USER = f"system:serviceaccount:{NAMESPACE}:studioml-account"


class ApiServer:
    """ConfigMaps by name, each change of them an event. Lists, and watches until ``cut``."""

    def __init__(self, root: Path) -> None:
        self.account = root
        self.token = TOKEN
        self.refusal = 0
        self.verbs = {"list", "watch"}
        self.ended = False
        self.watching = 0
        self.requests: list[dict[str, str]] = []
        self.changed = Condition()
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._maps: dict[str, dict[str, Any]] = {}
        self._version, self._oldest, self._epoch = 100, 0, 0
        authority, certificate, key = signed(root)
        Path(authority).rename(root / "ca.crt")
        (root / "token").write_text(TOKEN)
        (root / "namespace").write_text(NAMESPACE)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": self}))
        # Hands are shaken in each connection's own thread, which closes it, whatever comes of it.
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def environ(self) -> dict[str, str]:
        """What a pod's environment says of it."""
        host, port = self.http.server_address[:2]
        return {"KUBERNETES_SERVICE_HOST": str(host), "KUBERNETES_SERVICE_PORT": str(port), "HOSTNAME": "pod-1"}

    def put(self, name: str, state: str | None) -> None:
        """``kubectl apply`` of a ConfigMap; without a state: with other data."""
        kind = "MODIFIED" if name in self._maps else "ADDED"
        data = {"other": "x"} if state is None else {"STATE": state}
        self._change(kind, {"metadata": {"name": name}, "data": data})

    def delete(self, name: str) -> None:
        """``kubectl delete configmap``."""
        self._change("DELETED", self._maps[name])

    def forget(self) -> None:
        """Compact the past: who watches from there is told 410."""
        with self.changed:
            self._version += 1
            self._events, self._oldest = [], self._version
        self.cut()

    def cut(self) -> None:
        """End all watches, as an API server does every few minutes."""
        with self.changed:
            self._epoch += 1
            self.changed.notify_all()

    def permit(self, *verbs: str) -> None:
        """Let the service account do no more than that."""
        self.verbs = set(verbs)

    def renew_token(self) -> None:
        """As the kubelet does long before a token runs out; the old one is worth nothing then."""
        self.token = f"{self.token}1"
        (self.account / "token").write_text(self.token + "\n")

    def restore(self, name: str, state: str) -> None:
        """Put back what the cluster was long ago: no watch is told, and versions are small again."""
        with self.changed:
            self._events, self._version, self._oldest = [], 10, 0
            self._maps = {name: {"metadata": {"name": name, "resourceVersion": "10"}, "data": {"STATE": state}}}

    def end(self) -> None:
        """Watch nothing any more."""
        self.ended = True
        self.cut()

    def listed(self, name: str) -> dict[str, Any]:
        with self.changed:
            items = [thing for thing in [self._maps.get(name)] if thing]
            return {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    def events(self, name: str, version: int, seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the changes after a version as they happen; ends when cut, or after so many seconds."""
        end = time.monotonic() + seconds
        with self.changed:
            epoch = self._epoch
            self.watching += 1
            if version < self._oldest:
                yield {"type": "ERROR", "object": status(410, f"too old resource version: {version} ({self._oldest})")}
                return
            while epoch == self._epoch and not self.ended and time.monotonic() < end:
                for number, kind, thing in [event for event in self._events if event[0] > version]:
                    version = number
                    if thing["metadata"]["name"] == name:
                        yield {"type": kind, "object": thing}
                self.changed.wait(min(60.0, max(0.0, end - time.monotonic())))
            if not self.ended:
                yield {
                    "type": "BOOKMARK",
                    "object": {"kind": "ConfigMap", "metadata": {"resourceVersion": str(version)}},
                }

    def _change(self, kind: str, thing: dict[str, Any]) -> None:
        with self.changed:
            self._version += 1
            thing = {**thing, "metadata": {**thing["metadata"], "resourceVersion": str(self._version)}}
            self._events.append((self._version, kind, thing))
            if kind == "DELETED":
                self._maps.pop(thing["metadata"]["name"])
            else:
                self._maps[thing["metadata"]["name"]] = thing
            self.changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, *_: Any) -> None:
        """Clients that do not trust us go away."""


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"
    timeout = 5.0

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.api.requests.append(query)
        verb = "watch" if "watch" in query else "list"
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        if refusal := self._refusal(verb, url.path):
            self._whole(refusal["code"], refusal)
            return
        if verb == "list":
            self._whole(200, self.api.listed(name))
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.api.events(name, int(query.get("resourceVersion", "0")), float(query["timeoutSeconds"])):
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _refusal(self, verb: str, path: str) -> dict[str, Any]:
        """Return the Status of what is not answered, {} for none."""
        if self.api.refusal:
            return status(self.api.refusal, "no")
        if self.headers["Authorization"] != f"Bearer {self.api.token}":
            return status(401, "Unauthorized")
        if verb not in self.api.verbs:
            return status(403, f'configmaps is forbidden: User "{USER}" cannot {verb} resource "configmaps"')
        if path != f"/api/v1/namespaces/{NAMESPACE}/configmaps":
            return status(404, "the server could not find the requested resource")
        return {}

    def _whole(self, code: int, thing: dict[str, Any]) -> None:
        body = json.dumps(thing).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def status(code: int, message: str) -> dict[str, Any]:
    """What the server says instead of what it was asked for."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code}


@contextmanager
def started(root: Path) -> Iterator[ApiServer]:
    """Serve until the context ends; ``root`` becomes the directory of a pod's service account."""
    api = ApiServer(root)
    thread = Thread(target=api.http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.end()
        api.http.shutdown()
        api.http.server_close()
