"""The runner's small web server: metrics, health, and the page. It only reads, and only what the board shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from socketserver import TCPServer
from threading import BoundedSemaphore, Thread
from typing import Any
from urllib.parse import urlsplit

from runner.errors import ConfigError
from runner.monitoring.board import Board
from runner.monitoring.status import Snapshot

log = logging.getLogger(__name__)

DEFAULT = ":9090"
# So many are served at a time; more are hung up on.
_MOST = 16
# How long a client may stay silent, and how long a request may take in all. In seconds.
_SILENCE, _PATIENCE = 5.0, 15.0
_TEXT = "text/plain; charset=utf-8"
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
_LOCAL = r"localhost|127(\.\d+){3}|\[::1\]"
_OFF = (
    "the runner does not show what it does on this address: start it with --status-page, or with --prom-address "
    "127.0.0.1:9090"
)


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    body: bytes
    kind: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    policy: str = "default-src 'none'"


def _say(text: str, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(f"{text}\n".encode(errors="replace"), status=status)


class Site:
    """What there is to see, by path. ``page``: whether experiments are shown, or only numbers. For any thread."""

    def __init__(self, board: Board, *, page: bool) -> None:
        self._board, self._page = board, page
        self._paths: dict[str, Callable[[], Answer]] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/": self._html,
            "/status.json": self._json,
        }

    def answer(self, path: str) -> Answer:
        """Answer one request."""
        if path not in self._paths:
            return _say("there is no such page", HTTPStatus.NOT_FOUND)
        if path in ("/", "/status.json") and not self._page:
            return _say(_OFF, HTTPStatus.FORBIDDEN)
        return self._paths[path]()

    def _metrics(self) -> Answer:
        from runner.monitoring.exposition import render  # noqa: PLC0415 -- with a library that only this needs

        return self._shown(lambda snapshot: Answer(render(snapshot), _EXPOSITION))

    def _healthz(self) -> Answer:
        if self._board.alive:
            return _say("ok")
        return _say("the runner's loop hangs", HTTPStatus.SERVICE_UNAVAILABLE)

    def _readyz(self) -> Answer:
        def ready(snapshot: Snapshot) -> Answer:
            fault = snapshot.status.fault
            return _say(fault or "ok", HTTPStatus.SERVICE_UNAVAILABLE if fault else HTTPStatus.OK)

        return self._shown(ready)

    def _json(self) -> Answer:
        return self._shown(lambda snapshot: Answer(json.dumps(snapshot.status.document()).encode(), "application/json"))

    def _html(self) -> Answer:
        page = Path(__file__).with_name("status.html").read_bytes()
        return Answer(page, "text/html; charset=utf-8", policy=_policy(page))

    def _shown(self, show: Callable[[Snapshot], Answer]) -> Answer:
        snapshot = self._board.snapshot()
        return show(snapshot) if snapshot else _say("the runner's loop is busy", HTTPStatus.SERVICE_UNAVAILABLE)


def _policy(page: bytes) -> str:
    """Allow the page's own script and style, and questions to this server: nothing that a name could bring in."""

    def hashes(tag: bytes) -> str:
        found = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in found)

    return (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src {hashes(b'style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_port = False
    request_queue_size = _MOST

    def __init__(self, family: int, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = family
        self._room = BoundedSemaphore(_MOST)
        self._since: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)  # not HTTPServer's, which asks a name server who we are
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            request.close()
            return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)
            self._room.release()

    def service_actions(self) -> None:
        """Hang up on those who take too long."""
        end = time.monotonic() - _PATIENCE
        for request, since in list(self._since.items()):
            if since < end:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the metrics' address got no answer", exc_info=True)


class Web:
    """The server; it works until the process ends or ``close``, which may take half a second.

    Raises ConfigError when the address cannot be had. ``page``: show experiments on any address, not only on one that
    this machine alone can reach.
    """

    def __init__(self, address: str, board: Board, *, page: bool) -> None:
        self._server = _bound(address)
        host = str(self._server.server_address[0])
        self.local = ip_address(host.partition("%")[0]).is_loopback
        self.page = page or self.local
        named = re.escape(address.rpartition(":")[0])
        hosts = re.compile(rf"({_LOCAL}|{named})(:\d+)?" if self.local else ".*", re.IGNORECASE)
        self._server.RequestHandlerClass = _handler(Site(board, page=self.page), hosts)
        Thread(target=self._server.serve_forever, name="web", daemon=True).start()

    @property
    def address(self) -> str:
        """Where it is reached from this machine, ``HOST:PORT``."""
        host, port = self._server.server_name, self._server.server_port
        host = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(host, host)  # noqa: S104 -- it is reached so
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def _bound(address: str) -> _Server:
    host, _, port = address.rpartition(":")
    failure: Exception = OSError("it names no address")
    try:
        for family, name in _places(host.strip("[]"), int(port)):
            try:
                return _Server(family, (name, int(port)), BaseHTTPRequestHandler)
            except OSError as error:
                failure = error
    except (OSError, OverflowError) as error:
        failure = error
    reason = f"{_reason(failure)}: name another one, or none (--prom-address=)"
    raise ConfigError(f"--prom-address {address} cannot be listened on: {reason}") from failure


def _places(host: str, port: int) -> list[tuple[int, str]]:
    """Return what to try. IPv6's "all addresses" takes IPv4 too, but some machines have none. Raises OSError."""
    if not host:
        return [(socket.AF_INET6, "::"), (socket.AF_INET, "")]
    return [(each[0], str(each[4][0])) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _handler(site: Site, hosts: re.Pattern[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SILENCE
        server_version, sys_version = "studio-runner", ""

        def do_GET(self) -> None:
            self._send(body=True)

        def do_HEAD(self) -> None:
            self._send(body=False)

        def _send(self, *, body: bool) -> None:
            answer = self._answer()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Content-Security-Policy", answer.policy)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if body:
                self.wfile.write(answer.body)

        def _answer(self) -> Answer:
            # A web site's name may be made to point here, so that its scripts could read what only this machine may.
            if not hosts.fullmatch(self.headers.get("Host") or "localhost"):
                return _say("this address answers to localhost only", HTTPStatus.MISDIRECTED_REQUEST)
            return site.answer(urlsplit(self.path).path)

        def log_message(self, *words: Any) -> None:
            log.debug("%s: %s", self.client_address[0], words[0] % words[1:])

    return Handler
