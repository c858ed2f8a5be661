"""A TCP proxy in front of a real server, which delays, swallows or resets what goes through it when it is told to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SO_MAX_PACING_RATE = 47  # Linux; socket has no name for it


class TcpProxy:
    """Forwards connections to a loopback port.

    ``delay`` is in seconds, and for each way; ``rate`` is how many bytes a second a new connection brings, 0 for any.
    """

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.rate = 0
        self._upstream = port
        self._open = threading.Event()
        self._open.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> int:
        """Reset every connection; return how many there were."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with end, suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
        return len(pairs)

    def swallow(self) -> None:
        """Let nothing through any more, and tell nobody; what comes stays where it is."""
        self._open.clear()

    def heal(self) -> None:
        """Let everything through again, on new connections: nobody keeps one for that long."""
        self.reset()
        self._open.set()

    def close(self) -> None:
        """End everything."""
        self._open.set()
        self.reset()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._upstream), 5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                if self.rate:
                    client.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, self.rate)
                self._pairs.append((client, server))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                time.sleep(self.delay)
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def proxied(port: int) -> Iterator[TcpProxy]:
    """Run a proxy until the context ends."""
    proxy = TcpProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
