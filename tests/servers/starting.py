"""What every server that tests start needs."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest


class StartError(Exception):
    """The server did not come up."""


def need(*programs: str | Path, install: str) -> None:
    """Skip the test when programs are missing; where servers are required, as in CI, fail it. ``install`` says how."""
    if missing := [str(program) for program in programs if shutil.which(program) is None]:
        reason = f"no server to test against: {', '.join(missing)} not found ({install})"
        (pytest.fail if os.environ.get("RUNNER_TESTS_REQUIRE_SERVERS") else pytest.skip)(reason)


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
