"""What a runner tells of itself while it works: metrics, readiness, the page's document, ``top``."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from contextlib import closing
from typing import Any

from tests.e2e.harness import WATCHED, Workplace, until

SCRIPT = "import time, pathlib\nprint('<i>epoch 1</i>')\nwhile not pathlib.Path(r'{gate}').exists(): time.sleep(0.05)"


def test_an_experiment_is_seen_from_its_beginning_to_its_end(place: Workplace) -> None:
    gate = place.root / "gate"
    runner = place.start(*WATCHED, "--max-attempts", "1")
    place.publish(place.message(SCRIPT.format(gate=gate), project="p<1>"), "first")
    place.publish(place.message("raise SystemExit(3)", key="second", time_added=None), "second")
    place.publish(b"{}", "bad")

    def seen() -> dict[str, Any] | None:
        status = json.loads(runner.page("/status.json")[1])
        shown = [each for each in status["experiments"] if "<i>epoch 1</i>" in each["lines"] and each["phase"] == "run"]
        return status if shown else None

    status = until(seen, "the experiment's output is shown")
    (shown,) = [each for each in status["experiments"] if each["key"] == "demo"]
    assert (shown["phase"], shown["queue"], shown["attempt"]) == ("run", "local_test", 1)
    assert shown["resources"].startswith("1 cpu, ")
    assert any('experiment="demo"' in labels for labels in runner.series("runner_project_running"))
    assert runner.series("runner_cores")['state="used"'] >= 1
    top = subprocess.run(
        [*place.program, "top", "--once", "--working-dir", str(place.working)],
        env=place.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "demo  running" in top
    assert "| <i>epoch 1</i>" in top

    gate.touch()
    place.settled()
    until(lambda: len(runner.series("runner_attempts_total")) == 2, "both are counted")
    assert runner.series("runner_attempts_total") == {
        'outcome="completed",verdict="ok"': 1,
        'outcome="failed",verdict="script"': 1,
    }
    assert runner.series("runner_messages_refused_total") == {"": 1}
    assert not runner.series("runner_project_running")
    assert len(runner.series("runner_project_completed")) == 2
    moved = runner.series("runner_transferred_bytes_total")
    assert moved['direction="fetched",scheme="file"'] > 2 * 10_000, "two workspaces, each a tar of 10 KiB"
    assert moved['direction="stored",scheme="file"'] > 0
    counts = runner.series("runner_phase_seconds_count")
    assert counts == {f'phase="{name}"': 2 for name in ("fetch", "environment", "run", "upload")} | {'phase="wait"': 1}
    outcomes = json.loads(runner.page("/status.json")[1])["outcomes"]
    assert sorted((each["key"], each["verdict"], each["decision"]) for each in outcomes) == [
        ("", "refused", "not tried again"),
        ("demo", "ok", "acknowledged"),
        ("second", "script", "not tried again"),
    ]


def test_a_runner_that_stops_or_cannot_see_its_queues_is_not_ready(place: Workplace) -> None:
    gate = place.root / "gate"
    runner = place.start(*WATCHED, "--grace-period", "60s")
    assert runner.page("/healthz") == (200, "ok\n")
    until(lambda: runner.page("/readyz") == (200, "ok\n"), "it is ready")
    hidden = place.queues.rename(place.root / "hidden")
    _, text = until(lambda: (told := runner.page("/readyz"))[0] == 503 and told, "it is not ready")
    assert "No such file or directory" in text
    hidden.rename(place.queues)
    until(lambda: runner.page("/readyz")[0] == 200, "it is ready again")
    place.publish(place.message(SCRIPT.format(gate=gate)))
    runner.saw("attempt 1 starts")
    runner.process.send_signal(signal.SIGTERM)
    _, text = until(lambda: (told := runner.page("/readyz"))[0] == 503 and told, "it is not ready")
    assert text == "takes no work: stopping\n"
    assert runner.page("/healthz")[0] == 200
    gate.touch()
    assert runner.ended() == 0


def test_an_address_that_is_taken_matters_only_to_who_has_named_it(place: Workplace) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        named = f"127.0.0.1:{taken.getsockname()[1]}"
        runner = place.start("--prom-address", named)
        assert runner.ended() == 2
        assert f"--prom-address {named} cannot be listened on: Address already in use" in runner.log
    holder = place.start("--limit-idle-duration", "60s", watched=True)  # 9090, unless somebody else has it
    holder.saw("Pythons for experiments")
    second = place.start("--limit-idle-duration", "1s", watched=True)
    second.saw("there are no metrics: --prom-address :9090 cannot be listened on")
    assert second.ended() == 0
    silent = place.start("--prom-address=", "--limit-idle-duration", "1s")
    assert silent.ended() == 0
    assert "http://" not in silent.log
    assert "metrics" not in silent.log
