"""A real HTTP server that serves a few objects as it is told to.

    with serving() as server:
        server.objects["/a.txt"] = Served(b"content", {"ETag": '"1"'})
        server.objects["/b"] = Served(status=302, headers={"Location": "/a.txt"})

It knows ranges, and basic and bearer credentials. A HEAD is answered as a GET without its body.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import BinaryIO

from tests.servers.listening import listening


@dataclass
class Served:
    """One object, or another answer.

    ``authorization`` is the header that it wants, ``challenge`` what it says without that, ``head`` the status of a
    HEAD where that is another one, ``ranges`` whether it comes in parts. ``write`` sends the body in its own way, and
    the headers before it if ``raw``.
    """

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    authorization: str = ""
    challenge: str = ""
    write: Callable[[BinaryIO], object] | None = None
    raw: bool = False
    head: int = 0
    ranges: bool = True


@dataclass
class HttpServer:
    """``host`` is HOST:PORT; ``seen`` are ``METHOD target`` of all requests, ``headers`` theirs."""

    host: str
    objects: dict[str, Served] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)
    connections: int = 0


@contextmanager
def serving(address: str = "127.0.0.1", *, tls: tuple[str, str] | None = None) -> Iterator[HttpServer]:
    """Run a server until the context ends; ``tls`` are its certificate and key."""

    class Handler(_Handler):
        server_of: HttpServer

    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    with listening(Handler, address, tls=context) as host:
        Handler.server_of = HttpServer(host)
        yield Handler.server_of


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: HttpServer

    def setup(self) -> None:
        super().setup()
        self.server_of.connections += 1

    def do_GET(self) -> None:
        self.server_of.seen.append(f"{self.command} {self.path}")
        self.server_of.headers.append(self.headers)
        served = self.server_of.objects.get(self.path, Served(status=404))
        if served.authorization and self.headers["Authorization"] != served.authorization:
            served = Served(status=401, headers={"WWW-Authenticate": served.challenge})
        if self.command == "HEAD" and served.head:
            served = Served(status=served.head)
        body, status, headers = served.body, served.status, dict(served.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if wanted and served.ranges and self.headers["If-Range"] == headers.get("ETag"):
            start, end = int(wanted[1]), int(wanted[2]) + 1
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            body, status = body[start:end], 206
        if served.write is None:
            headers.setdefault("Content-Length", str(len(body)))
        if not served.raw:
            self._reply(status, headers)
        if self.command == "HEAD":
            return
        if served.write is None:
            self.wfile.write(body)
        else:
            self.close_connection = True
            served.write(self.wfile)

    do_HEAD = do_GET  # noqa: N815

    def _reply(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
