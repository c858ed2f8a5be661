"""``studio-runner explain QUEUE``: why do the messages of a queue not run?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.errors import ConfigError
from runner.log import printable
from runner.options.reading import read
from runner.options.settings import HomeSettings
from runner.queues import carries_reports
from runner.supervisor.reasons import runners

_USAGE = """studio-runner explain [option ...] QUEUE

Says, for each runner that works on this machine in the same --working-dir, why it does not take messages from QUEUE."""


@dataclass(frozen=True)
class ExplainSettings(HomeSettings):
    """The options of ``explain``."""


def main(arguments: Sequence[str]) -> int:
    """Explain one queue; return 0 when a runner takes work from it, or would if there was some, else 1."""
    settings, rest = read(ExplainSettings, arguments, os.environ, usage=_USAGE, words=True)
    if len(rest) != 1:
        raise ConfigError("name one queue: studio-runner explain QUEUE")
    told = [(each["process"], *_explained(rest[0], each)) for each in runners(settings.home)]
    if not told:
        raise ConfigError(f"no runner works in {settings.home}: start one, or name its --working-dir")
    for process, _, sentence in told:
        print(printable(f"runner {process}: {sentence}"))  # noqa: T201 -- talking to the user
    return 0 if any(fine for _, fine, _ in told) else 1


def _explained(queue: str, runner: dict[str, Any]) -> tuple[bool, str]:
    """Say whether all is well between a runner and a queue, and in a sentence what there is between them."""
    running = [each for each in runner["running"] if each.startswith(f"{queue}: ")]
    if runner["idle"]:
        return False, f"takes no work at all: {runner['idle']}"
    if queue in runner["queues"]:
        reason = runner["queues"][queue]
        return not reason, reason or f"takes work from {queue}; {_state(running, runner)}"
    if carries_reports(queue):
        return False, f"{queue} is a queue for reports, by its name, and never read for work"
    if queue in runner["others"]:
        return False, f"there is a queue {queue}, but {_mismatch(runner)}"
    bound = ", and bound to StudioML's exchange" if "rmq" in runner["servers"] else ""
    return False, f"knows of no queue {queue} at its servers ({' and '.join(runner['servers'])}): is it made{bound}?"


def _state(running: list[str], runner: dict[str, Any]) -> str:
    if running:
        return f"{len(running)} of its experiments run here, {runner['free']} are free"
    return f"nothing waits in it, or it has its turn soon; {runner['free']} are free"


def _mismatch(runner: dict[str, Any]) -> str:
    if runner["names"]:
        return f"it is none of those that --queue names: {', '.join(runner['names'])}"
    if runner["mismatch"]:
        return (
            f"its name does not match --queue-match {runner['match']}, or matches --queue-mismatch {runner['mismatch']}"
        )
    return f"its name does not match --queue-match {runner['match']}"
