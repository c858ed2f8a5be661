"""What every server that tests start needs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack


class StartError(Exception):
    """The server did not come up."""


def free_ports(count: int) -> list[int]:
    """Find loopback ports that nobody listens on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait(ready: Callable[[], bool], *, seconds: float) -> None:
    """Wait until a server is ready. Raises StartError."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise StartError(f"not ready after {seconds} seconds")
        time.sleep(0.1)
