"""HTTP servers of our own: a handler that answers in threads."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def listening(
    handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Listen on a free port until the context ends; yield HOST:PORT."""
    with _Server((address, 0), handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"{address}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # kept connections would hold it up

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what some tests are about."""
