"""A web hook as Slack's are: it takes posts, unless it is told to answer otherwise, and says so in a word."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.servers.listening import listening

SECRET = "T0/B0/hidden-Secret"


class Hook:
    """What was posted; ``answers`` are statuses and bodies of the next posts, 200 afterwards. ``hold`` delays them.

    So many of the next answers are ``cut`` off before their body.
    """

    def __init__(self) -> None:
        self.url = ""
        self.posts: list[dict[str, Any]] = []
        self.answers: list[tuple[int, str]] = []
        self.cut = 0
        self.hold = threading.Event()
        self.hold.set()

    @property
    def lines(self) -> list[str]:
        return [line for post in self.posts for line in post["text"].splitlines()]


@contextmanager
def serving() -> Iterator[Hook]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hook.hold.wait(30)
            status, answer = hook.answers.pop(0) if hook.answers else (200, "ok")
            if status == 200:
                hook.posts.append(body)
            self.send_response(status)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if hook.cut:
                hook.cut, self.close_connection = hook.cut - 1, True
                return
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with listening(Handler) as host:
        hook.url = f"http://{host}/services/{SECRET}"
        try:
            yield hook
        finally:
            hook.hold.set()
