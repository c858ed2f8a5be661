"""The state that Kubernetes keeps for runners, over a real connection with TLS (protocol section 11).

What a real kube-apiserver can be made to do is tested with one as well, where there is one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runner.loop import Loop
from runner.supervisor.api_server import Pod
from runner.supervisor.kubernetes import PodState
from tests.loops import served
from tests.servers.kube_apiserver import RealApi
from tests.servers.kubernetes import ApiServer, started

COMMON, OWN = "studioml-go-runner", "pod-1"


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="runner")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with started(tmp_path) as server:
        yield server


class Watcher:
    """A pod's state with the loop that it lives in. ``patience`` is short, to be waited for."""

    def __init__(self, api: ApiServer | RealApi, patience: float = 1.0) -> None:
        self.loop = Loop()
        self.state = PodState(self.loop, Pod.of(api.environ, account=api.account), COMMON, patience=patience)

    def becomes(self, suspended: bool, seconds: float = 60.0) -> None:
        self.until(lambda: self.state.suspended is suspended, seconds)

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        assert served(self.loop, true, seconds=seconds), "it did not happen in time"

    def stays(self, suspended: bool, seconds: float = 0.5) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.loop.run_once(0.05)
            assert self.state.suspended is suspended

    def close(self) -> None:
        self.state.close()
        self.loop.close()


Watch = Callable[..., Watcher]


@pytest.fixture
def watcher(request: pytest.FixtureRequest) -> Iterator[Watch]:
    api = request.getfixturevalue("any_api" if "any_api" in request.fixturenames else "api")
    made: list[Watcher] = []

    def make(patience: float = 1.0) -> Watcher:
        made.append(Watcher(api, patience))
        return made[-1]

    yield make
    for each in made:
        each.close()
    if isinstance(api, ApiServer):
        api.end()
        for each in made:
            for watch in each.state.watches:
                watch.thread.join(10)


def test_without_any_map_work_is_taken_as_soon_as_that_is_known(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    pod = watcher()
    assert pod.state.suspended  # not yet known
    pod.becomes(False)


def test_a_suspended_cluster_is_never_taken_for_a_running_one(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    any_api.put(COMMON, "DrainAndSuspend")
    pod = watcher()
    pod.stays(True)


def test_changes_of_the_common_map_arrive_at_once(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    pod = watcher()
    pod.becomes(False)
    took = []
    for suspended in (True, False, True):
        began = time.monotonic()
        any_api.put(COMMON, "DrainAndSuspend" if suspended else "Running")
        pod.becomes(suspended)
        took.append(time.monotonic() - began)
    assert min(took) < 20, "a watch ends by itself only after minutes"
    any_api.delete(COMMON)
    pod.becomes(False)


def test_the_pods_own_map_wins_while_it_says_something(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    any_api.put(COMMON, "DrainAndSuspend")
    any_api.put(OWN, "Running")
    pod = watcher()
    pod.becomes(False)
    any_api.put(OWN, "DrainAndSuspend")
    pod.becomes(True)
    any_api.put(COMMON, "Running")
    pod.stays(True)
    any_api.put(OWN, None)
    pod.becomes(False)


def test_other_maps_do_not_matter(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    pod = watcher()
    pod.becomes(False)
    any_api.put("another-pod", "DrainAndSuspend")
    pod.stays(False)


def test_what_changes_between_two_watches_is_seen(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    pod = watcher()
    pod.becomes(False)
    any_api.cut()
    any_api.put(COMMON, "DrainAndSuspend")
    pod.becomes(True)


def test_a_watch_that_ends_by_itself_is_begun_again(
    any_api: ApiServer | RealApi, watcher: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runner.supervisor.kubernetes.WATCH", 1)
    pod = watcher()
    pod.becomes(False)
    pod.stays(False, seconds=2.5)
    any_api.put(COMMON, "DrainAndSuspend")
    pod.becomes(True)
    assert "cannot" not in caplog.text


def test_what_the_server_has_forgotten_is_read_anew(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    pod = watcher()
    pod.becomes(False)
    any_api.put(COMMON, "DrainAndSuspend")
    pod.becomes(True)
    any_api.put(COMMON, "Running")
    any_api.forget()
    pod.becomes(False)


def test_a_cluster_restored_from_a_backup_is_read_anew(api: ApiServer, watcher: Watch) -> None:
    """A real server tells those who watch from a version that is yet to come nothing, until it comes."""
    pod = watcher()
    pod.until(lambda: api.watching == 2)
    pod.becomes(False)
    api.restore(COMMON, "DrainAndSuspend")
    api.cut()
    pod.becomes(True)


def test_what_was_known_holds_while_the_server_fails(
    api: ApiServer, watcher: Watch, caplog: pytest.LogCaptureFixture
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


def test_a_server_that_does_not_answer_yet_does_not_make_a_suspended_cluster_a_running_one(
    api: ApiServer, watcher: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(COMMON, "DrainAndSuspend")
    api.refusal = 503
    pod = watcher(patience=60.0)
    pod.until(lambda: "status 503" in caplog.text)
    api.refusal = 403  # as a server says that has just started: it knows of no rights yet
    pod.until(lambda: "list and watch" in caplog.text)
    pod.stays(True)
    api.refusal = 0
    pod.until(lambda: "suspended by ConfigMap studioml-go-runner" in caplog.text)
    assert pod.state.suspended


@pytest.mark.parametrize("allowed", [(), ("list",)], ids=["nothing", "no watch"])
def test_without_the_right_to_watch_maps_work_is_taken_and_the_operator_is_told_once(
    any_api: ApiServer | RealApi, watcher: Watch, caplog: pytest.LogCaptureFixture, allowed: tuple[str, ...]
) -> None:
    any_api.permit(*allowed)
    pod = watcher()
    pod.becomes(False)
    pod.stays(False, seconds=2.5)
    said = [record.message for record in caplog.records if "list and watch" in record.message]
    assert len(said) == 2
    assert said[0] != said[1]
    verb = "watch" if allowed else "list"
    assert all(f'User "system:serviceaccount:experiments:studioml-account" cannot {verb} ' in text for text in said)
    any_api.permit("get", "list", "watch")
    any_api.put(COMMON, "DrainAndSuspend")
    pod.becomes(True)
    pod.until(lambda: f"ConfigMap {COMMON} can be read and watched again" in caplog.text)


def test_a_token_is_read_each_time(any_api: ApiServer | RealApi, watcher: Watch) -> None:
    pod = watcher()
    pod.becomes(False)
    any_api.renew_token()
    any_api.cut()
    any_api.put(COMMON, "DrainAndSuspend")
    pod.becomes(True)


def test_a_token_that_is_worth_nothing_is_told_as_such(
    api: ApiServer, watcher: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    api.token = "token-2"
    watcher().becomes(False)
    assert "does not accept the token of this pod's service account" in caplog.text
    assert "list and watch" not in caplog.text


def test_a_pod_without_a_service_account_takes_work_at_once(
    api: ApiServer, watcher: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    (api.account / "token").unlink()
    watcher(patience=600.0).becomes(False)
    assert f"{api.account}/token: No such file or directory (automountServiceAccountToken)" in caplog.text


@pytest.mark.parametrize("token", ["", "two\nlines", "m\u00fcnze"])
def test_a_token_that_is_none_does_not_keep_work_waiting_for_ever(api: ApiServer, watcher: Watch, token: str) -> None:
    (api.account / "token").write_text(token)
    pod = watcher(patience=600.0)
    pod.becomes(False)
    api.put(COMMON, "DrainAndSuspend")
    (api.account / "token").write_text(api.token)
    pod.becomes(True)


def test_an_experiment_cannot_change_who_the_runner_is(
    api: ApiServer, watcher: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """HOME is where experiments write."""
    (tmp_path / ".netrc").write_text("default login nobody password nothing\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    api.put(COMMON, "DrainAndSuspend")
    pod = watcher()
    pod.until(lambda: "suspended by" in caplog.text or "cannot" in caplog.text)
    assert "cannot" not in caplog.text


def test_a_state_that_is_none_is_told_and_ignored(
    api: ApiServer, watcher: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    api.put(COMMON, "Drain")
    pod = watcher()
    pod.becomes(False)
    assert "STATE is 'Drain', but must be Running or DrainAndSuspend" in caplog.text


def test_a_server_that_is_not_the_clusters_is_not_asked(
    api: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with started(other) as impostor:
        (impostor.account / "ca.crt").write_bytes((api.account / "ca.crt").read_bytes())
        with closing(Watcher(impostor, patience=600.0)) as pod:
            pod.becomes(False)
        assert impostor.requests == []
    assert "is not the cluster's, going by its certificate" in caplog.text
