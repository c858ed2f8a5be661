"""Notices in Slack, posted to a real HTTP server: what they say, how few posts they are, and that nothing waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runner.events import Finished
from runner.message.request import from_document
from runner.queues.settle import Decision
from runner.reporting import slack
from runner.reporting.slack import Slack, destination_of
from tests.e2e.harness import until
from tests.servers.hook import SECRET, Hook, serving


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setattr(slack, "_PACE", 0.05)
    with serving() as made:
        yield made


def wanted(destination: object = None, key: str = "demo") -> Any:
    artifacts = {"workspace": {"qualified": "file:///x/code.tar"}}
    config = {"runner": {"slack_destination": destination}} if destination else {}
    return from_document({"experiment": {"key": key, "filename": "x.py", "artifacts": artifacts}, "config": config})


def ended(outcome: str = "completed", verdict: str = "ok") -> Finished:
    return Finished(outcome, f"experiment 'demo', attempt 1, {outcome}", verdict=verdict)


def test_an_experiment_is_told_when_it_starts_and_when_it_ends(hook: Hook) -> None:
    made = Slack(hook.url, "#all")
    notices = made.notices("rmq_a", wanted())
    notices.begin(1)
    notices.end(ended(), Decision.ACK, "2m3s")
    made.notices("rmq_a", wanted("@me")).end(ended("failed", "oom"), Decision.REFUSE, "5s")
    made.close()
    assert {post["channel"] for post in hook.posts} == {"#all", "@me"}
    started, completed, failed = hook.lines
    assert started.startswith("▶ experiment 'demo', attempt 1, started (rmq_a on ")
    assert completed.startswith("✅ experiment 'demo', attempt 1, completed (ok; 2m3s; rmq_a on ")
    assert failed.startswith("❌ experiment 'demo', attempt 1, failed (oom; 5s; not tried again; rmq_a on ")


def test_many_notices_are_few_posts_and_none_is_waited_for(hook: Hook) -> None:
    hook.hold.clear()
    made = Slack(hook.url)
    began = time.monotonic()
    for number in range(1, 101):
        made.notices("rmq_a", wanted()).begin(number)
    assert time.monotonic() - began < 5, "the hook does not answer at all just now"
    hook.hold.set()
    until(lambda: len(hook.lines) == 100, "all are told", 30)
    made.close()
    assert [f"attempt {number}," in line for number, line in enumerate(hook.lines, 1)] == [True] * 100
    assert len(hook.posts) <= 6
    assert "channel" not in hook.posts[0]


def test_too_many_notices_are_counted_instead(
    hook: Hook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slack, "_WAITING", 10)
    hook.hold.clear()
    made = Slack(hook.url)
    for number in range(50):
        made.notices("rmq_a", wanted()).begin(number)
    hook.hold.set()
    until(lambda: any("earlier notices were lost" in line for line in hook.lines), "it is told how many")
    told = sum("started" in line for line in hook.lines)
    lost = sum(int(line.split()[0]) for line in hook.lines if "earlier notices were lost" in line)
    assert told + lost == 50
    made.close()


def test_a_hook_that_is_busy_is_asked_again_and_one_that_refuses_is_not(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.answers = [(429, "rate_limited"), (503, ""), (404, "channel_not_found")]
    made = Slack(hook.url, "#all")
    made.notices("rmq_a", wanted("#none")).begin(1)
    until(lambda: "channel_not_found" in caplog.text, "the refusal is told")
    assert hook.answers == []
    made.notices("rmq_a", wanted()).begin(2)
    until(lambda: hook.posts, "the next one goes out")
    assert hook.lines[-1] == "1 earlier notices were lost"
    made.close()
    assert "the room '#none'" in caplog.text
    assert "Secret" not in caplog.text


def test_a_hook_that_is_away_costs_nothing_and_its_url_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "runner")
    made = Slack(f"http://127.0.0.1:1/{SECRET}")
    made.notices("rmq_a", wanted()).begin(1)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 10
    until(lambda: "Slack cannot be reached (ConnectionError)" in caplog.text, "it is told")
    assert "Secret" not in caplog.text


def test_an_answer_that_is_cut_off_ends_no_notices(hook: Hook) -> None:
    hook.cut = 1
    made = Slack(hook.url)
    made.notices("rmq_a", wanted()).begin(1)
    until(lambda: len(hook.posts) == 2, "it is posted again, for nobody knows whether it arrived")
    made.notices("rmq_a", wanted()).begin(2)
    until(lambda: "attempt 2," in hook.lines[-1], "the next one goes out")
    made.close()


def test_without_a_hook_nothing_is_done() -> None:
    made = Slack("")
    made.notices("rmq_a", wanted("#room")).begin(1)
    made.close()
    assert not any(thread.name == "slack" for thread in threading.enumerate() if thread.is_alive())


def test_names_of_strangers_call_nobody_and_make_no_links(hook: Hook) -> None:
    made = Slack(hook.url)
    made.notices("rmq_a", wanted(key="<!channel>\n<https://evil.example|x>&")).begin(1)
    made.close()
    (line,) = hook.lines
    assert "&lt;!channel&gt;" in line and "<" not in line


@pytest.mark.parametrize("destination", [7, ["#a"], "", "#a b", "<!here>", "x" * 200, {"a": 1}])
def test_a_destination_that_is_none_is_no_fault_of_the_message(destination: object) -> None:
    assert destination_of(wanted(destination).document) == ""
