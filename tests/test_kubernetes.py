"""The state that Kubernetes keeps for runners, over a real connection with TLS (protocol section 11)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runner.loop import Loop
from runner.supervisor.kubernetes import Pod, PodState
from tests.servers.kubernetes import ApiServer, started

COMMON, OWN = "studioml-go-runner", "pod-1"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with started(tmp_path) as server:
        yield server


class Watcher:
    """A pod's state with the loop that it lives in."""

    def __init__(self, api: ApiServer) -> None:
        self.loop = Loop()
        self.state = PodState(self.loop, Pod.of(api.environ, account=api.account), COMMON)

    def becomes(self, suspended: bool, seconds: float = 10.0) -> None:
        self.until(lambda: self.state.suspended is suspended, seconds)

    def until(self, true: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.loop.run_once(0.1)

    def stays(self, suspended: bool, seconds: float = 0.5) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.loop.run_once(0.05)
            assert self.state.suspended is suspended

    def close(self) -> None:
        self.state.close()
        self.loop.close()


@pytest.fixture
def watcher(api: ApiServer) -> Iterator[Callable[[], Watcher]]:
    made: list[Watcher] = []

    def make() -> Watcher:
        made.append(Watcher(api))
        return made[-1]

    yield make
    for each in made:
        each.close()
    api.end()
    for each in made:
        for watch in each.state.watches:
            watch.thread.join(10)


def test_without_any_map_work_is_taken_as_soon_as_that_is_known(watcher: Callable[[], Watcher]) -> None:
    pod = watcher()
    assert pod.state.suspended  # not yet known
    pod.becomes(False)


def test_a_suspended_cluster_is_never_taken_for_a_running_one(api: ApiServer, watcher: Callable[[], Watcher]) -> None:
    api.put(COMMON, "DrainAndSuspend")
    pod = watcher()
    pod.stays(True)


def test_changes_of_the_common_map_arrive_at_once(api: ApiServer, watcher: Callable[[], Watcher]) -> None:
    pod = watcher()
    pod.becomes(False)
    took = []
    for suspended in (True, False, True):
        began = time.monotonic()
        api.put(COMMON, "DrainAndSuspend" if suspended else "Running")
        pod.becomes(suspended)
        took.append(time.monotonic() - began)
    assert min(took) < 1
    api.delete(COMMON)
    pod.becomes(False)


def test_the_pods_own_map_wins_while_it_says_something(api: ApiServer, watcher: Callable[[], Watcher]) -> None:
    api.put(COMMON, "DrainAndSuspend")
    api.put(OWN, "Running")
    pod = watcher()
    pod.becomes(False)
    api.put(OWN, "DrainAndSuspend")
    pod.becomes(True)
    api.put(COMMON, "Running")
    pod.stays(True)
    api.put(OWN, None)
    pod.becomes(False)


def test_other_maps_do_not_matter(api: ApiServer, watcher: Callable[[], Watcher]) -> None:
    pod = watcher()
    pod.becomes(False)
    api.put("another-pod", "DrainAndSuspend")
    pod.stays(False)


def test_a_watch_that_ends_is_taken_up_where_it_ended(api: ApiServer, watcher: Callable[[], Watcher]) -> None:
    pod = watcher()
    pod.becomes(False)
    api.cut()
    api.put(COMMON, "DrainAndSuspend")  # while nobody watches
    pod.becomes(True)
    assert sum("watch" not in request for request in api.requests) == 2  # each map was read once


def test_what_the_server_has_forgotten_is_read_anew(api: ApiServer, watcher: Callable[[], Watcher]) -> None:
    pod = watcher()
    pod.becomes(False)
    api.put(COMMON, "DrainAndSuspend")
    pod.becomes(True)
    api.put(COMMON, "Running")
    api.forget()
    pod.becomes(False)


def test_what_was_known_holds_while_the_server_fails(
    api: ApiServer, watcher: Callable[[], Watcher], caplog: pytest.LogCaptureFixture
) -> None:
    api.put(COMMON, "DrainAndSuspend")
    pod = watcher()
    pod.stays(True)
    api.refusal = 503
    api.cut()
    pod.until(lambda: "status 503" in caplog.text)
    pod.stays(True)
    api.put(COMMON, "Running")
    api.refusal = 0
    pod.becomes(False)


def test_without_the_right_to_read_maps_work_is_taken_and_the_operator_is_told_once(
    api: ApiServer, watcher: Callable[[], Watcher], caplog: pytest.LogCaptureFixture
) -> None:
    api.refusal = 403
    pod = watcher()
    pod.becomes(False)
    pod.stays(False, seconds=2.5)
    said = [record.message for record in caplog.records if "list and watch" in record.message]
    assert len(said) == 2
    assert said[0] != said[1]
    assert all("namespace experiments" in text for text in said)


def test_a_token_is_read_each_time(api: ApiServer, watcher: Callable[[], Watcher]) -> None:
    pod = watcher()
    pod.becomes(False)
    api.token = "token-2"
    (api.account / "token").write_text("token-2\n")
    api.cut()
    api.put(COMMON, "DrainAndSuspend")
    pod.becomes(True)


def test_a_state_that_is_none_is_told_and_ignored(
    api: ApiServer, watcher: Callable[[], Watcher], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    api.put(COMMON, "Drain")
    pod = watcher()
    pod.becomes(False)
    assert "STATE is 'Drain', but must be Running or DrainAndSuspend" in caplog.text


def test_a_server_that_is_not_the_clusters_is_not_asked(api: ApiServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with started(other) as impostor:
        (impostor.account / "ca.crt").write_bytes((api.account / "ca.crt").read_bytes())
        with closing(Watcher(impostor)) as pod:
            pod.becomes(False)
        assert impostor.requests == []
