"""As much of a Kubernetes API server as watching ConfigMaps needs, over TLS: there is no small real one.

What it does is written down in https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers.certificates import self_signed

NAMESPACE = "experiments"
TOKEN = "token-1"


class ApiServer:
    """ConfigMaps by name, each change of them an event. Lists, and watches until ``cut``."""

    def __init__(self, root: Path) -> None:
        self.account = root
        self.token = TOKEN
        self.refusal = 0
        self.ended = False
        self.requests: list[dict[str, str]] = []
        self.changed = Condition()
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._maps: dict[str, dict[str, Any]] = {}
        self._version, self._oldest, self._epoch = 100, 0, 0
        certificate, key = self_signed(root)
        Path(certificate).rename(root / "ca.crt")
        (root / "token").write_text(TOKEN)
        (root / "namespace").write_text(NAMESPACE)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(root / "ca.crt", key)
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

    def end(self) -> None:
        """Watch nothing any more."""
        self.ended = True
        self.cut()

    def listed(self, name: str) -> dict[str, Any]:
        with self.changed:
            items = [thing for thing in [self._maps.get(name)] if thing]
            return {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    def events(self, name: str, version: int) -> Iterator[dict[str, Any] | None]:
        """Yield the changes after a version as they happen; ends when cut."""
        with self.changed:
            epoch = self._epoch
            if version < self._oldest:
                yield {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
                return
            while epoch == self._epoch and not self.ended:
                for number, kind, thing in [event for event in self._events if event[0] > version]:
                    version = number
                    if thing["metadata"]["name"] == name:
                        yield {"type": kind, "object": thing}
                self.changed.wait(60)

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
        status = self.api.refusal
        if not status and self.headers["Authorization"] != f"Bearer {self.api.token}":
            status = 401
        if not status and url.path != f"/api/v1/namespaces/{NAMESPACE}/configmaps":
            status = 404
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        if status or "watch" not in query:
            body = json.dumps({"kind": "Status", "code": status} if status else self.api.listed(name)).encode()
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.api.events(name, int(query["resourceVersion"])):
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


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
