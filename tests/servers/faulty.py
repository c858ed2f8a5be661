"""A small HTTP proxy in front of a real server that can be told to misbehave.

    with faulty(s3.host) as proxy:
        proxy.answer(503, times=3)            # instead of forwarding the next three requests
        proxy.cut(1000, of="GET")             # the next answer to a GET ends after 1000 bytes of its body
        proxy.swallow(of="POST")              # forward the next POST, and close instead of giving the answer

Each fault waits for its requests: those whose ``METHOD target`` holds ``of``. Requests meet the oldest fault first.
"""

from __future__ import annotations

import math
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from email.message import Message
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler

from tests.servers.listening import listening

ALWAYS = math.inf
# Seconds in which a silent proxy says nothing: more than clients in tests wait.
SILENCE = 1.5


@dataclass
class _Fault:
    """What is done to some requests. ``skip`` of them are left alone first."""

    kind: str
    of: str
    times: float
    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: float = math.inf
    skip: int = 0
    mark: bytes = b""


@dataclass
class FaultyProxy:
    """The proxy's address as HOST:PORT, and what came to it: ``METHOD target`` and the headers of each request."""

    host: str
    upstream: str
    seen: list[str] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)
    connections: int = 0
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(
        self, status: int, body: bytes = b"", *, headers: dict[str, str] | None = None, of: str = "", times: float = 1
    ) -> None:
        """Give this answer without asking the server."""
        self._faults.append(_Fault("answer", of, times, status=status, body=body, headers=headers or {}))

    def cut(self, after: int, *, of: str = "", times: float = 1) -> None:
        """Close the connection after so many bytes of an answer's body."""
        self._faults.append(_Fault("cut", of, times, after=after))

    def swallow(self, *, of: str = "", times: float = 1) -> None:
        """Let the server act, and close the connection instead of giving its answer."""
        self._faults.append(_Fault("swallow", of, times))

    def damage(self, mark: bytes, *, of: str = "", times: float = 1) -> None:
        """Flip one bit of an answer, in the byte before this mark."""
        self._faults.append(_Fault("damage the answer", of, times, mark=mark))

    def break_one(self, kind: str, number: int, *, times: float = 1) -> None:
        """Do something of ``KINDS`` to the request with this number, counted from 0, and to the next if so often."""
        self._faults.append(replace(KINDS[kind], skip=number, times=times))

    def heal(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    def _meet(self, request: str, headers: Message) -> _Fault | None:
        with self._lock:
            self.seen.append(request)
            self.headers.append(headers)
            for fault in self._faults:
                if fault.times <= 0 or fault.of not in request:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


@contextmanager
def faulty(upstream: str, *, tls: ssl.SSLContext | None = None) -> Iterator[FaultyProxy]:
    """Run a proxy before the server at ``upstream``, HOST:PORT, until the context ends; ``tls`` is for its clients."""

    class Handler(_Handler):
        proxy: FaultyProxy

    with listening(Handler, tls=tls) as host:
        Handler.proxy = FaultyProxy(host, upstream)
        yield Handler.proxy


KINDS = {
    "500": _Fault("answer", "", 1, status=500),
    "503": _Fault("answer", "", 1, status=503, body=b"<Error><Code>SlowDown</Code></Error>"),
    "reset": _Fault("reset", "", 1),
    "silence": _Fault("silence", "", 1),
    "cut": _Fault("cut", "", 1, after=100),
    "lost answer": _Fault("swallow", "", 1),
    "damaged request": _Fault("damage the request", "", 1),
    "damaged answer": _Fault("damage the answer", "", 1),
    "too short": _Fault("say less", "", 1),
    "too long": _Fault("say more", "", 1),
}
_LIES = {"say less": -7, "say more": 7}


def _damaged(data: bytes, mark: bytes = b"") -> bytes:
    """Flip one bit, anywhere or in the byte before a mark."""
    where = data.index(mark) - 1 if mark else random.randrange(len(data))
    return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def setup(self) -> None:
        super().setup()
        self.proxy.connections += 1

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy._meet(f"{self.command} {self.path}", self.headers)
        kind = fault.kind if fault else ""
        if fault and kind == "answer":
            self._reply(fault.status, {**fault.headers, "Content-Length": str(len(fault.body))})
            self.wfile.write(fault.body if self.command != "HEAD" else b"")
        elif kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif kind == "silence":
            time.sleep(SILENCE)
            self.close_connection = True
        else:
            if kind == "damage the request" and body:
                body = _damaged(body)
            with closing(HTTPConnection(self.proxy.upstream, timeout=60)) as connection:
                connection.request(self.command, self.path, body, dict(self.headers))
                self._relay(connection.getresponse(), fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _relay(self, response: HTTPResponse, fault: _Fault | None) -> None:
        kind = fault.kind if fault else ""
        if kind == "swallow":
            self.close_connection = True
            return
        headers = dict(response.headers)
        if headers.pop("Transfer-Encoding", ""):
            self.close_connection = True
            headers["Connection"] = "close"
        if kind in _LIES and "Content-Length" in headers:
            headers["Content-Length"] = str(max(0, int(headers["Content-Length"]) + _LIES[kind]))
            headers["Connection"] = "close"
        self._reply(response.status, headers)
        left = fault.after if fault else math.inf
        while left and (data := response.read(int(min(left, 65536)))):
            self.wfile.write(_damaged(data, fault.mark) if fault and kind == "damage the answer" else data)
            left -= len(data)
        if not left:
            self.close_connection = True

    def _reply(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
