"""Messages of somebody who means harm, all of them through one runner and one queue, good ones in between."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Workplace, put
from tests.e2e.hostile import HOSTILE, Hostile, packed

# After so many hostile messages comes a good one.
_PACE = 16


class Aftermath:
    """What the runner has said and done."""

    def __init__(self, place: Workplace, ran: Path) -> None:
        self.place = place
        self.log = place.runners[0].log
        self.refused = {path.name for path in (place.queues / "local_test" / ".dead").iterdir()}
        self.ran = {path.name for path in ran.iterdir()}


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory, working: Path, program: list[str]) -> Iterator[Aftermath]:
    """Let a runner meet them all."""
    root = tmp_path_factory.mktemp("hostile")
    place = Workplace(root, working, program)
    ran = root / "ran"
    ran.mkdir()
    (place.queues / "local_test" / ".dead").mkdir()
    for number, hostile in enumerate(HOSTILE):
        _publish(place, number, f"hostile-{number:03}", hostile, ran)
        if number % _PACE == _PACE - 1 or number == len(HOSTILE) - 1:
            _publish(place, number + 0.5, f"good-{number:03}", None, ran)
    try:
        runner = place.start("--max-attempts", "1", "--max-cores", "2", "--store-patience", "1s")
        place.settled(120)
        runner.stop()
        yield Aftermath(place, ran)
    finally:
        place.close()


def _publish(place: Workplace, when: float, name: str, hostile: Hostile | None, ran: Path) -> None:
    script = f"open({str(ran / name)!r}, 'w')"
    message = place.message(script, name)
    body: object = message
    if hostile:
        put(place.store / f"blobstore/{name}.tar", packed(hostile.workspace, script.encode()))
        body = hostile.make(message)
    data = (
        body if isinstance(body, bytes) else json.dumps(body).replace("file://STORE", f"file://{place.store}").encode()
    )
    path = place.publish(data, name)
    # They have lain there for a while, in this order.
    os.utime(path, (1.6e9 + when, 1.6e9 + when))


@pytest.mark.parametrize("number", range(len(HOSTILE)), ids=[f"{hostile.tries}" for hostile in HOSTILE])
def test_a_hostile_message_runs_nothing_and_is_told(aftermath: Aftermath, number: int) -> None:
    name = f"hostile-{number:03}"
    assert name not in aftermath.ran
    assert name in aftermath.refused, "it is where the operator can look at it"
    lines = [line for line in aftermath.log.splitlines() if HOSTILE[number].told in line]
    if HOSTILE[number].run:
        assert any(name in line and "failed" in line for line in lines), aftermath.log
    else:
        assert any("a message is refused" in line for line in lines), aftermath.log


def test_every_good_message_in_between_was_run(aftermath: Aftermath) -> None:
    good = {f"good-{number:03}" for number in range(_PACE - 1, len(HOSTILE), _PACE)} | {f"good-{len(HOSTILE) - 1:03}"}
    assert aftermath.ran == good
    assert len(HOSTILE) >= 60


def test_nothing_was_written_where_they_pointed_and_no_secret_told(aftermath: Aftermath) -> None:
    assert not Path("/tmp/evil.py").exists()
    assert not list(aftermath.place.working.rglob("evil.py"))
    assert "hunter2" not in aftermath.log
    assert "Traceback" not in aftermath.log
    assert max(map(len, aftermath.log.splitlines())) < 8000
