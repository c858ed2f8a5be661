"""``studio-runner top``: what runs, what waits and what came of it, in a terminal."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runner.errors import ConfigError, Unavailable
from runner.options.reading import option, read
from runner.options.settings import HomeSettings
from runner.options.values import address, boolean
from runner.supervisor.reasons import runners
from runner.units import format_duration, format_size

_USAGE = """studio-runner top [option ...]

Shows what the runners on this machine do that work in the same --working-dir, or the one at --prom-address. Those have
to show it: on an address of this machine only (--prom-address 127.0.0.1:9090), or with --status-page."""

# In seconds.
_PACE = 2.0
_ANSWER = 10.0
_OUTCOMES = 10
_LINES = 3
_QUEUES = 10
_BAR = 24
_CLEAR = "\033[H\033[2J"
_PHASES = {"start": "starting", "fetch": "fetching", "prepare": "environment", "run": "running", "return": "storing"}


@dataclass(frozen=True)
class TopSettings(HomeSettings):
    """The options of ``top``."""

    prom_address: str = option("", "address of the runner [those of --working-dir's]", address, metavar="ADDR")
    once: bool = option(False, "show it once, for scripts", boolean, metavar="BOOL", prefix="TOP_")


def main(arguments: Sequence[str]) -> int:
    """Show it until interrupted, or once; return 0. Raises ConfigError, and Unavailable for a runner that is silent."""
    settings, _ = read(TopSettings, arguments, os.environ, usage=_USAGE)
    if settings.once:
        print("\n\n".join(_text(each) for each in _asked(settings)))  # noqa: T201 -- talking to the user
        return 0
    clear = _CLEAR if sys.stdout.isatty() else ""
    with suppress(KeyboardInterrupt):
        for shown in _screens(settings):
            print(f"{clear}{shown}", flush=True)  # noqa: T201
            time.sleep(_PACE)
    return 0


def _screens(settings: TopSettings) -> Iterator[str]:
    """Yield what is shown, again and again; a runner that was there may go, for it may be started anew."""
    there = False
    while True:
        try:
            shown = "\n\n".join(_text(each, queues=_QUEUES) for each in _asked(settings))
            there = True
        except (ConfigError, Unavailable) as error:
            if not there:
                raise
            shown = _plain(f"{error}; asking again")
        yield _fitting(shown)


def _fitting(shown: str) -> str:
    """Leave out the lines that would have those before them scroll out of a terminal."""
    lines = shown.split("\n")
    high = shutil.get_terminal_size().lines - 1 if sys.stdout.isatty() else len(lines)
    if len(lines) > high:
        lines[max(high - 1, 0) :] = [f"({len(lines) - high + 1} more lines: enlarge the terminal, or see top --once)"]
    return "\n".join(lines)


def _asked(settings: TopSettings) -> list[dict[str, Any]]:
    return [ask(each) for each in _addresses(settings)]


def _addresses(settings: TopSettings) -> list[str]:
    if settings.prom_address:
        return [settings.prom_address]
    found = list(runners(settings.home))
    shown = [each["address"] for each in found if each.get("address")]
    if not found:
        raise ConfigError(f"no runner works in {settings.home}: start one, or name its --working-dir or --prom-address")
    if not shown:
        raise ConfigError("the runner has no address to ask: start it with --prom-address 127.0.0.1:9090")
    return shown


def ask(where: str) -> dict[str, Any]:
    """Return a runner's status. Raises Unavailable."""
    host, _, port = where.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]") or "127.0.0.1", int(port), timeout=_ANSWER)
    try:
        connection.request("GET", "/status.json")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise Unavailable(f"{where}: {body.decode(errors='replace').strip()}")
        return dict(json.loads(body))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"{where} does not answer as a runner does: {error}") from error
    finally:
        connection.close()


def _text(status: dict[str, Any], *, queues: int | None = None) -> str:
    """Write a status down, no wider than the terminal, in characters that do nothing to it; so many queues of it."""
    wide = shutil.get_terminal_size((120, 40)).columns if sys.stdout.isatty() else 160
    return "\n".join(_plain(line)[:wide].rstrip() for line in _lines(status, queues))


def _lines(status: dict[str, Any], queues: int | None) -> Iterator[str]:
    now = status["time"]
    state = status["idle"] or ("working" if status["experiments"] else "waiting for work")
    yield f"studio-runner {status['version']} on {status['host']}, process {status['process']}: {state}"
    if status["fault"]:
        yield f"  {status['fault']}"
    yield ""
    names = max((len(bar["name"]) for bar in status["bars"]), default=0)
    for bar in status["bars"]:
        full = round(_BAR * bar["used"] / bar["total"]) if bar["total"] else 0
        unit = " slots" if bar["unit"] == "slots" else ""
        drawn = f"[{'#' * full:<{_BAR}}] {_amount(bar, 'used')} of {_amount(bar, 'total')}{unit}"
        yield "  ".join(filter(None, (f"{bar['name']:<{names}} {drawn}", bar["trouble"])))
    yield ""
    yield f"RUNNING ({len(status['experiments'])})"
    for each in status["experiments"]:
        phase = _PHASES.get(each["phase"], each["phase"])
        took = f"{_since(now, each['phase_since'])} of {_since(now, each['since'])}"
        yield f"  {each['key']}  {phase} {took}  {each['queue']}, attempt {each['attempt']}, {each['resources']}"
        yield from (f"    | {line}" for line in each["lines"][-_LINES:])
    yield ""
    yield "QUEUES"
    told = sorted(status["queues"], key=lambda each: (not each["why"], -each["running"]))
    for each in told[:queues]:
        yield f"  {each['name']}  {each['running']} running  {each['why']}"
    if queues and told[queues:]:
        yield f"  and {len(told) - queues} more"
    yield ""
    yield "OUTCOMES"
    for each in status["outcomes"][:_OUTCOMES]:
        at = time.strftime("%H:%M:%S", time.localtime(each["time"]))
        yield f"  {at}  {each['verdict'] or each['outcome']:<9} {each['sentence']} ({each['decision']})"


def _amount(bar: dict[str, Any], which: str) -> str:
    return format_size(int(bar[which])) if bar["unit"] == "bytes" else f"{bar[which]:g}"


def _since(now: float, then: float) -> str:
    return format_duration(max(0.0, round(now - then)))


def _plain(line: str) -> str:
    """Names and output come from strangers, and terminals obey."""
    return "".join(character if character.isprintable() else "·" for character in line)
