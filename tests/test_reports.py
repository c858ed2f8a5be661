"""Reports on their way to the response queue of a directory."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from runner.crypto.keys import KeyDirectory
from runner.events import Line
from runner.message.request import from_document
from runner.queues import matcher
from runner.queues.files import Directory
from runner.reporting.reports import Reports

KEY = Path(__file__).parent / "vectors" / "keys" / "studioml_request.pub.pem"
QUEUE, RESPONSE = "local_q", "local_q_response"


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_reports_for_a_queue_that_is_deleted_are_forgotten(tmp_path: Path) -> None:
    """Clients that make a queue for each of their runs delete it when they are done."""
    root, keys = tmp_path / "root", tmp_path / "keys"
    keys.mkdir()
    shutil.copy(KEY, keys / "local_")
    artifacts = {"workspace": {"qualified": "file:///x/code.tar"}}
    wanted = from_document({"experiment": {"key": "e", "filename": "x.py", "artifacts": artifacts}, "config": {}})
    server = Directory(root, matcher("^local_", ""))
    reports = Reports(KeyDirectory(keys, clock=time.monotonic), time.monotonic)
    for _ in range(2):  # one that is made again is served again
        for name in (QUEUE, RESPONSE):
            (root / name).mkdir(parents=True)
        stream = reports.stream(server, QUEUE, wanted)
        stream.line(Line("1"))
        reports.pump()
        assert len(list((root / RESPONSE).iterdir())) == 1
        before = opened()
        shutil.rmtree(root)
        root.mkdir()
        for _ in range(40):
            stream.line(Line("x" * 50_000))
        reports.pump()
        stream.line(Line("more"))
        assert opened() == before
    reports.close()


class Searched(Directory):
    """A server that counts how often all of its queues are listed."""

    searches = 0

    def others(self) -> list[str]:
        self.searches += 1
        return super().others()


def test_queues_that_nobody_has_a_key_for_cost_no_search_each(tmp_path: Path) -> None:
    """With thousands of queues, a look at all of them for each of them keeps the runner from its work for minutes."""
    keys = tmp_path / "keys"
    keys.mkdir()
    shutil.copy(KEY, keys / "local_heard")
    server = Searched(tmp_path, matcher("^local_", ""))
    reports = Reports(KeyDirectory(keys, clock=lambda: 100.0), lambda: 100.0)
    for number in range(50):
        reports.scanning(server, f"local_{number}")
    assert server.searches == 0
    reports.scanning(server, "local_heard")
    assert server.searches == 1
    reports.close()
